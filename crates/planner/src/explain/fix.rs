//! What would make a task fit: commands that people can copy.

use warren_model::device::is_kind;
use warren_model::node::Node;
use warren_model::placement::Attribute;
use warren_model::resources::Resource;
use warren_model::service::Service;
use warren_state::State;

use super::{Finding, Verdict};
use crate::place::Obstacle;

/// Suggestions for one service: more would not be read.
const FIXES_MAX: usize = 8;

/// What would remove one obstacle.
pub(super) fn of(obstacle: &Obstacle<'_>, service: &Service, node: &Node) -> String {
    let (name, host) = (&service.spec.name, &node.description.hostname);
    match obstacle {
        Obstacle::NotWorker => format!("warren node update --worker true {host}"),
        Obstacle::Down => format!("start node {host}: warren node run"),
        Obstacle::Paused | Obstacle::Draining => {
            format!("warren node update --availability active {host}")
        }
        Obstacle::Constraint(constraint) => match (constraint.attribute(), constraint.wanted()) {
            (Attribute::Label(label), Some(value)) => {
                format!("warren node update --label-add '{label}={value}' {host}")
            }
            _ => format!("warren service update --constraint-rm '{constraint}' {name}"),
        },
        Obstacle::Platform(_) => {
            format!("build the image for {}, too, or add a node that it is for", node.platform())
        }
        Obstacle::Taint(taint) => {
            format!("warren service update --toleration-add '{taint}' {name}")
        }
        Obstacle::Near(other) => format!("run a task of {other} on {host}"),
        Obstacle::Apart(other) => format!("warren service update --affinity-rm {other} {name}"),
        Obstacle::HostPorts => "add a node, or publish the port with mode=ingress".to_owned(),
        Obstacle::MaxPerNode(count, _) => {
            let more = count.saturating_add(1);
            format!("add a node, or warren service update --replicas-max-per-node {more} {name}")
        }
        Obstacle::NoAddress => "remove tasks that are not needed: the pool is used up".to_owned(),
        Obstacle::Lacks(lack) => {
            let missing = lack.resource.amount(lack.needed.saturating_sub(lack.free).max(1));
            let resource = lack.resource;
            let is_device = matches!(resource, Resource::Generic(name) if is_kind(name));
            if is_device && lack.capacity < lack.needed {
                return format!(
                    "add a node with {} {resource}, or write its specifications into /etc/cdi",
                    lack.needed
                );
            }
            match lack.capacity < lack.needed {
                true => format!("add a node with {} {resource}", resource.amount(lack.needed)),
                false => format!("free {missing} more {resource} on {host}"),
            }
        }
    }
}

/// Somebody else would have to go.
pub(super) fn preempt(service: &Service, host: &str, victims: usize) -> String {
    let name = &service.spec.name;
    let tasks = if victims == 1 { "1 task".to_owned() } else { format!("{victims} tasks") };
    format!(
        "warren service update --preempt lower {name}: ends {tasks} of lower priority on {host}"
    )
}

/// What would help first: on the nearest node, then by asking for less.
pub(super) fn all(state: &State, service: &Service, verdicts: &[Verdict]) -> Vec<String> {
    let mut fixes: Vec<String> = Vec::new();
    let mut add = |fix: String| {
        if fixes.len() < FIXES_MAX && !fix.is_empty() && !fixes.contains(&fix) {
            fixes.push(fix);
        }
    };
    let Some(nearest) = verdicts.first() else {
        return vec!["join a node: warren cluster token".to_owned()];
    };
    nearest.findings.iter().for_each(|finding| add(finding.fix.clone()));
    if let Some(fix) = ask_for_less(service, verdicts) {
        add(fix);
    }
    // Nodes that only have to be switched on again may be easier than the nearest.
    for verdict in verdicts {
        if let [Finding { kind, fix, .. }] = &verdict.findings[..]
            && matches!(kind.as_str(), "paused" | "draining" | "down")
            && state.node(verdict.node).is_some()
        {
            add(fix.clone());
        }
    }
    fixes
}

/// The most that a node has free which lacks nothing else but one resource.
fn ask_for_less(service: &Service, verdicts: &[Verdict]) -> Option<String> {
    let name = &service.spec.name;
    let mut best: Option<(&str, u64)> = None;
    for verdict in verdicts {
        let [Finding { kind, amounts: Some(amounts), .. }] = &verdict.findings[..] else {
            continue;
        };
        if amounts.free > 0 && best.is_none_or(|(word, free)| word == kind && free < amounts.free) {
            best = Some((kind, amounts.free));
        }
    }
    let (kind, free) = best?;
    let flag = match kind {
        "cpu" | "memory" | "pids" | "disk" => {
            let resource = match kind {
                "cpu" => Resource::Cpu,
                "memory" => Resource::Memory,
                "disk" => Resource::Disk,
                _ => Resource::Pids,
            };
            format!("--reserve-{kind} {}", resource.amount(free))
        }
        generic => format!("--reserve {generic}={free}"),
    };
    Some(format!("warren service update {flag} {name}"))
}
