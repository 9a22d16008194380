//! The Internet checksum (RFC 1071).
//!
//! Sums are in the machine's byte order, which the ones' complement allows (section 2 (B));
//! [`store`] puts them on the wire as they are.

/// Adds `data` to `sum`; only the last piece of a sum may be of odd length.
///
/// Eight sums side by side become vector instructions: some 20 GB/s where bytes are in the cache.
pub(crate) fn add(sum: u64, data: &[u8]) -> u64 {
    let mut lanes = [0_u64; 8];
    let mut blocks = data.chunks_exact(32);
    for block in &mut blocks {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        }
    }
    let mut sum = sum;
    // A lane stays far from overflow: packets have at most 64 KiB.
    for lane in lanes {
        sum = carry(sum, lane);
    }
    let mut pairs = blocks.remainder().chunks_exact(2);
    for pair in &mut pairs {
        sum = carry(sum, u64::from(u16::from_ne_bytes([pair[0], pair[1]])));
    }
    if let [last] = pairs.remainder() {
        sum = carry(sum, u64::from(u16::from_ne_bytes([*last, 0])));
    }
    sum
}

fn carry(sum: u64, more: u64) -> u64 {
    let (sum, over) = sum.overflowing_add(more);
    sum + u64::from(over)
}

pub(crate) fn fold(sum: u64) -> u16 {
    let mut sum = sum;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop ends below 2^16.
    u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The sum over the pseudo header of TCP and UDP (RFC 9293 section 3.1, RFC 8200 section 8.1).
/// `addresses` are source and destination as they are in the IP header.
pub(crate) fn pseudo(addresses: &[u8], protocol: u8, len: usize) -> u64 {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let sum = add(0, addresses);
    let sum = add(sum, &len.to_be_bytes());
    add(sum, &[0, protocol])
}

/// Writes a folded sum, complemented already or not, to two bytes.
pub(crate) fn store(field: &mut [u8], sum: u16) {
    field.copy_from_slice(&sum.to_ne_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// By the book: 16 bit words in network order.
    fn slow(data: &[u8]) -> u16 {
        let mut sum = 0_u64;
        for pair in data.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn example_of_rfc_1071() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        let mut field = [0; 2];
        store(&mut field, fold(add(0, &data)));
        assert_eq!(field, [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn equals_the_slow_sum(data in prop::collection::vec(any::<u8>(), 0..300), cut in 0_usize..300) {
            let cut = cut.min(data.len()) & !1;
            let sum = fold(add(add(0, &data[..cut]), &data[cut..]));
            prop_assert_eq!(u16::from_be_bytes(sum.to_ne_bytes()), slow(&data));
        }
    }
}
