//! From a folder to a running store, and its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::log::{Log, Vote};
use crate::metrics::StoreMetrics;
use crate::open::{self, Ground, OpenError, Options};
use crate::propose::{Proposer, QUEUE_LEN};
use crate::publish::Published;
use crate::raft::{IN_FLIGHT_MAX, MachineOptions, Node, Parts, Signals, StartError};
use crate::{BEATS_MAX, Inner, Store, Vault, disk};

/// How long an ending store waits for entries that consensus has taken.
const GRACE: Duration = Duration::from_secs(5);

/// How the store came to be.
#[derive(Clone, Copy)]
pub(crate) enum Begin {
    Create,
    Join,
    Open,
}

type Ready = oneshot::Sender<Result<Store, OpenError>>;

pub(crate) async fn begin(options: Options, begin: Begin) -> Result<Store, OpenError> {
    let (ready, started) = oneshot::channel();
    if options.inline {
        tokio::spawn(serve(options, begin, ready));
    } else {
        std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || run(options, begin, ready))
            .map_err(|source| OpenError::Disk {
                action: "start the store's thread",
                place: "this process".to_owned(),
                source,
            })?;
    }
    started.await.map_err(|_| OpenError::Ended)?
}

/// The thread of the store. Connections of managers live in it as well.
fn run(options: Options, begin: Begin, ready: Ready) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().enable_io().build();
    match runtime {
        Ok(runtime) => runtime.block_on(serve(options, begin, ready)),
        Err(source) => {
            let (action, place) = ("start the store's runtime", "this process".to_owned());
            // Nobody waits any more: nobody to tell.
            let _ = ready.send(Err(OpenError::Disk { action, place, source }));
        }
    }
}

async fn serve(options: Options, begin: Begin, ready: Ready) {
    let running = match start(&options, begin).await {
        Ok(running) => running,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let (proposals, mut waiting) = mpsc::channel(QUEUE_LEN);
    let (stop, mut stopping) = watch::channel(false);
    let (end, ended) = watch::channel(false);
    let (beats, beats_heard) = mpsc::channel(BEATS_MAX);
    let Running { ground_lock, node, log, published, signals, vault, metrics } = running;
    let mut failing = signals.leads.clone();
    let places = Arc::new(Semaphore::new(IN_FLIGHT_MAX as usize));
    let inner = Inner {
        number: options.node_number,
        proposals,
        published: published.clone(),
        node: node.clone(),
        signals,
        transport: options.transport,
        log: log.clone(),
        vault,
        metrics: metrics.clone(),
        beats,
        beats_heard: std::sync::Mutex::new(Some(beats_heard)),
        runtime: tokio::runtime::Handle::current(),
        stop,
        ended,
    };
    if ready.send(Ok(Store { inner: Arc::new(inner) })).is_ok() {
        let proposer = Proposer {
            node: node.clone(),
            log: log.clone(),
            clock: options.clock,
            published,
            places: places.clone(),
            metrics,
        };
        tokio::select! {
            biased;
            () = proposer.run(&mut waiting) => {}
            // Gone with its last handle: the proposer sees that too.
            _ = stopping.wait_for(|stop| *stop) => {}
            // Consensus ended by itself: its disk failed.
            () = async { while failing.changed().await.is_ok() {} } => {
                tracing::error!("store: consensus has ended");
            }
        }
    }
    waiting.close();
    while waiting.try_recv().is_ok() {}
    // What consensus has taken is answered; not for ever, its disk may hang.
    let in_flight = places.acquire_many(IN_FLIGHT_MAX);
    if tokio::time::timeout(GRACE, in_flight).await.is_err() {
        tracing::warn!("store: entries under way are given up");
    }
    node.step_aside().await;
    node.shutdown().await;
    close(&log).await;
    drop(ground_lock);
    end.send_replace(true);
}

async fn close(log: &Log) {
    let (sender, receiver) = oneshot::channel();
    let closing = log.close(Box::new(move |result| drop(sender.send(result))));
    let closed = match closing {
        Ok(()) => receiver.await.unwrap_or(Ok(())),
        Err(error) => Err(error),
    };
    if let Err(error) = closed {
        tracing::error!(%error, "log: close");
    }
}

struct Running {
    ground_lock: disk::Lock,
    node: Node,
    log: Log,
    published: Arc<Published>,
    signals: Signals,
    vault: Vault,
    metrics: Arc<StoreMetrics>,
}

async fn start(options: &Options, begin: Begin) -> Result<Running, OpenError> {
    let ground = match begin {
        Begin::Create | Begin::Join => open::create(options)?,
        Begin::Open => open::open(options)?,
    };
    if let Begin::Join = begin {
        // A log that was never written is no log; this is all that such a member has to say.
        let vote = Vote { term: 0, node: options.node_number, committed: false };
        open::durable(&options.disk.place(), |done| ground.log.save_vote(vote, done)).await?;
    }
    let Ground { lock, key_file, keys, rng, disk, log, snapshots, state, position, current } =
        ground;
    let published = Arc::new(Published::new(state));
    let metrics = Arc::new(StoreMetrics::default());
    let machine =
        MachineOptions { snapshot_log_bytes: options.snapshot_log_bytes, inline: options.inline };
    let parts = Parts {
        number: options.node_number,
        log: log.clone(),
        snapshots: snapshots.clone(),
        published: published.clone(),
        position,
        current,
        options: machine,
        transport: options.transport.clone(),
        election: options.election,
        rng: rng.clone(),
        metrics: metrics.clone(),
    };
    let (node, signals) = Node::start(parts).await?;
    let alone = match begin {
        Begin::Create => {
            node.initialize(&options.address).await?;
            true
        }
        Begin::Join => false,
        Begin::Open => node.elect_if_alone().await?,
    };
    if alone {
        let leads = signals.leads.clone().wait_for(|leads| *leads).await.map(|_| ());
        leads.map_err(|_| StartError::Ended)?;
    }
    if let Begin::Create | Begin::Join = begin {
        open::complete(disk.as_ref(), options.node_number)?;
    }
    let vault = Vault { disk, keys, key_file, rng, snapshots };
    Ok(Running { ground_lock: lock, node, log, published, signals, vault, metrics })
}
