//! The data plane: the process of a node that must not stop when its daemon does.
//!
//! ```text
//! daemon: Keeper ──tables, askers, keys, descriptors──▶ process: control ─▶ names ─▶ DNS server
//!                ◀──what it does, what it holds──                        └─▶ peers ─▶ WireGuard
//! ```
//!
//! The process answers containers' questions about names and carries what they send to other nodes. It
//! knows only what it was told, keeps the last of it in memory, and outlives whoever told it. A
//! [`Keeper`], in the daemon, starts it, finds it again, tells it what changed, and starts
//! another where it died.
//!
//! **Descriptors.** The daemon makes the sockets and the queues of the tunnel's device; both
//! processes hold them. So whichever of the two is killed, nothing is unbound: questions and
//! datagrams wait in the kernel for the next process, which has the same sockets. Only when both
//! are gone are they made anew.
//!
//! Rules that always hold:
//! - keys are told over a socket that only root can open; they are in no argument, no
//!   environment, no file and no log of this crate;
//! - what is told is whole: a process has all of a change or none of it;
//! - of several changes the newest alone is told.
//!
//! Not here: rules and routes of the kernel (`net`), what is in the tables (`manager`), how keys
//! are kept, names over IPv6 transport (containers ask at an IPv4 address, for both families).

mod asker;
mod descriptors;
mod frame;
mod keep;
mod mark;
mod names;
mod peers;
mod serve;
mod wire;

pub use asker::Asker;
pub use keep::{End, Error, Handle, Keeper, Options, Overlay};
pub use names::Names;
pub use peers::{Skipped, has_peers, peers, relayed};
pub use serve::{Failure, run};
pub use wire::{DnsCounters, LostPeer, PeerStatus, RelayStatus, Status};
