//! One conversation with a registry about one repository.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RANGE, RETRY_AFTER,
};
use reqwest::{Client, Method, Response, StatusCode, Url};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::auth::{self, Challenge, TOKEN_LEN_MAX};
use super::pace::Pace;
use super::{BlobStream, Timeouts, explain};
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, Blob, CONFIG_LEN_MAX, MANIFEST_LEN_MAX};

/// Of an error page; more is not read.
const ERROR_LEN_MAX: u64 = 16 * 1024;
/// Of the message shown to people.
const DETAIL_LEN_MAX: usize = 200;
/// A token that was refused is replaced this often in one request.
const LOGINS_MAX: usize = 2;

/// A busy registry is asked again so often by one request,
pub(super) const REPEATS_MAX: u32 = 2;
/// after this time, doubled, unless it says how long,
const REPEAT_DELAY: Duration = Duration::from_millis(500);
/// up to this.
const REPEAT_DELAY_MAX: Duration = Duration::from_secs(10);
/// A slower line takes no uploads: eight MiB would need more than four minutes.
const UPLOAD_BYTES_PER_S_MIN: u64 = 32 << 10;

/// One request, to be sent as often as needed.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Option<Bytes>,
}

impl Ask {
    pub(super) fn new(method: Method, url: &str) -> Self {
        Self { method, url: url.to_owned(), headers: Vec::new(), body: None }
    }
}

pub(crate) struct Session {
    client: Client,
    /// `https://host`
    pub(super) base: String,
    registry: String,
    repository: String,
    what: String,
    credentials: Option<Credentials>,
    timeouts: Timeouts,
    /// The Authorization header that worked last.
    login: Mutex<Option<HeaderValue>>,
}

impl Session {
    pub(super) fn new(
        client: Client,
        registry: &str,
        repository: &str,
        what: &str,
        credentials: Option<Credentials>,
        timeouts: Timeouts,
    ) -> Self {
        Self {
            client,
            base: String::new(),
            registry: registry.to_owned(),
            repository: repository.to_owned(),
            what: what.to_owned(),
            credentials,
            timeouts,
            login: Mutex::new(None),
        }
    }

