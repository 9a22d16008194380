//! The parts of the sum that are about where tasks run.

use std::collections::BTreeMap;

use warren_model::defaults::Defaults;
use warren_model::placement::{
    Affinity, Placement, Preempt, Strategy, Taint, TaintEffect, Toleration,
};
use warren_model::resources::Resources;
use warren_model::service::Limits;

use super::Digest;

pub(super) fn add_taints(digest: &mut Digest, taints: &[Taint]) {
    digest.word(taints.len() as u64);
    for Taint { key, value, effect } in taints {
        digest.text(key);
        digest.text(value);
        digest.word(effect_word(*effect));
    }
}

pub(super) fn strategy_word(strategy: Strategy) -> u64 {
    match strategy {
        Strategy::Spread => 1,
        Strategy::BinPack => 2,
    }
}

fn effect_word(effect: TaintEffect) -> u64 {
    match effect {
        TaintEffect::NoSchedule => 1,
        TaintEffect::PreferNoSchedule => 2,
        TaintEffect::NoExecute => 3,
    }
}

pub(super) fn add_amounts(digest: &mut Digest, amounts: &BTreeMap<String, u64>) {
    digest.word(amounts.len() as u64);
    for (name, amount) in amounts {
        digest.text(name);
        digest.word(*amount);
    }
}

pub(super) fn add_resources(digest: &mut Digest, resources: &Resources) {
    let Resources { cpu_millis, memory_bytes, pids, disk_bytes, generic } = resources;
    for amount in [cpu_millis, memory_bytes, pids, disk_bytes] {
        digest.word(*amount);
    }
    add_amounts(digest, generic);
}

/// Number of defaults, of the cluster and of a node.
pub(super) const DEFAULTS: u64 = 131;

pub(super) fn add_defaults(digest: &mut Digest, defaults: &Defaults) {
    let Defaults { reserve_cpu_millis, reserve_memory_bytes, limits } = defaults;
    let Limits { memory_bytes, cpu_millis, pids } = limits;
    digest.word(*reserve_cpu_millis);
    digest.word(*reserve_memory_bytes);
    digest.option(*memory_bytes, Digest::word);
    digest.option(cpu_millis.map(u64::from), Digest::word);
    digest.option(pids.map(u64::from), Digest::word);
}

pub(super) fn add_placement(digest: &mut Digest, placement: &Placement) {
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
    for all in [constraints, preferences] {
        digest.word(all.len() as u64);
        all.iter().for_each(|constraint| digest.text(&constraint.to_string()));
    }
    digest.word(spread.len() as u64);
    spread.iter().for_each(|attribute| digest.text(&attribute.to_string()));
    digest.word(affinities.len() as u64);
    for Affinity { service, apart, soft } in affinities {
        digest.text(service.as_str());
        digest.word(u64::from(*apart) << 1 | u64::from(*soft));
    }
    digest.word(u64::from(max_per_node.unwrap_or_default()));
    digest.word(tolerations.len() as u64);
    for Toleration { key, value, effect } in tolerations {
        digest.text(key);
        digest.option(value.as_deref(), Digest::text);
        digest.option(*effect, |digest, effect| digest.word(effect_word(effect)));
    }
    digest.option(*strategy, |digest, strategy| digest.word(strategy_word(strategy)));
    // As long as nobody says so, the sum is that of older versions.
    let rank = (*priority, *preempt == Preempt::Lower);
    digest.added(
        120,
        Some(rank).filter(|rank| *rank != (0, false)),
        |digest, (priority, lower)| {
            digest.word(u64::from(priority.cast_unsigned()) << 1 | u64::from(lower));
        },
    );
    digest.added(134, Some(platforms).filter(|all| !all.is_empty()), |digest, all| {
        digest.word(all.len() as u64);
        all.iter().for_each(|platform| digest.text(platform));
    });
}
