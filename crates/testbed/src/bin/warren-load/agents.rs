//! Agents that are members of the cluster, each with a key, a certificate and a
//! session of its own, and run nothing: what the managers bear of a thousand
//! nodes. If asked to, they say of their tasks what an agent says whose
//! containers start and stop in no time.
//!
//! They join with a token, as machines do, then hold one session each with one
//! of the managers, beat as they are told to, and go to the next manager when a
//! session ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::{Rng, SystemRng};
use warren_model::NodeId;
use warren_proto::v1;
use warren_proto::v1::agent_message::{Beat, Hello, Kind, Report, Status};
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::join_client::JoinClient;
use warren_proto::v1::manager_message::Kind as Told;
use warren_trust::{Bundle, Credentials, Identity, JoinToken, NodeKey};

use crate::{Shared, ready};

const GRPC: &[u8] = b"h2";
/// Joins at once: a rack that is switched on.
const JOINS_MAX: usize = 16;
/// Tries of a join, and of a first session.
const TRIES_MAX: u32 = 20;
const PAUSE: Duration = Duration::from_millis(200);
/// Of a manager that named none.
const BEAT_MS: u64 = 500;
const BEATS_MAX: usize = 4;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `HOST:PORT` of each manager
    #[arg(long = "manager", required = true)]
    managers: Vec<String>,
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// Say that tasks run and stop as soon as they are told to
    #[arg(long)]
    obey: bool,
    /// For workers; in the environment, since arguments are for everybody to see
    #[arg(long, env = "WARREN_TOKEN", hide_env_values = true, hide = true)]
    token: String,
}

#[derive(Default)]
struct Counts {
    open: AtomicU64,
    opened: AtomicU64,
    ended: AtomicU64,
    beats: AtomicU64,
    answers: AtomicU64,
    assignments: AtomicU64,
    reports: AtomicU64,
}

pub(crate) async fn run(args: Args, mut stop: watch::Receiver<bool>) -> Result<Value> {
    let token: JoinToken = args.token.parse().context("the token")?;
    let counts = Shared::new(Counts::default());
    let turns = Arc::new(Semaphore::new(JOINS_MAX));
    let began = std::time::Instant::now();
    let mut joining = Vec::new();
    for number in 0..args.count {
        let (managers, token) = (args.managers.clone(), token.clone());
        let (counts, turns) = (Shared::clone(&counts), Arc::clone(&turns));
        joining.push(tokio::spawn(async move {
            let turn = turns.acquire_owned().await?;
            let agent = Agent::join(number, managers, &token, counts, args.obey).await?;
            drop(turn);
            tokio::spawn(agent.hold());
            anyhow::Ok(())
        }));
    }
    for joined in joining {
        joined.await??;
    }
    let joined_s = began.elapsed().as_secs_f64();
    while counts.open.load(Relaxed) < u64::try_from(args.count)? {
        tokio::time::sleep(PAUSE).await;
    }
    counts.opened.store(0, Relaxed);
    ready();
    stop.wait_for(|stop| *stop).await?;
    let count = |counter: &AtomicU64| counter.load(Relaxed);
    Ok(json!({
        "joined_s": joined_s,
        "open": count(&counts.open),
        "opened_again": count(&counts.opened),
        "ended": count(&counts.ended),
        "beats": count(&counts.beats),
        "answers": count(&counts.answers),
        "assignments": count(&counts.assignments),
        "reports": count(&counts.reports),
    }))
}

struct Agent {
    node: NodeId,
    description: v1::NodeDescription,
    managers: Vec<String>,
    next: usize,
    config: Arc<ClientConfig>,
    counts: Shared<Counts>,
    obey: bool,
    revision: u64,
    epoch: u64,
}

