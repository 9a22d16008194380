//! Making a store, opening one, and the files that say what it is.
//!
//! ```text
//! LOCK      held by the process that has the store open; its pid
//! VERSION   of the folder's format; written last, so it says that the store is whole
//! KEYS      data keys, wrapped by the node's key file
//! *.log     segments of the log
//! *.snap    snapshots
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;
use warren_base::clock::Clock;
use warren_base::rng::Rng;
use warren_state::State;
use warren_trust::{KeyFile, KeyFileError, KeyRing, KeyRingError};

use crate::codec::WirePosition;
use crate::disk::{self, Disk, FsDisk, Lock, LockError};
use crate::keys::{KEYS_FILE, Keys};
use crate::log::{Done, HeadError, Log, LogError, LogId, LogOptions, Vote};
use crate::raft::{Election, StartError};
use crate::snapshot::{SnapshotError, SnapshotFile, Snapshots};
use crate::transport::Transport;

const VERSION_FILE: &str = "VERSION";
/// Of the folder's format. A newer one is refused: an older binary would destroy it.
const FORMAT: u32 = 1;
/// Least log between snapshots: about a second of replay.
const SNAPSHOT_LOG_BYTES: u64 = 16 << 20;
/// Both small files are far below this.
const SMALL_FILE_MAX: u64 = 64 << 10;

/// Where the node's wrapping key is.
pub enum KeySource {
    /// A file with mode 0600; made with a new store when it is missing.
    File(PathBuf),
    /// In hand already: whoever has it may have had to unlock it.
    Given(Arc<KeyFile>),
    /// For simulations.
    Memory([u8; 32]),
}

/// What a store needs of its surroundings.
pub struct Options {
    pub disk: Arc<dyn Disk>,
    pub key: KeySource,
    /// Of this node among the managers; never changes in the life of a store.
    pub node_number: u64,
    pub clock: Arc<dyn Clock>,
    pub rng: Arc<dyn Rng>,
    pub log: LogOptions,
    /// Least log between snapshots.
    pub snapshot_log_bytes: u64,
    /// Run on the caller's runtime, which must have one thread, without threads of its own: for
    /// simulations.
    pub inline: bool,
    /// Of this manager, as others are told; they dial it.
    pub address: String,
    /// The way to other managers; a store without one is alone.
    pub transport: Option<Arc<dyn Transport>>,
    pub election: Election,
}

impl Options {
    /// A store in the folder `dir`, made (mode 0700) when it is missing.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new(
        dir: &Path,
        key_file: &Path,
        node_number: u64,
        clock: Arc<dyn Clock>,
        rng: Arc<dyn Rng>,
    ) -> io::Result<Self> {
        Ok(Self {
            disk: Arc::new(FsDisk::new(dir)?),
            key: KeySource::File(key_file.to_owned()),
            node_number,
            clock,
            rng,
            log: LogOptions::default(),
            snapshot_log_bytes: SNAPSHOT_LOG_BYTES,
            inline: false,
            address: String::new(),
            transport: None,
            election: Election::default(),
        })
    }
}

/// Why a store cannot be made or opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("there is no store in {place}")]
    NotFound { place: String },
    #[error("there is a store in {place} already")]
    Exists { place: String },
    #[error(
        "the store in {place} was never completed; nothing was ever kept in it: remove the folder"
    )]
    Incomplete { place: String },
    #[error("the store in {place} has format {found}, this binary knows {FORMAT}: use a newer one")]
    Version { place: String, found: String },
    #[error("{action} in {place}")]
    Disk { action: &'static str, place: String, source: io::Error },
    #[error("the data of this node is locked: unlock it with the cluster's unlock key")]
    Locked { path: PathBuf },
    #[error(transparent)]
    KeyFile(KeyFileError),
    #[error("open the keys of the store in {place}")]
    KeyRing { place: String, source: KeyRingError },
    #[error("open the log in {place}")]
    Log { place: String, source: LogError },
    #[error("open the snapshots in {place}")]
    Snapshot { place: String, source: SnapshotError },
    #[error(
        "the log in {place} begins after entry {purged}, and no snapshot that can be read reaches it"
    )]
    Gap { place: String, purged: u64 },
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the store ended while it was opened")]
    Ended,
}

impl From<KeyFileError> for OpenError {
    fn from(error: KeyFileError) -> Self {
        match error {
            KeyFileError::Locked { path } => Self::Locked { path },
            error => Self::KeyFile(error),
        }
    }
}

impl OpenError {
    /// Whether acknowledged writes are lost: this manager must not vote any more. It can be
    /// removed, and join again under a new number.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Log { source: LogError::Head { source, .. }, .. } => {
                !matches!(source, HeadError::Version { .. })
            }
            Self::Log { source, .. } => matches!(
                source,
                LogError::Damaged { .. } | LogError::Missing { .. } | LogError::Disorder { .. }
            ),
            Self::Gap { .. } => true,
            Self::Snapshot { source, .. } => !matches!(source, SnapshotError::Disk { .. }),
            _ => false,
        }
    }
}

