//! Where tasks run: flags of `service create` and `service update`, and of nodes.
//!
//! Texts are read by the model's own parsers, so that a flag, a file and the
//! API take the same words.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use warren_model::ServiceSpec;
use warren_model::placement::{
    Affinity, Attribute, Constraint, Placement, Preempt, Strategy, Toleration,
};
use warren_model::resources::{Resources, check_name};

use super::spec::{bytes, cores, count};
use super::tuning::TuningFlags;

/// What `create` and `update` share.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ReserveFlags {
    /// Keep processor time free for each replica, e.g. 0.5 cores
    #[arg(long, value_name = "CORES", allow_hyphen_values = true, value_parser = cores)]
    reserve_cpu: Option<u32>,
    /// Keep memory free for each replica, e.g. 128MiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = bytes)]
    reserve_memory: Option<u64>,
    /// Keep processes and threads free for each replica
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    reserve_pids: Option<u32>,
    /// Keep disk free for each replica, e.g. 10GiB
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, value_parser = bytes)]
    reserve_disk: Option<u64>,
    /// Keep pieces of what nodes say they have for each replica, e.g. gpu=1; 0 takes it back
    #[arg(long, value_name = "NAME=N", value_parser = amount)]
    reserve: Vec<(String, u64)>,
    /// Replicas on one node; 0 is no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    replicas_max_per_node: Option<u32>,
    /// Who is placed first, and who may be ended for whom: -1000 to 1000, higher is more
    /// [default: 0]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = priority)]
    priority: Option<i16>,
    /// Whether tasks of services of lower priority are ended for one that fits nowhere
    /// [default: never]
    #[arg(long, value_name = "WHOM")]
    preempt: Option<PreemptFlag>,
    /// Which of the nodes that fit: spread (the emptiest), bin-pack (the fullest), or default (as
    /// the cluster's settings say)
    #[arg(long, value_name = "STRATEGY", value_parser = strategy)]
    strategy: Option<Chosen>,
    #[command(flatten)]
    tuning: TuningFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum PreemptFlag {
    Never,
    Lower,
}

fn priority(text: &str) -> Result<i16, String> {
    let most = Placement::PRIORITY_MAX;
    let number = text.parse().ok().filter(|number| (-most..=most).contains(number));
    number.ok_or_else(|| format!("{text:?} is not a priority: a number from -{most} to {most}"))
}

/// A strategy, or none of one's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chosen(Option<Strategy>);

fn strategy(text: &str) -> Result<Chosen, String> {
    if text == "default" {
        return Ok(Chosen(None));
    }
    let hint = |error| format!("{error}, or default");
    text.parse().map(|strategy| Chosen(Some(strategy))).map_err(hint)
}

/// `gpu=2`.
pub(crate) fn amount(text: &str) -> Result<(String, u64), String> {
    let shape = || format!("{text:?} is not of the form NAME=N, e.g. gpu=2");
    let (name, amount) = text.split_once('=').ok_or_else(shape)?;
    check_name(name).map_err(|error| match Resources::KNOWN.contains(&name) {
        true => format!("{error}: --reserve-{name}"),
        false => error.to_string(),
    })?;
    Ok((name.to_owned(), amount.parse().map_err(|_| shape())?))
}

