//! Upstream servers that are played, on loopback; time is moved by hand.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicUsize, Ordering};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA, TXT};
use hickory_proto::rr::{Name, RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use warren_base::clock::ManualClock;
use warren_base::rng::SeededRng;

use super::*;
use crate::dns::answer::{Action, Transport, answer};
use crate::dns::wire::{kind, write_query};
use crate::dns::{Addresses, Asker, Tables, Zone};

const ASKER: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 1);

fn question(name: &str, kind: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.bytes());
    }
    bytes.push(0);
    bytes.extend(kind.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

fn ask_for(name: &str, servers: &[SocketAddr], transport: Transport) -> Ask {
    let asker = Asker {
        addresses: Addresses { v4: Some(ASKER), v6: None },
        stack: None,
        networks: Box::default(),
        upstream: Upstream::Servers(servers.into()),
    };
    let zone = Zone::new(Tables { askers: vec![asker], ..Tables::default() });
    let message = write_query(7, 0, &question(name, kind::A), Some(false));
    match answer(&zone, ASKER.into(), &message, transport, 0, &mut Vec::new()) {
        Action::Forward(ask) => ask,
        other => panic!("{other:?}"),
    }
}

fn forwarder(clock: &Arc<ManualClock>) -> Arc<Forwarder> {
    let host = HostResolver::new("/nowhere/resolv.conf".into(), "/nowhere/behind".into());
    Forwarder::new(host, Arc::clone(clock) as Arc<dyn Clock>, Arc::new(SeededRng::new(1)))
}

/// What an upstream server says to a query; none: nothing.
type Says = Arc<dyn Fn(Message) -> Vec<Vec<u8>> + Send + Sync>;

/// Plays a server over UDP and TCP; counts the queries.
struct Upper {
    address: SocketAddr,
    datagrams: Arc<AtomicUsize>,
    streams: Arc<AtomicUsize>,
}

async fn upper(says: Says, says_by_stream: Says) -> Upper {
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    let upper = Upper { address, datagrams: Arc::default(), streams: Arc::default() };
    let (datagrams, streams) = (Arc::clone(&upper.datagrams), Arc::clone(&upper.streams));
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (len, peer) = udp.recv_from(&mut buffer).await.unwrap();
            datagrams.fetch_add(1, Ordering::Relaxed);
            for answer in says(Message::from_vec(&buffer[..len]).unwrap()) {
                udp.send_to(&answer, peer).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            streams.fetch_add(1, Ordering::Relaxed);
            let len = stream.read_u16().await.unwrap();
            let mut buffer = vec![0; usize::from(len)];
            stream.read_exact(&mut buffer).await.unwrap();
            for answer in says_by_stream(Message::from_vec(&buffer).unwrap()) {
                stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        }
    });
    upper
}

fn reply(mut message: Message) -> Message {
    message.metadata.message_type = MessageType::Response;
    message.metadata.recursion_available = true;
    message
}

fn with_address(message: Message, ttl: u32, last: u8) -> Message {
    let mut message = reply(message);
    let name = message.queries[0].name.clone();
    message.add_answer(Record::from_rdata(name, ttl, RData::A(A::new(192, 0, 2, last))));
    message
}

fn without(mut message: Message, code: ResponseCode, soa: bool) -> Message {
    message = reply(message);
    message.metadata.response_code = code;
    if soa {
        let zone = Name::from_ascii("com.").unwrap();
        let data = SOA::new(zone.clone(), zone.clone(), 1, 2, 3, 4, 60);
        message.add_authority(Record::from_rdata(zone, 900, RData::SOA(data)));
    }
    message
}

fn says(one: impl Fn(Message) -> Message + Send + Sync + 'static) -> Says {
    Arc::new(move |message| vec![one(message).to_vec().unwrap()])
}

fn silence() -> Says {
    Arc::new(|_| Vec::new())
}

