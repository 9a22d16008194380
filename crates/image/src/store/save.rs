//! Images into an archive that everybody reads: `docker load`, skopeo's `docker-archive`
//! and `oci-archive`, and [`super::Store::load`].
//!
//! As newer versions of `docker save` have it: an OCI layout in a tar, with Docker's
//! `manifest.json` beside its index. Layers are not compressed, each is there once. The
//! same images always give the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::outgoing::{Gone, LayerTar, Outgoing};
use super::{Inner, Store};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::progress::{Phase, Progress, Step};
use crate::reference::Reference;

/// Of one archive: more are refused before anything is written.
const IMAGES_MAX: usize = 256;
/// Bytes handed on at once.
const PIECE_LEN: usize = 64 * 1024;
const BLOCK: usize = 512;

/// One image of the archive.
struct Chosen {
    id: String,
    /// Names that it was asked for by; ids are none.
    names: Vec<Reference>,
}

impl Store {
    /// Writes images, by name or id, as one archive into `out`. It keeps those names that
    /// it was asked for by. Ends early when nobody reads `out` any more.
    ///
    /// # Errors
    /// Images that are not there; layers whose folders were altered.
    pub async fn save(
        &self,
        images: &[String],
        out: mpsc::Sender<Bytes>,
        progress: Progress,
    ) -> Result<(), Error> {
        let images = images.to_vec();
        self.blocking("saving images", move |inner| {
            let chosen = choose(inner, &images)?;
            let opened = chosen
                .iter()
                .map(|image| Outgoing::open(inner, &image.id))
                .collect::<Result<Vec<_>, _>>()?;
            let sink = Pieces { out, gathered: BytesMut::with_capacity(PIECE_LEN) };
            let mut archive = Writer { out: sink, progress, written: BTreeSet::new() };
            let done = archive.images(&chosen, &opened);
            drop(opened);
            let swept = inner.collect_gone(chosen.iter().map(|image| image.id.as_str()));
            done.and(swept)
        })
        .await
    }
}

/// Each image once, in the order of their names.
fn choose(inner: &Arc<Inner>, images: &[String]) -> Result<Vec<Chosen>, Error> {
    let index = inner.index();
    let mut chosen: Vec<Chosen> = Vec::new();
    for text in images {
        let id = index.find(text)?;
        let name = index.name(text).and_then(|name| name.parse::<Reference>().ok());
        match chosen.iter_mut().find(|image| image.id == id) {
            Some(image) => image.names.extend(name),
            None => chosen.push(Chosen { id, names: name.into_iter().collect() }),
        }
    }
    if chosen.is_empty() || chosen.len() > IMAGES_MAX {
        return Err(Error::BadOption {
            what: "number of images",
            value: chosen.len().to_string(),
            problem: "1 to 256 go into one archive",
        });
    }
    for image in &mut chosen {
        image.names.sort();
        image.names.dedup();
    }
    chosen.sort_by(|a, b| (&a.names, &a.id).cmp(&(&b.names, &b.id)));
    Ok(chosen)
}

/// Hands on what is written.
struct Pieces {
    out: mpsc::Sender<Bytes>,
    gathered: BytesMut,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE_LEN {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.gathered.is_empty() {
            true => Ok(()),
            false => {
                let piece = self.gathered.split().freeze();
                self.out.blocking_send(piece).map_err(|_| io::Error::other(Gone))
            }
        }
    }
}

struct Writer<W> {
    out: W,
    progress: Progress,
    /// Blobs that are in the archive.
    written: BTreeSet<Digest>,
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({ "mediaType": media_type, "digest": digest.as_str(), "size": size })
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

impl<W: Write> Writer<W> {
    fn images(&mut self, chosen: &[Chosen], opened: &[Outgoing]) -> Result<(), Error> {
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let (mut index, mut listed) = (Vec::new(), Vec::new());
        for (image, content) in chosen.iter().zip(opened) {
            let manifest = self.image(content)?;
            let digest = Digest::of(&manifest);
            self.blob(&digest, &manifest)?;
            let entry = descriptor(OCI_MANIFEST, &digest, manifest.len() as u64);
            // One entry a name: that is how an index says it.
            match image.names.as_slice() {
                [] => index.push(entry),
                names => index.extend(names.iter().map(|name| named(entry.clone(), name))),
            }
            let layers: Vec<String> =
                content.layers.iter().map(|layer| blob_name(&layer.diff)).collect();
            let tags: Vec<String> = image.names.iter().map(Reference::familiar).collect();
            listed.push(json!({
                "Config": blob_name(&Digest::of(&content.config)),
                "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
                "Layers": layers,
            }));
        }
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index });
        self.file("index.json", index.to_string().as_bytes())?;
        self.file("manifest.json", Value::from(listed).to_string().as_bytes())?;
        self.put(&[0; 2 * BLOCK])?;
        self.out.flush().map_err(explain)
    }

    /// Writes layers and config; returns the manifest.
    fn image(&mut self, image: &Outgoing) -> Result<Vec<u8>, Error> {
        for layer in &image.layers {
            self.layer(layer)?;
        }
        let config = Digest::of(&image.config);
        self.blob(&config, &image.config)?;
        let layers = image.layers.iter();
        let layers: Vec<Value> =
            layers.map(|layer| descriptor(OCI_LAYER, &layer.diff, layer.len)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config, image.config.len() as u64),
            "layers": layers,
        });
        Ok(manifest.to_string().into_bytes())
    }

    fn layer(&mut self, layer: &LayerTar) -> Result<(), Error> {
        let tell = |done, phase| Step {
            layer: layer.diff.short().to_owned(),
            done,
            total: layer.len,
            phase,
        };
        if !self.written.insert(layer.diff.clone()) {
            return Ok(());
        }
        self.progress.report(&tell(0, Phase::Writing));
        self.header(&blob_name(&layer.diff), layer.len)?;
        layer.write(&mut self.out)?;
        self.pad(layer.len)?;
        self.progress.report(&tell(layer.len, Phase::Done));
        Ok(())
    }

    fn blob(&mut self, digest: &Digest, bytes: &[u8]) -> Result<(), Error> {
        match self.written.insert(digest.clone()) {
            true => self.file(&blob_name(digest), bytes),
            false => Ok(()),
        }
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let len = bytes.len() as u64;
        self.header(name, len)?;
        self.put(bytes)?;
        self.pad(len)
    }

    fn header(&mut self, name: &str, len: u64) -> Result<(), Error> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(len);
        // All names of an archive are shorter than the 100 bytes that there are.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        self.put(header.as_bytes())
    }

    fn pad(&mut self, len: u64) -> Result<(), Error> {
        let padding = usize::try_from(len.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.put(&[0; BLOCK][..padding])
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(explain)
    }
}

fn explain(error: io::Error) -> Error {
    match error.get_ref() {
        Some(inner) if inner.is::<Gone>() => {
            Error::Interrupted { what: "writing the archive".to_owned() }
        }
        _ => Error::io("write the archive", error),
    }
}

fn named(mut entry: Value, name: &Reference) -> Value {
    let annotations = BTreeMap::from([
        ("io.containerd.image.name", name.canonical()),
        ("org.opencontainers.image.ref.name", name.familiar()),
    ]);
    entry["annotations"] = json!(annotations);
    entry
}
