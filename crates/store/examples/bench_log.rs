//! Appends a second with real syncs, and what a proposal costs beside its sync.
//!
//! `bench_log [folder] [seconds]`; the folder should be on the disk to measure.

#![allow(clippy::print_stdout)]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::oneshot;
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;
use warren_model::cluster::Cluster;
use warren_model::id::ClusterId;
use warren_state::change::{Mutation, Transaction};
use warren_store::disk::{Disk, FsDisk};
use warren_store::log::{Entry, EntryKind, Log, LogId, LogOptions};
use warren_store::{Options, Store};
use warren_trust::KeyRing;

const PAYLOAD: usize = 1024;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds: u64 = args.next().map_or(Ok(3), |text| text.parse()).context("seconds")?;
    let dir = tempfile::tempdir_in(&folder)?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;

    let sync = sync_alone(dir.path())?;
    println!(
        "one sync of 1 KiB into zeros: p50 {:.0} us, p99 {:.0} us",
        sync.at(0.5),
        sync.at(0.99)
    );
    println!("\n| writers | log appends/s | p50 us | p99 us | proposals/s | p50 us | p99 us |");
    println!("|--------:|--------------:|-------:|-------:|------------:|-------:|-------:|");
    for writers in [1, 8, 64, 256] {
        let for_time = Duration::from_secs(seconds);
        let log = runtime.block_on(log_appends(
            &dir.path().join(format!("log{writers}")),
            writers,
            for_time,
        ))?;
        let store = runtime.block_on(proposals(
            &dir.path().join(format!("store{writers}")),
            writers,
            for_time,
        ))?;
        println!(
            "| {writers} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} | {:.0} |",
            log.rate(for_time),
            log.at(0.5),
            log.at(0.99),
            store.rate(for_time),
            store.at(0.5),
            store.at(0.99),
        );
    }
    runtime.block_on(spaced(&dir.path().join("spaced"), &sync))
}

/// Latencies, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self(times)
    }

    fn at(&self, part: f64) -> f64 {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss
        )]
        let at = (self.0.len() as f64 * part) as usize;
        self.0.get(at.min(self.0.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e6)
    }

    #[allow(clippy::cast_precision_loss)]
    fn rate(&self, over: Duration) -> f64 {
        self.0.len() as f64 / over.as_secs_f64()
    }
}

fn sync_alone(dir: &Path) -> Result<Times> {
    let disk = FsDisk::new(dir)?;
    let file = disk.create("sync")?;
    file.write_at(&vec![0; 4 << 20], 0)?;
    file.sync()?;
    let mut times = Vec::new();
    for at in 0..1000 {
        let start = Instant::now();
        file.write_at(&[1; PAYLOAD], at * 1100)?;
        file.sync()?;
        times.push(start.elapsed());
    }
    Ok(Times::new(times))
}

async fn log_appends(dir: &Path, writers: usize, for_time: Duration) -> Result<Times> {
    let disk = Arc::new(FsDisk::new(dir)?);
    let keys = Arc::new(KeyRing::generate(&SystemRng));
    let log = Log::create(disk, keys, Arc::new(SystemRng), LogOptions::default())?;
    let next = Arc::new(Mutex::new(0));
    let payload = bytes::Bytes::from(vec![7; PAYLOAD]);
    let end = Instant::now() + for_time;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..writers {
        let (log, next, payload) = (log.clone(), next.clone(), payload.clone());
        tasks.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                let (sender, done) = oneshot::channel();
                {
                    let mut next = next.lock().expect("no writer panics");
                    let id = LogId { term: 1, node: 1, index: *next };
                    *next += 1;
                    let entry =
                        Entry { id, kind: EntryKind::Transactions, payload: payload.clone() };
                    log.append(vec![entry], Box::new(|result| drop(sender.send(result))))?;
                }
                done.await??;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        times.extend(joined??);
    }
    let (sender, closed) = oneshot::channel();
    log.close(Box::new(|result| drop(sender.send(result))))?;
    closed.await??;
    Ok(Times::new(times))
}

fn change(number: u32) -> Transaction {
    let cluster = Cluster { history_limit: number, ..Cluster::new(ClusterId::from_bytes([1; 10])) };
    Transaction { mutations: vec![Mutation::SetCluster(cluster)], ..Transaction::default() }
}

async fn proposals(dir: &Path, writers: usize, for_time: Duration) -> Result<Times> {
    let store = create(dir).await?;
    let end = Instant::now() + for_time;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..writers {
        let store = store.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            let mut number = 0;
            while Instant::now() < end {
                let start = Instant::now();
                number += 1;
                store.propose(change(number)).await?;
                times.push(start.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        times.extend(joined??);
    }
    store.shutdown().await;
    Ok(Times::new(times))
}

async fn create(dir: &Path) -> Result<Store> {
    let (clock, rng) = (Arc::new(RealClock::new()), Arc::new(SystemRng));
    let options = Options::new(dir, &dir.join("node.key"), 1, clock, rng)?;
    Ok(Store::create(options).await?)
}

/// One proposal at a time with pauses: what a person sees, threads asleep.
async fn spaced(dir: &Path, sync: &Times) -> Result<()> {
    let store = create(dir).await?;
    let mut times = Vec::new();
    for number in 0..200 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let start = Instant::now();
        store.propose(change(number)).await?;
        times.push(start.elapsed());
    }
    let times = Times::new(times);
    println!(
        "\none proposal each 5 ms: p50 {:.0} us, p99 {:.0} us; beside the sync: {:.0} us",
        times.at(0.5),
        times.at(0.99),
        times.at(0.5) - sync.at(0.5),
    );
    let before = switches()?;
    let idle = Duration::from_secs(5);
    // The mark after the last proposal is part of being busy.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let start = switches()?;
    std::thread::sleep(idle);
    println!(
        "idle for {idle:?}: {} wake-ups of all threads (busy before: {before})",
        switches()? - start
    );
    store.shutdown().await;
    Ok(())
}

/// Times that any thread of this process was put to sleep by itself.
fn switches() -> Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.unwrap_or("0").trim().parse::<u64>()?;
    }
    Ok(sum)
}