impl ReserveFlags {
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) {
        self.tuning.apply(&mut spec.task.tuning);
        let reserve = &mut spec.task.reserve;
        reserve.cpu_millis = self.reserve_cpu.map_or(reserve.cpu_millis, u64::from);
        reserve.memory_bytes = self.reserve_memory.unwrap_or(reserve.memory_bytes);
        reserve.pids = self.reserve_pids.map_or(reserve.pids, u64::from);
        reserve.disk_bytes = self.reserve_disk.unwrap_or(reserve.disk_bytes);
        for (name, amount) in &self.reserve {
            match amount {
                0 => drop(reserve.generic.remove(name)),
                amount => drop(reserve.generic.insert(name.clone(), *amount)),
            }
        }
        if let Some(most) = self.replicas_max_per_node {
            spec.placement.max_per_node = (most != 0).then_some(most);
        }
        let placement = &mut spec.placement;
        placement.priority = self.priority.unwrap_or(placement.priority);
        match self.preempt {
            Some(PreemptFlag::Never) => placement.preempt = Preempt::Never,
            Some(PreemptFlag::Lower) => placement.preempt = Preempt::Lower,
            None => {}
        }
        if let Some(Chosen(strategy)) = self.strategy {
            spec.placement.strategy = strategy;
        }
    }
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PlacingFlags {
    /// Only on nodes of which this holds, e.g. node.labels.disk==ssd; also !=, =~ (a pattern with
    /// * and ?), in a,b, < and >
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<Constraint>,
    /// Rather on nodes of which this holds; the first that is given counts most
    #[arg(long, value_name = "CONSTRAINT")]
    prefer: Vec<Constraint>,
    /// Spread evenly over the values of a node's attribute: spread=node.labels.zone
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref: Vec<Attribute>,
    /// Only on nodes that have a task of another service; SERVICE:soft if there are any
    #[arg(long, value_name = "SERVICE", value_parser = near)]
    affinity: Vec<Affinity>,
    /// On no node that has a task of another service; SERVICE:soft if there are others
    #[arg(long, value_name = "SERVICE", value_parser = apart)]
    anti_affinity: Vec<Affinity>,
    /// Also on nodes with this taint: KEY[=VALUE][:EFFECT], or * for any
    #[arg(long, value_name = "TAINT")]
    toleration: Vec<Toleration>,
}

/// As Docker writes it.
fn spread(text: &str) -> Result<Attribute, String> {
    let shape = || format!("{text:?} is not of the form spread=node.labels.zone");
    let attribute = text.strip_prefix("spread=").ok_or_else(shape)?;
    attribute.parse().map_err(|error| format!("{error}"))
}

fn near(text: &str) -> Result<Affinity, String> {
    Affinity::parse(text, false).map_err(|error| error.to_string())
}

fn apart(text: &str) -> Result<Affinity, String> {
    Affinity::parse(text, true).map_err(|error| error.to_string())
}

