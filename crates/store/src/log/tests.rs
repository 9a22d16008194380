//! The log against torn writes, flipped bits, lost power and kill -9.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::mpsc::sync_channel;

use proptest::prelude::*;
use warren_base::rng::{SeededRng, SystemRng};
use warren_trust::{KeyFile, KeyRing};

use super::segment::HEAD_LEN;
use super::*;
use crate::disk::FsDisk;
use crate::sim_disk::SimDisk;

/// Small, so that tests roll often; and on the caller's thread, so that they repeat.
const SMALL: LogOptions =
    LogOptions { segment_bytes: 4096, first_segment_bytes: 2048, cache_bytes: 600, inline: true };

fn keys() -> Arc<KeyRing> {
    Arc::new(KeyRing::generate(&SeededRng::new(1)))
}

fn create(disk: &SimDisk) -> Log {
    let rng = Arc::new(SeededRng::new(2));
    Log::create(Arc::new(disk.clone()), keys(), rng, SMALL).unwrap()
}

fn open(disk: &SimDisk) -> Result<Log, LogError> {
    Log::open(Arc::new(disk.clone()), keys(), Arc::new(SeededRng::new(3)), SMALL)
}

fn id(term: u64, index: u64) -> LogId {
    LogId { term, node: 1, index }
}

fn entry(term: u64, index: u64, len: usize) -> Entry {
    let payload = vec![u8::try_from(index % 251).unwrap(); len];
    Entry { id: id(term, index), kind: EntryKind::Transactions, payload: payload.into() }
}

/// Runs an operation and waits for its end.
fn wait(run: impl FnOnce(Done) -> Result<(), LogError>) -> Result<(), LogError> {
    let (sender, receiver) = sync_channel(1);
    run(Box::new(move |result| sender.send(result).unwrap()))?;
    receiver.recv().unwrap()
}

fn append(log: &Log, entries: Vec<Entry>) -> Result<(), LogError> {
    wait(|done| log.append(entries, done))
}

fn try_all(log: &Log) -> Result<Vec<Entry>, LogError> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let from = entries.last().map_or(0, |entry| entry.id.index + 1);
        let more = log.read(from..u64::MAX, 1000)?;
        if more.is_empty() {
            return Ok(entries);
        }
        entries.extend(more);
    }
}

fn all(log: &Log) -> Vec<Entry> {
    try_all(log).unwrap()
}

fn last_index(log: &Log) -> Option<u64> {
    log.range().1.map(|id| id.index)
}

#[test]
fn entries_votes_and_marks_come_back() {
    let disk = SimDisk::new();
    let log = create(&disk);
    let vote = Vote { term: 2, node: 1, committed: true };
    wait(|done| log.save_vote(vote, done)).unwrap();
    let entries: Vec<Entry> = (0..60).map(|index| entry(2, index, 100)).collect();
    for entry in &entries {
        append(&log, vec![entry.clone()]).unwrap();
    }
    assert_eq!(all(&log), entries);
    assert!(log.segments() > 2 && log.cached_bytes() <= SMALL.cache_bytes);
    wait(|done| log.close(done)).unwrap();

    let log = open(&disk.kill()).unwrap();
    assert_eq!((all(&log), log.vote()), (entries.clone(), Some(vote)));
    assert_eq!(log.key_ids(3, 59), [id(2, 59)]);
    assert_eq!(log.read(10..20, usize::MAX).unwrap(), entries[10..20]);
    assert_eq!(log.read(10..20, 1).unwrap().len(), 1);
    assert!(log.read(60..90, 10).unwrap().is_empty());
}

