//! When the others are gone: backups, and going on alone.
//!
//! A backup is the text of a snapshot without its seal; who takes one encrypts
//! it. Restoring makes a new store of it, recovering rewrites the store of a
//! survivor; both end in a snapshot whose membership is this manager alone, in
//! a new recovery epoch: managers of before are refused, their flags are
//! cleared. The revision jumps, so that nothing given out before the loss is
//! taken for newer than what comes after.
//!
//! ```text
//! backup   magic 8 | version u16 | 0 u16 | chunks
//! chunk    len u32 | last u8 | 0 x3 | packed text (len)
//! ```
//!
//! Recovering is one rename: until the new snapshot is there, the store is as
//! it was.

use std::io::{self, Read};

use warren_model::Time;
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

use crate::codec::{self, WireLogId, WireMember, WireMembership, WirePosition, WireVoters};
use crate::log::{EntryKind, LogId, Vote};
use crate::open::{self, Ground, OpenError, Options};
use crate::snapshot::SnapshotError;
use crate::snapshot::text::{self, ChunkSink, ChunkSource, PACKED_MAX};

const MAGIC: &[u8; 8] = b"WRNSAVE\0";
const VERSION: u16 = 1;
const HEAD_LEN: usize = 12;
const CHUNK_HEAD_LEN: usize = 8;
const NAME: &str = "of the backup";
/// More than any cluster writes between two backups, or loses with a majority.
const REVISION_JUMP: u64 = 1_000_000;
/// Entries read from the log at once.
const READ_BYTES: usize = 1 << 20;

/// Why a store was not restored or recovered.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("this is not a backup")]
    Shape,
    #[error("the backup is of version {found}, this binary knows {VERSION}")]
    Version { found: u16 },
    #[error("read the backup")]
    Backup(#[source] SnapshotError),
    #[error("the backup is of a cluster without settings")]
    Empty,
    #[error("write the restored state")]
    Snapshot(#[source] SnapshotError),
    #[error("read entry {index} of the log: {problem}")]
    Entry { index: u64, problem: String },
    #[error("begin a new recovery epoch: {problem}")]
    Epoch { problem: String },
}

/// What a restored or recovered store is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// Of this manager: a recovered one keeps its own, a restored one gets the next.
    pub number: u64,
    pub epoch: u64,
    pub revision: u64,
    /// Of the state's last entry.
    pub time: Time,
}

/// A state as bytes.
pub struct Export {
    bytes: Vec<Vec<u8>>,
    /// Of the first buffer.
    at: usize,
}

/// Gathers chunks.
#[derive(Default)]
struct Buffers(Vec<Vec<u8>>);

impl ChunkSink for Buffers {
    fn chunk(&mut self, packed: &[u8], last: bool) -> io::Result<()> {
        let len = u32::try_from(packed.len()).map_err(io::Error::other)?;
        let mut out = Vec::with_capacity(CHUNK_HEAD_LEN + packed.len());
        out.extend_from_slice(&len.to_le_bytes());
        out.extend_from_slice(&[u8::from(last), 0, 0, 0]);
        out.extend_from_slice(packed);
        self.0.push(out);
        Ok(())
    }
}

impl Export {
    /// Packed at once: a few MiB for a large cluster, and nothing of the store is held.
    pub(crate) fn new(state: &State) -> Self {
        let mut head = MAGIC.to_vec();
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&[0; 2]);
        let mut buffers = Buffers(vec![head]);
        text::write(&mut buffers, state, &WirePosition::default())
            .expect("memory takes every chunk that a snapshot has");
        buffers.0.reverse();
        Self { bytes: buffers.0, at: 0 }
    }

    /// Bytes that are left.
    pub fn len(&self) -> usize {
        self.bytes.iter().map(Vec::len).sum::<usize>() - self.at
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Read for Export {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(first) = self.bytes.last() {
            let rest = &first[self.at..];
            if rest.is_empty() {
                self.bytes.pop();
                self.at = 0;
                continue;
            }
            let len = rest.len().min(out.len());
            out[..len].copy_from_slice(&rest[..len]);
            self.at += len;
            return Ok(len);
        }
        Ok(0)
    }
}

