//! One read of the TUN device into packets that fit the link (TSO in software).
//!
//! The kernel hands over TCP in pieces of up to 64 KiB behind a virtio-net header (virtio 1.2,
//! section 5.1.6) that says how to cut them and which checksum is still missing. Cutting is done
//! in place: each segment's header is written over the end of the segment before it, which has
//! been sent by then. So a payload is never copied here.
//!
//! Pure. Not here: the device (`tun`), the opposite direction (`coalesce`).

use crate::checksum;
use crate::packet::{Tcp, flag, u16_at, u32_at};

/// Length of the virtio-net header on a TUN device, without the count of merged buffers.
pub(crate) const VNET_LEN: usize = 10;
const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
/// Beside the type: the packet has congestion notification; cutting honours it anyway.
const GSO_ECN: u8 = 0x80;
/// Where TCP keeps its checksum.
const TCP_CHECKSUM: usize = 16;

/// The virtio-net header, fields in the machine's byte order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Vnet {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Vnet {
    /// Of segments that the kernel may take as one.
    pub(crate) fn merged(tcp: Tcp, payload_len: usize) -> Self {
        let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX);
        Self {
            flags: NEEDS_CHECKSUM,
            gso_type: if tcp.v6 { GSO_TCP6 } else { GSO_TCP4 },
            header_len: short(tcp.header_len),
            gso_size: short(payload_len),
            checksum_start: short(tcp.transport),
            checksum_offset: short(TCP_CHECKSUM),
        }
    }

    pub(crate) fn encode(self) -> [u8; VNET_LEN] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let short = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: short(2),
            gso_size: short(4),
            checksum_start: short(6),
            checksum_offset: short(8),
        }
    }
}

/// A read that cannot be what the kernel sends: it is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// The packets of one read, one after the other.
#[derive(Debug)]
pub(crate) struct Segments<'a> {
    bytes: &'a mut [u8],
    cut: Option<Cut>,
    /// Payload that has been handed out; without cuts, whether the packet was.
    done: usize,
    is_over: bool,
}

#[derive(Debug)]
struct Cut {
    tcp: Tcp,
    size: usize,
    /// Both headers as they came.
    header: [u8; HEADER_MAX],
}

/// 40 bytes of IPv6, 60 of TCP.
const HEADER_MAX: usize = 100;

impl<'a> Segments<'a> {
    /// Of a read with its virtio-net header.
    pub(crate) fn new(read: &'a mut [u8]) -> Result<Self, Malformed> {
        let (vnet, bytes) = read.split_at_mut_checked(VNET_LEN).ok_or(Malformed)?;
        let vnet = Vnet::decode(vnet);
        let cut = match vnet.gso_type & !GSO_ECN {
            GSO_NONE => {
                if vnet.flags & NEEDS_CHECKSUM != 0 {
                    complete(bytes, vnet)?;
                }
                None
            }
            GSO_TCP4 | GSO_TCP6 => {
                let tcp = Tcp::parse(bytes).ok_or(Malformed)?;
                let size = usize::from(vnet.gso_size);
                if size == 0 || tcp.header_len > HEADER_MAX {
                    return Err(Malformed);
                }
                let mut header = [0; HEADER_MAX];
                header[..tcp.header_len].copy_from_slice(&bytes[..tcp.header_len]);
                Some(Cut { tcp, size, header })
            }
            _ => return Err(Malformed),
        };
        if bytes.is_empty() {
            return Err(Malformed);
        }
        Ok(Self { bytes, cut, done: 0, is_over: false })
    }

    /// The packet as it was read: for its addresses, before the first [`Segments::next`].
    pub(crate) fn whole(&self) -> &[u8] {
        self.bytes
    }

    /// An upper bound of what is to come: number of packets, bytes of all together.
    pub(crate) fn bound(&self) -> (usize, usize) {
        let Some(cut) = &self.cut else { return (1, self.bytes.len()) };
        let payload = self.bytes.len() - cut.tcp.header_len;
        let count = payload.div_ceil(cut.size).max(1);
        (count, payload + count * cut.tcp.header_len)
    }

