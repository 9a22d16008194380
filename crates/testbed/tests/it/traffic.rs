//! Clients that never stop asking, from inside containers and from outside, and
//! what they were told.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::pods::Pod;

/// Whoever waits longer has no answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Between two questions of one client: a steady load that leaves the machine its breath.
const PACE: Duration = Duration::from_millis(4);
/// Where containers ask for names.
const NAME_SERVER: (Ipv4Addr, u16) = (Ipv4Addr::new(169, 254, 1, 1), 53);
/// As if a packet was lost: it is sent again after a second, or a fifth of one.
const SLOW: Duration = Duration::from_millis(180);
/// More is not told of failures.
const TOLD_MAX: usize = 20;

/// What clients were told in all.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) requests: usize,
    pub(crate) lookups: usize,
    /// When, by whom, and how it ended.
    pub(crate) failures: Vec<String>,
    pub(crate) longest: Duration,
    /// Those that took longer than [`SLOW`], in the same words.
    slow: Vec<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.lookups += other.lookups;
        self.failures.extend(other.failures);
        self.slow.extend(other.slow);
        self.longest = self.longest.max(other.longest);
    }

    /// # Errors
    /// When something failed: the first of it.
    pub(crate) fn all_answered(&self) -> Result<()> {
        eprintln!(
            "{} requests, {} lookups, {} failures, the longest took {:?}",
            self.requests,
            self.lookups,
            self.failures.len(),
            self.longest
        );
        for slow in self.slow.iter().take(TOLD_MAX) {
            eprintln!("slow: {slow}");
        }
        if self.failures.is_empty() {
            return Ok(());
        }
        let told = self.failures.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>().join("\n");
        bail!("{} failures:\n{told}", self.failures.len())
    }
}

/// Clients under way. They end with it.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    start: Instant,
    clients: Vec<JoinHandle<Result<Tally>>>,
}

impl Traffic {
    pub(crate) fn new() -> Self {
        Self { stop: Arc::default(), start: Instant::now(), clients: Vec::new() }
    }

    /// A client that fetches a page, on a new connection each time; the page begins with `token`.
    pub(crate) fn fetch(&mut self, client: &Pod, to: impl Into<IpAddr>, port: u16, token: &str) {
        let (to, token) = (SocketAddr::new(to.into(), port), token.to_owned());
        self.spawn(client, format!("{to}"), move || {
            let page = page(to)?;
            if page.starts_with(&token) { Ok(()) } else { Err(format!("{page:?} answered")) }
        });
    }

    /// A client that looks up a name.
    pub(crate) fn look_up(&mut self, client: &Pod, name: &str, expected: Ipv4Addr) {
        let name = name.to_owned();
        self.spawn(client, name.clone(), move || {
            let found = look_up(&name)?;
            if found == [expected] { Ok(()) } else { Err(format!("{found:?} is the answer")) }
        });
    }

    fn spawn(
        &mut self,
        client: &Pod,
        what: String,
        ask: impl Fn() -> Result<(), String> + Send + 'static,
    ) {
        let (stop, start, client) = (Arc::clone(&self.stop), self.start, client.clone());
        let is_name = what.parse::<SocketAddr>().is_err();
        self.clients.push(std::thread::spawn(move || {
            let who = format!("{} on {} to {what}", client.name, client.host.name());
            client.within(move || {
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let outcome = ask();
                    if is_name {
                        tally.lookups += 1
                    } else {
                        tally.requests += 1
                    }
                    tally.longest = tally.longest.max(asked.elapsed());
                    let at = start.elapsed().as_secs_f32();
                    if asked.elapsed() > SLOW {
                        tally.slow.push(format!("{at:.3} s: {who}: {:?}", asked.elapsed()));
                    }
                    if let Err(why) = outcome {
                        tally.failures.push(format!("{at:.3} s: {who}: {why}"));
                    }
                    std::thread::sleep(PACE);
                }
                tally
            })
        }));
    }

    /// Ends all clients.
    pub(crate) fn end(mut self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in std::mem::take(&mut self.clients) {
            all.add(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        Ok(all)
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for client in std::mem::take(&mut self.clients) {
            // Whoever drops it has failed already.
            let _ = client.join();
        }
    }
}

/// What a web server says, of a whole answer.
pub(crate) fn page(to: SocketAddr) -> Result<String, String> {
    let words = |error: std::io::Error| match error.kind() {
        ErrorKind::WouldBlock => "silence".to_owned(),
        kind => kind.to_string(),
    };
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(words)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(words)?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(words)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(words)?;
    match text.split_once("\r\n\r\n") {
        // A server that is killed meanwhile may have sent no more than the head.
        Some((head, page)) if head.contains(" 200 ") && page.len() >= length(head) => {
            Ok(page.trim().to_owned())
        }
        _ => Err(format!("half an answer: {text:?}")),
    }
}

/// How much is to come after the head of an answer (RFC 9110, section 8.6); 0: it does not say.
fn length(head: &str) -> usize {
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut named = fields.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    named.next().and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// IPv4 addresses of a name, asked as the container of this namespace would (RFC 1035, section 4).
pub(crate) fn look_up(name: &str) -> Result<Vec<Ipv4Addr>, String> {
    records(name, A)
}

/// Its IPv6 addresses (RFC 3596, section 2).
pub(crate) fn look_up_v6(name: &str) -> Result<Vec<Ipv6Addr>, String> {
    records(name, AAAA)
}

const A: u8 = 1;
const AAAA: u8 = 28;
/// Of a record before its data: a pointer to the name, type, class, time to live, length.
const HEAD: usize = 12;

/// Data of the records of one type, in order.
fn records<const LEN: usize, D: From<[u8; LEN]> + Ord>(
    name: &str,
    kind: u8,
) -> Result<Vec<D>, String> {
    let ask = || -> Result<Vec<D>> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(NAME_SERVER)?;
        let mut question = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            question.push(u8::try_from(label.len())?);
            question.extend(label.as_bytes());
        }
        question.extend([0, 0, kind, 0, 1]);
        socket.send(&question)?;
        let mut answer = [0; 1500];
        let len = socket.recv(&mut answer)?;
        let answer = &answer[..len];
        let flags = answer.get(3).context("a header")?;
        if flags & 15 != 0 {
            bail!("code {}", flags & 15);
        }
        let count = usize::from(answer[6]) << 8 | usize::from(answer[7]);
        let records = answer.get(question.len()..).context("records")?.chunks_exact(HEAD + LEN);
        let address = |record: &[u8]| Ok(<[u8; LEN]>::try_from(&record[HEAD..])?.into());
        let mut found: Vec<D> = records.take(count).map(address).collect::<Result<_>>()?;
        found.sort_unstable();
        Ok(found)
    };
    ask().map_err(|error| format!("{error:#}"))
}