/// A store that was read, before it takes part in anything.
pub(crate) struct Ground {
    pub(crate) lock: Lock,
    pub(crate) key_file: Arc<KeyFile>,
    pub(crate) keys: Keys,
    pub(crate) rng: Arc<dyn Rng>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) log: Log,
    pub(crate) snapshots: Snapshots,
    pub(crate) state: State,
    pub(crate) position: WirePosition,
    pub(crate) current: Option<SnapshotFile>,
}

fn disk_error<'a>(
    disk: &'a dyn Disk,
    action: &'static str,
) -> impl FnOnce(io::Error) -> OpenError + 'a {
    move |source| OpenError::Disk { action, place: disk.place(), source }
}

/// Lays out a new store. It is one only after [`complete`].
pub(crate) fn create(options: &Options) -> Result<Ground, OpenError> {
    let disk = options.disk.as_ref();
    let place = || disk.place();
    let lock = disk.lock()?;
    let names = disk.list().map_err(disk_error(disk, "list files"))?;
    if names.iter().any(|name| name == VERSION_FILE) {
        return Err(OpenError::Exists { place: place() });
    }
    let ours =
        |name: &String| name.ends_with(".log") || name.ends_with(".snap") || name == KEYS_FILE;
    if names.iter().any(ours) {
        return Err(OpenError::Incomplete { place: place() });
    }
    let rng = options.rng.as_ref();
    let key = key_file(&options.key, |path| KeyFile::read_or_create(path, rng))?;
    let ring = KeyRing::generate(rng);
    disk::write_atomic(disk, KEYS_FILE, &ring.wrap(&key, rng))
        .map_err(disk_error(disk, "write the keys"))?;
    let keys = Keys::from(Arc::new(ring));
    let log = LogOptions { inline: options.inline, ..options.log };
    let log = Log::create(options.disk.clone(), keys.clone(), options.rng.clone(), log)
        .map_err(|source| OpenError::Log { place: place(), source })?;
    Ok(Ground {
        lock,
        key_file: key,
        keys: keys.clone(),
        rng: options.rng.clone(),
        disk: options.disk.clone(),
        log,
        snapshots: Snapshots::new(options.disk.clone(), keys, options.rng.clone()),
        state: State::default(),
        position: WirePosition::default(),
        current: None,
    })
}

/// The key file, wherever it is; `read` when it is a file.
fn key_file(
    source: &KeySource,
    read: impl FnOnce(&Path) -> Result<KeyFile, KeyFileError>,
) -> Result<Arc<KeyFile>, OpenError> {
    Ok(match source {
        KeySource::File(path) => Arc::new(read(path)?),
        KeySource::Given(key) => key.clone(),
        KeySource::Memory(key) => Arc::new(KeyFile::in_memory(*key)),
    })
}

/// Runs an operation of the log and waits until it is durable.
pub(crate) async fn durable(
    place: &str,
    run: impl FnOnce(Done) -> Result<(), LogError>,
) -> Result<(), OpenError> {
    let fail = |source| OpenError::Log { place: place.to_owned(), source };
    let (sender, receiver) = oneshot::channel();
    run(Box::new(move |result| drop(sender.send(result)))).map_err(fail)?;
    receiver.await.map_err(|_| OpenError::Ended)?.map_err(fail)
}

/// As [`durable`], on a thread that may wait.
pub(crate) fn durable_now(
    place: &str,
    run: impl FnOnce(Done) -> Result<(), LogError>,
) -> Result<(), OpenError> {
    let fail = |source| OpenError::Log { place: place.to_owned(), source };
    let (sender, receiver) = std::sync::mpsc::channel();
    run(Box::new(move |result| drop(sender.send(result)))).map_err(fail)?;
    receiver.recv().map_err(|_| OpenError::Ended)?.map_err(fail)
}

/// Says that a new store is whole, and whose it is.
pub(crate) fn complete(disk: &dyn Disk, number: u64) -> Result<(), OpenError> {
    let text = format!("warren-store {FORMAT}\nmanager {number}\n");
    disk::write_atomic(disk, VERSION_FILE, text.as_bytes())
        .map_err(disk_error(disk, "write the version"))
}

