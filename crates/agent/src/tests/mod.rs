//! The whole agent against a scripted manager, over gRPC in memory.
//!
//! Runtime, network and images are pretended; time is tokio's paused clock, so
//! pauses pass as soon as everybody waits and no test sleeps.

mod alone;
mod crews;
mod health;
mod host;
mod lifecycle;
mod manager;
mod managers;
mod networks;
mod recovery;
mod resolve;
mod runtime;
mod streams;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use warren_base::clock::{Clock, Sleep};
use warren_base::rng::SeededRng;
use warren_model::node::Description;
use warren_model::service::{OnDisconnect, PortSpec, Protocol, PublishMode, RestartPolicy};
use warren_model::task::{Desired, TaskState, TaskStatus};
use warren_model::{NodeId, ServiceId, TaskId, TaskTemplate, Time};
use warren_proto::v1;
use warren_trust::KeyFile;

use crate::fake::{FakeHosts, FakeImages, FakeNames, FakeNetTable, FakeNetwork, FakeProbes};
use crate::{Agent, LocalManager, ManagerAddress, Options};
use manager::{Manager, Managers, Session};
use runtime::Pretend;

/// Nothing in these tests takes that long; tokio's clock jumps there at once when all is quiet.
const PATIENCE: Duration = Duration::from_secs(600);

/// Tokio's clock, which stands still until nobody has anything to do.
#[derive(Debug)]
struct QuietClock(tokio::time::Instant);

impl Clock for QuietClock {
    fn now_ms(&self) -> u64 {
        1_750_000_000_000 + self.monotonic_ms()
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }

    fn sleep_until(&self, at_ms: u64) -> Sleep {
        // Rounded up, as tokio's timers are: one that ends early would spin.
        let wait = at_ms.saturating_sub(self.monotonic_ms()).min(1 << 40);
        Box::pin(tokio::time::sleep(Duration::from_millis(wait)))
    }
}

/// Where the first manager is.
const ONE: &str = "one:2377";

fn at(address: &str) -> ManagerAddress {
    ManagerAddress::Remote(address.to_owned())
}

/// An agent and all that surrounds it; what surrounds it survives the agent.
struct Bench {
    /// The one at [`ONE`].
    manager: Manager,
    managers: Managers,
    addresses: Vec<String>,
    local: watch::Sender<LocalManager>,
    runtime: Arc<Pretend>,
    images: Arc<FakeImages>,
    network: Arc<FakeNetwork>,
    net_table: Arc<FakeNetTable>,
    names: Arc<FakeNames>,
    hosts: Arc<FakeHosts>,
    probes: Arc<FakeProbes>,
    clock: Arc<QuietClock>,
    dir: tempfile::TempDir,
    agent: Option<Agent>,
}

impl Bench {
    async fn new() -> Self {
        let mut bench = Self::unstarted();
        bench.start().await;
        bench
    }

    fn unstarted() -> Self {
        let clock = Arc::new(QuietClock(tokio::time::Instant::now()));
        let images = Arc::new(FakeImages::default());
        images.put(&"web:1".parse().unwrap());
        let bench = Self {
            manager: Manager::default(),
            managers: Managers::default(),
            addresses: vec![ONE.to_owned()],
            local: watch::Sender::new(LocalManager::Absent),
            runtime: Arc::new(Pretend::new(clock.clone())),
            images,
            network: Arc::new(FakeNetwork::default()),
            net_table: Arc::default(),
            names: Arc::default(),
            hosts: Arc::default(),
            probes: Arc::default(),
            clock,
            dir: tempfile::tempdir().unwrap(),
            agent: None,
        };
        bench.managers.add(at(ONE), bench.manager.clone());
        bench
    }

    /// One more manager, known to the agent that is started next.
    fn another(&mut self, address: &str) -> Manager {
        let manager = Manager::default();
        self.managers.add(at(address), manager.clone());
        self.addresses.push(address.to_owned());
        manager
    }

    async fn start(&mut self) {
        let options = Options {
            node_id: NodeId::from_bytes([9; 10]),
            description: Description { hostname: "here".into(), ..Description::default() },
            runtime: self.runtime.clone(),
            images: self.images.clone(),
            network: self.network.clone(),
            net_table: self.net_table.clone(),
            names: Some(self.names.clone()),
            tunnel: None,
            name_server: None,
            resolve: self.hosts.clone(),
            probes: self.probes.clone(),
            overlay_device: "w-test".to_owned(),
            ipv6: true,
            device_folders: Vec::new(),
            data_dir: self.dir.path().to_owned(),
            own_folders: Vec::new(),
            key: Arc::new(KeyFile::in_memory([3; 32])),
            pool: (Ipv4Addr::new(10, 128, 0, 0), 10),
            clock: self.clock.clone(),
            rng: Arc::new(SeededRng::new(1)),
            connect: Arc::new(self.managers.clone()),
            managers: self.addresses.clone(),
            local: self.local.subscribe(),
        };
        self.agent = Some(Agent::start(options).await.unwrap());
    }

    /// As `kill -9`: nothing is said, nothing is tidied.
    fn kill(&mut self) {
        self.agent = None;
    }

    async fn session(&self) -> Session {
        patiently(self.manager.session()).await
    }

