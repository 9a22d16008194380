//! Pretended network and images, for tests and simulations of the layers around the agent.
//!
//! They keep what the real ones would keep and can be told to fail. Ports taken
//! by "foreign processes" and images of "registries" are lists in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, watch};
use warren_image::{
    Checked, Digest, Error as ImageError, Image, ImageConfig, ImportOptions, Listed, Loaded,
    Progress, Prune, Pushed, Reference, Remote, Removed,
};
use warren_model::health::Probe;
use warren_model::{NodeTable, TaskId};
use warren_net::{Addresses, Clause, Count, Error as NetError, Protocol, Sandbox, Table};

use crate::health::Probes;
use crate::names::{Asker, Names};
use crate::net_table::NetTable;
use crate::seams::{Archive, Images, Network};
use crate::underlay::Resolve;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A descriptor that stands for anything.
fn descriptor() -> Result<OwnedFd, NetError> {
    let opened = File::open("/dev/null");
    opened
        .map(OwnedFd::from)
        .map_err(|source| NetError::Io { action: "open /dev/null".to_owned(), source })
}

/// A network that only remembers.
#[derive(Debug, Default)]
pub struct FakeNetwork {
    state: Mutex<NetState>,
    /// Moves with every [`Network::apply`].
    applied: watch::Sender<Table>,
}

#[derive(Debug, Default)]
struct NetState {
    attached: BTreeMap<String, Addresses>,
    foreign: BTreeMap<u16, String>,
    refusal: Option<String>,
}

impl FakeNetwork {
    /// What is wired, by container.
    pub fn attached(&self) -> BTreeMap<String, Addresses> {
        lock(&self.state).attached.clone()
    }

    /// The last table, and a way to wait for the next.
    pub fn table(&self) -> watch::Receiver<Table> {
        self.applied.subscribe()
    }

    /// A process that is not ours takes `port`, or gives it up.
    pub fn take_port(&self, port: u16, holder: Option<&str>) {
        let mut state = lock(&self.state);
        match holder {
            Some(holder) => state.foreign.insert(port, holder.to_owned()),
            None => state.foreign.remove(&port),
        };
    }

    /// From now on tables are refused, or taken again.
    pub fn refuse_tables(&self, why: Option<&str>) {
        lock(&self.state).refusal = why.map(str::to_owned);
    }
}

#[async_trait]
impl Network for FakeNetwork {
    async fn attach(&self, id: &str, addresses: Addresses) -> Result<Sandbox, NetError> {
        lock(&self.state).attached.insert(id.to_owned(), addresses);
        let Addresses { v4: address, v6: address6 } = addresses;
        Ok(Sandbox { netns: Arc::new(descriptor()?), address, address6 })
    }

    async fn adopt(&self, id: &str, addresses: Addresses, _pid: u32) -> Result<(), NetError> {
        lock(&self.state).attached.insert(id.to_owned(), addresses);
        Ok(())
    }

    async fn detach(&self, id: &str) -> Result<(), NetError> {
        lock(&self.state).attached.remove(id);
        Ok(())
    }

    async fn apply(&self, table: Table) -> Result<(), NetError> {
        if let Some(why) = &lock(&self.state).refusal {
            return Err(NetError::Unsupported(why.clone()));
        }
        self.applied.send_replace(table);
        Ok(())
    }

    fn reserve(&self, protocol: Protocol, bind: Ipv4Addr, port: u16) -> Result<OwnedFd, NetError> {
        match lock(&self.state).foreign.get(&port) {
            Some(holder) => Err(NetError::PortTaken {
                protocol: protocol.name(),
                bind,
                port,
                holder: holder.clone(),
            }),
            None => descriptor(),
        }
    }

    async fn sweep(&self, keep: &[String]) -> Result<(), NetError> {
        lock(&self.state).attached.retain(|id, _| keep.contains(id));
        Ok(())
    }

    /// As if each clause had decided once.
    async fn counts(&self) -> Result<Vec<Count>, NetError> {
        let table = self.applied.borrow().clone();
        let policies = table.networks.iter().flat_map(|networks| &networks.policies);
        let clauses = policies.flat_map(|policy| &policy.clauses);
        let count = |clause: &Clause| Count {
            name: clause.name.clone(),
            action: clause.action,
            packets: 1,
            bytes: 60,
        };
        Ok(clauses.map(count).collect())
    }
}

/// Keeps the table that it was given, or refuses it.
#[derive(Debug, Default)]
pub struct FakeNetTable {
    held: watch::Sender<Arc<NodeTable>>,
    refusal: Mutex<Option<String>>,
}

