//! Clients that write without a pause, each to keys of its own, and read
//! everything back at the end.
//!
//! A client goes on to its next write when the last one was acknowledged, and
//! tries the same one again, at another server, until it is. So a value that
//! was read at the end is never older than the last acknowledged one, unless
//! something was lost.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::{Value, json};
use tokio::sync::watch;
use warren_base::rng::{Rng, SystemRng};

use crate::line::{Line, Write};
use crate::{now_ns, ready};

/// For what goes before and after the load: forming quorums included.
const AROUND_LIMIT: Duration = Duration::from_secs(30);
/// Losses that are told one by one.
const LOST_MAX: usize = 10;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// `unix:SOCKET` of a Warren node, or `http://HOST:PORT` of an etcd member; repeat
    #[arg(long = "endpoint", required = true)]
    endpoints: Vec<String>,
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Keys of each client
    #[arg(long, default_value_t = 8)]
    keys: usize,
    /// Names of keys begin so
    #[arg(long, default_value = "load")]
    prefix: String,
    /// Between two writes of a client
    #[arg(long, default_value_t = 0)]
    pace_ms: u64,
}

/// What one client did.
#[derive(Default)]
struct Done {
    /// When each acknowledgement came, and how long its write took, attempts included.
    acks: Vec<(i64, i64)>,
    lost: Vec<String>,
    failed: u64,
}

pub(crate) async fn run(args: Args, stop: watch::Receiver<bool>) -> Result<Value> {
    let clients = (0..args.clients).map(|number| Client::new(&args, number));
    let mut clients: Vec<Client> = clients.collect();
    for client in &mut clients {
        client.create().await?;
    }
    ready();
    let running = clients.into_iter().map(|client| tokio::spawn(client.write(stop.clone())));
    let running: Vec<_> = running.collect();
    let mut all = Done::default();
    for client in running {
        let done = client.await??;
        all.acks.extend(done.acks);
        all.lost.extend(done.lost);
        all.failed += done.failed;
    }
    all.acks.sort_unstable();
    let mut took: Vec<i64> = all.acks.iter().map(|ack| ack.1).collect();
    took.sort_unstable();
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
    Ok(json!({
        "acks_ns": all.acks.iter().map(|ack| ack.0).collect::<Vec<_>>(),
        "took_p50_ns": at(50),
        "took_p99_ns": at(99),
        "attempts_failed": all.failed,
        "lost": all.lost.len(),
        "lost_first": all.lost.into_iter().take(LOST_MAX).collect::<Vec<_>>(),
    }))
}

struct Client {
    line: Line,
    /// Each with the last value of it that was acknowledged.
    keys: Vec<(String, u64)>,
    pace: Duration,
}

impl Client {
    fn new(args: &Args, number: usize) -> Self {
        let name = |key| (format!("{}-{number}-{key}", args.prefix), 0);
        let keys = (0..args.keys).map(name).collect();
        let pace = Duration::from_millis(args.pace_ms);
        Self { line: Line::new(&args.endpoints, number), keys, pace }
    }

    async fn create(&mut self) -> Result<()> {
        for (key, value) in &self.keys {
            let write = Write { key, value: *value, id: fresh(), create: true };
            let line = &mut self.line;
            let written = async { while !line.write(&write).await {} };
            if tokio::time::timeout(AROUND_LIMIT, written).await.is_err() {
                bail!("create {key}: {}", self.line.trouble);
            }
        }
        self.line.failed = 0;
        Ok(())
    }

    async fn write(mut self, mut stop: watch::Receiver<bool>) -> Result<Done> {
        let mut done = Done::default();
        let mut turn = 0;
        loop {
            let keys = self.keys.len();
            let (key, value) = &mut self.keys[turn % keys];
            let write = Write { key, value: *value + 1, id: fresh(), create: false };
            let begun = now_ns();
            let line = &mut self.line;
            let written = async { while !line.write(&write).await {} };
            tokio::select! {
                () = written => {}
                _ = stop.wait_for(|stop| *stop) => break,
            }
            let acked = now_ns();
            done.acks.push((acked, acked - begun));
            *value += 1;
            turn += 1;
            if !self.pace.is_zero() {
                tokio::time::sleep(self.pace).await;
            }
        }
        done.failed = self.line.failed;
        for (key, value) in &self.keys {
            let line = &mut self.line;
            let read = async {
                loop {
                    if let Some(found) = line.read(key).await {
                        return found;
                    }
                }
            };
            match tokio::time::timeout(AROUND_LIMIT, read).await {
                Ok(found) if found >= *value => {}
                Ok(found) => {
                    done.lost.push(format!("{key}: {value} was acknowledged, {found} read"))
                }
                Err(_) => done.lost.push(format!("{key}: {}", self.line.trouble)),
            }
        }
        Ok(done)
    }
}

fn fresh() -> [u8; 16] {
    let mut id = [0; 16];
    SystemRng.fill(&mut id);
    id
}
