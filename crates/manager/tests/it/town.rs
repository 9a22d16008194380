//! Several managers with their stores, reached through memory, with roads that
//! can be cut.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tonic::transport::Channel;
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::SystemRng;
use warren_manager::{Caller, Founding, Manager, Options, Peers, founding};
use warren_model::NodeId;
use warren_model::node::Description;
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::dispatch_server::DispatchServer;
use warren_proto::v1::join_client::JoinClient;
use warren_proto::v1::join_server::JoinServer;
use warren_store::transport::{Call, Member, Transport, TransportError};
use warren_store::{Options as StoreOptions, Store};
use warren_trust::{Authority, Bundle, NodeKey, Peer, Subject};

use crate::house::{CLUSTER, LOCAL, channel, control, known, node_id, serve, soon};

/// A manager of the town.
pub(crate) struct Home {
    pub(crate) number: u64,
    pub(crate) node: NodeId,
    pub(crate) store: Store,
    pub(crate) manager: Arc<Manager>,
    pub(crate) control: ControlClient<Channel>,
    pub(crate) stops: Arc<AtomicU32>,
    peer: Peer,
}

#[derive(Default)]
struct Roads {
    stores: Mutex<BTreeMap<u64, Store>>,
    managers: Mutex<BTreeMap<u64, Arc<Manager>>>,
    peers: Mutex<BTreeMap<u64, Peer>>,
    /// Nothing goes to or from them.
    cut: Mutex<BTreeSet<u64>>,
}

impl Roads {
    fn open(&self, from: u64, to: u64) -> bool {
        let cut = self.cut.lock().unwrap();
        !cut.contains(&from) && !cut.contains(&to)
    }
}

/// The way out of one manager.
struct Way {
    roads: Arc<Roads>,
    from: u64,
}

impl Transport for Way {
    fn call(
        &self,
        to: &Member,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (from, to) = (self.from, to.number);
        let store = self.roads.stores.lock().unwrap().get(&to).cloned();
        let Some(store) = store.filter(|_| self.roads.open(from, to)) else {
            let error = TransportError::Unreachable { to, why: "the road is cut".into() };
            return std::future::ready(Err(error)).boxed();
        };
        // At once: calls arrive in their order.
        let answer = tokio::spawn(store.answer(from, kind, payload));
        let roads = Arc::clone(&self.roads);
        async move {
            let answer = answer.await;
            if !roads.open(from, to) {
                return Err(TransportError::Lost { to, why: "the road is cut".into() });
            }
            let answer = answer.map_err(|e| TransportError::Lost { to, why: e.to_string() })?;
            answer.map_err(|why| TransportError::Refused { to, why })
        }
        .boxed()
    }
}

#[tonic::async_trait]
impl Peers for Way {
    async fn channel(&self, number: u64, _address: &str) -> Result<Channel, String> {
        if !self.roads.open(self.from, number) {
            return Err("the road is cut".to_owned());
        }
        let manager = self.roads.managers.lock().unwrap().get(&number).cloned();
        let manager = manager.ok_or("nobody lives there")?;
        let peer = self.roads.peers.lock().unwrap()[&self.from].clone();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let service = v1::control_server::ControlServer::with_interceptor(
            manager.control(),
            known(remote(peer)),
        );
        serve(warren_manager::server().add_service(service), ours);
        Ok(channel(theirs).await)
    }
}

fn remote(peer: Peer) -> Caller {
    Caller::Remote { peer: Some(peer), address: "10.0.0.9:4000".parse().unwrap() }
}

/// A machine that is a member.
pub(crate) struct Card {
    pub(crate) node: NodeId,
    pub(crate) number: Option<u64>,
    pub(crate) peer: Peer,
}

pub(crate) struct Town {
    roads: Arc<Roads>,
    pub(crate) homes: Vec<Home>,
    clock: Arc<dyn Clock>,
    folder: tempfile::TempDir,
}

fn describe(letter: char) -> Description {
    Description {
        hostname: format!("host-{letter}"),
        address: format!("10.0.0.{}:2377", u32::from(letter)),
        ..Description::default()
    }
}

