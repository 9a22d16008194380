//! The files that make a node one: wrapping key, certificate, identity.
//!
//! Whatever moment the process is killed at, what is there can be gone on with:
//! a key that joins is on disk before anybody hears of it (`joining`), so that
//! the next try is the same node; the certificate is there before the identity,
//! which is written last and says that all is complete.

use std::path::{Path, PathBuf};

use warren_base::file::sync_folder;
use warren_base::rng::{Rng, SystemRng};
use warren_model::{ClusterId, NodeId, Time};
use warren_trust::node_files::{CertificateFileError, read_certificate, write_certificate};
use warren_trust::{Authority, Bundle, Identity, KeyFile, NodeKey, Subject};

use super::failed;
use crate::cli::failure::Failure;

const KEY: &str = "node.key";
const CERTIFICATE: &str = "certificate";
const JOINING: &str = "joining";
const STORE: &str = "store";
const AGENT: &str = "agent";
const TUNNEL: &str = "tunnel";
const IDENTITY: &str = "node.json";
/// What is remembered between lives and is no secret.
pub(super) const REMEMBERED: &str = "remembered.json";

/// Of the throwaway certificate that a joining key is kept with.
const JOINING_LIFETIME: std::time::Duration = std::time::Duration::from_secs(86_400);

/// Where a node keeps what it is.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    data_dir: PathBuf,
}

impl Files {
    pub(crate) fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned() }
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.data_dir.join(KEY)
    }

    /// The sealed key of the tunnel to other nodes.
    pub(crate) fn tunnel(&self) -> PathBuf {
        self.data_dir.join(TUNNEL)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.data_dir.join(STORE)
    }

    /// The node's certificate and key.
    ///
    /// # Errors
    /// The file is missing, damaged, of another node.
    pub(crate) fn certificate(&self, key: &KeyFile) -> Result<Identity, CertificateFileError> {
        read_certificate(&self.data_dir.join(CERTIFICATE), key)
    }

    /// Keeps a new certificate.
    ///
    /// # Errors
    /// The disk refuses; the old one is as it was.
    pub(crate) fn keep(
        &self,
        identity: &Identity,
        key: &KeyFile,
    ) -> Result<(), CertificateFileError> {
        write_certificate(&self.data_dir.join(CERTIFICATE), identity, key, &SystemRng)
    }

    /// Id and key to join with: those of an earlier try, if there was one. They are on disk when
    /// this returns.
    ///
    /// # Errors
    /// The disk refuses, or the file of an earlier try is damaged.
    pub(crate) fn joining(
        &self,
        key: &KeyFile,
        rng: &dyn Rng,
        now: Time,
    ) -> Result<(NodeId, NodeKey), Failure> {
        let path = self.data_dir.join(JOINING);
        match read_certificate(&path, key) {
            Ok(earlier) => {
                let copy = NodeKey::from_pkcs8(earlier.key().pkcs8()).map_err(|e| failed(&e))?;
                let node = earlier.peer().node;
                return node
                    .map(|node| (node, copy))
                    .ok_or_else(|| Failure::failed(format!("{}: no node", path.display())));
            }
            Err(CertificateFileError::Missing { .. }) => {}
            Err(error) => {
                return Err(failed(&error).hint("remove the file to join as another node"));
            }
        }
        let node = NodeId::from_bytes(rng.id_bytes());
        let made = NodeKey::generate().map_err(|e| failed(&e))?;
        // Only whole identities are kept sealed: one by an authority that nobody knows.
        let nobody = ClusterId::from_bytes(rng.id_bytes());
        let authority = Authority::generate(nobody, now).map_err(|e| failed(&e))?;
        let request = made.signing_request(&node.to_string()).map_err(|e| failed(&e))?;
        let subject = Subject::Node { id: node, manager: false };
        let issued = authority.issue(&request, &subject, JOINING_LIFETIME, now);
        let issued = issued.map_err(|e| failed(&e))?;
        let copy = NodeKey::from_pkcs8(made.pkcs8()).map_err(|e| failed(&e))?;
        let kept =
            Identity::new(made, &issued.chain, authority.bundle()).map_err(|e| failed(&e))?;
        write_certificate(&path, &kept, key, rng).map_err(|e| failed(&e))?;
        Ok((node, copy))
    }

    /// The join is over.
    pub(crate) fn joined(&self) {
        // Left over it is only used by a join into the folder of a node, which is refused.
        let _ = std::fs::remove_file(self.data_dir.join(JOINING));
    }

    /// Removes the store of a node that is no manager any more.
    pub(crate) fn remove_store(&self) -> Result<(), Failure> {
        let folder = self.store();
        match std::fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::failed(format!("remove {}: {e}", folder.display())))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes all that made this a node. The identity goes first: without it the rest is
    /// nobody's, whatever happens next. Images and logs stay.
    pub(crate) fn forget(&self) -> Result<(), Failure> {
        let gone = |path: PathBuf, removed: std::io::Result<()>| match removed {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::failed(format!("remove {}: {e}", path.display())))
            }
            Ok(()) | Err(_) => Ok(()),
        };
        let file = |name: &str| {
            let path = self.data_dir.join(name);
            let removed = std::fs::remove_file(&path);
            gone(path, removed)
        };
        file(IDENTITY)?;
        sync_folder(&self.data_dir).map_err(|e| failed(&e))?;
        file(CERTIFICATE)?;
        file(JOINING)?;
        file(TUNNEL)?;
        file(REMEMBERED)?;
        self.remove_store()?;
        let agent = self.data_dir.join(AGENT);
        let removed = std::fs::remove_dir_all(&agent);
        gone(agent, removed)?;
        // Last: nothing that it wraps is left.
        file(KEY)
    }
}

/// Key, certificate and authorities as one.
///
/// # Errors
/// What came does not belong together.
pub(crate) fn assemble(
    key: &NodeKey,
    certificates: &[Vec<u8>],
    authorities: &[Vec<u8>],
) -> Result<Identity, Failure> {
    let copy = NodeKey::from_pkcs8(key.pkcs8()).map_err(|e| failed(&e))?;
    let bundle = Bundle::new(authorities).map_err(|e| failed(&e))?;
    Identity::new(copy, certificates, bundle).map_err(|e| failed(&e))
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;

    #[test]
    fn a_join_that_was_interrupted_goes_on_as_the_same_node() {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        let key = KeyFile::read_or_create(&files.key(), &SystemRng).unwrap();
        let rng = SeededRng::new(1);
        let now = Time(1_800_000_000_000);
        let (node, made) = files.joining(&key, &rng, now).unwrap();
        let (again, same) = files.joining(&key, &rng, now).unwrap();
        assert_eq!((node, made.key_hash()), (again, same.key_hash()));
        files.joined();
        let (other, fresh) = files.joining(&key, &rng, now).unwrap();
        assert!(other != node && fresh.key_hash() != made.key_hash());
        std::fs::write(dir.path().join(JOINING), "damaged").unwrap();
        let failure = files.joining(&key, &rng, now).err().unwrap();
        assert!(failure.message.contains("joining"), "{failure}");
    }

    #[test]
    fn what_is_forgotten_is_gone_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        for name in [KEY, CERTIFICATE, IDENTITY, JOINING, TUNNEL, REMEMBERED, "daemon.log"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        for name in [STORE, AGENT, "images", "logs"] {
            std::fs::create_dir_all(dir.path().join(name).join("x")).unwrap();
        }
        let files = Files::new(dir.path());
        files.forget().unwrap();
        files.forget().unwrap();
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["daemon.log", "images", "logs"]);
    }
}