impl FakeNetTable {
    /// The last table, and a way to wait for the next.
    pub fn held(&self) -> watch::Receiver<Arc<NodeTable>> {
        self.held.subscribe()
    }

    /// From now on tables are refused, or taken again.
    pub fn refuse(&self, why: Option<&str>) {
        *lock(&self.refusal) = why.map(str::to_owned);
    }
}

#[async_trait]
impl NetTable for FakeNetTable {
    async fn hold(&self, table: Arc<NodeTable>) -> Result<(), NetError> {
        if let Some(why) = &*lock(&self.refusal) {
            return Err(NetError::Unsupported(why.clone()));
        }
        self.held.send_replace(table);
        Ok(())
    }
}

/// Remembers who may ask for names.
#[derive(Debug, Default)]
pub struct FakeNames {
    admitted: watch::Sender<BTreeMap<TaskId, Asker>>,
    refusal: Mutex<Option<String>>,
}

impl FakeNames {
    /// Who is answered, and a way to wait for a change.
    pub fn admitted(&self) -> watch::Receiver<BTreeMap<TaskId, Asker>> {
        self.admitted.subscribe()
    }

    /// From now on nobody is admitted any more, or everybody again.
    pub fn refuse(&self, why: Option<&str>) {
        *lock(&self.refusal) = why.map(str::to_owned);
    }
}

#[async_trait]
impl Names for FakeNames {
    async fn admit(&self, asker: Asker) -> Result<(), NetError> {
        if let Some(why) = &*lock(&self.refusal) {
            return Err(NetError::Unsupported(why.clone()));
        }
        self.admitted.send_modify(|admitted| drop(admitted.insert(asker.task, asker)));
        Ok(())
    }

    async fn dismiss(&self, task: TaskId) {
        self.admitted.send_modify(|admitted| drop(admitted.remove(&task)));
    }

    async fn restore(&self, askers: Vec<Asker>) {
        let askers = askers.into_iter().map(|asker| (asker.task, asker)).collect();
        self.admitted.send_replace(askers);
    }
}

/// Names of machines, as a table.
#[derive(Debug, Default)]
pub struct FakeHosts(Mutex<BTreeMap<String, Vec<IpAddr>>>);

impl FakeHosts {
    /// From now on `host` has these addresses.
    pub fn put(&self, host: &str, addresses: &[IpAddr]) {
        lock(&self.0).insert(host.to_owned(), addresses.to_vec());
    }
}

#[async_trait]
impl Resolve for FakeHosts {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        let found = lock(&self.0).get(host).cloned();
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name"))
    }
}

/// Containers that answer as they were told to; well, if nothing was said.
#[derive(Debug, Default)]
pub struct FakeProbes {
    wrong: Mutex<BTreeMap<Ipv4Addr, String>>,
    asked: Mutex<Vec<(Ipv4Addr, Probe)>>,
}

impl FakeProbes {
    /// From now on the container at `address` is not well.
    pub fn hurt(&self, address: Ipv4Addr, why: &str) {
        lock(&self.wrong).insert(address, why.to_owned());
    }

    /// From now on it is.
    pub fn heal(&self, address: Ipv4Addr) {
        lock(&self.wrong).remove(&address);
    }

    /// What was asked since the last call.
    pub fn asked(&self) -> Vec<(Ipv4Addr, Probe)> {
        std::mem::take(&mut *lock(&self.asked))
    }
}

#[async_trait]
impl Probes for FakeProbes {
    async fn ask(&self, address: Ipv4Addr, probe: &Probe) -> Result<(), String> {
        lock(&self.asked).push((address, probe.clone()));
        match lock(&self.wrong).get(&address) {
            None => Ok(()),
            Some(why) => Err(why.clone()),
        }
    }
}

/// Images that are nothing but names.
#[derive(Debug, Default)]
pub struct FakeImages {
    state: Mutex<ImageState>,
    /// Counts pulls that were asked for.
    pulls: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct ImageState {
    here: BTreeMap<Reference, Image>,
    registry: BTreeMap<Reference, Image>,
    trouble: Option<ImageError>,
    /// Of all images; nothing: they have no files.
    root: Option<PathBuf>,
}

impl ImageState {
    fn unpacked(&self, image: &Image) -> Image {
        match &self.root {
            Some(root) => Image { layers: vec![root.clone()], ..image.clone() },
            None => image.clone(),
        }
    }
}

fn image(config: ImageConfig, name: &Reference) -> Image {
    Image {
        id: format!("sha256:{name}"),
        digest: None,
        layers: vec![PathBuf::from("/nowhere")],
        config,
        platforms: Default::default(),
        size_bytes: 1,
        devices_skipped: 0,
    }
}

/// A program that exists in every pretended image.
fn config() -> ImageConfig {
    ImageConfig { cmd: vec!["/bin/run".to_owned()], ..ImageConfig::default() }
}

impl FakeImages {
    /// An image that is on this node.
    pub fn put(&self, name: &Reference) {
        lock(&self.state).here.insert(name.clone(), image(config(), name));
    }

