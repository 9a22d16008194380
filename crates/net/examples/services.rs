//! What a change among thousands of services costs, and all of them at once: prints one JSON object.
//!
//! Best run as root in a network namespace of its own:
//! `unshare -n target/release/examples/services [SERVICES]`. Everything is removed at the end.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use warren_net::{
    Backend, Carrier, Entries, Frontend, Group, Member, Net, NetConfig, Networks, Overlay,
    Protocol, Service, Table,
};

const SERVICES: u32 = 5000;
const BACKENDS: u32 = 3;
const CHANGES: u32 = 100;
const RESYNCS: usize = 7;
/// The kernel takes what was removed apart between changes.
const APART: Duration = Duration::from_millis(20);

fn main() -> Result<(), Box<dyn Error>> {
    let services = std::env::args().nth(1).map_or(Ok(SERVICES), |count| count.parse())?;
    tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(run(services))
}

async fn run(count: u32) -> Result<(), Box<dyn Error>> {
    let config = NetConfig {
        node_key: "example1".to_owned(),
        pool: (Ipv4Addr::new(10, 128, 0, 0), 10),
        prepared: 0,
    };
    let mut table = table(count);
    let (mut resyncs, mut earlier) = (Vec::new(), Vec::new());
    for _ in 0..RESYNCS {
        let net = Net::open(config.clone()).await?;
        resyncs.push(measured(net.apply(table.clone())).await?);
        // Its threads go on: what they used would go out of the account with them.
        earlier.push(net);
    }
    let net = Net::open(config).await?;
    net.apply(table.clone()).await?;
    let (mut replaced, mut added) = (Vec::new(), Vec::new());
    for change in 0..CHANGES {
        let key = key(change * 37 % count);
        // Another container instead of one of three, then a fourth beside them.
        let mut backends = table.services.get(&key).map_or_else(Vec::new, |s| s.backends.clone());
        backends[0].address = address(count * BACKENDS + change);
        set(&mut table, &key, backends.clone());
        tokio::time::sleep(APART).await;
        replaced.push(measured(net.apply(table.clone())).await?);
        backends.push(Backend {
            address: address(count * BACKENDS + CHANGES + change),
            weight: 1,
            local: false,
        });
        set(&mut table, &key, backends);
        tokio::time::sleep(APART).await;
        added.push(measured(net.apply(table.clone())).await?);
    }
    net.clean().await?;
    let report = serde_json::json!({
        "services": count,
        "backends_each": BACKENDS,
        "resync": summary(&resyncs),
        "one_backend_replaced": summary(&replaced),
        "one_backend_added": summary(&added),
    });
    println!("{report:#}");
    Ok(())
}

/// Of the service and of the group of its containers.
fn set(table: &mut Table, key: &str, backends: Vec<Backend>) {
    let addresses = backends.iter().map(|backend| backend.address).collect();
    let before = table.services.get(key).map(|service| Service::clone(service));
    table.services.insert(Arc::new(Service { backends, ..before.expect("it is there") }));
    if let Some(networks) = &mut table.networks {
        let before = networks.groups.get(key).map(|group| Group::clone(group));
        networks.groups.insert(Arc::new(Group { addresses, ..before.expect("it is there") }));
    }
}

fn key(index: u32) -> String {
    format!("service-{index}")
}

fn table(count: u32) -> Table {
    let mut networks = Networks::default();
    let mut services = Entries::default();
    for index in 0..count {
        let vip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 64, 0, 0).to_bits() + index);
        let backends: Vec<Backend> = (0..BACKENDS)
            .map(|n| Backend { address: address(index * BACKENDS + n), weight: 1, local: false })
            .collect();
        let port =
            |port| Frontend::Port { vip: vip.into(), protocol: Protocol::Tcp, port, target: 8080 };
        networks.groups.insert(Arc::new(Group {
            key: key(index).into(),
            addresses: backends.iter().map(|backend| backend.address).collect(),
            networks: [index / 10].into(),
        }));
        services.insert(Arc::new(Service {
            key: key(index).into(),
            frontends: vec![port(80), Frontend::Address(vip.into())],
            backends,
            affinity: false,
            prefer_local: false,
        }));
    }
    let own = Member {
        number: 1,
        underlay: Ipv4Addr::LOCALHOST.into(),
        port: 8472,
        inner: Ipv4Addr::new(10, 128, 0, 0),
        inner6: Some(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1)),
        blocks: vec![(Ipv4Addr::new(10, 128, 0, 0).into(), 24)],
    };
    let overlay = Overlay {
        carrier: Carrier::Vxlan,
        device: None,
        vni: 1,
        port: 8472,
        own,
        peers: Vec::new(),
        vips: vec![(Ipv4Addr::new(10, 64, 0, 0).into(), 16)],
        pool6: Some((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 16)),
    };
    Table {
        services,
        networks: Some(networks),
        overlay: Some(Arc::new(overlay)),
        ..Table::default()
    }
}

fn address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 128, 1, 0).to_bits() + number).into()
}

/// Wall time and the time that this process was on a processor.
async fn measured(
    work: impl Future<Output = Result<(), warren_net::Error>>,
) -> Result<(Duration, Duration), Box<dyn Error>> {
    let (start, before) = (Instant::now(), on_processor()?);
    work.await?;
    let wall = start.elapsed();
    Ok((wall, on_processor()?.saturating_sub(before)))
}

/// Of all threads, from the scheduler's own account.
fn on_processor() -> Result<Duration, Box<dyn Error>> {
    let mut all = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        all += text.split(' ').next().unwrap_or("0").parse::<u64>()?;
    }
    Ok(Duration::from_nanos(all))
}

fn summary(measured: &[(Duration, Duration)]) -> serde_json::Value {
    let of = |which: fn(&(Duration, Duration)) -> Duration| {
        let mut times: Vec<Duration> = measured.iter().map(which).collect();
        times.sort();
        let at = |percent: usize| {
            u64::try_from(times[(times.len() - 1) * percent / 100].as_micros()).unwrap_or(u64::MAX)
        };
        serde_json::json!({ "p50": at(50), "p95": at(95), "max": at(100), "n": times.len() })
    };
    serde_json::json!({ "wall_us": of(|m| m.0), "cpu_us": of(|m| m.1) })
}
