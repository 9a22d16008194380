//! The least that an HTTP probe can cost: connect, GET, read, close, with blocking calls, one thread
//! a server, at an even rate. What health checks are compared with.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args as ClapArgs;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::sync::watch;

/// As a check waits.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Of an answer; a page of the benchmark is far shorter.
const ANSWER_BYTES: usize = 4096;

#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Whom to ask, each by a thread of its own
    #[arg(required = true)]
    servers: Vec<SocketAddr>,
    #[arg(long, default_value = "/health")]
    path: String,
    /// Questions a second, of all
    #[arg(long, default_value_t = 1000)]
    rate: u32,
}

pub(crate) fn run(args: &Args, stop: &watch::Receiver<bool>) -> Result<Value> {
    let servers = u32::try_from(args.servers.len()).unwrap_or(u32::MAX);
    let pace = Duration::from_secs(1) * servers / args.rate.max(1);
    crate::ready();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let (mut good, mut bad) = (0, 0);
    std::thread::scope(|scope| {
        let ask = |server: &SocketAddr| {
            let server = *server;
            scope.spawn(move || ask(server, &args.path, pace, stop))
        };
        let threads: Vec<_> = args.servers.iter().map(ask).collect();
        for (well, ill) in threads.into_iter().filter_map(|thread| thread.join().ok()) {
            good += well;
            bad += ill;
        }
    });
    let (took, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    Ok(json!({"good": good, "bad": bad, "seconds": took, "cpu": cpu}))
}

/// How many answers were good, and how many were not.
fn ask(server: SocketAddr, path: &str, pace: Duration, stop: &watch::Receiver<bool>) -> (u64, u64) {
    let (mut good, mut bad, mut due) = (0, 0, Instant::now());
    while !*stop.borrow() {
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        due += pace;
        match get(server, path) {
            Ok(true) => good += 1,
            Ok(false) | Err(_) => bad += 1,
        }
    }
    (good, bad)
}

fn get(server: SocketAddr, path: &str) -> Result<bool> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT).context("connect")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = [0; ANSWER_BYTES];
    let mut len = 0;
    // To the end, so that it is the server that closes first.
    loop {
        let read = stream.read(&mut answer[len..])?;
        len += read;
        if read == 0 {
            break;
        }
    }
    Ok(answer[..len].starts_with(b"HTTP/1.1 200") || answer[..len].starts_with(b"HTTP/1.0 200"))
}

fn cpu_seconds() -> f64 {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
