//! Writes a second of three managers, and of etcd, by the same load.
//!
//! ```text
//! bench_raft node DIR NUMBER LISTEN FRONT [NUMBER=ADDRESS…]   a manager; the first one forms the cluster
//! bench_raft load warren FRONT CLIENTS SECONDS                one line of JSON
//! bench_raft load etcd HOST:PORT CLIENTS SECONDS
//! ```
//!
//! Each write is about 1 KiB and durable on a majority when it is answered. Both
//! sides are asked by another process over loopback TCP: managers with the frames
//! that they use among each other, etcd with gRPC. `bench/etcd.py` runs both in turns.

#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use prost::Message;
use tokio::net::{TcpListener, TcpStream};
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;
use warren_model::cluster::Cluster;
use warren_model::id::{ClusterId, NodeId};
use warren_model::node::{Description, Node};
use warren_state::change::{Mutation, Request, Transaction};
use warren_store::transport::serve::{Answer, serve};
use warren_store::transport::tcp::{BoxStream, Dial, Tcp, moved_here};
use warren_store::transport::{Call, Member, Transport};
use warren_store::{Options, Store};

const VALUE: usize = 1000;
/// Objects that are written to; each client has its own.
const OBJECTS: u64 = 256;
/// Number of the load towards a manager's front.
const LOAD: u64 = 1_000_000;
const WARM_UP: Duration = Duration::from_millis(500);

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = tokio::runtime::Runtime::new()?;
    match args.as_slice() {
        ["node", dir, number, listen, front, peers @ ..] => {
            let peers = peers.iter().map(|peer| {
                let (number, address) = peer.split_once('=').context("NUMBER=ADDRESS")?;
                anyhow::Ok((number.parse()?, address.to_owned()))
            });
            let peers = peers.collect::<Result<BTreeMap<u64, String>>>()?;
            runtime.block_on(node(Path::new(dir), number.parse()?, listen, front, peers))
        }
        ["load", system, address, clients, seconds] => {
            let (clients, seconds) = (clients.parse()?, Duration::from_secs(seconds.parse()?));
            let line = runtime.block_on(load(system, address, clients, seconds))?;
            println!("{line}");
            Ok(())
        }
        _ => bail!("bench_raft node … | load …, see the head of this example"),
    }
}

// ---- a manager ---------------------------------------------------------------

struct Plain;

impl Dial for Plain {
    fn dial(&self, to: &Member) -> BoxFuture<'static, std::io::Result<BoxStream>> {
        let address = to.address.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxStream)
        }
        .boxed()
    }
}

async fn node(
    dir: &Path,
    number: u64,
    listen: &str,
    front: &str,
    peers: BTreeMap<u64, String>,
) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let fronts = TcpListener::bind(front).await?;
    let (clock, rng) = (Arc::new(RealClock::new()), Arc::new(SystemRng));
    let mut options = Options::new(&dir.join("store"), &dir.join("key"), number, clock, rng)?;
    options.address = listen.to_owned();
    options.transport = Some(Arc::new(Tcp::new(number, Arc::new(Plain))));
    let forms = !peers.is_empty();
    let store = if forms { Store::create(options).await? } else { Store::join(options).await? };
    let inbound = store.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let store = inbound.clone();
            if stream.set_nodelay(true).is_ok() {
                tokio::spawn(async move {
                    store.serve(move || Ok(Box::new(moved_here(&stream)?)), None).await
                });
            }
        }
    });
    if forms {
        form(&store, peers).await?;
    }
    println!("ready");
    loop {
        let (stream, _) = fronts.accept().await?;
        stream.set_nodelay(true)?;
        let front = Front(store.clone());
        tokio::spawn(async move { serve(Box::new(stream), None, &front).await });
    }
}

async fn form(store: &Store, peers: BTreeMap<u64, String>) -> Result<()> {
    let settings = Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10])));
    let objects = (0..OBJECTS).map(|at| Mutation::CreateNode(Node::new(object(at), described(at))));
    let mutations = std::iter::once(settings).chain(objects).collect();
    store.propose(Transaction { mutations, ..Transaction::default() }).await?;
    let mut voters = BTreeSet::from([store.status().number]);
    for (number, address) in peers {
        store.add_learner(number, &address).await?;
        while !store.status().caught_up(number) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        voters.insert(number);
    }
    Ok(store.set_voters(voters).await?)
}

