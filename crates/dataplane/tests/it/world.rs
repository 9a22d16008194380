//! Hosts with containers, and what managers would tell them.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use tokio::sync::oneshot;
use warren_base::clock::RealClock;
use warren_dataplane::{Asker, End, Handle, Keeper, Options, Overlay, Status};
use warren_model::NodeTable;
use warren_model::id::{ClusterId, NetworkId, NodeId, ServiceId, TaskId};
use warren_model::node_table::{Peer, TableAttachment, TableNetwork, TableService, TableTask};
use warren_model::service::Endpoint;
use warren_net::dns::Upstream;
use warren_net::{Addresses, Carrier, Member, Net, NetConfig, Sandbox, Table};
use warren_wireguard::PrivateKey;

/// What happens within this happens.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 192, 0, 9);
const POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 10);
const PORT: u16 = 51_820;

/// One host; `n` is in all its names.
pub(crate) struct Host {
    pub(crate) n: u8,
    netns: Arc<OwnedFd>,
    runtime: tokio::runtime::Handle,
    net: Option<Arc<Net>>,
    keeper: Mutex<Option<Keeper>>,
    pub(crate) folder: tempfile::TempDir,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// Runs a test with two hosts on one segment.
pub(crate) fn on_hosts(test: impl FnOnce(&Host, &Host) + Send + 'static) {
    let has = |program: &str, flag: &str| Command::new(program).arg(flag).output().is_ok();
    let all = has("ip", "-V") && has("dig", "-v");
    if !rustix::process::geteuid().is_root() || !all {
        eprintln!("skipped: needs root, ip and dig");
        return;
    }
    let (one, two) = (Host::new(1), Host::new(2));
    let path = format!("/proc/{}/fd/{}", std::process::id(), two.netns.as_raw_fd());
    one.run(&format!("ip link add up0 type veth peer name up0 netns {path}"));
    let (mut one, mut two) = (one, two);
    for host in [&mut one, &mut two] {
        host.run("ip link set lo up");
        host.run(&format!("ip addr add 192.0.2.{}/24 dev up0", host.n));
        host.run("ip link set up0 up");
        let config = NetConfig { node_key: host.key(), pool: POOL, prepared: 0 };
        host.net = Some(Arc::new(host.on(async { Net::open(config).await.unwrap() })));
    }
    test(&one, &two);
}

impl Host {
    fn new(n: u8) -> Self {
        let (told, tells) = mpsc::channel();
        let (end, ended) = oneshot::channel();
        // What it makes is made on this thread: in this namespace.
        let thread = thread::spawn(move || {
            enter_new_namespace();
            let netns = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/net").unwrap());
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.unwrap();
            told.send((netns, runtime.handle().clone())).unwrap();
            let _ = runtime.block_on(ended);
        });
        let (netns, runtime) = tells.recv().unwrap();
        Self {
            n,
            netns: Arc::new(netns),
            runtime,
            net: None,
            keeper: Mutex::default(),
            folder: tempfile::tempdir().unwrap(),
            end: Some(end),
            thread: Some(thread),
        }
    }

    pub(crate) fn key(&self) -> String {
        format!("plane{:03}", self.n)
    }

    /// In the host's own event loop.
    pub(crate) fn on<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        let (done, result) = mpsc::channel();
        self.runtime.spawn(async move {
            let _ = done.send(work.await);
        });
        result.recv_timeout(PATIENCE).unwrap()
    }

    pub(crate) fn run(&self, command: &str) -> String {
        within(&self.netns, || run(command))
    }

    /// Keeps a data plane from now on, of a program called `build`.
    pub(crate) fn keep(&self, build: &str) {
        let run_dir = self.folder.path().to_owned();
        let options = Options {
            program: env!("CARGO_BIN_EXE_warren-dataplane").into(),
            arguments: vec![run_dir.clone().into(), build.into()],
            log: Some(run_dir.join("data.log")),
            run_dir,
            build: build.to_owned(),
            node: node(self.n),
            node_key: self.key(),
            pools: Vec::new(),
            overlay: Some(Overlay {
                keys: vec![private(self.n)],
                address: [192, 0, 2, self.n].into(),
                port: PORT,
                queues: 1,
            }),
            is_eager: true,
            clock: Arc::new(RealClock::new()),
        };
        let keeper = self.on(async move { Keeper::start(options) });
        assert!(self.keeper.lock().unwrap().replace(keeper).is_none());
    }

