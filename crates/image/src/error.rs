//! What can go wrong with images, as callers of [`crate::Store`] see it.
//!
//! Cloneable, because one pull may have many waiters. Whether the same call may
//! work later is decided here, once.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::reference;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{what} not found in registry {registry}")]
    NotFound { what: String, registry: String },
    #[error("registry {registry} denies access to {what}{}", note(.detail))]
    Unauthorized { what: String, registry: String, detail: String },
    #[error("registry {registry} answered {status} for {what}{}", note(.detail))]
    RegistryError { what: String, registry: String, status: u16, detail: String },
    #[error("registry {registry} cannot be reached for {what}: {detail}")]
    Unreachable { what: String, registry: String, detail: String },
    #[error("registry {registry} sent nothing for {seconds} s while fetching {what}")]
    TimedOut { what: String, registry: String, seconds: u64 },
    #[error("registry {registry} sent {got} bytes in {seconds} s while fetching {what}: too slow")]
    TooSlow { what: String, registry: String, got: u64, seconds: u64 },
    #[error("{what} is {actual} but should be {expected}")]
    DigestMismatch { what: String, expected: String, actual: String },
    #[error("{what} ended after {got} of {expected} bytes")]
    Truncated { what: String, got: u64, expected: u64 },
    #[error("image {image} has no build for {platform}{}", builds(.available))]
    NoPlatform { image: String, platform: String, available: Vec<String> },
    #[error("disk is full while storing {what}")]
    DiskFull { what: String },
    #[error("layer {layer} cannot be unpacked: {what}")]
    BadLayer { layer: String, what: String },
    /// A manifest, index or config that does not make sense.
    #[error("{what}: {problem}")]
    BadImage { what: String, problem: String },
    /// What the store holds of a layer is not what was unpacked, or cannot be written out.
    #[error("layer {layer} in the store: {what}")]
    DamagedLayer { layer: String, what: String },
    #[error("archive cannot be loaded: {problem}")]
    BadArchive { problem: String },
    #[error("invalid {what} {value:?}: {problem}")]
    BadOption { what: &'static str, value: String, problem: &'static str },
    #[error(transparent)]
    Reference(#[from] reference::Error),
    #[error("no such image: {name}")]
    NoSuchImage { name: String },
    #[error("image id {prefix} is ambiguous: {count} images start with it")]
    Ambiguous { prefix: String, count: usize },
    #[error("image {name} is in use")]
    InUse { name: String },
    #[error("image {id} has several names: {}", .names.join(", "))]
    ManyNames { id: String, names: Vec<String> },
    #[error("no credentials for registry {registry}")]
    NotLoggedIn { registry: String },
    #[error("credentials file {path}: {problem}")]
    BadCredentials { path: String, problem: String },
    #[error("image store {path} is in use by another process")]
    StoreInUse { path: String },
    #[error("{action}")]
    Io { action: String, source: Arc<io::Error> },
    /// The work this call waited for ended without an answer.
    #[error("{what} was interrupted")]
    Interrupted { what: String },
}

fn note(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}

fn builds(available: &[String]) -> String {
    if available.is_empty() {
        String::new()
    } else {
        format!(", only for {}", available.join(", "))
    }
}

impl Error {
    /// Whether the same call may work later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::TimedOut { .. }
            | Self::TooSlow { .. }
            | Self::Truncated { .. }
            | Self::DiskFull { .. }
            | Self::Interrupted { .. } => true,
            // 408 and 429 ask to come again, 5xx may pass.
            Self::RegistryError { status, .. } => matches!(status, 408 | 429 | 500..=599),
            Self::NotFound { .. }
            | Self::Unauthorized { .. }
            | Self::DigestMismatch { .. }
            | Self::NoPlatform { .. }
            | Self::BadLayer { .. }
            | Self::BadImage { .. }
            | Self::DamagedLayer { .. }
            | Self::BadArchive { .. }
            | Self::BadOption { .. }
            | Self::Reference(_)
            | Self::NoSuchImage { .. }
            | Self::Ambiguous { .. }
            | Self::InUse { .. }
            | Self::ManyNames { .. }
            | Self::NotLoggedIn { .. }
            | Self::BadCredentials { .. }
            | Self::StoreInUse { .. }
            | Self::Io { .. } => false,
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Unauthorized { registry, .. } => {
                format!("check the name; if it is right: warren registry login {registry}")
            }
            Self::NotFound { .. } => "check the name and tag for typing mistakes".to_owned(),
            Self::Unreachable { registry, .. } => format!(
                "check that {registry} is up and reachable from this node; if it speaks plain HTTP, start the node with --insecure-registry {registry}"
            ),
            Self::TimedOut { registry, .. } | Self::TooSlow { registry, .. } => {
                format!("check that {registry} is up, and the network between it and this node")
            }
            Self::RegistryError { .. } if self.is_transient() => {
                "the registry has a problem of its own: try again later, or ask whoever runs it"
                    .to_owned()
            }
            Self::Truncated { .. } => {
                "the connection broke off again and again: pull again, what came whole is kept"
                    .to_owned()
            }
            Self::BadLayer { .. } | Self::BadImage { .. } => {
                "the image or archive is broken or hostile: make it anew, or use another".to_owned()
            }
            Self::DamagedLayer { .. } => {
                "warren image fsck tells which images have it; remove those and pull them again"
                    .to_owned()
            }
            Self::DiskFull { .. } => {
                "free space in the data folder: warren image rm what is not needed, or a larger disk"
                    .to_owned()
            }
            Self::NoPlatform { .. } => {
                "use an image built for this node's architecture, or another node".to_owned()
            }
            Self::DigestMismatch { .. } => {
                "the registry or something on the way altered the data: pull again, then ask whoever runs it"
                    .to_owned()
            }
            Self::InUse { .. } => {
                "remove the service or task that uses it first; what is only kept to go back to goes with --force".to_owned()
            }
            Self::ManyNames { .. } => "remove the names one by one".to_owned(),
            Self::Ambiguous { .. } => "write more digits of the id".to_owned(),
            Self::NoSuchImage { .. } => "warren image ls shows what is there".to_owned(),
            Self::Reference(error) => error.hint(),
            Self::BadArchive { .. } => {
                "load takes docker-archives and OCI archives; for a root file system: warren image import"
                    .to_owned()
            }
            Self::RegistryError { .. }
            | Self::BadOption { .. }
            | Self::NotLoggedIn { .. }
            | Self::BadCredentials { .. }
            | Self::StoreInUse { .. }
            | Self::Io { .. }
            | Self::Interrupted { .. } => return None,
        })
    }

    /// A system call that did not work.
    pub(crate) fn io(action: impl Into<String>, source: io::Error) -> Self {
        let action = action.into();
        if crate::unpack::is_full(&source) {
            return Self::DiskFull { what: action };
        }
        Self::Io { action, source: Arc::new(source) }
    }

    pub(crate) fn at(action: &str, path: &Path, source: io::Error) -> Self {
        Self::io(format!("{action} {}", path.display()), source)
    }
}
