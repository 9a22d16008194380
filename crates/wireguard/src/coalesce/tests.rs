//! Runs of packets in, writes out, and back through the kernel's cut.

use proptest::prelude::*;

use super::*;
use crate::packet::samples::{seal, tcp};
use crate::segment::Segments;

/// Each write as virtio-net header and packet.
fn writes(packets: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut arena = Vec::new();
    let mut coalescer = Coalescer::default();
    let mut ranges = Vec::new();
    for packet in packets {
        ranges.push(arena.len()..arena.len() + packet.len());
        arena.extend_from_slice(packet);
    }
    for range in ranges {
        coalescer.push(&arena, range);
    }
    let mut writes = Vec::new();
    coalescer.drain(&mut arena, |vnet, head, tails| {
        let mut write = [&vnet[..], head].concat();
        for tail in tails {
            write.extend_from_slice(tail);
        }
        writes.push(write);
    });
    coalescer.drain(&mut arena, |_, _, _| panic!("a batch is handed out once"));
    writes
}

/// What the kernel would make of a write where it has to cut it again.
fn cut(write: &[u8]) -> Vec<Vec<u8>> {
    let mut write = write.to_vec();
    let mut segments = Segments::new(&mut write).unwrap();
    let mut packets = Vec::new();
    while let Some(segment) = segments.next() {
        packets.push(segment.to_vec());
    }
    packets
}

/// Packets in a notation: stream, sequence / 10, length, then flags: `p`ush, `f`in, `s`yn,
/// `c`ongestion, `w`indow other, `t`ime to live other, `x` wrong checksum, `o` not TCP.
/// Writes are their lengths of payload, merged ones with `+`.
#[track_caller]
fn check(packets: &str, expected: &str) {
    for v6 in [false, true] {
        let made: Vec<Vec<u8>> = packets.split(' ').map(|word| packet(v6, word)).collect();
        let header = if v6 { 60 } else { 40 };
        let seen: Vec<String> = writes(&made)
            .iter()
            .map(|write| {
                let lens: Vec<String> =
                    cut(write).iter().map(|p| (p.len() - header).to_string()).collect();
                format!(
                    "{}:{}",
                    char::from(b'a' + write[VNET_LEN + header - 20 + 1]),
                    lens.join("+")
                )
            })
            .collect();
        assert_eq!(seen.join(" "), expected, "v6 {v6}");
    }
}

fn packet(v6: bool, word: &str) -> Vec<u8> {
    let mut fields = word.split('.');
    let stream = fields.next().unwrap().as_bytes()[0] - b'a';
    let seq = fields.next().unwrap().parse::<u32>().unwrap().wrapping_mul(10);
    let payload = vec![stream; fields.next().unwrap().parse().unwrap()];
    let mut packet = tcp(v6, (stream, 9), seq, flag::ACK, &payload);
    let at = if v6 { 40 } else { 20 };
    let mut is_wrong = false;
    for letter in fields.next().unwrap_or_default().bytes() {
        match letter {
            b'p' => packet[at + 13] |= flag::PSH,
            b'f' => packet[at + 13] |= flag::FIN,
            b's' => packet[at + 13] |= 0x02,
            b'c' => packet[at + 13] |= 0x40,
            b'w' => packet[at + 15] = 1,
            b't' => packet[if v6 { 7 } else { 8 }] = 3,
            b'x' => is_wrong = true,
            b'o' => packet[if v6 { 6 } else { 9 }] = 17,
            other => panic!("{other}"),
        }
        if letter != b'o' {
            seal(&mut packet);
        }
    }
    if is_wrong {
        packet[at + 16] ^= 1;
    }
    packet
}

#[test]
fn what_follows_is_merged() {
    check("a.0.100 a.10.100 a.20.100", "a:100+100+100");
    check("a.0.100 b.0.50 a.10.100 b.5.50", "a:100+100 b:50+50");
    check("a.0.100 a.10.30 a.13.100", "a:100+30 a:100");
    check("a.0.100 a.10.100.p a.20.100", "a:100+100 a:100");
    check("a.0.50 a.5.100", "a:50 a:100");
}

#[test]
fn gaps_and_other_headers_end_a_run() {
    check("a.0.100 a.20.100 a.30.100", "a:100 a:100+100");
    check("a.0.100 a.0.100", "a:100 a:100");
    check("a.0.100 a.10.100.f", "a:100 a:100");
    check("a.0.0.s a.0.100 a.10.100", "a:0 a:100+100");
    check("a.0.100 a.10.100.c", "a:100 a:100");
    check("a.0.100 a.10.100.w a.20.100", "a:100 a:100 a:100");
    check("a.0.100 a.10.100.t", "a:100 a:100");
    check("a.0.100.p a.10.100", "a:100 a:100");
    check("a.0.100 a.10.0 a.10.100", "a:100 a:0 a:100");
    check("a.0.100 a.10.100.o a.10.100", "a:100 a:100 a:100");
    check("a.0.100 b.10.100.o a.10.100", "a:100+100 b:100");
}

