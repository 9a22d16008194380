//! The host's `resolv.conf`, and what a container gets instead of it (resolv.conf(5)).

use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::dns::SUFFIX;

/// systemd-resolved's own listeners: they know the host's names, not those of its links.
const STUBS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 53)),
    IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 54)),
];
const FILE: &str = "/etc/resolv.conf";
/// Where systemd-resolved writes the servers that it asks itself.
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// How old what is known of the file may be when a question comes.
const FRESH_MS: u64 = 1000;
/// Longer files are no settings.
const FILE_LEN_MAX: u64 = 64 << 10;
const SERVERS_MAX: usize = 8;
/// Older C libraries take six domains, musl a line of 255 bytes.
const SEARCH_MAX: usize = 6;
const SEARCH_LEN_MAX: usize = 255;
/// What glibc takes when nothing is said is longer, but then its callers have given up.
const TIMEOUT: Duration = Duration::from_millis(1500);
const TIMEOUT_MAX: Duration = Duration::from_secs(3);
const ATTEMPTS: u32 = 2;
const ATTEMPTS_MAX: u32 = 5;

/// What a `resolv.conf` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolv {
    /// In order of preference.
    pub servers: Vec<SocketAddr>,
    /// Domains to look in.
    pub search: Vec<String>,
    /// As they stand there.
    pub options: Vec<String>,
    /// For one answer of one server.
    pub timeout: Duration,
    /// How often each server is asked.
    pub attempts: u32,
    /// Whether only stub listeners of systemd-resolved are named.
    behind_stub: bool,
}

impl Default for Resolv {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            search: Vec::new(),
            options: Vec::new(),
            timeout: TIMEOUT,
            attempts: ATTEMPTS,
            behind_stub: false,
        }
    }
}

impl Resolv {
    /// Reads `text`; what is not understood is left out, as resolvers do.
    pub fn parse(text: &str) -> Self {
        let mut resolv = Self::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            match words.next() {
                Some("nameserver") => resolv.push_server(words.next()),
                // The last of either counts.
                Some("search" | "domain") => resolv.search = words.map(str::to_owned).collect(),
                Some("options") => words.for_each(|option| resolv.push_option(option)),
                _ => {}
            }
        }
        resolv
    }

    fn push_server(&mut self, word: Option<&str>) {
        let Some(server) = word.and_then(server) else { return };
        if STUBS.contains(&server.ip()) {
            self.behind_stub = true;
        } else if self.servers.len() < SERVERS_MAX {
            self.servers.push(server);
        }
    }

    fn push_option(&mut self, option: &str) {
        if let Some(seconds) = option.strip_prefix("timeout:").and_then(|s| s.parse().ok()) {
            self.timeout =
                Duration::from_secs(seconds).clamp(Duration::from_millis(500), TIMEOUT_MAX);
        }
        if let Some(attempts) = option.strip_prefix("attempts:").and_then(|s| s.parse().ok()) {
            self.attempts = u32::clamp(attempts, 1, ATTEMPTS_MAX);
        }
        self.options.push(option.to_owned());
    }
}

/// An address, with the link's name or number where it is one of that link alone.
fn server(word: &str) -> Option<SocketAddr> {
    const PORT: u16 = 53;
    let Some((address, link)) = word.split_once('%') else {
        return Some(SocketAddr::new(word.parse().ok()?, PORT));
    };
    let index = link.parse().ok().or_else(|| {
        let text = std::fs::read_to_string(format!("/sys/class/net/{link}/ifindex")).ok();
        text.filter(|_| !link.contains(['/', '.'])).and_then(|text| text.trim().parse().ok())
    })?;
    Some(SocketAddrV6::new(address.parse().ok()?, PORT, 0, index).into())
}

/// The `resolv.conf` of a container: the cluster's server, its domains before the host's.
///
/// The host's options are kept. Its own domains stay too, after the cluster's: a name that the
/// cluster has never gets as far as them.
pub fn container_file(host: &Resolv, servers: &[IpAddr], stack: Option<&str>) -> String {
    use std::fmt::Write as _;
    let own = stack.map(|stack| format!("{stack}.{SUFFIX}"));
    let domains = own.iter().map(String::as_str).chain([SUFFIX]);
    let domains = domains.chain(host.search.iter().map(String::as_str));
    let mut search = String::from("search");
    for domain in domains.take(SEARCH_MAX) {
        if search.len() + 1 + domain.len() > SEARCH_LEN_MAX {
            break;
        }
        search.push(' ');
        search.push_str(domain);
    }
    let mut text = String::new();
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    let _ = writeln!(text, "{search}");
    if !host.options.is_empty() {
        let _ = writeln!(text, "options {}", host.options.join(" "));
    }
    text
}

/// The host's settings, looked at again when a question comes and they are a second old.
#[derive(Debug)]
pub struct HostResolver {
    file: PathBuf,
    behind_stub: PathBuf,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    looked_ms: Option<u64>,
    /// When each file was last written, and its length.
    stamps: [Option<(SystemTime, u64)>; 2],
    resolv: Arc<Resolv>,
    /// Counts changes.
    generation: u64,
}

impl Default for HostResolver {
    fn default() -> Self {
        Self::new(FILE.into(), BEHIND_STUB.into())
    }
}

impl HostResolver {
    /// With other files than the system's: `behind_stub` is read where `file` names only stubs
    /// of systemd-resolved.
    pub fn new(file: PathBuf, behind_stub: PathBuf) -> Self {
        Self { file, behind_stub, known: Mutex::default() }
    }

    /// What the files say, and a number that changes with them.
    pub(super) fn read(&self, now_ms: u64) -> (Arc<Resolv>, u64) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = known.looked_ms.is_some_and(|looked| now_ms.saturating_sub(looked) < FRESH_MS);
        if !fresh {
            let stamps = [&self.file, &self.behind_stub].map(|file| stamp(file));
            if known.looked_ms.is_none() || stamps != known.stamps {
                let resolv = Arc::new(self.parse());
                if *resolv != *known.resolv {
                    known.resolv = resolv;
                    known.generation += 1;
                }
                known.stamps = stamps;
            }
            known.looked_ms = Some(now_ms);
        }
        (Arc::clone(&known.resolv), known.generation)
    }

    fn parse(&self) -> Resolv {
        let resolv = Resolv::parse(&text(&self.file));
        if resolv.behind_stub && resolv.servers.is_empty() {
            let behind = Resolv::parse(&text(&self.behind_stub));
            return Resolv { servers: behind.servers, ..resolv };
        }
        resolv
    }
}

fn stamp(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Nothing, if it cannot be read: there is no server then.
fn text(file: &Path) -> String {
    use std::io::Read;
    let mut bytes = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        let _ = file.take(FILE_LEN_MAX).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