    /// An image that can be pulled.
    pub fn publish(&self, name: &Reference) {
        let digest = Some(Digest::of(name.to_string().as_bytes()).to_string());
        let image = Image { digest, ..image(config(), name) };
        lock(&self.state).registry.insert(name.clone(), image);
    }

    /// The tag leads to another image from now on: whatever is here stays.
    pub fn publish_anew(&self, name: &Reference, salt: &str) {
        let (digest, id) =
            (Digest::of(format!("{name} {salt}").as_bytes()), Digest::of(salt.as_bytes()));
        let image =
            Image { id: id.to_string(), digest: Some(digest.to_string()), ..image(config(), name) };
        lock(&self.state).registry.insert(name.clone(), image);
    }

    /// The files of all images.
    pub fn unpacked_in(&self, root: &Path) {
        lock(&self.state).root = Some(root.to_owned());
    }

    /// Every pull fails so, or works again.
    pub fn fail_pulls(&self, error: Option<ImageError>) {
        lock(&self.state).trouble = error;
    }

    /// How many pulls were asked for, and a way to wait for the next.
    pub fn pulls(&self) -> watch::Receiver<u64> {
        self.pulls.subscribe()
    }
}

#[async_trait]
impl Images for FakeImages {
    fn get(&self, reference: &Reference) -> Option<Image> {
        let state = lock(&self.state);
        // The digest decides, whatever tag is beside.
        let bare = reference.digest().map(|digest| reference.by_digest(digest.clone()));
        let found = bare.and_then(|bare| state.here.get(&bare));
        let found = found.or_else(|| state.here.get(reference));
        found.map(|image| state.unpacked(image))
    }

    fn find(&self, text: &str) -> Result<Image, ImageError> {
        let state = lock(&self.state);
        let named = state.here.iter().find(|(name, image)| {
            name.to_string() == text || image.id.trim_start_matches("sha256:").starts_with(text)
        });
        let missing = || ImageError::NoSuchImage { name: text.to_owned() };
        named.map(|(_, image)| image.clone()).ok_or_else(missing)
    }

    async fn pull(&self, reference: &Reference, _: Progress) -> Result<Image, ImageError> {
        self.pulls.send_modify(|count| *count += 1);
        let mut state = lock(&self.state);
        if let Some(error) = &state.trouble {
            return Err(error.clone());
        }
        let found = state.registry.get(reference).cloned();
        let image = found.ok_or_else(|| ImageError::NotFound {
            what: reference.to_string(),
            registry: "registry.test".to_owned(),
        })?;
        if let Some(digest) = image.digest.as_ref().and_then(|digest| digest.parse().ok()) {
            state.here.insert(reference.by_digest(digest), image.clone());
        }
        state.here.insert(reference.clone(), image.clone());
        Ok(state.unpacked(&image))
    }

    async fn look_up(&self, reference: &Reference) -> Result<Remote, ImageError> {
        let state = lock(&self.state);
        if let Some(error) = &state.trouble {
            return Err(error.clone());
        }
        let image = state.registry.get(reference);
        let found = image.and_then(|image| {
            let digest = image.digest.as_ref()?.parse().ok()?;
            Some(Remote { digest, build: Ok(image.id.clone()) })
        });
        found.ok_or_else(|| ImageError::NotFound {
            what: reference.to_string(),
            registry: "registry.test".to_owned(),
        })
    }

    async fn load(
        &self,
        mut archive: Archive,
        base: Option<&Reference>,
        _: Progress,
    ) -> Result<Vec<Loaded>, ImageError> {
        read(&mut archive).await?;
        let Some(name) = base else { return Ok(vec![]) };
        self.put(name);
        Ok(vec![Loaded { image: image(config(), name), names: vec![name.clone()] }])
    }