/// The chunks of a backup.
struct Backup<'a> {
    from: &'a mut dyn Read,
    chunk: u64,
    ended: bool,
}

impl<'a> Backup<'a> {
    fn start(from: &'a mut dyn Read) -> Result<Self, RestoreError> {
        let mut head = [0; HEAD_LEN];
        read_all(from, &mut head)?;
        if &head[..8] != MAGIC {
            return Err(RestoreError::Shape);
        }
        let found = u16::from_le_bytes([head[8], head[9]]);
        if found != VERSION {
            return Err(RestoreError::Version { found });
        }
        Ok(Self { from, chunk: 0, ended: false })
    }
}

fn read_all(from: &mut dyn Read, out: &mut [u8]) -> Result<(), RestoreError> {
    from.read_exact(out).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => {
            RestoreError::Backup(SnapshotError::Shape { name: NAME.to_owned() })
        }
        _ => RestoreError::Backup(disk(source)),
    })
}

fn disk(source: io::Error) -> SnapshotError {
    SnapshotError::Disk { action: "read", name: NAME.to_owned(), source }
}

impl ChunkSource for Backup<'_> {
    fn name(&self) -> &str {
        NAME
    }

    fn chunks_read(&self) -> u64 {
        self.chunk
    }

    fn chunk(&mut self) -> Result<Option<(Vec<u8>, bool)>, SnapshotError> {
        if self.ended {
            return Ok(None);
        }
        let cut = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => SnapshotError::Shape { name: NAME.to_owned() },
            _ => disk(source),
        };
        let mut head = [0; CHUNK_HEAD_LEN];
        self.from.read_exact(&mut head).map_err(cut)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        if len > PACKED_MAX || head[4] > 1 {
            return Err(self.damaged());
        }
        let mut packed = vec![0; len];
        self.from.read_exact(&mut packed).map_err(cut)?;
        self.chunk += 1;
        self.ended = head[4] == 1;
        Ok(Some((packed, self.ended)))
    }
}

pub(crate) fn restore(options: &Options, from: &mut dyn Read) -> Result<Restored, RestoreError> {
    // All of it is read and checked before anything is written.
    let mut backup = Backup::start(from)?;
    let (state, _) = text::read(&mut backup).map_err(RestoreError::Backup)?;
    let number = state.cluster().ok_or(RestoreError::Empty)?.next_number.max(1);
    let state = begin_epoch(&state, None)?;
    let ground = open::create(options)?;
    let last = LogId { term: 1, node: number, index: 1 };
    let restored = go_on_alone(&ground, options, &state, number, last)?;
    close(&ground);
    open::complete(options.disk.as_ref(), number)?;
    Ok(restored)
}

pub(crate) fn recover(options: &Options) -> Result<Restored, RestoreError> {
    let ground = open::open(options)?;
    let number = options.node_number;
    let state = replay(&ground)?;
    let state = begin_epoch(&state, Some(number))?;
    let (purged, last) = ground.log.range();
    let snapshot = ground.position.last.map(|last| (last.term, last.index));
    let ids = [purged, last].into_iter().flatten().map(|id| (id.term, id.index)).chain(snapshot);
    let (terms, indexes): (Vec<u64>, Vec<u64>) = ids.unzip();
    let vote = ground.log.vote().map_or(0, |vote| vote.term);
    // Later than everything that any manager of before could have.
    let term = terms.into_iter().max().unwrap_or(0).max(vote) + 1;
    let index = indexes.into_iter().max().unwrap_or(0) + 1;
    let restored =
        go_on_alone(&ground, options, &state, number, LogId { term, node: number, index })?;
    close(&ground);
    Ok(restored)
}