impl Town {
    /// One manager, `a`.
    pub(crate) async fn found() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RealClock::new());
        let now = warren_model::Time(clock.now_ms());
        let folder = tempfile::tempdir().unwrap();
        let mut town = Self { roads: Arc::default(), homes: Vec::new(), clock, folder };
        let authority = Authority::generate(CLUSTER, now).unwrap();
        let key = NodeKey::generate().unwrap();
        let subject = Subject::Node { id: node_id('a'), manager: true };
        let request = key.signing_request("a").unwrap();
        let day = std::time::Duration::from_secs(86_400);
        let issued = authority.issue(&request, &subject, day, now).unwrap();
        let peer = owner(&authority.bundle(), &issued.chain, now);
        let store = Store::create(town.store_options(1)).await.unwrap();
        let transaction = founding(Founding {
            cluster: CLUSTER,
            node: node_id('a'),
            description: describe('a'),
            worker: true,
            authority: authority.to_state(),
            key_hash: issued.key_hash,
            not_after: issued.not_after,
            issuer_hash: issued.issuer_hash,
            worker_secret: [1; 16],
            manager_secret: [2; 16],
            now,
            network: warren_model::NetworkId::from_bytes([7; 10]),
            terms: warren_manager::Terms::default(),
        });
        store.propose(transaction).await.unwrap();
        town.open(Card { node: node_id('a'), number: Some(1), peer }, store).await;
        town
    }

    /// Managers `a`, `b`, …, all voting.
    pub(crate) async fn of(managers: usize) -> Self {
        let mut town = Self::found().await;
        for letter in ('b'..).take(managers - 1) {
            town.settle(letter).await;
        }
        town.until_voters(managers).await;
        town
    }

    fn store_options(&self, number: u64) -> StoreOptions {
        let folder = self.folder.path().join(number.to_string());
        std::fs::create_dir(&folder).unwrap();
        let key = folder.join("key");
        let clock = Arc::clone(&self.clock);
        let options =
            StoreOptions::new(&folder.join("store"), &key, number, clock, Arc::new(SystemRng));
        let way = Way { roads: Arc::clone(&self.roads), from: number };
        StoreOptions {
            address: format!("number-{number}"),
            transport: Some(Arc::new(way)),
            ..options.unwrap()
        }
    }

    /// Joins as any machine does, through the first manager.
    pub(crate) async fn join(&self, letter: char, manager: bool) -> Card {
        let home = self.homes.first().unwrap();
        let ask = v1::GetJoinTokenRequest { manager, ..Default::default() };
        let token = soon(home.control.clone().get_join_token(ask)).await.unwrap().into_inner();
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let nobody = Caller::Remote { peer: None, address: "10.0.0.9:4000".parse().unwrap() };
        let service = JoinServer::with_interceptor(home.manager.join(), known(nobody));
        serve(warren_manager::server().add_service(service), ours);
        let key = NodeKey::generate().unwrap();
        let request = v1::JoinRequest {
            token: token.token,
            node_id: node_id(letter).as_bytes().to_vec(),
            signing_request: key.signing_request("x").unwrap(),
            description: Some((&describe(letter)).into()),
            manager_only: false,
            time: self.clock.now_ms(),
            routes: Vec::new(),
        };
        let mut client = JoinClient::new(channel(theirs).await);
        let joined = soon(client.join(request)).await.unwrap().into_inner();
        let bundle = Bundle::new(&joined.authorities).unwrap();
        let now = warren_model::Time(self.clock.now_ms());
        let peer = owner(&bundle, &joined.certificates, now);
        Card { node: node_id(letter), number: joined.number, peer }
    }

    /// Another manager comes to live here.
    pub(crate) async fn settle(&mut self, letter: char) {
        let card = self.join(letter, true).await;
        let store = Store::join(self.store_options(card.number.unwrap())).await.unwrap();
        self.open(card, store).await;
    }

    async fn open(&mut self, card: Card, store: Store) {
        let number = card.number.unwrap();
        let stops = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&stops);
        let way = Way { roads: Arc::clone(&self.roads), from: number };
        let manager = Arc::new(Manager::start(Options {
            store: store.clone(),
            clock: Arc::clone(&self.clock),
            rng: Arc::new(SystemRng),
            node_id: card.node,
            cluster_id: CLUSTER,
            advertise: String::new(),
            peers: Some(Arc::new(way)),
            stop_node: Arc::new(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
            }),
            set_log_level: Arc::new(|_| Ok(String::new())),
        }));
        self.roads.stores.lock().unwrap().insert(number, store.clone());
        self.roads.managers.lock().unwrap().insert(number, Arc::clone(&manager));
        self.roads.peers.lock().unwrap().insert(number, card.peer.clone());
        let control = control(&manager, LOCAL).await;
        let (node, peer) = (card.node, card.peer);
        self.homes.push(Home { number, node, store, manager, control, stops, peer });
    }

    /// The home that leads.
    pub(crate) async fn leader(&self) -> &Home {
        let cut = self.roads.cut.lock().unwrap().clone();
        let leads = |home: &&Home| !cut.contains(&home.number) && *home.store.leader().borrow();
        soon(async {
            loop {
                if let Some(home) = self.homes.iter().find(leads) {
                    return home;
                }
                moment().await;
            }
        })
        .await
    }

    pub(crate) async fn follower(&self) -> &Home {
        let leader = self.leader().await.number;
        self.homes.iter().find(|home| home.number != leader).unwrap()
    }

    pub(crate) fn cut(&self, number: u64) {
        self.roads.cut.lock().unwrap().insert(number);
    }

    pub(crate) fn mend(&self) {
        self.roads.cut.lock().unwrap().clear();
    }

    pub(crate) async fn until_voters(&self, voters: usize) {
        let there = async {
            loop {
                let status = self.leader().await.store.status();
                if status.voters.len() == voters && status.learners.is_empty() {
                    return;
                }
                moment().await;
            }
        };
        soon(there).await;
    }

    /// An agent's connection to a home.
    pub(crate) async fn dispatch(&self, home: &Home, card: &Card) -> DispatchClient<Channel> {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let service = DispatchServer::with_interceptor(
            home.manager.dispatch(),
            known(remote(card.peer.clone())),
        );
        serve(warren_manager::server().add_service(service), ours);
        DispatchClient::new(channel(theirs).await)
    }

    pub(crate) async fn control_as(&self, home: &Home, card: &Card) -> ControlClient<Channel> {
        control(&home.manager, remote(card.peer.clone())).await
    }
}

impl Home {
    pub(crate) fn card(&self) -> Card {
        Card { node: self.node, number: Some(self.number), peer: self.peer.clone() }
    }
}

/// For what nobody tells of: consensus among real clocks.
pub(crate) async fn moment() {
    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
}

fn owner(bundle: &Bundle, chain: &[Vec<u8>], now: warren_model::Time) -> Peer {
    let chain: Vec<_> = chain.iter().map(|der| der.clone().into()).collect();
    bundle.verify(&chain, now).unwrap()
}
