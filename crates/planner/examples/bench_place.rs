//! How long placing takes: `make bench-place`.
//!
//! 1,000,000 tasks of 100 services onto 5,000 nodes of 50 zones, from empty, with reservations, a
//! constraint and a spread preference, through the real planner and the real state in one process.
//! Then one more service of 10 replicas on that full cluster.

// The example prints, asks the clock and reads /proc: that is what it is for.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use warren_model::Time;
use warren_model::cluster::Cluster;
use warren_model::id::{ClusterId, NodeId, ServiceId};
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::resources::Resources;
use warren_model::service::{Mode, ServiceSpec, TaskTemplate};
use warren_planner::{Beats, IdSource, Index, Plan, Seen, plan};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

const SERVICES: u32 = 100;
const REPLICAS: u32 = 10_000;
const NODES: u32 = 5_000;
const ZONES: u32 = 50;
/// One node in ten has another kind of disk: 4,500 take 222 or 223 tasks each.
const SLOW_EVERY: u32 = 10;
/// For 225 tasks.
const NODE_MEMORY: u64 = 225 * TASK_MEMORY;
const TASK_MEMORY: u64 = 64 << 20;
/// Of the last part; the median is told.
const ROUNDS: usize = 21;

struct Ids(u64);

impl IdSource for Ids {
    fn id(&mut self) -> [u8; 10] {
        self.0 += 1;
        bytes(9, self.0)
    }
}

struct Bench {
    state: State,
    index: Index,
    beats: Beats,
    ids: Ids,
}

fn main() {
    let mut bench = Bench {
        state: State::default(),
        index: Index::default(),
        beats: Beats::default(),
        ids: Ids(0),
    };
    bench.apply(vec![Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10])))]);
    let nodes: Vec<Mutation> = (0..NODES).map(|n| bench.node(n)).collect();
    nodes.chunks(1_000).for_each(|chunk| bench.apply(chunk.to_vec()));
    bench.apply((0..SERVICES).map(|n| service(n, REPLICAS)).collect());

    let (start, cpu) = (Instant::now(), cpu_seconds());
    let (mut plans, mut planning) = (0, Duration::ZERO);
    loop {
        let (took, plan) = bench.plan();
        (plans, planning) = (plans + 1, planning + took);
        let more = plan.more;
        bench.commit(plan);
        if !more {
            break;
        }
    }
    let (wall, cpu) = (start.elapsed(), cpu_seconds() - cpu);
    let placed = bench.state.tasks().filter(|task| task.node.is_some()).count();
    println!(
        "{placed} of {} tasks placed on {NODES} nodes in {plans} plans",
        bench.state.tasks().len()
    );
    println!(
        "wall {wall:.1?}, of it planning {planning:.1?}; cpu {cpu:.1} s; peak rss {} MiB",
        peak_mib()
    );
    let loads = || bench.state.nodes().map(|node| bench.state.live_on(node.id)).filter(|n| *n > 0);
    println!("tasks per used node: {:?} to {:?}", loads().min(), loads().max());

    // A look at what is settled, as it follows the last plan in a leader's loop.
    bench.plan();
    let mut times = Vec::new();
    for n in 0..ROUNDS {
        let number = SERVICES + u32::try_from(n).unwrap_or(0);
        bench.apply(vec![service(number, 10)]);
        let (took, plan) = bench.plan();
        let created = plan.transaction.mutations.iter();
        let created =
            created.filter(|m| matches!(m, Mutation::CreateTask(task) if task.node.is_some()));
        assert_eq!(created.count(), 10, "they fit");
        times.push(took);
        bench.commit(plan);
        bench.plan();
    }
    times.sort_unstable();
    println!(
        "10 replicas of a new service: median {:?}, worst {:?} of {ROUNDS}",
        times[ROUNDS / 2],
        times[ROUNDS - 1]
    );
}

impl Bench {
    fn node(&mut self, n: u32) -> Mutation {
        let id = NodeId::from_bytes(bytes(1, n.into()));
        self.beats.seen.insert(id, Seen { at: Time(1), rtt_ms: 1 });
        let description = Description {
            hostname: format!("node-{n}"),
            cpus: 64,
            memory_bytes: NODE_MEMORY,
            ..Description::default()
        };
        let disk = if n.is_multiple_of(SLOW_EVERY) { "hdd" } else { "ssd" };
        let labels = [("zone", format!("z{}", n % ZONES)), ("disk", disk.to_owned())];
        let labels = labels.map(|(key, value)| (key.to_owned(), value));
        Mutation::CreateNode(Node {
            status: NodeStatus::Ready,
            labels: labels.into(),
            ..Node::new(id, description)
        })
    }

    fn plan(&mut self) -> (Duration, Plan) {
        let start = Instant::now();
        let plan = plan(&self.state, &mut self.index, &self.beats, &mut self.ids, Time(1));
        (start.elapsed(), plan)
    }

    fn commit(&mut self, plan: Plan) {
        let outcomes = self.state.apply(Time(1), &[plan.transaction], &mut Vec::new());
        assert!(matches!(outcomes[..], [Outcome::Applied { .. }]), "{outcomes:?}");
    }

    fn apply(&mut self, mutations: Vec<Mutation>) {
        let transaction = Transaction { mutations, ..Transaction::default() };
        self.commit(Plan { transaction, ..Plan::default() });
    }
}

fn service(n: u32, replicas: u32) -> Mutation {
    let reserve = Resources { cpu_millis: 50, memory_bytes: TASK_MEMORY, ..Resources::default() };
    let task = TaskTemplate { image: "web:1".into(), reserve, ..TaskTemplate::default() };
    let name = format!("service-{n}").parse().expect("a label");
    let mut spec =
        ServiceSpec { mode: Mode::Replicated { replicas }, ..ServiceSpec::new(name, task) };
    spec.placement.constraints = vec!["node.labels.disk==ssd".parse().expect("a constraint")];
    spec.placement.spread = vec!["node.labels.zone".parse().expect("an attribute")];
    Mutation::CreateService { id: ServiceId::from_bytes(bytes(2, n.into())), spec }
}

/// Of this process, in user and kernel mode.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0);
    // utime and stime, in hundredths of a second.
    (ticks(11) + ticks(12)) / 100.0
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// Spread like random ids, but the same on every run.
fn bytes(kind: u8, n: u64) -> [u8; 10] {
    let mut bytes = [kind; 10];
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&(mixed ^ mixed >> 29).to_be_bytes());
    bytes
}
