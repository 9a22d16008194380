//! A host, another machine, containers, servers and clients.

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket,
};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketFlags, SocketType, ipproto, sendto, socket_with,
};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use warren_net::{Net, NetConfig, Protocol, PublishedPort, Sandbox, Table};

pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub(crate) const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub(crate) const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
pub(crate) const KEY: &str = "testnode";
/// What answers within this answers; loopback and veth need microseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// What does not answer within this is dropped.
const SILENCE: Duration = Duration::from_millis(400);

pub(crate) fn config(prepared: usize) -> NetConfig {
    NetConfig { node_key: KEY.into(), pool: (Ipv4Addr::new(10, 128, 0, 0), 10), prepared }
}

/// The machine under test is the calling thread's namespace.
pub(crate) struct World {
    pub(crate) other: Arc<OwnedFd>,
    pub(crate) net: Net,
}

/// Runs a test on a host of its own.
pub(crate) fn on_host<F: Future<Output = ()>>(test: impl FnOnce(World) -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() || Command::new("nft").arg("-v").output().is_err() {
        eprintln!("skipped: needs root and nft");
        return;
    }
    let host = thread::spawn(|| {
        enter_new_namespace();
        let other = thread::spawn(|| {
            enter_new_namespace();
            own_namespace()
        });
        // Held to the end, also if the test does not look at it.
        let other = Arc::new(other.join().unwrap());
        let path = format!("/proc/{}/fd/{}", std::process::id(), other.as_raw_fd());
        run("ip link set lo up");
        run(&format!("ip link add up0 type veth peer name eth0 netns {path}"));
        run("ip addr add 192.0.2.1/24 dev up0");
        run("ip link set up0 up");
        within(&other, || {
            // New namespaces inherit it from the machine's.
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
            run("ip link set lo up");
            run("ip addr add 192.0.2.2/24 dev eth0");
            run("ip link set eth0 up");
            run("ip route add 10.128.0.0/10 via 192.0.2.1");
        });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let net = Net::open(config(2)).await.unwrap();
            test(World { other: Arc::clone(&other), net }).await;
        });
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

#[allow(unsafe_code)]
pub(crate) fn enter_new_namespace() {
    // SAFETY: only CLONE_FILES would be unsafe: it parts this thread's descriptors from the others'.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
}

pub(crate) fn own_namespace() -> OwnedFd {
    std::fs::File::open("/proc/thread-self/ns/net").unwrap().into()
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
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Names of the links here, sorted.
pub(crate) fn links() -> Vec<String> {
    let mut links: Vec<String> = run("ip -o link")
        .lines()
        .map(|line| line.split(' ').nth(1).unwrap().split(['@', ':']).next().unwrap().to_owned())
        .collect();
    links.sort();
    links
}

impl World {
    pub(crate) async fn container(&self, id: &str, last: u8) -> Container {
        let address = Ipv4Addr::new(10, 128, 0, last);
        let sandbox = self.net.attach(id, address).await.unwrap();
        Container { sandbox }
    }

    pub(crate) async fn publish(&self, ports: &[(Protocol, Ipv4Addr, u16, &[&Container])]) {
        self.net.apply(table(ports)).await.unwrap();
    }
}

pub(crate) fn table(ports: &[(Protocol, Ipv4Addr, u16, &[&Container])]) -> Table {
    let published = ports.iter().map(|(protocol, bind, port, containers)| PublishedPort {
        protocol: *protocol,
        bind: *bind,
        port: *port,
        backends: containers.iter().map(|c| SocketAddrV4::new(c.address(), 80)).collect(),
    });
    Table { published: published.collect(), ..Table::default() }
}

pub(crate) struct Container {
    pub(crate) sandbox: Sandbox,
}

impl Container {
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.sandbox.address
    }

    pub(crate) fn netns(&self) -> &OwnedFd {
        &self.sandbox.netns
    }

    /// A server on port 80 that tells its name and whom it sees.
    pub(crate) fn serve(&self, name: &str) -> Server {
        within(self.netns(), || Server::tcp(name, ANY, 80))
    }

    pub(crate) fn serve_udp(&self, name: &str) -> Server {
        within(self.netns(), || Server::udp(name, ANY, 80))
    }

    /// A process that lives in the container.
    pub(crate) fn process(&self) -> Process {
        within(self.netns(), || Process(Command::new("sleep").arg("600").spawn().unwrap()))
    }
}

pub(crate) struct Process(pub(crate) Child);

impl Process {
    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// Answers `name peer`, and over TCP then echoes lines until the client closes.
pub(crate) struct Server {
    socket: Arc<Listening>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn tcp(name: &str, address: impl Into<IpAddr>, port: u16) -> Self {
        let listener = TcpListener::bind((address.into(), port)).unwrap();
        Self::start(Listening::Tcp(listener), name)
    }

    pub(crate) fn udp(name: &str, address: impl Into<IpAddr>, port: u16) -> Self {
        let socket = UdpSocket::bind((address.into(), port)).unwrap();
        Self::start(Listening::Udp(socket), name)
    }

    fn start(socket: Listening, name: &str) -> Self {
        let (socket, name) = (Arc::new(socket), name.to_owned());
        let served = Arc::clone(&socket);
        let thread = thread::spawn(move || match &*served {
            Listening::Tcp(listener) => serve_tcp(listener, &name),
            Listening::Udp(socket) => serve_udp(socket, &name),
        });
        Self { socket, thread: Some(thread) }
    }
}

fn serve_tcp(listener: &TcpListener, name: &str) {
    while let Ok((mut stream, peer)) = listener.accept() {
        let name = name.to_owned();
        thread::spawn(move || {
            let mut buffer = [0; 64];
            let _ = stream.write_all(format!("{name} {}\n", peer.ip()).as_bytes());
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                let _ = stream.write_all(&buffer[..len]);
            }
        });
    }
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 64];
    // A shutdown socket reads nothing from nobody.
    while let Ok((1.., peer)) = socket.recv_from(&mut buffer) {
        let _ = socket.send_to(format!("{name} {}\n", peer.ip()).as_bytes(), peer);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = match &*self.socket {
            Listening::Tcp(listener) => rustix::net::shutdown(listener, Shutdown::Both),
            Listening::Udp(socket) => rustix::net::shutdown(socket, Shutdown::Both),
        };
        let _ = self.thread.take().unwrap().join();
    }
}

