//! Work on the files of a node that does not run: a backup becomes a cluster
//! again, a survivor goes on alone.
//!
//! Both end where `node run` begins. What is interrupted is begun again from
//! the start: a restored node is one when its identity is there, and the
//! recovery of a store is one rename.

use std::fs::File;
use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use warren_base::clock::{Clock, RealClock};
use warren_base::rng::{Rng, SystemRng};
use warren_manager::Terms;
use warren_model::node::Node as Member;
use warren_model::{NodeId, Time};
use warren_state::change::{Mutation, Transaction};
use warren_store::{KeySource, Restored, Store};
use warren_trust::backup::{BackupKey, BackupUnlock, decrypt};
use warren_trust::{Authority, Issued, KeyFile, KeyFileError, NodeKey, Subject, UnlockKey};

use super::files::{Files, assemble};
use super::{Begin, failed, machine, start};
use crate::cli::failure::{Exit, Failure, plain};
use crate::cli::printer::Printer;
use crate::cli::secret;
use crate::daemon;
use crate::identity::{Identity, Role};
use crate::settings::{NodeSettings, RecoverFlags, RestoreFlags};

/// What both work with.
struct Bench {
    settings: NodeSettings,
    files: Files,
    clock: Arc<dyn Clock>,
    rng: Arc<dyn Rng>,
    _held: daemon::Held,
}

impl Bench {
    fn new(settings: NodeSettings, detach: bool) -> Result<Self, Failure> {
        if detach {
            return Err(Failure::input("--detach: nothing is run here; use `warren node run`"));
        }
        let held = daemon::hold(&settings)?;
        Ok(Self {
            files: Files::new(&settings.data_dir),
            clock: Arc::new(RealClock::new()),
            rng: Arc::new(SystemRng),
            _held: held,
            settings,
        })
    }

    fn options(&self, number: u64, key: &Arc<KeyFile>) -> Result<warren_store::Options, Failure> {
        let (clock, rng) = (Arc::clone(&self.clock), Arc::clone(&self.rng));
        let (folder, path) = (self.files.store(), self.files.key());
        let options = warren_store::Options::new(&folder, &path, number, clock, rng);
        let mut options = options.map_err(|e| failed(&e))?;
        options.key = KeySource::Given(Arc::clone(key));
        options.address = machine::advertised(&self.settings).to_string();
        Ok(options)
    }
}

/// Makes this machine the first manager of the cluster in a backup.
pub(super) fn restore(
    settings: NodeSettings,
    flags: &RestoreFlags,
    printer: &mut Printer,
) -> Result<(), Failure> {
    let bench = Bench::new(settings, flags.node.detach)?;
    start::check(&Begin::Init { worker: true, terms: Terms::default() }, bench.files.data_dir())?;
    let unlock = match (&flags.passphrase_file, &flags.key_file) {
        (_, Some(path)) => {
            let key = secret::file("--key-file", path)?.parse::<BackupKey>();
            BackupUnlock::Key(key.map_err(|e| Failure::input(format!("--key-file: {e}")))?)
        }
        (Some(path), None) => BackupUnlock::Passphrase(secret::file("--passphrase-file", path)?),
        (None, None) => BackupUnlock::Passphrase(secret::read(printer, "passphrase: ")?),
    };
    let shown = flags.file.display();
    let file =
        File::open(&flags.file).map_err(|e| Failure::input(format!("{shown}: {}", plain(&e))))?;
    let wrong =
        |e: &dyn std::error::Error| Failure::input(format!("{shown}: {}", failed(e).message));
    let mut backup = decrypt(BufReader::new(file), &unlock).map_err(|e| wrong(&e))?;
    // What a restore that was interrupted left.
    bench.files.remove_store()?;
    let key = KeyFile::read_or_create(&bench.files.key(), bench.rng.as_ref());
    let key = Arc::new(key.map_err(|e| failed(&e))?);
    let restored = Store::restore(&bench.options(1, &key)?, &mut backup).map_err(|e| wrong(&e))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("start the event loop: {e}")))?;
    let identity = runtime.block_on(settle(&bench, restored, &key))?;
    let Restored { epoch, revision, time, .. } = restored;
    printer.note(format!(
        "restored what the cluster was at {time}: epoch {epoch}, revision {revision}"
    ));
    printer.note("run it with `warren node run`; workers of before come back if they find it:");
    printer.note("warren node run --managers ADDRESS on each of them; other nodes join anew");
    printer.line(identity.node.to_string())
}

