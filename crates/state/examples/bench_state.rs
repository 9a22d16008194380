//! Memory and speed of the state at a million tasks, through real transactions.
//!
//! `cargo run --release -p warren-state --example bench_state [TASKS]` prints a table
//! and, as its last line, the same as JSON. Bytes are those asked of the allocator
//! (counted by a wrapper around the system's), all tables and indices included; times
//! are this thread's CPU time.
//! The encrypted snapshot is measured where it is written, in the store.

// The example prints and asks the clock: that is what it is for.
#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::disallowed_methods,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use warren_model::cluster::{Cluster, Subnet};
use warren_model::id::{ClusterId, NodeId, ServiceId, TaskId};
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::service::{Mode, ServiceSpec, TaskTemplate};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_model::{Event, Time};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

/// Counts the bytes in use.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator with the same arguments; counting beside it
// touches no memory of the caller.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        IN_USE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract, which is passed on unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `pointer` came from `System` with this layout, by `alloc` above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TASKS: u32 = 1_000_000;
const SERVICES: u32 = 1_000;
const NODES: u32 = 2_000;
/// A plan's size; reports come in batches of about as many.
const BATCH: usize = 1_000;
/// Prime to any number of tasks used here.
const STRIDE: u64 = 7_919;
/// One in so many tasks has an error text.
const ERROR_EVERY: u32 = 10;

fn main() {
    let tasks = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(TASKS);
    let mut state = State::default();
    apply(&mut state, world());
    let empty = IN_USE.load(Ordering::Relaxed);

    let mut rows = Vec::new();
    let fresh = timed_fresh(tasks, &mut rows);
    let create = timed(&mut state, &mut rows, "create pending", tasks, |n| {
        Mutation::CreateTask(task(n, None))
    });
    let bytes_pending = per_task(empty, tasks);
    timed(&mut state, &mut rows, "place", tasks, |n| Mutation::PlaceTask {
        id: task_id(n),
        node: node_id(n % NODES),
        address: Some(address(n)),
        devices: Default::default(),
    });
    for (label, to) in [
        ("report preparing", TaskState::Preparing),
        ("report starting", TaskState::Starting),
        ("report running", TaskState::Running),
    ] {
        timed(&mut state, &mut rows, label, tasks, |n| report(n, to));
    }
    let bytes_running = per_task(empty, tasks);
    let shared = state.clone();
    timed(&mut state, &mut rows, "report, view held", tasks, |n| report(n, TaskState::Draining));
    drop(shared);
    let bytes_after = per_task(empty, tasks);

    let clone_ns = clone_cost(&state);
    let start = cpu_time();
    let checksum = state.checksum();
    let checksum_ms = cpu_time().saturating_sub(start).as_millis();

    let start = cpu_time();
    let count = state.export().map(black_box).count();
    let export_ms = cpu_time().saturating_sub(start).as_millis();
    let start = cpu_time();
    let imported = State::import(state.head(), state.export()).expect("an export is consistent");
    let import_ms = cpu_time().saturating_sub(start).as_millis();
    assert_eq!(imported.checksum(), checksum, "import gives the same content");
    drop(state);
    let bytes_imported = per_task(empty, tasks);
    state = imported;

    timed(&mut state, &mut rows, "drop", tasks, |n| Mutation::DropTask { id: task_id(n) });

    println!("{tasks} tasks, {SERVICES} services, {NODES} nodes; batches of {BATCH}");
    println!("size of model::Task            {:>9} B", size_of::<Task>());
    println!("pending, per task              {bytes_pending:>9.0} B");
    println!("running, per task              {bytes_running:>9.0} B");
    println!("after a shared view, per task  {bytes_after:>9.0} B");
    println!("imported, per task             {bytes_imported:>9.0} B");
    for (label, rate) in &rows {
        println!("{label:<30} {rate:>9.0} mutations/s of CPU");
    }
    println!("clone                          {clone_ns:>9} ns");
    println!("checksum                       {checksum_ms:>9} ms");
    println!("export                         {export_ms:>9} ms ({count} objects)");
    println!("export into import             {import_ms:>9} ms");
    let rates: Vec<_> = rows.iter().map(|(label, rate)| format!("\"{label}\":{rate:.0}")).collect();
    println!(
        "{{\"tasks\":{tasks},\"bytes_pending\":{bytes_pending:.0},\"bytes_running\":{bytes_running:.0},\
         \"bytes_imported\":{bytes_imported:.0},\"clone_ns\":{clone_ns},\"checksum_ms\":{checksum_ms},\
         \"export_ms\":{export_ms},\"import_ms\":{import_ms},\"mutations_per_s\":{{{}}}}}",
        rates.join(",")
    );
    assert!(create > 0.0 && fresh > 0.0);
}

/// Of this thread: others on the machine do not count, apply is single-threaded.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    let part = |n: i64| u64::try_from(n).unwrap_or(0);
    Duration::from_secs(part(now.tv_sec)) + Duration::from_nanos(part(now.tv_nsec))
}

