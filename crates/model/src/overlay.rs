//! How containers' packets travel between the nodes of a cluster.

use std::fmt;
use std::str::FromStr;

/// Chosen when a cluster is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OverlayKind {
    /// Through an encrypted device that each node has (WireGuard).
    Wireguard,
    /// In datagrams of VXLAN (RFC 7348), not encrypted. Clusters that say nothing have it.
    #[default]
    Vxlan,
    /// As they are, by routes: the nodes share a segment, nothing is encrypted.
    None,
}

impl OverlayKind {
    pub const ALL: [Self; 3] = [Self::Wireguard, Self::Vxlan, Self::None];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Wireguard => "wireguard",
            Self::Vxlan => "vxlan",
            Self::None => "none",
        }
    }
}

impl fmt::Display for OverlayKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no overlay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no overlay; there are wireguard, vxlan and none")]
pub struct OverlayKindError(pub String);

impl FromStr for OverlayKind {
    type Err = OverlayKindError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = Self::ALL.into_iter().find(|kind| kind.as_str() == text);
        named.ok_or_else(|| OverlayKindError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_as_text() {
        for kind in OverlayKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert_eq!(
            "geneve".parse::<OverlayKind>().unwrap_err().to_string(),
            "\"geneve\" is no overlay; there are wireguard, vxlan and none"
        );
        assert!("Vxlan".parse::<OverlayKind>().is_err());
    }
}
