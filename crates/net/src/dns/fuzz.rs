//! Broken messages: a corpus, changed at random, given to everything that reads them.
//!
//! A harness for stable toolchains: the files of `corpus` are whole messages, queries and
//! answers; each input is one of them after a few mutations (bits, bytes, lengths, splices). What
//! must hold: no panic; a reply is understood by another implementation, repeats its query, is
//! within its limit and not longer than what was asked unless it answers; memory does not grow.
//!
//! `WARREN_FUZZ_SECONDS` says how long the long run takes (600).

use std::time::{Duration, Instant};

use hickory_proto::op::Message;
use warren_base::rng::{Rng, SeededRng};

use super::answer::{Action, Kind, Transport, answer};
use super::wire::{Asked, Query, Response, STREAM_LEN};
use super::zone::tests::tables;
use super::zone::{SUFFIX, Zone};

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/dns");
/// A short run, for each seed.
const INPUTS: usize = 20_000;

fn corpus() -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(CORPUS).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    assert!(corpus.len() >= 10, "the corpus is missing");
    corpus
}

fn zone() -> Zone {
    let tasks: String = (0..200).map(|n| format!(" {n}=10.1.1.{n},fd01::{n}")).collect();
    Zone::new(tables(&format!(
        "web.shop a:10.9.0.1,fd09::1+www http/tcp=80 1=10.1.0.1\nbig a: http/tcp=80{tasks}\n? 10.1.0.9 shop a"
    )))
}

fn mutate(rng: &SeededRng, corpus: &[Vec<u8>]) -> Vec<u8> {
    let below = |bound: usize| usize::try_from(rng.below(bound as u64)).unwrap();
    let pick = || &corpus[below(corpus.len())];
    let mut bytes = pick().clone();
    for _ in 0..below(6) {
        let at = below(bytes.len().max(1));
        match below(8) {
            _ if bytes.is_empty() => bytes.push(0),
            0 => bytes[at] ^= 1 << below(8),
            1 => bytes[at] = [0, 1, 0x3f, 0x40, 0xc0, 0xff, b'a', b'.'][below(8)],
            2 => bytes.truncate(at),
            3 => bytes.insert(at, bytes[at]),
            4 => {
                let other = pick();
                bytes.truncate(at);
                bytes.extend_from_slice(&other[below(other.len())..]);
            }
            5 => {
                let end = (at + 1 + below(16)).min(bytes.len());
                bytes.extend_from_within(at..end);
            }
            // Counts of records.
            6 if bytes.len() > 12 => bytes[4 + below(8)] = [0, 1, 2, 0xff][below(4)],
            _ => {
                bytes.remove(at);
            }
        }
    }
    bytes
}

fn check(zone: &Zone, bytes: &[u8], rotation: u32, out: &mut Vec<u8>) {
    for transport in [Transport::Datagram, Transport::Stream] {
        out.clear();
        let asker = "10.1.0.9".parse().unwrap();
        let action = answer(zone, asker, bytes, transport, rotation, out);
        match action {
            Action::Drop => assert!(out.is_empty()),
            Action::Reply(kind) => {
                let limit = if transport == Transport::Datagram { 1232 } else { STREAM_LEN };
                assert!(out.len() <= limit);
                assert_eq!(out[..2], bytes[..2]);
                assert!(out[2] & 0x80 != 0);
                match kind {
                    Kind::Malformed => assert_eq!(out.len(), 12),
                    Kind::Refused => assert!(out.len() <= bytes.len()),
                    Kind::Answered => {
                        Message::from_vec(out).expect("others understand what is answered");
                    }
                }
            }
            Action::Forward(ask) => {
                let asked = ask.asked();
                let message = [&[0; 12][..], asked.question].concat();
                let mut one = message.clone();
                one[5] = 1;
                let name = Query::read(&one).map(|query| query.name.as_str().to_owned());
                assert!(!name.unwrap_or_default().ends_with(&format!(".{SUFFIX}")));
            }
        }
    }
    check_response(bytes, out);
}

/// As the answer of a server to the question that it says it answers.
fn check_response(bytes: &[u8], out: &mut Vec<u8>) {
    let mut asked = bytes.to_vec();
    if asked.len() < 12 {
        return;
    }
    let id = u16::from_be_bytes([asked[0], asked[1]]);
    asked[2..4].fill(0);
    asked[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    let Ok(query) = Query::read(&asked) else { return };
    let question = query.asked.question.to_vec();
    let Ok(response) = Response::read(bytes, id, &question) else { return };
    if response.truncated || !response.is_usable() {
        return;
    }
    for (limit, age_s) in [(512, 0), (1232, 5), (STREAM_LEN, u32::MAX)] {
        let edns = query.asked.edns;
        response.write(
            out,
            &Asked { id: 9, flags: 0x100, question: &question, edns },
            age_s,
            limit,
        );
        assert!(out.len() <= limit);
        assert_eq!(out[..2], [0, 9]);
        // It is still the answer to the same question.
        let again = Response::read(out, 9, &question);
        assert!(again.is_ok_and(|again| again.truncated || again.rcode == response.rcode));
    }
    assert!(response.size() <= 512 + 3 * bytes.len());
}

fn run(seed: u64, until: impl Fn(usize) -> bool) -> usize {
    let (rng, corpus, zone) = (SeededRng::new(seed), corpus(), zone());
    let (mut out, mut count) = (Vec::new(), 0);
    while !until(count) {
        let bytes = mutate(&rng, &corpus);
        let rotation = u32::try_from(count).unwrap_or(0);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            check(&zone, &bytes, rotation, &mut out);
        }));
        if let Err(panic) = outcome {
            eprintln!("seed {seed}, input {count}: {bytes:02x?}");
            std::panic::resume_unwind(panic);
        }
        count += 1;
    }
    count
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn broken_messages_break_nothing() {
    for seed in 0..3 {
        run(seed, |count| count == INPUTS);
    }
}

#[test]
fn soak_broken_messages() {
    let seconds = std::env::var("WARREN_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(600));
    run(0, |count| count == INPUTS);
    let before = resident_kib();
    let count = run(u64::from(std::process::id()), |_| Instant::now() >= end);
    let grown = resident_kib().saturating_sub(before);
    println!("{count} inputs, {grown} KiB more than before");
    assert!(grown < 4096, "memory grew by {grown} KiB");
}
