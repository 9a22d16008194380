//! Who a node is: written once when it is made, read at each start.
//!
//! The file is written last of all that makes a node: where it is, everything
//! else is complete; where it is not, nothing was promised to anybody.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use warren_base::file::write_atomic;
use warren_base::rng::Rng;
use warren_model::{Cluster, ClusterId, NodeId};

use crate::settings::Told;

const FILE_NAME: &str = "node.json";
/// Raised when the meaning of the file changes.
const VERSION: u32 = 1;
/// Characters of the node id that tell apart what several nodes put into one
/// kernel: 40 bits, and short enough for names of links.
const KEY_LEN: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not a node's identity: {problem}")]
    Content { path: PathBuf, problem: String },
    #[error("write {path}")]
    Write { path: PathBuf, source: std::io::Error },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) node: NodeId,
    pub(crate) cluster: ClusterId,
    /// What it was when it was last looked at; the cluster may have changed its mind since.
    pub(crate) role: Role,
    /// Its store was completed once: an empty one would be one that forgot its votes.
    pub(crate) stored: bool,
    /// What it was told when it was made, for its later runs.
    pub(crate) told: Told,
}

/// What a node does, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Role {
    /// Its number among the managers, if it is one.
    pub(crate) manager: Option<u64>,
    pub(crate) worker: bool,
}

impl Default for Role {
    /// Of files that do not say: those of single nodes.
    fn default() -> Self {
        Self { manager: Some(Cluster::FIRST_NUMBER), worker: true }
    }
}

#[derive(Serialize, Deserialize)]
struct Written {
    version: u32,
    node_id: String,
    cluster_id: String,
    #[serde(default)]
    role: Role,
    #[serde(default = "yes")]
    stored: bool,
    #[serde(default, skip_serializing_if = "Told::is_empty")]
    told: Told,
}

/// Files that do not say are those of single nodes, which have a store.
fn yes() -> bool {
    true
}

impl Identity {
    /// A new node of a new cluster.
    pub(crate) fn random(rng: &dyn Rng, worker: bool) -> Self {
        Self {
            node: NodeId::from_bytes(rng.id_bytes()),
            cluster: ClusterId::from_bytes(rng.id_bytes()),
            role: Role { worker, ..Role::default() },
            stored: true,
            told: Told::default(),
        }
    }

    /// Names of links, cgroups and tables of this node derive from it.
    pub(crate) fn key(&self) -> String {
        self.node.to_string().chars().take(KEY_LEN).collect()
    }

    /// The identity in `data_dir`, if a node was made there.
    pub(crate) fn read(data_dir: &Path) -> Result<Option<Self>, Error> {
        let path = data_dir.join(FILE_NAME);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::Read { path, source }),
        };
        parse(&bytes).map(Some).map_err(|problem| Error::Content { path, problem })
    }

    pub(crate) fn write(&self, data_dir: &Path) -> Result<(), Error> {
        let path = data_dir.join(FILE_NAME);
        let written = Written {
            version: VERSION,
            node_id: self.node.to_string(),
            cluster_id: self.cluster.to_string(),
            role: self.role,
            stored: self.stored,
            told: self.told.clone(),
        };
        serde_json::to_vec_pretty(&written)
            .map_err(std::io::Error::from)
            .and_then(|bytes| write_atomic(&path, &bytes, 0o600))
            .map_err(|source| Error::Write { path, source })
    }
}

fn parse(bytes: &[u8]) -> Result<Identity, String> {
    let written: Written = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if written.version != VERSION {
        return Err(format!("version {} is not {VERSION}", written.version));
    }
    Ok(Identity {
        node: written.node_id.parse().map_err(|e| format!("node_id: {e}"))?,
        cluster: written.cluster_id.parse().map_err(|e| format!("cluster_id: {e}"))?,
        role: written.role,
        stored: written.stored,
        told: written.told,
    })
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;

    #[test]
    fn round_trip_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(Identity::read(dir.path()), Ok(None)));
        let identity = Identity::random(&SeededRng::new(1), true);
        identity.write(dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(identity.clone()));
        assert_eq!(identity.key().len(), 8);
        let role = Role { manager: None, worker: true };
        let worker = Identity { role, stored: false, ..identity.clone() };
        worker.write(dir.path()).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(worker));
        // Of before there were roles.
        let old = format!(
            r#"{{"version":1,"node_id":"{}","cluster_id":"{}"}}"#,
            identity.node, identity.cluster
        );
        std::fs::write(dir.path().join(FILE_NAME), old).unwrap();
        assert_eq!(Identity::read(dir.path()).unwrap(), Some(identity));
        for damage in ["", "{}", r#"{"version":2,"node_id":"","cluster_id":""}"#] {
            std::fs::write(dir.path().join(FILE_NAME), damage).unwrap();
            let error = Identity::read(dir.path()).unwrap_err();
            assert!(matches!(error, Error::Content { .. }), "{damage:?}: {error}");
        }
    }
}
