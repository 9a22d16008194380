//! Hosts, tunnels, and programs that talk through them.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use warren_base::clock::RealClock;
use warren_wireguard::{
    Engine, Options, PeerConfig, PeerStats, Prefix, PrivateKey, PublicKey, Reason, Table, Tun,
    TunOptions, Udp,
};

/// What answers within this answers: a handshake is repeated after 5 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(15);
/// What does not answer within this is dropped.
pub(crate) const SILENCE: Duration = Duration::from_millis(700);
pub(crate) const PORT: u16 = 51_820;
const MTU: u16 = 1420;

/// One host with its tunnel; `n` is in all its addresses.
pub(crate) struct Host {
    pub(crate) n: u8,
    pub(crate) netns: Arc<OwnedFd>,
    pub(crate) keys: Vec<PrivateKey>,
    pub(crate) engine: Option<Engine>,
    pub(crate) queues: usize,
    pub(crate) persist: bool,
}

/// Runs a test with two hosts whose tunnels are not up yet.
pub(crate) fn on_hosts(test: impl FnOnce(Host, Host) + Send + 'static) {
    if !rustix::process::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
        eprintln!("skipped: needs root and ip");
        return;
    }
    let (one, two) = (Host::new(1), Host::new(2));
    let path = format!("/proc/{}/fd/{}", std::process::id(), two.netns.as_raw_fd());
    one.run(&format!("ip link add eth0 type veth peer name eth0 netns {path}"));
    for host in [&one, &two] {
        host.within(|| {
            // Nobody speaks on the tunnel unasked.
            fs::write("/proc/sys/net/ipv6/conf/default/router_solicitations", "0").unwrap();
        });
        host.run("ip link set lo up");
        host.run(&format!("ip addr add 192.0.2.{}/24 dev eth0", host.n));
        host.run(&format!("ip addr add 2001:db8::{}/64 dev eth0 nodad", host.n));
        host.run("ip link set eth0 up");
    }
    test(one, two);
}

impl Host {
    fn new(n: u8) -> Self {
        let netns = thread::spawn(|| {
            enter_new_namespace();
            OwnedFd::from(fs::File::open("/proc/thread-self/ns/net").unwrap())
        });
        let netns = Arc::new(netns.join().unwrap());
        Self { n, netns, keys: vec![key(n)], engine: None, queues: 1, persist: false }
    }

    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.netns, work)
    }

    pub(crate) fn run(&self, command: &str) -> String {
        self.within(|| run(command))
    }

    pub(crate) fn inner(&self, v6: bool) -> IpAddr {
        if v6 {
            [0xfd00, 0, 0, u16::from(self.n), 0, 0, 0, 1].into()
        } else {
            [10, 9, self.n, 1].into()
        }
    }

    pub(crate) fn endpoint(&self, v6: bool) -> SocketAddr {
        let n = self.n;
        let ip: IpAddr = if v6 {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(n)].into()
        } else {
            [192, 0, 2, n].into()
        };
        SocketAddr::new(ip, PORT)
    }

    /// How others know it.
    pub(crate) fn peer(&self) -> PeerConfig {
        PeerConfig {
            keys: self.keys.iter().map(PrivateKey::public).collect(),
            via: None,
            preshared_key: None,
            endpoint: Some(self.endpoint(false)),
            allowed: vec![prefix(self.inner(false), 24), prefix(self.inner(true), 64)],
            keepalive: None,
        }
    }

    pub(crate) fn table(&self, peers: &[PeerConfig]) -> Table {
        Table { own: self.keys.clone(), peers: peers.to_vec() }
    }

    pub(crate) fn tun(&self) -> Vec<Tun> {
        self.within(|| {
            let (queues, persist) = (self.queues, self.persist);
            let tun =
                Tun::open(&TunOptions { name: "wr0".into(), mtu: MTU, queues, persist }).unwrap();
            if !run("ip addr show dev wr0").contains("10.9.") {
                run(&format!("ip addr add 10.9.{}.1/24 dev wr0", self.n));
                run(&format!("ip addr add fd00:0:0:{}::1/64 dev wr0 nodad", self.n));
                run("ip route add 10.9.0.0/16 dev wr0");
                run("ip route add fd00::/32 dev wr0");
            }
            tun
        })
    }

    pub(crate) fn udp(&self) -> Vec<Udp> {
        self.within(|| Udp::bind(SocketAddr::from(([0_u16; 8], PORT)), self.queues).unwrap())
    }

    /// Brings its tunnel up.
    pub(crate) fn start(&mut self, peers: &[PeerConfig]) {
        let options = self.options(self.tun(), self.udp(), Vec::new());
        self.engine = Some(Engine::start(options, &self.table(peers)).unwrap());
    }

    pub(crate) fn options(
        &self,
        tun: Vec<Tun>,
        udp: Vec<Udp>,
        peers: Vec<(PublicKey, SocketAddr)>,
    ) -> Options {
        let clock = Arc::new(RealClock::new());
        // Tests restart engines: no session of one is taken for another's.
        static SEED: AtomicU32 = AtomicU32::new(0);
        let seed = SEED.fetch_add(0x1_0001, Ordering::Relaxed);
        Options { tun, udp, clock, seed, not_before_ms: 0, peers, on_reach: None }
    }

    pub(crate) fn apply(&self, peers: &[PeerConfig]) {
        self.engine.as_ref().unwrap().apply(&self.table(peers)).unwrap();
    }

    pub(crate) fn stats(&self) -> PeerStats {
        self.engine.as_ref().unwrap().peers().remove(0)
    }

    pub(crate) fn dropped(&self, reason: Reason) -> u64 {
        let drops = self.engine.as_ref().unwrap().drops();
        drops.into_iter().find(|(found, _)| *found == reason).unwrap().1
    }
}

