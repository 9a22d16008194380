//! Small worlds for tests, in a notation of their own.
//!
//! One line a service, `name: SLOT STATE NODE[ DESIRED], …`; nodes are letters.
//! `web: 1 running a, 2 failed a, 3 running b shutdown`.

use warren_model::cluster::Cluster;
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::service::{Mode, ServiceSpec, TaskTemplate};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_model::{ClusterId, NodeId, ServiceId, TaskId, Time};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

pub(crate) fn node_id(letter: char) -> NodeId {
    NodeId::from_bytes([u8::try_from(letter).unwrap(); 10])
}

/// Differs from others in its last characters alone.
pub(crate) fn task_id(number: u8) -> TaskId {
    TaskId::from_bytes([0, 0, 0, 0, 0, 0, 0, 0, number, number])
}

pub(crate) fn node(letter: char) -> Node {
    let description = Description { hostname: format!("host-{letter}"), ..Description::default() };
    Node { manager: true, status: NodeStatus::Ready, ..Node::new(node_id(letter), description) }
}

pub(crate) fn spec(name: &str, replicas: u32) -> ServiceSpec {
    let task = TaskTemplate { image: "busybox".into(), ..TaskTemplate::default() };
    let spec = ServiceSpec::new(name.parse().unwrap(), task);
    ServiceSpec { mode: Mode::Replicated { replicas }, ..spec }
}

/// Applies and insists.
#[track_caller]
pub(crate) fn apply(state: &mut State, mutations: Vec<Mutation>) -> Vec<warren_model::Event> {
    let mut events = Vec::new();
    let transaction = Transaction { mutations, ..Transaction::default() };
    let time = state.time().plus_ms(1);
    let outcome = state.apply(time, &[transaction], &mut events);
    assert!(matches!(outcome[..], [Outcome::Applied { .. }]), "{outcome:?}");
    events
}

fn word<T: Copy>(all: &[(T, &str)], text: &str) -> T {
    all.iter().find(|(_, name)| *name == text).unwrap_or_else(|| panic!("{text}?")).0
}

/// A state with two nodes, `a` and `b`, and the services of `text`.
#[track_caller]
pub(crate) fn world(text: &str) -> State {
    let mut state = State::default();
    apply(
        &mut state,
        vec![
            Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10]))),
            Mutation::CreateNode(node('a')),
            Mutation::CreateNode(node('b')),
        ],
    );
    let mut number = 0;
    for (at, line) in text.lines().enumerate() {
        let (name, tasks) = line.split_once(':').unwrap();
        let id = ServiceId::from_bytes([100 + u8::try_from(at).unwrap(); 10]);
        apply(&mut state, vec![Mutation::CreateService { id, spec: spec(name, 1) }]);
        for task in tasks.split(',').filter(|task| !task.trim().is_empty()) {
            number += 1;
            add_task(&mut state, id, task_id(number), task);
        }
    }
    state
}

/// Makes a task as the planner and an agent would, step by step.
fn add_task(state: &mut State, service: ServiceId, id: TaskId, text: &str) {
    let states: Vec<(TaskState, &str)> =
        TaskState::ALL.iter().map(|state| (*state, state.as_str())).collect();
    let wishes = [(Desired::Shutdown, "shutdown"), (Desired::Remove, "remove")];
    let words: Vec<&str> = text.split_whitespace().collect();
    let status = TaskStatus::new(TaskState::Pending, Time(0));
    let task = Task {
        id,
        service,
        slot: words[0].parse().unwrap(),
        run: 0,
        template: 1,
        node: None,
        address: None,
        desired: Desired::Running,
        status,
        created: Time(0),
        devices: Default::default(),
        origin: None,
        revision: 0,
    };
    apply(state, vec![Mutation::CreateTask(task)]);
    if let Some(letter) = words.get(2) {
        let node = node_id(letter.chars().next().unwrap());
        let status = TaskStatus::new(word(&states, words[1]), state.time());
        apply(
            state,
            vec![Mutation::PlaceTask { id, node, address: None, devices: Default::default() }],
        );
        apply(state, vec![Mutation::ReportTask { id, node, status }]);
    }
    if let Some(desired) = words.get(3) {
        apply(state, vec![Mutation::SetDesired { id, desired: word(&wishes, desired) }]);
    }
}
