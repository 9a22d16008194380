//! Many seeds, or one again: `warren-sim [--seeds N] [--from SEED] [--reproduce SEED]`.

// A tool speaks to its terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use clap::Parser;
use warren_sim::Failure;
use warren_sim::cluster::{self, Counts, Profile};

/// Runs whole clusters in one thread, each from a seed; tells the first that does not hold, and
/// what the others met.
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
    /// Goes on after a seed that does not hold, and tells them all.
    #[arg(long)]
    all: bool,
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

/// One seed; what it says of itself, and what it met.
fn run(args: &Args, seed: u64, verbose: bool) -> Result<(String, Counts), Failure> {
    if args.single {
        let options = warren_sim::Options::of_seed(seed);
        return warren_sim::run(options).map(|report| (format!("{report:?}"), Counts::default()));
    }
    let trouble_ms = args.trouble.unwrap_or(cluster::Options::TROUBLE_MS);
    let options = cluster::Options {
        profile: args.profile,
        trouble_ms,
        verbose,
        ..cluster::Options::of_seed(seed)
    };
    cluster::run(options).map(|report| (format!("{report:?}"), report.counts))
}

/// What many seeds came to.
#[derive(Default)]
struct Outcome {
    /// In order of seed.
    failures: Vec<Failure>,
    /// Name, how often in all seeds that held, and in how many of them.
    met: Vec<(&'static str, u64, u64)>,
}

impl Outcome {
    fn add(&mut self, counts: Counts) {
        let counts = counts.all();
        if self.met.is_empty() {
            self.met = counts.iter().map(|(name, _)| (*name, 0, 0)).collect();
        }
        for (sum, (_, count)) in self.met.iter_mut().zip(counts) {
            sum.1 += u64::from(count);
            sum.2 += u64::from(count > 0);
        }
    }

    fn met(&self) -> String {
        let met = self.met.iter().map(|(name, times, seeds)| format!("{name} {times} in {seeds}"));
        met.collect::<Vec<_>>().join(", ")
    }
}

/// Unless all are wanted, nobody begins another seed after one that failed.
fn many(args: &Args) -> Outcome {
    let next = AtomicU64::new(args.from);
    let end = args.from + args.seeds;
    let outcome = Mutex::new(Outcome::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return;
            }
            let ran = run(args, seed, false);
            let mut outcome = outcome.lock().unwrap_or_else(PoisonError::into_inner);
            match ran {
                Ok((_, counts)) => outcome.add(counts),
                Err(failure) => {
                    outcome.failures.push(failure);
                    if !args.all {
                        next.store(end, Ordering::Relaxed);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.jobs.max(1) {
            scope.spawn(work);
        }
    });
    let mut outcome = outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    outcome.failures.sort_by_key(|failure| failure.seed);
    outcome
}

fn one_again(args: &Args, seed: u64) -> ExitCode {
    match run(args, seed, true) {
        Ok((report, _)) => {
            println!("seed {seed}: {report}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("seed {}: {failure}", failure.seed);
            ExitCode::FAILURE
        }
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(filter) = &args.log {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        let log = tracing_subscriber::fmt().with_env_filter(filter).without_time();
        log.with_writer(std::io::stderr).with_ansi(false).init();
    }
    if let Some(seed) = args.reproduce {
        return one_again(&args, seed);
    }
    let began = Instant::now();
    let outcome = many(&args);
    for failure in &outcome.failures {
        eprintln!("seed {}: {failure}", failure.seed);
    }
    if !outcome.failures.is_empty() {
        return ExitCode::FAILURE;
    }
    println!("met, and in how many seeds: {}", outcome.met());
    let each = began.elapsed().as_secs_f64() * 1e3 / args.seeds.max(1) as f64;
    println!("{} seeds hold, {each:.1} ms each", args.seeds);
    ExitCode::SUCCESS
}
