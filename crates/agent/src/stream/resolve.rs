//! The digest that an image's name has in its registry, so that all replicas of a service run the
//! same, whatever becomes of the tag.
//!
//! Only what a registry says counts. An image that came by load or import, and that is not the
//! registry's too, stays as it is: nobody could pull it by a digest.

use std::collections::{BTreeSet, HashMap};

use warren_image::{Digest, Image, Progress, Reference, Remote};

use super::Failure;
use crate::worker::Tools;

/// For a registry to tell the digest of an image that is here: the service must not wait for long
/// for one that is silent.
const LOOK_UP_MAX_MS: u64 = 10_000;
/// Whose names without a registry are. Those of images that were made here are not asked for.
const DEFAULT_REGISTRY: &str = warren_image::reference::DEFAULT_REGISTRY;

/// The image, or what there are builds for if none is for this machine.
pub(super) type Found = Result<Image, Vec<String>>;

/// Names that are to be resolved, and what came of it.
#[derive(Debug, Default)]
pub(super) struct Resolved {
    wanted: BTreeSet<String>,
    /// As it is to be named, by name.
    pub(super) pinned: HashMap<String, String>,
    /// Why its registry did not tell, by name.
    pub(super) unresolved: HashMap<String, String>,
    /// Not from a registry.
    pub(super) local: Vec<String>,
}

impl Resolved {
    pub(super) fn new(wanted: Vec<String>) -> Self {
        Self { wanted: wanted.into_iter().collect(), ..Self::default() }
    }

    /// The image, here afterwards; as its registry has it now if it is to be resolved.
    pub(super) async fn find(&mut self, tools: &Tools, text: &str) -> Result<Found, Failure> {
        let name: Reference = match text.parse() {
            Ok(name) => name,
            Err(error) => {
                let error = warren_image::Error::from(error);
                return tools.images.find(text).map(Ok).map_err(|_| error.into());
            }
        };
        // One that two containers have is asked for once.
        if !self.wanted.remove(text) || name.digest().is_some() {
            return find(tools, &name).await;
        }
        let here = tools.images.get(&name);
        let made_here = here.as_ref().is_some_and(|image| image.digest.is_none());
        if made_here && name.registry() == DEFAULT_REGISTRY {
            self.local.push(text.to_owned());
            return find(tools, &name).await;
        }
        let remote = match (look_up(tools, &name, here.is_some()).await, here) {
            (Ok(remote), Some(image)) if made_here && remote.build.as_deref() != Ok(&image.id) => {
                self.local.push(text.to_owned());
                return Ok(Ok(image));
            }
            (Ok(remote), _) => remote,
            (Err(_), Some(image)) if made_here => {
                self.local.push(text.to_owned());
                return Ok(Ok(image));
            }
            (Err(failure), Some(image)) => {
                self.unresolved.insert(text.to_owned(), failure.message);
                return Ok(Ok(image));
            }
            (Err(failure), None) => return Err(failure),
        };
        self.take(tools, text, &name, remote).await
    }

    /// Has the image that the registry named, and notes its digest.
    async fn take(
        &mut self,
        tools: &Tools,
        text: &str,
        name: &Reference,
        remote: Remote,
    ) -> Result<Found, Failure> {
        let mut digest = remote.digest.clone();
        let found = match (tools.images.get(&at(name, &digest)), remote.build) {
            (Some(image), _) => Ok(image),
            (None, Err(available)) => Err(available),
            (None, Ok(_)) => {
                let found = pull(tools, name).await?;
                // The tag may have moved in between: what came is what counts.
                if let Ok(image) = &found
                    && tools.images.get(&at(name, &digest)).is_none()
                    && let Some(came) = image.digest.as_ref().and_then(|came| came.parse().ok())
                {
                    digest = came;
                }
                found
            }
        };
        let tagged = match name.tag() {
            Some(tag) if !text.ends_with(&format!(":{tag}")) => format!("{text}:{tag}"),
            Some(_) | None => text.to_owned(),
        };
        self.pinned.insert(text.to_owned(), format!("{tagged}@{digest}"));
        Ok(found)
    }
}

fn at(name: &Reference, digest: &Digest) -> Reference {
    name.by_digest(digest.clone())
}

/// What it leads to in its registry. If it is here as well nobody waits for long.
async fn look_up(tools: &Tools, name: &Reference, is_here: bool) -> Result<Remote, Failure> {
    let asked = tokio::select! {
        asked = tools.images.look_up(name) => asked,
        () = tools.clock.sleep(LOOK_UP_MAX_MS), if is_here => {
            let (what, seconds) = (name.familiar(), LOOK_UP_MAX_MS / 1_000);
            let registry = name.registry().to_owned();
            Err(warren_image::Error::TimedOut { what, registry, seconds })
        }
    };
    asked.map_err(Failure::from)
}

async fn find(tools: &Tools, name: &Reference) -> Result<Found, Failure> {
    match tools.images.get(name) {
        Some(image) => Ok(Ok(image)),
        None => pull(tools, name).await,
    }
}

async fn pull(tools: &Tools, name: &Reference) -> Result<Found, Failure> {
    match tools.images.pull(name, Progress::none()).await {
        Ok(image) => Ok(Ok(image)),
        Err(warren_image::Error::NoPlatform { available, .. }) if !available.is_empty() => {
            Ok(Err(available.iter().map(|platform| plain(platform)).collect()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Without its variant: `linux/arm64` of `linux/arm64/v8`.
fn plain(platform: &str) -> String {
    platform.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}