fn described(at: u64) -> Description {
    Description { hostname: format!("h{at}"), ..Description::default() }
}

fn object(at: u64) -> NodeId {
    let mut bytes = [7; 10];
    bytes[..8].copy_from_slice(&at.to_be_bytes());
    NodeId::from_bytes(bytes)
}

/// Takes writes from the load: which object, which request, what text.
struct Front(Store);

impl Answer for Front {
    fn number(&self) -> u64 {
        0
    }

    fn answer(
        &self,
        _from: u64,
        _kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let store = self.0.clone();
        async move {
            let (numbers, text) = payload.split_at_checked(16).ok_or("too short")?;
            let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| numbers[at + i]));
            let text = String::from_utf8_lossy(text).into_owned();
            let request =
                Request { principal: "load".to_owned(), id: u128::from(number(8)), hash: 1 };
            let labels = BTreeMap::from([("text".to_owned(), text)]);
            let id = object(number(0) % OBJECTS);
            let transaction = Transaction {
                request: Some(request),
                mutations: vec![Mutation::SetLabels { id, labels }],
                ..Transaction::default()
            };
            let revision = store.propose(transaction).await.map_err(|error| error.to_string())?;
            Ok(Bytes::copy_from_slice(&revision.to_le_bytes()))
        }
        .boxed()
    }
}

// ---- the load ----------------------------------------------------------------

type Write = BoxFuture<'static, Result<()>>;

async fn load(system: &str, address: &str, clients: u64, seconds: Duration) -> Result<String> {
    let write: Arc<dyn Fn(u64, u64) -> Write + Send + Sync> = match system {
        "warren" => Arc::new(warren(address)),
        "etcd" => Arc::new(etcd(address).await?),
        other => bail!("unknown system {other}"),
    };
    let begun = Instant::now();
    let (from, until) = (begun + WARM_UP, begun + WARM_UP + seconds);
    let mut tasks = tokio::task::JoinSet::new();
    let start = u64::from(std::process::id()) << 32;
    for client in 0..clients {
        let write = write.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            for nth in 0.. {
                let sent = Instant::now();
                if sent >= until {
                    break;
                }
                write(client, start + (client << 20) + nth).await?;
                if sent >= from {
                    times.push(sent.elapsed());
                }
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    times.sort_unstable();
    let at = |part: usize| {
        let place = (times.len() * part / 1000).min(times.len().saturating_sub(1));
        times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    #[allow(clippy::cast_precision_loss)]
    let rate = times.len() as f64 / seconds.as_secs_f64();
    let (p50, p99) = (at(500), at(990));
    Ok(format!(
        "{{\"system\":\"{system}\",\"clients\":{clients},\"writes_per_s\":{rate:.1},\"p50_ms\":{p50:.3},\"p99_ms\":{p99:.3}}}"
    ))
}

fn warren(address: &str) -> impl Fn(u64, u64) -> Write + Send + Sync + 'static {
    let transport = Arc::new(Tcp::new(LOAD, Arc::new(Plain)));
    let to = Member { number: 0, address: address.to_owned() };
    let text = "x".repeat(VALUE);
    move |client, request| {
        let mut payload = Vec::with_capacity(16 + VALUE);
        payload.extend_from_slice(&client.to_le_bytes());
        payload.extend_from_slice(&request.to_le_bytes());
        payload.extend_from_slice(text.as_bytes());
        let called = transport.call(&to, Call::Propose, payload.into());
        async move { Ok(called.await.map(|_| ())?) }.boxed()
    }
}

#[derive(Clone, PartialEq, Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutDone {}

async fn etcd(address: &str) -> Result<impl Fn(u64, u64) -> Write + Send + Sync + 'static> {
    let endpoint = tonic::transport::Endpoint::new(format!("http://{address}"))?;
    let channel = endpoint.tcp_nodelay(true).connect().await?;
    let value = vec![b'x'; VALUE];
    Ok(move |client: u64, _request: u64| {
        let mut grpc = tonic::client::Grpc::new(channel.clone());
        let put = Put { key: format!("h{client}").into_bytes(), value: value.clone() };
        async move {
            grpc.ready().await?;
            let path = tonic::codegen::http::uri::PathAndQuery::from_static("/etcdserverpb.KV/Put");
            let codec = tonic_prost::ProstCodec::<Put, PutDone>::default();
            grpc.unary(tonic::Request::new(put), path, codec).await?;
            Ok(())
        }
        .boxed()
    })
}