#[test]
fn what_is_committed_comes_back() {
    let disk = SimDisk::new();
    let log = create(&disk);
    append(&log, (0..4).map(|index| entry(1, index, 50)).collect()).unwrap();
    assert_eq!(log.committed(), None);
    log.save_committed(3);
    log.save_committed(2);
    assert_eq!(log.committed(), Some(id(1, 3)));
    // Told after the last write: gone with the process, and nothing else is claimed.
    let disk = disk.kill();
    let log = open(&disk).unwrap();
    assert_eq!(log.committed(), None);
    log.save_committed(3);
    append(&log, vec![entry(1, 4, 50)]).unwrap();
    log.save_committed(4);
    let disk = disk.kill();
    let log = open(&disk).unwrap();
    assert_eq!(log.committed(), Some(id(1, 3)));
    log.save_committed(4);
    wait(|done| log.close(done)).unwrap();
    let disk = disk.kill();
    let log = open(&disk).unwrap();
    // Nothing was written by the last life but this, at its end.
    assert_eq!(log.committed(), Some(id(1, 3)));
    append(&log, vec![entry(1, 5, 50)]).unwrap();
    log.save_committed(5);
    wait(|done| log.close(done)).unwrap();
    let disk = disk.kill();
    let log = open(&disk).unwrap();
    assert_eq!(log.committed(), Some(id(1, 5)));

    // Said again in each segment, so that it stays when older ones go.
    for index in 6..60 {
        append(&log, vec![entry(1, index, 200)]).unwrap();
        log.save_committed(index);
    }
    wait(|done| log.purge(id(1, 40), done)).unwrap();
    let disk = disk.crash(&SeededRng::new(5));
    let log = open(&disk).unwrap();
    assert!(log.committed() >= Some(id(1, 57)), "{:?}", log.committed());
    // A snapshot from elsewhere: what is left says nothing of entries that are gone.
    wait(|done| log.purge(id(2, 500), done)).unwrap();
    assert_eq!(log.committed(), None);
}

#[test]
fn order_and_size_are_checked() {
    let log = create(&SimDisk::new());
    for bad in [entry(1, 1, 1), entry(1, 0, PAYLOAD_MAX + 1)] {
        assert!(matches!(append(&log, vec![bad]), Err(LogError::Disorder { .. })));
    }
    assert_eq!(last_index(&log), None);
}

#[test]
fn truncated_entries_stay_gone() {
    let disk = SimDisk::new();
    let log = create(&disk);
    append(&log, (0..10).map(|index| entry(1, index, 50)).collect()).unwrap();
    wait(|done| log.truncate_after(Some(id(1, 3)), done)).unwrap();
    append(&log, vec![entry(2, 4, 50), entry(2, 5, 50)]).unwrap();
    let expected = all(&log);
    assert_eq!(expected.len(), 6);
    wait(|done| log.truncate_after(None, done)).unwrap();
    assert!(all(&log).is_empty());
    wait(|done| log.close(done)).unwrap();
    let log = open(&disk.kill()).unwrap();
    assert_eq!((all(&log).len(), last_index(&log)), (0, None));
    append(&log, vec![entry(3, 0, 5)]).unwrap();
    assert_eq!(last_index(&log), Some(0));
}

#[test]
fn purge_removes_whole_segments_and_keeps_the_vote() {
    let disk = SimDisk::new();
    let log = create(&disk);
    let vote = Vote { term: 1, node: 1, committed: false };
    wait(|done| log.save_vote(vote, done)).unwrap();
    for index in 0..100 {
        append(&log, vec![entry(1, index, 200)]).unwrap();
    }
    let before = log.segments();
    wait(|done| log.purge(id(1, 80), done)).unwrap();
    assert!(log.segments() < before / 2, "{} of {before}", log.segments());
    assert_eq!(all(&log).first().unwrap().id, id(1, 81));
    let disk = disk.crash(&SeededRng::new(9));
    let log = open(&disk).unwrap();
    assert_eq!(all(&log).len(), 19);
    assert_eq!((log.vote(), log.range()), (Some(vote), (Some(id(1, 80)), Some(id(1, 99)))));
    // Past the end: a snapshot from elsewhere was installed.
    wait(|done| log.purge(id(4, 500), done)).unwrap();
    assert_eq!(log.range(), (Some(id(4, 500)), Some(id(4, 500))));
    append(&log, vec![entry(4, 501, 9)]).unwrap();
    let log = open(&disk.crash(&SeededRng::new(9))).unwrap();
    assert_eq!(all(&log), [entry(4, 501, 9)]);
}

/// One segment with `count` entries, each its own batch; not closed, as after a crash.
fn one_segment(count: u64) -> (SimDisk, Vec<usize>) {
    let disk = SimDisk::new();
    let log = create(&disk);
    let mut ends = Vec::new();
    for index in 0..count {
        append(&log, vec![entry(1, index, 40)]).unwrap();
        let place = locked(&log.shared).index.get(index).unwrap();
        ends.push((place.offset + place.len) as usize);
    }
    (disk.kill(), ends)
}

