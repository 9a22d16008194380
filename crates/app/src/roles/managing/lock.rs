//! The key file of this manager, locked or open as the cluster wants it.
//!
//! A manager that starts knows no more than its last snapshot, which may be
//! older than the lock. So a key file that is locked is left as it is until the
//! state has been confirmed by a majority in this life; an open one may be
//! locked by what was known before.

use std::sync::Arc;
use std::time::Duration;

use warren_store::Store;
use warren_trust::{KeyFile, KeyFileError, UnlockKey};

use crate::roles::failed;
use crate::roles::node::Shared;

/// After a disk that refused.
const RETRY: Duration = Duration::from_secs(5);
/// After a majority that was there and is not; asking it takes longer.
const CONFIRM_PAUSE: Duration = Duration::from_millis(200);

/// Runs as long as the store does.
pub(super) async fn keep(shared: Arc<Shared>, store: Store) {
    let mut moved = store.watch();
    let (mut seen, mut confirmed) = (None, false);
    loop {
        let view = store.view();
        // Settings and nodes change seldom; everything else does not matter here.
        if view.cluster().is_some() && seen != Some(view.topology()) {
            if !confirmed && is_locked(&shared).await {
                if !confirm(&store).await {
                    return;
                }
                confirmed = true;
                continue;
            }
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

/// Resolves once the view has everything that a majority agreed on before; false when the store
/// has ended.
async fn confirm(store: &Store) -> bool {
    let mut in_touch = store.in_touch();
    if !*in_touch.borrow() {
        tracing::info!("the key file stays locked until a majority says how it is to be");
    }
    loop {
        if in_touch.wait_for(|in_touch| *in_touch).await.is_err() {
            return false;
        }
        match store.read_barrier().await {
            Ok(()) => return true,
            Err(error) => tracing::debug!(%error, "a majority was there and did not answer"),
        }
        tokio::time::sleep(CONFIRM_PAUSE).await;
    }
}

async fn is_locked(shared: &Arc<Shared>) -> bool {
    let path = shared.files.key();
    let read = tokio::task::spawn_blocking(move || KeyFile::read(&path));
    matches!(read.await, Ok(Err(KeyFileError::Locked { .. })))
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
