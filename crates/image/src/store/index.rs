//! Which images there are, under which names: one small file, and memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Listed, StoredLayer};
use crate::Image;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Config;
use crate::reference::Reference;
use crate::unpack::is_opaque;

/// Of the file's format.
const VERSION: u32 = 1;
/// Fewer digits could be a word.
const PREFIX_LEN_MIN: usize = 4;

/// The file.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stored {
    version: u32,
    /// By id.
    images: BTreeMap<String, Record>,
    /// Canonical name to id.
    names: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) manifest: Option<String>,
    /// What the name led to when it was pulled: a manifest or an index.
    pub(super) digest: Option<String>,
    /// `repository@digest`, of the index and of the manifest.
    pub(super) digests: BTreeSet<String>,
    /// The lowest first.
    pub(super) layers: Vec<Layer>,
    /// When it came last, in ms since the epoch; older versions did not say.
    #[serde(default)]
    pub(super) fetched: u64,
    /// See [`Image::platforms`]; versions before did not note it.
    #[serde(default)]
    pub(super) platforms: BTreeSet<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Layer {
    chain: String,
    size: u64,
    /// Device nodes that were left out; versions before did not note it.
    #[serde(default)]
    devices: u64,
}

impl From<&StoredLayer> for Layer {
    fn from(layer: &StoredLayer) -> Self {
        Self { chain: layer.chain.to_string(), size: layer.size, devices: layer.devices }
    }
}

/// An image as readers get it.
#[derive(Debug, Clone)]
struct Ready {
    image: Arc<Image>,
    created: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) struct Index {
    stored: Stored,
    ready: BTreeMap<String, Ready>,
    /// `repository@digest` to id.
    digests: BTreeMap<String, String>,
}

impl Index {
    /// Reads the file. An image whose config or layers are damaged is left out, so
    /// that pulling it again repairs it.
    pub(super) fn load(dir: &Path) -> Result<Self, Error> {
        let path = dir.join("index.json");
        let empty = Stored { version: VERSION, images: BTreeMap::new(), names: BTreeMap::new() };
        let stored = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| Error::BadImage {
                what: format!("image index {}", path.display()),
                problem: error.to_string(),
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => empty,
            Err(error) => return Err(Error::at("read", &path, error)),
        };
        if stored.version != VERSION {
            return Err(Error::BadImage {
                what: format!("image index {}", path.display()),
                problem: format!("version {}, this program knows {VERSION}", stored.version),
            });
        }
        let mut index = Self { stored, ready: BTreeMap::new(), digests: BTreeMap::new() };
        let ids: Vec<String> = index.stored.images.keys().cloned().collect();
        for id in ids {
            if let Err(problem) = index.admit(dir, &id) {
                tracing::warn!(%id, %problem, "image is damaged and left out");
                index.stored.images.remove(&id);
                index.stored.names.retain(|_, target| *target != id);
            }
        }
        Ok(index)
    }

    fn admit(&mut self, dir: &Path, id: &str) -> Result<(), String> {
        let digest: Digest = id.parse().map_err(|error| format!("{error}"))?;
        let path = dir.join("blobs/sha256").join(digest.hex());
        let bytes = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if Digest::of(&bytes) != digest {
            return Err(format!("{} is altered", path.display()));
        }
        let config = Config::parse(&bytes)?;
        let Some(record) = self.stored.images.get(id) else {
            return Ok(());
        };
        let image = assemble(dir, id, record, &config)?;
        if let Some(missing) = image.layers.iter().find(|layer| !layer.is_dir()) {
            return Err(format!("{} is missing", missing.display()));
        }
        self.publish(id, image, &config);
        Ok(())
    }

    fn publish(&mut self, id: &str, image: Image, config: &Config) {
        if let Some(record) = self.stored.images.get(id) {
            for digest in &record.digests {
                self.digests.insert(digest.clone(), id.to_owned());
            }
        }
        let ready = Ready { image: Arc::new(image), created: config.created.clone() };
        self.ready.insert(id.to_owned(), ready);
    }

    /// Adds an image or more names to it. Names move here from other images.
    pub(super) fn put(
        &mut self,
        dir: &Path,
        id: &Digest,
        mut record: Record,
        config: &Config,
        names: &[Reference],
    ) {
        let id = id.as_str();
        if let Some(old) = self.stored.images.get(id) {
            record.digests.extend(old.digests.iter().cloned());
            record.digest = record.digest.or_else(|| old.digest.clone());
            record.manifest = record.manifest.or_else(|| old.manifest.clone());
        }
        for name in names {
            self.stored.names.insert(name.key(), id.to_owned());
        }
        if let Ok(image) = assemble(dir, id, &record, config) {
            self.stored.images.insert(id.to_owned(), record);
            self.publish(id, image, config);
        }
    }

    pub(super) fn remove_name(&mut self, name: &str) {
        self.stored.names.remove(name);
    }

    pub(super) fn remove_image(&mut self, id: &str) {
        self.stored.images.remove(id);
        self.stored.names.retain(|_, target| target != id);
        self.digests.retain(|_, target| target != id);
        self.ready.remove(id);
    }

    /// What it was pulled by is no longer known.
    pub(super) fn forget_manifest(&mut self, id: &str) {
        if let Some(record) = self.stored.images.get_mut(id) {
            record.manifest = None;
        }
    }

    pub(super) fn image(&self, id: &str) -> Option<&Arc<Image>> {
        self.ready.get(id).map(|ready| &ready.image)
    }

