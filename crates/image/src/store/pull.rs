//! Images from registries.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::try_join_all;
use tokio::sync::mpsc;

use super::layers::{Alive, Hold, Origin, Stack, wanted};
use super::{NewImage, Store};
use crate::Image;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, Config, Document, Manifest};
use crate::progress::{Fan, Progress};
use crate::reference::Reference;
use crate::registry::Session;

/// How long a pull that failed waits for its threads to remove their drafts. They
/// stop at their next read or write; only a dying disk takes longer.
const CLEAN_UP_MAX: Duration = Duration::from_secs(5);

/// A manifest for this node.
struct Resolved {
    bytes: Vec<u8>,
    manifest: Manifest,
    /// Of the manifest itself.
    digest: Digest,
    /// Of what the name led to: the index, if there is one.
    named: Digest,
    /// Of all entries of the index; none of what is no index.
    platforms: BTreeSet<String>,
}

impl Store {
    /// Fetches an image, or looks whether the one that is there is still current.
    ///
    /// Callers of the same name share one pull. It goes on as long as one of them
    /// waits, and ends, leaving nothing half done, when none does.
    pub async fn pull(&self, reference: &Reference, progress: Progress) -> Result<Image, Error> {
        let flight = self.0.pulls.join(&reference.key(), |fan| {
            let (store, reference) = (self.clone(), reference.clone());
            async move { store.pull_now(&reference, &fan).await }.boxed()
        });
        let _watch = flight.fan.watch(progress);
        flight.work.await
    }

    async fn pull_now(&self, reference: &Reference, fan: &Arc<Fan>) -> Result<Image, Error> {
        let (alive, mut gone) = mpsc::channel(1);
        let result = self.try_pull(reference, fan, alive).await;
        if let Err(error) = &result {
            // Ends when the last thread of this pull has dropped its end.
            let _ = tokio::time::timeout(CLEAN_UP_MAX, gone.recv()).await;
            // Layers that are complete speed up the next try, unless there will be none
            // or they take the space that is missing.
            if !error.is_transient() || matches!(error, Error::DiskFull { .. }) {
                let store = self.clone();
                let _ = self.blocking("removing layers", move |_| store.collect()).await;
            }
        }
        result
    }

    async fn try_pull(
        &self,
        reference: &Reference,
        fan: &Arc<Fan>,
        alive: Alive,
    ) -> Result<Image, Error> {
        let what = reference.familiar();
        for mirror in self.0.registries.mirrors(reference.registry()) {
            let pulled = async {
                let credentials = self.credentials(mirror.host()).await?;
                let (registries, repository) = (&self.0.registries, reference.repository());
                let session = registries.mirror_session(&mirror, repository, &what, credentials)?;
                self.pull_from(Arc::new(session), reference, &what, fan, alive.clone()).await
            };
            match pulled.await {
                Ok(image) => return Ok(image),
                // Another registry would not help.
                Err(error @ (Error::DiskFull { .. } | Error::Io { .. })) => return Err(error),
                Err(error) => {
                    let (mirror, image) = (mirror.host(), &what);
                    tracing::warn!(mirror, image, %error, "a mirror does not help");
                }
            }
        }
        let session = Arc::new(self.session(reference, &what).await?);
        self.pull_from(session, reference, &what, fan, alive).await
    }

    async fn pull_from(
        &self,
        session: Arc<Session>,
        reference: &Reference,
        what: &str,
        fan: &Arc<Fan>,
        alive: Alive,
    ) -> Result<Image, Error> {
        let resolved = resolve(&session, reference, what).await?;
        let config = self.config(&session, &resolved.manifest).await?;
        let bad = |problem: String| Error::BadImage { what: format!("image {what}"), problem };
        let parsed = Config::parse(&config).map_err(|problem| bad(format!("config: {problem}")))?;
        if !parsed.is_for_host() {
            let available = format!("{}/{}", parsed.config.os, parsed.config.architecture);
            return Err(no_platform(what, vec![available]));
        }
        let (layers, diffs) = (resolved.manifest.layers.len(), parsed.diff_ids.len());
        if layers != diffs {
            return Err(bad(format!("the manifest has {layers} layers, the config {diffs}")));
        }
        let wanted = wanted(&parsed.diff_ids);
        let hold = Hold::new(&self.0, &wanted);
        let mut flights = Vec::with_capacity(wanted.len());
        let mut watches = Vec::with_capacity(wanted.len());
        for (layer, blob) in wanted.iter().zip(resolved.manifest.layers) {
            let (session, alive) = (Arc::clone(&session), alive.clone());
            let origin = Origin { session, blob, alive };
            let flight = self.layer_flight(layer, &origin, flights.last().cloned());
            let fan = Arc::clone(fan);
            watches.push(flight.fan.watch(Progress::new(move |step| fan.report(step.clone()))));
            flights.push(flight);
        }
        drop(alive);
        let stacks: Vec<Stack> =
            try_join_all(flights.into_iter().map(|flight| flight.work)).await?;
        drop(watches);
        let new = NewImage {
            config,
            manifest: Some(resolved.bytes),
            digests: [&resolved.named, &resolved.digest]
                .map(|digest| reference.by_digest(digest.clone()).key())
                .into(),
            digest: Some(resolved.named),
            layers: stacks.into_iter().map(|stack| stack.top).collect(),
            names: vec![reference.clone()],
            platforms: match resolved.platforms.is_empty() {
                // It is for this machine, as its config says.
                true => [manifest::host_platform()].into(),
                false => resolved.platforms,
            },
        };
        self.blocking("recording an image", move |inner| {
            let image = inner.record(new);
            drop(hold);
            image
        })
        .await
    }

    /// The config, from disk if it is there.
    async fn config(&self, session: &Session, manifest: &Manifest) -> Result<Vec<u8>, Error> {
        let blob = manifest.config.clone();
        let known =
            self.blocking("reading a config", move |inner| Ok(inner.blob(&blob.digest))).await?;
        match known {
            Some(config) => Ok(config),
            None => session.config(&manifest.config).await,
        }
    }
}

fn no_platform(image: &str, available: Vec<String>) -> Error {
    Error::NoPlatform { image: image.to_owned(), platform: manifest::host_platform(), available }
}

async fn resolve(session: &Session, reference: &Reference, what: &str) -> Result<Resolved, Error> {
    let bad = |problem: String| Error::BadImage { what: format!("manifest of {what}"), problem };
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.as_str(),
        (None, Some(tag)) => tag,
        (None, None) => "latest",
    };
    let (bytes, named) = session.manifest(name).await?;
    let entries = match manifest::parse(&bytes).map_err(bad)? {
        Document::Image(manifest) => {
            let (digest, platforms) = (named.clone(), BTreeSet::new());
            return Ok(Resolved { bytes, manifest, digest, named, platforms });
        }
        Document::Index(entries) => entries,
    };
    let platforms = manifest::platforms(&entries);
    let entry = manifest::choose(&entries).map_err(|available| no_platform(what, available))?;
    let (bytes, digest) = session.manifest(entry.blob.digest.as_str()).await?;
    match manifest::parse(&bytes).map_err(bad)? {
        Document::Image(manifest) => Ok(Resolved { bytes, manifest, digest, named, platforms }),
        Document::Index(_) => Err(bad("an index inside of an index".to_owned())),
    }
}
