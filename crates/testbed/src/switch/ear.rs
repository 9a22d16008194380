//! What was said over the wire, as somebody would have it who listens at the
//! switch: the bytes of each direction of each TCP connection, in their order.
//!
//! Pure. Frames are taken as they come: on a perfect line nothing is lost or
//! overtaken, and what comes twice is kept twice. Other than TCP over IPv4 and
//! IPv6 without extensions is kept frame by frame.

use std::collections::BTreeMap;

/// An image of some megabytes for a few machines, ten times over.
const BYTES_MAX: usize = 256 << 20;
const ETHERNET_LEN: usize = 14;
const IPV6_LEN: usize = 40;
const TCP: u8 = 6;

/// Addresses and ports of one direction, as they are in the frame.
type Direction = Vec<u8>;

#[derive(Debug, Default)]
pub(crate) struct Ear {
    heard: BTreeMap<Direction, Vec<u8>>,
    bytes: usize,
    missed: bool,
}

impl Ear {
    pub(crate) fn hear(&mut self, frame: &[u8]) {
        let (direction, payload) = parse(frame).unwrap_or_else(|| (Vec::new(), frame));
        if payload.is_empty() {
            return;
        }
        if self.bytes + payload.len() > BYTES_MAX {
            self.missed = true;
            return;
        }
        self.bytes += payload.len();
        self.heard.entry(direction).or_default().extend_from_slice(payload);
    }

    /// All of it; nothing if it was more than can be kept.
    pub(crate) fn heard(&self) -> Option<Vec<Vec<u8>>> {
        (!self.missed).then(|| self.heard.values().cloned().collect())
    }
}

/// Direction and payload of a TCP segment.
fn parse(frame: &[u8]) -> Option<(Direction, &[u8])> {
    let packet = frame.get(ETHERNET_LEN..)?;
    // Cards fill short frames up: the packet knows its own length.
    let length =
        |at: usize| Some(usize::from(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?])));
    let (addresses, segment) = match (packet.first()? >> 4, frame.get(12..ETHERNET_LEN)?) {
        (4, [0x08, 0]) if packet.get(9) == Some(&TCP) => {
            let header = usize::from(packet[0] & 15) * 4;
            (packet.get(12..20)?, packet.get(header..length(2)?)?)
        }
        (6, [0x86, 0xdd]) if packet.get(6) == Some(&TCP) => {
            (packet.get(8..40)?, packet.get(IPV6_LEN..IPV6_LEN + length(4)?)?)
        }
        _ => return None,
    };
    let header = usize::from(segment.get(12)? >> 4) * 4;
    Some(([addresses, segment.get(..4)?].concat(), segment.get(header..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment from port `from` to port 80, in a frame that is filled up.
    fn segment(from: u8, payload: &[u8]) -> Vec<u8> {
        let tcp =
            [&[0, from, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x18, 0, 0, 0, 0, 0, 0], payload];
        let tcp = tcp.concat();
        let length = u8::try_from(20 + tcp.len()).unwrap();
        let mut frame = vec![2; 12];
        frame.extend([8, 0, 0x45, 0, 0, length, 0, 0, 0, 0, 64, TCP, 0, 0]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend(tcp);
        frame.extend([0; 6]);
        frame
    }

    #[test]
    fn words_over_several_frames_are_whole() {
        let mut ear = Ear::default();
        for (from, payload) in [(1, &b"sec"[..]), (2, b"other"), (1, b""), (1, b"ret")] {
            ear.hear(&segment(from, payload));
        }
        ear.hear(&[0xff; 20]);
        ear.hear(&[]);
        assert_eq!(ear.heard().unwrap(), [vec![0xff; 20], b"secret".to_vec(), b"other".to_vec()]);
    }

    #[test]
    fn too_much_is_told() {
        let mut ear = Ear { bytes: BYTES_MAX, ..Ear::default() };
        assert!(ear.heard().is_some());
        ear.hear(&[0xff; 20]);
        assert_eq!(ear.heard(), None);
    }
}