/// The state after everything that the log has. What was never acknowledged is kept as well: it
/// may have been, by managers that are gone.
fn replay(ground: &Ground) -> Result<State, RestoreError> {
    let mut state = ground.state.clone();
    let mut next = ground.position.last.map_or(0, |last| last.index + 1);
    let fail = |index, error: &dyn std::fmt::Display| RestoreError::Entry {
        index,
        problem: error.to_string(),
    };
    loop {
        let entries = ground.log.read(next..u64::MAX, READ_BYTES);
        let entries = entries.map_err(|error| fail(next, &error))?;
        if entries.is_empty() {
            return Ok(state);
        }
        for entry in entries {
            next = entry.id.index + 1;
            if entry.kind == EntryKind::Transactions {
                let decoded = codec::decode_entry(&entry.payload);
                let (time, transactions) = decoded.map_err(|error| fail(entry.id.index, &error))?;
                let mut events = Vec::new();
                state.apply(time, &transactions, &mut events);
            }
        }
    }
}

/// The state in a new epoch, in which nobody but `own` is a manager. Without an own one the last
/// keeps its flag, since a state always has a manager: whoever adds itself clears it.
fn begin_epoch(state: &State, own: Option<u64>) -> Result<State, RestoreError> {
    let epoch = state.cluster().ok_or(RestoreError::Empty)?.epoch + 1;
    let revision_at_least = state.revision() + REVISION_JUMP;
    let gone = state.nodes().filter(|node| node.manager);
    let gone = gone.filter(|node| own.is_none() || node.number != own);
    let stays = state.nodes().any(|node| node.manager && own.is_some() && node.number == own);
    let gone = gone.skip(usize::from(!stays));
    let demoted =
        gone.map(|node| Mutation::SetRole { id: node.id, manager: false, worker: node.worker });
    let mut state = state.clone();
    let restored = Mutation::Restored { epoch, revision_at_least };
    let mutations = std::iter::once(restored).chain(demoted).collect();
    let transaction = Transaction { mutations, ..Transaction::default() };
    let (time, mut events) = (state.time(), Vec::new());
    let outcomes = state.apply(time, &[transaction], &mut events);
    match outcomes.into_iter().next() {
        Some(Outcome::Applied { .. } | Outcome::Repeated { .. }) => Ok(state),
        Some(Outcome::Rejected(rejection)) => {
            Err(RestoreError::Epoch { problem: rejection.to_string() })
        }
        None => Err(RestoreError::Epoch { problem: "nothing was applied".to_owned() }),
    }
}

/// Writes the state as the snapshot of a manager that is alone, and lets the log begin after it.
fn go_on_alone(
    ground: &Ground,
    options: &Options,
    state: &State,
    number: u64,
    last: LogId,
) -> Result<Restored, RestoreError> {
    let at = WireLogId { term: last.term, node: last.node, index: last.index };
    let member = WireMember { node: number, address: options.address.clone() };
    let membership =
        WireMembership { voters: vec![WireVoters { nodes: vec![number] }], members: vec![member] };
    let position =
        WirePosition { last: Some(at), membership_at: Some(at), membership: Some(membership) };
    let written = ground.snapshots.write(state, &position).map_err(RestoreError::Snapshot)?;
    // From here on the new snapshot counts. The log's part is done again at the next start if
    // this ends half-way.
    let place = options.disk.place();
    let vote = Vote { term: last.term, node: number, committed: true };
    open::durable_now(&place, |done| ground.log.save_vote(vote, done))?;
    open::durable_now(&place, |done| ground.log.purge(last, done))?;
    // Older ones have the membership of before.
    ground.snapshots.keep_only(&written.name).map_err(RestoreError::Snapshot)?;
    Ok(Restored {
        number,
        epoch: state.cluster().map_or(0, |cluster| cluster.epoch),
        revision: state.revision(),
        time: state.time(),
    })
}

fn close(ground: &Ground) {
    // Everything in it is durable; what is not written is only that it is closed.
    if let Err(error) = open::durable_now(&ground.disk.place(), |done| ground.log.close(done)) {
        tracing::warn!(%error, "log: close");
    }
}
