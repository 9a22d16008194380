//! An image on its way out: its config and the tars of its layers.
//!
//! A layer with a recipe comes out as it came in, byte for byte, so the image keeps
//! its id. One without (see [`crate::recipe`]) is written anew from its folder: the
//! same folder always gives the same tar, but not the one that came in; config and id
//! change with it. What is written is checked against its digest on the way.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::Inner;
use super::layers::{Hold, wanted};
use crate::digest::{Digest, Hasher};
use crate::error::Error;
use crate::manifest::Config;
use crate::recipe::{Broken, Replay};
use crate::retar;

const COPY_LEN: usize = 128 * 1024;

/// Everything of an image that others need.
pub(super) struct Outgoing {
    pub(super) config: Vec<u8>,
    /// The manifest it was pulled by, if its layers are still those.
    pub(super) manifest: Option<Vec<u8>>,
    /// The lowest first.
    pub(super) layers: Vec<LayerTar>,
    /// Nothing of it is removed meanwhile.
    _hold: Hold,
}

/// The tar of one layer.
#[derive(Debug, Clone)]
pub(super) struct LayerTar {
    pub(super) chain: Digest,
    pub(super) diff: Digest,
    pub(super) len: u64,
    folder: PathBuf,
    /// Nothing: from the folder alone.
    recipe: Option<PathBuf>,
}

impl Outgoing {
    /// Of the image with that id. Blocking: a layer without a recipe is read once for its digest.
    pub(super) fn open(inner: &Arc<Inner>, id: &str) -> Result<Self, Error> {
        let gone = || Error::NoSuchImage { name: id.to_owned() };
        let digest: Digest = id.parse().map_err(|_| gone())?;
        let bytes = inner.blob(&digest).ok_or_else(gone)?;
        let config = Config::parse(&bytes).map_err(|problem| Error::BadImage {
            what: format!("config {}", digest.short()),
            problem,
        })?;
        let wanted = wanted(&config.diff_ids);
        let hold = Hold::new(inner, &wanted);
        // Held first, then looked for: it cannot go in between.
        let index = inner.index();
        let manifest = index.manifest(id).ok_or_else(gone)?;
        let mut layers = Vec::with_capacity(wanted.len());
        for layer in &wanted {
            let recipe = inner.recipe_path(&layer.chain);
            let tar = LayerTar {
                chain: layer.chain.clone(),
                diff: layer.diff.clone(),
                len: 0,
                folder: inner.layer_path(&layer.chain),
                recipe: recipe.is_file().then_some(recipe),
            };
            layers.push(tar.measured()?);
        }
        let same = layers.iter().zip(&wanted).all(|(tar, layer)| tar.diff == layer.diff);
        let (config, manifest) = match same {
            true => (bytes, manifest.and_then(|digest| inner.blob(&digest))),
            false => (with_layers(&bytes, &layers)?, None),
        };
        Ok(Self { config, manifest, layers, _hold: hold })
    }
}

/// The config with the digests of layers that were written anew.
fn with_layers(config: &[u8], layers: &[LayerTar]) -> Result<Vec<u8>, Error> {
    let mut document: serde_json::Value = serde_json::from_slice(config).map_err(|error| {
        Error::BadImage { what: "config".to_owned(), problem: error.to_string() }
    })?;
    let diffs: Vec<&str> = layers.iter().map(|layer| layer.diff.as_str()).collect();
    document["rootfs"] = serde_json::json!({ "type": "layers", "diff_ids": diffs });
    Ok(document.to_string().into_bytes())
}

impl LayerTar {
    /// With its length, and its digest if that is another one now.
    fn measured(mut self) -> Result<Self, Error> {
        match &self.recipe {
            Some(recipe) => {
                let len = Replay::open(recipe, &self.folder).and_then(Replay::len);
                self.len = len.map_err(|error| self.explain(error))?;
            }
            None => {
                let mut count = Count { out: io::sink(), hasher: Hasher::default(), len: 0 };
                retar::write(&self.folder, &mut count).map_err(|error| self.explain(error))?;
                self.len = count.len;
                self.diff = count.hasher.finish();
            }
        }
        Ok(self)
    }

    /// Writes the tar to its end, or fails: also if it is not what it should be.
    pub(super) fn write(&self, out: &mut impl Write) -> Result<(), Error> {
        let mut count = Count { out, hasher: Hasher::default(), len: 0 };
        let written = match &self.recipe {
            Some(recipe) => {
                let mut buffer = vec![0; COPY_LEN];
                Replay::open(recipe, &self.folder)
                    .and_then(|mut replay| copy(&mut replay, &mut count, &mut buffer))
            }
            None => retar::write(&self.folder, &mut count),
        };
        written.map_err(|error| self.explain(error))?;
        let (actual, what) = (count.hasher.finish(), format!("layer {}", self.diff.short()));
        match actual == self.diff {
            true => Ok(()),
            false => Err(Error::DigestMismatch {
                what: format!("content of {what} in the store"),
                expected: self.diff.to_string(),
                actual: actual.to_string(),
            }),
        }
    }

    fn explain(&self, error: io::Error) -> Error {
        let layer = self.diff.short();
        match error.get_ref() {
            Some(inner) if inner.is::<Broken>() || inner.is::<retar::Unfit>() => {
                Error::DamagedLayer { layer: layer.to_owned(), what: error.to_string() }
            }
            Some(inner) if inner.is::<Gone>() => {
                Error::Interrupted { what: format!("writing layer {layer}") }
            }
            _ if error.kind() == io::ErrorKind::NotFound => Error::DamagedLayer {
                layer: layer.to_owned(),
                what: "its folder is missing".to_owned(),
            },
            _ => Error::io(format!("write layer {layer}"), error),
        }
    }
}

/// Nobody reads any more.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads what is written")]
pub(super) struct Gone;

fn copy(from: &mut impl Read, to: &mut impl Write, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        match from.read(buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}

/// Hashes and counts what is written.
struct Count<W> {
    out: W,
    hasher: Hasher,
    len: u64,
}

impl<W: Write> Write for Count<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