async fn resolve(forwarder: &Arc<Forwarder>, ask: &Ask) -> String {
    let mut out = Vec::new();
    if !forwarder.recall(ask, &mut out) {
        forwarder.resolve(ask, &mut out).await;
    }
    print(&out)
}

fn print(bytes: &[u8]) -> String {
    let message = Message::from_vec(bytes).unwrap();
    let mut text = message.metadata.response_code.to_string();
    for record in &message.answers {
        text = format!("{} for {}", record.data, record.ttl);
    }
    if message.metadata.truncation {
        text.push_str(" truncated");
    }
    text
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(1_000_000))
}

#[tokio::test]
async fn answers_are_kept_as_long_as_they_say() {
    let clock = clock();
    let forwarder = forwarder(&clock);
    let upper = upper(says(|m| with_address(m, 60, 1)), silence()).await;
    let ask = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &ask).await, "192.0.2.1 for 60");
    clock.advance(20_500);
    assert_eq!(resolve(&forwarder, &ask).await, "192.0.2.1 for 40");
    // Another spelling is the same question.
    let upper_case = ask_for("WWW.example.COM", &[upper.address], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &upper_case).await, "192.0.2.1 for 40");
    assert_eq!(upper.datagrams.load(Ordering::Relaxed), 1);
    clock.advance(39_600);
    assert_eq!(resolve(&forwarder, &ask).await, "192.0.2.1 for 60");
    assert_eq!(upper.datagrams.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn that_there_is_nothing_is_kept_too() {
    let clock = clock();
    let forwarder = forwarder(&clock);
    let answer = says(|m| without(m, ResponseCode::NXDomain, true));
    let upper = upper(answer, silence()).await;
    let ask = ask_for("no.example.com", &[upper.address], Transport::Datagram);
    for (advance, asked) in [(0, 1), (59_000, 1), (1001, 2)] {
        clock.advance(advance);
        assert_eq!(resolve(&forwarder, &ask).await, "Non-Existent Domain");
        assert_eq!(upper.datagrams.load(Ordering::Relaxed), asked);
    }
}

#[tokio::test]
async fn many_who_ask_the_same_are_one_query() {
    let forwarder = forwarder(&clock());
    let upper = upper(says(|m| with_address(m, 0, 1)), silence()).await;
    let ask = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    let all = (0..50).map(|_| resolve(&forwarder, &ask));
    let all = futures::future::join_all(all).await;
    assert!(all.iter().all(|text| text == "192.0.2.1 for 0"));
    assert_eq!(upper.datagrams.load(Ordering::Relaxed), 1);
    assert!(forwarder.lock().flights.is_empty());
}

#[tokio::test]
async fn the_next_server_is_asked() {
    for bad in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::FormErr] {
        let forwarder = forwarder(&clock());
        let one = upper(says(move |m| without(m, bad, false)), silence()).await;
        let two = upper(says(|m| with_address(m, 60, 2)), silence()).await;
        let ask = ask_for("www.example.com", &[one.address, two.address], Transport::Datagram);
        assert_eq!(resolve(&forwarder, &ask).await, "192.0.2.2 for 60");
        // One that did not understand is asked again in the words of RFC 1035.
        let tries = if bad == ResponseCode::FormErr { 2 } else { 1 };
        assert_eq!(one.datagrams.load(Ordering::Relaxed), tries);
    }
}

#[tokio::test]
async fn a_server_that_is_away_comes_last() {
    let clock = clock();
    let forwarder = forwarder(&clock);
    // A port that nobody has: the kernel says so at once.
    let away = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let there = upper(says(|m| with_address(m, 60, 2)), silence()).await;
    let servers = [away, there.address];
    let ask = ask_for("www.example.com", &servers, Transport::Datagram);
    assert_eq!(resolve(&forwarder, &ask).await, "192.0.2.2 for 60");
    assert_eq!(forwarder.in_order(&servers), [there.address, away]);
    clock.advance(FAILING_MS);
    assert_eq!(forwarder.in_order(&servers), servers);
}

