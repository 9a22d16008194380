//! Faults by a seed: what breaks when, for how long, and doing it.
//!
//! [`plan`] is pure: the same seed gives the same faults. [`run`] does them to
//! a cluster and heals everything at the end, also when something went wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use warren_base::rng::{Rng, SeededRng};

use crate::cluster::Cluster;
use crate::switch::Link;

/// Between the starts of two faults.
const GAP_MS: (u64, u64) = (300, 3000);
/// How long one lasts: shorter and longer than every timeout of the program.
const LAST_MS: (u64, u64) = (100, 5000);

/// What may happen to a machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Harm {
    /// kill -9 of the daemon, started again at the end.
    Kill,
    /// A graceful stop, started again at the end.
    Stop,
    /// SIGSTOP of the daemon.
    Pause,
    /// SIGSTOP of everything on the machine.
    Freeze,
    /// No power until the end.
    Off,
    /// No cable.
    Isolate,
    /// It hears nobody.
    Deaf,
    /// Nobody hears it.
    Mute,
    /// Nothing passes between it and one other.
    Apart(String),
    /// Its lines are slow and lose frames.
    Bad(Link),
}

/// Something that happens to a machine for a while.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    /// To whom.
    pub machine: String,
    /// What.
    pub harm: Harm,
    /// From when, since the start.
    pub from: Duration,
    /// Until when.
    pub until: Duration,
}

/// What a plan may do.
#[derive(Debug, Clone)]
pub struct Mix {
    /// Machines that it may happen to.
    pub machines: Vec<String>,
    /// Machines that suffer at one moment.
    pub at_once: usize,
    /// For how long faults may start.
    pub length: Duration,
    /// Whether machines may lose their power, too, which takes long.
    pub power: bool,
}

/// Faults in the order of their start.
pub fn plan(seed: u64, mix: &Mix) -> Vec<Fault> {
    let rng = SeededRng::new(seed);
    let mut faults: Vec<Fault> = Vec::new();
    let mut now = between(&rng, GAP_MS);
    while now < mix.length && !mix.machines.is_empty() {
        let suffering =
            |name: &String| faults.iter().any(|fault| fault.machine == *name && fault.until > now);
        let well: Vec<&String> = mix.machines.iter().filter(|name| !suffering(name)).collect();
        if mix.machines.len() - well.len() < mix.at_once && !well.is_empty() {
            let machine = (*pick(&rng, &well)).clone();
            let others: Vec<&String> =
                mix.machines.iter().filter(|name| **name != machine).collect();
            let harm = harm(&rng, &others, mix.power);
            let until = now + between(&rng, LAST_MS);
            faults.push(Fault { machine, harm, from: now, until });
        }
        now += between(&rng, GAP_MS);
    }
    faults
}

fn harm(rng: &dyn Rng, others: &[&String], power: bool) -> Harm {
    match rng.below(if power { 11 } else { 10 }) {
        0 | 1 => Harm::Kill,
        2 => Harm::Stop,
        3 => Harm::Pause,
        4 => Harm::Freeze,
        5 => Harm::Isolate,
        6 => Harm::Deaf,
        7 => Harm::Mute,
        8 if !others.is_empty() => Harm::Apart((*pick(rng, others)).clone()),
        8 | 9 => Harm::Bad(Link {
            delay: between(rng, (0, 200)),
            jitter: between(rng, (0, 100)),
            loss: [0.0, 0.01, 0.1, 0.3][usize::try_from(rng.below(4)).unwrap_or(0)],
            duplicate: 0.01,
            reorder: 0.05,
            ..Link::default()
        }),
        _ => Harm::Off,
    }
}

fn pick<'a, T>(rng: &dyn Rng, of: &'a [T]) -> &'a T {
    &of[usize::try_from(rng.below(of.len() as u64)).unwrap_or(0)]
}

fn between(rng: &dyn Rng, (least, most): (u64, u64)) -> Duration {
    Duration::from_millis(least + rng.below(most - least + 1))
}

