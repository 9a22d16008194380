//! Clients that write and read services of their own through any manager, at
//! once, and record what they did and saw.
//!
//! A register is a service without replicas; its value is a label. Each client
//! speaks to one manager until that does not answer, then to another. A call
//! without an answer has an unknown outcome; the client goes on with the next.
//!
//! Beside the history, each client checks what it was promised for itself: a
//! read with the revision of its last write is not older than that.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use warren_base::rng::{Rng, SeededRng, SystemRng};
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;

use crate::cluster::Cluster;
use crate::history::{Answer, Call, NEVER, Operation, Value};

/// An answer that takes longer is not waited for: its outcome is unknown. Managers without a
/// quorum answer within 4 s; paused ones never.
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Between two calls of a client, so that histories stay such that they can be decided.
const PACE: Duration = Duration::from_millis(5);
/// After a manager did not answer, before another is asked.
const PAUSE: Duration = Duration::from_millis(50);
/// Holds the value.
const LABEL: &str = "value";
/// Clients number their values from multiples of this.
const VALUES_EACH: Value = 1_000_000;

/// Who does how much.
#[derive(Debug, Clone)]
pub struct Load {
    /// Clients at once.
    pub clients: u32,
    /// Registers that they share.
    pub registers: u64,
    /// For what they choose to do.
    pub seed: u64,
}

/// What clients did and saw.
#[derive(Debug, Default)]
pub struct Record {
    /// Of all clients.
    pub operations: Vec<Operation>,
    /// Promises to one client that were not kept.
    pub broken: Vec<String>,
}

impl Record {
    /// Operations that changed something and were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let done = |operation: &&Operation| operation.answer == Some(Answer::Done);
        self.operations.iter().filter(done).count()
    }

    /// From a moment of the run to the first acknowledgement of a change that was asked for later.
    pub fn next_change(&self, after: Duration) -> Option<Duration> {
        let after = u64::try_from(after.as_nanos()).unwrap_or(NEVER);
        let done = self.operations.iter().filter(|o| o.answer == Some(Answer::Done));
        let later = done.filter(|operation| operation.invoked >= after);
        later.map(|operation| Duration::from_nanos(operation.returned - after)).min()
    }

    /// The longest time in which no change was acknowledged.
    pub fn longest_gap(&self) -> Duration {
        let done = self.operations.iter().filter(|o| o.answer == Some(Answer::Done));
        let mut moments: Vec<u64> = done.map(|operation| operation.returned).collect();
        moments.sort_unstable();
        let gaps = moments.windows(2).map(|pair| pair[1] - pair[0]);
        Duration::from_nanos(gaps.max().unwrap_or_default())
    }
}

/// Lets clients work while `during` runs, and a last reader see what is left of it all. `during`
/// is told when the run began, which its times count from.
pub fn record<R>(
    cluster: &Cluster,
    load: &Load,
    during: impl FnOnce(Instant) -> Result<R>,
) -> Result<(Record, R)> {
    let sockets: Vec<PathBuf> = cluster.managers().map(|node| node.socket()).collect();
    let (stop, start) = (AtomicBool::new(false), Instant::now());
    let work = |number: u32| Client::new(number, load, &sockets, start).run(&stop);
    let (outcome, records) = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..load.clients).map(|number| scope.spawn(move || work(number))).collect();
        let outcome = during(start);
        stop.store(true, Ordering::SeqCst);
        let records: Result<Vec<Record>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        (outcome, records)
    });
    let outcome = outcome?;
    let mut record = Record::default();
    let last = Client::new(load.clients, load, &sockets, start).read_all()?;
    for mut part in records?.into_iter().chain([last]) {
        record.operations.append(&mut part.operations);
        record.broken.append(&mut part.broken);
    }
    Ok((record, outcome))
}

struct Client<'a> {
    number: u32,
    rng: SeededRng,
    registers: u64,
    sockets: &'a [PathBuf],
    manager: usize,
    control: Option<ControlClient<Channel>>,
    start: Instant,
    values: Value,
    /// What it saw last of each register: value and revision.
    known: BTreeMap<String, (Value, u64)>,
    /// Of its last acknowledged write.
    revision: u64,
    record: Record,
}

impl<'a> Client<'a> {
    fn new(number: u32, load: &Load, sockets: &'a [PathBuf], start: Instant) -> Self {
        Self {
            number,
            rng: SeededRng::new(load.seed ^ u64::from(number) << 32),
            registers: load.registers,
            sockets,
            manager: usize::try_from(number).unwrap_or(0) % sockets.len().max(1),
            control: None,
            start,
            values: Value::from(number) * VALUES_EACH,
            known: BTreeMap::new(),
            revision: 0,
            record: Record::default(),
        }
    }

    fn run(mut self, stop: &AtomicBool) -> Result<Record> {
        runtime()?.block_on(async {
            while !stop.load(Ordering::SeqCst) {
                let key = name(self.rng.below(self.registers));
                let call = self.choose(&key);
                self.perform(&key, call).await;
                tokio::time::sleep(PACE).await;
            }
        });
        Ok(self.record)
    }

    /// Reads every register once; asks until it is told.
    fn read_all(mut self) -> Result<Record> {
        runtime()?.block_on(async {
            for key in (0..self.registers).map(name) {
                let limit = Instant::now() + 12 * CALL_LIMIT;
                while !self.perform(&key, Call::Read).await && Instant::now() < limit {}
            }
        });
        Ok(self.record)
    }

