//! What a name means in its registry now, without fetching the image.

use std::sync::Arc;

use super::Store;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, Document};
use crate::reference::Reference;
use crate::registry::Session;

/// What a registry has under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remote {
    /// Of what the name leads to: the index of an image for several platforms, or the manifest.
    pub digest: Digest,
    /// The id of the image for this machine, as [`crate::Image::id`]; if there is none, the
    /// platforms that there are.
    pub build: Result<String, Vec<String>>,
}

impl Store {
    /// Asks the registry what a name leads to. Fetches manifests alone; nothing is stored.
    ///
    /// # Errors
    /// Those of a pull that has not got to layers.
    pub async fn look_up(&self, reference: &Reference) -> Result<Remote, Error> {
        let what = reference.familiar();
        let session = self.conversation(reference, &what).await?;
        let bad = |problem: String| Error::BadImage { what: format!("image {what}"), problem };
        let name = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        };
        let (bytes, digest) = session.manifest(name).await?;
        let entries = match manifest::parse(&bytes).map_err(bad)? {
            Document::Image(manifest) => {
                let build = Ok(manifest.config.digest.to_string());
                return Ok(Remote { digest, build });
            }
            Document::Index(entries) => entries,
        };
        let build = match manifest::choose(&entries) {
            Err(available) => Err(available),
            Ok(entry) => {
                let (bytes, _) = session.manifest(entry.blob.digest.as_str()).await?;
                match manifest::parse(&bytes).map_err(bad)? {
                    Document::Image(manifest) => Ok(manifest.config.digest.to_string()),
                    Document::Index(_) => {
                        return Err(bad("an index inside of an index".to_owned()));
                    }
                }
            }
        };
        Ok(Remote { digest, build })
    }

    /// With the registry of `reference`, by the credentials that are kept for it.
    pub(super) async fn conversation(
        &self,
        reference: &Reference,
        what: &str,
    ) -> Result<Arc<Session>, Error> {
        let registry = reference.registry().to_owned();
        let credentials = {
            let registry = registry.clone();
            self.blocking("reading credentials", move |inner| inner.keyring.find(&registry)).await?
        };
        let repository = reference.repository();
        let session = self.0.registries.session(&registry, repository, what, credentials).await?;
        Ok(Arc::new(session))
    }
}