/// How the lines are while these faults last; pairs that are not named are perfect.
fn lines(faults: &[&Fault], machines: &[String]) -> BTreeMap<(String, String), Link> {
    let mut lines: BTreeMap<(String, String), Link> = BTreeMap::new();
    let mut add = |from: &String, to: &String, link: Link| {
        let line = lines.entry((from.clone(), to.clone())).or_default();
        *line = worse(*line, link);
    };
    for fault in faults {
        let one = &fault.machine;
        for other in machines.iter().filter(|other| *other != one) {
            let (to, from) = match &fault.harm {
                Harm::Isolate => (Some(Link::CUT), Some(Link::CUT)),
                Harm::Deaf => (Some(Link::CUT), None),
                Harm::Mute => (None, Some(Link::CUT)),
                Harm::Apart(third) if third == other => (Some(Link::CUT), Some(Link::CUT)),
                Harm::Bad(link) => (Some(*link), Some(*link)),
                Harm::Apart(_)
                | Harm::Kill
                | Harm::Stop
                | Harm::Pause
                | Harm::Freeze
                | Harm::Off => (None, None),
            };
            to.iter().for_each(|link| add(other, one, *link));
            from.iter().for_each(|link| add(one, other, *link));
        }
    }
    lines
}

/// A line that suffers from both.
fn worse(one: Link, other: Link) -> Link {
    Link {
        cut: one.cut || other.cut,
        delay: one.delay.max(other.delay),
        jitter: one.jitter.max(other.jitter),
        loss: one.loss.max(other.loss),
        duplicate: one.duplicate.max(other.duplicate),
        reorder: one.reorder.max(other.reorder),
        bandwidth: one.bandwidth.into_iter().chain(other.bandwidth).min(),
        frame_max: one.frame_max.into_iter().chain(other.frame_max).min(),
    }
}

/// What was done, and what went wrong by it.
#[derive(Debug, Default)]
pub struct Report {
    /// Each fault as it began and ended.
    pub done: Vec<String>,
    /// Daemons that ended by themselves.
    pub crashed: Vec<String>,
}

/// Does it all, and heals.
pub fn run(cluster: &Cluster, faults: &[Fault]) -> Result<Report> {
    let mut report = Report::default();
    let outcome = perform(cluster, faults, &mut report);
    let healed = cluster.heal();
    outcome.and(healed)?;
    Ok(report)
}

fn perform(cluster: &Cluster, faults: &[Fault], report: &mut Report) -> Result<()> {
    let machines: Vec<String> =
        cluster.bed().hosts().iter().map(|host| host.name().to_owned()).collect();
    let begins = faults.iter().map(|fault| (fault.from, true, fault));
    let ends = faults.iter().map(|fault| (fault.until, false, fault));
    let mut moments: Vec<(Duration, bool, &Fault)> = begins.chain(ends).collect();
    moments.sort_by_key(|(at, begins, _)| (*at, *begins));
    let start = Instant::now();
    let mut active: Vec<&Fault> = Vec::new();
    for (at, begins, fault) in moments {
        std::thread::sleep(at.saturating_sub(start.elapsed()));
        note_crashes(cluster, report);
        if begins {
            active.push(fault);
        } else {
            active.retain(|other| *other != fault);
        }
        cluster.bed().set_lines(&lines(&active, &machines))?;
        if begins {
            begin(cluster, fault)?;
        } else {
            end(cluster, fault)?;
        }
        let seconds = start.elapsed().as_secs_f32();
        let word = if begins { "begins" } else { "ends" };
        report.done.push(format!("{seconds:.3} {word}: {fault}"));
    }
    note_crashes(cluster, report);
    Ok(())
}

