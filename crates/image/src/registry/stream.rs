//! A layer's bytes from a registry, taken up again when a connection breaks.
//!
//! Exactly as many bytes as the manifest says, or an error. The digest is checked
//! by whoever unpacks them.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use reqwest::header::CONTENT_RANGE;
use reqwest::{Response, StatusCode};

use super::Session;
use super::pace::Pace;
use crate::error::Error;
use crate::manifest::Blob;

/// Connections that may break during one layer; each goes on where it ended.
const RESUMES_MAX: u32 = 3;

pub(crate) struct BlobStream {
    session: Arc<Session>,
    blob: Blob,
    what: String,
    got: u64,
    /// Bytes to leave out: the server began anew instead of where we were.
    skip: u64,
    response: Option<Response>,
    resumes_left: u32,
    /// Goes on over connections.
    pace: Pace,
}

impl BlobStream {
    pub(super) fn new(session: Arc<Session>, blob: Blob, what: String) -> Self {
        let resumes_left = RESUMES_MAX;
        let pace = Pace::default();
        Self { session, blob, what, got: 0, skip: 0, response: None, resumes_left, pace }
    }

    /// The next piece, or `None` once all came.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let Some(response) = &mut self.response else {
                self.open().await?;
                continue;
            };
            let piece = self.session.piece(&self.what, response, &mut self.pace).await?;
            match piece {
                Ok(Some(piece)) => {
                    if let Some(piece) = self.accept(piece)? {
                        return Ok(Some(piece));
                    }
                }
                Ok(None) | Err(_) if self.got == self.blob.size => return Ok(None),
                Ok(None) | Err(_) if self.resumes_left > 0 => {
                    self.resumes_left -= 1;
                    self.response = None;
                    tracing::debug!(what = %self.what, got = self.got, "connection broke, resuming");
                }
                Ok(None) | Err(_) => {
                    return Err(Error::Truncated {
                        what: self.what.clone(),
                        got: self.got,
                        expected: self.blob.size,
                    });
                }
            }
        }
    }

    /// Counts a piece; none if all of it was known.
    fn accept(&mut self, mut piece: Bytes) -> Result<Option<Bytes>, Error> {
        let known = self.skip.min(piece.len() as u64);
        self.skip -= known;
        piece.advance(usize::try_from(known).unwrap_or(piece.len()));
        self.got += piece.len() as u64;
        if self.got > self.blob.size {
            return Err(Error::BadImage {
                what: self.what.clone(),
                problem: format!("longer than the {} bytes of its manifest", self.blob.size),
            });
        }
        Ok((!piece.is_empty()).then_some(piece))
    }

    async fn open(&mut self) -> Result<(), Error> {
        let sent = self.session.blob_response(&self.blob.digest, self.got, &self.what).await;
        let response = match sent {
            Ok(response) => response,
            // In the middle of a layer a refused connection may be a restart of the registry.
            Err(Error::Unreachable { .. }) if self.got > 0 && self.resumes_left > 0 => {
                self.resumes_left -= 1;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        match response.status() {
            StatusCode::OK => self.skip = self.got,
            StatusCode::PARTIAL_CONTENT if self.got > 0 && self.continues(&response) => {
                self.skip = 0;
            }
            _ => return Err(self.session.refusal(response, &self.what).await),
        }
        self.response = Some(response);
        Ok(())
    }

    /// Whether the answer starts where we are: `bytes 100-199/200`.
    fn continues(&self, response: &Response) -> bool {
        response
            .headers()
            .get(CONTENT_RANGE)
            .and_then(|range| range.to_str().ok())
            .and_then(|range| range.strip_prefix("bytes "))
            .and_then(|range| range.split_once('-'))
            .and_then(|(start, _)| start.parse().ok())
            .is_some_and(|start: u64| start == self.got)
    }
}
