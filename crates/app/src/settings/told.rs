//! How others reach a node, as it was told when it was made: flags of `cluster init`, `node join`
//! and `cluster restore` that hold for its later runs as well, unless something says otherwise.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Given, NodeFlags};
use crate::identity::Identity;

/// As written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Told {
    #[serde(skip_serializing_if = "Option::is_none")]
    listen: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    overlay_port: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wireguard: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profile: Option<String>,
}

impl Told {
    pub(super) fn by(flags: &NodeFlags) -> Self {
        Self {
            listen: flags.listen.clone(),
            advertise: flags.advertise.clone(),
            overlay_port: flags.overlay_port.clone(),
            wireguard: flags.wireguard.clone(),
            profile: flags.profile.clone(),
        }
    }

    /// What the node in this folder was told. One that cannot be read is told when it is to run.
    pub(super) fn of(data_dir: &Path) -> Self {
        let known = Identity::read(data_dir).ok().flatten();
        known.map(|identity| identity.told).unwrap_or_default()
    }

    pub(super) fn get(&self, key: &str) -> Option<Given> {
        let text = match key {
            "listen" => &self.listen,
            "advertise" => &self.advertise,
            "overlay_port" => &self.overlay_port,
            "wireguard" => &self.wireguard,
            "profile" => &self.profile,
            _ => &None,
        };
        let source = format!("--{} when the node was made", key.replace('_', "-"));
        text.clone().map(|text| Given { text, source })
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
