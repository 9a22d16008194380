//! The images of one node on disk, and the ways they get there.
//!
//! ```text
//! images/index.json           names and records, replaced as a whole
//!        blobs/sha256/<hex>   manifests and configs; layers are not kept packed
//!        layers/<chain id>/   one unpacked layer each, lower folders of overlayfs
//!        recipes/<chain id>   how the tar of a layer is put together again from its folder
//!        tmp/                 unfinished things, emptied at start
//! ```
//!
//! Contract: killed at any instant, the next [`Store::open`] finds every image
//! that was there, whole, and nothing else. Reading ([`Store::get`],
//! [`Store::list`]) touches memory only: it is on the path of a container's start.
//! Every change is written under one lock, index last.
//!
//! Not here: deciding when an image is in use (callers say so).

mod bridge;
mod flight;
mod fsck;
mod index;
mod layers;
mod load;
mod look_up;
mod outgoing;
mod pull;
mod push;
mod remove;
mod save;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use rustix::fs::FlockOperation;
use tokio::sync::Semaphore;

use crate::credentials::{Credentials, Keyring};
use crate::digest::Digest;
use crate::disk::{self, Aside, Scratch};
use crate::error::Error;
use crate::reference::{self, Reference};
use crate::registry::{Mirror, Registries, Session, Timeouts};
use crate::unpack::Limits;
use crate::{Image, manifest};
use flight::Flights;
use index::{Index, Record};
use layers::LayerResult;

pub use fsck::{Checked, Fault};
pub use load::{ImportOptions, Loaded};
pub use look_up::Remote;
pub use push::Pushed;
pub use remove::{Prune, Removed, Watermarks};

/// Layers fetched and unpacked at once, over all pulls. Docker's default is 3;
/// each costs a connection, a thread and up to 32 MiB for zstd.
const LAYERS_AT_ONCE: usize = 4;

/// Where images live and how registries are reached.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// `<data-dir>/images`, made with mode 0700.
    pub dir: PathBuf,
    /// Credentials in the format of Docker's `config.json`, mode 0600.
    pub docker_config: PathBuf,
    /// Registries that may be spoken to over plain HTTP, `host` or `host:port`.
    /// Loopback always may.
    pub insecure: Vec<String>,
    /// Asked before the registries whose images they have, in this order.
    pub mirrors: Vec<Mirror>,
    /// When images that nothing uses go by themselves; nothing: never.
    pub watermarks: Option<Watermarks>,
}

/// One row of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Sorted; empty for an image whose names went to newer ones.
    pub names: Vec<Reference>,
    pub id: String,
    pub digest: Option<String>,
    pub size_bytes: u64,
    /// RFC 3339, as the image's builder wrote it.
    pub created_at: Option<String>,
}

/// A cheap handle to the store.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    scratch: Scratch,
    keyring: Keyring,
    registries: Registries,
    limits: Limits,
    /// What readers see.
    index: RwLock<Arc<Index>>,
    /// Held while anything but `tmp/` changes on disk.
    writer: Mutex<()>,
    held: Mutex<Held>,
    watermarks: Option<Watermarks>,
    /// When images were asked for last, in ms since the epoch, by id; since the start.
    used: Mutex<BTreeMap<String, u64>>,
    permits: Arc<Semaphore>,
    pulls: Flights<Result<Image, Error>>,
    layers: Flights<LayerResult>,
    /// Two processes would sweep each other's work.
    _lock: File,
}

/// Layers that belong to no image yet.
#[derive(Default)]
struct Held {
    /// In use by so many pulls and loads.
    counts: BTreeMap<Digest, usize>,
    /// Layers that were unpacked since the start.
    fresh: BTreeMap<Digest, StoredLayer>,
    /// What layers are when they are compressed here, of those that were since the start.
    packed: BTreeMap<Digest, manifest::Blob>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("dir", &self.0.dir).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store, or makes it, and removes what was left unfinished.
    /// Blocking; called once at start.
    pub fn open(options: StoreOptions) -> Result<Self, Error> {
        Self::open_with(options, Timeouts::default(), Limits::default())
    }

