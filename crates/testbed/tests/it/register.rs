//! What clients see is what one machine would have shown them, whatever breaks.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use warren_testbed::clients::{self, Load, Record};
use warren_testbed::faults::{self, Mix};
use warren_testbed::history::{Limits, Verdict, check_all};
use warren_testbed::{Cluster, Options};

/// How often clients must have been told that something is done, for a run to say anything.
const ACKNOWLEDGED_MIN: usize = 100;

/// One run: eight clients on three managers while `length` of faults happen.
pub(crate) fn run(seed: u64, length: Duration) -> Result<()> {
    let options = Options { registry: false, seed, ..Options::default() };
    let cluster = Cluster::form(3, 0, &options)?;
    let machines: Vec<String> = cluster.managers().map(|node| node.name().to_owned()).collect();
    let mix = Mix { machines, at_once: 1, length, power: true };
    let plan = faults::plan(seed, &mix);
    let load = Load { clients: 8, registers: 6, seed };
    let (record, report) = clients::record(&cluster, &load, |_| {
        let report = faults::run(&cluster, &plan)?;
        // Whole again: the last operations see what is left.
        cluster.wait_ready(3, Duration::from_secs(60))?;
        Ok(report)
    })?;
    let (all, known) = (record.operations.len(), record.acknowledged());
    let gap = record.longest_gap();
    eprintln!(
        "seed {seed}: {all} operations, {known} changes, {} faults, longest gap {gap:?}",
        plan.len()
    );
    if !report.crashed.is_empty() {
        bail!("seed {seed}: {}", report.crashed.join("\n"));
    }
    if known < ACKNOWLEDGED_MIN {
        bail!("seed {seed}: only {known} changes\n{}", cluster.last_words());
    }
    judge(seed, &record).with_context(|| report.done.join("\n"))
}

/// Whether what clients saw can be true.
pub(crate) fn judge(seed: u64, record: &Record) -> Result<()> {
    if let Some(broken) = record.broken.first() {
        bail!("seed {seed}: {broken}");
    }
    match check_all(&record.operations, &Limits::default()) {
        Verdict::Linearizable => Ok(()),
        Verdict::Undecided(limit) => bail!("seed {seed}: not decided within the {limit} given"),
        Verdict::Violation(violation) => bail!("seed {seed}: {violation}"),
    }
}

#[test]
fn host_linearizable_while_managers_break() -> Result<()> {
    run(1, Duration::from_secs(20))
}
