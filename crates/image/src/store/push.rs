//! Images to registries.
//!
//! Layers that a registry has are not sent: under the digest by which they were pulled,
//! taken over from another repository of the same registry, or under that of our own
//! compression. An image of which all layers are as they were pulled keeps its manifest
//! and digest; else it gets a manifest of the OCI's kind. The image's id is the same
//! either way.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::outgoing::{LayerTar, Outgoing};
use super::{Inner, Store};
use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::manifest::{Blob, DOCKER_CONFIG, DOCKER_MANIFEST, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::progress::{Phase, Progress, Step};
use crate::reference::Reference;
use crate::registry::{Content, Sending, Session};

/// Layers compressed and sent at once: each takes a thread, a piece of 8 MiB in memory
/// and its compressed size on disk.
const LAYERS_AT_ONCE: usize = 2;
/// What Docker and everybody else use.
const GZIP_LEVEL: u32 = 6;
/// Repositories that a layer is asked for, to be taken over.
const MOUNTS_MAX: usize = 4;

/// What came of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub reference: Reference,
    /// Of the manifest.
    pub digest: String,
    pub id: String,
    /// Compressed: what a pull fetches.
    pub size_bytes: u64,
}

/// One layer as the registry has it, for a manifest.
struct Sent {
    descriptor: Value,
    size: u64,
    /// As the image was pulled.
    is_original: bool,
}

impl Store {
    /// Sends the image that `text` means to a registry, under `to` or its own name.
    ///
    /// # Errors
    /// No such image, a name without a tag or with a digest, what the registry says, and
    /// layers whose folders were altered.
    pub async fn push(
        &self,
        text: &str,
        to: Option<&Reference>,
        progress: Progress,
    ) -> Result<Pushed, Error> {
        let image = self.find(text)?;
        let own = text.parse::<Reference>().ok().filter(|name| self.0.index().get(name).is_some());
        let to = to.cloned().or(own).ok_or_else(|| Error::BadOption {
            what: "name to push",
            value: text.to_owned(),
            problem: "an id says nothing of a registry: write a name behind it",
        })?;
        let (None, Some(tag)) = (to.digest(), to.tag()) else {
            return Err(Error::BadOption {
                what: "name to push",
                value: to.familiar(),
                problem: "a digest cannot be chosen, write a tag",
            });
        };
        let what = to.familiar();
        let pushed = self.push_to(&image.id, &to, tag, &what, &progress).await;
        // Gone meanwhile, with layers that were held here.
        let id = image.id;
        let swept = self
            .blocking("removing layers", move |inner| {
                inner.collect_gone(std::iter::once(id.as_str()))
            })
            .await;
        pushed.and_then(|pushed| swept.map(|()| pushed))
    }

    async fn push_to(
        &self,
        id: &str,
        to: &Reference,
        tag: &str,
        what: &str,
        progress: &Progress,
    ) -> Result<Pushed, Error> {
        let id_of_it = id.to_owned();
        let outgoing = self
            .blocking("opening an image", move |inner| Outgoing::open(inner, &id_of_it))
            .await?;
        let session = self.session(to, what).await?;
        let original = Original::of(&outgoing);
        let elsewhere = self.0.index().repositories(id, to.registry(), to.repository());
        let push = Push { store: self, session: &session, progress, elsewhere };
        let layers = outgoing.layers.iter().zip(&original.layers);
        // Made first: a closure within the stream would have to hold for any lifetime.
        let sending: Vec<_> =
            layers.map(|(layer, original)| push.layer(layer, original.as_ref())).collect();
        let sent: Vec<Sent> =
            futures::stream::iter(sending).buffered(LAYERS_AT_ONCE).try_collect().await?;
        let config = Digest::of(&outgoing.config);
        push.bytes(&config, &outgoing.config, &format!("config of {what}")).await?;
        let size_bytes = sent.iter().map(|layer| layer.size).sum();
        let (media_type, manifest) = match outgoing.manifest {
            Some(manifest) if sent.iter().all(|layer| layer.is_original) => {
                (original.media_type, manifest)
            }
            _ => (OCI_MANIFEST, manifest(&config, outgoing.config.len(), sent)),
        };
        let about = format!("manifest of {what}");
        session.put_manifest(tag, media_type, &manifest, &about).await?;
        let digest = Digest::of(&manifest).to_string();
        Ok(Pushed { reference: to.clone(), digest, id: config.to_string(), size_bytes })
    }
}

fn manifest(config: &Digest, config_len: usize, layers: Vec<Sent>) -> Vec<u8> {
    let layers: Vec<Value> = layers.into_iter().map(|layer| layer.descriptor).collect();
    let document = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": config.as_str(), "size": config_len },
        "layers": layers,
    });
    document.to_string().into_bytes()
}

/// How the layers were packed when they were pulled.
struct Original {
    media_type: &'static str,
    /// One for each layer; nothing where that is not known.
    layers: Vec<Option<(Blob, String)>>,
}

