//! Broken answers of a kernel: what it really says, changed at random, given to everything that
//! reads it.
//!
//! A harness for stable toolchains. The corpus is made where it runs: links, addresses, routes,
//! neighbours and rules of this machine, and connections and counters written as the kernel
//! does. What must hold: no panic, an end, and memory that does not grow. A kernel is no enemy,
//! but another version of it may say what this one never does.
//!
//! `WARREN_FUZZ_SECONDS` says how long the long run takes (600).

use std::time::{Duration, Instant};

use warren_base::rng::{Rng, SeededRng};

use crate::netlink::{Messages, Socket, attributes_in, flag, messages_in};
use crate::{conntrack, link, routes, rules};

/// A short run, for each seed.
const INPUTS: usize = 20_000;
/// Requests for everything of a kind: links, addresses, routes, neighbours, rules.
const DUMPS: [(u16, usize); 5] = [(18, 16), (22, 8), (26, 12), (30, 12), (34, 12)];
const NEW_CONNECTION: u16 = 0x100;
const NEW_RULE: u16 = 0x0a06;

/// Whole messages, with their heads.
fn corpus() -> Vec<Vec<u8>> {
    let mut corpus = Vec::new();
    let mut keep = |kind: u16, payload: &[u8]| {
        let mut messages = Messages::default();
        messages.push(kind, 0, payload, |_| {});
        corpus.push(messages.as_bytes().to_vec());
    };
    let mut socket = Socket::route().unwrap();
    for (kind, header) in DUMPS {
        let mut messages = Messages::default();
        messages.push(kind, flag::DUMP, &vec![0; header], |_| {});
        socket.query(&messages, &mut keep).unwrap();
    }
    let tuple = |a: &mut crate::netlink::Attributes<'_>| {
        a.nested(1, |a| {
            a.bytes(1, &[10, 0, 0, 1]).bytes(2, &[10, 0, 0, 2]);
        });
        a.nested(2, |a| {
            a.bytes(1, &[6]).bytes(2, &[0x1f, 0x90]).bytes(3, &[0, 80]);
        });
    };
    let mut messages = Messages::default();
    messages.push(NEW_CONNECTION, 0, &[2, 0, 0, 0], |a| {
        a.nested(1, tuple).nested(2, tuple);
    });
    messages.push(NEW_RULE, 0, &[2, 0, 0, 0], |a| {
        a.text(1, "warren").text(2, "forward").nested(4, |a| {
            a.nested(1, |a| {
                a.text(1, "counter").nested(2, |a| {
                    a.bytes(1, &[0, 0, 0, 0, 0, 0, 1, 0]).bytes(2, &[0, 0, 0, 0, 0, 0, 0, 4]);
                });
            });
        });
    });
    corpus.extend(messages_in(messages.as_bytes()).map(|message| {
        let mut one = Messages::default();
        one.push(message.kind, message.flags, message.payload, |_| {});
        one.as_bytes().to_vec()
    }));
    assert!(corpus.len() >= 10, "{} messages", corpus.len());
    corpus
}

fn mutate(rng: &SeededRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let below = |bound: usize| usize::try_from(rng.below(bound.max(1) as u64)).unwrap();
    let mut bytes = corpus[below(corpus.len())].clone();
    for _ in 0..below(5) {
        bytes.extend_from_slice(&corpus[below(corpus.len())]);
    }
    for _ in 0..below(8) {
        let at = below(bytes.len());
        match below(6) {
            _ if bytes.is_empty() => bytes.push(0),
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = [0, 1, 3, 4, 5, 0x7f, 0x80, 0xff][below(8)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, bytes[at]),
            4 => drop(bytes.remove(at)),
            // Lengths of messages and attributes are small numbers.
            _ => bytes[at] = u8::try_from(below(64)).unwrap(),
        }
    }
    bytes
}

/// Everything that reads what a kernel says.
fn read(bytes: &[u8]) {
    for message in messages_in(bytes) {
        let (kind, payload) = (message.kind, message.payload);
        routes::read_all(payload);
        let _ = link::parse_link(kind, payload);
        let _ = rules::parse_counter(kind, payload);
        let _ = conntrack::parse(payload.get(4..).unwrap_or_default());
        for (_, value) in attributes_in(payload) {
            assert!(attributes_in(value).count() <= value.len());
        }
    }
}

fn run(seed: u64, done: impl Fn(usize) -> bool) -> usize {
    let (rng, corpus) = (SeededRng::new(seed), corpus());
    let mut count = 0;
    while !done(count) {
        read(&mutate(&rng, &corpus));
        count += 1;
    }
    count
}

#[test]
fn broken_answers_break_nothing() {
    for seed in 0..3 {
        run(seed, |count| count == INPUTS);
    }
}

#[test]
fn soak_broken_answers() {
    let resident_kib = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let seconds = std::env::var("WARREN_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(600));
    run(0, |count| count == INPUTS);
    let before = resident_kib();
    let count = run(u64::from(std::process::id()), |_| Instant::now() >= end);
    let grown = resident_kib().saturating_sub(before);
    println!("{count} inputs, {grown} KiB more than before");
    assert!(grown < 4096, "memory grew by {grown} KiB");
}