    /// The next packet; what the last call returned is overwritten.
    pub(crate) fn next(&mut self) -> Option<&mut [u8]> {
        if self.is_over {
            return None;
        }
        let Some(cut) = &self.cut else {
            self.is_over = true;
            return Some(&mut *self.bytes);
        };
        let payload = self.bytes.len() - cut.tcp.header_len;
        let start = self.done;
        let len = cut.size.min(payload - start);
        self.done += len;
        self.is_over = self.done == payload;
        let segment = &mut self.bytes[start..start + cut.tcp.header_len + len];
        segment[..cut.tcp.header_len].copy_from_slice(&cut.header[..cut.tcp.header_len]);
        finish(segment, cut, start, start == 0, self.is_over);
        Some(segment)
    }
}

/// Makes the header of the whole the header of one segment.
fn finish(segment: &mut [u8], cut: &Cut, start: usize, is_first: bool, is_last: bool) {
    let tcp = cut.tcp;
    let len = segment.len();
    // A read has less than 64 KiB, so all of these fit.
    let short = |len: usize| u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes();
    if tcp.v6 {
        segment[4..6].copy_from_slice(&short(len - tcp.transport));
    } else {
        segment[2..4].copy_from_slice(&short(len));
        let number = u16::try_from(start / cut.size).unwrap_or(u16::MAX);
        let id = u16_at(segment, 4).wrapping_add(number);
        segment[4..6].copy_from_slice(&id.to_be_bytes());
        segment[10..12].fill(0);
        let sum = !checksum::fold(checksum::add(0, &segment[..tcp.transport]));
        checksum::store(&mut segment[10..12], sum);
    }
    let seq =
        u32_at(segment, tcp.transport + 4).wrapping_add(u32::try_from(start).unwrap_or(u32::MAX));
    segment[tcp.transport + 4..tcp.transport + 8].copy_from_slice(&seq.to_be_bytes());
    let flags = &mut segment[tcp.transport + 13];
    if !is_last {
        *flags &= !(flag::FIN | flag::PSH);
    }
    if !is_first {
        *flags &= !flag::CWR;
    }
    let field = tcp.transport + TCP_CHECKSUM..tcp.transport + TCP_CHECKSUM + 2;
    segment[field.clone()].fill(0);
    let pseudo =
        checksum::pseudo(&segment[tcp.addresses()], crate::packet::TCP, len - tcp.transport);
    let sum = !checksum::fold(checksum::add(pseudo, &segment[tcp.transport..]));
    checksum::store(&mut segment[field], sum);
}