/// Two hosts that know each other.
pub(crate) fn join(one: &mut Host, two: &mut Host) {
    one.start(&[two.peer()]);
    two.start(&[one.peer()]);
}

pub(crate) fn key(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

pub(crate) fn prefix(address: IpAddr, len: u8) -> Prefix {
    Prefix::new(address, len).unwrap()
}

pub(crate) fn seconds(s: u16) -> Option<NonZeroU16> {
    NonZeroU16::new(s)
}

#[allow(unsafe_code)]
fn enter_new_namespace() {
    // SAFETY: only CLONE_FILES would be unsafe: it parts this thread's descriptors from the others'.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
}

/// Runs `work` on a thread in `netns`.
fn within<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// A command in the calling thread's namespace; its output.
fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Answers datagrams with themselves until dropped.
pub(crate) struct Echo {
    pub(crate) address: SocketAddr,
    socket: Arc<UdpSocket>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    pub(crate) fn on(host: &Host, v6: bool) -> Self {
        let inner = host.inner(v6);
        let socket = Arc::new(host.within(|| UdpSocket::bind((inner, 0)).unwrap()));
        let served = Arc::clone(&socket);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2000];
            while let Ok((len @ 1.., from)) = served.recv_from(&mut buffer) {
                let _ = served.send_to(&buffer[..len], from);
            }
        });
        Self { address: socket.local_addr().unwrap(), socket, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.socket, rustix::net::Shutdown::Both);
        let _ = self.thread.take().unwrap().join();
    }
}

/// Whether `from` gets an answer within `patience`, asking every 100 ms.
pub(crate) fn answers(from: &Host, echo: &Echo, patience: Duration) -> bool {
    let address = echo.address;
    from.within(|| {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let end = Instant::now() + patience;
        let mut buffer = [0; 100];
        while Instant::now() < end {
            // A refused send is as good as a lost datagram.
            let _ = socket.send_to(b"hello", address);
            if socket.recv_from(&mut buffer).is_ok_and(|(len, _)| &buffer[..len] == b"hello") {
                return true;
            }
        }
        false
    })
}

#[track_caller]
pub(crate) fn assert_answers(from: &Host, to: &Host) {
    for v6 in [false, true] {
        assert!(answers(from, &Echo::on(to, v6), PATIENCE), "{} to {} v6 {v6}", from.n, to.n);
    }
}

#[track_caller]
pub(crate) fn assert_silent(from: &Host, to: &Host) {
    assert!(!answers(from, &Echo::on(to, false), SILENCE), "{} to {}", from.n, to.n);
}

/// A TCP stream through the tunnel whose every byte is checked at the other end.
pub(crate) struct Stream {
    sender: JoinHandle<io::Result<()>>,
    receiver: JoinHandle<io::Result<u64>>,
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

/// A pattern in which no shift looks like itself.
fn pattern(at: u64) -> u8 {
    let mixed = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed.to_le_bytes()[6]
}

impl Stream {
    /// Sends from one host to another until stopped.
    pub(crate) fn start(from: &Host, to: &Host, v6: bool) -> Self {
        let inner = to.inner(v6);
        let listener = to.within(|| TcpListener::bind((inner, 0)).unwrap());
        let address = listener.local_addr().unwrap();
        let (stop, received) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let counter = Arc::clone(&received);
        let receiver = thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            stream.set_read_timeout(Some(PATIENCE * 2))?;
            let mut buffer = vec![0; 256 * 1024];
            let mut at = 0_u64;
            loop {
                let len = stream.read(&mut buffer)?;
                if len == 0 {
                    return Ok(at);
                }
                for &byte in &buffer[..len] {
                    if byte != pattern(at) {
                        return Err(io::Error::other(format!("wrong byte at {at}")));
                    }
                    at += 1;
                }
                counter.store(at, Ordering::Relaxed);
            }
        });
        let stopped = Arc::clone(&stop);
        let mut stream = from.within(|| TcpStream::connect_timeout(&address, PATIENCE).unwrap());
        let sender = thread::spawn(move || {
            stream.set_write_timeout(Some(PATIENCE * 2))?;
            let mut buffer = vec![0; 256 * 1024];
            let mut at = 0_u64;
            while !stopped.load(Ordering::Relaxed) {
                for byte in &mut buffer {
                    *byte = pattern(at);
                    at += 1;
                }
                stream.write_all(&buffer)?;
            }
            Ok(())
        });
        Self { sender, receiver, stop, received }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// How long until further bytes have arrived.
    #[track_caller]
    pub(crate) fn goes_on(&self) -> Duration {
        let (start, before) = (Instant::now(), self.bytes());
        eventually("further bytes of a stream", || self.bytes() > before + (1 << 20));
        start.elapsed()
    }

    /// Ends it; how many bytes arrived, all of them right.
    #[track_caller]
    pub(crate) fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap().unwrap();
        self.receiver.join().unwrap().unwrap()
    }
}

#[track_caller]
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}
