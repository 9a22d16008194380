//! How this manager reaches the others: given by whoever has the sockets.

use tonic::transport::Channel;

use crate::core::Core;
use crate::refusal::Refusal;

/// A manager nearby answers within milliseconds; one that takes longer is as good as gone.
const CONNECT_MS: u64 = 1000;

/// Ways to other managers. Errors are texts for people: all that is done about one is to tell it.
#[tonic::async_trait]
pub trait Peers: Send + Sync + 'static {
    /// A gRPC channel with this node's certificate, kept open between calls if that pays.
    async fn channel(&self, number: u64, address: &str) -> Result<Channel, String>;
}

pub(crate) async fn channel(core: &Core, number: u64, address: &str) -> Result<Channel, Refusal> {
    let unreachable =
        |why: String| Refusal::unavailable(format!("manager {address} cannot be reached: {why}"));
    let Some(peers) = &core.peers else {
        return Err(unreachable("this manager is alone".to_owned()));
    };
    tokio::select! {
        channel = peers.channel(number, address) => channel.map_err(unreachable),
        () = core.clock.sleep(CONNECT_MS) => Err(unreachable("no answer".to_owned())),
    }
}
