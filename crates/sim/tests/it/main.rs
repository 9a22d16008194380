//! Seeds that must hold, and the proof that a seed is a run. Many more are run by `make sim`.

use std::process::Command;

use warren_sim::cluster::{self, Report};
use warren_sim::{Options, run};

/// Enough to meet every kind of trouble in combination.
const SINGLE_SEEDS: u64 = 100;
/// A debug build takes a second for each.
const CLUSTER_SEEDS: u64 = 6;

#[test]
fn single_seeds() {
    for seed in 0..SINGLE_SEEDS {
        if let Err(failure) = run(Options::of_seed(seed)) {
            panic!("seed {seed}: {failure}");
        }
    }
}

#[test]
fn the_same_single_seed_is_the_same_run() {
    for seed in [1, 7, 42] {
        let first = run(Options::of_seed(seed)).expect("passes");
        let second = run(Options::of_seed(seed)).expect("passes");
        assert_eq!(first, second, "seed {seed}");
        assert!(first.events > 500 && first.entries > 50, "seed {seed} does something: {first:?}");
    }
    let differ = run(Options::of_seed(1)).expect("passes").trace
        != run(Options::of_seed(2)).expect("passes").trace;
    assert!(differ, "seeds differ");
}

fn cluster_run(seed: u64) -> Report {
    match cluster::run(cluster::Options::of_seed(seed)) {
        Ok(report) => report,
        Err(failure) => panic!("seed {seed}: {failure}"),
    }
}

#[test]
fn cluster_seeds() {
    for seed in 0..CLUSTER_SEEDS {
        let report = cluster_run(seed);
        let counts = report.counts;
        let busy = counts.faults > 3 && counts.leaders > 0 && counts.acknowledged > 0;
        assert!(busy, "seed {seed} does something: {report:?}");
    }
}

/// In this process, again in it, and in another one.
#[test]
fn the_same_cluster_seed_is_the_same_run() {
    let mut traces = Vec::new();
    for seed in [3, 11, 19] {
        let first = cluster_run(seed);
        assert_eq!(first, cluster_run(seed), "seed {seed}");
        let other = Command::new(env!("CARGO_BIN_EXE_warren-sim"))
            .args(["--reproduce", &seed.to_string()])
            .output()
            .expect("the simulator starts");
        let told = String::from_utf8_lossy(&other.stdout).into_owned();
        assert_eq!(told, format!("seed {seed}: {first:?}\n"), "in another process");
        traces.push(first.trace);
    }
    traces.sort_unstable();
    traces.dedup();
    assert_eq!(traces.len(), 3, "seeds differ");
}

#[test]
fn a_failure_says_how_to_see_it_again() {
    let bad = Command::new(env!("CARGO_BIN_EXE_warren-sim"))
        .args(["--profile", "nonsense"])
        .output()
        .expect("the simulator starts");
    assert!(!bad.status.success());
    let failure = warren_sim::Failure { seed: 7, at_ms: 12, what: "x".to_owned() };
    assert!(failure.to_string().ends_with("--reproduce 7"), "{failure}");
}
