//! Processor time of a request over the overlay: to a container's own address, by its
//! service's address, and by a port that every node answers. Prints one JSON object.
//!
//! Run as root: `target/release/examples/paths [ROUNDS [REQUESTS]]`. Two nodes in network
//! namespaces of their own; all of it is gone with the process.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, dead_code)]

#[path = "../tests/it/cluster.rs"]
mod cluster;
#[path = "../tests/it/world.rs"]
mod world;

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use warren_net::{Carrier, Frontend, Protocol, Table};

use cluster::{on_cluster, service, vip};
use world::within;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse().unwrap());
    let rounds: usize = arguments.next().unwrap_or(7);
    let requests: u32 = arguments.next().unwrap_or(2000).try_into().unwrap();
    on_cluster(2, move |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (client, server) = (one.pod("client", 2).await, two.pod("server", 2).await);
        let listener = within(server.netns(), || TcpListener::bind("0.0.0.0:8080")).unwrap();
        std::thread::spawn(move || serve(&listener));
        let port = Frontend::Port { vip: vip(1), protocol: Protocol::Tcp, port: 80, target: 8080 };
        let published = Frontend::Published {
            bind: IpAddr::from([0, 0, 0, 0]),
            protocol: Protocol::Tcp,
            port: 8080,
            target: 8080,
        };
        let table = |from| Table {
            services: vec![service("web", &[port, published], &[&server], from)].into(),
            ..Table::default()
        };
        let mut report = serde_json::Map::new();
        for carrier in [Carrier::Vxlan, Carrier::Plain] {
            cluster.apply(carrier, table).await;
            let pod: &OwnedFd = client.netns();
            // From the container, and from the node: each against its own direct way.
            let ways: [(&str, &OwnedFd, SocketAddr); 4] = [
                ("pod_direct", pod, (server.v4(), 8080).into()),
                ("pod_vip", pod, (vip(1), 80).into()),
                ("node_direct", &one.netns, (server.v4(), 8080).into()),
                ("node_mesh", &one.netns, (one.address(), 8080).into()),
            ];
            for (kind, ask) in [("new", new as Ask), ("kept", kept as Ask)] {
                let mut costs = [const { Vec::new() }; 4];
                for round in 0..=rounds {
                    for (cost, (_, netns, to)) in costs.iter_mut().zip(&ways) {
                        let before = on_processor();
                        // The client's thread is gone afterwards, and its account with it.
                        let client = within(netns, || {
                            ask(*to, requests);
                            time_of("/proc/thread-self/schedstat")
                        });
                        let spent = on_processor() - before + client;
                        // The first round warms up.
                        if round > 0 {
                            cost.push(spent.as_nanos() as f64 / f64::from(requests) / 1000.0);
                        }
                    }
                }
                let medians = costs.map(|mut cost| {
                    cost.sort_by(f64::total_cmp);
                    cost[cost.len() / 2]
                });
                report.insert(
                    format!("{carrier:?} {kind} connections"),
                    serde_json::json!({
                        "cpu_us_per_request": ways.iter().zip(medians)
                            .map(|((name, ..), median)| ((*name).to_owned(), median.into()))
                            .collect::<serde_json::Map<_, serde_json::Value>>(),
                        "vip_to_direct": medians[1] / medians[0],
                        "mesh_to_direct": medians[3] / medians[2],
                        "rounds": rounds,
                        "requests_each": requests,
                    }),
                );
            }
        }
        println!("{:#}", serde_json::Value::from(report));
    });
}

type Ask = fn(SocketAddr, u32);

/// A connection for each request.
fn new(to: SocketAddr, requests: u32) {
    for _ in 0..requests {
        ask(&mut TcpStream::connect(to).unwrap());
    }
}

/// One connection for all.
fn kept(to: SocketAddr, requests: u32) {
    let mut stream = TcpStream::connect(to).unwrap();
    stream.set_nodelay(true).unwrap();
    (0..requests).for_each(|_| ask(&mut stream));
}

fn ask(stream: &mut TcpStream) {
    stream.write_all(&[b'q'; 100]).unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
}

fn serve(listener: &TcpListener) {
    while let Ok((mut stream, _)) = listener.accept() {
        stream.set_nodelay(true).unwrap();
        let mut request = [0; 100];
        while stream.read_exact(&mut request).is_ok() {
            if stream.write_all(&[b'a'; 1000]).is_err() {
                break;
            }
        }
    }
}

/// Of this process, whose threads also do the work of the network below.
fn on_processor() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    tasks.map(|task| time_of(task.unwrap().path().join("schedstat"))).sum()
}

/// The scheduler's account of one thread; nothing of one that ended meanwhile.
fn time_of(path: impl AsRef<std::path::Path>) -> Duration {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|t| t.parse().ok()).unwrap_or(0))
}