#[test]
fn a_tail_torn_at_any_byte_is_cut_to_whole_records() {
    let (disk, ends) = one_segment(6);
    let name = segment_name(1);
    let base_end = ends[0] - (ends[1] - ends[0]);
    for cut in base_end..ends[5] + 8 {
        let whole = ends.iter().filter(|end| **end <= cut).count();
        for fill in [0, 0xa5] {
            let disk = disk.fork();
            let file = disk.open(&name).unwrap();
            let len = file.len().unwrap();
            let rest = vec![fill; usize::try_from(len).unwrap() - cut];
            file.write_at(&rest, cut as u64).unwrap();
            let log = open(&disk).unwrap_or_else(|e| panic!("cut at {cut}, {fill:?}: {e}"));
            assert_eq!(all(&log).len(), whole, "cut at {cut}, {fill:?}");
            // Once more before anything is written: the place of the cut is not taken for damage.
            drop(log);
            let disk = disk.kill();
            let log = open(&disk).unwrap_or_else(|e| panic!("again at {cut}, {fill:?}: {e}"));
            assert_eq!(all(&log).len(), whole, "again at {cut}, {fill:?}");
            // What follows is not confused by what was cut.
            let next = whole as u64;
            append(&log, vec![entry(2, next, 10)]).unwrap();
            let log = open(&disk.kill()).unwrap();
            assert_eq!(all(&log).last().unwrap().id, id(2, next));
        }
    }
}

/// A file that lost its end did not lose it in a crash: files have their length before they are
/// used, and the log cuts them only behind a record that says so.
#[test]
fn a_file_that_is_cut_anywhere_is_told() {
    for closed in [false, true] {
        let disk = SimDisk::new();
        let log = create(&disk);
        for index in 0..30 {
            append(&log, vec![entry(1, index, 90)]).unwrap();
        }
        if closed {
            wait(|done| log.close(done)).unwrap();
        }
        let disk = disk.kill();
        let names = disk.list().unwrap();
        let name = names.last().unwrap();
        let len = disk.open(name).unwrap().len().unwrap();
        for cut in 0..len {
            let damaged = disk.fork();
            damaged.open(name).unwrap().set_len(cut).unwrap();
            let error = open(&damaged).err().unwrap_or_else(|| panic!("cut at {cut} of {len}"));
            let told = matches!(error, LogError::Damaged { .. } | LogError::Head { .. });
            assert!(told, "cut at {cut} of {len}: {error}");
        }
        if closed {
            // Or overwritten, at a record's end or not.
            for from in HEAD_LEN as u64..len {
                let damaged = disk.fork();
                let rest = vec![0; usize::try_from(len - from).unwrap()];
                damaged.open(name).unwrap().write_at(&rest, from).unwrap();
                assert!(open(&damaged).is_err(), "zeros from {from} of {len}");
            }
        }
    }
}

#[test]
fn a_segment_can_end_before_anything_is_in_it() {
    let disk = SimDisk::new();
    let log = create(&disk);
    append(&log, vec![entry(1, 0, 10)]).unwrap();
    let disk = disk.kill();
    // Its first segment is too small for what comes first, or is given up for one with a new key.
    let log = open(&disk).unwrap();
    append(&log, vec![entry(1, 1, 3000)]).unwrap();
    let disk = disk.kill();
    let log = open(&disk).unwrap();
    assert_eq!(all(&log).len(), 2);
    wait(|done| log.renew(done)).unwrap();
    append(&log, vec![entry(1, 2, 10)]).unwrap();
    wait(|done| log.close(done)).unwrap();
    assert!(matches!(append(&log, vec![entry(1, 3, 10)]), Err(LogError::Stopped(_))));
    let log = open(&disk.kill()).unwrap();
    assert_eq!(all(&log).len(), 3);
}