/// Applies `make(n)` for every task in batches; only the applying is timed.
fn timed(
    state: &mut State,
    rows: &mut Vec<(&'static str, f64)>,
    label: &'static str,
    tasks: u32,
    make: impl Fn(u32) -> Mutation,
) -> f64 {
    let mut seconds = 0.0;
    let mut events: Vec<Event> = Vec::new();
    // Plans write a service's tasks together; reports come from all over the cluster.
    let stride = if label.starts_with("report") { STRIDE } else { 1 };
    let numbers: Vec<u32> =
        (0..u64::from(tasks)).map(|n| (n * stride % u64::from(tasks)) as u32).collect();
    for batch in numbers.chunks(BATCH) {
        let mutations = batch.iter().map(|n| make(*n)).collect();
        let transaction = Transaction { mutations, ..Transaction::default() };
        let time = state.time().plus_ms(1);
        let start = cpu_time();
        let outcomes = state.apply(time, std::slice::from_ref(&transaction), &mut events);
        seconds += cpu_time().saturating_sub(start).as_secs_f64();
        assert!(matches!(outcomes[..], [Outcome::Applied { .. }]), "{label}: {outcomes:?}");
        events.clear();
    }
    let rate = f64::from(tasks) / seconds;
    rows.push((label, rate));
    rate
}

/// What the planner really does for a new service: created with its place, one mutation each.
fn timed_fresh(tasks: u32, rows: &mut Vec<(&'static str, f64)>) -> f64 {
    let mut state = State::default();
    apply(&mut state, world());
    timed(&mut state, rows, "create placed", tasks, |n| {
        Mutation::CreateTask(task(n, Some((node_id(n % NODES), address(n)))))
    })
}

fn clone_cost(state: &State) -> u128 {
    const ROUNDS: u32 = 100_000;
    let start = cpu_time();
    for _ in 0..ROUNDS {
        black_box(black_box(state).clone());
    }
    cpu_time().saturating_sub(start).as_nanos() / u128::from(ROUNDS)
}

fn per_task(empty: usize, tasks: u32) -> f64 {
    IN_USE.load(Ordering::Relaxed).saturating_sub(empty) as f64 / f64::from(tasks)
}

fn apply(state: &mut State, mutations: Vec<Mutation>) {
    for batch in mutations.chunks(BATCH) {
        let transaction = Transaction { mutations: batch.to_vec(), ..Transaction::default() };
        let outcomes = state.apply(Time(1), &[transaction], &mut Vec::new());
        assert!(matches!(outcomes[..], [Outcome::Applied { .. }]), "{outcomes:?}");
    }
}

fn world() -> Vec<Mutation> {
    let cluster = Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10])));
    let nodes = (0..NODES).map(|n| {
        Mutation::CreateNode(Node {
            status: NodeStatus::Ready,
            blocks: vec![Subnet { address: block(n), prefix: 22 }],
            ..Node::new(
                node_id(n),
                Description { hostname: format!("node-{n}"), ..Description::default() },
            )
        })
    });
    let services = (0..SERVICES).map(|n| Mutation::CreateService {
        id: service_id(n),
        spec: ServiceSpec {
            labels: [("team".to_owned(), "shop".to_owned())].into(),
            mode: Mode::Replicated { replicas: 1000 },
            ..ServiceSpec::new(
                format!("service-{n}").parse().expect("a label"),
                TaskTemplate {
                    image: "registry.example.org/shop/web:2.1".into(),
                    env: vec!["LOG=info".into(), "MODE=production".into()],
                    ..TaskTemplate::default()
                },
            )
        },
    });
    std::iter::once(cluster).chain(nodes).chain(services).collect()
}

fn report(n: u32, state: TaskState) -> Mutation {
    let mut status = TaskStatus::new(state, Time(1_700_000_000_000));
    status.attempt = 1;
    status.pid = 4711;
    status.started = Some(Time(1_700_000_000_000));
    if n.is_multiple_of(ERROR_EVERY) {
        status.error = Some("pull image registry.example.org/shop/web:2.1: timed out".into());
    }
    Mutation::ReportTask { id: task_id(n), node: node_id(n % NODES), status }
}

fn task(n: u32, place: Option<(NodeId, Ipv4Addr)>) -> Task {
    let state = if place.is_some() { TaskState::Assigned } else { TaskState::Pending };
    Task {
        id: task_id(n),
        service: service_id(n / 1000 % SERVICES),
        slot: n % 1000 + 1,
        run: 0,
        template: 1,
        node: place.map(|(node, _)| node),
        address: place.map(|(_, address)| address),
        desired: Desired::Running,
        status: TaskStatus::new(state, Time(0)),
        created: Time(0),
        devices: Default::default(),
        origin: None,
        revision: 0,
    }
}

/// Spread like random ids, but the same on every run.
fn scatter(kind: u8, n: u32) -> [u8; 10] {
    let mut bytes = [kind; 10];
    let mixed = (u64::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bytes[..8].copy_from_slice(&(mixed ^ mixed >> 29).to_be_bytes());
    bytes
}

fn task_id(n: u32) -> TaskId {
    TaskId::from_bytes(scatter(3, n))
}

fn service_id(n: u32) -> ServiceId {
    ServiceId::from_bytes(scatter(2, n))
}

fn node_id(n: u32) -> NodeId {
    NodeId::from_bytes(scatter(1, n))
}

fn address(n: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(block(n % NODES)) + n / NODES + 2)
}

/// A block of 1,022 addresses for each node.
fn block(node: u32) -> Ipv4Addr {
    Ipv4Addr::from((10 << 24 | 128 << 16) + (node << 10))
}
