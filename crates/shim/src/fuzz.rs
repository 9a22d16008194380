//! Hostile bytes to everything of the shim that reads any: messages, datagrams, records, log lines,
//! `/etc/passwd` and `/etc/group`.
//!
//! For a second with every test run; `FUZZ_SECONDS` and `FUZZ_SEED` for longer: `make fuzz`.

use std::time::{Duration, Instant};

use crate::account::{Group, ID_MAX, Passwd, Wanted};
use crate::line::{self, Stream};
use crate::message::{Builder, Message, MountKind, Operation, Reply, Request, Settings, Step, Tag};
use crate::record::{Exit, Run};

const LEN_MAX: usize = 60_000;

fn messages() -> Vec<Vec<u8>> {
    let mut builder = Builder::new(&Settings { capabilities: 0xa804_25fb, ..Settings::default() });
    for tag in [Tag::StateDir, Tag::Layer, Tag::Arg, Tag::Env, Tag::User, Tag::MaskedPath] {
        builder.text(tag, b"/some/text").unwrap_or_else(|_| unreachable!());
    }
    builder.mount(MountKind::Bind, true, b"/src", b"/dst").unwrap_or_else(|_| unreachable!());
    builder.file(0o600, b"/etc/hosts", b"127.0.0.1\0x").unwrap_or_else(|_| unreachable!());
    builder.pair(Tag::CgroupView, b"a", b"/b").unwrap_or_else(|_| unreachable!());
    builder.bytes(Tag::Seccomp, &[7; 64]);
    let request = Request { operation: Operation::Signal, argument: 9 };
    let replies = [
        Reply::Started { pid: 1, at_ns: 2 },
        Reply::Failed { step: Step::Exec, errno: 2, index: 0 },
        Reply::Exited { code: 3 },
    ];
    let exit = Exit {
        code: 137,
        signal: 9,
        oom_killed: true,
        supervisor_lost: false,
        at_ns: 1,
        lines_lost: 2,
    };
    let mut all = vec![
        builder.finish().unwrap(),
        request.encode().to_vec(),
        exit.encode().to_vec(),
        Run { shim_pid: 1, pid: 2, at_ns: 3 }.encode().to_vec(),
        line::prefix(1, Stream::Stderr).to_vec(),
        b"bob:x:1000:100:Bob,,,:/home/bob:/bin/sh".to_vec(),
        b"staff:x:50:bob,eve".to_vec(),
        b"00000000000000000007.log".to_vec(),
    ];
    all.extend(replies.iter().map(|reply| reply.encode().to_vec()));
    all
}

/// Reads them as everything there is.
fn read(bytes: &[u8]) {
    if let Ok(message) = Message::parse(bytes) {
        for tag in Tag::ALL {
            let count = message.all(*tag).count();
            let texts = message.texts(*tag).map(|text| text.to_bytes().len()).sum::<usize>();
            assert!(count <= bytes.len() && texts <= bytes.len());
        }
        // What was checked once is all there when it is read.
        assert_eq!(message.mounts().count(), message.all(Tag::Mount).count());
        assert_eq!(message.files().count(), message.all(Tag::File).count());
        assert_eq!(message.devices().count(), message.all(Tag::Device).count());
        assert_eq!(message.pairs(Tag::CgroupView).count(), message.all(Tag::CgroupView).count());
        assert!(message.bytes(Tag::Seccomp).is_none_or(|bytes| bytes.len() % 8 == 0));
    }
    if let Some(request) = Request::decode(bytes) {
        assert_eq!(request.encode(), bytes);
    }
    if let Some(reply) = Reply::decode(bytes) {
        assert_eq!(Reply::decode(&reply.encode()), Some(reply));
    }
    if let Some(exit) = Exit::decode(bytes) {
        assert_eq!(Exit::decode(&exit.encode()), Some(exit));
    }
    if let Some(run) = Run::decode(bytes) {
        assert_eq!(Run::decode(&run.encode()), Some(run));
    }
    if let Some((_, _, text)) = line::parse(bytes) {
        assert!(bytes.ends_with(text));
    }
    let _ = line::file_number(bytes);
    for line in bytes.split(|byte| *byte == b'\n') {
        let wanted = Wanted::parse(line);
        if let Some(entry) = Passwd::parse(line) {
            assert!(entry.uid <= ID_MAX && entry.gid <= ID_MAX && !entry.name.is_empty());
            let _ = wanted.is_user(&entry);
        }
        if let Some(entry) = Group::parse(line) {
            assert!(entry.gid <= ID_MAX);
            let _ = (wanted.is_group(&entry), entry.has_member(line));
        }
    }
}

/// Says the length it has: most changes would end at that check.
fn with_length(mut bytes: Vec<u8>) -> Vec<u8> {
    let len = bytes.len() as u64;
    if let Some(field) = bytes.get_mut(8..16) {
        field.copy_from_slice(&len.to_le_bytes());
    }
    bytes
}

#[test]
fn hostile_bytes() {
    let corpus = messages();
    corpus.iter().for_each(|bytes| read(bytes));
    let mut random = Random(from_environment("FUZZ_SEED", 0x5eed) | 1);
    let end = Instant::now() + Duration::from_secs(from_environment("FUZZ_SECONDS", 1));
    let (mut rounds, mut parsed) = (0_u64, 0_u64);
    while Instant::now() < end {
        for _ in 0..200 {
            rounds += 1;
            let bytes = random.mutate(&corpus);
            let bytes = if random.below(2) == 0 { with_length(bytes) } else { bytes };
            parsed += u64::from(Message::parse(&bytes).is_ok());
            read(&bytes);
        }
    }
    println!("{rounds} rounds, {parsed} were messages");
    assert!(rounds > 100 && parsed > 0);
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    /// Flips, cuts, removes, repeats, grows and joins.
    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..self.below(6) {
            let at = self.below(bytes.len());
            let other = &corpus[self.below(corpus.len())];
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_slice(other),
                2 => bytes.extend(std::iter::repeat_n(0, self.below(80))),
                3 if !bytes.is_empty() => drop(bytes.remove(at)),
                4 => {
                    let from = self.below(other.len());
                    let piece = &other[from..other.len().min(from + 64)];
                    bytes.splice(at..at, piece.iter().copied());
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte =
                            [*byte ^ (1 << self.below(8)), 0, 0xff, self.next().to_le_bytes()[0]]
                                [self.below(4)];
                    }
                }
            }
        }
        bytes.truncate(LEN_MAX);
        bytes
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