#[tokio::test]
async fn failures_are_kept_for_a_second() {
    let clock = clock();
    let forwarder = forwarder(&clock);
    let upper = upper(says(|m| without(m, ResponseCode::ServFail, false)), silence()).await;
    let ask = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &ask).await, "Server Failure");
    let asked = upper.datagrams.load(Ordering::Relaxed);
    assert_eq!(resolve(&forwarder, &ask).await, "Server Failure");
    assert_eq!(upper.datagrams.load(Ordering::Relaxed), asked);
    clock.advance(FAILURE_KEPT_MS);
    assert_eq!(resolve(&forwarder, &ask).await, "Server Failure");
    assert!(upper.datagrams.load(Ordering::Relaxed) > asked);
    // With nobody to ask too.
    let ask = ask_for("www.example.com", &[], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &ask).await, "Server Failure");
}

/// Answers to another id, of another name and of another type come before the right one.
#[tokio::test]
async fn what_does_not_fit_is_not_heard() {
    let forwarder = forwarder(&clock());
    let upper = upper(
        Arc::new(|message: Message| {
            let right = with_address(message, 60, 1);
            let mut id = with_address(right.clone(), 60, 66);
            id.metadata.id = id.metadata.id.wrapping_add(1);
            let mut name = with_address(right.clone(), 60, 66);
            name.queries[0].name = Name::from_ascii("www.example.org.").unwrap();
            [id, name, right].map(|message| message.to_vec().unwrap()).into()
        }),
        silence(),
    )
    .await;
    let ask = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &ask).await, "192.0.2.1 for 60");
}

