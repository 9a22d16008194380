//! What pushing adds to a conversation: is a blob there, take this blob, take this manifest.
//!
//! The OCI distribution specification, "Pushing": blobs of up to one piece are sent
//! whole, larger ones piece by piece; after a broken connection the registry is asked how
//! far it got. Where a registry sends us for an upload may be another host: credentials
//! do not go there, nor does anything from HTTPS to plain HTTP.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};

use super::session::{Ask, Session};
use crate::digest::Digest;
use crate::error::Error;

/// Of one piece: each is in memory, and sent anew if it does not arrive. S3 behind
/// registries wants 5 MiB at least.
const PIECE_LEN: u64 = 8 << 20;
/// A registry may want larger ones, up to this.
const PIECE_LEN_MAX: u64 = 64 << 20;
/// Attempts to go on with one blob after the connection broke or the registry had a problem.
const RESUMES_MAX: u32 = 4;
/// Doubled each time.
const RESUME_DELAY: Duration = Duration::from_millis(250);
const OCTETS: &str = "application/octet-stream";

/// Bytes of a blob, from where they are asked for.
pub(crate) trait Content: Send {
    /// `len` bytes from `offset`. Blocking, a few MiB at most.
    fn piece(&self, offset: u64, len: usize) -> std::io::Result<Bytes>;
}

impl Content for Bytes {
    fn piece(&self, offset: u64, len: usize) -> std::io::Result<Bytes> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        Ok(self.slice(start..start.saturating_add(len).min(self.len())))
    }
}

/// A blob on its way.
pub(crate) struct Sending<'a> {
    pub(crate) digest: &'a Digest,
    pub(crate) len: u64,
    pub(crate) content: &'a (dyn Content + Sync),
    /// For messages.
    pub(crate) what: &'a str,
    /// Hears how far it is.
    pub(crate) told: &'a (dyn Fn(u64) + Sync),
}

/// An upload that the registry has begun.
struct Upload {
    url: Url,
    piece_len: u64,
}