    pub(crate) fn stop(&self, end: End) {
        let keeper = self.keeper.lock().unwrap().take().unwrap();
        self.on(keeper.stop(end));
    }

    pub(crate) fn handle(&self) -> Handle {
        self.keeper.lock().unwrap().as_ref().unwrap().handle()
    }

    pub(crate) fn status(&self) -> Option<Status> {
        let handle = self.handle();
        self.on(async move { handle.status().await })
    }

    /// The process, once there is one that `is_right`.
    #[track_caller]
    pub(crate) fn process(&self, what: &str, is_right: impl Fn(&Status) -> bool) -> Status {
        let mut found = None;
        eventually(what, || {
            found = self.status().filter(|status| is_right(status));
            found.is_some()
        });
        found.unwrap()
    }

    /// A container that may ask.
    pub(crate) fn container(&self, last: u8) -> Sandbox {
        let address = Ipv4Addr::new(10, 128, self.n, last);
        let net = Arc::clone(self.net.as_ref().unwrap());
        let sandbox = self.on(async move { net.attach(&format!("c{last}"), address).await });
        let (handle, asker) = (self.handle(), asker(self.n, last));
        self.on(async move { handle.admit(asker).await }).unwrap();
        sandbox.unwrap()
    }

    /// Routes and rules for both nodes, as the agent would set them.
    pub(crate) fn apply(&self) {
        let member = |n: u8| Member {
            number: n.into(),
            underlay: [192, 0, 2, n].into(),
            port: 4789,
            inner: Ipv4Addr::new(10, 128, n, 1),
            inner6: None,
            blocks: vec![(Ipv4Addr::new(10, 128, n, 0).into(), 24)],
        };
        let overlay = warren_net::Overlay {
            carrier: Carrier::Device,
            device: Some(warren_net::tunnel_name(&self.key())),
            vni: 77,
            port: 4789,
            own: member(self.n),
            peers: vec![member(3 - self.n)],
            vips: vec![(Ipv4Addr::new(10, 192, 0, 0).into(), 14)],
            pool6: None,
        };
        let table = Table { overlay: Some(Arc::new(overlay)), ..Table::default() };
        let net = Arc::clone(self.net.as_ref().unwrap());
        self.on(async move { net.apply(table).await }).unwrap();
    }

    pub(crate) fn kill(&self, pid: u32) {
        let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("data.log")).unwrap_or_default()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- log of the data plane of {}\n{}", self.n, self.log());
        }
        if let Some(keeper) = self.keeper.lock().unwrap().take() {
            let (done, result) = mpsc::channel();
            self.runtime.spawn(async move {
                keeper.stop(End::Remove).await;
                let _ = done.send(());
            });
            let _ = result.recv_timeout(PATIENCE);
        }
        self.net = None;
        drop(self.end.take());
        let _ = self.thread.take().unwrap().join();
    }
}

pub(crate) fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

pub(crate) fn private(n: u8) -> PrivateKey {
    PrivateKey::from_bytes([n; 32])
}

fn network() -> NetworkId {
    NetworkId::from_bytes([7; 10])
}

pub(crate) fn asker(n: u8, last: u8) -> Asker {
    Asker {
        task: TaskId::from_bytes([n, last, 0, 0, 0, 0, 0, 0, 0, 0]),
        addresses: Addresses::from(Ipv4Addr::new(10, 128, n, last)),
        stack: None,
        networks: vec![network()],
        upstream: Upstream::Nobody,
    }
}

