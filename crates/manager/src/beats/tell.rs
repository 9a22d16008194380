//! What this manager hears of nodes reaches the leader, or its sessions end.
//!
//! While there are sessions, a manager that does not lead tells the leader
//! every [`TELL_MS`] whom it heard since. An answer proves that the leader is
//! there and knows; without one for [`ALONE_MS`] the sessions are worth nothing
//! to their nodes, which look for another manager. The leader itself has
//! nothing to tell. Without sessions nothing is sent.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use tokio::sync::watch;
use warren_model::NodeId;
use warren_proto::v1;
use warren_proto::v1::peer_beats::{Cuts, Heard};
use warren_store::Beats;

use crate::beats::stall::is_doubtful;
use crate::core::Core;
use crate::dispatch::sessions::End;
use crate::relays::book;

/// Small against any suspicion, large against the work of one message.
const TELL_MS: u64 = 250;
/// As long as an agent waits for its manager, so that it learns within two seconds.
pub(crate) const ALONE_MS: u64 = 1000;
/// A leader that takes longer to answer is asked again.
const ANSWER_MS: u64 = 500;
/// Between tries to tell it of a node that waits.
const AGAIN_MS: u64 = 50;
/// What a node says is told again for so long: another manager may still tell what it said before it
/// moved its session here.
const CUTS_AGAIN_MS: u64 = 3000;
/// Of one message: no cluster is larger.
const HEARD_MAX: usize = 20_000;

/// The store is closed: this manager was dismissed, or stops.
struct Closed;

/// Runs until the manager stops.
pub(crate) async fn run(core: Arc<Core>) {
    let mut seated = core.sessions.count();
    while seated.wait_for(|count| *count > 0).await.is_ok() {
        if let Err(Closed) = host(&core, &mut seated).await {
            // Nobody is told of them any more. Their nodes look for another manager.
            core.sessions.end_all(End::NoLeader);
            return;
        }
    }
}

/// As long as there are sessions.
async fn host(core: &Core, seated: &mut watch::Receiver<usize>) -> Result<(), Closed> {
    let mut leads = core.store.leader();
    let mut contact_ms = core.clock.monotonic_ms();
    let mut told_ms = 0;
    while *seated.borrow() > 0 {
        let now_ms = core.clock.monotonic_ms();
        core.beats.stalled_until(now_ms);
        if *leads.borrow_and_update() {
            tokio::select! {
                changed = leads.changed() => changed.map_err(|_| Closed)?,
                _ = seated.wait_for(|count| *count == 0) => return Ok(()),
            }
            // What was heard until now the next leader has to hear again.
            (contact_ms, told_ms) = (core.clock.monotonic_ms(), 0);
            continue;
        }
        let left_ms = (contact_ms + ALONE_MS).saturating_sub(now_ms).max(1);
        if tell(core, told_ms, left_ms.min(ANSWER_MS)).await {
            // A beat of the same millisecond may have come after the look.
            (contact_ms, told_ms) = (now_ms, now_ms.saturating_sub(1));
        }
        if core.clock.monotonic_ms() >= contact_ms + ALONE_MS {
            tracing::warn!("no leader answers: sessions of nodes are closed");
            core.sessions.end_all(End::NoLeader);
            return Ok(());
        }
        tokio::select! {
            () = core.clock.sleep_until(now_ms + TELL_MS) => {}
            changed = leads.changed() => changed.map_err(|_| Closed)?,
            _ = seated.wait_for(|count| *count == 0) => return Ok(()),
        }
    }
    Ok(())
}

/// Tells the leader of a node that is here now, until it was told.
pub(crate) async fn at_once(core: &Core, node: NodeId) {
    loop {
        if *core.store.leader().borrow() {
            return core.beats.heard(node, core.clock.monotonic_ms(), 0);
        }
        let heard = vec![Heard { node: node.as_bytes().to_vec(), ago_ms: 0, rtt_ms: 0 }];
        if send(core, heard, Vec::new(), ANSWER_MS).await {
            return;
        }
        core.clock.sleep(AGAIN_MS).await;
    }
}

/// Says whether the leader has heard.
async fn tell(core: &Core, told_ms: u64, wait_ms: u64) -> bool {
    let now_ms = core.clock.monotonic_ms();
    let heard = core.sessions.heard_after(told_ms).into_iter().map(|(node, at_ms, rtt_ms)| Heard {
        node: node.as_bytes().to_vec(),
        ago_ms: u32::try_from(now_ms.saturating_sub(at_ms)).unwrap_or(u32::MAX),
        rtt_ms,
    });
    let told = core.sessions.cuts_after(told_ms, now_ms.saturating_sub(CUTS_AGAIN_MS));
    let cuts = told
        .into_iter()
        .map(|(node, cuts)| Cuts { node: node.as_bytes().to_vec(), cuts: book::wire(&cuts) });
    send(core, heard.collect(), cuts.collect(), wait_ms).await
}

async fn send(core: &Core, heard: Vec<Heard>, cuts: Vec<Cuts>, wait_ms: u64) -> bool {
    let beats = v1::PeerBeats { heard, closed: Vec::new(), cuts };
    let told = core.store.tell_leader(Bytes::from(beats.encode_to_vec()));
    tokio::select! {
        told = told => match told {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(%error, "tell the leader of beats");
                false
            }
        },
        () = core.clock.sleep(wait_ms) => false,
    }
}

/// Takes what other managers tell, for as long as the store goes on. What comes while this manager
/// does not lead is of no use: the next one is told again.
pub(crate) async fn listen(core: Arc<Core>) {
    let Some(mut told) = core.store.beats() else { return };
    while let Some(Beats { from, payload }) = told.recv().await {
        let now_ms = core.clock.monotonic_ms();
        // What waited while this process did not run is told again, if it still is so.
        let waited = is_doubtful(core.beats.stalled_until(now_ms), now_ms);
        if *core.store.leader().borrow()
            && !waited
            && let Err(error) = hear(&core, &payload)
        {
            tracing::warn!(from, error, "beats of another manager");
        }
    }
}

fn hear(core: &Core, payload: &[u8]) -> Result<(), String> {
    let beats = v1::PeerBeats::decode(payload).map_err(|error| error.to_string())?;
    let found = beats.heard.len();
    if found > HEARD_MAX {
        return Err(format!("{found} nodes, at most {HEARD_MAX} are read"));
    }
    let now_ms = core.clock.monotonic_ms();
    let view = core.store.view();
    for heard in beats.heard {
        let Ok(bytes) = heard.node.as_slice().try_into() else { continue };
        let node = NodeId::from_bytes(bytes);
        // A member that we do not know yet comes again with the next message.
        if view.node(node).is_some() {
            let at_ms = now_ms.saturating_sub(u64::from(heard.ago_ms));
            core.beats.heard(node, at_ms, heard.rtt_ms);
        }
    }
    for told in beats.cuts.into_iter().take(HEARD_MAX) {
        let node = warren_proto::node_id("cuts.node", &told.node);
        if let Ok(node) = node
            && view.node(node).is_some()
        {
            core.cuts.tell(node, book::cuts(told.cuts));
        }
    }
    Ok(())
}
