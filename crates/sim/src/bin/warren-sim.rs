//! Many seeds, or one again: `warren-sim [--seeds N] [--from SEED] [--reproduce SEED]`.

// A tool speaks to its terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Parser;
use warren_sim::Failure;
use warren_sim::cluster::{self, Profile};

/// Runs whole clusters in one thread, each from a seed; tells the first that does not hold.
#[derive(Parser)]
struct Args {
    /// How many seeds.
    #[arg(long, default_value_t = 100)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Seeds at a time, a thread for each.
    #[arg(long, default_value_t = 1)]
    jobs: u64,
    /// One seed again, telling what happens.
    #[arg(long, value_name = "SEED")]
    reproduce: Option<u64>,
    /// What befalls the clusters most; each seed draws its own if none is named.
    #[arg(long, value_parser = profile)]
    profile: Option<Profile>,
    /// One manager and one worker over a bare log, without consensus.
    #[arg(long)]
    single: bool,
    /// What the program itself logs, e.g. `warn` or `openraft=debug`.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Milliseconds of trouble.
    #[arg(long)]
    trouble: Option<u64>,
}

fn profile(text: &str) -> Result<Profile, String> {
    let names = Profile::ALL.map(Profile::as_str);
    let found = Profile::ALL.into_iter().find(|profile| profile.as_str() == text);
    found.ok_or_else(|| format!("one of {}", names.join(", ")))
}

/// One seed; what it says of itself.
fn run(args: &Args, seed: u64, verbose: bool) -> Result<String, Failure> {
    if args.single {
        let options = warren_sim::Options::of_seed(seed);
        return warren_sim::run(options).map(|report| format!("{report:?}"));
    }
    let trouble_ms = args.trouble.unwrap_or(cluster::Options::TROUBLE_MS);
    let options = cluster::Options {
        profile: args.profile,
        trouble_ms,
        verbose,
        ..cluster::Options::of_seed(seed)
    };
    cluster::run(options).map(|report| format!("{report:?}"))
}

/// The failed seed with the lowest number among those that were tried.
fn many(args: &Args) -> Option<Failure> {
    let next = AtomicU64::new(args.from);
    let end = args.from + args.seeds;
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return None;
            }
            if let Err(failure) = run(args, seed, false) {
                // Nobody begins another one.
                next.store(end, Ordering::Relaxed);
                return Some(failure);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.jobs.max(1)).map(|_| scope.spawn(work)).collect();
        let failures = threads.into_iter().filter_map(|thread| thread.join().ok().flatten());
        failures.min_by_key(|failure| failure.seed)
    })
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(filter) = &args.log {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time();
        log.with_writer(std::io::stderr).with_ansi(false).init();
    }
    let failed = match args.reproduce {
        Some(seed) => match run(&args, seed, true) {
            Ok(report) => {
                println!("seed {seed}: {report}");
                None
            }
            Err(failure) => Some(failure),
        },
        None => {
            let began = Instant::now();
            let failed = many(&args);
            if failed.is_none() {
                let each = began.elapsed().as_secs_f64() * 1e3 / args.seeds.max(1) as f64;
                println!("{} seeds hold, {each:.1} ms each", args.seeds);
            }
            failed
        }
    };
    match failed {
        None => ExitCode::SUCCESS,
        Some(failure) => {
            eprintln!("seed {}: {failure}", failure.seed);
            ExitCode::FAILURE
        }
    }
}
