//! What tables of nodes cost: `cargo run --release -p warren-manager --example bench_table`.
//!
//! 5,000 services of 3 running tasks on one network and 100 nodes; one of them stops being a
//! backend, again and again. Medians.

// The example prints and asks the clock: that is what it is for.
#![allow(clippy::print_stdout, clippy::disallowed_methods, clippy::unwrap_used)]

use std::time::{Duration, Instant};

use warren_manager::dispatch::assign;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
use warren_model::network::{NetworkSpec, VipHolder};
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::service::{Mode, ServiceSpec, TaskTemplate};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_model::{NodeTable, Time};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

const SERVICES: u32 = 5_000;
const REPLICAS: u32 = 3;
const NODES: u32 = 100;
const ROUNDS: usize = 101;

fn bytes(kind: u8, n: u32) -> [u8; 10] {
    let mut bytes = [kind; 10];
    bytes[..4].copy_from_slice(&n.wrapping_mul(0x9e37_79b1).to_be_bytes());
    bytes[4..8].copy_from_slice(&n.to_be_bytes());
    bytes
}

fn apply(state: &mut State, mutations: Vec<Mutation>) {
    let transaction = Transaction { mutations, ..Transaction::default() };
    let outcome = state.apply(Time(1), &[transaction], &mut vec![]).remove(0);
    assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
}

fn world() -> State {
    let mut state = State::default();
    let network = NetworkId::from_bytes(bytes(4, 1));
    apply(
        &mut state,
        vec![
            Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10]))),
            Mutation::CreateNetwork { id: network, spec: NetworkSpec::of_default().unwrap() },
        ],
    );
    for n in 0..NODES {
        let block = Subnet { address: (0x0a80_0000 + (n << 8)).into(), prefix: 24 };
        apply(
            &mut state,
            vec![Mutation::CreateNode(Node {
                status: NodeStatus::Ready,
                blocks: vec![block],
                ..Node::new(NodeId::from_bytes(bytes(1, n)), Description::default())
            })],
        );
    }
    for n in 0..SERVICES {
        let service = ServiceId::from_bytes(bytes(2, n));
        let template = TaskTemplate { image: "a".into(), ..TaskTemplate::default() };
        let spec = ServiceSpec {
            mode: Mode::Replicated { replicas: REPLICAS },
            ..ServiceSpec::new(format!("service-{n}").parse().unwrap(), template)
        };
        let holder = VipHolder { service, network, slot: 0 };
        let address = (0x0ac0_0001 + n).into();
        let mut mutations = vec![
            Mutation::CreateService { id: service, spec },
            Mutation::GrantVip { holder, address },
        ];
        for slot in 1..=REPLICAS {
            let number = n * REPLICAS + slot - 1;
            let (id, node) = task(number);
            let place = (0x0a80_0000 + ((number % NODES) << 8) + 2 + number / NODES).into();
            mutations.push(Mutation::CreateTask(Task {
                id,
                service,
                slot,
                run: 0,
                template: 1,
                node: Some(node),
                address: Some(place),
                desired: Desired::Running,
                status: TaskStatus::new(TaskState::Assigned, Time(0)),
                created: Time(0),
                devices: Default::default(),
                origin: None,
                revision: 0,
            }));
            mutations.push(report(number, TaskState::Running, 1));
        }
        apply(&mut state, mutations);
    }
    state
}

fn task(number: u32) -> (TaskId, NodeId) {
    (TaskId::from_bytes(bytes(3, number)), NodeId::from_bytes(bytes(1, number % NODES)))
}

fn report(number: u32, state: TaskState, attempt: u32) -> Mutation {
    let (id, node) = task(number);
    let status = TaskStatus { attempt, ..TaskStatus::new(state, Time(1)) };
    Mutation::ReportTask { id, node, status }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn main() {
    let mut state = world();
    let node = NodeId::from_bytes(bytes(1, 7));
    let began = Instant::now();
    let whole = assign::complete(&state, node);
    println!("complete: {:?}, {} bytes", began.elapsed(), prost::Message::encoded_len(&whole));
    let (change, wrong) = warren_proto::table_change(whole.network.unwrap());
    assert!(wrong.is_empty());
    let mut table = NodeTable::default();
    table.apply(change);
    let (mut decide, mut take) = (Vec::new(), Vec::new());
    let mut bytes = 0;
    for round in 0..ROUNDS {
        let before = state.clone();
        let number = u32::try_from(round).unwrap() * 131;
        let to = if round % 2 == 0 { TaskState::Draining } else { TaskState::Running };
        apply(&mut state, vec![report(number, to, 2)]);
        let began = Instant::now();
        let change = assign::incremental(&before, &state, node, before.revision());
        decide.push(began.elapsed());
        let Some(change) = change else { continue };
        bytes = prost::Message::encoded_len(&change);
        let began = Instant::now();
        let (change, _) = warren_proto::table_change(change.network.unwrap());
        let mut next = table.clone();
        next.apply(change);
        table = next;
        take.push(began.elapsed());
    }
    println!(
        "one changed, for one node: {:?} to decide, {bytes} bytes; at the node {:?} to take in (n = {}, {})",
        median(decide.clone()),
        median(take.clone()),
        decide.len(),
        take.len()
    );
}