    pub(crate) fn open_with(
        options: StoreOptions,
        timeouts: Timeouts,
        limits: Limits,
    ) -> Result<Self, Error> {
        let dir = options.dir;
        let at = |error| Error::at("open image store", &dir, error);
        let folders = ["layers", "recipes", "blobs/sha256"].map(|name| dir.join(name));
        for folder in [dir.clone()].iter().chain(&folders) {
            disk::make_dir(folder).map_err(at)?;
        }
        // Layers hold set-user-id programs: nobody else may come by.
        fs::set_permissions(&dir, fs::Permissions::from_mode(disk::DIR_MODE)).map_err(at)?;
        let lock = File::create(dir.join("lock")).map_err(at)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| Error::StoreInUse { path: dir.display().to_string() })?;
        let scratch = Scratch::open(dir.join("tmp")).map_err(at)?;
        let index = Index::load(&dir)?;
        let store = Self(Arc::new(Inner {
            scratch,
            keyring: Keyring::new(options.docker_config),
            registries: Registries::new(options.insecure, options.mirrors, timeouts),
            limits,
            index: RwLock::new(Arc::new(index)),
            writer: Mutex::new(()),
            held: Mutex::new(Held::default()),
            watermarks: options.watermarks,
            used: Mutex::default(),
            permits: Arc::new(Semaphore::new(LAYERS_AT_ONCE)),
            pulls: Flights::default(),
            layers: Flights::default(),
            _lock: lock,
            dir,
        }));
        store.collect()?;
        Ok(store)
    }

    /// The image of that name, from memory. It counts as used.
    pub fn get(&self, reference: &Reference) -> Option<Image> {
        let image = self.0.index().get(reference).map(|image| Image::clone(image))?;
        self.0.used().insert(image.id.clone(), now_ms());
        Some(image)
    }

    /// The image that a person means: by name, or by the first digits of its id.
    pub fn find(&self, text: &str) -> Result<Image, Error> {
        let index = self.0.index();
        let id = index.find(text)?;
        let image = index.image(&id).ok_or_else(|| Error::NoSuchImage { name: text.to_owned() })?;
        Ok(Image::clone(image))
    }

    /// All images, by name.
    pub fn list(&self) -> Vec<Listed> {
        self.0.index().list()
    }

    /// A conversation with the registry of an image, as whom it knows us.
    async fn session(&self, reference: &Reference, what: &str) -> Result<Session, Error> {
        let credentials = self.credentials(reference.registry()).await?;
        let (registries, repository) = (&self.0.registries, reference.repository());
        registries.session(reference.registry(), repository, what, credentials).await
    }

    async fn credentials(&self, registry: &str) -> Result<Option<Credentials>, Error> {
        let registry = registry.to_owned();
        self.blocking("reading credentials", move |inner| inner.keyring.find(&registry)).await
    }

    /// Verifies the credentials with the registry, then stores them.
    pub async fn login(&self, registry: &str, user: &str, password: &str) -> Result<(), Error> {
        let registry = reference::parse_registry(registry)?;
        if user.is_empty() || user.contains(':') {
            return Err(Error::BadOption {
                what: "user",
                value: user.to_owned(),
                problem: "must not be empty or contain a colon",
            });
        }
        let credentials = Credentials {
            user: user.to_owned(),
            password: zeroize::Zeroizing::new(password.to_owned()),
        };
        let what = format!("user {user}");
        let session =
            self.0.registries.session(&registry, "", &what, Some(credentials.clone())).await?;
        session.check_login().await?;
        self.blocking("store credentials", move |inner| {
            let _writer = inner.writer();
            inner.keyring.store(&registry, &credentials)
        })
        .await
    }

    pub async fn logout(&self, registry: &str) -> Result<(), Error> {
        let registry = reference::parse_registry(registry)?;
        self.blocking("remove credentials", move |inner| {
            let _writer = inner.writer();
            inner.keyring.forget(&registry)
        })
        .await
    }

    /// Runs file work off the event loop. It ends even if the caller goes away.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        work: impl FnOnce(&Arc<Inner>) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|_| Err(Error::Interrupted { what: what.to_owned() }))
    }

    fn collect(&self) -> Result<u64, Error> {
        self.0.collect()
    }
}

/// A layer of an image to be recorded.
#[derive(Debug, Clone)]
struct StoredLayer {
    chain: Digest,
    size: u64,
    /// Device nodes that were left out.
    devices: u64,
}

/// An image whose layers are all there.
struct NewImage {
    config: Vec<u8>,
    manifest: Option<Vec<u8>>,
    /// Digest that the name led to.
    digest: Option<Digest>,
    /// `repository@sha256:…` by which it can be found too.
    digests: Vec<String>,
    /// The lowest first.
    layers: Vec<StoredLayer>,
    names: Vec<Reference>,
    /// See [`Image::platforms`].
    platforms: BTreeSet<String>,
}

