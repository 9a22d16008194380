//! Seeds that must pass, and the proof that a seed is a run.

use warren_sim::{Options, run};

/// Enough to meet every kind of trouble in combination; more are run by hand (`warren-sim --seeds`).
const SEEDS: u64 = 200;

#[test]
fn seeds() {
    for seed in 0..SEEDS {
        if let Err(failure) = run(Options::of_seed(seed)) {
            panic!("seed {seed}: {failure}");
        }
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
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
