//! Images of one node: references, pull, load, import, store, unpack.
//!
//! An image is a config plus layers that are unpacked once into folders for
//! overlayfs, content-addressed by chain id. Nothing here starts containers.

use std::path::PathBuf;

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
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
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