/// Adds the checksum that the kernel left to the device: its field holds the pseudo header's sum.
fn complete(packet: &mut [u8], vnet: Vnet) -> Result<(), Malformed> {
    let start = usize::from(vnet.checksum_start);
    let field = start + usize::from(vnet.checksum_offset);
    if field + 2 > packet.len() {
        return Err(Malformed);
    }
    let mut sum = !checksum::fold(checksum::add(0, &packet[start..]));
    // Zero means "no checksum" to UDP.
    if sum == 0 {
        sum = u16::MAX;
    }
    checksum::store(&mut packet[field..field + 2], sum);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::samples::{is_sealed, tcp};

    /// A read as the kernel would hand it over.
    fn read(vnet: Vnet, packet: &[u8]) -> Vec<u8> {
        [&vnet.encode()[..], packet].concat()
    }

    fn cut(vnet: Vnet, packet: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
        let mut read = read(vnet, packet);
        let mut segments = Segments::new(&mut read)?;
        let (count_max, bytes_max) = segments.bound();
        let mut packets = Vec::new();
        while let Some(segment) = segments.next() {
            packets.push(segment.to_vec());
        }
        assert!(packets.len() <= count_max);
        assert!(packets.iter().map(Vec::len).sum::<usize>() <= bytes_max);
        Ok(packets)
    }

    fn merged(packet: &[u8], size: usize) -> Vnet {
        Vnet::merged(Tcp::parse(packet).unwrap(), size)
    }

    #[test]
    fn headers_are_those_of_segments() {
        let payload: Vec<u8> = (0..=255).cycle().take(2500).collect();
        let flags = flag::ACK | flag::PSH | flag::FIN | flag::CWR;
        for v6 in [false, true] {
            let whole = tcp(v6, (1, 2), 0xffff_ff00, flags, &payload);
            let at = if v6 { 40 } else { 20 };
            let packets = cut(merged(&whole, 1000), &whole).unwrap();
            let seen: Vec<_> = packets
                .iter()
                .map(|p| (p.len() - at - 20, u32_at(p, at + 4), p[at + 13]))
                .collect();
            let end = flag::ACK | flag::PSH | flag::FIN;
            assert_eq!(
                seen,
                [
                    (1000, 0xffff_ff00, flag::ACK | flag::CWR),
                    (1000, 744, flag::ACK),
                    (500, 1744, end)
                ]
            );
            assert!(packets.iter().all(|packet| is_sealed(packet)));
            let joined: Vec<u8> = packets.iter().flat_map(|p| p[at + 20..].to_vec()).collect();
            assert_eq!(joined, payload);
        }
    }

    #[test]
    fn missing_checksums_are_added() {
        for v6 in [false, true] {
            let good = tcp(v6, (1, 2), 7, flag::ACK, b"hello");
            let parsed = Tcp::parse(&good).unwrap();
            let mut packet = good.clone();
            let field = parsed.transport + 16..parsed.transport + 18;
            let pseudo =
                checksum::pseudo(&good[parsed.addresses()], 6, good.len() - parsed.transport);
            checksum::store(&mut packet[field], checksum::fold(pseudo));
            let vnet = Vnet { gso_type: GSO_NONE, ..merged(&good, 0) };
            assert_eq!(cut(vnet, &packet).unwrap(), [good]);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let packet = tcp(false, (1, 2), 7, flag::ACK, b"hello");
        assert_eq!(cut(Vnet::default(), &packet).unwrap(), std::slice::from_ref(&packet));
        assert_eq!(cut(Vnet::default(), &[]), Err(Malformed));
        assert_eq!(cut(merged(&packet, 0), &packet), Err(Malformed), "cuts of no length");
        assert_eq!(cut(Vnet { gso_type: 3, ..Vnet::default() }, &packet), Err(Malformed));
        let beyond = Vnet { flags: NEEDS_CHECKSUM, checksum_start: 44, ..Vnet::default() };
        assert_eq!(cut(beyond, &packet), Err(Malformed), "a checksum outside of the packet");
        assert!(Segments::new(&mut [0; 9]).is_err());
    }

    proptest! {
        #[test]
        fn any_read_is_answered(mut bytes in prop::collection::vec(any::<u8>(), 0..400), gso in 0_u8..6, first in 0_u8..3) {
            if bytes.len() > VNET_LEN {
                bytes[1] = gso;
                bytes[VNET_LEN] = [0x45, 0x60, bytes[VNET_LEN]][usize::from(first)];
            }
            if let Ok(mut segments) = Segments::new(&mut bytes) {
                let (count_max, _) = segments.bound();
                let mut count = 0;
                while segments.next().is_some() {
                    count += 1;
                    prop_assert!(count <= count_max);
                }
            }
        }

        #[test]
        fn any_cut_keeps_the_stream(len in 1_usize..9000, size in 1_usize..2000, seq in any::<u32>(), v6 in any::<bool>()) {
            let payload: Vec<u8> = (0..=250).cycle().take(len).collect();
            let whole = tcp(v6, (1, 2), seq, flag::ACK | flag::PSH, &payload);
            let header = whole.len() - len;
            let mut stream = Vec::new();
            for packet in cut(merged(&whole, size), &whole).unwrap() {
                prop_assert!(is_sealed(&packet));
                let at = usize::try_from(u32_at(&packet, header - 16).wrapping_sub(seq)).unwrap();
                prop_assert_eq!(at, stream.len());
                stream.extend_from_slice(&packet[header..]);
            }
            prop_assert_eq!(stream, payload);
        }
    }
}
