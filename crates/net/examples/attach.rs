//! How long it takes to wire containers: prints one JSON object.
//!
//! Best run as root in a network namespace of its own:
//! `unshare -n target/release/examples/attach [PREPARED]`. Everything is removed at the end.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use warren_net::{Net, NetConfig, Protocol, PublishedPort, Table};

const COUNT: usize = 100;
/// The kernel takes old rules apart between changes; in a row, each waits for that of the last.
const APART: Duration = Duration::from_millis(20);
const POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 10);

fn main() -> Result<(), Box<dyn Error>> {
    let prepared = std::env::args().nth(1).map_or(Ok(COUNT), |count| count.parse())?;
    tokio::runtime::Builder::new_multi_thread().enable_time().build()?.block_on(run(prepared))
}

async fn run(prepared: usize) -> Result<(), Box<dyn Error>> {
    let node_key = "example0".to_owned();
    let net = Net::open(NetConfig { node_key, pool: POOL, prepared }).await?;
    net.ready().await;
    let serial = serial(&net).await?;
    let detach = detach_all(&net, "s").await?;
    net.ready().await;
    let (burst, burst_whole) = burst(&net).await?;
    let detach_burst = detach_all(&net, "b").await?;
    net.ready().await;
    let detach_one = detach_one(&net).await?;
    let apply_in_row = apply(&net, Duration::ZERO).await?;
    let apply = apply(&net, APART).await?;
    net.clean().await?;
    let report = serde_json::json!({
        "prepared": prepared,
        "count": COUNT,
        "serial_us": summary(serial),
        "burst_each_us": summary(burst),
        "burst_whole_us": micros(burst_whole),
        "detach_100_us": [micros(detach), micros(detach_burst)],
        "detach_one_us": summary(detach_one),
        "apply_one_of_200_ports_us": summary(apply),
        "apply_in_row_us": summary(apply_in_row),
    });
    println!("{report:#}");
    Ok(())
}

async fn serial(net: &Net) -> Result<Vec<Duration>, warren_net::Error> {
    let mut times = Vec::new();
    for (index, address) in (0..COUNT).zip(addresses()) {
        let start = Instant::now();
        net.attach(&format!("s{index}"), address).await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

async fn burst(net: &Net) -> Result<(Vec<Duration>, Duration), warren_net::Error> {
    let start = Instant::now();
    let names: Vec<String> = (0..COUNT).map(|index| format!("b{index}")).collect();
    let attaches = names.iter().zip(addresses()).map(|(name, address)| async move {
        net.attach(name, address).await?;
        Ok::<_, warren_net::Error>(start.elapsed())
    });
    let mut times = Vec::new();
    for result in futures::future::join_all(attaches).await {
        times.push(result?);
    }
    Ok((times, start.elapsed()))
}

async fn detach_one(net: &Net) -> Result<Vec<Duration>, warren_net::Error> {
    let mut times = Vec::new();
    for address in addresses().take(20) {
        net.attach("one", address).await?;
        let start = Instant::now();
        net.detach("one").await?;
        times.push(start.elapsed());
    }
    Ok(times)
}

async fn detach_all(net: &Net, prefix: &str) -> Result<Duration, warren_net::Error> {
    let start = Instant::now();
    let names: Vec<String> = (0..COUNT).map(|index| format!("{prefix}{index}")).collect();
    let detaches = names.iter().map(|name| net.detach(name));
    for result in futures::future::join_all(detaches).await {
        result?;
    }
    Ok(start.elapsed())
}

async fn apply(net: &Net, apart: Duration) -> Result<Vec<Duration>, warren_net::Error> {
    let backend = |last| format!("10.128.0.{last}:80").parse().expect("it is an address");
    let mut table = Table::default();
    for port in 10_000..10_200 {
        table.published.push(PublishedPort {
            protocol: Protocol::Tcp,
            bind: Ipv4Addr::UNSPECIFIED,
            port,
            backends: vec![backend(1), backend(2)],
        });
    }
    net.apply(table.clone()).await?;
    let mut times = Vec::new();
    for round in 0..COUNT {
        table.published[round].backends.push(backend(3));
        let next = table.clone();
        let start = Instant::now();
        net.apply(next).await?;
        times.push(start.elapsed());
        tokio::time::sleep(apart).await;
    }
    Ok(times)
}

fn addresses() -> impl Iterator<Item = Ipv4Addr> {
    (1u32..).map(|offset| Ipv4Addr::from_bits(POOL.0.to_bits() + offset))
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn summary(mut times: Vec<Duration>) -> serde_json::Value {
    times.sort();
    let at = |percent: usize| micros(times[(times.len() - 1) * percent / 100]);
    serde_json::json!({ "median": at(50), "p95": at(95), "max": at(100), "n": times.len() })
}