#[test]
fn any_flipped_bit_of_a_closed_log_is_told() {
    let disk = SimDisk::new();
    let log = create(&disk);
    for index in 0..30 {
        append(&log, vec![entry(1, index, 90)]).unwrap();
    }
    wait(|done| log.close(done)).unwrap();
    let disk = disk.kill();
    let names = disk.list().unwrap();
    assert!(names.len() >= 2);
    for name in &names {
        let len = usize::try_from(disk.open(name).unwrap().len().unwrap()).unwrap();
        for bit in 0..len * 8 {
            // The seal of 1 KiB covers all its bytes alike: every byte once, and heads wholly.
            if bit > 120 * 8 && bit % 8 != (bit / 8) % 8 {
                continue;
            }
            let damaged = disk.fork();
            damaged.flip(name, bit);
            let error = open(&damaged).err().unwrap_or_else(|| panic!("{name} bit {bit}"));
            let told = matches!(error, LogError::Damaged { .. } | LogError::Head { .. });
            assert!(told, "{name} bit {bit}: {error}");
        }
    }
}

#[test]
fn missing_segments_are_told() {
    let disk = SimDisk::new();
    let log = create(&disk);
    for index in 0..60 {
        append(&log, vec![entry(1, index, 200)]).unwrap();
    }
    wait(|done| log.close(done)).unwrap();
    let disk = disk.kill();
    let names = disk.list().unwrap();
    for name in &names {
        let damaged = disk.fork();
        damaged.remove(name).unwrap();
        assert!(matches!(open(&damaged), Err(LogError::Missing { .. })), "{name}");
    }
    for name in &names {
        disk.remove(name).unwrap();
    }
    assert!(matches!(open(&disk), Err(LogError::Missing { .. })));
}

/// Opening clears away what was prepared and makes it anew: cut off anywhere, or without room, it
/// must leave a log that opens.
#[test]
fn an_opening_that_breaks_off_leaves_a_log() {
    for stop in 1..120 {
        let disk = SimDisk::new();
        let log = create(&disk);
        disk.power_off_at(disk.operations() + stop);
        let entries = (0..12).map(|index| entry(1, index, 500));
        let acknowledged = entries.take_while(|e| append(&log, vec![e.clone()]).is_ok()).count();
        drop(log);
        let disk = disk.kill();
        let whole = |disk: &SimDisk, what: &str| {
            let log = open(disk).unwrap_or_else(|error| panic!("{stop} {what}: {error}"));
            assert!(all(&log).len() >= acknowledged, "{stop} {what}");
        };
        let full = disk.fork();
        full.fill(true);
        assert!(open(&full).is_err(), "there is no room for the next segment");
        full.fill(false);
        whole(&full.kill(), "without room");
        for cut in 0.. {
            let disk = disk.fork();
            disk.power_off_at(cut);
            let done = open(&disk).is_ok();
            whole(&disk.fork().kill(), &format!("killed at {cut}"));
            whole(&disk.crash(&SeededRng::new(cut)), &format!("crashed at {cut}"));
            if done {
                break;
            }
        }
    }
}

#[test]
fn after_a_failed_sync_nothing_is_taken() {
    let disk = SimDisk::new();
    let log = create(&disk);
    append(&log, vec![entry(1, 0, 10)]).unwrap();
    disk.power_off_at(disk.operations() + 1);
    assert!(matches!(append(&log, vec![entry(1, 1, 10)]), Err(LogError::Stopped(_))));
    disk.power_off_at(u64::MAX);
    assert!(matches!(append(&log, vec![entry(1, 2, 10)]), Err(LogError::Stopped(_))));
    let log = open(&disk.kill()).unwrap();
    assert!(last_index(&log) <= Some(1));
}

#[test]
fn memory_is_bounded_and_old_entries_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(FsDisk::new(dir.path()).unwrap());
    let options = LogOptions { segment_bytes: 1 << 20, ..LogOptions::default() };
    let log = Log::create(disk.clone(), keys(), Arc::new(SystemRng), options).unwrap();
    let (sender, receiver) = sync_channel(1000);
    for index in 0..256 {
        let sender = sender.clone();
        let done = Box::new(move |result| sender.send(result).unwrap());
        log.append(vec![entry(1, index, 64 << 10)], done).unwrap();
    }
    for _ in 0..256 {
        receiver.recv().unwrap().unwrap();
    }
    assert!(log.cached_bytes() <= options.cache_bytes, "{}", log.cached_bytes());
    let sum: usize = all(&log).iter().map(|entry| entry.payload.len()).sum();
    assert_eq!(sum, 16 << 20);
    wait(|done| log.close(done)).unwrap();
    // Cut to what is used, nothing prepared is left behind.
    let names = disk.list().unwrap();
    assert!(names.iter().all(|name| name.ends_with(".log")), "{names:?}");
    let log = Log::open(disk, keys(), Arc::new(SystemRng), options).unwrap();
    assert_eq!(all(&log).len(), 256);
}

