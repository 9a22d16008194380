//! Several managers and workers in one thread: the real store with its real
//! consensus, the real manager, the real core of the agent, over a network,
//! disks, clocks and containers that only exist here.
//!
//! A run forms the cluster, lets people use it while things go wrong, mends
//! everything, and then asks whether all is as it must be. Everything random is
//! drawn from the seed, and time is tokio's own, paused: the same seed gives
//! the same run ([`Report::trace`]).
//!
//! Checked all the time: `book`. Checked once it is calm: `calm`.
//!
//! Not here: TLS, sockets, the agent's own session, the kernel. A host that is
//! stopped is stopped at its edges: its consensus goes on in silence (see
//! docs/adr).

#[cfg(not(tokio_unstable))]
compile_error!(
    "the simulator seeds the runtime's own choices: build it with RUSTFLAGS=\"--cfg tokio_unstable\" \
     (.cargo/config.toml has it; RUSTFLAGS in the environment replace that)"
);

mod agent;
mod book;
mod call;
mod calm;
mod clock;
mod faults;
mod host;
mod laws;
mod mend;
mod net;
mod plan;
mod session;
mod user;
mod watch;
mod wire;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tokio::runtime::{Builder, RngSeed, UnhandledPanic};
use tokio::task::JoinSet;
use warren_base::rng::Rng;
use warren_model::cluster::Cluster;
use warren_model::network::NetworkSpec;
use warren_model::node::Node;
use warren_model::service::{Mode, OnDisconnect, ServiceSpec, TaskTemplate};
use warren_model::{NetworkId, ServiceId};
use warren_state::change::{Mutation, Transaction};

use crate::Failure;
use host::Host;
use net::WORKERS;
pub use plan::Profile;
use plan::Script;
use user::User;
use world::{World, held};

/// People at work.
const USERS: u64 = 2;

/// How long and how rough a run is.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    pub seed: u64,
    /// None: drawn from the seed.
    pub profile: Option<Profile>,
    /// Simulated milliseconds of trouble before the calm.
    pub trouble_ms: u64,
    /// Tell what happens on the standard error output.
    pub verbose: bool,
}

impl Options {
    /// Long enough for a dozen faults that overlap.
    pub const TROUBLE_MS: u64 = 15_000;

    pub fn of_seed(seed: u64) -> Self {
        Self { seed, profile: None, trouble_ms: Self::TROUBLE_MS, verbose: false }
    }
}

/// What happened, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub faults: u32,
    /// How often a manager began to lead.
    pub leaders: u32,
    /// Managers that never came back.
    pub lost: u32,
    pub acknowledged: u32,
    pub container_crashes: u32,
    /// Answers that told of a run that somebody wished for.
    pub runs: u32,
    /// Runs that a schedule began.
    pub scheduled: u32,
    /// Updates that were seen under way.
    pub updates: u32,
    /// Commands of a deploy that did their work.
    pub hooks: u32,
    /// Tasks that were given a device.
    pub devices: u32,
    /// Tasks that ended for others of higher priority.
    pub preempted: u32,
    /// Times that somebody was told that a node drains.
    pub drains: u32,
    /// Times that somebody set a clock.
    pub clocks: u32,
    /// Times that somebody held an update or let it go on, or did so with a schedule.
    pub held: u32,
}

impl Counts {
    /// Each with its name.
    pub fn all(self) -> [(&'static str, u32); 14] {
        let Self {
            faults,
            leaders,
            lost,
            acknowledged,
            container_crashes,
            runs,
            scheduled,
            updates,
            hooks,
            devices,
            preempted,
            drains,
            clocks,
            held,
        } = self;
        [
            ("faults", faults),
            ("leaders", leaders),
            ("lost managers", lost),
            ("acknowledged writes", acknowledged),
            ("crashed containers", container_crashes),
            ("runs begun by people", runs),
            ("runs begun by schedules", scheduled),
            ("updates", updates),
            ("hooks done", hooks),
            ("tasks with devices", devices),
            ("preempted tasks", preempted),
            ("drains", drains),
            ("clocks set", clocks),
            ("held updates and schedules", held),
        ]
    }
}

/// What a run did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Hash of everything that happened, in order.
    pub trace: u64,
    pub happenings: u64,
    pub simulated_ms: u64,
    pub revision: u64,
    pub counts: Counts,
}