/// Two nodes and `web`, with a task on each. `services` more are there to make it long.
pub(crate) fn table(services: u16) -> Arc<NodeTable> {
    let mut table =
        NodeTable { cluster: Some(ClusterId::from_bytes([1; 10])), ..NodeTable::default() };
    for n in [1, 2] {
        let peer = Peer {
            number: n.into(),
            underlay: format!("192.0.2.{n}"),
            blocks: vec![format!("10.128.{n}.0/24").parse().unwrap()],
            overlay_key: *private(n).public().as_bytes(),
            overlay_key_other: [0; 32],
            overlay_port: 0,
            name: String::new(),
        };
        table.peers.insert(node(n), Arc::new(peer));
    }
    let spec = TableNetwork {
        name: "back".parse().unwrap(),
        internal: false,
        attachable: false,
        encrypted: true,
        subnet_v6: None,
    };
    table.networks.insert(network(), Arc::new(spec));
    for number in 0..=services {
        let name = if number == 0 { "web".to_owned() } else { format!("s{number}") };
        let tasks = [1, 2].map(|n| TableTask {
            task: TaskId::from_bytes([n, 2, 0, 0, 0, 0, 0, 0, 0, 0]),
            slot: n.into(),
            address: Ipv4Addr::new(10, 128, n, 2),
            node: node(n),
            weight: TableTask::WEIGHT,
            ready: true,
        });
        let on = TableAttachment {
            network: network(),
            aliases: vec![],
            vip: (number == 0).then_some(VIP),
            slots: vec![],
        };
        let service = TableService {
            name: name.parse().unwrap(),
            on: vec![on],
            endpoint: Endpoint::default(),
            ports: vec![],
            hostname: None,
            tasks: tasks.into(),
        };
        let [a, b] = number.to_be_bytes();
        let id = ServiceId::from_bytes([a, b, 0, 0, 0, 0, 0, 0, 0, 1]);
        table.services.insert(id, Arc::new(service));
    }
    Arc::new(table)
}

#[allow(unsafe_code)]
fn enter_new_namespace() {
    // SAFETY: only CLONE_FILES would be unsafe: it parts this thread's descriptors from the others'.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
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

fn execute(command: &str) -> Output {
    let words: Vec<&str> = command.split_whitespace().collect();
    Command::new(words[0]).args(&words[1..]).output().unwrap()
}

fn run(command: &str) -> String {
    let output = execute(command);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// What `dig` says in a container, sorted.
pub(crate) fn dig(from: &Sandbox, arguments: &str) -> String {
    let command = format!("dig +short +time=3 +tries=1 @{GATEWAY} {arguments}");
    let output = within(&from.netns, || execute(&command));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut lines: Vec<&str> = text.split_whitespace().collect();
    lines.sort_unstable();
    lines.join(" ")
}

#[track_caller]
pub(crate) fn assert_pings(from: &Sandbox, to: Ipv4Addr) {
    eventually(&format!("{} pings {to}", from.address), || within(&from.netns, || pings(to)));
}

/// Whether an echo request is answered.
fn pings(to: Ipv4Addr) -> bool {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};
    let flags = SocketFlags::CLOEXEC;
    let socket =
        socket_with(AddressFamily::INET, SocketType::DGRAM, flags, Some(ipproto::ICMP)).unwrap();
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    // The kernel fills in its checksum and number.
    let sent = socket.send_to(&[8, 0, 0, 0, 0, 0, 0, 1], (to, 0));
    sent.is_ok() && socket.recv(&mut [0; 64]).is_ok()
}

#[track_caller]
pub(crate) fn assert_connects(from: &Sandbox, to: &Sandbox) {
    let listener = within(&to.netns, || TcpListener::bind((to.address, 0)).unwrap());
    let at = listener.local_addr().unwrap();
    let stream = within(&from.netns, || TcpStream::connect_timeout(&at, PATIENCE).unwrap());
    let (_, peer) = listener.accept().unwrap();
    assert_eq!(peer, stream.local_addr().unwrap());
}

#[track_caller]
pub(crate) fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Names of files in a folder, sorted.
pub(crate) fn files(folder: PathBuf) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
