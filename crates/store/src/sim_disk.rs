//! A disk in memory that loses power: torn writes, lost names, lost syncs.
//!
//! Deterministic: what a crash keeps is drawn from the random source given.
//! Every operation counts, so that a test can cut the power at each of them.
//! Handles of before a crash are dead afterwards, like those of a process that
//! lost its machine.
//!
//! Not here: bit rot by itself; tests flip bits with [`SimDisk::flip`].

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use warren_base::rng::Rng;

use crate::disk::{Disk, DiskFile, Lock, LockError};

/// What a device writes at once.
const SECTOR: usize = 512;

#[derive(Default)]
struct Content {
    durable: Vec<u8>,
    now: Vec<u8>,
    pending: Vec<Change>,
}

enum Change {
    Write { offset: usize, bytes: Vec<u8> },
    Len(usize),
}

#[derive(Clone)]
enum NameChange {
    Set(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Default)]
struct State {
    files: BTreeMap<u64, Content>,
    next_file: u64,
    durable_names: BTreeMap<String, u64>,
    names: BTreeMap<String, u64>,
    pending_names: Vec<NameChange>,
    operations: u64,
    power_off_at: Option<u64>,
    lying: bool,
    full: bool,
    life: u64,
    locked: bool,
}

/// A disk in memory. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
    life: u64,
}

struct SimFile {
    disk: SimDisk,
    id: u64,
}

struct SimLock {
    disk: SimDisk,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.inner();
        if state.life == self.disk.life {
            state.locked = false;
        }
    }
}

fn put(target: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[offset..end].copy_from_slice(bytes);
}

fn rename_in(names: &mut BTreeMap<String, u64>, change: &NameChange) {
    match change {
        NameChange::Set(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameChange::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        NameChange::Remove(name) => {
            names.remove(name);
        }
    }
}

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    fn inner(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an operation; an error when the machine of this handle is gone.
    fn operate(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.inner();
        if state.life != self.life {
            return Err(io::Error::other("this machine lost power"));
        }
        state.operations += 1;
        if state.power_off_at.is_some_and(|at| state.operations > at) {
            return Err(io::Error::other("the power is off"));
        }
        Ok(state)
    }

    /// Operations so far.
    pub fn operations(&self) -> u64 {
        self.inner().operations
    }

    /// From operation `at` on everything fails and nothing more reaches the disk.
    pub fn power_off_at(&self, at: u64) {
        self.inner().power_off_at = Some(at);
    }

    /// Syncs say that they worked and do nothing: a lying device.
    pub fn lose_syncs(&self, lying: bool) {
        self.inner().lying = lying;
    }

    /// Nothing grows any more; what has its place on the disk can be written over.
    pub fn fill(&self, full: bool) {
        self.inner().full = full;
    }

    /// The power fails and comes back: of what was not synced, any sectors and any first part of
    /// the name changes survive, as `rng` says. Returns the disk for the next life.
    pub fn crash(&self, rng: &dyn Rng) -> Self {
        let mut state = self.inner();
        let keep = usize::try_from(rng.below(state.pending_names.len() as u64 + 1)).unwrap_or(0);
        let pending = std::mem::take(&mut state.pending_names);
        for change in &pending[..keep] {
            rename_in(&mut state.durable_names, change);
        }
        state.names = state.durable_names.clone();
        let alive: Vec<u64> = state.names.values().copied().collect();
        state.files.retain(|id, _| alive.contains(id));
        for content in state.files.values_mut() {
            // All or nothing in one life of four: the plain cases must be met as well.
            let mood = rng.below(4);
            for change in std::mem::take(&mut content.pending) {
                content.survive(change, mood, rng);
            }
            content.now = content.durable.clone();
        }
        state.life += 1;
        state.power_off_at = None;
        state.lying = false;
        state.locked = false;
        Self { state: self.state.clone(), life: state.life }
    }

    /// A process dies and its machine lives on: the page cache keeps everything.
    pub fn kill(&self) -> Self {
        let mut state = self.inner();
        state.life += 1;
        state.power_off_at = None;
        state.locked = false;
        Self { state: self.state.clone(), life: state.life }
    }

    /// Another disk with the same content, all of it durable.
    pub fn fork(&self) -> Self {
        let state = self.inner();
        let files = state.files.iter().map(|(id, content)| {
            let now = content.now.clone();
            (*id, Content { durable: now.clone(), now, pending: Vec::new() })
        });
        let fork = State {
            files: files.collect(),
            next_file: state.next_file,
            durable_names: state.names.clone(),
            names: state.names.clone(),
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(fork)), life: 0 }
    }

    /// Changes one bit of a file.
    ///
    /// # Panics
    /// When there is no such file or bit.
    pub fn flip(&self, name: &str, bit: usize) {
        let mut state = self.inner();
        let id = *state.names.get(name).expect("the file to damage exists");
        let content = state.files.get_mut(&id).expect("a name leads to a file");
        content.now[bit / 8] ^= 1 << (bit % 8);
        content.durable = content.now.clone();
        content.pending.clear();
    }
}

