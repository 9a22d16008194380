//! The planner from outside: decisions as tables, laws on random clusters.

// Of helpers: `allow-unwrap-in-tests` sees test functions alone.
#![allow(clippy::unwrap_used, clippy::or_fun_call)]

mod defaults;
mod devices;
mod disconnect;
mod explain;
mod hooks;
mod jobs;
mod laws;
mod moving;
mod placement;
mod platforms;
mod preempt;
mod props;
mod rollouts;
mod simulate;
mod tables;
mod updates;
mod vips;
mod world;

use proptest::test_runner::Config;

/// Laws are tried as often as PROPTEST_CASES says; else so often, for worlds take long.
fn cases(otherwise: u32) -> Config {
    const DEFAULT: u32 = 256;
    let asked = Config::default();
    let cases = if asked.cases == DEFAULT { otherwise } else { asked.cases };
    Config { cases, ..asked }
}
