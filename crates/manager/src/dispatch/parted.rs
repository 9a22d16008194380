//! Whether all other nodes act upon a change: a container that was taken out of
//! the tables with it gets no new connections any more and may be stopped.
//!
//! Each node says with its reports how far its kernel has come. A manager knows
//! that of its own sessions and asks the others for theirs. Nodes that are not
//! heard of are not waited for: whoever cannot be heard by managers may still
//! send connections, but nobody could say when it stops to. A question about everyone (whether an
//! old key may go) counts them as missing instead.

use std::collections::BTreeSet;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::metadata::MetadataValue;
use tonic::{Request, Status};
use warren_model::NodeId;
use warren_proto::v1;
use warren_proto::v1::dispatch_client::DispatchClient;

use crate::api::authorize::{RELAYED_KEY, Who};
use crate::core::Core;
use crate::dispatch::sessions::Past;
use crate::peers;
use crate::quorum;
use crate::refusal::Refusal;

/// A kernel takes a change within milliseconds, that of a busy machine within tenths of a second.
/// Nobody's stop waits for longer than this.
const WAIT_MS: u64 = 2_000;

/// Answers when it is so, or after [`WAIT_MS`].
pub(super) async fn answer(
    core: &Core,
    who: &Who,
    asked: &v1::PartedRequest,
) -> Result<v1::PartedResponse, Status> {
    let node = warren_proto::node_id("node_id", &asked.node_id).map_err(Refusal::from)?;
    if !who.relayed {
        who.must_be(node)?;
    }
    if asked.everyone {
        let nodes = everyone(core, node, asked.revision, who.relayed).await;
        let all = !who.relayed && has_all(core, node, &nodes);
        let nodes = nodes.iter().filter(|_| who.relayed).map(|node| node.as_bytes().to_vec());
        return Ok(v1::PartedResponse { all, nodes: nodes.collect() });
    }
    let all = tokio::select! {
        all = everywhere(core, node, asked.revision, who.relayed) => all,
        () = core.clock.sleep(WAIT_MS) => false,
    };
    Ok(v1::PartedResponse { all, nodes: Vec::new() })
}

/// Those that act upon a revision, after waiting for those that are heard of.
async fn everyone(core: &Core, node: NodeId, revision: u64, relayed: bool) -> BTreeSet<NodeId> {
    let waited = async {
        tokio::select! {
            () = here(core, node, revision) => {}
            () = core.clock.sleep(WAIT_MS) => {}
        }
        core.sessions.passed(revision, core.clock.monotonic_ms())
    };
    if relayed {
        return waited.await.into_iter().collect();
    }
    let others = quorum::others(core);
    let asked = others.iter().map(|(number, address)| async {
        let request = ask_for(core, *number, address, node, revision, true);
        let answer = tokio::select! {
            answer = request => answer,
            () = core.clock.sleep(2 * WAIT_MS) => None,
        };
        let nodes = answer.map(|answer| answer.nodes).unwrap_or_default();
        nodes.iter().filter_map(|id| warren_proto::node_id("nodes", id).ok()).collect::<Vec<_>>()
    });
    let (own, elsewhere) = tokio::join!(waited, futures::future::join_all(asked));
    own.into_iter().chain(elsewhere.into_iter().flatten()).collect()
}

/// Whether all nodes that could use a key of `node` are among these.
fn has_all(core: &Core, node: NodeId, past: &BTreeSet<NodeId>) -> bool {
    let view = core.store.view();
    let users =
        view.nodes().filter(|other| other.id != node && other.description.overlay_key != [0; 32]);
    users.into_iter().all(|other| past.contains(&other.id))
}

async fn everywhere(core: &Core, node: NodeId, revision: u64, relayed: bool) -> bool {
    if relayed {
        here(core, node, revision).await;
        return true;
    }
    let others = quorum::others(core);
    let mut asked: FuturesUnordered<_> = others
        .iter()
        .map(|(number, address)| ask(core, *number, address, node, revision))
        .collect();
    let there = async {
        let mut all = true;
        while let Some(answer) = asked.next().await {
            all &= answer;
        }
        all
    };
    tokio::join!(here(core, node, revision), there).1
}

/// Until the sessions of this manager are past it.
async fn here(core: &Core, node: NodeId, revision: u64) {
    let mut moves = core.sessions.moves();
    loop {
        let Past::NotYet { again_ms } =
            core.sessions.past(node, revision, core.clock.monotonic_ms())
        else {
            return;
        };
        tokio::select! {
            moved = moves.changed() => if moved.is_err() { return },
            () = core.sleep_until(again_ms) => {}
        }
    }
}

/// A manager that cannot be asked has no sessions for long.
async fn ask(core: &Core, number: u64, address: &str, node: NodeId, revision: u64) -> bool {
    let answer = ask_for(core, number, address, node, revision, false).await;
    answer.is_some_and(|answer| answer.all)
}

async fn ask_for(
    core: &Core,
    number: u64,
    address: &str,
    node: NodeId,
    revision: u64,
    everyone: bool,
) -> Option<v1::PartedResponse> {
    let asked = async {
        let channel = peers::channel(core, number, address).await?;
        let asked = v1::PartedRequest { node_id: node.as_bytes().to_vec(), revision, everyone };
        let mut request = Request::new(asked);
        request.metadata_mut().insert(RELAYED_KEY, MetadataValue::from_static("1"));
        let answer = DispatchClient::new(channel).parted(request).await;
        answer.map_err(|status| Refusal::of_status(&status))
    };
    match asked.await {
        Ok(answer) => Some(answer.into_inner()),
        Err(error) => {
            tracing::debug!(address, %error, "ask a manager how far its nodes are");
            None
        }
    }
}
