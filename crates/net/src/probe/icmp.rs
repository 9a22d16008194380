//! ICMP messages that are asked with, and what comes back.
//!
//! Pure. RFC 792 and RFC 4443: echo of both families, timestamps of IPv4. The kernel adds the IP
//! header, and of IPv6 the checksum.

use std::net::{IpAddr, Ipv4Addr};

/// Milliseconds of a day: what timestamps count, from midnight UTC.
pub(super) const DAY_MS: i64 = 86_400_000;
/// Of an ICMP header with identifier and sequence.
const HEADER_LEN: usize = 8;
/// Three timestamps behind it.
const TIMES_LEN: usize = HEADER_LEN + 12;
const IPV4_HEADER_LEN: usize = 20;
const IPV6_HEADER_LEN: usize = 40;

const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST: u8 = 8;
const TIMES_REQUEST: u8 = 13;
const TIMES_REPLY: u8 = 14;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;

/// What tells a question from others, in network order on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    /// Of whoever asks.
    pub(super) id: u16,
    /// Of the question.
    pub(super) number: u16,
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    /// Somebody asks this host.
    Request,
    Reply(Mark),
    /// When the question was sent, arrived, and was answered, in milliseconds of the day.
    Times(Mark, [u32; 3]),
}

/// An echo whose packet has `bytes` with its IP header, at least as many as headers take.
pub(super) fn echo(is_v4: bool, mark: Mark, bytes: u16) -> Vec<u8> {
    let head = if is_v4 { IPV4_HEADER_LEN } else { IPV6_HEADER_LEN };
    let len = usize::from(bytes).saturating_sub(head).max(HEADER_LEN);
    let mut message = vec![0; len];
    message[0] = if is_v4 { ECHO_REQUEST } else { ECHO_REQUEST6 };
    finish(message, is_v4, mark)
}

/// A question for the time; `now` is that of the day.
pub(super) fn times(mark: Mark, now: u32) -> Vec<u8> {
    let mut message = vec![0; TIMES_LEN];
    message[0] = TIMES_REQUEST;
    message[HEADER_LEN..HEADER_LEN + 4].copy_from_slice(&now.to_be_bytes());
    finish(message, true, mark)
}

fn finish(mut message: Vec<u8>, is_v4: bool, mark: Mark) -> Vec<u8> {
    message[4..6].copy_from_slice(&mark.id.to_be_bytes());
    message[6..8].copy_from_slice(&mark.number.to_be_bytes());
    if is_v4 {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum = words.fold(0_u32, |sum, word| {
        let sum = sum + word;
        (sum & 0xffff) + (sum >> 16)
    });
    sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// What a raw socket of the family read; nothing if it is of no use here.
pub(super) fn read(is_v4: bool, bytes: &[u8]) -> Option<Heard> {
    // Of IPv4 the header comes along.
    let head = if is_v4 { usize::from(bytes.first()? & 0xf) * 4 } else { 0 };
    let message = bytes.get(head..)?;
    let half = |at: usize| Some(u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_be_bytes(message.get(at..at + 4)?.try_into().ok()?));
    let mark = || Some(Mark { id: half(4)?, number: half(6)? });
    match (is_v4, *message.first()?) {
        (true, ECHO_REQUEST) | (false, ECHO_REQUEST6) => Some(Heard::Request),
        (true, ECHO_REPLY) | (false, ECHO_REPLY6) => mark().map(Heard::Reply),
        (true, TIMES_REPLY) => {
            let times = [word(HEADER_LEN)?, word(HEADER_LEN + 4)?, word(HEADER_LEN + 8)?];
            mark().map(|mark| Heard::Times(mark, times))
        }
        _ => None,
    }
}

/// How far the other clock is ahead, in milliseconds, if both are less than half a day apart.
/// `back` is when the answer was here. Nothing if the other tells no time of the day.
pub(super) fn ahead_ms([sent, arrived, answered]: [u32; 3], back: u32) -> Option<i64> {
    // The leading bit marks what is no time of the day (RFC 792).
    if [sent, arrived, answered, back].iter().any(|time| i64::from(*time) >= DAY_MS) {
        return None;
    }
    let wrap = |ms: i64| (ms + DAY_MS / 2).rem_euclid(DAY_MS) - DAY_MS / 2;
    let there = wrap(i64::from(arrived) - i64::from(sent));
    let home = wrap(i64::from(answered) - i64::from(back));
    Some(wrap((there + home) / 2))
}

/// Where a message comes from, as one of its family.
pub(super) fn canonical(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(address, |v4: Ipv4Addr| v4.into()),
        IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Mark = Mark { id: 0x1234, number: 0xfffe };

    fn with_header(message: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; IPV4_HEADER_LEN];
        packet[0] = 0x45;
        packet.extend(message);
        packet
    }

    #[test]
    fn what_is_asked_is_as_long_as_told_and_comes_back() {
        for (bytes, expected) in [(0, 8), (28, 8), (29, 9), (1420, 1400)] {
            let message = echo(true, MARK, bytes);
            assert_eq!((message.len(), checksum(&message)), (expected, 0), "{bytes}");
        }
        assert_eq!(echo(false, MARK, 1280).len(), 1240);
        let mut answer = with_header(&echo(true, MARK, 60));
        assert_eq!(read(true, &answer), Some(Heard::Request));
        answer[IPV4_HEADER_LEN] = ECHO_REPLY;
        assert_eq!(read(true, &answer), Some(Heard::Reply(MARK)));
        let mut answer = echo(false, MARK, 60);
        assert_eq!(read(false, &answer), Some(Heard::Request));
        answer[0] = ECHO_REPLY6;
        assert_eq!(read(false, &answer), Some(Heard::Reply(MARK)));
        let mut answer = with_header(&times(MARK, 7));
        assert_eq!(read(true, &answer), None);
        answer[IPV4_HEADER_LEN] = TIMES_REPLY;
        assert_eq!(read(true, &answer), Some(Heard::Times(MARK, [7, 0, 0])));
    }

    #[test]
    fn anything_is_read() {
        for len in 0..40 {
            for first in 0..=255 {
                let bytes = vec![first; len];
                let _ = (read(true, &bytes), read(false, &bytes));
            }
        }
        assert_eq!(checksum(&[0xff; 5]), 0x00ff);
    }

    /// Of the day: sent, arrived, answered; then when it was back.
    #[track_caller]
    fn check(sent: u32, arrived: u32, answered: u32, back: u32, expected: Option<i64>) {
        assert_eq!(ahead_ms([sent, arrived, answered], back), expected);
    }

    #[test]
    fn clocks_are_compared_over_midnight() {
        let day = 86_400_000;
        check(1000, 1005, 1005, 1010, Some(0));
        check(1000, 4005, 4005, 1010, Some(3000));
        check(4000, 1005, 1005, 4010, Some(-3000));
        check(day - 5, 2995, 2995, 5, Some(2995));
        check(5, day - 2995, day - 2995, 15, Some(-3005));
        check(0, 0x8000_0001, 0x8000_0001, 0, None);
    }
}
