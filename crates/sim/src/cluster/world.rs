//! What all of a run share: time, network, hosts, what was seen so far.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use warren_base::rng::{Rng, SeededRng};
use warren_model::{ClusterId, NodeId};
use warren_proto::v1;

use super::Counts;
use super::book::Book;
use super::host::Host;
use super::net::{Net, Place};
use super::plan::Script;

/// Times in a run are told from here.
pub(crate) struct World {
    pub(crate) script: Script,
    pub(crate) cluster: ClusterId,
    pub(crate) rng: Arc<SeededRng>,
    pub(crate) net: Arc<Net>,
    pub(crate) start: Instant,
    pub(crate) book: Mutex<Book>,
    /// Held by who takes a manager out.
    pub(crate) membership: tokio::sync::Mutex<()>,
    hosts: Mutex<BTreeMap<Place, Arc<Host>>>,
    trace: Mutex<(DefaultHasher, u64)>,
    counts: Mutex<Counts>,
    failure: watch::Sender<Option<(u64, String)>>,
    verbose: bool,
}

/// A lock that no panic can poison: a panic ends the run.
pub(crate) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn new(script: Script, verbose: bool) -> Self {
        let rng = Arc::new(SeededRng::new(script.seed));
        Self {
            cluster: ClusterId::from_bytes(rng.id_bytes()),
            net: Arc::new(Net::new(Arc::new(SeededRng::new(rng.next_u64())))),
            rng,
            script,
            start: Instant::now(),
            book: Mutex::default(),
            membership: tokio::sync::Mutex::default(),
            hosts: Mutex::default(),
            trace: Mutex::new((DefaultHasher::new(), 0)),
            counts: Mutex::default(),
            failure: watch::channel(None).0,
            verbose,
        }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something happened: part of what makes two runs the same.
    pub(crate) fn trace(&self, what: impl Hash) {
        let mut trace = held(&self.trace);
        (self.now_ms(), what).hash(&mut trace.0);
        trace.1 += 1;
    }

    /// The same, and for people who look at one run.
    // Only a tool that was asked to tell more than usual gets here.
    #[allow(clippy::print_stderr)]
    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        let text = text();
        if self.verbose {
            eprintln!("{:>7} {text}", self.now_ms());
        }
        self.trace(text);
    }

    pub(crate) fn trace_so_far(&self) -> (u64, u64) {
        let trace = held(&self.trace);
        (trace.0.finish(), trace.1)
    }

    pub(crate) fn request_id(&self) -> Vec<u8> {
        let mut id = vec![0; 16];
        self.rng.fill(&mut id);
        id
    }

    pub(crate) fn count(&self, one: impl FnOnce(&mut Counts)) {
        one(&mut held(&self.counts));
    }

    pub(crate) fn counts(&self) -> Counts {
        *held(&self.counts)
    }

    /// Something does not hold; the first of it is what is told.
    pub(crate) fn fail(&self, what: String) {
        let at_ms = self.now_ms();
        self.failure.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                *known = Some((at_ms, what));
            }
            first
        });
    }

    pub(crate) fn hold(&self, outcome: Result<(), String>) {
        if let Err(what) = outcome {
            self.fail(what);
        }
    }

    pub(crate) fn failure(&self) -> watch::Receiver<Option<(u64, String)>> {
        self.failure.subscribe()
    }

    pub(crate) fn add(&self, host: Arc<Host>) {
        held(&self.hosts).insert(host.place, host);
    }

    pub(crate) fn hosts(&self) -> Vec<Arc<Host>> {
        held(&self.hosts).values().cloned().collect()
    }

    pub(crate) fn host_at(&self, address: &str) -> Option<Arc<Host>> {
        held(&self.hosts).values().find(|host| host.address == address).cloned()
    }

    /// Lets go of everything: for the end.
    pub(crate) fn dissolve(&self) {
        for host in std::mem::take(&mut *held(&self.hosts)).into_values() {
            host.let_go();
        }
    }

    /// The host that has this number among the managers.
    pub(crate) fn manager(&self, number: u64) -> Option<Arc<Host>> {
        held(&self.hosts).values().find(|host| host.number() == Some(number)).cloned()
    }
}

impl World {
    /// A message of a node's agent has reached a manager.
    pub(crate) fn heard(&self, place: Place, node: NodeId, message: &v1::AgentMessage) {
        if let Some(v1::agent_message::Kind::Beat(_)) = message.kind {
            held(&self.book).heard(place, node, self.now_ms());
        }
    }

    /// Something may run now that did not, or the other way round.
    pub(crate) fn machine_moved(&self, host: &Host) {
        let machine = held(&host.machine);
        self.hold(held(&self.book).runs(host.place, &machine));
        self.hold(held(&self.book).knows(host.place, &machine.net));
    }

    /// Where the managers are that the cluster begins with.
    pub(crate) fn first_managers(&self) -> Vec<String> {
        let hosts = self.hosts();
        let managers = hosts.iter().filter(|host| host.number().is_some());
        managers.map(|host| host.address.clone()).collect()
    }
}