/// A daemon that ended by itself is told once, and run again.
fn note_crashes(cluster: &Cluster, report: &mut Report) {
    for node in cluster.nodes() {
        if let Some(end) = node.unexpected_end() {
            report.crashed.push(format!("{end}\n{}", node.log_tail()));
            if let Err(error) = node.run() {
                report.crashed.push(format!("{error:#}"));
            }
        }
    }
}

fn begin(cluster: &Cluster, fault: &Fault) -> Result<()> {
    let node = cluster.node(&fault.machine)?;
    match fault.harm {
        Harm::Kill => node.kill(),
        Harm::Stop => node.stop(),
        Harm::Pause => {
            node.pause();
            Ok(())
        }
        Harm::Freeze => node.host().freeze(),
        Harm::Off => node.power_off(),
        Harm::Isolate | Harm::Deaf | Harm::Mute | Harm::Apart(_) | Harm::Bad(_) => Ok(()),
    }
}

fn end(cluster: &Cluster, fault: &Fault) -> Result<()> {
    let node = cluster.node(&fault.machine)?;
    match fault.harm {
        Harm::Kill | Harm::Stop => node.run(),
        Harm::Pause => {
            node.resume();
            Ok(())
        }
        Harm::Freeze => node.host().thaw(),
        Harm::Off => {
            node.host().up()?;
            node.run()
        }
        Harm::Isolate | Harm::Deaf | Harm::Mute | Harm::Apart(_) | Harm::Bad(_) => Ok(()),
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, harm, from, until } = self;
        write!(f, "{harm:?} of {machine}, {from:?} to {until:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mix(at_once: usize) -> Mix {
        let machines = ["m1", "m2", "m3"].map(str::to_owned).to_vec();
        Mix { machines, at_once, length: Duration::from_secs(600), power: true }
    }

    #[test]
    fn seeds_repeat_and_differ() {
        assert_eq!(plan(1, &mix(1)), plan(1, &mix(1)));
        assert_ne!(plan(1, &mix(1)), plan(2, &mix(1)));
    }

    #[test]
    fn never_more_than_allowed_and_everything_once() {
        for at_once in 1..=3 {
            let faults = plan(7, &mix(at_once));
            for fault in &faults {
                let then = |other: &&Fault| other.from <= fault.from && other.until > fault.from;
                assert!(faults.iter().filter(then).count() <= at_once, "{fault}");
            }
            let kinds = |wanted: fn(&Harm) -> bool| faults.iter().any(|fault| wanted(&fault.harm));
            assert!(kinds(|harm| *harm == Harm::Kill) && kinds(|harm| *harm == Harm::Off));
            assert!(kinds(|harm| matches!(harm, Harm::Apart(_))));
        }
    }

    #[test]
    fn faults_of_lines_add_up() {
        let machines = ["a", "b", "c"].map(str::to_owned);
        let fault = |machine: &str, harm| Fault {
            machine: machine.to_owned(),
            harm,
            from: Duration::ZERO,
            until: Duration::from_secs(1),
        };
        let slow = Link::delayed(Duration::from_millis(9));
        let check = |faults: &[Fault], expected: &str| {
            let lines = lines(&faults.iter().collect::<Vec<_>>(), &machines);
            let word = |((from, to), link): (&(String, String), &Link)| {
                let delay = if link.delay.is_zero() { "" } else { "~" };
                format!("{from}{}{delay}{to}", if link.cut { "/" } else { ">" })
            };
            assert_eq!(lines.iter().map(word).collect::<Vec<_>>().join(" "), expected);
        };
        check(&[fault("a", Harm::Kill)], "");
        check(&[fault("a", Harm::Isolate)], "a/b a/c b/a c/a");
        check(&[fault("a", Harm::Deaf)], "b/a c/a");
        check(&[fault("a", Harm::Mute)], "a/b a/c");
        check(&[fault("a", Harm::Apart("c".into()))], "a/c c/a");
        check(&[fault("a", Harm::Deaf), fault("b", Harm::Bad(slow))], "a>~b b/~a b>~c c/a c>~b");
    }
}