#[test]
fn wrong_checksums_are_not_hidden() {
    check("a.0.100 a.10.100.x a.20.100", "a:100 a:100 a:100");
    check("a.0.100.x a.10.100 a.20.100", "a:100 a:100+100");
    let bad = packet(false, "a.0.100.x");
    assert_eq!(writes(std::slice::from_ref(&bad))[0][VNET_LEN..], bad);
}

#[test]
fn what_is_merged_cuts_into_the_same_packets() {
    for v6 in [false, true] {
        let mut packets: Vec<Vec<u8>> =
            (0..40).map(|n| packet(v6, &format!("a.{}.1380", n * 138))).collect();
        packets.push(packet(v6, &format!("a.{}.7.p", 40 * 138)));
        if !v6 {
            // The kernel numbers them so when it cuts.
            for (number, packet) in packets.iter_mut().enumerate() {
                packet[4..6].copy_from_slice(&u16::try_from(number).unwrap().to_be_bytes());
                seal(packet);
            }
        }
        let writes = writes(&packets);
        assert_eq!(writes.len(), 1);
        assert_eq!(cut(&writes[0]), packets);
    }
}

#[test]
fn limits() {
    // A packet of 64 KiB, then one that no longer fits.
    let long = "a.0.32000 a.3200.32000 a.6400.2000 a.6600.2000";
    check(long, "a:32000+32000 a:2000+2000");
    let small: Vec<String> = (0..70).map(|n| format!("a.{n}.10")).collect();
    let full = ["10"; PIECES_MAX].join("+");
    check(&small.join(" "), &format!("a:{full} a:{}", ["10"; 70 - PIECES_MAX].join("+")));
    // The first stream is no longer open when it goes on.
    let mut many: Vec<String> =
        (b'a'..=b'q').map(|stream| format!("{}.0.10", char::from(stream))).collect();
    many.push("a.1.10".into());
    let mut expected: Vec<String> =
        (b'a'..=b'q').map(|stream| format!("{}:10", char::from(stream))).collect();
    expected.push("a:10".into());
    assert_eq!(many.len(), OPEN_MAX + 2);
    check(&many.join(" "), &expected.join(" "));
}

proptest! {
    /// Whatever arrives, each stream's bytes come out once and in the order in which they came.
    #[test]
    fn order_within_a_stream_is_kept(
        steps in prop::collection::vec((0_u8..3, 1_usize..60, 0_u8..8, 0_u32..4), 1..60),
        v6 in any::<bool>(),
    ) {
        let mut next = [0_u32; 3];
        let packets: Vec<Vec<u8>> = steps
            .iter()
            .map(|&(stream, len, flags, gap)| {
                let seq = next[usize::from(stream)] + if gap == 3 { 5 } else { 0 };
                next[usize::from(stream)] = seq + u32::try_from(len).unwrap();
                let flags = flag::ACK | if flags == 7 { flag::PSH } else { 0 };
                tcp(v6, (stream, 9), seq, flags, &vec![u8::try_from(len).unwrap(); len])
            })
            .collect();
        let header = if v6 { 60 } else { 40 };
        let tell = |packet: &[u8]| (packet[header - 19], Tcp::parse(packet).unwrap().seq(packet), packet[header..].to_vec());
        let out: Vec<_> = writes(&packets).iter().flat_map(|write| cut(write)).map(|p| tell(&p)).collect();
        for stream in 0..3_u8 {
            let of = |all: &[(u8, u32, Vec<u8>)]| all.iter().filter(|p| p.0 == stream).cloned().collect::<Vec<_>>();
            let came: Vec<_> = packets.iter().map(|p| tell(p)).collect();
            prop_assert_eq!(of(&out), of(&came));
        }
    }

    #[test]
    fn any_bytes_are_passed_on(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..90), 1..8), firsts in prop::collection::vec(0_u8..3, 8)) {
        let mut packets = packets;
        for (packet, first) in packets.iter_mut().zip(firsts) {
            packet[0] = [0x45, 0x60, packet[0]][usize::from(first)];
        }
        let out: Vec<Vec<u8>> = writes(&packets).iter().map(|write| write[VNET_LEN..].to_vec()).collect();
        prop_assert_eq!(out, packets);
    }
}
