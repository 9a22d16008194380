//! Secrets of a node and identities of a cluster.
//!
//! At rest: a node has one *key file* (a wrapping key, mode 0600, kept wherever
//! the operator wants) and *key rings* (data keys, wrapped by the key file), one
//! beside each thing that is sealed. Files are sealed with keys derived from a
//! data key and a random salt of their own, so that no nonce is used twice.
//!
//! Between machines: an *authority* issues certificates to nodes and operators,
//! *tokens* let nodes join, *credentials* are what a running process shows and
//! trusts, and `tls` makes configurations from them.
//!
//! Key material is zeroed when dropped and has no `Debug`.
//!
//! Not here: who may do what (the manager's), revocation (the state's), sockets.

pub mod backup;
pub mod bundle;
pub mod ca;
pub mod credentials;
pub mod key;
pub mod key_file;
pub mod key_ring;
pub mod node_files;
pub mod peer;
pub mod seal;
#[cfg(test)]
mod testing;
mod text;
pub mod tls;
pub mod token;
pub mod tunnel_key;
pub mod unlock;
mod x509;

pub use backup::{BackupError, BackupKey, BackupLock, BackupUnlock, Recipient};
pub use bundle::{Bundle, BundleError};
pub use ca::{Authority, AuthorityError, IssueError, Issued, Subject};
pub use credentials::{Credentials, Identity, IdentityError};
pub use key::{Hash, KeyError, NodeKey};
pub use key_file::{KeyFile, KeyFileError};
pub use key_ring::{DataKey, KeyRing, KeyRingError};
pub use node_files::{CertificateFileError, read_certificate, write_certificate};
pub use peer::{Peer, PeerError, PeerRole};
pub use seal::{Opener, SEAL_OVERHEAD, SealError, Sealer};
pub use tls::{Refusal, TlsError, client_config, join_config, refusal, server_config, server_name};
pub use token::{ApiToken, JoinRole, JoinToken, TokenError, TokenRefusal};
pub use tunnel_key::{TunnelKey, TunnelKeyError, read_tunnel_keys, write_tunnel_keys};
pub use unlock::{UnlockKey, UnlockKeyError};