fn check_version(disk: &dyn Disk, number: u64) -> Result<(), OpenError> {
    let place = || disk.place();
    let bytes = match disk::read_all(disk, VERSION_FILE, SMALL_FILE_MAX) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = disk.list().map_err(disk_error(disk, "list files"))?;
            let begun = names.iter().any(|name| name == KEYS_FILE || name.ends_with(".log"));
            let place = place();
            return Err(if begun {
                OpenError::Incomplete { place }
            } else {
                OpenError::NotFound { place }
            });
        }
        Err(error) => return Err(disk_error(disk, "read the version")(error)),
    };
    let text = String::from_utf8_lossy(&bytes);
    let mut lines = text.lines();
    let first = lines.next().unwrap_or_default();
    let found = first.strip_prefix("warren-store ").and_then(|n| n.parse::<u32>().ok());
    if found == Some(FORMAT) {
        let whose = lines.next().and_then(|line| line.strip_prefix("manager "));
        return match whose.filter(|whose| *whose != number.to_string()) {
            Some(found) => {
                let found = found.to_owned();
                Err(StartError::OtherNode { expected: number, found }.into())
            }
            None => Ok(()),
        };
    }
    let found = found.map_or_else(|| format!("{:?}", text.trim()), |number| number.to_string());
    Err(OpenError::Version { place: place(), found })
}

/// Reads a store: keys, newest snapshot, log.
pub(crate) fn open(options: &Options) -> Result<Ground, OpenError> {
    let disk = options.disk.as_ref();
    let place = || disk.place();
    let lock = disk.lock()?;
    check_version(disk, options.node_number)?;
    let key = key_file(&options.key, KeyFile::read)?;
    let ring = disk::read_all(disk, KEYS_FILE, SMALL_FILE_MAX)
        .map_err(disk_error(disk, "read the keys"))?;
    let ring = KeyRing::unwrap(&ring, &key)
        .map_err(|source| OpenError::KeyRing { place: place(), source })?;
    let keys = Keys::from(Arc::new(ring));
    remove_left_overs(disk)?;
    let snapshots = Snapshots::new(options.disk.clone(), keys.clone(), options.rng.clone());
    let snapshot_error = |source| OpenError::Snapshot { place: place(), source };
    let loaded = snapshots.load().map_err(snapshot_error)?;
    let log = LogOptions { inline: options.inline, ..options.log };
    let log = Log::open(options.disk.clone(), keys.clone(), options.rng.clone(), log)
        .map_err(|source| OpenError::Log { place: place(), source })?;
    let (state, position, current) = match loaded {
        None => (State::default(), WirePosition::default(), None),
        Some((loaded, wrong)) => {
            for error in &wrong {
                let chain = warren_error(error);
                tracing::error!(
                    error = chain,
                    used = loaded.file.name,
                    "snapshot: unreadable, an older one is used"
                );
                snapshots.set_aside(error);
            }
            (loaded.state, loaded.position, Some(loaded.file))
        }
    };
    let purged = log.range().0.map(|id| id.index);
    if purged > position.last.map(|last| last.index) {
        return Err(OpenError::Gap { place: place(), purged: purged.unwrap_or(0) });
    }
    if let Some(at) = position.last {
        overrule(&log, LogId { term: at.term, node: at.node, index: at.index }, &place())?;
        catch_up_vote(&log, at.term, at.node, &place())?;
    }
    Ok(Ground {
        lock,
        key_file: key,
        keys,
        rng: options.rng.clone(),
        disk: options.disk.clone(),
        log,
        snapshots,
        state,
        position,
        current,
    })
}

/// Voids what the log has from the place of the snapshot on, if it is of another leader: the
/// snapshot came from the one that was right, and this ended before the log was told.
fn overrule(log: &Log, at: LogId, place: &str) -> Result<(), OpenError> {
    if log.id(at.index).is_none_or(|id| id == at) {
        return Ok(());
    }
    let (purged, _) = log.range();
    let before = at.index.checked_sub(1);
    let before = before
        .and_then(|index| log.id(index).or_else(|| purged.filter(|purged| purged.index == index)));
    tracing::warn!(index = at.index, "log: entries that a snapshot overrules are void");
    durable_now(place, |done| log.truncate_after(before, done))
}

/// A snapshot of a later leader than was ever voted for: there was that leader.
fn catch_up_vote(log: &Log, term: u64, node: u64, place: &str) -> Result<(), OpenError> {
    if log.vote().is_some_and(|vote| (vote.term, vote.node) >= (term, node)) {
        return Ok(());
    }
    durable_now(place, |done| log.save_vote(Vote { term, node, committed: true }, done))
}

/// An error with its causes, in one line.
fn warren_error(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Files that were being made when the last process ended.
fn remove_left_overs(disk: &dyn Disk) -> Result<(), OpenError> {
    let names = disk.list().map_err(disk_error(disk, "list files"))?;
    for name in names.iter().filter(|name| name.ends_with(".tmp")) {
        disk.remove(name).map_err(disk_error(disk, "remove a left-over file"))?;
    }
    Ok(())
}