#[tokio::test]
async fn a_flood_of_guesses_drives_the_query_to_tcp() {
    let forwarder = forwarder(&clock());
    let upper = upper(
        Arc::new(|message: Message| {
            let mut forged = with_address(message, 60, 66);
            let guess = |_| {
                forged.metadata.id = forged.metadata.id.wrapping_add(1);
                forged.to_vec().unwrap()
            };
            (0..20).map(guess).collect()
        }),
        says(|m| with_address(m, 60, 1)),
    )
    .await;
    let ask = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &ask).await, "192.0.2.1 for 60");
    assert_eq!(upper.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn long_answers_come_over_tcp() {
    let forwarder = forwarder(&clock());
    let cut = says(|message| {
        let mut message = reply(message);
        message.metadata.truncation = true;
        message
    });
    let long = says(|message| {
        let mut message = reply(message);
        let name = message.queries[0].name.clone();
        let text = TXT::new(vec!["x".repeat(250); 8]);
        message.add_answer(Record::from_rdata(name, 60, RData::TXT(text)));
        message
    });
    let upper = upper(cut, long).await;
    let by_datagram = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &by_datagram).await, "No Error truncated");
    let by_stream = ask_for("www.example.com", &[upper.address], Transport::Stream);
    assert!(resolve(&forwarder, &by_stream).await.ends_with("for 60"));
    assert_eq!(upper.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn the_nodes_own_server_is_not_asked() {
    let forwarder = forwarder(&clock());
    let upper = upper(says(|m| with_address(m, 60, 1)), silence()).await;
    forwarder.avoid(vec![upper.address]);
    let ask = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    assert_eq!(resolve(&forwarder, &ask).await, "Server Failure");
    assert_eq!(upper.datagrams.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn there_is_room_for_so_many_who_wait() {
    let forwarder = forwarder(&clock());
    let ask = ask_for("www.example.com", &[], Transport::Datagram);
    let places: Vec<Place> = std::iter::from_fn(|| forwarder.enter(&ask)).collect();
    assert_eq!(places.len(), WAITING_PER_ASKER_MAX);
    let mut other = ask.clone();
    other.asker = Ipv4Addr::new(10, 1, 0, 2).into();
    assert!(forwarder.enter(&other).is_some());
    drop(places);
    assert!(forwarder.enter(&ask).is_some());
    let all = (0..=u8::MAX).flat_map(|last| {
        let mut ask = ask.clone();
        ask.asker = Ipv4Addr::new(10, 1, 1, last).into();
        (0..WAITING_PER_ASKER_MAX).map_while(|_| forwarder.enter(&ask)).collect::<Vec<_>>()
    });
    assert_eq!(all.collect::<Vec<_>>().len(), WAITING_MAX);
    assert!(forwarder.lock().waiting.is_empty());
}

#[tokio::test]
async fn what_is_kept_has_a_limit() {
    let clock = clock();
    let mut cache = Cache::default();
    let upper = upper(says(|m| with_address(m, 60, 1)), silence()).await;
    let forwarder = forwarder(&clock);
    let ask = ask_for("www.example.com", &[upper.address], Transport::Datagram);
    resolve(&forwarder, &ask).await;
    let kept = forwarder.lock().cache.get(&Key::of(&ask), 1_000_000).unwrap();
    let keys =
        || (0..40_000).map(|n| ask_for(&format!("{n}.example.com"), &[], Transport::Datagram));
    let first = Key::of(&keys().next().unwrap());
    for ask in keys() {
        cache.put(Key::of(&ask), Arc::clone(&kept));
        // What is used stays.
        assert!(cache.get(&first, 1_000_000).is_some());
    }
    let bytes = cache.bytes();
    assert!(bytes <= cache::BYTES_MAX && bytes > cache::BYTES_MAX / 2, "{bytes}");
}

#[test]
fn settings_of_the_host() {
    let text = "# made by hand\nnameserver 192.0.2.53 ; first\nnameserver 127.0.0.53\nnameserver fe80::1%2\n\
        nameserver what\ndomain old.example\nsearch corp.example  lab.example\noptions timeout:1 attempts:9 edns0\nsortlist x\n";
    let resolv = Resolv::parse(text);
    let servers: Vec<String> = resolv.servers.iter().map(ToString::to_string).collect();
    assert_eq!(servers, ["192.0.2.53:53", "[fe80::1%2]:53"]);
    assert_eq!(resolv.search, ["corp.example", "lab.example"]);
    assert_eq!(resolv.options, ["timeout:1", "attempts:9", "edns0"]);
    assert_eq!((resolv.timeout, resolv.attempts), (Duration::from_secs(1), 5));
    let file =
        resolv::container_file(&resolv, &[IpAddr::V4([169, 254, 1, 1].into())], Some("shop"));
    assert_eq!(
        file,
        "nameserver 169.254.1.1\nsearch shop.warren.internal warren.internal corp.example lab.example\n\
         options timeout:1 attempts:9 edns0\n"
    );
    let mut many = Resolv::default();
    many.search = vec!["x".repeat(60); 9];
    let file = resolv::container_file(&many, &[], None);
    assert_eq!(file.split_whitespace().count(), 1 + 1 + 3, "{file}");
    many.search = vec!["x".into(); 9];
    assert_eq!(resolv::container_file(&many, &[], Some("a")).split_whitespace().count(), 7);
}

#[test]
fn the_stub_is_looked_behind_and_changes_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let (file, behind) = (folder.path().join("resolv.conf"), folder.path().join("behind"));
    std::fs::write(&file, "nameserver 127.0.0.53\nsearch corp.example\noptions trust-ad\n")
        .unwrap();
    std::fs::write(&behind, "nameserver 192.0.2.1\nsearch not.this\n").unwrap();
    let host = HostResolver::new(file.clone(), behind);
    let read = |now| {
        let (resolv, generation) = host.read(now);
        (resolv.servers[0].to_string(), resolv.search.join(" "), generation)
    };
    assert_eq!(read(0), ("192.0.2.1:53".into(), "corp.example".into(), 1));
    std::fs::write(&file, "nameserver 192.0.2.200\n").unwrap();
    assert_eq!(read(999).2, 1);
    assert_eq!(read(1000), ("192.0.2.200:53".into(), String::new(), 2));
    std::fs::remove_file(&file).unwrap();
    assert!(host.read(2000).0.servers.is_empty());
}
