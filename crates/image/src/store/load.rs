//! Images from archives and from plain root file systems.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;

use super::bridge::{self, Sender, Source};
use super::layers::{Hold, wanted};
use super::{Inner, NewImage, Store, StoredLayer};
use crate::archive::{Archive, Packed};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, Config};
use crate::progress::{Phase, Progress, Step};
use crate::reference::Reference;
use crate::{Image, ImageConfig};

/// Read from the stream at once.
const PIECE_LEN: usize = 64 * 1024;

/// An image that an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub image: Image,
    /// Empty if the archive names none.
    pub names: Vec<Reference>,
}

/// Settings of an image made from a root file system, as `docker import --change`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImportOptions {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `KEY=value`
    pub env: Vec<String>,
    pub workdir: String,
    pub user: String,
    pub stop_signal: String,
    /// `80/tcp`, `53/udp` or `80`.
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// RFC 3339. Without it the same file system and settings give the same id.
    pub created: Option<String>,
}

impl ImportOptions {
    fn config(self) -> Result<ImageConfig, Error> {
        let bad = |what, value: &str, problem| Error::BadOption {
            what,
            value: value.to_owned(),
            problem,
        };
        let is_set = |pair: &&String| pair.find('=').is_none_or(|at| at == 0);
        if let Some(pair) = self.env.iter().find(is_set) {
            return Err(bad("environment variable", pair, "write KEY=value"));
        }
        if !self.workdir.is_empty() && !self.workdir.starts_with('/') {
            return Err(bad("working directory", &self.workdir, "must be absolute"));
        }
        if let Some(volume) = self.volumes.iter().find(|volume| !volume.starts_with('/')) {
            return Err(bad("volume", volume, "must be absolute"));
        }
        let mut exposed_ports = Vec::new();
        for port in &self.exposed_ports {
            let (number, protocol) = port.split_once('/').unwrap_or((port, "tcp"));
            let valid = number.parse::<u16>().is_ok_and(|number| number > 0)
                && matches!(protocol, "tcp" | "udp" | "sctp");
            if !valid {
                return Err(bad("port", port, "write 1 to 65535, with /tcp, /udp or /sctp"));
            }
            exposed_ports.push(format!("{number}/{protocol}"));
        }
        exposed_ports.sort();
        exposed_ports.dedup();
        Ok(ImageConfig {
            health: None,
            entrypoint: self.entrypoint,
            cmd: self.cmd,
            env: self.env,
            workdir: self.workdir,
            user: self.user,
            stop_signal: self.stop_signal,
            exposed_ports,
            volumes: self.volumes,
            labels: self.labels,
            architecture: manifest::host_architecture().to_owned(),
            os: "linux".to_owned(),
        })
    }
}

impl Store {
    /// Takes the images out of a docker-archive or an OCI archive, compressed or not.
    /// `base` names images for which the archive has at most a tag.
    pub async fn load(
        &self,
        stream: impl AsyncRead + Send + Unpin,
        base: Option<&Reference>,
        progress: Progress,
    ) -> Result<Vec<Loaded>, Error> {
        let base = base.cloned();
        self.read_on_thread("loading an archive", stream, move |inner, source| {
            load(inner, source, base.as_ref(), &progress)
        })
        .await
    }

    /// Makes an image of one layer from the tar of a root file system.
    pub async fn import(
        &self,
        stream: impl AsyncRead + Send + Unpin,
        name: &Reference,
        options: ImportOptions,
        progress: Progress,
    ) -> Result<Image, Error> {
        if name.digest().is_some() {
            return Err(Error::BadOption {
                what: "image name",
                value: name.familiar(),
                problem: "a digest cannot be chosen, write a tag",
            });
        }
        let name = name.clone();
        let created = options.created.clone();
        let config = options.config()?;
        self.read_on_thread("importing an image", stream, move |inner, source| {
            import(inner, source, name, config, created, &progress)
        })
        .await
    }

    /// Feeds a stream to a thread and waits for its answer.
    async fn read_on_thread<T: Send + 'static>(
        &self,
        what: &'static str,
        stream: impl AsyncRead + Send + Unpin,
        work: impl FnOnce(&Arc<Inner>, Source) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (sender, source) = bridge::channel();
        let (answer, answered) = oneshot::channel();
        let inner = Arc::clone(&self.0);
        std::thread::Builder::new()
            .name("warren-load".into())
            .spawn(move || {
                let result = work(&inner, source);
                drop(inner);
                // A caller that went away does not want to know.
                let _ = answer.send(result);
            })
            .map_err(|error| Error::io("start a thread", error))?;
        let pumped = pump(stream, sender).await;
        let result =
            answered.await.unwrap_or_else(|_| Err(Error::Interrupted { what: what.to_owned() }));
        pumped.map_err(|error| Error::io("read the stream", error))?;
        if matches!(&result, Err(error) if !error.is_transient() || matches!(error, Error::DiskFull { .. }))
        {
            let store = self.clone();
            self.blocking("removing layers", move |_| store.collect()).await?;
        }
        result
    }
}

