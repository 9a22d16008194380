//! Registries over HTTP: where they are and how they are reached.
//!
//! The distribution protocol is spoken directly over `reqwest`, as far as pulling
//! and pushing need it. (`oci-client` reads manifests and error pages of any size into
//! memory, panics on a token with a line feed, loses the HTTP status, follows
//! redirects from HTTPS to HTTP and asks Google's DNS if resolv.conf is missing.)
//!
//! Contract: every wait ends: connecting after [`Timeouts::connect`], every read
//! after [`Timeouts::stall`], and bodies must get on meanwhile. Bodies have limits. Credentials go to the registry
//! and the token service it names, never along a redirect to another origin, never
//! over plain HTTP unless the registry itself is reached that way.
//!
//! Plain HTTP: only loopback and registries that the operator listed.

mod auth;
mod mirror;
mod pace;
mod push;
mod session;
mod stream;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;

use crate::credentials::Credentials;
use crate::error::Error;
use crate::reference::DEFAULT_REGISTRY;

pub use mirror::Mirror;
pub(crate) use push::{Content, Sending};
pub(crate) use session::Session;
pub(crate) use stream::BlobStream;

/// The host behind `docker.io`.
const DEFAULT_HOST: &str = "registry-1.docker.io";
const USER_AGENT: &str = concat!("warren/", env!("CARGO_PKG_VERSION"));
/// Registry, storage service, edge cache: three in practice.
const REDIRECTS_MAX: usize = 5;
/// Connections are of use during one pull only.
const IDLE: Duration = Duration::from_secs(10);

/// Of a body within each [`Timeouts::stall`], unless it ends: a registry that sends a byte now and
/// then would hold up a pull for ever. Half a kilobyte a second is slower than any line is.
pub(crate) const PROGRESS_MIN_BYTES: u64 = 16 << 10;

/// How long a silent or trickling registry is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    /// Without a byte, or with fewer than [`PROGRESS_MIN_BYTES`].
    pub(crate) stall: Duration,
    /// A busy registry is asked again so often.
    pub(crate) repeats: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            stall: Duration::from_secs(30),
            repeats: session::REPEATS_MAX,
        }
    }
}

/// All registries, as one node reaches them.
#[derive(Debug)]
pub(crate) struct Registries {
    /// `host` or `host:port`.
    insecure: Vec<String>,
    mirrors: Vec<Mirror>,
    timeouts: Timeouts,
    /// Built when first needed: the root certificates cost memory.
    direct: OnceLock<reqwest::Client>,
    proxied: OnceLock<reqwest::Client>,
}

impl Registries {
    pub(crate) fn new(insecure: Vec<String>, mirrors: Vec<Mirror>, timeouts: Timeouts) -> Self {
        Self { insecure, mirrors, timeouts, direct: OnceLock::new(), proxied: OnceLock::new() }
    }