/// An open connection and the greeting it got.
pub(crate) struct Connection {
    stream: TcpStream,
    pub(crate) greeting: String,
}

impl Connection {
    /// From the calling thread's namespace.
    pub(crate) fn open(to: impl Into<IpAddr>, port: u16) -> io::Result<Self> {
        Self::open_within(to.into(), port, PATIENCE)
    }

    fn open_within(to: IpAddr, port: u16, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&SocketAddr::from((to, port)), patience)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut connection = Self { stream, greeting: String::new() };
        connection.greeting = connection.line()?;
        Ok(connection)
    }

    /// Whether both directions still work.
    pub(crate) fn echoes(&mut self) -> bool {
        self.ask().is_ok_and(|line| line == "ping")
    }

    /// What comes back of a line.
    pub(crate) fn ask(&mut self) -> io::Result<String> {
        self.stream.write_all(b"ping\n")?;
        self.line()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            self.stream.read_exact(&mut byte)?;
            if byte[0] == b'\n' {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
    }
}

/// What a connection to there is greeted with, or how it fails: `refused`, `silence`.
pub(crate) fn tcp(to: Ipv4Addr, port: u16) -> String {
    outcome(Connection::open(to, port).map(|connection| connection.greeting))
}

/// As `tcp`, where no answer is expected.
pub(crate) fn tcp_briefly(to: Ipv4Addr, port: u16) -> String {
    outcome(Connection::open_within(to.into(), port, SILENCE).map(|connection| connection.greeting))
}

pub(crate) fn udp(to: Ipv4Addr, port: u16) -> String {
    outcome(UdpClient::open(to, port).and_then(|client| client.ask()))
}

/// As `tcp`, to an address of either family.
pub(crate) fn tcp_to(to: IpAddr, port: u16) -> String {
    outcome(Connection::open(to, port).map(|connection| connection.greeting))
}

/// As `tcp_briefly`, to an address of either family.
pub(crate) fn tcp_to_briefly(to: IpAddr, port: u16) -> String {
    outcome(Connection::open_within(to, port, SILENCE).map(|connection| connection.greeting))
}

/// As `udp`, to an address of either family.
pub(crate) fn udp_to(to: IpAddr, port: u16) -> String {
    outcome(UdpClient::open(to, port).and_then(|client| client.ask()))
}

/// As `udp_to`, where no answer is expected.
pub(crate) fn udp_to_briefly(to: IpAddr, port: u16) -> String {
    let ask = |client: UdpClient| {
        client.0.set_read_timeout(Some(SILENCE))?;
        client.ask()
    };
    outcome(UdpClient::open(to, port).and_then(ask))
}

fn outcome(result: io::Result<String>) -> String {
    match result {
        Ok(greeting) => greeting,
        Err(error) => match error.kind() {
            io::ErrorKind::ConnectionRefused => "refused".into(),
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "silence".into(),
            _ => error.to_string(),
        },
    }
}

/// Whether an echo request is answered.
pub(crate) fn pings(to: IpAddr) -> bool {
    let (family, protocol, kind) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(family, SocketType::DGRAM, flags, Some(protocol)).unwrap();
    // The kernel fills in its checksum and number.
    let sent =
        sendto(&socket, &[kind, 0, 0, 0, 0, 0, 0, 1], SendFlags::empty(), &SocketAddr::new(to, 0));
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(SILENCE)).unwrap();
    sent.is_ok() && socket.recv(&mut [0; 64]).is_ok()
}

/// A client that keeps its port, as chatty ones do.
pub(crate) struct UdpClient(UdpSocket);

impl UdpClient {
    pub(crate) fn open(to: impl Into<IpAddr>, port: u16) -> io::Result<Self> {
        let to = to.into();
        let any = if to.is_ipv4() { ANY.into() } else { IpAddr::V6(Ipv6Addr::UNSPECIFIED) };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect((to, port))?;
        Ok(Self(socket))
    }

    pub(crate) fn ask(&self) -> io::Result<String> {
        self.0.send(b"hello")?;
        let mut buffer = [0; 64];
        let len = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..len]).trim_end().to_owned())
    }

    pub(crate) fn outcome(&self) -> String {
        outcome(self.ask())
    }
}

/// Waits until `done`; the kernel takes namespaces apart in its own time.
#[track_caller]
pub(crate) fn eventually(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        thread::yield_now();
    }
}
