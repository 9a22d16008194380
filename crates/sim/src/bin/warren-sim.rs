//! Many seeds, or one again: `warren-sim [--seeds N] [--from SEED] [--reproduce SEED]`.

// A tool speaks to its terminal.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

use warren_sim::{Options, run};

fn number(args: &[String], flag: &str) -> Option<u64> {
    let at = args.iter().position(|arg| arg == flag)?;
    args.get(at + 1)?.parse().ok()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let (from, seeds) = match number(&args, "--reproduce") {
        Some(seed) => (seed, 1),
        None => (number(&args, "--from").unwrap_or(0), number(&args, "--seeds").unwrap_or(100)),
    };
    for seed in from..from + seeds {
        match run(Options::of_seed(seed)) {
            Ok(report) if seeds == 1 => println!("seed {seed}: {report:?}"),
            Ok(_) => {}
            Err(failure) => {
                eprintln!("seed {seed}: {failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{seeds} seeds passed");
    ExitCode::SUCCESS
}
