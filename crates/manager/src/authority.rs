//! The end of a rotation of the certificate authority, seen by the leader.
//!
//! The older authority is trusted until every node has a certificate by the
//! newer one. Nodes renew by themselves once they hear which one issues; a node
//! that is gone holds the rotation up until it is removed. Operators with a
//! certificate by the older authority are out afterwards: they ask for another.

use std::sync::Arc;

use warren_state::State;
use warren_trust::Authority;

use crate::api::cluster::{authority, change_settings};
use crate::core::Core;
use crate::refusal::Refusal;

/// Pause after a write that was not taken.
const RETRY_MS: u64 = 1000;

/// Runs as long as this manager leads.
pub(crate) async fn run(core: Arc<Core>) {
    let mut moved = core.store.watch();
    let mut seen = None;
    loop {
        let view = core.store.view();
        // What it depends on changes with the cluster's settings and with nodes alone.
        if seen.replace(view.topology()) != Some(view.topology())
            && is_over(&view)
            && let Err(refusal) = finish(&core).await
        {
            tracing::warn!(%refusal, "end the rotation of the certificate authority");
            core.clock.sleep(RETRY_MS).await;
            seen = None;
        }
        if seen.is_some() && moved.changed().await.is_err() {
            return;
        }
    }
}

/// Whether an older authority is trusted that nobody needs any more.
fn is_over(view: &State) -> bool {
    let Some(kept) = view.cluster().and_then(|cluster| cluster.ca.as_ref()) else { return false };
    if kept.certificates.len() < 2 {
        return false;
    }
    let Ok(authority) = Authority::from_state(kept) else { return false };
    let hash = authority.issuer_hash();
    view.nodes().all(|node| node.issuer_hash == hash)
}

async fn finish(core: &Core) -> Result<(), Refusal> {
    let revision = change_settings(core, None, None, |view, cluster| {
        // Somebody may have come in meanwhile.
        if is_over(view) {
            let finished = authority(cluster)?.finish_rotation();
            let finished =
                finished.map_err(|e| Refusal::failed(format!("end the rotation: {e}")))?;
            cluster.ca = Some(finished.to_state());
        }
        Ok(())
    });
    let revision = revision.await?;
    tracing::info!(revision, "the rotation of the certificate authority has ended");
    Ok(())
}