    /// Host and repository.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.base, self.repository)
    }

    /// Whether the registry speaks plain HTTP. Go's servers answer 400 to it on
    /// their HTTPS port, others close the connection.
    pub(super) async fn is_plain(&self, base: &str) -> Result<bool, Error> {
        let request = self.client.get(format!("{base}/v2/"));
        match self.patiently(&self.what, request.send()).await? {
            Ok(response) => {
                Ok(response.status() != StatusCode::BAD_REQUEST
                    && response.url().scheme() == "http")
            }
            Err(error) if error.is_connect() => Err(self.unreachable(&self.what, &error)),
            Err(_) => Ok(false),
        }
    }

    /// Whether the credentials are good.
    pub(crate) async fn check_login(&self) -> Result<(), Error> {
        let what = format!("user {}", self.credentials.as_ref().map_or("", |c| c.user.as_str()));
        let response = self.get(&format!("{}/v2/", self.base), &what, &[]).await?;
        if response.status() == StatusCode::OK {
            return Ok(());
        }
        Err(self.refusal(response, &what).await)
    }

    /// A manifest or index by tag or digest. A digest is checked.
    pub(crate) async fn manifest(&self, tag_or_digest: &str) -> Result<(Vec<u8>, Digest), Error> {
        let types = [
            manifest::OCI_MANIFEST,
            manifest::OCI_INDEX,
            manifest::DOCKER_MANIFEST,
            manifest::DOCKER_LIST,
        ];
        let url = format!("{}/v2/{}/manifests/{tag_or_digest}", self.base, self.repository);
        let headers = [(ACCEPT, types.join(", "))];
        let response = self.get(&url, &self.what, &headers).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, &self.what).await);
        }
        let what = format!("manifest of {}", self.what);
        let bytes = self.body(response, &what, MANIFEST_LEN_MAX).await?;
        let actual = Digest::of(&bytes);
        match tag_or_digest.parse::<Digest>() {
            Ok(expected) if expected != actual => Err(mismatch(what, &expected, &actual)),
            _ => Ok((bytes, actual)),
        }
    }

    /// A config, checked.
    pub(crate) async fn config(&self, blob: &Blob) -> Result<Vec<u8>, Error> {
        let what = format!("config of {}", self.what);
        if blob.size > CONFIG_LEN_MAX {
            let problem = format!("{} bytes, {CONFIG_LEN_MAX} are allowed", blob.size);
            return Err(Error::BadImage { what, problem });
        }
        let response = self.blob_response(&blob.digest, 0, &what).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, &what).await);
        }
        let bytes = self.body(response, &what, blob.size).await?;
        let actual = Digest::of(&bytes);
        if actual != blob.digest {
            return Err(mismatch(what, &blob.digest, &actual));
        }
        Ok(bytes)
    }

    /// A layer, piece by piece.
    pub(crate) fn layer(self: &Arc<Self>, blob: &Blob) -> BlobStream {
        let what = format!("layer {} of {}", blob.digest.short(), self.what);
        BlobStream::new(Arc::clone(self), blob.clone(), what)
    }

    pub(super) async fn blob_response(
        &self,
        digest: &Digest,
        from: u64,
        what: &str,
    ) -> Result<Response, Error> {
        let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.repository);
        match from {
            0 => self.get(&url, what, &[]).await,
            from => self.get(&url, what, &[(RANGE, format!("bytes={from}-"))]).await,
        }
    }

    async fn get(
        &self,
        url: &str,
        what: &str,
        headers: &[(HeaderName, String)],
    ) -> Result<Response, Error> {
        let ask = Ask { headers: headers.to_vec(), ..Ask::new(Method::GET, url) };
        self.send(&ask, what).await
    }

    /// Sends a request, logs in when asked to, and asks again where a registry asks for that.
    pub(super) async fn send(&self, ask: &Ask, what: &str) -> Result<Response, Error> {
        let mut again = 0;
        loop {
            let response = self.send_once(ask, what).await?;
            let busy = matches!(response.status().as_u16(), 429 | 502 | 503 | 504);
            // What has a body is gone on with by who sends it.
            if !busy || ask.body.is_some() || again == self.timeouts.repeats {
                return Ok(response);
            }
            let told = response.headers().get(RETRY_AFTER).and_then(|text| text.to_str().ok());
            let told = told.and_then(|text| text.parse().ok()).map(Duration::from_secs);
            let delay =
                told.unwrap_or_else(|| REPEAT_DELAY * 2u32.pow(again)).min(REPEAT_DELAY_MAX);
            tracing::debug!(what, status = response.status().as_u16(), ?delay, "asking again");
            tokio::time::sleep(delay).await;
            again += 1;
        }
    }

    async fn send_once(&self, ask: &Ask, what: &str) -> Result<Response, Error> {
        let mut logins = 0;
        let is_ours = Url::parse(&ask.url).is_ok_and(|url| same_origin(&url, &self.base));
        loop {
            let login = self.login.lock().await.clone();
            let mut request = self.client.request(ask.method.clone(), &ask.url);
            for (name, value) in &ask.headers {
                request = request.header(name, value);
            }
            if let Some(login) = login.as_ref().filter(|_| is_ours) {
                request = request.header(AUTHORIZATION, login);
            }
            let mut patience = self.timeouts.stall;
            if let Some(body) = &ask.body {
                patience += Duration::from_secs(body.len() as u64 / UPLOAD_BYTES_PER_S_MIN);
                request = request.body(body.clone());
            }
            let response = match self.patiently_for(patience, what, request.send()).await? {
                Ok(response) => response,
                Err(error) => return Err(self.unreachable(what, &error)),
            };
            // A storage service behind a redirect has no say in who we are.
            let ours = same_origin(response.url(), &self.base);
            if response.status() != StatusCode::UNAUTHORIZED || !ours || logins == LOGINS_MAX {
                return Ok(response);
            }
            let Some(challenge) = Challenge::of(response.headers()) else {
                return Ok(response);
            };
            if !self.log_in(login, challenge, what).await? {
                return Ok(response);
            }
            logins += 1;
        }
    }

    /// Answers a challenge; false if there is no better answer than the one refused.
    async fn log_in(
        &self,
        refused: Option<HeaderValue>,
        challenge: Challenge,
        what: &str,
    ) -> Result<bool, Error> {
        let mut login = self.login.lock().await;
        if *login != refused {
            // Another layer's request was faster.
            return Ok(true);
        }
        let fresh = match (challenge, &self.credentials) {
            (Challenge::Basic, None) => return Ok(false),
            (Challenge::Basic, Some(credentials)) => auth::basic(credentials),
            (Challenge::Bearer { realm, service, scope }, _) => {
                self.token(&realm, service.as_deref(), scope.as_deref(), what).await?
            }
        };
        if refused.as_ref() == Some(&fresh) {
            return Ok(false);
        }
        *login = Some(fresh);
        Ok(true)
    }

    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        what: &str,
    ) -> Result<HeaderValue, Error> {
        let denied = |detail: String| Error::Unauthorized {
            what: what.to_owned(),
            registry: self.registry.clone(),
            detail,
        };
        let plain = self.base.starts_with("http:");
        let own = format!("repository:{}:pull,push", self.repository);
        // A registry that does not say what for is told what we are about.
        let scope = scope.or_else(|| (!self.repository.is_empty()).then_some(own.as_str()));
        let url = auth::token_url(realm, service, scope, plain).map_err(denied)?;
        let request = match &self.credentials {
            Some(token) if token.is_identity_token() => {
                let (url, form) = auth::refresh(url, token);
                let kind = (CONTENT_TYPE, "application/x-www-form-urlencoded");
                self.client.post(url).header(kind.0, kind.1).body(form)
            }
            Some(credentials) => {
                self.client.get(url).header(AUTHORIZATION, auth::basic(credentials))
            }
            None => self.client.get(url),
        };
        let response = match self.patiently(what, request.send()).await? {
            Ok(response) => response,
            Err(error) => return Err(self.unreachable(what, &error)),
        };
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response, what).await);
        }
        let answer = zeroize::Zeroizing::new(self.body(response, what, TOKEN_LEN_MAX).await?);
        auth::bearer(&answer).map_err(denied)
    }

    /// A whole body of bounded length.
    async fn body(&self, mut response: Response, what: &str, max: u64) -> Result<Vec<u8>, Error> {
        let too_long = || Error::BadImage {
            what: what.to_owned(),
            problem: format!("more than {max} bytes, which is the limit"),
        };
        let expected = response.content_length();
        if expected.is_some_and(|len| len > max) {
            return Err(too_long());
        }
        let (mut bytes, mut pace) = (Vec::new(), Pace::default());
        loop {
            match self.piece(what, &mut response, &mut pace).await? {
                Ok(Some(chunk)) if (bytes.len() + chunk.len()) as u64 > max => {
                    return Err(too_long());
                }
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => return Ok(bytes),
                Err(error) => {
                    let got = bytes.len() as u64;
                    return Err(match expected {
                        Some(expected) => Error::Truncated { what: what.to_owned(), got, expected },
                        None => self.unreachable(what, &error),
                    });
                }
            }
        }
    }

    /// The next piece of a body that has to get on.
    pub(super) async fn piece(
        &self,
        what: &str,
        response: &mut Response,
        pace: &mut Pace,
    ) -> Result<reqwest::Result<Option<Bytes>>, Error> {
        let (begun, window) = (Instant::now(), self.timeouts.stall);
        let left = pace.left(window);
        let Ok(piece) = tokio::time::timeout(left, response.chunk()).await else {
            let (what, registry) = (what.to_owned(), self.registry.clone());
            // Most of the time without a byte is silence, whatever came just before.
            return Err(if left >= window / 2 {
                Error::TimedOut { what, registry, seconds: left.as_secs() }
            } else {
                let (got, seconds) = (pace.got(), window.as_secs());
                Error::TooSlow { what, registry, got, seconds }
            });
        };
        if let Ok(Some(piece)) = &piece {
            pace.piece(piece.len(), begun.elapsed());
        }
        Ok(piece)
    }

    /// Waits for the network, but not for ever.
    pub(super) async fn patiently<T>(
        &self,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        self.patiently_for(self.timeouts.stall, what, work).await
    }

    async fn patiently_for<T>(
        &self,
        patience: Duration,
        what: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, Error> {
        tokio::time::timeout(patience, work).await.map_err(|_| Error::TimedOut {
            what: what.to_owned(),
            registry: self.registry.clone(),
            seconds: patience.as_secs(),
        })
    }

    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// Of something in the repository.
    pub(super) fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository)
    }

    pub(super) fn unreachable(&self, what: &str, error: &reqwest::Error) -> Error {
        Error::Unreachable {
            what: what.to_owned(),
            registry: self.registry.clone(),
            detail: explain(error),
        }
    }

    /// What a status other than success means.
    pub(super) async fn refusal(&self, response: Response, what: &str) -> Error {
        let status = response.status();
        let (what, registry) = (what.to_owned(), self.registry.clone());
        if status == StatusCode::NOT_FOUND {
            return Error::NotFound { what, registry };
        }
        // Only the registry's own words: a redirect's target could be anything.
        let detail = if same_origin(response.url(), &self.base) {
            let page = self.body(response, &what, ERROR_LEN_MAX).await;
            page.map(|page| detail(&page)).unwrap_or_default()
        } else {
            String::new()
        };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Unauthorized { what, registry, detail }
            }
            other => Error::RegistryError { what, registry, status: other.as_u16(), detail },
        }
    }
}