impl Inner {
    fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn used(&self) -> MutexGuard<'_, BTreeMap<String, u64>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn layer_path(&self, chain: &Digest) -> PathBuf {
        self.dir.join("layers").join(chain.hex())
    }

    /// There may be none: the layer's tar is gone for good, then.
    fn recipe_path(&self, chain: &Digest) -> PathBuf {
        self.dir.join("recipes").join(chain.hex())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// A stored manifest or config.
    fn blob(&self, digest: &Digest) -> Option<Vec<u8>> {
        let bytes = fs::read(self.blob_path(digest)).ok()?;
        (Digest::of(&bytes) == *digest).then_some(bytes)
    }

    /// Writes blobs and index; afterwards the image exists.
    fn record(&self, new: NewImage) -> Result<Image, Error> {
        let id = Digest::of(&new.config);
        let parsed = manifest::Config::parse(&new.config).map_err(|problem| Error::BadImage {
            what: format!("config {}", id.short()),
            problem,
        })?;
        let _writer = self.writer();
        for bytes in [Some(&new.config), new.manifest.as_ref()].into_iter().flatten() {
            let path = self.blob_path(&Digest::of(bytes));
            if !path.exists() {
                self.scratch
                    .write(&path, bytes)
                    .map_err(|error| Error::at("write", &path, error))?;
            }
        }
        let mut index = Index::clone(&self.index());
        let record = Record {
            manifest: new.manifest.as_deref().map(|bytes| Digest::of(bytes).to_string()),
            digest: new.digest.map(|digest| digest.to_string()),
            digests: new.digests.into_iter().collect(),
            layers: new.layers.iter().map(index::Layer::from).collect(),
            fetched: now_ms(),
            platforms: new.platforms,
        };
        index.put(&self.dir, &id, record, &parsed, &new.names);
        let image = index.image(id.as_str()).map(|image| Image::clone(image));
        self.replace_index(index)?;
        image.ok_or_else(|| Error::Interrupted { what: "recording an image".to_owned() })
    }

    /// The caller holds the writer's lock.
    fn replace_index(&self, index: Index) -> Result<(), Error> {
        let path = self.dir.join("index.json");
        self.scratch
            .write(&path, &index.to_json())
            .map_err(|error| Error::at("write", &path, error))?;
        self.used().retain(|id, _| index.image(id).is_some());
        *self.index.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(index);
        Ok(())
    }

    /// Moves what nothing refers to into `tmp/`, where a crash cannot bring it back.
    /// The caller holds the writer's lock.
    fn set_aside(&self) -> Result<Vec<Aside>, Error> {
        let index = self.index();
        // Held, so that nobody finds a layer here that is about to go.
        let mut held = self.held();
        let mut rubbish = Vec::new();
        let mut sweep = |folder: &Path, is_kept: &dyn Fn(&str) -> bool| {
            for entry in fs::read_dir(folder)? {
                let entry = entry?;
                if !entry.file_name().to_str().is_some_and(is_kept) {
                    let aside = self.scratch.name();
                    fs::rename(entry.path(), aside.path())?;
                    rubbish.push(aside);
                }
            }
            Ok(())
        };
        let layers = index.layers();
        let pulling = |hex: &str| held.counts.keys().any(|chain| chain.hex() == hex);
        for folder in ["layers", "recipes"].map(|name| self.dir.join(name)) {
            sweep(&folder, &|hex| layers.contains(hex) || pulling(hex))
                .map_err(|error| Error::at("sweep", &folder, error))?;
        }
        let blobs = index.blobs();
        let folder = self.dir.join("blobs/sha256");
        sweep(&folder, &|hex| blobs.contains(hex))
            .map_err(|error| Error::at("sweep", &folder, error))?;
        let Held { counts, fresh, packed } = &mut *held;
        fresh.retain(|chain, _| counts.contains_key(chain));
        packed.retain(|chain, _| layers.contains(chain.hex()));
        Ok(rubbish)
    }

    /// Removes layers and blobs that nothing refers to.
    fn collect(&self) -> Result<u64, Error> {
        let rubbish = {
            let _writer = self.writer();
            self.set_aside()?
        };
        self.discard(rubbish)
    }

    /// What was held for some images is no longer: if one of them went meanwhile, so do its layers.
    fn collect_gone<'a>(&self, mut ids: impl Iterator<Item = &'a str>) -> Result<(), Error> {
        let index = self.index();
        match ids.any(|id| index.image(id).is_none()) {
            true => self.collect().map(drop),
            false => Ok(()),
        }
    }

    fn discard(&self, rubbish: Vec<Aside>) -> Result<u64, Error> {
        let count = rubbish.len() as u64;
        for aside in rubbish {
            let path = aside.path();
            disk::remove(path).map_err(|error| Error::at("remove", path, error))?;
        }
        Ok(count)
    }
}

/// Ages of images are told by the machine's clock alone.
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
