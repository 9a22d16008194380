//! What a cluster costs its leader in which nothing happens: `make bench-steady`.
//!
//! 10,000 nodes beat, each with 10 running tasks; whenever the planner wants to
//! look again (the earliest silence that would be too long) the beats are read
//! and a pass is made. A minute of the cluster's time, in processor time: share
//! of one core. The wire is not in it.

// The example prints and asks the clock: that is what it is for.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use warren_model::Time;
use warren_model::cluster::Cluster;
use warren_model::id::{ClusterId, NodeId, ServiceId};
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::service::{Mode, ServiceSpec, TaskTemplate};
use warren_model::task::{Task, TaskState, TaskStatus};
use warren_planner::{Beats, IdSource, Index, Seen, plan};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

const NODES: u32 = 10_000;
const SERVICES: u32 = 1_000;
const REPLICAS: u32 = 100;
/// A thousand beats a second, as managers ask for whatever the size.
const BEAT_MS: u64 = 10_000;
const MINUTE_MS: u64 = 60_000;
/// Of one core.
const SHARE_MAX: f64 = 0.01;

struct Ids(u64);

impl IdSource for Ids {
    fn id(&mut self) -> [u8; 10] {
        self.0 += 1;
        bytes(9, self.0)
    }
}

fn main() {
    let mut state = State::default();
    let mut heard: BTreeMap<NodeId, Seen> = BTreeMap::new();
    let mut world = vec![Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10])))];
    for n in 0..NODES {
        let id = NodeId::from_bytes(bytes(1, n.into()));
        heard.insert(id, Seen { at: Time(1), rtt_ms: 1 });
        let hostname = format!("node-{n}");
        let description = Description { hostname, ..Description::default() };
        let node = Node { status: NodeStatus::Ready, ..Node::new(id, description) };
        world.push(Mutation::CreateNode(node));
    }
    world.extend((0..SERVICES).map(service));
    for some in world.chunks(Transaction::MUTATIONS_MAX) {
        apply(&mut state, some.to_vec());
    }
    let (mut index, mut ids) = (Index::default(), Ids(0));
    let beats = |seen: &BTreeMap<NodeId, Seen>| Beats {
        beat_ms: BEAT_MS,
        seen: seen.clone(),
        ..Beats::default()
    };
    loop {
        let plan = plan(&state, &mut index, &beats(&heard), &mut ids, Time(1));
        let more = plan.more;
        apply(&mut state, plan.transaction.mutations);
        if !more {
            break;
        }
    }
    let tasks: Vec<Task> = state.tasks().cloned().collect();
    for some in tasks.chunks(Transaction::MUTATIONS_MAX) {
        apply(&mut state, some.iter().filter_map(runs).collect());
    }
    println!("{} nodes, {} tasks", state.nodes().len(), state.tasks().len());

    let nodes: Vec<NodeId> = heard.keys().copied().collect();
    let mut wake = Time(1);
    let (mut passes, mut beating, mut planning) = (0, Duration::ZERO, Duration::ZERO);
    // Beats of all nodes are spread evenly over their interval.
    for ms in 1..=MINUTE_MS {
        let due = |count: u64| (count * u64::from(NODES) / BEAT_MS) as usize;
        let slice = due(ms % BEAT_MS)..due(ms % BEAT_MS + 1);
        let begun = Instant::now();
        for id in &nodes[slice] {
            heard.insert(*id, Seen { at: Time(ms), rtt_ms: 1 });
        }
        beating += begun.elapsed();
        if Time(ms) < wake {
            continue;
        }
        let begun = Instant::now();
        let plan = plan(&state, &mut index, &beats(&heard), &mut ids, Time(ms));
        planning += begun.elapsed();
        passes += 1;
        assert!(plan.transaction.mutations.is_empty(), "nothing changes: {plan:?}");
        wake = plan.wake_at.expect("silence is always awaited");
    }
    let share = (beating + planning).as_secs_f64() * 1000.0 / MINUTE_MS as f64;
    println!("a minute: {passes} passes, planning {planning:?}, beats {beating:?}");
    println!("of one core: {:.3} % (at most {:.0} %)", share * 100.0, SHARE_MAX * 100.0);
    assert!(share <= SHARE_MAX, "too much");
}

fn service(n: u32) -> Mutation {
    let task = TaskTemplate { image: "web:1".into(), ..TaskTemplate::default() };
    let spec = ServiceSpec::new(format!("service-{n}").parse().expect("a label"), task);
    let spec = ServiceSpec { mode: Mode::Replicated { replicas: REPLICAS }, ..spec };
    Mutation::CreateService { id: ServiceId::from_bytes(bytes(2, n.into())), spec }
}

fn runs(task: &Task) -> Option<Mutation> {
    let status = TaskStatus { attempt: 1, ..TaskStatus::new(TaskState::Running, Time(1)) };
    Some(Mutation::ReportTask { id: task.id, node: task.node?, status })
}

fn apply(state: &mut State, mutations: Vec<Mutation>) {
    if mutations.is_empty() {
        return;
    }
    let transaction = Transaction { mutations, ..Transaction::default() };
    let outcomes = state.apply(Time(1), &[transaction], &mut Vec::new());
    assert!(matches!(outcomes[..], [Outcome::Applied { .. }]), "{outcomes:?}");
}

/// Spread like random ids, but the same on every run.
fn bytes(kind: u8, n: u64) -> [u8; 10] {
    let mut bytes = [kind; 10];
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&(mixed ^ mixed >> 29).to_be_bytes());
    bytes
}