    pub(super) fn get(&self, reference: &Reference) -> Option<&Arc<Image>> {
        let key = reference.key();
        let id = self.stored.names.get(&key).or_else(|| self.digests.get(&key))?;
        self.image(id)
    }

    /// The id that a person means.
    pub(super) fn find(&self, text: &str) -> Result<String, Error> {
        if let Ok(reference) = text.parse::<Reference>()
            && let Some(image) = self.get(&reference)
        {
            return Ok(image.id.clone());
        }
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        let is_prefix =
            prefix.len() >= PREFIX_LEN_MIN && prefix.bytes().all(|byte| byte.is_ascii_hexdigit());
        let full = format!("sha256:{}", prefix.to_ascii_lowercase());
        let mut found = self.ready.keys().filter(|id| is_prefix && id.starts_with(&full));
        match (found.next(), found.count()) {
            (Some(id), 0) => Ok(id.clone()),
            (Some(_), more) => Err(Error::Ambiguous { prefix: prefix.to_owned(), count: more + 1 }),
            (None, _) => Err(Error::NoSuchImage { name: text.to_owned() }),
        }
    }

    /// Canonical names of an image.
    pub(super) fn names_of(&self, id: &str) -> Vec<String> {
        let names = self.stored.names.iter().filter(|(_, target)| *target == id);
        names.map(|(name, _)| name.clone()).collect()
    }

    /// `repository@digest` of an image.
    pub(super) fn digests_of(&self, id: &str) -> Vec<String> {
        let record = self.stored.images.get(id);
        record.map(|record| record.digests.iter().cloned().collect()).unwrap_or_default()
    }

    /// The canonical name that `text` is, if it is one that is kept.
    pub(super) fn name(&self, text: &str) -> Option<String> {
        let key = text.parse::<Reference>().ok()?.key();
        self.stored.names.contains_key(&key).then_some(key)
    }

    /// When it came last, in ms since the epoch.
    pub(super) fn fetched(&self, id: &str) -> u64 {
        self.stored.images.get(id).map_or(0, |record| record.fetched)
    }

    /// Of the manifest it was pulled by, if it was; nothing if there is no such image.
    pub(super) fn manifest(&self, id: &str) -> Option<Option<Digest>> {
        let record = self.stored.images.get(id)?;
        Some(record.manifest.as_deref().and_then(|digest| digest.parse().ok()))
    }

    pub(super) fn ids(&self) -> Vec<String> {
        self.ready.keys().cloned().collect()
    }

    pub(super) fn layer(&self, chain: &Digest) -> Option<StoredLayer> {
        let mut layers = self.stored.images.values().flat_map(|record| &record.layers);
        let found = layers.find(|layer| layer.chain == chain.as_str())?;
        Some(StoredLayer { chain: chain.clone(), size: found.size, devices: found.devices })
    }

    /// Of all layers, each counted once.
    pub(super) fn bytes(&self) -> u64 {
        let layers = self.stored.images.values().flat_map(|record| &record.layers);
        let sizes: BTreeMap<&str, u64> =
            layers.map(|layer| (layer.chain.as_str(), layer.size)).collect();
        sizes.values().sum()
    }

    /// Hex of every chain id in use.
    pub(super) fn layers(&self) -> BTreeSet<String> {
        let layers = self.stored.images.values().flat_map(|record| &record.layers);
        layers.map(|layer| hex(&layer.chain)).collect()
    }

    /// Hex of every manifest and config in use.
    pub(super) fn blobs(&self) -> BTreeSet<String> {
        let manifests = self.stored.images.values().filter_map(|record| record.manifest.as_deref());
        self.stored.images.keys().map(String::as_str).chain(manifests).map(hex).collect()
    }

    pub(super) fn list(&self) -> Vec<Listed> {
        let mut rows: Vec<Listed> = self
            .ready
            .iter()
            .map(|(id, Ready { image, created })| Listed {
                names: self.names_of(id).iter().filter_map(|name| name.parse().ok()).collect(),
                id: id.clone(),
                digest: image.digest.clone(),
                size_bytes: image.size_bytes,
                created_at: created.clone(),
            })
            .collect();
        // Nameless ones last.
        rows.sort_by(|a, b| {
            (a.names.is_empty(), &a.names, &a.id).cmp(&(b.names.is_empty(), &b.names, &b.id))
        });
        rows
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Maps with text as keys: this cannot fail.
        serde_json::to_vec_pretty(&self.stored).unwrap_or_default()
    }
}

fn hex(digest: impl AsRef<str>) -> String {
    let digest = digest.as_ref();
    digest.split_once(':').map_or(digest, |(_, hex)| hex).to_owned()
}

fn assemble(dir: &Path, id: &str, record: &Record, config: &Config) -> Result<Image, String> {
    let mut layers = Vec::new();
    for layer in record.layers.iter().rev() {
        let chain: Digest = layer.chain.parse().map_err(|error| format!("{error}"))?;
        let path = dir.join("layers").join(chain.hex());
        // overlayfs ignores the mark on a layer's root, so it is honoured here.
        let hides_the_rest = is_opaque(&path);
        layers.push(path);
        if hides_the_rest {
            break;
        }
    }
    Ok(Image {
        id: id.to_owned(),
        digest: record.digest.clone(),
        layers,
        config: config.config.clone(),
        platforms: record.platforms.clone(),
        size_bytes: record.layers.iter().map(|layer| layer.size).sum(),
        devices_skipped: record.layers.iter().map(|layer| layer.devices).sum(),
    })
}
