//! Whole servers on loopback.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Instant;

use hickory_proto::op::Message;
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;

use super::*;
use crate::dns::HostResolver;
use crate::dns::wire::{kind, write_query};
use crate::dns::zone::tests::tables;

const PATIENCE: Duration = Duration::from_secs(5);

struct Running {
    udp: SocketAddr,
    tcp: SocketAddr,
    zone: Arc<ArcSwap<Zone>>,
    counters: Arc<Counters>,
    stop: CancellationToken,
    thread: Option<thread::JoinHandle<io::Result<()>>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
        let ended = self.thread.take().unwrap().join();
        if !thread::panicking() {
            ended.unwrap().unwrap();
        }
    }
}

fn serve(text: &str, bind: &str) -> Running {
    let udp = UdpSocket::bind(bind).unwrap();
    let tcp = TcpListener::bind(bind).unwrap();
    let zone = Arc::new(ArcSwap::from_pointee(Zone::new(tables(text))));
    let host = HostResolver::new("/nowhere".into(), "/nowhere".into());
    let forwarder = Forwarder::new(host, Arc::new(RealClock::new()), Arc::new(SystemRng));
    let server = Server::new(Arc::clone(&zone), forwarder);
    let (counters, stop) = (server.counters(), CancellationToken::new());
    let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let stopped = stop.clone();
    let thread = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(server.run(Sockets { udp: vec![udp], tcp: vec![tcp] }, stopped))
    });
    Running { udp: udp_at, tcp: tcp_at, zone, counters, stop, thread: Some(thread) }
}

fn query(id: u16, name: &str) -> Vec<u8> {
    let mut question = Vec::new();
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).unwrap());
        question.extend(label.bytes());
    }
    question.extend([0, 0, 1, 0, 1]);
    assert_eq!(kind::A, 1);
    write_query(id, 0, &question, None)
}

fn ask(to: SocketAddr, message: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Connected: an answer from another address is not heard.
    socket.connect(to).unwrap();
    socket.send(message).unwrap();
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).ok()?;
    Some(buffer[..len].to_vec())
}

fn addresses(bytes: &[u8]) -> Vec<String> {
    let message = Message::from_vec(bytes).unwrap();
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

const WEB: &str = "web a:10.9.0.1 1=10.1.0.1 2=10.1.0.2\n? 127.0.0.1,::1 - a";

#[test]
fn datagrams_are_answered_and_changes_seen() {
    let server = serve(WEB, "127.0.0.1:0");
    assert_eq!(addresses(&ask(server.udp, &query(1, "web")).unwrap()), ["10.9.0.1"]);
    server.zone.store(Arc::new(Zone::new(tables("web a:10.9.0.7\n? 127.0.0.1 - a"))));
    assert_eq!(addresses(&ask(server.udp, &query(2, "web")).unwrap()), ["10.9.0.7"]);
    assert_eq!(server.counters.answered.load(Ordering::Relaxed), 2);
}

/// One socket for all addresses answers from the one that was asked.
#[test]
fn answers_come_from_the_address_that_was_asked() {
    let server = serve(WEB, "0.0.0.0:0");
    for last in [1, 2, 77] {
        let to = SocketAddr::from(([127, 0, 0, last], server.udp.port()));
        assert_eq!(addresses(&ask(to, &query(1, "web")).unwrap()), ["10.9.0.1"]);
    }
    // Dual stack: an IPv4 asker is the same to a socket of IPv6.
    let server = serve(WEB, "[::]:0");
    let to = SocketAddr::from(([127, 0, 0, 77], server.udp.port()));
    assert_eq!(addresses(&ask(to, &query(1, "web")).unwrap()), ["10.9.0.1"]);
}

#[test]
fn strangers_and_nonsense() {
    let server = serve("web a:10.9.0.1\n? 127.0.0.9 - a", "127.0.0.1:0");
    let asked = query(1, "web");
    let refused = ask(server.udp, &asked).unwrap();
    assert_eq!((refused.len(), refused[3] & 0xf), (asked.len(), 5));
    let mut odd = asked;
    odd[5] = 9;
    let told = ask(server.udp, &odd).unwrap();
    assert_eq!((told.len(), told[3] & 0xf), (12, 1));
    // Of a stranger's connection not a byte is read.
    let mut stream = TcpStream::connect(server.tcp).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    assert_eq!(server.counters.refused.load(Ordering::Relaxed), 1);
    assert_eq!(server.counters.malformed.load(Ordering::Relaxed), 1);
}

#[test]
fn many_datagrams_at_once() {
    let server = serve(WEB, "127.0.0.1:0");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(server.udp).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    // The buffers of both sockets hold these without loss.
    for round in 0..20u16 {
        for at in 0..64 {
            socket.send(&query(round * 64 + at, "tasks.web")).unwrap();
        }
        for _ in 0..64 {
            let mut buffer = [0; 512];
            let len = socket.recv(&mut buffer).unwrap();
            assert_eq!(addresses(&buffer[..len]).len(), 2);
            assert!(seen.insert(buffer[..2].to_vec()));
        }
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [&u16::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn read_framed(stream: &mut TcpStream) -> Vec<u8> {
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut message).unwrap();
    message
}

#[test]
fn long_answers_over_tcp_and_several_on_a_connection() {
    let tasks: String = (0..=255).map(|n| format!(" {n}=10.1.1.{n}")).collect();
    let server = serve(&format!("web a:{tasks}\n? 127.0.0.1 - a"), "127.0.0.1:0");
    let cut = ask(server.udp, &query(1, "web")).unwrap();
    assert!(cut.len() <= 512 && Message::from_vec(&cut).unwrap().metadata.truncation);
    let mut stream = TcpStream::connect(server.tcp).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let both = [framed(&query(1, "web")), framed(&query(2, "7.web"))].concat();
    // In pieces, as networks do.
    for piece in both.chunks(5) {
        stream.write_all(piece).unwrap();
    }
    assert_eq!(addresses(&read_framed(&mut stream)).len(), 256);
    assert_eq!(addresses(&read_framed(&mut stream)), ["10.1.1.7"]);
    // A length that no query has ends it.
    stream.write_all(&[0xff, 0xff]).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn one_container_gets_so_many_connections() {
    let server = serve(WEB, "127.0.0.1:0");
    let open = |_| {
        let mut stream = TcpStream::connect(server.tcp).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&framed(&query(1, "web"))).unwrap();
        let mut len = [0; 2];
        (stream.read_exact(&mut len).is_ok(), stream)
    };
    let all: Vec<(bool, TcpStream)> = (0..20).map(open).collect();
    assert_eq!(all.iter().filter(|(served, _)| *served).count(), 16);
    drop(all);
    let start = Instant::now();
    while !open(0).0 {
        assert!(start.elapsed() < PATIENCE, "places of closed connections are not free again");
    }
}

#[test]
fn a_stopped_server_leaves_its_sockets_to_others() {
    let server = serve(WEB, "127.0.0.1:0");
    let (udp, tcp) = (server.udp, server.tcp);
    let idle = TcpStream::connect(tcp).unwrap();
    drop(server);
    drop(idle);
    UdpSocket::bind(udp).unwrap();
}