/// Runs one cluster from its seed to the calm.
///
/// # Errors
/// The first thing that did not hold.
pub fn run(options: Options) -> Result<Report, Failure> {
    let Options { seed, profile, trouble_ms, verbose } = options;
    let failure = |at_ms, what| Failure { seed, at_ms, what };
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .rng_seed(RngSeed::from_bytes(&seed.to_le_bytes()))
        .unhandled_panic(UnhandledPanic::ShutdownRuntime)
        .build();
    let runtime = runtime.map_err(|error| failure(0, format!("start a runtime: {error}")))?;
    let script = Script::of(seed, profile, trouble_ms);
    let mut made = None;
    let ran = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            let world = Arc::clone(made.insert(Arc::new(World::new(script, verbose))));
            world.note(|| format!("{script:?}"));
            let mut failed = world.failure();
            let live = live(Arc::clone(&world));
            let outcome = tokio::select! {
                biased;
                _ = failed.wait_for(Option::is_some) => Ok(0),
                outcome = live => outcome,
            };
            let told = failed.borrow().clone();
            match (told, outcome) {
                (Some((at_ms, what)), _) => Err((at_ms, what)),
                (None, Err(what)) => Err((world.now_ms(), what)),
                (None, Ok(revision)) => Ok(report(&world, revision)),
            }
        })
    }));
    match ran {
        Ok(ran) => {
            // Whatever is left under way ends here, without time to do anything.
            drop(runtime);
            // Its managers hold the world that holds them.
            if let Some(world) = made {
                world.dissolve();
            }
            ran.map_err(|(at_ms, what)| failure(at_ms, what))
        }
        Err(_) => {
            // What panicked once may do so again when it is dropped, which would be the end of
            // this process: it is left behind.
            std::mem::forget(runtime);
            Err(failure(0, "something panicked: what, is told above".to_owned()))
        }
    }
}

fn report(world: &World, revision: u64) -> Report {
    let (trace, happenings) = world.trace_so_far();
    let mut counts = world.counts();
    held(&world.book).laws.count(&mut counts);
    Report { trace, happenings, simulated_ms: world.now_ms(), revision, counts }
}

async fn live(world: Arc<World>) -> Result<u64, String> {
    found(&world);
    calm::settle(&world).await.map_err(|why| format!("the cluster does not form: {why}"))?;
    let mut people = JoinSet::new();
    for name in 0..USERS {
        people.spawn(User::new(Arc::clone(&world), name).run());
    }
    faults::trouble(Arc::clone(&world)).await;
    people.shutdown().await;
    faults::heal(&world);
    faults::repair(&world).await;
    let mending = Arc::clone(&world);
    let calm = async {
        calm::settle(&world).await?;
        calm::replay(&world).await
    };
    tokio::select! {
        biased;
        calm = calm => calm?,
        () = mend::mend(mending) => {}
    }
    calm::revision(&world)
}

/// Hosts, and the first transaction.
fn found(world: &Arc<World>) {
    let script = world.script;
    held(&world.book).drains = script.drains;
    for at in 1..=script.managers {
        let host = Arc::new(Host::new(world, at, format!("m{at}")));
        host.becomes_manager(u64::from(at), at == 1);
        world.add(host);
    }
    for at in 1..=script.workers {
        world.add(Arc::new(Host::new(world, WORKERS + at, format!("w{at}"))));
    }
    world.hosts().iter().for_each(|host| host.boot(world));
}

/// The cluster as its first manager writes it down.
pub(crate) fn founding(world: &World) -> Transaction {
    let script = world.script;
    let mut mutations = vec![Mutation::SetCluster(Cluster::new(world.cluster))];
    if let Ok(name) = "sim".parse() {
        mutations.push(Mutation::PutOperator(call::operator(name)));
    }
    for host in world.hosts() {
        let manager = host.place < WORKERS;
        mutations.push(Mutation::CreateNode(Node {
            manager,
            worker: !manager || script.hybrid,
            key_hash: host.key_hash(),
            ..Node::new(host.node, host.description())
        }));
    }
    // The default one is left to the planner.
    for name in plan::NETWORKS.iter().filter_map(|name| name.parse().ok()) {
        let id = NetworkId::from_bytes(world.rng.id_bytes());
        mutations.push(Mutation::CreateNetwork { id, spec: NetworkSpec::new(name) });
    }
    if let Some(spec) = shared() {
        let id = ServiceId::from_bytes(world.rng.id_bytes());
        mutations.push(Mutation::CreateService { id, spec });
    }
    let policies = [OnDisconnect::Keep, OnDisconnect::StopAfter { ms: 4_000 }];
    for ((id, name), policy) in plan::sentinels().into_iter().zip(["keep", "stop"]).zip(policies) {
        let Ok(name) = name.parse() else { continue };
        let template = TaskTemplate {
            image: "sim:1".into(),
            stop_grace_ms: Some(1_000),
            ..TaskTemplate::default()
        };
        let spec = ServiceSpec {
            mode: Mode::Replicated { replicas: 2 },
            on_disconnect: policy,
            ..ServiceSpec::new(name, template)
        };
        mutations.push(Mutation::CreateService { id, spec });
    }
    Transaction { mutations, ..Transaction::default() }
}

fn shared() -> Option<ServiceSpec> {
    let template = TaskTemplate { image: "sim:1".into(), ..TaskTemplate::default() };
    Some(ServiceSpec {
        mode: Mode::Replicated { replicas: 1 },
        labels: [(plan::TOKEN.to_owned(), "first<".to_owned())].into(),
        ..ServiceSpec::new(plan::SHARED.parse().ok()?, template)
    })
}
