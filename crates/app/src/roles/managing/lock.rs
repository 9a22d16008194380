//! The key file of this manager, locked or open as the cluster wants it.

use std::sync::Arc;
use std::time::Duration;

use warren_store::Store;
use warren_trust::UnlockKey;

use crate::roles::failed;
use crate::roles::node::Shared;

/// After a disk that refused.
const RETRY: Duration = Duration::from_secs(5);

/// Runs as long as the store does.
pub(super) async fn keep(shared: Arc<Shared>, store: Store) {
    let mut moved = store.watch();
    let mut seen = None;
    loop {
        let view = store.view();
        // Settings and nodes change seldom; everything else does not matter here.
        if view.cluster().is_some() && seen != Some(view.topology()) {
            let kept = view.cluster().and_then(|cluster| cluster.unlock_key.as_ref());
            let wanted = kept.and_then(UnlockKey::from_state);
            match write(&shared, wanted).await {
                Ok(changed) => {
                    seen = Some(view.topology());
                    if changed {
                        tracing::info!(locked = kept.is_some(), "the key file was written anew");
                    }
                }
                Err(error) => {
                    tracing::error!(error, "the key file is not locked as it should be");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if moved.changed().await.is_err() {
            return;
        }
    }
}

/// Locks or opens the key file; says whether that had to be done.
pub(in crate::roles) async fn write(
    shared: &Arc<Shared>,
    wanted: Option<UnlockKey>,
) -> Result<bool, String> {
    let shared = Arc::clone(shared);
    let written = tokio::task::spawn_blocking(move || {
        shared.key.set_lock(wanted.as_ref(), shared.rng.as_ref())
    });
    match written.await {
        Ok(outcome) => outcome.map_err(|error| failed(&error).message),
        Err(_) => Err("the write was interrupted".to_owned()),
    }
}