    /// Two containers run, whatever was reported of them yet.
    async fn both_run(&self) {
        let both = async {
            while self.runtime.running().len() < 2 {
                tokio::task::yield_now().await;
            }
        };
        patiently(both).await;
    }

    /// Exactly these run.
    async fn runs(&self, containers: &[String]) {
        while self.runtime.running() != containers {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Lets time pass: whatever is to happen until then has happened.
    async fn clock_at(&self, at_ms: u64) {
        self.clock.sleep_until(at_ms).await;
        // What happens at that very moment happens before we look.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    /// Where assignments are kept.
    fn kept(&self) -> std::path::PathBuf {
        self.dir.path().join("agent/assignments")
    }

    fn mono(&self) -> u64 {
        self.clock.monotonic_ms()
    }
}

#[track_caller]
fn patiently<T>(work: impl Future<Output = T>) -> impl Future<Output = T> {
    let here = std::panic::Location::caller();
    async move {
        let Ok(done) = tokio::time::timeout(PATIENCE, work).await else {
            panic!("nothing happened at {here}");
        };
        done
    }
}

fn task_id(n: u8) -> TaskId {
    TaskId::from_bytes([n; 10])
}

fn service_id() -> ServiceId {
    ServiceId::from_bytes([200; 10])
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 128, 0, n)
}

fn template() -> TaskTemplate {
    let restart = RestartPolicy { delay_ms: 0, ..RestartPolicy::default() };
    TaskTemplate { image: "web:1".into(), restart, ..TaskTemplate::default() }
}

fn port(published: u16, mode: PublishMode) -> PortSpec {
    let (protocol, bind) = (Protocol::Tcp, Ipv4Addr::UNSPECIFIED);
    PortSpec { protocol, bind, published, target: 80, mode, name: None }
}

/// What a node must hold, in the making. One service; tasks by number.
#[derive(Clone)]
struct Wish {
    revision: u64,
    tasks: BTreeMap<u8, (Desired, TaskStatus)>,
    template: TaskTemplate,
    ports: Vec<PortSpec>,
    on_disconnect: OnDisconnect,
    membership: Option<v1::Membership>,
}

impl Wish {
    fn new() -> Self {
        Self {
            revision: 1,
            tasks: BTreeMap::new(),
            template: template(),
            ports: vec![],
            on_disconnect: OnDisconnect::default(),
            membership: None,
        }
    }

    fn at(mut self, epoch: u64, revision: u64) -> Self {
        self.revision = revision;
        let managers = vec![ONE.to_owned()];
        let membership = self.membership.take();
        let membership =
            membership.unwrap_or_else(|| v1::Membership { managers, ..Default::default() });
        self.membership = Some(v1::Membership { epoch, ..membership });
        self
    }

    fn managers(mut self, managers: &[&str]) -> Self {
        let managers = managers.iter().map(|address| (*address).to_owned()).collect();
        let membership = self.membership.take().unwrap_or_default();
        self.membership = Some(v1::Membership { managers, ..membership });
        self
    }

    fn stop_after(mut self, ms: u64) -> Self {
        self.on_disconnect = OnDisconnect::StopAfter { ms };
        self
    }

    fn task(mut self, n: u8, desired: Desired) -> Self {
        let known = TaskStatus::new(TaskState::Assigned, Time(0));
        self.tasks.insert(n, (desired, known));
        self
    }

    fn known(mut self, n: u8, status: &TaskStatus) -> Self {
        self.tasks.get_mut(&n).unwrap().1 = status.clone();
        self
    }

    fn ports(mut self, ports: &[PortSpec]) -> Self {
        self.ports = ports.to_vec();
        self
    }

    fn template(mut self, edit: impl FnOnce(&mut TaskTemplate)) -> Self {
        edit(&mut self.template);
        self
    }

    fn complete(&self) -> v1::Assignment {
        v1::Assignment { complete: true, ..self.next(0) }
    }

    /// Everything again, as a change from `applies_to`.
    fn next(&self, applies_to: u64) -> v1::Assignment {
        let tasks = self.tasks.iter().map(|(n, (desired, known))| v1::AssignedTask {
            id: task_id(*n).as_bytes().to_vec(),
            service: service_id().as_bytes().to_vec(),
            slot: u32::from(*n),
            template: 1,
            desired: v1::Desired::from(*desired).into(),
            address: Some(address(*n).into()),
            status: Some(known.into()),
            ..v1::AssignedTask::default()
        });
        let template = v1::Template {
            service: service_id().as_bytes().to_vec(),
            number: 1,
            task: Some((&self.template).into()),
        };
        let service = v1::AssignedService {
            id: service_id().as_bytes().to_vec(),
            name: "web".into(),
            ports: self.ports.iter().map(Into::into).collect(),
            templates: vec![template],
            on_disconnect: Some(self.on_disconnect.into()),
            labels: Default::default(),
            kept_images: vec!["before:1".into()],
        };
        v1::Assignment {
            complete: false,
            applies_to,
            revision: self.revision,
            tasks: tasks.collect(),
            services: vec![service],
            removed_tasks: vec![],
            removed_services: vec![],
            cluster: None,
            membership: self.membership.clone(),
            network: None,
        }
    }
}