impl Original {
    fn of(outgoing: &Outgoing) -> Self {
        let unknown = outgoing.layers.iter().map(|_| None).collect();
        let document = outgoing.manifest.as_deref();
        let document: Option<Value> =
            document.and_then(|manifest| serde_json::from_slice(manifest).ok());
        let Some(document) = document else {
            return Self { media_type: OCI_MANIFEST, layers: unknown };
        };
        let is_docker = document["config"]["mediaType"] == DOCKER_CONFIG;
        let layers = document["layers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let layers: Vec<_> = layers.iter().map(blob).collect();
        let known = layers.len() == outgoing.layers.len();
        Self {
            media_type: if is_docker { DOCKER_MANIFEST } else { OCI_MANIFEST },
            layers: if known { layers } else { unknown },
        }
    }
}

/// A layer's descriptor, its media type in the OCI's words.
fn blob(descriptor: &Value) -> Option<(Blob, String)> {
    let digest = descriptor["digest"].as_str()?.parse().ok()?;
    let size = descriptor["size"].as_u64()?;
    let media_type = match descriptor["mediaType"].as_str()? {
        // Docker's, also those that its registries would not hand out.
        text if text.contains("rootfs") && text.ends_with("gzip") => format!("{OCI_LAYER}+gzip"),
        text if text.contains("nondistributable") => match text.rsplit_once("tar+") {
            Some((_, packing)) => format!("{OCI_LAYER}+{packing}"),
            None => OCI_LAYER.to_owned(),
        },
        text => text.to_owned(),
    };
    Some((Blob { digest, size }, media_type))
}

struct Push<'a> {
    store: &'a Store,
    session: &'a Session,
    progress: &'a Progress,
    /// Repositories of the same registry that may have the layers.
    elsewhere: Vec<String>,
}

impl Push<'_> {
    async fn layer(
        &self,
        layer: &LayerTar,
        original: Option<&(Blob, String)>,
    ) -> Result<Sent, Error> {
        let what = format!("layer {}", layer.diff.short());
        let name = original.map_or(&layer.diff, |(blob, _)| &blob.digest).short().to_owned();
        let tell = |done, total, phase| {
            self.progress.report(&Step { layer: name.clone(), done, total, phase });
        };
        tell(0, layer.len, Phase::Waiting);
        if let Some((blob, media_type)) = original
            && self.is_there(&blob.digest, &what).await?
        {
            tell(blob.size, blob.size, Phase::Present);
            return Ok(Sent::new(blob, media_type, true));
        }
        let gzip = format!("{OCI_LAYER}+gzip");
        let known = self.store.0.held().packed.get(&layer.chain).cloned();
        if let Some(blob) = known
            && self.is_there(&blob.digest, &what).await?
        {
            tell(blob.size, blob.size, Phase::Present);
            return Ok(Sent::new(&blob, &gzip, false));
        }
        tell(0, layer.len, Phase::Packing);
        let tar = layer.clone();
        let (file, blob) =
            self.store.blocking("packing a layer", move |inner| pack(inner, &tar)).await?;
        if self.session.has_blob(&blob.digest, &what).await? {
            tell(blob.size, blob.size, Phase::Present);
        } else {
            tell(0, blob.size, Phase::Pushing);
            let told = |done| tell(done, blob.size, Phase::Pushing);
            let (digest, len, content) = (&blob.digest, blob.size, &Spool(file));
            let sending = Sending { digest, len, content, what: &what, told: &told };
            self.session.upload(&sending).await?;
            tell(blob.size, blob.size, Phase::Done);
        }
        Ok(Sent::new(&blob, &gzip, false))
    }

    /// In this repository, maybe taken over from another one just now.
    async fn is_there(&self, digest: &Digest, what: &str) -> Result<bool, Error> {
        if self.session.has_blob(digest, what).await? {
            return Ok(true);
        }
        for from in self.elsewhere.iter().take(MOUNTS_MAX) {
            if self.session.mount(digest, from, what).await {
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn bytes(&self, digest: &Digest, bytes: &[u8], what: &str) -> Result<(), Error> {
        if self.session.has_blob(digest, what).await? {
            return Ok(());
        }
        let (len, content) = (bytes.len() as u64, &Bytes::copy_from_slice(bytes));
        self.session.upload(&Sending { digest, len, content, what, told: &|_| {} }).await
    }
}

impl Sent {
    fn new(blob: &Blob, media_type: &str, is_original: bool) -> Self {
        let (digest, size) = (blob.digest.as_str(), blob.size);
        let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": size });
        Self { descriptor, size, is_original }
    }
}

/// Compresses a layer into a nameless file. Blocking.
fn pack(inner: &Arc<Inner>, layer: &LayerTar) -> Result<(File, Blob), Error> {
    let file = inner.scratch.file().map_err(|error| Error::io("make a file", error))?;
    let out =
        Hashed { out: BufWriter::with_capacity(1 << 16, file), hasher: Hasher::default(), len: 0 };
    let mut gzip = flate2::write::GzEncoder::new(out, flate2::Compression::new(GZIP_LEVEL));
    layer.write(&mut gzip)?;
    let packed = |error| Error::io(format!("pack layer {}", layer.diff.short()), error);
    let Hashed { out, hasher, len: size } = gzip.finish().map_err(packed)?;
    let file = out.into_inner().map_err(|error| packed(error.into_error()))?;
    let blob = Blob { digest: hasher.finish(), size };
    inner.held().packed.insert(layer.chain.clone(), blob.clone());
    Ok((file, blob))
}

struct Hashed<W> {
    out: W,
    hasher: Hasher,
    len: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

struct Spool(File);

impl Content for Spool {
    fn piece(&self, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let mut bytes = vec![0; len];
        self.0.read_exact_at(&mut bytes, offset)?;
        Ok(bytes.into())
    }
}

impl super::index::Index {
    /// Other repositories of a registry that the image has names in.
    fn repositories(&self, id: &str, registry: &str, but: &str) -> Vec<String> {
        let names = self.names_of(id).into_iter().chain(self.digests_of(id));
        let names = names.filter_map(|name| name.parse::<Reference>().ok());
        let names = names.filter(|name| name.registry() == registry && name.repository() != but);
        let found: BTreeSet<String> = names.map(|name| name.repository().to_owned()).collect();
        found.into_iter().collect()
    }
}
