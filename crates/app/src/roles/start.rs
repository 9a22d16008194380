//! The start of a node: from folders and flags to a node that runs.
//!
//! A node is made (`Init`, `Join`) or found (`Run`); then all three go the same
//! way. A node whose key file is locked waits for the key, with its socket open
//! for nothing else.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use warren_agent::LocalManager;
use warren_base::clock::{Clock, RealClock};
use warren_base::rng::{Rng, SystemRng};
use warren_base::telemetry;
use warren_manager::{SetLogLevel, StopNode, Terms};
use warren_model::{Cluster, Time};
use warren_store::Store;
use warren_trust::node_files::CertificateFileError;
use warren_trust::{Credentials, KeyFile, KeyFileError};

use super::admin::{self, Admin};
use super::dial::Dialer;
use super::door::{Behind, Door, Unlocking};
use super::files::Files;
use super::found::{self, Founder};
use super::keep::take_up;
use super::managing::{self, Begin as Ledger, Managing};
use super::metrics::Metrics;
use super::node::{Node, Remembered, Shared};
use super::{Begin, failed, join, listener, machine};
use crate::cli::failure::{Exit, Failure};
use crate::cli::probe;
use crate::daemon::{self, detach};
use crate::identity::Identity;
use crate::settings::{Filter, NodeSettings};

/// For a new node to be heard by a manager. It happens within milliseconds, but adopting
/// thousands of containers on a busy machine comes first.
const READY_MAX: Duration = Duration::from_secs(120);
/// For a node that was there before: it runs without managers as well, so nobody has to wait
/// longer than an election takes.
const RUN_READY_MAX: Duration = Duration::from_secs(3);
/// For open calls on the socket when the node ends.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

pub(super) struct Started {
    pub(super) node: Node,
    /// A manager has answered.
    pub(super) ready: bool,
}

/// Where the node itself is asked, from the beginning to the end: its socket and its admin
/// endpoint.
pub(super) struct Socket {
    pub(super) door: Door,
    pub(super) admin: Admin,
    ended: CancellationToken,
    order: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
}

impl Socket {
    /// Listens; nobody is behind the door yet.
    pub(super) async fn open(settings: &NodeSettings) -> Result<Self, Failure> {
        let (admin, ended) = (Admin::new(), CancellationToken::new());
        if let Some(address) = settings.admin {
            let listener = admin::bind(address).await?;
            tokio::spawn(admin.clone().serve(listener, ended.clone()));
        }
        let listener: UnixListener = daemon::bind(&settings.socket())?;
        let door = Door::new(Behind::Nobody);
        let (order, ordered) = oneshot::channel::<()>();
        let end = async {
            // Without anybody left to give the order it is time to end as well.
            let _ = ordered.await;
        };
        let served = warren_manager::server()
            .add_service(door.clone())
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), end);
        let serving = Some(tokio::spawn(served));
        Ok(Self { door, admin, ended, order: Some(order), serving })
    }

    /// Ends once open calls have, or some time has passed.
    pub(super) async fn close(&mut self) {
        self.door.set(Behind::Nobody);
        self.ended.cancel();
        if let Some(order) = self.order.take() {
            // An error means that it has ended already.
            let _ = order.send(());
        }
        if let Some(serving) = self.serving.take()
            && tokio::time::timeout(DRAIN_GRACE, serving).await.is_err()
        {
            tracing::warn!("some calls on the socket did not end in time");
        }
    }
}

/// Whether a node may begin so in this folder.
///
/// # Errors
/// [`Exit::Conflict`] if there is one that should not be, [`Exit::NotFound`] if there is none.
pub(super) fn check(begin: &Begin, data_dir: &Path) -> Result<(), Failure> {
    let known = Identity::read(data_dir).map_err(|e| failed(&e))?;
    let shown = data_dir.display();
    match (begin, known) {
        (Begin::Run, Some(_)) | (Begin::Init { .. } | Begin::Join(_), None) => Ok(()),
        (Begin::Init { .. } | Begin::Join(_), Some(identity)) => {
            let node = identity.node;
            Err(Failure::new(Exit::Conflict, format!("{shown} holds node {node} already"))
                .hint("run it with `warren node run`, or use another --data-dir"))
        }
        (Begin::Run, None) => Err(Failure::new(
            Exit::NotFound,
            format!("no node was ever made in {shown}"),
        )
        .hint(
            "make one with `warren cluster init` or `warren node join`, or use another --data-dir",
        )),
    }
}

/// What a start works with.
struct Ground<'a> {
    settings: NodeSettings,
    files: Files,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    stop_node: StopNode,
    socket: &'a mut Socket,
}