    fn choose(&mut self, key: &str) -> Call {
        self.values += 1;
        let value = self.values;
        match (self.rng.below(20), self.known.get(key)) {
            (0, _) => Call::Remove,
            (1..4, _) => Call::Create(value),
            (4..7, _) => Call::Write(value),
            (7..11, Some((from, _))) => Call::Swap { from: *from, to: value },
            _ => Call::Read,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(NEVER - 1)
    }

    /// Makes a call and writes down what came of it; whether an answer came.
    async fn perform(&mut self, key: &str, call: Call) -> bool {
        let Some(control) = self.connected().await else { return false };
        let invoked = self.now();
        let outcome = tokio::time::timeout(CALL_LIMIT, self.ask(control, key, call)).await;
        let answer = match outcome {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(status)) => known_outcome(call, &status),
            Err(_) => None,
        };
        let returned = if answer.is_some() { self.now() } else { NEVER };
        let (client, key) = (self.number, key.to_owned());
        self.record.operations.push(Operation { client, key, call, answer, invoked, returned });
        if answer.is_none() {
            self.give_up().await;
        }
        answer.is_some()
    }

    async fn ask(
        &mut self,
        mut control: ControlClient<Channel>,
        key: &str,
        call: Call,
    ) -> Result<Answer, Status> {
        let request_id = request_id();
        let spec = |value| Some(spec(key, value));
        let mut update = v1::UpdateServiceRequest {
            service: key.to_owned(),
            no_check: true,
            request_id: request_id.clone(),
            ..Default::default()
        };
        let changed = match call {
            Call::Read => return self.read(control, key).await,
            Call::Create(value) => {
                let request = v1::CreateServiceRequest {
                    spec: spec(value),
                    request_id,
                    no_check: true,
                    ..Default::default()
                };
                control.create_service(request).await?
            }
            Call::Write(value) => {
                update.spec = spec(value);
                control.update_service(update).await?
            }
            Call::Swap { to, .. } => {
                update.spec = spec(to);
                update.revision = self.known.get(key).map_or(u64::MAX, |known| known.1);
                control.update_service(update).await?
            }
            Call::Remove => {
                let services = vec![key.to_owned()];
                control.remove_services(v1::RemoveServicesRequest { services, request_id }).await?
            }
        };
        self.revision = self.revision.max(changed.into_inner().revision);
        Ok(Answer::Done)
    }

    async fn read(
        &mut self,
        mut control: ControlClient<Channel>,
        key: &str,
    ) -> Result<Answer, Status> {
        let request = v1::ListServicesRequest {
            services: vec![key.to_owned()],
            min_revision: self.revision,
            linearizable: true,
        };
        let response = control.list_services(request).await?.into_inner();
        if response.revision < self.revision {
            self.record.broken.push(format!(
                "client {} wrote at revision {} and then read revision {} of {key}",
                self.number, self.revision, response.revision
            ));
        }
        let service = response.services.into_iter().find(|service| !service.removing);
        let value = service.as_ref().and_then(|service| {
            let spec = service.spec.as_ref()?;
            spec.labels.get(LABEL)?.parse().ok()
        });
        match (value, service) {
            (Some(value), Some(service)) => {
                self.known.insert(key.to_owned(), (value, service.revision));
            }
            _ => {
                self.known.remove(key);
            }
        }
        Ok(Answer::Value(value))
    }

    async fn connected(&mut self) -> Option<ControlClient<Channel>> {
        if self.control.is_none() {
            let socket = self.sockets.get(self.manager)?;
            let dialled = tokio::time::timeout(CALL_LIMIT, dial(socket)).await;
            match dialled {
                Ok(Ok(control)) => self.control = Some(control),
                Ok(Err(_)) | Err(_) => self.give_up().await,
            }
        }
        self.control.clone()
    }

    /// Turns to another manager.
    async fn give_up(&mut self) {
        self.control = None;
        let others = self.sockets.len() as u64;
        self.manager = usize::try_from(self.rng.below(others)).unwrap_or(0);
        tokio::time::sleep(PAUSE).await;
    }
}

/// What a status says of the outcome; nothing: it may have been done.
fn known_outcome(call: Call, status: &Status) -> Option<Answer> {
    match status.code() {
        Code::NotFound if call == Call::Read => Some(Answer::Value(None)),
        Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::Aborted
        | Code::FailedPrecondition
            if call != Call::Read =>
        {
            Some(Answer::Refused)
        }
        _ => None,
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().context("start the event loop of a client")
}

fn name(register: u64) -> String {
    format!("register-{register}")
}

fn request_id() -> Vec<u8> {
    let mut bytes = vec![0; 16];
    SystemRng.fill(&mut bytes);
    bytes
}

fn spec(key: &str, value: Value) -> v1::ServiceSpec {
    use v1::mode::{Kind, Replicated};
    v1::ServiceSpec {
        name: key.to_owned(),
        labels: [(LABEL.to_owned(), value.to_string())].into(),
        mode: Some(v1::Mode { kind: Some(Kind::Replicated(Replicated { replicas: 0 })) }),
        task: Some(v1::TaskTemplate { image: "bb:1".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

/// A connection to the node whose socket it is.
async fn dial(socket: &Path) -> Result<ControlClient<Channel>> {
    let stream = UnixStream::connect(socket).await.context("connect")?;
    let mut stream = Some(TokioIo::new(stream));
    // The address is never looked at: the connector hands out the socket, once.
    let connector = tower::service_fn(move |_| {
        let taken = stream.take();
        async move { taken.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let endpoint = Endpoint::from_static("http://warren.invalid");
    Ok(ControlClient::new(endpoint.connect_with_connector(connector).await?))
}
