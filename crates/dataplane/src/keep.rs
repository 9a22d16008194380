//! The daemon's side: a data plane is there, and knows what it must.
//!
//! One task. It finds the process that an earlier daemon started, or starts one, tells it what
//! differs from what it was told, and starts another when it is gone. What is wanted is kept
//! here whole, so each of these is the same path. Several changes while one is told are one.
//!
//! A process of another program is replaced: the successor learns everything first, then the old
//! one lets go, then the successor gets the descriptors. What comes meanwhile waits in them.
//!
//! Not here: the process (`serve`), what goes into tables, names of nodes that must be resolved
//! (whoever sets a table says what it knows of them).

mod link;
mod process;
mod tell;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use warren_base::clock::Clock;
use warren_model::NodeTable;
use warren_model::id::{NodeId, TaskId};
use warren_net::dns::Prefix;
use warren_wireguard::PrivateKey;

use crate::asker::Asker;
use crate::descriptors::Descriptors;
use crate::wire::{LostPeer, Status};
use process::Process;

/// For a container's first question to be answered: many times what telling takes, and less than
/// what anybody would notice of a start.
const ADMIT_MAX: Duration = Duration::from_secs(1);
/// For those who look at counters.
const STATUS_MAX: Duration = Duration::from_secs(1);
/// Who ask for the status at the same time.
const QUESTIONS_MAX: usize = 8;
/// A process that ends sooner was not killed from outside.
const LIFE_MIN_MS: u64 = 1000;
/// Between attempts with what ends at once.
const PAUSE_FIRST_MS: u64 = 50;
const PAUSE_MAX_MS: u64 = 5000;

/// What a data plane is made of.
pub struct Options {
    /// Holds its socket and its mark.
    pub run_dir: PathBuf,
    /// What is executed, usually `/proc/self/exe`.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Takes its log; nobody does without.
    pub log: Option<PathBuf>,
    /// Of the program: a process of another one is replaced.
    pub build: String,
    /// Whose it is.
    pub node: NodeId,
    /// Names in the kernel derive from it (see [`warren_net::NetConfig`]).
    pub node_key: String,
    /// Where the cluster takes addresses from.
    pub pools: Vec<Prefix>,
    /// Without it nothing is carried to other nodes.
    pub overlay: Option<Overlay>,
    /// Starts at once; else with the first container, or the first port that every node answers:
    /// what comes by that is carried to other nodes.
    pub is_eager: bool,
    /// For pauses.
    pub clock: Arc<dyn Clock>,
}

/// This node's end of the tunnel.
pub struct Overlay {
    /// At first: see [`Handle::set_keys`].
    pub keys: Vec<PrivateKey>,
    /// Where others reach this node.
    pub address: IpAddr,
    /// Where all nodes listen.
    pub port: u16,
    /// Threads that carry packets.
    pub queues: usize,
}

/// Why a container is not answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data plane did not say that it knows.
    #[error("the data plane did not take container {0} within {ADMIT_MAX:?}")]
    Late(TaskId),
    /// The node ends.
    #[error("the data plane is not kept any more")]
    Ended,
}

/// What is wanted of the process.
#[derive(Debug, Clone, Default)]
struct Wanted {
    table: Option<Arc<NodeTable>>,
    known: Arc<BTreeMap<String, IpAddr>>,
    /// This node's own; the first is offered.
    keys: Vec<PrivateKey>,
    askers: BTreeMap<TaskId, Arc<Asker>>,
    /// Nothing of an earlier daemon's is to be added to the askers.
    is_whole: bool,
    /// Gone before it was looked what an earlier daemon told.
    gone: BTreeSet<TaskId>,
    /// Counts changes.
    generation: u64,
}

/// Tells a data plane. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    wanted: watch::Sender<Wanted>,
    /// The generation that the process has.
    told: watch::Receiver<u64>,
    questions: mpsc::Sender<oneshot::Sender<Status>>,
    reach: watch::Receiver<Option<Vec<LostPeer>>>,
}

impl Handle {
    /// This is what managers say.
    pub fn set_table(&self, table: Arc<NodeTable>) {
        self.change(|wanted| wanted.table = Some(table));
    }

    /// Addresses of nodes that the table has by name.
    pub fn set_known(&self, known: BTreeMap<String, IpAddr>) {
        self.change(|wanted| wanted.known = Arc::new(known));
    }

    /// This node's own keys: the first is offered, all are accepted; at most two. Returns once the
    /// process has them; one that does not answer gets them as soon as it does.
    pub async fn set_keys(&self, keys: Vec<PrivateKey>) {
        let generation = self.change(|wanted| wanted.keys = keys);
        let mut told = self.told.clone();
        let waiting = told.wait_for(|told| *told >= generation);
        // Nothing is lost when it is late: peers accept both keys meanwhile.
        let _ = tokio::time::timeout(ADMIT_MAX, waiting).await;
    }

