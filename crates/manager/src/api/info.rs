//! What this manager is and sees.

use warren_base::build;
use warren_proto::v1;

use crate::api::authorize::Who;
use crate::core::Core;
use crate::dispatch::membership;
use crate::quorum;
use crate::refusal::Refusal;

pub(super) async fn info(core: &Core, who: &Who) -> v1::Info {
    let view = core.store.view();
    let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
    let group = quorum::group(core);
    let leader = group.leader.and_then(|number| view.node_by_number(number));
    // Managers ask each other this to see whether they are there: that must not go round.
    let reachable = if who.relayed { 0 } else { core.reach.lately(core).await.there.len() };
    let cluster = view.cluster();
    v1::Info {
        version: build::VERSION.to_owned(),
        cluster_id: core.cluster_id.as_bytes().to_vec(),
        node_id: core.node_id.as_bytes().to_vec(),
        revision: view.revision(),
        nodes: count(view.nodes().len()),
        services: count(view.services().len()),
        tasks: count(view.tasks().len()),
        leader: leader.map(|node| node.id.as_bytes().to_vec()).unwrap_or_default(),
        leader_name: leader.map(|node| node.description.hostname.clone()).unwrap_or_default(),
        manager_addresses: membership::managers(&view),
        manager: true,
        managers: count(view.nodes().filter(|node| node.manager).count()),
        managers_reachable: count(reachable),
        stale_ms: quorum::stale_ms(core),
        epoch: cluster.map_or(0, |cluster| cluster.epoch),
        locked: cluster.is_some_and(|cluster| cluster.unlock_key.is_some()),
    }
}

/// Of this manager's daemon, until it ends.
pub(super) fn set_log_level(
    core: &Core,
    who: &Who,
    filter: &str,
) -> Result<v1::SetLogLevelResponse, Refusal> {
    let before = (core.set_log_level)(filter).map_err(Refusal::bad_input)?;
    tracing::info!(principal = who.principal.as_str(), filter, before, "log level changed");
    Ok(v1::SetLogLevelResponse { before })
}