impl PlacingFlags {
    pub(crate) fn placement(self) -> Placement {
        let affinities = self.affinity.into_iter().chain(self.anti_affinity);
        Placement {
            constraints: self.constraint,
            preferences: self.prefer,
            spread: self.placement_pref,
            affinities: affinities.collect(),
            tolerations: self.toleration,
            ..Placement::default()
        }
    }
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct PlacingEdits {
    /// Only on nodes of which this holds, too
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<Constraint>,
    /// Remove a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Rather on nodes of which this holds, after what was preferred before
    #[arg(long, value_name = "CONSTRAINT")]
    prefer_add: Vec<Constraint>,
    /// Prefer something no longer
    #[arg(long, value_name = "CONSTRAINT")]
    prefer_rm: Vec<String>,
    /// Spread over the values of an attribute, within those before: spread=node.labels.rack
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref_add: Vec<Attribute>,
    /// Spread over an attribute no longer
    #[arg(long, value_name = "PREFERENCE", value_parser = spread)]
    placement_pref_rm: Vec<Attribute>,
    /// Only on nodes that have a task of another service; SERVICE:soft if there are any
    #[arg(long, value_name = "SERVICE", value_parser = near)]
    affinity_add: Vec<Affinity>,
    /// On no node that has a task of another service; SERVICE:soft if there are others
    #[arg(long, value_name = "SERVICE", value_parser = apart)]
    anti_affinity_add: Vec<Affinity>,
    /// Neither near nor apart from a service any longer
    #[arg(long, visible_alias = "anti-affinity-rm", value_name = "SERVICE")]
    affinity_rm: Vec<String>,
    /// Also on nodes with this taint
    #[arg(long, value_name = "TAINT")]
    toleration_add: Vec<Toleration>,
    /// Tolerate a taint no longer
    #[arg(long, value_name = "TAINT")]
    toleration_rm: Vec<String>,
}

impl PlacingEdits {
    /// Changes a placement; remarks tell what had no effect.
    pub(crate) fn apply(&self, placement: &mut Placement, remarks: &mut Vec<String>) {
        let mut take = |flag: &str, gone: bool, text: &dyn Display| {
            if !gone {
                remarks.push(format!("{flag}: the service has no {text}"));
            }
        };
        for text in &self.constraint_rm {
            take("--constraint-rm", take_out(&mut placement.constraints, text), text);
        }
        for text in &self.prefer_rm {
            take("--prefer-rm", take_out(&mut placement.preferences, text), text);
        }
        for attribute in &self.placement_pref_rm {
            let text = attribute.to_string();
            take("--placement-pref-rm", take_out(&mut placement.spread, &text), attribute);
        }
        for name in &self.affinity_rm {
            let before = placement.affinities.len();
            placement.affinities.retain(|affinity| affinity.service.as_str() != name);
            take("--affinity-rm", placement.affinities.len() < before, name);
        }
        for text in &self.toleration_rm {
            take("--toleration-rm", take_out(&mut placement.tolerations, text), text);
        }
        put_in(&mut placement.constraints, &self.constraint_add);
        put_in(&mut placement.preferences, &self.prefer_add);
        put_in(&mut placement.spread, &self.placement_pref_add);
        put_in(&mut placement.tolerations, &self.toleration_add);
        for affinity in self.affinity_add.iter().chain(&self.anti_affinity_add) {
            placement.affinities.retain(|other| other.service != affinity.service);
            placement.affinities.push(affinity.clone());
        }
    }
}

/// Takes out what `text` means, however it is written.
fn take_out<T: FromStr + PartialEq>(all: &mut Vec<T>, text: &str) -> bool {
    let before = all.len();
    if let Ok(meant) = text.parse::<T>() {
        all.retain(|other| *other != meant);
    }
    all.len() < before
}

fn put_in<T: Clone + PartialEq>(all: &mut Vec<T>, added: &[T]) {
    for one in added {
        if !all.contains(one) {
            all.push(one.clone());
        }
    }
}

/// `cpu=0.5,memory=512MiB,gpu=1`: for `node update --system-reserve`; `none` is nothing.
pub(crate) fn resources(text: &str) -> Result<Resources, String> {
    let mut resources = Resources::default();
    if text == "none" {
        return Ok(resources);
    }
    for part in text.split(',') {
        let shape = || format!("{part:?} is not of the form cpu=0.5, memory=512MiB or NAME=N");
        let (name, value) = part.split_once('=').ok_or_else(shape)?;
        match name {
            "cpu" => resources.cpu_millis = cores(value)?.into(),
            "memory" => resources.memory_bytes = bytes(value)?,
            "pids" => resources.pids = count(value)?.into(),
            "disk" => resources.disk_bytes = bytes(value)?,
            _ => {
                let (name, amount) = amount(part)?;
                if amount > 0 {
                    resources.generic.insert(name, amount);
                }
            }
        }
    }
    Ok(resources)
}

/// Amounts as `inspect` shows them.
pub(crate) fn resources_json(resources: &Resources) -> serde_json::Value {
    let Resources { cpu_millis, memory_bytes, pids, disk_bytes, generic } = resources;
    serde_json::json!({
        "cpus": exact_cores(*cpu_millis),
        "memory_bytes": memory_bytes,
        "pids": pids,
        "disk_bytes": disk_bytes,
        "generic": generic.iter().collect::<BTreeMap<_, _>>(),
    })
}

// A node has far fewer cores than a float has digits.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn exact_cores(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

pub(crate) fn placement_json(placement: &Placement) -> serde_json::Value {
    fn texts<T: Display>(all: &[T]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }
    let Placement {
        constraints,
        preferences,
        spread,
        affinities,
        max_per_node,
        tolerations,
        strategy,
        priority,
        preempt,
        platforms,
    } = placement;
    let (apart, near): (Vec<Affinity>, Vec<Affinity>) =
        affinities.iter().cloned().partition(|affinity| affinity.apart);
    serde_json::json!({
        "constraints": texts(constraints),
        "prefer": texts(preferences),
        "spread": texts(spread),
        "affinity": texts(&near),
        "anti_affinity": texts(&apart),
        "replicas_max_per_node": max_per_node,
        "tolerations": texts(tolerations),
        "strategy": strategy.map(Strategy::as_str),
        "priority": priority,
        "preempt": preempt.as_str(),
        "platforms": platforms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(edits: &PlacingEdits, before: &[&str], expected: &str) {
        let constraints = before.iter().map(|text| text.parse().unwrap()).collect();
        let mut placement = Placement { constraints, ..Placement::default() };
        let mut remarks = Vec::new();
        edits.apply(&mut placement, &mut remarks);
        let words = |all: Vec<String>| all.join(" ");
        let constraints = words(placement.constraints.iter().map(ToString::to_string).collect());
        let near = words(placement.affinities.iter().map(ToString::to_string).collect());
        assert_eq!(format!("{constraints} [{near}] {}", remarks.join("; ")).trim(), expected);
    }

    #[test]
    fn edits() {
        let edits = PlacingEdits::default;
        let rm = |text: &str| PlacingEdits { constraint_rm: vec![text.into()], ..edits() };
        check(&rm("node.role == manager"), &["node.role==manager"], "[]");
        check(
            &rm("node.role==worker"),
            &["node.role==manager"],
            "node.role==manager [] --constraint-rm: the service has no node.role==worker",
        );
        let add = PlacingEdits {
            constraint_add: vec!["node.id==a".parse().unwrap()],
            affinity_add: vec![near("db").unwrap()],
            anti_affinity_add: vec![apart("db:soft").unwrap()],
            ..edits()
        };
        check(&add, &["node.id==a"], "node.id==a [db:soft]");
        let gone = PlacingEdits { affinity_rm: vec!["db".into()], ..edits() };
        check(&gone, &[], "[] --affinity-rm: the service has no db");
    }

    #[test]
    fn amounts() {
        let text = |text: &str| match resources(text) {
            Ok(resources) => resources.to_string(),
            Err(problem) => problem,
        };
        assert_eq!(text("cpu=0.5,memory=512MiB,gpu=1"), "cpu=0.5 memory=512MiB gpu=1");
        assert_eq!(text("none"), "");
        assert_eq!(text("cpu"), "\"cpu\" is not of the form cpu=0.5, memory=512MiB or NAME=N");
        assert_eq!(text("gpu=many"), "\"gpu=many\" is not of the form NAME=N, e.g. gpu=2");
        assert_eq!(
            amount("memory=5"),
            Err("\"memory\" is counted by itself and has a field of its own: \
                 --reserve-memory"
                .into())
        );
        assert_eq!(amount("gpu=2"), Ok(("gpu".into(), 2)));
    }

    #[test]
    fn words() {
        assert_eq!(spread("spread=node.labels.zone").unwrap().to_string(), "node.labels.zone");
        assert!(spread("node.labels.zone").unwrap_err().ends_with("spread=node.labels.zone"));
        assert_eq!(priority("-1000"), Ok(-1000));
        assert_eq!(
            priority("1001"),
            Err("\"1001\" is not a priority: a number from -1000 to 1000".into())
        );
        assert_eq!(strategy("default"), Ok(Chosen(None)));
        assert_eq!(strategy("binpack"), Ok(Chosen(Some(Strategy::BinPack))));
        assert_eq!(
            strategy("tight"),
            Err("\"tight\" is not a strategy; write spread or bin-pack, or default".into())
        );
    }
}