impl Content {
    fn survive(&mut self, change: Change, mood: u64, rng: &dyn Rng) {
        let lucky = |rng: &dyn Rng| match mood {
            0 => false,
            1 => true,
            _ => rng.below(2) == 0,
        };
        match change {
            Change::Len(len) if lucky(rng) => self.durable.resize(len, 0),
            Change::Len(_) => {}
            Change::Write { offset, bytes } => {
                let mut at = 0;
                while at < bytes.len() {
                    let room = SECTOR - (offset + at) % SECTOR;
                    let end = bytes.len().min(at + room);
                    if lucky(rng) {
                        put(&mut self.durable, offset + at, &bytes[at..end]);
                    }
                    at = end;
                }
            }
        }
    }
}

fn unknown(name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{name} does not exist"))
}

impl Disk for SimDisk {
    fn place(&self) -> String {
        "(memory)".to_owned()
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.operate()?;
        if state.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let id = state.next_file;
        state.next_file += 1;
        state.files.insert(id, Content::default());
        let change = NameChange::Set(name.to_owned(), id);
        rename_in(&mut state.names, &change);
        state.pending_names.push(change);
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.operate()?;
        let id = *state.names.get(name).ok_or_else(|| unknown(name))?;
        Ok(Arc::new(SimFile { disk: self.clone(), id }))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.operate()?.names.keys().cloned().collect())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        if !state.names.contains_key(from) {
            return Err(unknown(from));
        }
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        rename_in(&mut state.names, &change);
        state.pending_names.push(change);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.operate()?;
        if !state.names.contains_key(name) {
            return Err(unknown(name));
        }
        let change = NameChange::Remove(name.to_owned());
        rename_in(&mut state.names, &change);
        state.pending_names.push(change);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut state = self.operate()?;
        if !state.lying {
            let pending = std::mem::take(&mut state.pending_names);
            for change in &pending {
                rename_in(&mut state.durable_names, change);
            }
        }
        Ok(())
    }

    fn lock(&self) -> Result<Lock, LockError> {
        let mut state =
            self.operate().map_err(|source| LockError::Io { place: self.place(), source })?;
        if state.locked {
            let holder = std::process::id().to_string();
            return Err(LockError::Held { place: self.place(), holder });
        }
        state.locked = true;
        Ok(Box::new(SimLock { disk: self.clone() }))
    }
}

impl SimFile {
    /// Whether there is room for so many bytes of this file.
    fn room(&self, len: usize) -> io::Result<()> {
        let state = self.disk.inner();
        let has = state.files.get(&self.id).map_or(0, |content| content.now.len());
        if state.full && len > has { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Content, bool) -> T) -> io::Result<T> {
        let mut state = self.disk.operate()?;
        let lying = state.lying;
        let content = state.files.get_mut(&self.id).ok_or_else(|| unknown("the open file"))?;
        Ok(act(content, lying))
    }
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|content, _| content.now.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.with(|content, _| {
            let rest = content.now.get(offset..).unwrap_or_default();
            let len = rest.len().min(buffer.len());
            buffer[..len].copy_from_slice(&rest[..len]);
            len
        })
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        self.room(offset + bytes.len())?;
        self.with(|content, _| {
            put(&mut content.now, offset, bytes);
            content.pending.push(Change::Write { offset, bytes: bytes.to_vec() });
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.room(len)?;
        self.with(|content, _| {
            content.now.resize(len, 0);
            content.pending.push(Change::Len(len));
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|content, lying| {
            if !lying {
                // Replayed and not cloned: a segment of 8 MiB is synced for every small batch.
                for change in std::mem::take(&mut content.pending) {
                    match change {
                        Change::Write { offset, bytes } => {
                            put(&mut content.durable, offset, &bytes);
                        }
                        Change::Len(len) => content.durable.resize(len, 0),
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;
    use crate::disk::{read_all, write_atomic};

    #[test]
    fn synced_survives_and_the_rest_may_tear() {
        let mut outcomes = BTreeMap::new();
        for seed in 0..200 {
            let disk = SimDisk::new();
            write_atomic(&disk, "a", &[1; 1024]).unwrap();
            disk.open("a").unwrap().write_at(&[2; 1024], 0).unwrap();
            disk.create("b").unwrap();
            let after = disk.crash(&SeededRng::new(seed));
            assert!(disk.open("a").is_err(), "handles of before are dead");
            let bytes = read_all(&after, "a", 4096).unwrap();
            assert_eq!(bytes.len(), 1024);
            *outcomes.entry((bytes[0], bytes[1023], after.open("b").is_ok())).or_insert(0) += 1;
        }
        assert_eq!(outcomes.len(), 8, "{outcomes:?}");
    }

    #[test]
    fn power_goes_and_syncs_lie() {
        let disk = SimDisk::new();
        disk.power_off_at(2);
        let file = disk.create("a").unwrap();
        file.write_at(b"x", 0).unwrap();
        assert!(file.sync().is_err() && disk.list().is_err());
        let disk = disk.kill();
        assert_eq!(read_all(&disk, "a", 9).unwrap(), b"x");
        let lost = (0..50).filter(|seed| {
            let disk = SimDisk::new();
            disk.lose_syncs(true);
            write_atomic(&disk, "b", b"y").unwrap();
            disk.crash(&SeededRng::new(*seed)).open("b").is_err()
        });
        assert!(lost.count() > 0);
        assert!(disk.open("a").is_ok());
    }
}