// ---- crashes at any operation ----------------------------------------------

#[derive(Debug, Clone)]
enum Step {
    Append {
        entries: usize,
        len: usize,
    },
    Vote,
    /// Back by so many entries.
    Truncate(u64),
    /// Up to so many before the end.
    Purge(u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1..5usize, 0..900usize).prop_map(|(entries, len)| Step::Append { entries, len }),
        1 => Just(Step::Vote),
        1 => (0..4u64).prop_map(Step::Truncate),
        1 => (0..6u64).prop_map(Step::Purge),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the log must hold.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    entries: BTreeMap<u64, Entry>,
    vote: Option<Vote>,
    purged: Option<LogId>,
    term: u64,
}

impl Model {
    fn next(&self) -> u64 {
        let purged = self.purged.map_or(0, |id| id.index + 1);
        self.entries.keys().next_back().map_or(purged, |last| last + 1)
    }

    fn last(&self) -> Option<LogId> {
        self.entries.values().next_back().map(|entry| entry.id).or(self.purged)
    }

    /// The states that the disk may hold while `step` is under way; the last one is its end.
    fn after(&self, step: &Step) -> Vec<Self> {
        let mut end = self.clone();
        match step {
            Step::Append { entries, len } => {
                let mut states = Vec::new();
                for _ in 0..*entries {
                    let index = end.next();
                    end.entries.insert(index, entry(end.term, index, *len));
                    states.push(end.clone());
                }
                return states;
            }
            Step::Vote => {
                end.term += 1;
                end.vote = Some(Vote { term: end.term, node: 1, committed: true });
            }
            Step::Truncate(back) => {
                let keep =
                    end.next().saturating_sub(*back).max(end.purged.map_or(0, |p| p.index + 1));
                end.entries.split_off(&keep);
                end.term += 1;
            }
            Step::Purge(back) => {
                let upto =
                    end.last().and_then(|last| end.entries.get(&last.index.saturating_sub(*back)));
                if let Some(upto) = upto.map(|entry| entry.id) {
                    end.entries = end.entries.split_off(&(upto.index + 1));
                    end.purged = Some(upto);
                }
            }
            Step::Reopen => {}
        }
        vec![end]
    }

    fn of(log: &Log, term: u64) -> Result<Self, LogError> {
        let entries = try_all(log)?.into_iter().map(|entry| (entry.id.index, entry));
        Ok(Self { entries: entries.collect(), vote: log.vote(), purged: log.range().0, term })
    }
}

fn run(log: &Log, before: &Model, end: &Model, step: &Step) -> Result<(), LogError> {
    match step {
        Step::Append { .. } => {
            let new = end.entries.range(before.next()..).map(|(_, entry)| entry.clone());
            append(log, new.collect())
        }
        Step::Vote => wait(|done| log.save_vote(end.vote.unwrap(), done)),
        Step::Truncate(_) => wait(|done| log.truncate_after(end.last(), done)),
        Step::Purge(_) if end.purged == before.purged => Ok(()),
        Step::Purge(_) => wait(|done| log.purge(end.purged.unwrap(), done)),
        Step::Reopen => wait(|done| log.close(done)),
    }
}