    /// A conversation with `registry` about `what`, an image for messages.
    pub(crate) async fn session(
        &self,
        registry: &str,
        repository: &str,
        what: &str,
        credentials: Option<Credentials>,
    ) -> Result<Session, Error> {
        let client = self.client_for(registry, what)?;
        let host = if registry == DEFAULT_REGISTRY { DEFAULT_HOST } else { registry };
        let mut session =
            Session::new(client, registry, repository, what, credentials, self.timeouts);
        session.base = format!("https://{host}");
        if self.may_be_plain(registry) {
            let plain = format!("http://{host}");
            match session.is_plain(&plain).await {
                Ok(true) => session.base = plain,
                Ok(false) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(session)
    }

    /// What is asked before `registry` itself, in this order.
    pub(crate) fn mirrors(&self, registry: &str) -> Vec<Mirror> {
        self.mirrors.iter().filter(|mirror| mirror.of() == registry).cloned().collect()
    }

    /// A conversation with a mirror, as its operator wrote it: with HTTP if that says so.
    pub(crate) fn mirror_session(
        &self,
        mirror: &Mirror,
        repository: &str,
        what: &str,
        credentials: Option<Credentials>,
    ) -> Result<Session, Error> {
        let client = self.client_for(mirror.host(), what)?;
        let host = mirror.host();
        let mut session = Session::new(client, host, repository, what, credentials, self.timeouts);
        session.base = mirror.url().to_owned();
        Ok(session)
    }

    fn client_for(&self, registry: &str, what: &str) -> Result<reqwest::Client, Error> {
        self.client(registry).map_err(|detail| Error::Unreachable {
            what: what.to_owned(),
            registry: registry.to_owned(),
            detail,
        })
    }

    fn may_be_plain(&self, registry: &str) -> bool {
        let host = host_of(registry);
        is_loopback(host) || self.insecure.iter().any(|listed| listed == registry || listed == host)
    }

    fn client(&self, registry: &str) -> Result<reqwest::Client, String> {
        // As in Go: a proxy is of no use to reach this very host.
        let direct = is_loopback(host_of(registry));
        let slot = if direct { &self.direct } else { &self.proxied };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let client = build(direct, self.timeouts).map_err(|error| explain(&error))?;
        Ok(slot.get_or_init(|| client).clone())
    }
}

/// Without the port; IPv6 addresses stay in brackets.
fn host_of(registry: &str) -> &str {
    match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .trim_start_matches('[')
            .trim_end_matches(']')
            .parse()
            .is_ok_and(|address: IpAddr| address.is_loopback())
}

fn build(direct: bool, timeouts: Timeouts) -> reqwest::Result<reqwest::Client> {
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .connect_timeout(timeouts.connect)
        .pool_idle_timeout(IDLE)
        .redirect(redirect::Policy::custom(follow))
        .referer(false)
        .dns_resolver(Arc::new(Resolver));
    if direct { builder.no_proxy() } else { builder }.build()
}

/// `reqwest` itself drops credentials when host, port or scheme change.
fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    if attempt.previous().len() > REDIRECTS_MAX {
        return attempt.error("too many redirects");
    }
    let from_https = attempt.previous().last().is_some_and(|url| url.scheme() == "https");
    if from_https && attempt.url().scheme() != "https" {
        return attempt.error("redirect from HTTPS to plain HTTP");
    }
    attempt.follow()
}

/// The innermost cause of an error: those around it tell of our client, and may
/// hold addresses with signatures.
fn explain(error: &reqwest::Error) -> String {
    let mut innermost = None;
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        innermost = Some(cause);
        next = cause.source();
    }
    match innermost.map(ToString::to_string) {
        // The number of a system error tells people nothing.
        Some(text) => match text.split_once(" (os error ") {
            Some((words, _)) => words.to_owned(),
            None => text,
        },
        None if error.is_timeout() => "timed out".to_owned(),
        None => "request could not be sent".to_owned(),
    }
}

/// Why a name has no address, without the resolver's own view of it.
#[derive(Debug, thiserror::Error)]
enum NameError {
    #[error("no host has the name {0}")]
    Unknown(String),
    #[error("the name {0} cannot be looked up: no name server answers")]
    NoServer(String),
}

/// Names by our own resolver: libc's loads shared objects at run time, which a
/// static binary cannot. The system's settings are read anew each time.
struct Resolver;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let name = name.as_str();
            if name == "localhost" {
                let here = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
                let addresses: Addrs =
                    Box::new(here.into_iter().map(|address| SocketAddr::new(address, 0)));
                return Ok(addresses);
            }
            let resolver = TokioResolver::builder_tokio()?.build()?;
            let found = resolver.lookup_ip(name).await.map_err(|error| {
                tracing::debug!(name, %error, "look up a registry");
                match error.is_no_records_found() {
                    true => NameError::Unknown(name.to_owned()),
                    false => NameError::NoServer(name.to_owned()),
                }
            })?;
            let found: Vec<SocketAddr> = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
            let addresses: Addrs = Box::new(found.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_the_listed() {
        let listed = vec!["10.0.0.1:5000".to_owned(), "lab".to_owned()];
        let registries = Registries::new(listed, Vec::new(), Timeouts::default());
        for plain in
            ["localhost", "localhost:5000", "127.0.0.1", "127.9.9.9:1", "[::1]:5000", "[::1]"]
        {
            assert!(registries.may_be_plain(plain), "{plain}");
        }
        for plain in ["10.0.0.1:5000", "lab", "lab:5000"] {
            assert!(registries.may_be_plain(plain), "{plain}");
        }
        for secure in
            ["10.0.0.1", "docker.io", "localhost.evil.example", "128.0.0.1:80", "laboratory"]
        {
            assert!(!registries.may_be_plain(secure), "{secure}");
        }
    }
}
