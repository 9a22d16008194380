//! One layer from a stream to its folder.
//!
//! Fetching and unpacking overlap; several layers are fetched at once, each into a
//! draft of its own; drafts become layers in order, since a folder that a layer
//! does not describe takes its owner and mode from the layers below.

use std::convert::Infallible;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::{mpsc, oneshot};

use super::bridge::{self, Source};
use super::flight::Flight;
use super::{Inner, Store, StoredLayer};
use crate::digest::Digest;
use crate::disk::Draft;
use crate::error::Error;
use crate::manifest::Blob;
use crate::progress::{Fan, Phase, Step};
use crate::registry::Session;
use crate::unpack::{self, Unpacked};

/// Progress is told every so many bytes.
const REPORT_EVERY: u64 = 256 * 1024;

/// A layer of an image that is to be there.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) chain: Digest,
    pub(super) diff: Digest,
}

/// A layer that is there, with all that is below it.
#[derive(Debug, Clone)]
pub(super) struct Stack {
    /// Topmost first.
    pub(super) folders: Vec<PathBuf>,
    pub(super) top: StoredLayer,
}

pub(super) type LayerResult = Result<Stack, Error>;

/// Alive as long as a thread may still write for a pull.
pub(super) type Alive = mpsc::Sender<Infallible>;

/// The layers of a config, lowest first.
pub(super) fn wanted(diff_ids: &[Digest]) -> Vec<Wanted> {
    let mut layers: Vec<Wanted> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let chain = diff.chained(layers.last().map(|below| &below.chain));
        layers.push(Wanted { chain, diff: diff.clone() });
    }
    layers
}

/// Keeps layers from being collected while an image is on its way.
pub(super) struct Hold {
    inner: Arc<Inner>,
    chains: Vec<Digest>,
}

impl Hold {
    pub(super) fn new(inner: &Arc<Inner>, layers: &[Wanted]) -> Self {
        let chains: Vec<Digest> = layers.iter().map(|layer| layer.chain.clone()).collect();
        let mut held = inner.held();
        for chain in &chains {
            *held.counts.entry(chain.clone()).or_default() += 1;
        }
        drop(held);
        Self { inner: Arc::clone(inner), chains }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut held = self.inner.held();
        for chain in &self.chains {
            if let Some(count) = held.counts.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    held.counts.remove(chain);
                }
            }
        }
    }
}

impl Inner {
    /// The layer if it is there. The caller holds it.
    pub(super) fn present(&self, chain: &Digest) -> Option<StoredLayer> {
        let known = self.held().fresh.get(chain).cloned();
        let layer = known.or_else(|| self.index().layer(chain))?;
        self.layer_path(chain).is_dir().then_some(layer)
    }

    /// Unpacks a stream into a draft and checks it. Blocking.
    pub(super) fn draft(
        &self,
        source: impl Read,
        name: &Digest,
        blob: Option<&Digest>,
        diff: Option<&Digest>,
    ) -> Result<(Draft, Unpacked), Error> {
        let layer = name.short();
        let mut draft = self
            .scratch
            .draft()
            .map_err(|error| Error::io(format!("make a folder for layer {layer}"), error))?;
        let recipe = draft
            .recipe()
            .map_err(|error| Error::io(format!("make a file for layer {layer}"), error))?;
        let unpacked = unpack::unpack(source, draft.path(), blob, Some(recipe), &self.limits)
            .map_err(|error| explain(error, layer))?;
        if unpacked.has_recipe {
            draft.has_recipe();
        }
        match diff {
            Some(diff) if unpacked.diff != *diff => Err(Error::DigestMismatch {
                what: format!("content of layer {layer}"),
                expected: diff.to_string(),
                actual: unpacked.diff.to_string(),
            }),
            _ => {
                // Here, so that the layers of an image flush side by side.
                draft.flush().map_err(|error| Error::io(format!("flush layer {layer}"), error))?;
                Ok((draft, unpacked))
            }
        }
    }

    /// Makes a draft the layer `chain` on top of `below`, topmost first. Blocking.
    pub(super) fn settle(
        &self,
        mut draft: Draft,
        unpacked: &Unpacked,
        chain: &Digest,
        below: &[PathBuf],
    ) -> LayerResult {
        let flushed = unpack::inherit(draft.path(), &unpacked.implied, below)
            .map_err(|error| explain(error, chain.short()))?;
        if !flushed {
            draft.touch();
        }
        let folder = self.layer_path(chain);
        draft
            .keep(&folder, &self.recipe_path(chain))
            .map_err(|error| Error::at("store layer in", &folder, error))?;
        if unpacked.devices_skipped + unpacked.xattrs_dropped > 0 {
            tracing::info!(
                layer = chain.short(),
                devices_skipped = unpacked.devices_skipped,
                xattrs_dropped = unpacked.xattrs_dropped,
                "layer unpacked without device nodes or foreign attributes"
            );
        }
        let (size, devices) = (unpacked.size, unpacked.devices_skipped);
        let top = StoredLayer { chain: chain.clone(), size, devices };
        self.held().fresh.insert(chain.clone(), top.clone());
        let mut folders = vec![folder];
        folders.extend_from_slice(below);
        Ok(Stack { folders, top })
    }
}

fn explain(error: unpack::Error, layer: &str) -> Error {
    match error {
        unpack::Error::Bad(what) => Error::BadLayer { layer: layer.to_owned(), what },
        unpack::Error::Full => Error::DiskFull { what: format!("layer {layer}") },
        unpack::Error::Aborted => Error::Interrupted { what: format!("layer {layer}") },
        unpack::Error::Digest { expected, actual } => Error::DigestMismatch {
            what: format!("layer {layer}"),
            expected: expected.to_string(),
            actual: actual.to_string(),
        },
        unpack::Error::Io { action, source } => {
            Error::io(format!("unpack layer {layer}: {action}"), source)
        }
    }
}

