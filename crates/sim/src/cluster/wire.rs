//! Managers reach each other: the store's transport and the manager's peers,
//! over connections that can be cut, slowed, and that lose and repeat.

use std::collections::{BTreeMap, btree_map};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Status;
use tonic::service::Interceptor;
use tonic::transport::{Channel, Endpoint, Uri};
use warren_base::rng::Rng;
use warren_manager::{Caller, Peers};
use warren_proto::v1::control_server::ControlServer;
use warren_store::transport::{Call, Lane, Member, Transport, TransportError};

use super::host::{Host, Life};
use super::net::{Entry, Kind, pipe};
use super::world::{World, held};

/// Of an in-memory connection.
const PIPE_BYTES: usize = 64 << 10;

type Reply = oneshot::Sender<Result<Bytes, TransportError>>;

struct Parcel {
    kind: Call,
    payload: Bytes,
    reply: Reply,
}

/// One manager's ways to the others, in one life.
pub(crate) struct Wire {
    world: Arc<World>,
    host: Arc<Host>,
    life: Arc<Life>,
    number: u64,
    lanes: Mutex<BTreeMap<(u64, Lane), Entry<Parcel>>>,
}

impl Wire {
    pub(crate) fn new(world: Arc<World>, host: Arc<Host>, life: Arc<Life>, number: u64) -> Self {
        Self { world, host, life, number, lanes: Mutex::default() }
    }

    fn lane(&self, to: u64, lane: Lane) -> Option<Entry<Parcel>> {
        let target = self.world.manager(to)?;
        let net = &self.world.net;
        let (entry, mut arriving) = pipe(net, self.host.place, target.place, Kind::Calls);
        let (world, caller, from) = (Arc::clone(&self.world), Arc::clone(&self.host), self.number);
        tokio::spawn(async move {
            while let Some(parcel) = arriving.recv().await {
                let Parcel { kind, payload, reply } = parcel;
                let way =
                    Way { world: world.clone(), caller: caller.clone(), target: target.clone() };
                // Now and then something arrives twice, the second time late.
                if world.rng.below(512) == 0 {
                    let again = way.clone().carry_out(from, to, kind, payload.clone());
                    let late = Duration::from_millis(world.rng.below(200));
                    tokio::spawn(async move {
                        tokio::time::sleep(late).await;
                        drop(again.await);
                    });
                }
                tokio::spawn(async move {
                    let answer = way.clone().carry_out(from, to, kind, payload).await;
                    way.back(answer, reply).await;
                });
            }
        });
        let _ = lane;
        Some(entry)
    }
}

/// From one manager to another.
#[derive(Clone)]
struct Way {
    world: Arc<World>,
    caller: Arc<Host>,
    target: Arc<Host>,
}

impl Way {
    /// At the target; `None` when it went away meanwhile.
    async fn carry_out(
        self,
        from: u64,
        to: u64,
        kind: Call,
        payload: Bytes,
    ) -> Option<Result<Bytes, TransportError>> {
        self.world.trace((from, to, kind as u8, payload.len()));
        let Some((life, running)) = self.target.running() else {
            let why = "nobody listens".to_owned();
            return Some(Err(TransportError::Unreachable { to, why }));
        };
        if running.number != to {
            let why = format!("manager {} is here", running.number);
            return Some(Err(TransportError::Refused { to, why }));
        }
        let answer = running.store.answer(from, kind, payload);
        drop(running);
        let answer = tokio::select! {
            answer = answer => answer,
            () = life.ended() => return None,
        };
        if self.target.is_off() {
            return None;
        }
        Some(answer.map_err(|why| TransportError::Refused { to, why }))
    }

    async fn back(&self, answer: Option<Result<Bytes, TransportError>>, reply: Reply) {
        let Some(answer) = answer else { return };
        if self.world.net.pass(self.target.place, self.caller.place).await {
            // Who asked is gone, or waits no more.
            let _ = reply.send(answer);
        }
    }
}

impl Transport for Wire {
    fn call(
        &self,
        to: &Member,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let to = to.number;
        let off = self.life.has_ended() || self.host.is_off();
        let unreachable = |why: &str| {
            let why = why.to_owned();
            futures::future::ready(Err(TransportError::Unreachable { to, why })).boxed()
        };
        if off {
            return unreachable("this process is gone");
        }
        let mut lanes = held(&self.lanes);
        let key = (to, kind.lane());
        let lane = match lanes.entry(key) {
            btree_map::Entry::Occupied(known) => known.into_mut(),
            btree_map::Entry::Vacant(place) => match self.lane(to, kind.lane()) {
                Some(lane) => place.insert(lane),
                None => return unreachable("there is no such manager"),
            },
        };
        let (reply, answered) = oneshot::channel();
        lane.send(Parcel { kind, payload, reply });
        let ends = Instant::now() + kind.deadline();
        async move {
            match tokio::time::timeout_at(ends, answered).await {
                Ok(Ok(answer)) => return answer,
                // Lost: nobody says so.
                Ok(Err(_)) => tokio::time::sleep_until(ends).await,
                Err(_) => {}
            }
            Err(TransportError::Lost { to, why: "no answer".to_owned() })
        }
        .boxed()
    }
}

/// Who calls: what TLS would have said.
#[derive(Clone)]
struct Says(Caller);

impl Interceptor for Says {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        request.extensions_mut().insert(self.0.clone());
        Ok(request)
    }
}

pub(crate) fn caller(world: &World, host: &Host, manager: bool) -> Caller {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 2377));
    Caller::Remote { peer: Some(host.peer(world.cluster, manager)), address }
}

#[tonic::async_trait]
impl Peers for Wire {
    async fn channel(&self, number: u64, _address: &str) -> Result<Channel, String> {
        let target = self.world.manager(number).ok_or("no such manager")?;
        let net = &self.world.net;
        let there = net.pass(self.host.place, target.place).await;
        let back = there && net.pass(target.place, self.host.place).await;
        let running = target.running().filter(|_| back && !self.life.has_ended());
        let (life, running) = running.ok_or("no answer")?;
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        let says = Says(caller(&self.world, &self.host, true));
        let service = ControlServer::with_interceptor(running.manager.control(), says);
        tokio::spawn(async move {
            let incoming = tokio_stream::once(Ok::<_, std::io::Error>(theirs));
            let served =
                warren_manager::server().add_service(service).serve_with_incoming(incoming);
            tokio::select! {
                // A broken connection is the caller's to notice.
                _ = served => {}
                () = life.ended() => {}
            }
        });
        let mut ours = Some(ours);
        let connector = tower::service_fn(move |_: Uri| {
            let ours = ours.take().map(TokioIo::new);
            async move { ours.ok_or_else(|| std::io::Error::other("the connection is gone")) }
        });
        let endpoint = Endpoint::from_static("http://manager.invalid");
        endpoint.connect_with_connector(connector).await.map_err(|error| error.to_string())
    }
}