    /// Returns once this container is answered, if there is a table.
    ///
    /// # Errors
    /// [`Error::Late`]: it will be, but nobody knows when.
    pub async fn admit(&self, asker: Asker) -> Result<(), Error> {
        let task = asker.task;
        let generation = self.change(|wanted| {
            wanted.gone.remove(&task);
            wanted.askers.insert(task, Arc::new(asker));
        });
        let mut told = self.told.clone();
        let waiting = told.wait_for(|told| *told >= generation);
        match tokio::time::timeout(ADMIT_MAX, waiting).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Error::Ended),
            Err(_) => Err(Error::Late(task)),
        }
    }

    /// A container is gone.
    pub fn dismiss(&self, task: TaskId) {
        self.change(|wanted| {
            wanted.askers.remove(&task);
            if !wanted.is_whole {
                wanted.gone.insert(task);
            }
        });
    }

    /// These are all containers, after a restart of the daemon.
    pub fn restore(&self, askers: Vec<Asker>) {
        self.change(|wanted| {
            wanted.askers = askers.into_iter().map(|a| (a.task, Arc::new(a))).collect();
            wanted.gone.clear();
            wanted.is_whole = true;
        });
    }

    /// What the process does; `None` while there is none that answers.
    pub async fn status(&self) -> Option<Status> {
        let (answer, status) = oneshot::channel();
        self.questions.try_send(answer).ok()?;
        tokio::time::timeout(STATUS_MAX, status).await.ok()?.ok()
    }

    /// Other nodes that are not reached on the direct way, whenever that changes; `None` until the
    /// process said so first.
    pub fn lost(&self) -> watch::Receiver<Option<Vec<LostPeer>>> {
        self.reach.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Wanted)) -> u64 {
        let mut generation = 0;
        self.wanted.send_modify(|wanted| {
            change(wanted);
            wanted.generation += 1;
            generation = wanted.generation;
        });
        generation
    }
}

/// What becomes of the process when nobody keeps it any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It goes on, for the next daemon.
    Leave,
    /// It ends: containers are gone as well.
    Remove,
}

/// Keeps a data plane. Dropping it leaves the process as it is.
pub struct Keeper {
    handle: Handle,
    stop: oneshot::Sender<End>,
    running: JoinHandle<()>,
}

impl Keeper {
    /// Begins, in the calling thread's network namespace, and returns at once.
    pub fn start(options: Options) -> Self {
        let keys = options.overlay.as_ref().map(|overlay| overlay.keys.clone());
        let keys = keys.unwrap_or_default();
        let (wanted, wants) = watch::channel(Wanted { keys, ..Wanted::default() });
        let (tell, told) = watch::channel(0);
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let (stop, stopped) = oneshot::channel();
        let (reach, reached) = watch::channel(None);
        let handle = Handle { wanted: wanted.clone(), told, questions, reach: reached };
        let keeping = Keeping {
            options: Arc::new(options),
            held: Descriptors::default(),
            wants,
            wanted,
            told: tell,
            asked,
            reach,
            complaint: None,
        };
        Self { handle, stop, running: tokio::spawn(keeping.run(stopped)) }
    }

    /// To tell it.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns once that is so.
    pub async fn stop(self, end: End) {
        // An error means that it has ended already.
        let _ = self.stop.send(end);
        if let Err(error) = self.running.await {
            tracing::error!(%error, "whoever keeps the data plane");
        }
    }
}

/// The task.
struct Keeping {
    options: Arc<Options>,
    /// Second descriptors of what the process has.
    held: Descriptors,
    wants: watch::Receiver<Wanted>,
    wanted: watch::Sender<Wanted>,
    told: watch::Sender<u64>,
    asked: mpsc::Receiver<oneshot::Sender<Status>>,
    /// Who is not reached.
    reach: watch::Sender<Option<Vec<LostPeer>>>,
    /// What was logged last of a tunnel that cannot be had: once is enough.
    complaint: Option<String>,
}

impl Keeping {
    async fn run(mut self, stopped: oneshot::Receiver<End>) {
        let options = Arc::clone(&self.options);
        let end = tokio::select! {
            () = self.keep() => return,
            // A keeper that was dropped leaves the process.
            end = stopped => end.unwrap_or(End::Leave),
        };
        // What is cut off here loses nothing: a process that was not settled ends by itself.
        if end == End::Remove {
            process::remove(&options.run_dir).await;
        }
    }

    /// Never returns.
    async fn keep(&mut self) {
        let mut failures = 0;
        let mut process = self.found().await;
        if process.is_none() && !self.options.is_eager {
            // The sender is ours: there is no end to it.
            let (own, carries) = (self.options.node, self.options.overlay.is_some());
            let _ = self.wants.wait_for(|wanted| wanted.is_needed(own, carries)).await;
        }
        loop {
            let begun_ms = self.options.clock.monotonic_ms();
            let outcome = match process.take() {
                Some(process) => self.tend(process).await,
                None => match Process::start(&self.options).await {
                    Ok(process) => self.tend(process).await,
                    Err(error) => Err(error),
                },
            };
            let lived_ms = self.options.clock.monotonic_ms().saturating_sub(begun_ms);
            failures = if lived_ms < LIFE_MIN_MS { failures + 1 } else { 0 };
            match outcome {
                // It is replaced.
                Ok(successor) => process = Some(successor),
                Err(error) => tracing::warn!(%error, lived_ms, "the data plane is gone"),
            }
            if failures > 1 {
                let pause_ms = PAUSE_FIRST_MS.saturating_mul(1 << failures.min(10));
                self.options.clock.sleep(pause_ms.min(PAUSE_MAX_MS)).await;
            }
        }
    }