impl Session {
    /// Whether the registry has a blob in this repository.
    pub(crate) async fn has_blob(&self, digest: &Digest, what: &str) -> Result<bool, Error> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.send(&Ask::new(Method::HEAD, &url), what).await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.refusal(response, what).await),
        }
    }

    /// Asks the registry to take a blob over from another of its repositories. Not all do,
    /// and none says why not.
    pub(crate) async fn mount(&self, digest: &Digest, from: &str, what: &str) -> bool {
        let Ok(mut url) = Url::parse(&self.url("blobs/uploads/")) else { return false };
        url.query_pairs_mut().append_pair("mount", digest.as_str()).append_pair("from", from);
        let ask = Ask::new(Method::POST, url.as_str());
        let Ok(response) = self.send(&ask, what).await else { return false };
        let mounted = response.status() == StatusCode::CREATED;
        if let (false, Ok(upload)) = (mounted, self.upload_of(&response, what)) {
            // It began an upload instead, which nobody goes on with.
            let _ = self.send(&Ask::new(Method::DELETE, upload.url.as_str()), what).await;
        }
        mounted
    }

    /// Sends a blob that is not there yet.
    pub(crate) async fn upload(&self, sending: &Sending<'_>) -> Result<(), Error> {
        let what = sending.what;
        let mut upload = self.begin(what).await?;
        let (mut done, mut resumes) = (0, 0);
        loop {
            let going = self.go_on(&mut upload, &mut done, sending);
            let Err(error) = going.await else { return Ok(()) };
            if !error.is_transient() || resumes == RESUMES_MAX {
                return Err(error);
            }
            tracing::debug!(what, done, %error, "upload broke, going on");
            tokio::time::sleep(RESUME_DELAY * 2u32.pow(resumes)).await;
            resumes += 1;
            match self.progress(&mut upload, what).await {
                Some(reached) => done = reached.min(sending.len),
                // It knows nothing of it any more, or does not answer: from the start.
                None => {
                    if let Ok(begun) = self.begin(what).await {
                        (upload, done) = (begun, 0);
                    }
                }
            }
        }
    }

    /// Names a manifest, or an image by its digest.
    pub(crate) async fn put_manifest(
        &self,
        tag: &str,
        media_type: &str,
        bytes: &[u8],
        what: &str,
    ) -> Result<(), Error> {
        let mut ask = Ask::new(Method::PUT, &self.url(&format!("manifests/{tag}")));
        ask.headers.push((CONTENT_TYPE, media_type.to_owned()));
        ask.body = Some(Bytes::copy_from_slice(bytes));
        let response = self.send(&ask, what).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::ACCEPTED => Ok(()),
            _ => Err(self.refusal(response, what).await),
        }
    }

    async fn begin(&self, what: &str) -> Result<Upload, Error> {
        let mut ask = Ask::new(Method::POST, &self.url("blobs/uploads/"));
        ask.headers.push((CONTENT_LENGTH, "0".to_owned()));
        let response = self.send(&ask, what).await?;
        match response.status() {
            StatusCode::ACCEPTED => self.upload_of(&response, what),
            _ => Err(self.refusal(response, what).await),
        }
    }

    /// Where to go on, as an answer says.
    fn upload_of(&self, response: &Response, what: &str) -> Result<Upload, Error> {
        let bad = |problem: String| Error::RegistryError {
            what: what.to_owned(),
            registry: self.registry().to_owned(),
            status: response.status().as_u16(),
            detail: problem,
        };
        let text = |name: HeaderName| response.headers().get(name).and_then(|v| v.to_str().ok());
        let location = text(LOCATION).ok_or_else(|| bad("no location to upload to".to_owned()))?;
        let url =
            response.url().join(location).map_err(|error| bad(format!("location: {error}")))?;
        if response.url().scheme() == "https" && url.scheme() != "https" {
            return Err(bad("location is over plain HTTP".to_owned()));
        }
        let least = text(HeaderName::from_static("oci-chunk-min-length"));
        let least = least.and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Upload { url, piece_len: PIECE_LEN.max(least).min(PIECE_LEN_MAX) })
    }

    /// From `done` to the end.
    async fn go_on(
        &self,
        upload: &mut Upload,
        done: &mut u64,
        sending: &Sending<'_>,
    ) -> Result<(), Error> {
        let Sending { digest, len, content, what, told } = *sending;
        let read = |offset, left: u64| {
            let count = usize::try_from(left).unwrap_or(usize::MAX);
            let piece = content.piece(offset, count);
            piece.map_err(|error| Error::io(format!("read {what}"), error))
        };
        // The last piece goes with the request that ends it, so most blobs need two in all.
        while len - *done > upload.piece_len {
            let piece = read(*done, upload.piece_len)?;
            let last = *done + piece.len() as u64 - 1;
            let mut ask = Ask::new(Method::PATCH, upload.url.as_str());
            ask.headers.push((CONTENT_TYPE, OCTETS.to_owned()));
            ask.headers.push((CONTENT_RANGE, format!("{done}-{last}")));
            ask.body = Some(piece);
            let response = self.send(&ask, what).await?;
            match response.status() {
                StatusCode::ACCEPTED | StatusCode::NO_CONTENT | StatusCode::CREATED => {}
                _ => return Err(self.refusal(response, what).await),
            }
            let piece_len = upload.piece_len;
            *upload = self.upload_of(&response, what)?;
            upload.piece_len = piece_len;
            *done = last + 1;
            told(*done);
        }
        let piece = read(*done, len - *done)?;
        let mut url = upload.url.clone();
        url.query_pairs_mut().append_pair("digest", digest.as_str());
        let mut ask = Ask::new(Method::PUT, url.as_str());
        ask.headers.push((CONTENT_TYPE, OCTETS.to_owned()));
        if *done > 0 && !piece.is_empty() {
            ask.headers.push((CONTENT_RANGE, format!("{done}-{}", len - 1)));
        }
        ask.body = Some(piece);
        let response = self.send(&ask, what).await?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => {
                told(len);
                Ok(())
            }
            _ => Err(self.refusal(response, what).await),
        }
    }

    /// How many bytes the registry has; nothing if it does not know.
    async fn progress(&self, upload: &mut Upload, what: &str) -> Option<u64> {
        let response = self.send(&Ask::new(Method::GET, upload.url.as_str()), what).await.ok()?;
        if response.status() != StatusCode::NO_CONTENT && response.status() != StatusCode::OK {
            return None;
        }
        let range = response.headers().get(RANGE)?.to_str().ok()?.to_owned();
        let piece_len = upload.piece_len;
        *upload = self.upload_of(&response, what).ok()?;
        upload.piece_len = piece_len;
        let (_, last) = range.trim_start_matches("bytes=").split_once('-')?;
        // Of nothing some say 0-0, as of one byte: that byte is sent again then.
        last.parse::<u64>().ok().map(|last| if last == 0 { 0 } else { last + 1 })
    }
}
