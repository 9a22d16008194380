//! Segments made ahead of use: head sealed, the rest zeros, all of it durable.
//!
//! A file gets its final name only when it is whole, so that a segment with
//! that name always has its head. Made on a thread of its own; a commit takes
//! what is ready.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use warren_base::rng::Rng;

use super::segment::{HEAD_LEN, NewHead};
use super::segment_name;
use crate::disk::{Disk, DiskFile};
use crate::keys::Keys;

/// Zeros written at once.
const CHUNK: usize = 1 << 20;
/// Between attempts to make a segment when the disk refuses, e.g. because it is full.
const RETRY: Duration = Duration::from_secs(2);

/// A segment ready for records.
pub(super) struct Spare {
    pub(super) sequence: u64,
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) head: NewHead,
    pub(super) capacity: usize,
}

/// What making segments needs.
#[derive(Clone)]
pub(super) struct Maker {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) keys: Keys,
    pub(super) rng: Arc<dyn Rng>,
}

impl Maker {
    pub(super) fn make(&self, sequence: u64, capacity: usize) -> io::Result<Spare> {
        let head = NewHead::make(&self.keys.ring(), sequence, capacity, self.rng.as_ref());
        let name = segment_name(sequence);
        let tmp = format!("{name}.tmp");
        let file = self.disk.create(&tmp)?;
        let made = self.fill(&tmp, &name, file.as_ref(), &head, capacity);
        if let Err(error) = made {
            // The disk may be full: give back what was taken. The first error is the one to tell.
            let _ = self.disk.remove(&tmp);
            return Err(error);
        }
        Ok(Spare { sequence, file, head, capacity })
    }

    fn fill(
        &self,
        tmp: &str,
        name: &str,
        file: &dyn DiskFile,
        head: &NewHead,
        capacity: usize,
    ) -> io::Result<()> {
        file.write_at(&head.bytes, 0)?;
        let zeros = vec![0; CHUNK.min(capacity)];
        let mut at = HEAD_LEN;
        while at < capacity {
            let len = CHUNK.min(capacity - at);
            file.write_at(&zeros[..len], at as u64)?;
            at += len;
        }
        file.sync()?;
        self.disk.rename(tmp, name)?;
        self.disk.sync_names()
    }
}

enum Stage {
    /// Asked for, being made.
    Wanted(u64),
    Ready(Spare),
    /// Refused by the disk; it is tried again now and then.
    Failed(u64, io::ErrorKind, String),
    Taken,
    Ended,
}

struct Shelf {
    stage: Mutex<Stage>,
    changed: Condvar,
}

/// Where the writer takes its next segment from.
pub(super) struct Spares {
    maker: Maker,
    capacity: usize,
    /// `None`: made when taken, on the taker's thread.
    shelf: Option<Arc<Shelf>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

fn held<'a>(shelf: &'a Shelf) -> MutexGuard<'a, Stage> {
    shelf.stage.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Spares {
    pub(super) fn inline(maker: Maker, capacity: usize) -> Self {
        Self { maker, capacity, shelf: None, thread: Mutex::new(None) }
    }

    /// Starts the thread, which begins with `sequence`.
    pub(super) fn threaded(maker: Maker, capacity: usize, sequence: u64) -> io::Result<Self> {
        let stage = Mutex::new(Stage::Wanted(sequence));
        let shelf = Arc::new(Shelf { stage, changed: Condvar::new() });
        let (theirs, maker2) = (shelf.clone(), maker.clone());
        let run = move || work(&theirs, &maker2, capacity);
        let thread = std::thread::Builder::new().name("log-spare".to_owned()).spawn(run)?;
        Ok(Self { maker, capacity, shelf: Some(shelf), thread: Mutex::new(Some(thread)) })
    }

    /// The segment `sequence`, which must be the one after the last taken. Waits while it is made.
    pub(super) fn take(&self, sequence: u64) -> io::Result<Spare> {
        let Some(shelf) = &self.shelf else {
            return self.maker.make(sequence, self.capacity);
        };
        let mut stage = held(shelf);
        loop {
            match std::mem::replace(&mut *stage, Stage::Taken) {
                Stage::Ready(spare) if spare.sequence == sequence => {
                    *stage = Stage::Wanted(sequence + 1);
                    shelf.changed.notify_all();
                    return Ok(spare);
                }
                Stage::Failed(wanted, kind, text) => {
                    *stage = Stage::Failed(wanted, kind, text.clone());
                    return Err(io::Error::new(kind, text));
                }
                Stage::Wanted(wanted) => {
                    *stage = Stage::Wanted(wanted);
                    stage = shelf.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
                }
                Stage::Ready(_) | Stage::Taken | Stage::Ended => {
                    return Err(io::Error::other("segments are taken in order"));
                }
            }
        }
    }

    /// The segment `sequence`, sealed with the key that is active now: one that was ready before
    /// is made again.
    pub(super) fn take_fresh(&self, sequence: u64) -> io::Result<Spare> {
        let spare = self.take(sequence)?;
        if spare.head.key_id() == self.maker.keys.ring().active().id() {
            return Ok(spare);
        }
        self.maker.make(sequence, self.capacity)
    }

    /// Whether making the next segment failed last time.
    pub(super) fn failing(&self) -> bool {
        self.shelf.as_ref().is_some_and(|shelf| matches!(&*held(shelf), Stage::Failed(..)))
    }
}

impl Spares {
    /// Ends the thread and waits for it: whoever opens the log next makes files of the same names.
    /// A segment that is ready and not needed goes.
    pub(super) fn end(&self) {
        let Some(shelf) = &self.shelf else { return };
        let stage = std::mem::replace(&mut *held(shelf), Stage::Ended);
        shelf.changed.notify_all();
        if let Stage::Ready(spare) = stage {
            // If it stays, the next start removes it.
            let _ = self.maker.disk.remove(&segment_name(spare.sequence));
        }
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // A panic there was told of by itself.
        let _ = thread.map(JoinHandle::join);
    }
}

fn work(shelf: &Shelf, maker: &Maker, capacity: usize) {
    let mut stage = held(shelf);
    loop {
        let wanted = match &*stage {
            Stage::Wanted(sequence) => *sequence,
            Stage::Failed(sequence, ..) => {
                let sequence = *sequence;
                let waited = shelf.changed.wait_timeout(stage, RETRY);
                stage = waited.unwrap_or_else(PoisonError::into_inner).0;
                if matches!(*stage, Stage::Ended) {
                    return;
                }
                sequence
            }
            Stage::Ready(_) | Stage::Taken => {
                stage = shelf.changed.wait(stage).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            Stage::Ended => return,
        };
        drop(stage);
        let made = maker.make(wanted, capacity);
        stage = held(shelf);
        if matches!(*stage, Stage::Ended) {
            if made.is_ok() {
                let _ = maker.disk.remove(&segment_name(wanted));
            }
            return;
        }
        *stage = match made {
            Ok(spare) => Stage::Ready(spare),
            Err(error) => {
                tracing::error!(segment = wanted, %error, "log: prepare the next segment");
                Stage::Failed(wanted, error.kind(), error.to_string())
            }
        };
        shelf.changed.notify_all();
    }
}