    /// What an earlier daemon left.
    async fn found(&mut self) -> Option<Process> {
        let found = Process::find(&self.options.run_dir, self.options.node).await;
        let recalled = match found {
            Some(mut process) => match process.link.recall().await {
                Ok(recalled) => Some((process, recalled)),
                Err(error) => {
                    tracing::warn!(%error, "a data plane that does not say what it knows");
                    process.kill().await;
                    None
                }
            },
            None => None,
        };
        let (process, recalled) = recalled.unzip();
        self.wanted.send_modify(|wanted| wanted.complete(recalled));
        process
    }
}

impl Wanted {
    /// Whether there is anything to do: containers that ask, ports whose clients are carried to
    /// other nodes, or nodes to pass messages on for.
    fn is_needed(&self, own: NodeId, carries: bool) -> bool {
        let carries = |table: &Arc<NodeTable>| {
            let mut services = table.services.values();
            let published = carries && services.any(|s| s.mesh_ports().next().is_some());
            published || table.relays.iter().any(|relay| relay.via == own)
        };
        !self.askers.is_empty() || self.table.as_ref().is_some_and(carries)
    }

    /// Adds what was told by an earlier daemon where this one has said nothing yet.
    fn complete(&mut self, recalled: Option<link::Recalled>) {
        if let Some(recalled) = recalled {
            if self.table.is_none() {
                self.table = recalled.table;
                self.known = Arc::new(recalled.known);
            }
            if !self.is_whole {
                for asker in recalled.askers {
                    if !self.gone.contains(&asker.task) {
                        self.askers.entry(asker.task).or_insert_with(|| Arc::new(asker));
                    }
                }
            }
        }
        self.is_whole = true;
        self.gone.clear();
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use warren_model::id::ClusterId;
    use warren_net::dns::Upstream;

    use super::*;

    fn asker(task: u8, last: u8) -> Asker {
        Asker {
            task: TaskId::from_bytes([task; 10]),
            addresses: std::net::Ipv4Addr::new(10, 0, 0, last).into(),
            stack: None,
            networks: Vec::new(),
            upstream: Upstream::Host,
        }
    }

    fn handle() -> (Handle, watch::Sender<u64>) {
        let (wanted, _) = watch::channel(Wanted::default());
        let (tell, told) = watch::channel(0);
        let (questions, _) = mpsc::channel(1);
        let (_, reach) = watch::channel(None);
        (Handle { wanted, told, questions, reach }, tell)
    }

    fn shown(handle: &Handle) -> String {
        let wanted = handle.wanted.borrow();
        let each = wanted.askers.values().map(|a| a.addresses.v4.octets()[3].to_string());
        each.collect::<Vec<_>>().join(" ")
    }

    #[tokio::test(start_paused = true)]
    async fn a_container_waits_for_the_data_plane_and_not_for_ever() {
        let (handle, tell) = handle();
        let late = handle.admit(asker(1, 1)).await;
        assert!(matches!(late, Err(Error::Late(_))), "{late:?}");
        let waiting = handle.admit(asker(2, 2));
        let telling = async { tell.send_replace(2) };
        let (admitted, _) = tokio::join!(waiting, telling);
        admitted.unwrap();
        drop(tell);
        assert!(matches!(handle.admit(asker(3, 3)).await, Err(Error::Ended)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_an_earlier_daemon_told_counts_until_this_one_says_otherwise() {
        let recalled = || link::Recalled {
            table: Some(Arc::new(NodeTable {
                cluster: Some(ClusterId::from_bytes([1; 10])),
                ..NodeTable::default()
            })),
            known: BTreeMap::new(),
            askers: vec![asker(1, 1), asker(2, 2), asker(3, 3)],
        };
        let complete = |handle: &Handle| {
            handle.wanted.send_modify(|wanted| wanted.complete(Some(recalled())));
        };
        let (early, _told) = handle();
        let _ = early.admit(asker(2, 9)).await;
        early.dismiss(TaskId::from_bytes([3; 10]));
        complete(&early);
        assert_eq!(shown(&early), "1 9");
        assert!(early.wanted.borrow().table.is_some());
        early.restore(vec![asker(4, 4)]);
        assert_eq!(shown(&early), "4");
        let (restored, _told) = handle();
        restored.set_table(Arc::default());
        restored.restore(vec![asker(1, 7)]);
        complete(&restored);
        assert_eq!(shown(&restored), "7");
        assert_eq!(restored.wanted.borrow().table.as_ref().unwrap().cluster, None);
    }
}