/// A node of the restored cluster for this machine.
async fn settle(
    bench: &Bench,
    restored: Restored,
    key: &Arc<KeyFile>,
) -> Result<Identity, Failure> {
    let store = Store::open(bench.options(restored.number, key)?).await.map_err(|e| failed(&e))?;
    let made = introduce(bench, &store, restored, key).await;
    store.shutdown().await;
    let identity = made?;
    // Last of all: from here on the node is one.
    identity.write(bench.files.data_dir())?;
    Ok(identity)
}

async fn introduce(
    bench: &Bench,
    store: &Store,
    restored: Restored,
    key: &KeyFile,
) -> Result<Identity, Failure> {
    let view = store.view();
    let cluster = view.cluster().ok_or_else(|| Failure::failed("the backup holds no cluster"))?;
    let kept = cluster.ca.as_ref();
    let kept = kept.ok_or_else(|| Failure::failed("the backup holds no certificate authority"))?;
    let authority = Authority::from_state(kept).map_err(|e| failed(&e))?;
    let node = NodeId::from_bytes(bench.rng.id_bytes());
    let now = Time(bench.clock.now_ms()).max(restored.time);
    let node_key = NodeKey::generate().map_err(|e| failed(&e))?;
    let request = node_key.signing_request(&node.to_string()).map_err(|e| failed(&e))?;
    let lifetime = Duration::from_millis(cluster.certificate_lifetime_ms);
    let subject = Subject::Node { id: node, manager: true };
    let issued = authority.issue(&request, &subject, lifetime, now).map_err(|e| failed(&e))?;
    let own = assemble(&node_key, &issued.chain, &kept.certificates)?;
    bench.files.keep(&own, key).map_err(|e| failed(&e))?;
    let Issued { key_hash, not_after, issuer_hash, .. } = issued;
    let advertise = machine::advertised(&bench.settings);
    let description = machine::describe(&advertise, &bench.settings.data_dir);
    let member = Member {
        manager: true,
        key_hash,
        certificate_not_after: not_after,
        issuer_hash,
        joined: now,
        ..Member::new(node, description)
    };
    // A state always has a manager: the last one of before is one until there is another.
    let gone = view.nodes().filter(|node| node.manager);
    let gone = gone.map(|old| Mutation::SetRole { id: old.id, manager: false, worker: old.worker });
    let mutations = std::iter::once(Mutation::CreateNode(member)).chain(gone).collect();
    let transaction = Transaction { mutations, ..Transaction::default() };
    store.propose(transaction).await.map_err(|e| failed(&e))?;
    let number = store.view().node(node).and_then(|member| member.number);
    if number != Some(restored.number) {
        return Err(Failure::failed(format!(
            "the restored cluster gave number {number:?} to its manager {}",
            restored.number
        )));
    }
    let role = Role { manager: number, worker: true };
    let told = bench.settings.told.clone();
    Ok(Identity { node, cluster: cluster.id, role, stored: true, told })
}

/// Makes the store of this manager one of a cluster of its own.
pub(super) fn recover(
    settings: NodeSettings,
    flags: &RecoverFlags,
    printer: &mut Printer,
) -> Result<(), Failure> {
    debug_assert!(flags.yes, "the parser asks for it");
    let bench = Bench::new(settings, flags.node.detach)?;
    start::check(&Begin::Run, bench.files.data_dir())?;
    let identity = Identity::read(bench.files.data_dir()).map_err(|e| failed(&e))?;
    let number = identity.and_then(|identity| identity.role.manager.filter(|_| identity.stored));
    let number = number.ok_or_else(|| {
        let shown = bench.files.data_dir().display().to_string();
        Failure::new(Exit::Conflict, format!("the node in {shown} is no manager"))
            .hint("recover on a manager, or restore a backup: warren cluster restore")
    })?;
    let key = match KeyFile::read(&bench.files.key()) {
        Err(KeyFileError::Locked { path }) => {
            let text = secret::read(printer, "unlock key: ")?;
            let unlock: UnlockKey =
                text.parse().map_err(|e| Failure::input(format!("the unlock key: {e}")))?;
            KeyFile::unlock(&path, &unlock)
        }
        other => other,
    };
    let key = Arc::new(key.map_err(|e| failed(&e))?);
    let recovered = Store::recover(&bench.options(number, &key)?).map_err(|e| failed(&e))?;
    let Restored { epoch, revision, time, .. } = recovered;
    printer.note(format!(
        "this manager goes on alone from {time}: epoch {epoch}, revision {revision}"
    ));
    printer.note("run it with `warren node run`; the others come back by themselves, those that");
    printer.note("were managers as workers: `warren node promote` makes them managers again");
    printer.line(epoch.to_string())
}
