//! Load for the benchmarks: clients that write without a pause, to Warren or to
//! etcd by the same rules, and agents that hold real sessions without running
//! anything, in earnest or by their own word.
//!
//! Says `ready` on standard output once the load is on, goes on until standard
//! input ends, then writes one line of JSON about what it saw. Times are of the
//! monotonic clock, which all processes of a machine share.

#![allow(clippy::print_stdout)]

mod agents;
mod etcd;
mod gets;
mod line;
mod write;

use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use tokio::sync::watch;

/// Load for the benchmarks; ends when standard input does.
#[derive(Debug, Parser)]
#[command(name = "warren-load")]
struct Args {
    #[command(subcommand)]
    load: Load,
}

#[derive(Debug, Subcommand)]
enum Load {
    /// Clients that write without a pause
    Write(write::Args),
    /// Agents with a session each
    Agents(agents::Args),
    /// Bare HTTP, at an even rate
    Gets(gets::Args),
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().build().context("start the event loop")?;
    let report = runtime.block_on(async {
        let stop = until_input_ends();
        match args.load {
            Load::Write(args) => write::run(args, stop).await,
            Load::Agents(args) => agents::run(args, stop).await,
            Load::Gets(args) => gets::run(&args, &stop),
        }
    })?;
    println!("{report}");
    Ok(())
}

/// True once nobody holds our standard input open any more.
fn until_input_ends() -> watch::Receiver<bool> {
    let (tell, told) = watch::channel(false);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        // An error is an end too.
        let _ = std::io::copy(&mut input, &mut std::io::sink());
        tell.send_replace(true);
    });
    told
}

/// The load is on.
fn ready() {
    println!("ready");
}

/// Nanoseconds of the clock that all processes share.
fn now_ns() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// What all tasks of a load share.
type Shared<T> = Arc<T>;
