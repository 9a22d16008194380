//! When no other node sends connections to a container any more.
//!
//! Other nodes learn with the same revision of the state as this one that a task
//! is not wanted. Managers know when all of them act upon it and are asked,
//! once for all containers that stop with a revision. Where no manager answers,
//! nodes are given [`LINGER_MS`].

use tonic::Status;
use warren_proto::v1;
use warren_proto::v1::dispatch_client::DispatchClient;

use crate::worker::Tools;

/// What a kernel takes for a change, and then some.
const LINGER_MS: u64 = 150;
/// Managers answer within two seconds, whatever is the matter.
const WAIT_MS: u64 = 2_500;

/// The last revision that was waited for.
#[derive(Debug, Default)]
pub(crate) struct Parted {
    revision: tokio::sync::Mutex<u64>,
}

impl Parted {
    /// Waits until others act upon `revision`, or for as long as is sensible.
    pub(crate) async fn wait(&self, tools: &Tools, revision: u64) {
        // Held meanwhile: those that come wait for the same answer.
        let mut last = self.revision.lock().await;
        // Not an earlier one either: after a recovery revisions begin lower again.
        if *last == revision {
            return;
        }
        let began_ms = tools.clock.monotonic_ms();
        let answer = tokio::select! {
            answer = ask(tools, revision) => answer.map_err(|error| error.message().to_owned()),
            () = tools.clock.sleep(WAIT_MS) => Err("no answer".to_owned()),
        };
        match answer {
            Ok(true) => {}
            Ok(false) => tracing::warn!(revision, "other nodes are late with what changed"),
            Err(error) => {
                tracing::debug!(error, revision, "nobody says how far other nodes are");
                tools.clock.sleep_until(began_ms + LINGER_MS).await;
            }
        }
        *last = revision;
    }
}

/// Whether all have come so far.
async fn ask(tools: &Tools, revision: u64) -> Result<bool, Status> {
    let channel = tools.channel.borrow().clone();
    let channel = channel.ok_or_else(|| Status::unavailable("no session with a manager"))?;
    let node_id = tools.node.as_bytes().to_vec();
    let asked = v1::PartedRequest { node_id, revision, everyone: false };
    Ok(DispatchClient::new(channel).parted(asked).await?.into_inner().all)
}