impl Agent {
    async fn join(
        number: usize,
        managers: Vec<String>,
        token: &JoinToken,
        counts: Shared<Counts>,
        obey: bool,
    ) -> Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let node = NodeId::from_bytes(SystemRng.id_bytes());
        let key = NodeKey::generate()?;
        let description = describe(number);
        let request = v1::JoinRequest {
            token: token.to_text().to_string(),
            node_id: node.as_bytes().to_vec(),
            signing_request: key.signing_request(&node.to_string())?,
            description: Some(description.clone()),
            manager_only: false,
            time: clock.now_ms(),
            routes: Vec::new(),
        };
        let config = warren_trust::join_config(token.fingerprint, Arc::clone(&clock), &[GRPC])?;
        let mut trouble = None;
        for attempt in 0..TRIES_MAX {
            let manager = &managers[(number + attempt as usize) % managers.len()];
            match ask(manager, Arc::clone(&config), request.clone()).await {
                Ok(joined) => {
                    let bundle = Bundle::new(&joined.authorities)?;
                    let identity = Identity::new(key, &joined.certificates, bundle.clone())?;
                    let credentials = Credentials::new(bundle, clock);
                    credentials.set(&identity)?;
                    let config = warren_trust::client_config(&credentials, None, &[GRPC])?;
                    let (next, epoch) = (number, joined.epoch);
                    let agent = Self {
                        node,
                        description,
                        managers,
                        next,
                        config,
                        counts,
                        obey,
                        revision: 0,
                        epoch,
                    };
                    return Ok(agent);
                }
                Err(error) => trouble = Some(error),
            }
            tokio::time::sleep(PAUSE).await;
        }
        bail!("agent {number} cannot join: {:#}", trouble.context("no try was made")?)
    }

    /// Keeps a session for as long as the program runs.
    async fn hold(mut self) {
        loop {
            let _ = self.session().await;
            self.next += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn session(&mut self) -> Result<()> {
        let manager = &self.managers[self.next % self.managers.len()];
        let channel = dial(manager, Arc::clone(&self.config)).await?;
        let hello = Hello {
            node_id: self.node.as_bytes().to_vec(),
            description: Some(self.description.clone()),
            assigned_revision: self.revision,
            epoch: self.epoch,
            instance: SystemRng.next_u64(),
        };
        let (say, said) = mpsc::channel(BEATS_MAX);
        say.send(v1::AgentMessage { kind: Some(Kind::Hello(hello)) }).await?;
        let answered = DispatchClient::new(channel).session(ReceiverStream::new(said)).await?;
        let mut told = answered.into_inner();
        let _open = Open::new(&self.counts);
        let mut beat = Duration::from_millis(BEAT_MS);
        // Not all at once.
        let first = beat.mul_f64(SystemRng.below(1000) as f64 / 1000.0);
        let mut wake = tokio::time::Instant::now() + first;
        let mut number = 0;
        loop {
            tokio::select! {
                message = told.message() => {
                    let message = message?.context("the manager closed the session")?;
                    match message.kind {
                        Some(Told::Assignment(assignment)) => {
                            self.counts.assignments.fetch_add(1, Relaxed);
                            self.revision = assignment.revision;
                            if self.obey {
                                let report = obeyed(&assignment);
                                let many = report.statuses.len() as u64;
                                let report = Kind::Report(report);
                                say.send(v1::AgentMessage { kind: Some(report) }).await?;
                                self.counts.reports.fetch_add(many, Relaxed);
                            }
                            if let Some(membership) = assignment.membership {
                                self.epoch = membership.epoch;
                                beat = Duration::from_millis(u64::from(membership.beat_ms.max(50)));
                            }
                        }
                        Some(Told::Beat(_)) => {
                            self.counts.answers.fetch_add(1, Relaxed);
                        }
                        Some(Told::Stream(_)) | None => {}
                    }
                }
                () = tokio::time::sleep_until(wake) => {
                    number += 1;
                    let beat_now = Beat { number, rtt_ms: 1 };
                    say.send(v1::AgentMessage { kind: Some(Kind::Beat(beat_now)) }).await?;
                    self.counts.beats.fetch_add(1, Relaxed);
                    wake += beat;
                }
            }
        }
    }
}

/// What an agent says whose containers start and stop in no time.
fn obeyed(assignment: &v1::Assignment) -> Report {
    use v1::TaskState;
    let now = RealClock::new().now_ms();
    let statuses = assignment.tasks.iter().filter_map(|task| {
        let known = task.status.clone().unwrap_or_default();
        let state = match (task.desired(), known.state()) {
            (v1::Desired::Running, state) if state < TaskState::Running => TaskState::Running,
            (v1::Desired::Shutdown, state) if state < TaskState::Complete => TaskState::Complete,
            (v1::Desired::Remove, state) if state < TaskState::Removed => TaskState::Removed,
            _ => return None,
        };
        let started = known.started.or(Some(now));
        let attempt = known.attempt.max(1);
        let status =
            v1::TaskStatus { state: state.into(), since: now, attempt, pid: 1, started, ..known };
        Some(Status { task: task.id.clone(), status: Some(status) })
    });
    Report { statuses: statuses.collect(), through: assignment.revision, ..Report::default() }
}

/// A session while it is open.
struct Open<'a>(&'a Counts);

impl<'a> Open<'a> {
    fn new(counts: &'a Counts) -> Self {
        counts.open.fetch_add(1, Relaxed);
        counts.opened.fetch_add(1, Relaxed);
        Self(counts)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
        self.0.ended.fetch_add(1, Relaxed);
    }
}

async fn ask(
    manager: &str,
    config: Arc<ClientConfig>,
    request: v1::JoinRequest,
) -> Result<v1::Joined> {
    let channel = dial(manager, config).await?;
    Ok(JoinClient::new(channel).join(request).await?.into_inner())
}

async fn dial(manager: &str, config: Arc<ClientConfig>) -> Result<Channel> {
    let stream = TcpStream::connect(manager).await.context("connect")?;
    stream.set_nodelay(true)?;
    let connector = TlsConnector::from(config);
    let stream = connector.connect(warren_trust::server_name(), stream).await.context("TLS")?;
    let mut stream = Some(TokioIo::new(stream));
    // The address is never looked at: the connector hands out the stream, once.
    let connector = tower::service_fn(move |_| {
        let taken = stream.take();
        async move { taken.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    });
    let endpoint = Endpoint::from_static("http://manager.invalid");
    Ok(endpoint.connect_with_connector(connector).await?)
}

fn describe(number: usize) -> v1::NodeDescription {
    v1::NodeDescription {
        hostname: format!("load-{number:04}"),
        address: "10.88.0.1".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpus: 2,
        memory_bytes: 4 << 30,
        architecture: "x86_64".to_owned(),
        kernel: "6.1".to_owned(),
        labels: Default::default(),
        ..v1::NodeDescription::default()
    }
}
