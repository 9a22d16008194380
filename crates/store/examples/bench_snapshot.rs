//! How long a snapshot of many tasks takes to write and to read, and how much memory.
//!
//! `bench_snapshot [tasks] [folder]`; a million tasks unless said otherwise.

#![allow(clippy::print_stdout)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;
use warren_model::Time;
use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::node::{Description, Node, NodeStatus};
use warren_model::service::{Mode, ServiceSpec, TaskTemplate};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_state::change::{Mutation, Transaction};
use warren_store::{Options, Store};

const TASKS_PER_SERVICE: u64 = 100;
const NODES: u64 = 1000;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let tasks: u64 = args.next().map_or(Ok(1_000_000), |text| text.parse()).context("tasks")?;
    let folder = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(&folder)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(tasks, dir.path()))
}

fn options(dir: &std::path::Path) -> Result<Options> {
    let (clock, rng) = (Arc::new(RealClock::new()), Arc::new(SystemRng));
    Ok(Options::new(dir, &dir.join("node.key"), 1, clock, rng)?)
}

fn id(number: u64) -> [u8; 10] {
    // Spread like random ids: neighbours in the tables are not neighbours in time.
    let wide = u128::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let mut bytes = [0; 10];
    bytes.copy_from_slice(&wide.to_be_bytes()[..10]);
    bytes
}

fn base(tasks: u64) -> Vec<Mutation> {
    let nodes = (0..NODES).map(|number| {
        Mutation::CreateNode(Node {
            status: NodeStatus::Ready,
            ..Node::new(
                NodeId::from_bytes(id(number)),
                Description { hostname: format!("n{number}"), ..Description::default() },
            )
        })
    });
    let services = (0..tasks.div_ceil(TASKS_PER_SERVICE)).map(|number| {
        let task = TaskTemplate { image: "nginx:1.27".into(), ..TaskTemplate::default() };
        let spec = ServiceSpec {
            labels: [("team".to_owned(), "a".to_owned())].into(),
            mode: Mode::Replicated { replicas: 100 },
            ..ServiceSpec::new(
                format!("s{number}").parse().expect("a letter and digits are a name"),
                task,
            )
        };
        Mutation::CreateService { id: ServiceId::from_bytes(id(number)), spec }
    });
    nodes.chain(services).collect()
}

fn created(number: u64) -> Mutation {
    let now = Time(1_700_000_000_000 + number);
    Mutation::CreateTask(Task {
        id: TaskId::from_bytes(id(number)),
        service: ServiceId::from_bytes(id(number / TASKS_PER_SERVICE)),
        slot: u32::try_from(number % TASKS_PER_SERVICE).unwrap_or(0) + 1,
        run: 0,
        template: 1,
        node: Some(NodeId::from_bytes(id(number % NODES))),
        address: None,
        desired: Desired::Running,
        status: TaskStatus::new(TaskState::Assigned, now),
        created: now,
        devices: Default::default(),
        origin: None,
        revision: 0,
    })
}

fn running(number: u64) -> Mutation {
    let now = Time(1_700_000_000_100 + number);
    Mutation::ReportTask {
        id: TaskId::from_bytes(id(number)),
        node: NodeId::from_bytes(id(number % NODES)),
        status: TaskStatus {
            pid: 4711,
            attempt: 1,
            started: Some(now),
            ..TaskStatus::new(TaskState::Running, now)
        },
    }
}

/// Resident memory now and at its peak, in MiB.
fn memory() -> Result<(u64, u64)> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0)
            / 1024
    };
    Ok((field("VmRSS:"), field("VmHWM:")))
}

async fn run(tasks: u64, dir: &std::path::Path) -> Result<()> {
    let store = Store::create(options(dir)?).await?;
    let start = Instant::now();
    let mut all = base(tasks)
        .into_iter()
        .chain((0..tasks).map(created))
        .chain((0..tasks).map(running))
        .peekable();
    while all.peek().is_some() {
        let mutations = all.by_ref().take(Transaction::MUTATIONS_MAX).collect();
        store.propose(Transaction { mutations, ..Transaction::default() }).await?;
    }
    let took = start.elapsed();
    println!(
        "{tasks} tasks proposed (created, then reported running) in {took:.2?}, memory {:?} MiB (now, peak)",
        memory()?
    );
    let view = store.view();
    let checksum = view.checksum();
    let keys = Arc::new(warren_trust::KeyRing::generate(&SystemRng));
    let disk = Arc::new(warren_store::disk::FsDisk::new(&dir.join("alone"))?);
    let snapshots = warren_store::snapshot::Snapshots::new(disk, keys, Arc::new(SystemRng));
    let start = Instant::now();
    let written = snapshots.write_state(&view)?;
    let took = start.elapsed();
    let mib = written.bytes() >> 20;
    println!("snapshot written in {took:.2?}, {mib} MiB, memory {:?} MiB", memory()?);
    store.shutdown().await;
    drop((store, view));
    let (before, _) = memory()?;
    let start = Instant::now();
    let loaded = snapshots.read(written.name())?;
    println!("snapshot read in {:.2?}, memory {before} -> {:?} MiB", start.elapsed(), memory()?);
    anyhow::ensure!(loaded.state().checksum() == checksum, "the state read is another");
    drop(loaded);
    let start = Instant::now();
    let store = Store::open(options(dir)?).await?;
    println!(
        "store opened (snapshot and log) in {:.2?}, memory {:?} MiB",
        start.elapsed(),
        memory()?
    );
    anyhow::ensure!(store.view().checksum() == checksum, "the state reopened is another");
    store.shutdown().await;
    Ok(())
}
