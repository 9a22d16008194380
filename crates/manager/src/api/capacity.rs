//! What people say of a node's resources and taints: as a change, to mutations.

use warren_model::node::Node;
use warren_model::placement::{Taint, TaintError, Toleration, check_taints};
use warren_model::resources::Resources;
use warren_proto::v1;
use warren_state::change::Mutation;

use crate::api::request::Content;
use crate::refusal::Refusal;

pub(super) fn content(content: Content, wire: &v1::UpdateNodeRequest) -> Content {
    let amounts = wire.generic.iter().fold(content, |content, amount| content.with_message(amount));
    let reserved = match &wire.system_reserved {
        Some(reserved) => amounts.with_message(reserved),
        None => amounts.with(b"-"),
    };
    let added = wire.taints_add.iter().fold(reserved, |c, taint| c.with(taint.as_bytes()));
    let content =
        wire.taints_remove.iter().fold(added.with(b"-"), |c, taint| c.with(taint.as_bytes()));
    match &wire.defaults {
        Some(defaults) => content.with_message(defaults),
        None => content,
    }
}

/// What is to be written; may be nothing.
pub(super) fn mutations(
    node: &Node,
    wire: &v1::UpdateNodeRequest,
) -> Result<Vec<Mutation>, Refusal> {
    let id = node.id;
    let mut mutations = Vec::new();
    let has = generic(node, wire)?;
    let system_reserved = match wire.system_reserved.clone() {
        None => node.system_reserved.clone(),
        Some(reserved) => Resources::try_from(reserved)
            .map_err(|error| Refusal::from(error).within("system_reserved"))?,
    };
    let checked = has.validate_of_node().and_then(|()| system_reserved.validate_of_node());
    checked.map_err(|error| Refusal::bad_input(format!("resource: {error}")))?;
    let defaults = wire.defaults.map_or(node.defaults, |change| change.change(node.defaults));
    defaults.validate().map_err(|error| Refusal::bad_input(error.to_string()))?;
    let same = has.generic == node.generic && system_reserved == node.system_reserved;
    if !same || defaults != node.defaults {
        let generic = has.generic;
        mutations.push(Mutation::SetResources { id, generic, system_reserved, defaults });
    }
    let taints = taints(node, wire).map_err(|e| Refusal::bad_input(format!("taint: {e}")))?;
    if taints != node.taints {
        mutations.push(Mutation::SetTaints { id, taints });
    }
    Ok(mutations)
}

fn generic(node: &Node, wire: &v1::UpdateNodeRequest) -> Result<Resources, Refusal> {
    let mut generic = node.generic.clone();
    for v1::Amount { name, amount } in &wire.generic {
        match amount {
            // Whatever is taken away may be named, so that nothing is left behind.
            0 => drop(generic.remove(name)),
            amount => drop(generic.insert(name.clone(), *amount)),
        }
    }
    Ok(Resources { generic, ..Resources::default() })
}

fn taints(node: &Node, wire: &v1::UpdateNodeRequest) -> Result<Vec<Taint>, TaintError> {
    let mut taints = node.taints.clone();
    for text in &wire.taints_remove {
        let gone: Toleration = text.parse()?;
        taints.retain(|taint| !gone.covers(taint));
    }
    for text in &wire.taints_add {
        let new: Taint = text.parse()?;
        taints.retain(|taint| taint.key != new.key || taint.effect != new.effect);
        taints.push(new);
    }
    // The same whatever order they were given in.
    taints.sort_unstable();
    check_taints(&taints)?;
    Ok(taints)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::node;

    #[track_caller]
    fn check(edit: impl FnOnce(&mut v1::UpdateNodeRequest), expected: &str) {
        let mut wire = v1::UpdateNodeRequest::default();
        edit(&mut wire);
        let mut node = node('a');
        node.generic.insert("gpu".into(), 2);
        node.taints = vec!["gpu:no-schedule".parse().unwrap()];
        let got = match mutations(&node, &wire) {
            Err(refusal) => refusal.to_string(),
            Ok(mutations) => {
                let one = |mutation: &Mutation| match mutation {
                    Mutation::SetResources { generic, system_reserved, defaults, .. } => {
                        format!("{generic:?} [{system_reserved}] {defaults}").trim().to_owned()
                    }
                    Mutation::SetTaints { taints, .. } => {
                        taints.iter().map(|taint| format!("{taint} ")).collect()
                    }
                    other => format!("{other:?}"),
                };
                mutations.iter().map(one).collect::<Vec<_>>().join(", ")
            }
        };
        assert_eq!(got.trim(), expected);
    }

    fn amount(name: &str, amount: u64) -> v1::Amount {
        v1::Amount { name: name.into(), amount }
    }

    #[test]
    fn resources() {
        check(|_| {}, "");
        check(|w| w.generic = vec![amount("gpu", 2)], "");
        check(|w| w.generic = vec![amount("gpu", 4)], "{\"gpu\": 4} []");
        check(|w| w.generic = vec![amount("gpu", 0), amount("fpga", 1)], "{\"fpga\": 1} []");
        check(
            |w| w.generic = vec![amount("GPU", 1)],
            "resource: \"GPU\" is not a name of a resource: a-z, 0-9, '-', '_' and '.', a letter \
             first, at most 63 characters",
        );
        check(
            |w| w.generic = vec![amount("a.b/gpu", 1)],
            "resource: \"a.b/gpu\" is a kind of devices: nodes tell how many they have",
        );
        let half = v1::Resources { memory_bytes: 1 << 29, ..v1::Resources::default() };
        check(|w| w.system_reserved = Some(half), "{\"gpu\": 2} [memory=512MiB]");
    }

    #[test]
    fn defaults() {
        let limit = |bytes| v1::Limits { memory_bytes: Some(bytes), ..v1::Limits::default() };
        let all = v1::Defaults {
            reserve_cpu_millis: Some(100),
            reserve_memory_bytes: Some(64 << 20),
            limits: Some(limit(32 << 20)),
        };
        check(
            |w| w.defaults = Some(all),
            "default_limit_memory: 32MiB is less than the 64MiB that are reserved by default; raise \
             it or lower --default-reserve-memory",
        );
        let all = v1::Defaults { limits: Some(limit(64 << 20)), ..all };
        check(
            |w| w.defaults = Some(all),
            "{\"gpu\": 2} [] reserve-cpu=0.1 reserve-memory=64MiB limit-memory=64MiB",
        );
        let none = v1::Defaults { reserve_cpu_millis: Some(0), limits: Some(limit(0)), ..all };
        check(|w| w.defaults = Some(none), "{\"gpu\": 2} [] reserve-memory=64MiB");
        check(|w| w.defaults = Some(v1::Defaults::default()), "");
    }

    #[test]
    fn taints() {
        let texts = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        check(|w| w.taints_add = texts("gpu"), "");
        check(|w| w.taints_add = texts("gpu=a"), "gpu=a:no-schedule");
        check(
            |w| w.taints_add = texts("gpu:no-execute a"),
            "a:no-schedule gpu:no-schedule gpu:no-execute",
        );
        check(|w| w.taints_remove = texts("gpu"), "");
        check(|w| (w.taints_remove, w.taints_add) = (texts("*"), texts("b=1")), "b=1:no-schedule");
        check(
            |w| w.taints_add = texts("gpu:never"),
            "taint: \"never\" is not an effect; write no-schedule, prefer-no-schedule or no-execute",
        );
    }
}
