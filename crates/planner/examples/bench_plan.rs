//! How long a pass takes: `cargo run --release -p warren-planner --example bench_plan`.
//!
//! 100 services of 1,000 running tasks on 100 nodes; medians of repeated passes.

// The example prints and asks the clock: that is what it is for.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use warren_model::Time;
use warren_model::cluster::Cluster;
use warren_model::id::{ClusterId, NodeId, ServiceId};
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::service::{Mode, ServiceSpec, TaskTemplate};
use warren_model::task::{TaskState, TaskStatus};
use warren_planner::{Beats, IdSource, Index, Plan, Seen, plan};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

const SERVICES: u32 = 100;
const REPLICAS: u32 = 1_000;
const NODES: u32 = 100;
const ROUNDS: usize = 101;

struct Ids(u64);

impl IdSource for Ids {
    fn id(&mut self) -> [u8; 10] {
        self.0 += 1;
        bytes(9, self.0)
    }
}

fn main() {
    let mut state = State::default();
    let mut beats = Beats::default();
    let mut ids = Ids(0);
    let mut index = Index::default();
    let mut world = vec![Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10])))];
    for n in 0..NODES {
        let id = NodeId::from_bytes(bytes(1, n.into()));
        beats.seen.insert(id, Seen { at: Time(1), rtt_ms: 1 });
        world.push(Mutation::CreateNode(Node {
            status: NodeStatus::Ready,
            ..Node::new(id, Description { hostname: format!("node-{n}"), ..Description::default() })
        }));
    }
    world.extend((0..SERVICES).map(|n| service(n, REPLICAS)));
    apply(&mut state, Transaction { mutations: world, ..Transaction::default() });

    let start = Instant::now();
    let mut placed = 0;
    loop {
        let plan = plan(&state, &mut index, &beats, &mut ids, Time(1));
        placed += plan.transaction.mutations.len();
        let more = plan.more;
        apply(&mut state, plan.transaction);
        if !more {
            break;
        }
    }
    println!("{placed} mutations planned and applied in {:?}", start.elapsed());
    for task in state.tasks().cloned().collect::<Vec<_>>() {
        report(&mut state, &task);
    }

    let mut pass = |state: &State, index: &mut Index| -> (Duration, Plan) {
        let start = Instant::now();
        let plan = plan(state, index, &beats, &mut ids, Time(2));
        (start.elapsed(), plan)
    };
    pass(&state, &mut index);
    let steady = median(|| pass(&state, &mut index).0);
    println!("steady pass, 100 services x 1,000 tasks: {steady:?}");
    let fresh = median(|| pass(&state, &mut Index::default()).0);
    println!("pass with a fresh index (failover):      {fresh:?}");

    let task = state.tasks().next().cloned().expect("there are tasks");
    let touched = median(|| {
        report(&mut state, &task);
        pass(&state, &mut index).0
    });
    println!("pass after a report of one task:         {touched:?}");

    let mut number = SERVICES;
    let created = median(|| {
        number += 1;
        let mutations = vec![service(number, 1)];
        apply(&mut state, Transaction { mutations, ..Transaction::default() });
        let (took, plan) = pass(&state, &mut index);
        assert!(matches!(plan.transaction.mutations[..], [.., Mutation::CreateTask(_)]));
        apply(&mut state, plan.transaction);
        took
    });
    println!("pass that places a new service's task:   {created:?}");

    let mutations = vec![service(9_999, REPLICAS)];
    apply(&mut state, Transaction { mutations, ..Transaction::default() });
    let thousand = median(|| pass(&state, &mut index).0);
    println!("pass that places 1,000 tasks:            {thousand:?}");
}

fn service(n: u32, replicas: u32) -> Mutation {
    Mutation::CreateService {
        id: ServiceId::from_bytes(bytes(2, n.into())),
        spec: ServiceSpec {
            mode: Mode::Replicated { replicas },
            ..ServiceSpec::new(
                format!("service-{n}").parse().expect("a label"),
                TaskTemplate { image: "web:1".into(), ..TaskTemplate::default() },
            )
        },
    }
}

fn report(state: &mut State, task: &warren_model::Task) {
    let Some(node) = task.node else { return };
    let mut status = TaskStatus::new(TaskState::Running, Time(1));
    // Differs from the report before: the same again would change nothing.
    status.pid = u32::try_from(state.revision() % 30_000).unwrap_or(0) + 1;
    let mutations = vec![Mutation::ReportTask { id: task.id, node, status }];
    apply(state, Transaction { mutations, ..Transaction::default() });
}

fn apply(state: &mut State, transaction: Transaction) {
    let outcomes = state.apply(Time(1), &[transaction], &mut Vec::new());
    assert!(matches!(outcomes[..], [Outcome::Applied { .. }]), "{outcomes:?}");
}

fn median(mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..ROUNDS).map(|_| run()).collect();
    times.sort_unstable();
    times[ROUNDS / 2]
}

/// Spread like random ids, but the same on every run.
fn bytes(kind: u8, n: u64) -> [u8; 10] {
    let mut bytes = [kind; 10];
    let mixed = (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&(mixed ^ mixed >> 29).to_be_bytes());
    bytes
}
