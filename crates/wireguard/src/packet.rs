//! Headers of IP and TCP, as far as the engine reads them.
//!
//! Pure, and total: any bytes are answered, none panic.

use std::net::IpAddr;
use std::ops::Range;

pub(crate) const TCP: u8 = 6;
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const TCP_LEN: usize = 20;

/// TCP's flags (RFC 9293 section 3.1), the byte at offset 13.
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const ACK: u8 = 0x10;
    pub(crate) const CWR: u8 = 0x80;
}

/// Where a packet goes.
pub(crate) fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 if packet.len() >= V4_LEN => Some(v4(packet, 16)),
        6 if packet.len() >= V6_LEN => Some(v6(packet, 24)),
        _ => None,
    }
}

fn v4(packet: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 4];
    octets.copy_from_slice(&packet[at..at + 4]);
    octets.into()
}

fn v6(packet: &[u8], at: usize) -> IpAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&packet[at..at + 16]);
    octets.into()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Where things are in a TCP packet without IP options, extension headers or fragments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tcp {
    pub(crate) v6: bool,
    /// Where TCP's header begins.
    pub(crate) transport: usize,
    /// Where the payload begins.
    pub(crate) header_len: usize,
}

impl Tcp {
    /// `None` for everything else, and for packets whose lengths do not agree.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        let (v6, transport) = match packet.first()? {
            0x45 if packet.len() >= V4_LEN + TCP_LEN => {
                // Neither "more fragments" nor an offset.
                let whole = u16_at(packet, 6) & 0x3fff == 0;
                let fits = usize::from(u16_at(packet, 2)) == packet.len();
                (whole && fits && packet[9] == TCP).then_some((false, V4_LEN))?
            }
            first if first >> 4 == 6 && packet.len() >= V6_LEN + TCP_LEN => {
                let fits = usize::from(u16_at(packet, 4)) + V6_LEN == packet.len();
                (fits && packet[6] == TCP).then_some((true, V6_LEN))?
            }
            _ => return None,
        };
        let header_len = transport + usize::from(packet[transport + 12] >> 4) * 4;
        let fits = header_len >= transport + TCP_LEN && header_len <= packet.len();
        fits.then_some(Self { v6, transport, header_len })
    }

    /// Source and destination address.
    pub(crate) fn addresses(self) -> Range<usize> {
        if self.v6 { 8..40 } else { 12..20 }
    }

    /// Both ports.
    pub(crate) fn ports(self) -> Range<usize> {
        self.transport..self.transport + 4
    }

    pub(crate) fn seq(self, packet: &[u8]) -> u32 {
        u32_at(packet, self.transport + 4)
    }

    pub(crate) fn flags(self, packet: &[u8]) -> u8 {
        packet[self.transport + 13]
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Packets for tests.

    use crate::checksum;

    use super::Tcp;

    /// A packet of TCP with right checksums; the last byte of both addresses and ports is given.
    pub(crate) fn tcp(v6: bool, ends: (u8, u8), seq: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
        let transport = if v6 { 40 } else { 20 };
        let len = transport + 20 + payload.len();
        let mut packet = vec![0; len];
        let header = if v6 { 40 } else { 0 };
        if v6 {
            packet[0] = 0x60;
            packet[4..6].copy_from_slice(&u16::try_from(len - header).unwrap().to_be_bytes());
            packet[6] = super::TCP;
            packet[7] = 64;
            (packet[8], packet[24]) = (0xfd, 0xfd);
            (packet[23], packet[39]) = ends;
        } else {
            packet[0] = 0x45;
            packet[2..4].copy_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
            packet[6] = 0x40;
            packet[8] = 64;
            packet[9] = super::TCP;
            (packet[12], packet[16]) = (10, 10);
            (packet[15], packet[19]) = ends;
        }
        (packet[transport + 1], packet[transport + 3]) = ends;
        packet[transport + 4..transport + 8].copy_from_slice(&seq.to_be_bytes());
        packet[transport + 12] = 5 << 4;
        packet[transport + 13] = flags;
        packet[transport + 14..transport + 16].copy_from_slice(&512_u16.to_be_bytes());
        packet[transport + 20..].copy_from_slice(payload);
        seal(&mut packet);
        packet
    }

    /// Sets both checksums.
    pub(crate) fn seal(packet: &mut [u8]) {
        let tcp = Tcp::parse(packet).unwrap();
        if !tcp.v6 {
            packet[10..12].fill(0);
            let sum = !checksum::fold(checksum::add(0, &packet[..20]));
            checksum::store(&mut packet[10..12], sum);
        }
        let field = tcp.transport + 16..tcp.transport + 18;
        packet[field.clone()].fill(0);
        let sum = !checksum::fold(sum(tcp, packet));
        checksum::store(&mut packet[field], sum);
    }

    fn sum(tcp: Tcp, packet: &[u8]) -> u64 {
        let len = packet.len() - tcp.transport;
        let pseudo = checksum::pseudo(&packet[tcp.addresses()], super::TCP, len);
        checksum::add(pseudo, &packet[tcp.transport..])
    }

    /// Whether both checksums are right.
    pub(crate) fn is_sealed(packet: &[u8]) -> bool {
        let tcp = Tcp::parse(packet).unwrap();
        let ip = tcp.v6 || checksum::fold(checksum::add(0, &packet[..20])) == 0xffff;
        ip && checksum::fold(sum(tcp, packet)) == 0xffff
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn destinations() {
        let v4 = samples::tcp(false, (1, 2), 0, flag::ACK, b"");
        assert_eq!(destination(&v4), Some("10.0.0.2".parse().unwrap()));
        let v6 = samples::tcp(true, (1, 2), 0, flag::ACK, b"");
        assert_eq!(destination(&v6), Some("fd00::2".parse().unwrap()));
        for len in 0..20 {
            assert_eq!(destination(&v4[..len]), None);
        }
        for len in 0..40 {
            assert_eq!(destination(&v6[..len]), None);
        }
        assert_eq!(destination(&[0x50; 64]), None);
    }

    #[test]
    fn only_plain_tcp_is_taken_apart() {
        let good = samples::tcp(false, (1, 2), 0, flag::ACK, b"hello");
        assert_eq!(Tcp::parse(&good), Some(Tcp { v6: false, transport: 20, header_len: 40 }));
        let with = |at: usize, value: u8| {
            let mut packet = good.clone();
            packet[at] = value;
            Tcp::parse(&packet)
        };
        assert_eq!(with(0, 0x46), None, "IP options");
        assert_eq!(with(6, 0x20), None, "a fragment with more to come");
        assert_eq!(with(7, 1), None, "a later fragment");
        assert_eq!(with(9, 17), None, "UDP");
        assert_eq!(with(3, 44), None, "another length");
        assert_eq!(with(32, 4 << 4), None, "a header shorter than TCP's");
        assert_eq!(with(32, 15 << 4), None, "a header longer than the packet");
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 0_u8..3) {
            if let Some(first) = bytes.first_mut() {
                *first = [0x45, 0x60, *first][usize::from(kind)];
            }
            let _ = destination(&bytes);
            if let Some(tcp) = Tcp::parse(&bytes) {
                prop_assert!(tcp.header_len <= bytes.len());
            }
        }
    }
}
