//! A node's server, an upstream server, and containers that are but addresses.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tokio_util::sync::CancellationToken;
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;
use warren_net::dns::{Forwarder, HostResolver, Server, Sockets, Tables, Zone};

/// The gateway that every container sees.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub(crate) const UPSTREAM: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 5);
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) struct World {
    pub(crate) zone: Arc<ArcSwap<Zone>>,
    pub(crate) resolv_conf: PathBuf,
    _folder: tempfile::TempDir,
    stop: CancellationToken,
    server: Option<JoinHandle<()>>,
}

/// Runs a test in a namespace of its own, with a server that knows `tables`.
pub(crate) fn with_server(tables: Tables, test: impl FnOnce(&World) + Send + 'static) {
    with_server_at((GATEWAY, 53).into(), tables, test);
}

/// As [`with_server`], with sockets bound elsewhere.
pub(crate) fn with_server_at(
    at: SocketAddr,
    tables: Tables,
    test: impl FnOnce(&World) + Send + 'static,
) {
    let missing = |program: &str| Command::new(program).arg("-v").output().is_err();
    if !rustix::process::geteuid().is_root() || missing("dig") || missing("dnsmasq") {
        eprintln!("skipped: needs root, dig and dnsmasq");
        return;
    }
    let host = thread::spawn(move || {
        enter_new_namespace();
        run("ip link set lo up");
        run(&format!("ip addr add {GATEWAY}/32 dev lo"));
        for container in 1..=9 {
            run(&format!("ip addr add 10.1.0.{container}/32 dev lo"));
        }
        let world = World::start(at, tables);
        test(&world);
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

#[allow(unsafe_code)]
fn enter_new_namespace() {
    // SAFETY: only CLONE_FILES would be unsafe: it parts this thread's descriptors from the others'.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
}

/// A namespace for a container, as long as it is held.
pub(crate) fn new_namespace() -> OwnedFd {
    let made = thread::spawn(|| {
        enter_new_namespace();
        std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    });
    made.join().unwrap()
}

/// Runs `work` on a thread in `netns`.
pub(crate) fn within<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// A command in the calling thread's namespace; its output.
pub(crate) fn run(command: &str) -> String {
    let words: Vec<&str> = command.split_whitespace().collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}{error}");
    text
}

impl World {
    fn start(at: SocketAddr, tables: Tables) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let resolv_conf = folder.path().join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {UPSTREAM}\n")).unwrap();
        let zone = Arc::new(ArcSwap::from_pointee(Zone::new(tables)));
        let host = HostResolver::new(resolv_conf.clone(), "/nowhere".into());
        let forwarder = Forwarder::new(host, Arc::new(RealClock::new()), Arc::new(SystemRng));
        let server = Server::new(Arc::clone(&zone), forwarder);
        let udp = UdpSocket::bind(at).unwrap();
        let tcp = TcpListener::bind(at).unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let server = thread::spawn(move || {
            // A thread begins in the namespace of its parent.
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let sockets = Sockets { udp: vec![udp], tcp: vec![tcp] };
            runtime.block_on(server.run(sockets, stopped)).unwrap();
        });
        Self { zone, resolv_conf, _folder: folder, stop, server: Some(server) }
    }

    /// What dig prints, as container 10.1.0.`last`.
    pub(crate) fn dig(&self, last: u8, arguments: &str) -> String {
        run(&format!("dig -r -b 10.1.0.{last} @{GATEWAY} +tries=1 +time=5 {arguments}"))
    }

    /// The status, then the answers' data in order of text.
    pub(crate) fn ask(&self, last: u8, arguments: &str) -> String {
        let text = self.dig(last, arguments);
        let status = text.split("status: ").nth(1).unwrap_or("?").split(',').next().unwrap();
        let short = self.dig(last, &format!("+short {arguments}"));
        let mut answers: Vec<&str> = short.lines().collect();
        answers.sort_unstable();
        let mut words = vec![status];
        words.extend(answers);
        words.join(" ")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.server.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap();
        }
    }
}

/// dnsmasq as the host's name server.
pub(crate) struct Upstream {
    child: Child,
    log: tempfile::NamedTempFile,
}

impl Upstream {
    pub(crate) fn start(at: Ipv4Addr, arguments: &str) -> Self {
        let log = tempfile::NamedTempFile::new().unwrap();
        let path = log.path().display();
        let base = format!(
            "-k --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --listen-address={at} \
             --port=53 --pid-file= --user=root --edns-packet-max=4096 --log-queries --log-facility={path} {arguments}"
        );
        let child = Command::new("dnsmasq")
            .args(base.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let upstream = Self { child, log };
        let start = Instant::now();
        while std::net::TcpStream::connect((at, 53)).is_err() {
            assert!(start.elapsed() < PATIENCE, "dnsmasq does not listen");
            thread::yield_now();
        }
        upstream
    }

    /// The names that it was asked for, one a line.
    pub(crate) fn heard(&self) -> String {
        let log = std::fs::read_to_string(self.log.path()).unwrap();
        let queries =
            log.lines().filter_map(|line| line.split_once(" query[")?.1.split(' ').nth(1));
        queries.collect::<Vec<&str>>().join("\n")
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
