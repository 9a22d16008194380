//! Bytes that nobody may read by accident: keys.
//!
//! Shared, so that cloning what holds one copies a pointer; wiped when the last
//! holder lets go; never printed. Copies that others make (messages, buffers)
//! are theirs to wipe.

use std::fmt;
use std::sync::Arc;

use zeroize::Zeroizing;

#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<Zeroizing<Vec<u8>>>);

impl Secret {
    /// Takes the bytes over without copying them.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(Arc::new(Zeroizing::new(bytes)))
    }

    /// The bytes, for whoever seals or uses them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_not_printed() {
        let secret = Secret::new(b"abc".to_vec());
        assert_eq!(format!("{secret:?}"), "…");
        assert_eq!(secret.clone(), secret);
        assert_eq!(secret.expose(), b"abc");
    }
}
