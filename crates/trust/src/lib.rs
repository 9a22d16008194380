//! Secrets of a node: sealing of everything it writes to disk, and the keys for it.
//!
//! A node has one *key file* (a wrapping key, mode 0600, kept wherever the
//! operator wants) and *key rings* (data keys, wrapped by the key file), one
//! beside each thing that is sealed. Files are sealed with keys derived from a
//! data key and a random salt of their own, so that no nonce is used twice.
//!
//! Key material is zeroed when dropped and has no `Debug`.
//!
//! Not here: certificates and join tokens, which come with more than one node.

pub mod key_file;
pub mod key_ring;
pub mod seal;

pub use key_file::{KeyFile, KeyFileError};
pub use key_ring::{DataKey, KeyRing, KeyRingError};
pub use seal::{Opener, SEAL_OVERHEAD, SealError, Sealer};