    async fn import(
        &self,
        mut archive: Archive,
        name: &Reference,
        options: ImportOptions,
        _: Progress,
    ) -> Result<Image, ImageError> {
        let bytes = read(&mut archive).await?;
        let config = ImageConfig {
            entrypoint: options.entrypoint,
            cmd: options.cmd,
            env: options.env,
            ..ImageConfig::default()
        };
        let made = Image { size_bytes: bytes.len() as u64, ..image(config, name) };
        lock(&self.state).here.insert(name.clone(), made.clone());
        Ok(made)
    }

    async fn save(
        &self,
        images: &[String],
        out: mpsc::Sender<Bytes>,
        _: Progress,
    ) -> Result<(), ImageError> {
        for text in images {
            let piece = Bytes::from(self.find(text)?.id);
            let interrupted = || ImageError::Interrupted { what: text.clone() };
            out.send(piece).await.map_err(|_| interrupted())?;
        }
        Ok(())
    }

    async fn push(
        &self,
        text: &str,
        to: Option<&Reference>,
        _: Progress,
    ) -> Result<Pushed, ImageError> {
        let image = self.find(text)?;
        let reference = to.cloned().map_or_else(|| text.parse(), Ok)?;
        lock(&self.state).registry.insert(reference.clone(), image.clone());
        let (id, size_bytes) = (image.id, image.size_bytes);
        Ok(Pushed { reference, digest: id.clone(), id, size_bytes })
    }

    async fn fsck(&self, _: bool, _: &BTreeSet<String>) -> Result<Checked, ImageError> {
        Ok(Checked { images: lock(&self.state).here.len(), ..Checked::default() })
    }

    fn list(&self) -> Vec<Listed> {
        let state = lock(&self.state);
        let row = |(name, image): (&Reference, &Image)| Listed {
            names: vec![name.clone()],
            id: image.id.clone(),
            digest: None,
            size_bytes: image.size_bytes,
            created_at: None,
        };
        // What is there by digest alone is there by a name, too.
        state.here.iter().filter(|(name, _)| name.tag().is_some()).map(row).collect()
    }

    async fn remove(&self, text: &str, in_use: &BTreeSet<String>) -> Result<Removed, ImageError> {
        let image = self.find(text)?;
        if in_use.contains(&image.id) {
            return Err(ImageError::InUse { name: text.to_owned() });
        }
        lock(&self.state).here.retain(|_, kept| kept.id != image.id);
        let untagged = vec![text.to_owned()];
        Ok(Removed { untagged, deleted: vec![image.id], freed_bytes: image.size_bytes })
    }

    async fn prune(&self, which: Prune, in_use: &BTreeSet<String>) -> Result<Removed, ImageError> {
        // All of these have names, of which one by digest is no one's own.
        let mut removed = Removed::default();
        let mut state = lock(&self.state);
        for (name, image) in state.here.clone() {
            if !which.all || in_use.contains(&image.id) {
                continue;
            }
            if name.tag().is_some() {
                removed.untagged.push(name.to_string());
            }
            if !removed.deleted.contains(&image.id) {
                removed.freed_bytes += image.size_bytes;
                removed.deleted.push(image.id);
            }
        }
        if !which.dry_run {
            state.here.retain(|_, image| !removed.deleted.contains(&image.id));
        }
        Ok(removed)
    }

    async fn make_room(&self, in_use: &BTreeSet<String>, now: bool) -> Result<Removed, ImageError> {
        // Its disk is full when pulls say so.
        if !now {
            return Ok(Removed::default());
        }
        let removed = self.prune(Prune { all: true, ..Prune::default() }, in_use).await?;
        let mut state = lock(&self.state);
        if !removed.deleted.is_empty() && matches!(state.trouble, Some(ImageError::DiskFull { .. }))
        {
            state.trouble = None;
        }
        Ok(removed)
    }

    async fn login(&self, registry: &str, _: &str, password: &str) -> Result<(), ImageError> {
        match password {
            "wrong" => Err(ImageError::Unauthorized {
                what: "user".to_owned(),
                registry: registry.to_owned(),
                detail: String::new(),
            }),
            _ => Ok(()),
        }
    }

    async fn logout(&self, _: &str) -> Result<(), ImageError> {
        Ok(())
    }
}

async fn read(archive: &mut Archive) -> Result<Vec<u8>, ImageError> {
    let mut bytes = Vec::new();
    archive.read_to_end(&mut bytes).await.map_err(|error| ImageError::Io {
        action: "read the archive".to_owned(),
        source: Arc::new(error),
    })?;
    Ok(bytes)
}