async fn pump(mut stream: impl AsyncRead + Unpin, sender: Sender) -> std::io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(PIECE_LEN);
        if stream.read_buf(&mut buffer).await? == 0 {
            sender.end().await;
            return Ok(());
        }
        if sender.send(buffer.split().freeze()).await.is_err() {
            return Ok(());
        }
    }
}

fn load(
    inner: &Arc<Inner>,
    source: Source,
    base: Option<&Reference>,
    progress: &Progress,
) -> Result<Vec<Loaded>, Error> {
    let file = inner.scratch.file().map_err(|error| Error::io("make a file", error))?;
    let archive = Archive::spool(source, file)?;
    let images = archive.images(base)?;
    images.into_iter().map(|image| load_one(inner, &archive, image, progress)).collect()
}

fn load_one(
    inner: &Arc<Inner>,
    archive: &Archive,
    packed: Packed,
    progress: &Progress,
) -> Result<Loaded, Error> {
    let bad = |problem: String| Error::BadArchive { problem };
    let config = Config::parse(&packed.config)
        .map_err(|problem| bad(format!("config of an image: {problem}")))?;
    if !config.is_for_host() {
        return Err(Error::NoPlatform {
            image: packed
                .names
                .first()
                .map_or_else(|| "in the archive".to_owned(), Reference::familiar),
            platform: manifest::host_platform(),
            available: vec![format!("{}/{}", config.config.os, config.config.architecture)],
        });
    }
    let (layers, diffs) = (packed.layers.len(), config.diff_ids.len());
    if layers != diffs {
        return Err(bad(format!("an image has {layers} layers, its config {diffs}")));
    }
    let wanted = wanted(&config.diff_ids);
    let _hold = Hold::new(inner, &wanted);
    let mut folders = Vec::new();
    let mut stored = Vec::with_capacity(layers);
    for (layer, packed) in wanted.iter().zip(&packed.layers) {
        let name = packed.blob.as_ref().unwrap_or(&layer.diff);
        let tell = |done, phase| {
            let layer = name.short().to_owned();
            progress.report(&Step { layer, done, total: packed.len, phase });
        };
        if let Some(top) = inner.present(&layer.chain) {
            tell(packed.len, Phase::Present);
            folders.insert(0, inner.layer_path(&layer.chain));
            stored.push(top);
            continue;
        }
        tell(0, Phase::Fetching);
        let source = archive.open(packed)?;
        let (draft, unpacked) =
            inner.draft(source, name, packed.blob.as_ref(), Some(&layer.diff))?;
        let stack = inner.settle(draft, &unpacked, &layer.chain, &folders)?;
        tell(packed.len, Phase::Done);
        folders = stack.folders;
        stored.push(stack.top);
    }
    let digest = packed.manifest.as_deref().map(Digest::of);
    let image = inner.record(NewImage {
        config: packed.config,
        digests: digest
            .iter()
            .flat_map(|digest| packed.names.iter().map(|name| name.by_digest(digest.clone()).key()))
            .collect(),
        manifest: packed.manifest,
        digest,
        layers: stored,
        names: packed.names.clone(),
        platforms: BTreeSet::new(),
    })?;
    Ok(Loaded { image, names: packed.names })
}

fn import(
    inner: &Arc<Inner>,
    source: impl Read,
    name: Reference,
    config: ImageConfig,
    created: Option<String>,
    progress: &Progress,
) -> Result<Image, Error> {
    // The layer has no name before it is read.
    let unnamed = Digest::of(&[]);
    let tell = |layer: &Digest, done, phase| {
        progress.report(&Step { layer: layer.short().to_owned(), done, total: 0, phase });
    };
    tell(&unnamed, 0, Phase::Fetching);
    let (draft, unpacked) = inner.draft(source, &unnamed, None, None)?;
    let diff_ids = vec![unpacked.diff.clone()];
    let wanted = wanted(&diff_ids);
    let _hold = Hold::new(inner, &wanted);
    let stack = inner.settle(draft, &unpacked, &unpacked.diff, &[])?;
    tell(&unpacked.diff, unpacked.size, Phase::Done);
    let layers: Vec<StoredLayer> = vec![stack.top];
    inner.record(NewImage {
        config: Config { config, diff_ids, created }.to_json(),
        manifest: None,
        digest: None,
        digests: Vec::new(),
        layers,
        names: vec![name],
        platforms: BTreeSet::new(),
    })
}
