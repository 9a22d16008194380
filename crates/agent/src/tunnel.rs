//! Whoever carries packets to other nodes encrypted, as the agent asks it.
//!
//! Not here: carrying them, when keys are replaced (`rotation`).

use async_trait::async_trait;
use tokio::sync::watch;

/// Carries packets.
#[async_trait]
pub trait Tunnel: Send + Sync + 'static {
    /// What it does now; `None` if it does not answer. Ends by itself, within a second or two.
    async fn state(&self) -> Option<TunnelState>;

    /// This node's own keys, the one that is offered first; none: there is no tunnel.
    fn keys(&self) -> Vec<OwnKey>;

    /// Other nodes that are not reached on the direct way, whenever that changes; `None` until it is
    /// known.
    fn lost(&self) -> watch::Receiver<Option<Vec<LostPeer>>>;

    /// Changes them; on disk, and carried by, when this returns.
    ///
    /// # Errors
    /// The disk refuses; all is as it was then.
    async fn change_keys(&self, change: KeyChange) -> std::io::Result<()>;
}

/// Another node that is not reached on the direct way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostPeer {
    /// Its public key.
    pub key: [u8; 32],
    /// Nor by the node that passes on, if there is one.
    pub via_lost: bool,
}

/// A key of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnKey {
    /// Its public half.
    pub public: [u8; 32],
    /// Milliseconds since the epoch.
    pub made_ms: u64,
}

/// A step from one key to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyChange {
    /// A second key is made. It is accepted, and not offered yet.
    Make,
    /// The second is offered from now on, the first is still accepted.
    Offer,
    /// Only the one that is offered is left.
    Forget,
}

/// What is carried, and for whom.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelState {
    /// Whether anything is.
    pub carries: bool,
    /// Why not, if it should be.
    pub trouble: Option<String>,
    pub peers: Vec<TunnelPeer>,
}

/// Another node, as the tunnel knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TunnelPeer {
    /// Its public key.
    pub key: [u8; 32],
    /// Address and port; empty: nobody knows.
    pub endpoint: String,
    /// How long ago a handshake was last done.
    pub handshake_ago_ms: Option<u64>,
    /// How long ago anything of it came in, attempts at handshakes included.
    pub heard_ago_ms: Option<u64>,
    /// Handshakes that were begun here and never answered.
    pub failed: u64,
    /// It is not reached on the direct way.
    pub lost: bool,
    /// Nor by the node that passes on.
    pub via_lost: bool,
}