pub(super) fn mismatch(what: String, expected: &Digest, actual: &Digest) -> Error {
    Error::DigestMismatch { what, expected: expected.to_string(), actual: actual.to_string() }
}

fn same_origin(url: &Url, base: &str) -> bool {
    Url::parse(base).is_ok_and(|base| base.origin() == url.origin())
}

/// The message of a registry's error page, fit for a terminal.
fn detail(page: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Page {
        #[serde(default)]
        errors: Vec<Problem>,
        details: Option<String>,
    }
    #[derive(serde::Deserialize)]
    struct Problem {
        code: Option<String>,
        message: Option<String>,
    }
    let Ok(page) = serde_json::from_slice::<Page>(page) else {
        return String::new();
    };
    let text = page
        .errors
        .into_iter()
        .next()
        .and_then(|problem| problem.message.filter(|text| !text.is_empty()).or(problem.code))
        .or(page.details)
        .unwrap_or_default();
    text.chars().filter(|c| !c.is_control()).take(DETAIL_LEN_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_pages_are_made_fit() {
        let page = br#"{"errors":[{"code":"DENIED","message":"no \u001b[31m access"}]}"#;
        assert_eq!(detail(page), "no [31m access");
        assert_eq!(detail(br#"{"errors":[{"code":"DENIED","message":""}]}"#), "DENIED");
        assert_eq!(detail(br#"{"details":"wrong password"}"#), "wrong password");
        assert_eq!(detail(b"<html>"), "");
        let long = format!(r#"{{"errors":[{{"message":"{}"}}]}}"#, "x".repeat(999));
        assert_eq!(detail(long.as_bytes()).len(), DETAIL_LEN_MAX);
    }
}