/// Starts a node and returns once it is ready.
///
/// # Errors
/// What is in the way; what was begun can be begun again.
pub(super) async fn start(
    begin: Begin,
    settings: NodeSettings,
    stop_node: StopNode,
    socket: &mut Socket,
    report: bool,
) -> Result<Started, Failure> {
    let path = settings.socket();
    let files = Files::new(&settings.data_dir);
    let (clock, rng): (Arc<dyn Clock>, Arc<dyn Rng>) =
        (Arc::new(RealClock::new()), Arc::new(SystemRng));
    let admin = socket.admin.clone();
    let ground = Ground { settings, files, clock, rng, stop_node, socket };
    let fresh = !matches!(begin, Begin::Run);
    let (shared, managing) = match begin {
        Begin::Init { worker, terms } => ground.found(worker, terms).await?,
        Begin::Join(asked) => {
            let identity = ground.join(&asked).await?;
            ground.find(identity, report).await?
        }
        Begin::Run => {
            let identity = Identity::read(ground.files.data_dir()).map_err(|e| failed(&e))?;
            let identity = identity.ok_or_else(|| Failure::failed("the identity went away"))?;
            ground.find(identity, report).await?
        }
    };
    let node = Node::start(shared, managing, &admin).await?;
    let limit = if fresh { READY_MAX } else { RUN_READY_MAX };
    let met = async {
        probe::until_answered(&path, limit).await?;
        node.met().await;
        Ok::<_, Failure>(())
    };
    let ready = match tokio::time::timeout(limit, met).await {
        Ok(Ok(())) => true,
        Ok(Err(failure)) if fresh => return Err(failure),
        Err(_) if fresh => return Err(Failure::failed("no manager answers this node")),
        Ok(Err(_)) | Err(_) => false,
    };
    Ok(Started { node, ready })
}

