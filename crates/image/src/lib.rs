//! Images of one node: references, pull, load, import, store, unpack.
//!
//! An image is a config plus layers that are unpacked once into folders for
//! overlayfs, content-addressed by chain id. Nothing here starts containers.
//!
//! Doors: [`reference`] (names), [`Store`] (everything on disk), [`check`]
//! (whether an image can run what a service asks for), [`tree`] (the merged view).

mod archive;
pub mod check;
mod credentials;
mod decode;
mod digest;
mod disk;
mod error;
#[cfg(test)]
mod fuzz;
mod manifest;
mod progress;
mod recipe;
pub mod reference;
mod registry;
mod retar;
mod store;
mod tarball;
#[cfg(test)]
mod testing;
pub mod tree;
mod unpack;

use std::collections::BTreeSet;
use std::path::PathBuf;

pub use digest::Digest;
pub use error::Error;
pub use progress::{Phase, Progress, Step};
pub use reference::Reference;
pub use registry::Mirror;
pub use store::{
    Checked, Fault, ImportOptions, Listed, Loaded, Prune, Pushed, Remote, Removed, Store,
    StoreOptions, Watermarks,
};
pub use unpack::Limits;

/// What a container needs of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Digest of the config: `sha256:…`.
    pub id: String,
    /// Digest of the manifest it was pulled by, if it was.
    pub digest: Option<String>,
    /// Overlay lower folders, topmost first.
    pub layers: Vec<PathBuf>,
    pub config: ImageConfig,
    /// Of all builds that there are of what it was pulled by: `linux/arm64`. None: unknown, as of
    /// what no registry was asked for.
    pub platforms: BTreeSet<String>,
    pub size_bytes: u64,
    /// Device nodes of its layers that were left out: a container has those that its service
    /// asks for.
    pub devices_skipped: u64,
}

/// Docker's `HEALTHCHECK` in the config of an image, as written there: an extension of the OCI
/// image specification.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageHealth {
    /// `["NONE"]`, `["CMD", …]`, `["CMD-SHELL", line]`; empty: as the image below, so none.
    #[serde(deserialize_with = "manifest::or_default")]
    pub test: Vec<String>,
    /// In ns, like the others; 0: the default.
    #[serde(deserialize_with = "manifest::or_default")]
    pub interval: i64,
    #[serde(deserialize_with = "manifest::or_default")]
    pub timeout: i64,
    #[serde(deserialize_with = "manifest::or_default")]
    pub start_period: i64,
    #[serde(deserialize_with = "manifest::or_default")]
    pub start_interval: i64,
    /// Failures in a row; 0: the default.
    #[serde(deserialize_with = "manifest::or_default")]
    pub retries: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `HEALTHCHECK`, as the image has it; nothing if it has none.
    pub health: Option<ImageHealth>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub workdir: String,
    pub user: String,
    /// As written in the image, e.g. `SIGTERM` or `15`; empty when absent.
    pub stop_signal: String,
    /// `80/tcp` …
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub labels: std::collections::BTreeMap<String, String>,
    pub architecture: String,
    pub os: String,
}
