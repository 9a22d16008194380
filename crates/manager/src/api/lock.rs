//! The lock of the managers' key files, and the keys of their disks.
//!
//! Here only the wish and the key are made; each manager's daemon wraps its own
//! key file anew when it sees the setting change.

use tonic::Request;
use tonic::metadata::MetadataValue;
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;
use warren_trust::UnlockKey;

use crate::api::authorize::{RELAYED_KEY, Who};
use crate::api::cluster::{change_settings, settings};
use crate::api::request::{Content, request};
use crate::core::Core;
use crate::peers;
use crate::quorum;
use crate::refusal::Refusal;

/// For another manager to write a new data key and a snapshot sealed with it.
const ROTATE_MS: u64 = 30_000;

/// Locks, rotates the key, takes off the lock, or shows the key there is.
pub(super) async fn set(
    core: &Core,
    who: &Who,
    wire: v1::SetLockRequest,
) -> Result<v1::UnlockKeyText, Refusal> {
    if wire.off && wire.rotate {
        return Err(Refusal::bad_input("lock: is taken off and rotated at once"));
    }
    let content = Content::new("lock").with(&[u8::from(wire.off), u8::from(wire.rotate)]);
    let request = request(&who.principal, &wire.request_id, &content)?;
    let locked = settings(&core.store.view())?.unlock_key.is_some();
    if locked == wire.off || wire.rotate {
        let fresh = UnlockKey::generate(core.rng.as_ref());
        let write = change_settings(core, Some(who), request, |_, cluster| {
            cluster.unlock_key = (!wire.off).then(|| fresh.to_state());
            Ok(())
        });
        write.await?;
    }
    // What was written, be it by an earlier try of the same request.
    let view = core.store.view();
    let kept = settings(&view)?.unlock_key.as_ref();
    let key = kept.and_then(UnlockKey::from_state);
    Ok(v1::UnlockKeyText { key: key.map(|key| key.to_text().to_string()).unwrap_or_default() })
}

/// A manager that answers has its keys.
pub(super) fn is_open() -> Refusal {
    Refusal::not_now("this node is not locked").hint("nothing is to be done")
}

/// New keys for what managers write to their disks: this one's, and, asked by a person, all others'.
pub(super) async fn rotate_data_key(core: &Core, who: &Who) -> Result<(), Refusal> {
    let principal = who.principal.as_str();
    tracing::info!(principal, "asked for new data keys");
    core.store.rotate_data_key().await.map_err(|error| {
        Refusal::failed(format!("rotate the data key of this manager: {error}"))
    })?;
    if who.relayed {
        return Ok(());
    }
    let mut failed = Vec::new();
    for (number, address) in quorum::others(core) {
        if let Err(refusal) = ask(core, number, &address).await {
            failed.push(format!("{address}: {refusal}"));
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    let failed = failed.join("; ");
    Err(Refusal::unavailable(format!("some managers keep their data keys: {failed}"))
        .hint("the others have new ones; repeat it once all can be reached"))
}

async fn ask(core: &Core, number: u64, address: &str) -> Result<(), Refusal> {
    let channel = peers::channel(core, number, address).await?;
    let mut request = Request::new(v1::RotateDataKeyRequest {});
    request.metadata_mut().insert(RELAYED_KEY, MetadataValue::from_static("1"));
    let mut client = ControlClient::new(channel);
    tokio::select! {
        answer = client.rotate_data_key(request) => match answer {
            Ok(_) => Ok(()),
            Err(status) => Err(Refusal::of_status(&status)),
        },
        () = core.clock.sleep(ROTATE_MS) => Err(Refusal::unavailable("no answer")),
    }
}