impl Ground<'_> {
    /// A new cluster with this node as its first manager.
    async fn found(
        self,
        worker: bool,
        terms: Terms,
    ) -> Result<(Arc<Shared>, Option<Managing>), Failure> {
        let told = self.settings.told.clone();
        let identity = Identity { told, ..Identity::random(self.rng.as_ref(), worker) };
        let listening = listener::bind(self.settings.listen)?;
        // What an init that was interrupted left: nobody was promised anything of it.
        self.files.remove_store()?;
        let founder = Founder::new(&identity, &self.files, &self.clock, self.rng.as_ref())?;
        let (key, credentials, authority, issued) = founder.split();
        let shared = self.share(identity.clone(), Arc::new(key), credentials);
        let number = Cluster::FIRST_NUMBER;
        let store = managing::ledger(&shared, number, Ledger::Create).await?;
        let first = Founder::transaction(
            authority,
            &issued,
            &identity,
            machine::describe(&shared.advertise, &shared.settings.data_dir),
            terms,
            shared.clock.as_ref(),
            shared.rng.as_ref(),
        );
        store.propose(first).await.map_err(|e| failed(&e))?;
        // Last of all: from here on the node is one.
        identity.write(shared.files.data_dir())?;
        let cluster = identity.cluster;
        let managing = Managing::start(&shared, listening, store, number, cluster)?;
        Ok((shared, Some(managing)))
    }

    /// This machine as a node of a cluster that is there.
    async fn join(&self, asked: &crate::settings::JoinSettings) -> Result<Identity, Failure> {
        let advertise = machine::advertised(&self.settings);
        let joined = join::join(
            asked,
            &self.files,
            machine::describe(&advertise, &self.settings.data_dir),
            Arc::clone(&self.clock),
            self.rng.as_ref(),
            self.settings.told.clone(),
            |text| tracing::info!("{text}"),
        );
        let joined = joined.await?;
        let identity = joined.identity;
        let remembered = Remembered {
            managers: joined.managers,
            reached_ms: joined.time.0,
            pool: joined.pool.map(|pool| (pool.address, pool.prefix)),
        };
        remembered.write(&self.files);
        tracing::info!(node_id = %identity.node, cluster_id = %identity.cluster, "joined");
        Ok(identity)
    }

    /// A node that is one.
    async fn find(
        mut self,
        identity: Identity,
        report: bool,
    ) -> Result<(Arc<Shared>, Option<Managing>), Failure> {
        let key = self.key(report).await?;
        let own = match self.files.certificate(&key) {
            Err(CertificateFileError::Missing { .. }) if identity.stored => {
                self.adopt(&identity, &key).await?;
                self.files.certificate(&key)
            }
            other => other,
        };
        let own = own.map_err(|e| failed(&e))?;
        if own.peer().node != Some(identity.node) {
            let text = format!(
                "the certificate in {} is not that of node {}",
                self.files.data_dir().display(),
                identity.node
            );
            return Err(Failure::failed(text).hint(
                "files of two nodes were mixed; restore them, or join anew with an empty folder",
            ));
        }
        let credentials = Credentials::new(own.bundle().clone(), Arc::clone(&self.clock));
        credentials.set(&own).map_err(|e| failed(&e))?;
        let shared = self.share(identity.clone(), Arc::new(key), credentials);
        let Some(number) = identity.role.manager else {
            // Left by a manager that ceased to be one and was interrupted.
            shared.files.remove_store()?;
            return Ok((shared, None));
        };
        let begin = if identity.stored { Ledger::Open } else { Ledger::Join };
        let listening = listener::bind(shared.settings.listen)?;
        let managing = take_up(&shared, listening, number, begin).await?;
        Ok((shared, Some(managing)))
    }

    /// A node of before there were others: it gets what it needs to be one of several.
    async fn adopt(&self, identity: &Identity, key: &KeyFile) -> Result<(), Failure> {
        let Some(number) = identity.role.manager else { return Ok(()) };
        tracing::info!("this node has no certificate yet; it gets one");
        let (clock, rng) = (Arc::clone(&self.clock), Arc::clone(&self.rng));
        let (folder, path) = (self.files.store(), self.files.key());
        let options = warren_store::Options::new(&folder, &path, number, clock, rng);
        let store = Store::open(options.map_err(|e| failed(&e))?).await.map_err(|e| failed(&e))?;
        let now = Time(self.clock.now_ms());
        let adopted =
            found::adopt(&store, identity, &self.files, key, self.rng.as_ref(), now).await;
        store.shutdown().await;
        adopted
    }

    /// The wrapping key; waits for whoever has the cluster's unlock key, if it is locked.
    async fn key(&mut self, report: bool) -> Result<KeyFile, Failure> {
        let path = self.files.key();
        match KeyFile::read(&path) {
            Err(KeyFileError::Locked { .. }) => {}
            other => return other.map_err(|e| failed(&e)),
        }
        let (opened, waiting) = oneshot::channel();
        let unlocking = Unlocking { key_file: path, opened: Mutex::new(Some(opened)) };
        self.socket.door.set(Behind::Locked(Arc::new(unlocking)));
        let text = "the node is locked; it goes on after `warren cluster unlock`";
        tracing::warn!("{text}");
        if report {
            detach::ready(Some(text));
        }
        daemon::tell_systemd("READY=1\nSTATUS=locked");
        let key = waiting.await.map_err(|_| Failure::failed("nobody waits for the key"))?;
        self.socket.door.set(Behind::Nobody);
        tracing::info!("the node was unlocked");
        Ok(key)
    }

    fn share(self, identity: Identity, key: Arc<KeyFile>, credentials: Credentials) -> Arc<Shared> {
        tracing::Span::current().record("node_id", tracing::field::display(identity.node));
        let mut remembered = Remembered::read(&self.files);
        if !self.settings.managers.is_empty() {
            remembered.prefer(&self.settings.managers);
            remembered.write(&self.files);
        }
        credentials.advance(Time(remembered.reached_ms));
        let advertise = machine::advertised(&self.settings);
        let set_log_level: SetLogLevel = Arc::new(|filter| {
            let filter = filter.parse::<Filter>()?.to_string();
            telemetry::set(&filter).map_err(|error| error.to_string())
        });
        Arc::new(Shared {
            node: identity.node,
            cluster: identity.cluster,
            identity: Mutex::new(identity),
            files: self.files,
            key,
            dialer: Dialer::new(credentials),
            clock: self.clock,
            rng: self.rng,
            advertise,
            door: self.socket.door.clone(),
            stop_node: self.stop_node,
            set_log_level,
            metrics: Metrics::default(),
            local: watch::Sender::new(LocalManager::Absent),
            pipe: None.into(),
            store: None.into(),
            manager_metrics: None.into(),
            remembered: Mutex::new(remembered),
            settings: self.settings,
        })
    }
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;

    #[test]
    fn nodes_are_made_once_and_run_after() {
        let dir = tempfile::tempdir().unwrap();
        let init = || Begin::Init { worker: true, terms: Terms::default() };
        let ask = |begin| check(&begin, dir.path()).map_err(|failure| failure.exit);
        assert_eq!(ask(Begin::Run), Err(Exit::NotFound));
        assert_eq!(ask(init()), Ok(()));
        Identity::random(&SeededRng::new(1), true).write(dir.path()).unwrap();
        assert_eq!(ask(init()), Err(Exit::Conflict));
        assert_eq!(ask(Begin::Run), Ok(()));
    }
}
