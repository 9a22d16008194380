//! What a name means in its registry now, without fetching the image.

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
    /// Asks the registry what a name leads to, or those that stand in for it, as a pull would.
    /// Fetches manifests alone; nothing is stored.
    ///
    /// # Errors
    /// Those of a pull that has not got to layers.
    pub async fn look_up(&self, reference: &Reference) -> Result<Remote, Error> {
        let what = reference.familiar();
        for mirror in self.0.registries.mirrors(reference.registry()) {
            let found = async {
                let credentials = self.credentials(mirror.host()).await?;
                let (registries, repository) = (&self.0.registries, reference.repository());
                let session = registries.mirror_session(&mirror, repository, &what, credentials)?;
                self.look_up_in(&session, reference, &what).await
            };
            match found.await {
                Ok(remote) => return Ok(remote),
                Err(error) => {
                    let (mirror, image) = (mirror.host(), &what);
                    tracing::warn!(mirror, image, %error, "a mirror does not help");
                }
            }
        }
        let session = self.session(reference, &what).await?;
        self.look_up_in(&session, reference, &what).await
    }

    async fn look_up_in(
        &self,
        session: &Session,
        reference: &Reference,
        what: &str,
    ) -> Result<Remote, Error> {
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
}