/// An unpacked draft. If nobody wants it any more it is removed by a thread of its
/// own: removing thousands of files would stall the event loop.
struct Fetched(Option<(Draft, Unpacked, Alive)>);

impl Drop for Fetched {
    fn drop(&mut self) {
        if let Some(draft) = self.0.take() {
            // Without a thread it is removed here, late is better than never.
            let _ = std::thread::Builder::new().name("warren-sweep".into()).spawn(|| drop(draft));
        }
    }
}

/// Where a layer comes from.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) session: Arc<Session>,
    pub(super) blob: Blob,
    pub(super) alive: Alive,
}

impl Store {
    /// Joins the flight of a layer, or starts it. `below` is the flight it builds on.
    pub(super) fn layer_flight(
        &self,
        layer: &Wanted,
        origin: &Origin,
        below: Option<Flight<LayerResult>>,
    ) -> Flight<LayerResult> {
        let blob = &origin.blob.digest;
        // The repository too: what one hands out says nothing about another.
        let session = &origin.session;
        let key = format!("{} {blob} {}", layer.chain, session.place());
        let (store, layer, origin) = (self.clone(), layer.clone(), origin.clone());
        self.0.layers.join(&key, move |fan| {
            async move { store.fetch(layer, origin, below, fan).await }.boxed()
        })
    }

    async fn fetch(
        self,
        layer: Wanted,
        origin: Origin,
        below: Option<Flight<LayerResult>>,
        fan: Arc<Fan>,
    ) -> LayerResult {
        let tell = Teller { fan, blob: origin.blob.clone() };
        if let Some(top) = self.0.present(&layer.chain) {
            tell.report(origin.blob.size, Phase::Present);
            let mut folders = vec![self.0.layer_path(&layer.chain)];
            if let Some(below) = below {
                folders.extend(below.work.await?.folders);
            }
            return Ok(Stack { folders, top });
        }
        tell.report(0, Phase::Waiting);
        let fetch = self.fetch_draft(&layer, &origin, &tell).boxed();
        // A layer below that fails ends this one at once.
        let (mut fetched, below) = futures::try_join!(fetch, async {
            match below {
                Some(below) => below.work.await.map(|stack| stack.folders),
                None => Ok(Vec::new()),
            }
        })?;
        let Some((draft, unpacked, alive)) = fetched.0.take() else {
            return Err(Error::Interrupted { what: format!("layer {}", layer.chain.short()) });
        };
        let chain = layer.chain;
        let stack = self
            .blocking("storing a layer", move |inner| {
                let stack = inner.settle(draft, &unpacked, &chain, &below);
                drop(alive);
                stack
            })
            .await?;
        tell.report(origin.blob.size, Phase::Done);
        Ok(stack)
    }

    /// Downloads and unpacks at once, when it is its turn.
    async fn fetch_draft(
        &self,
        layer: &Wanted,
        origin: &Origin,
        tell: &Teller,
    ) -> Result<Fetched, Error> {
        let interrupted = || Error::Interrupted { what: format!("layer {}", layer.chain.short()) };
        let _permit = self.0.permits.acquire().await.map_err(|_| interrupted())?;
        let (sender, source) = bridge::channel();
        let drafted = self.unpack_on_thread(source, layer, origin)?;
        let pump = async {
            let mut stream = origin.session.layer(&origin.blob);
            let (mut done, mut told) = (0, 0);
            tell.report(0, Phase::Fetching);
            while let Some(piece) = stream.next().await? {
                done += piece.len() as u64;
                if sender.send(piece).await.is_err() {
                    return Ok(());
                }
                if done - told >= REPORT_EVERY {
                    told = done;
                    tell.report(done, Phase::Fetching);
                }
            }
            sender.end().await;
            tell.report(done, Phase::Flushing);
            Ok(())
        };
        // The network's own error says more than the thread's, that it was left alone.
        // Either way the thread is waited for: afterwards nothing of it is left.
        let pumped: Result<(), Error> = pump.await;
        let drafted = drafted.await.unwrap_or_else(|_| Err(interrupted()));
        pumped?;
        drafted
    }

    fn unpack_on_thread(
        &self,
        source: Source,
        layer: &Wanted,
        origin: &Origin,
    ) -> Result<oneshot::Receiver<Result<Fetched, Error>>, Error> {
        let (answer, drafted) = oneshot::channel();
        let (inner, layer) = (Arc::clone(&self.0), layer.clone());
        let (blob, alive) = (origin.blob.digest.clone(), origin.alive.clone());
        std::thread::Builder::new()
            .name("warren-unpack".into())
            .spawn(move || {
                let draft = inner.draft(source, &blob, Some(&blob), Some(&layer.diff));
                let fetched =
                    draft.map(|(draft, unpacked)| Fetched(Some((draft, unpacked, alive))));
                drop(inner);
                // If nobody waits any more the draft goes with the answer.
                let _ = answer.send(fetched);
            })
            .map_err(|error| Error::io("start a thread to unpack a layer", error))?;
        Ok(drafted)
    }
}

struct Teller {
    fan: Arc<Fan>,
    blob: Blob,
}

impl Teller {
    fn report(&self, done: u64, phase: Phase) {
        self.fan.report(Step {
            layer: self.blob.digest.short().to_owned(),
            done,
            total: self.blob.size,
            phase,
        });
    }
}