/// Runs `lives`, each ended by a loss of power after so many operations on the disk.
fn survive(lives: Vec<(Vec<Step>, u64, bool)>, seed: u64) -> Result<(), TestCaseError> {
    let rng = SeededRng::new(seed);
    let mut disk = SimDisk::new();
    let mut log = create(&disk);
    let mut model = Model::default();
    append(&log, vec![entry(0, 0, 3)]).unwrap();
    model.entries.insert(0, entry(0, 0, 3));
    for (steps, operations, power) in lives {
        disk.power_off_at(disk.operations() + operations);
        let mut possible = vec![model.clone()];
        for step in &steps {
            let states = model.after(step);
            let end = states.last().unwrap().clone();
            possible.extend(states);
            if run(&log, &model, &end, step).is_err() {
                break;
            }
            possible = vec![end.clone()];
            model = end;
            match Model::of(&log, model.term) {
                Ok(found) => prop_assert_eq!(&found, &model),
                Err(LogError::Disk { .. }) => break,
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
            if matches!(step, Step::Reopen) {
                match open(&disk) {
                    Ok(opened) => log = opened,
                    Err(LogError::Disk { .. }) => break,
                    Err(error) => return Err(TestCaseError::fail(error.to_string())),
                }
            }
        }
        disk = if power { disk.crash(&rng) } else { disk.kill() };
        log = open(&disk).map_err(|error| TestCaseError::fail(error.to_string()))?;
        let found = Model::of(&log, model.term).unwrap();
        let same = |state: &&Model| {
            Model { term: 0, ..(*state).clone() } == Model { term: 0, ..found.clone() }
        };
        let state = possible.iter().find(same);
        prop_assert!(state.is_some(), "found {found:?}\npossible {possible:?}");
        prop_assert_eq!(log.range().1, found.last());
        model = Model { term: model.term + 1, ..found };
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn acknowledged_survives_any_crash(
        lives in proptest::collection::vec((steps(), 1..250u64, any::<bool>()), 1..4),
        seed: u64,
    ) {
        survive(lives, seed)?;
    }
}

// ---- kill -9 ---------------------------------------------------------------

const CHILD: &str = "WARREN_STORE_TEST_LOG_DIR";

fn fs_log(dir: &Path) -> Log {
    let disk = Arc::new(FsDisk::new(&dir.join("log")).unwrap());
    let file = KeyFile::read(&dir.join("key")).unwrap();
    let ring = std::fs::read(dir.join("ring")).unwrap();
    let keys = Arc::new(KeyRing::unwrap(&ring, &file).unwrap());
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let fresh = disk.list().unwrap().iter().all(|name| sequence_of(name).is_none());
    let start = if fresh { Log::create } else { Log::open };
    start(disk, keys, Arc::new(SystemRng), options).unwrap()
}

/// Not a test by itself: the process that the next test kills.
/// A segment that is made ahead by the last user would be in the way of the next.
#[test]
fn a_log_is_opened_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let options = LogOptions { segment_bytes: 64 << 10, ..LogOptions::default() };
    let start = |create: bool| {
        let disk = Arc::new(FsDisk::new(dir.path()).unwrap());
        let start = if create { Log::create } else { Log::open };
        start(disk, keys(), Arc::new(SystemRng), options).unwrap()
    };
    for index in 0..40 {
        let log = start(index == 0);
        append(&log, vec![entry(1, index, 100)]).unwrap();
        wait(|done| log.close(done)).unwrap();
    }
    assert_eq!(all(&start(false)).len(), 40);
}

#[test]
fn child_appends_until_it_is_killed() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let log = fs_log(Path::new(&dir));
    let mut next = last_index(&log).map_or(0, |last| last + 1);
    loop {
        let (sender, receiver) = sync_channel(16);
        for _ in 0..8 {
            let sender = sender.clone();
            let done = Box::new(move |result| sender.send(result).unwrap());
            log.append(vec![entry(1, next, 700)], done).unwrap();
            next += 1;
        }
        for _ in 0..8 {
            receiver.recv().unwrap().unwrap();
        }
        println!("acknowledged {}", next - 1);
    }
}

#[test]
fn acknowledged_survives_kill_9() {
    let dir = tempfile::tempdir().unwrap();
    let file = KeyFile::create(&dir.path().join("key"), &SystemRng).unwrap();
    std::fs::write(dir.path().join("ring"), keys().wrap(&file, &SystemRng)).unwrap();
    let mut before = None;
    for round in 0..12u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "log::tests::child_appends_until_it_is_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = None;
        // Where in a batch the kill falls differs by the scheduler's whim and the round.
        let enough = 1 + round * 7;
        let mut seen = 0;
        for line in lines.by_ref() {
            let line = line.unwrap();
            let Some(index) = line.split("acknowledged ").nth(1) else { continue };
            acknowledged = Some(index.parse::<u64>().unwrap());
            seen += 1;
            if seen == enough {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let log = fs_log(dir.path());
        let last = last_index(&log);
        assert!(acknowledged.is_some() && last >= acknowledged && last >= before);
        assert!(all(&log).iter().enumerate().all(|(at, e)| *e == entry(1, at as u64, 700)));
        wait(|done| log.close(done)).unwrap();
        before = last;
    }
}
