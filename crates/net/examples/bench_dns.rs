//! Serves names of many services, for a load from outside: `bench_dns ADDRESS:PORT SERVICES`.
//!
//! Builds the tables, measures what they take and what a change of them costs, prints that as one
//! JSON object, and serves on a current-thread runtime until it is killed. Names are `s0` to
//! `sN`, each with a virtual address, an alias, a named port and three tasks; 127.0.0.1 may ask.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio_util::sync::CancellationToken;
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;
use warren_model::id::ServiceId;
use warren_net::Protocol;
use warren_net::dns::{
    Addresses, Asker, Attachment, Endpoint, Forwarder, HostResolver, NamedPort, NetworkId, Outcome,
    Prefix, Server, Service, Sockets, Tables, Task, Upstream, Zone, kind,
};

const ASKER: Ipv4Addr = Ipv4Addr::LOCALHOST;
const NETWORK: NetworkId = NetworkId(*b"network001");
const CHANGES: u32 = 1000;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address: SocketAddr = arguments.next().ok_or("an address with its port")?.parse()?;
    let count: u32 = arguments.next().ok_or("how many services")?.parse()?;
    // So that what the runtime takes is not counted with the tables.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let before = resident_kib()?;
    let start = Instant::now();
    let zone = build(count);
    let built = start.elapsed();
    let after = resident_kib()?;
    let mut changed = zone.clone();
    let mut times: Vec<Duration> = (0..CHANGES).map(|n| change(&mut changed, n % count)).collect();
    times.sort();
    let report = serde_json::json!({
        "services": count,
        "tasks": count * 3,
        "tables_kib": after.saturating_sub(before),
        "build_ms": built.as_millis(),
        "change_us_median": times[times.len() / 2].as_micros(),
        "change_us_p99": times[times.len() * 99 / 100].as_micros(),
        "with_old_and_new_kib": resident_kib()?.saturating_sub(before),
        "lookup_ns": lookups(&zone, count).as_nanos(),
    });
    let host = HostResolver::default();
    let forwarder = Forwarder::new(host, Arc::new(RealClock::new()), Arc::new(SystemRng));
    let server = Server::new(Arc::new(ArcSwap::from_pointee(zone)), forwarder);
    let sockets =
        Sockets { udp: vec![UdpSocket::bind(address)?], tcp: vec![TcpListener::bind(address)?] };
    println!("{report}");
    runtime.block_on(server.run(sockets, CancellationToken::new()))?;
    Ok(())
}

fn build(count: u32) -> Zone {
    let addresses = Addresses { v4: Some(ASKER), v6: None };
    let networks = [NETWORK].into();
    let asker = Asker { addresses, stack: None, networks, upstream: Upstream::Host };
    let pool = Prefix { address: IpAddr::V4(Ipv4Addr::new(10, 128, 0, 0)), len: 10 };
    let mut zone =
        Zone::new(Tables { pools: vec![pool], askers: vec![asker], ..Tables::default() });
    for number in 0..count {
        zone.put_service(service(number));
    }
    zone
}

fn service(number: u32) -> Service {
    let at = |offset: u32| {
        let v4 = Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 0, 1).to_bits() + offset);
        Addresses { v4: Some(v4), v6: Some(v4.to_ipv6_mapped()) }
    };
    let mut id = [0; 10];
    id[6..].copy_from_slice(&number.to_be_bytes());
    let attachment = Attachment {
        network: NETWORK,
        endpoint: Endpoint::Vip(at(number)),
        aliases: vec![format!("alias{number}").into()],
    };
    let task = |slot| Task {
        slot,
        hostname: None,
        addresses: at(1_000_000 + number * 3 + slot),
        ready: true,
    };
    Service {
        id: ServiceId::from_bytes(id),
        name: format!("s{number}").into(),
        stack: None,
        attachments: vec![attachment],
        ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
        tasks: (1..=3).map(task).collect(),
    }
}

/// One backend leaves, then one comes: the time of one change with its new snapshot.
fn change(zone: &mut Zone, number: u32) -> Duration {
    let mut service = service(number);
    service.tasks[0].ready = false;
    service.tasks[1].addresses.v4 = Some(Ipv4Addr::from_bits(0x0aff_0000 + number));
    let start = Instant::now();
    let mut next = zone.clone();
    next.put_service(service);
    *zone = next;
    start.elapsed()
}

fn lookups(zone: &Zone, count: u32) -> Duration {
    const LOOKUPS: u32 = 200_000;
    let names: Vec<String> = (0..count).map(|n| format!("s{n}.warren.internal")).collect();
    let start = Instant::now();
    for (number, name) in (0..LOOKUPS).zip(names.iter().cycle()) {
        let outcome = zone.lookup(ASKER.into(), name, kind::A, number);
        assert!(matches!(outcome, Outcome::Found(_)), "{name}: {outcome:?}");
    }
    start.elapsed() / LOOKUPS
}

fn resident_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).ok_or("no VmRSS")?;
    Ok(line.split_whitespace().nth(1).ok_or("no number")?.parse()?)
}
