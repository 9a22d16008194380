//! Secrets as text: base 32 of RFC 4648 without padding.
//!
//! Survives copying, a terminal's double click, and paper. Buffers that held a
//! secret are wiped.

use data_encoding::{BASE32_NOPAD, DecodeKind};
use zeroize::Zeroizing;

/// Characters that `bytes` bytes take.
pub(crate) const fn text_len(bytes: usize) -> usize {
    (bytes * 8).div_ceil(5)
}

/// Why a text is not the base 32 of so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Base32Error {
    /// Counted in characters; what is wanted is known to the caller.
    Length(usize),
    /// Position from 0, in characters. The character itself may be part of a secret.
    Character(usize),
}

/// Appends the base 32 of `bytes`, in lower case.
pub(crate) fn push_base32(out: &mut String, bytes: &[u8]) {
    let mut text = Zeroizing::new(vec![0; text_len(bytes.len())]);
    BASE32_NOPAD.encode_mut(bytes, &mut text);
    out.extend(text.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
}

/// Reads the base 32 of `N` bytes; `a`–`z` and `2`–`7`.
pub(crate) fn from_base32<const N: usize>(text: &str) -> Result<Zeroizing<[u8; N]>, Base32Error> {
    let odd = |c: char| !matches!(c, 'a'..='z' | '2'..='7');
    if let Some(at) = text.chars().position(odd) {
        return Err(Base32Error::Character(at));
    }
    if text.len() != text_len(N) {
        return Err(Base32Error::Length(text.len()));
    }
    let upper = Zeroizing::new(text.to_ascii_uppercase());
    let mut out = Zeroizing::new([0; N]);
    match BASE32_NOPAD.decode_mut(upper.as_bytes(), out.as_mut_slice()) {
        Ok(_) => Ok(out),
        Err(partial) => Err(match partial.error.kind {
            // The last character carries bits beyond the last byte.
            DecodeKind::Trailing | DecodeKind::Symbol => {
                Base32Error::Character(partial.error.position)
            }
            DecodeKind::Length | DecodeKind::Padding => Base32Error::Length(text.len()),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_survive() {
        // RFC 4648, section 10.
        let mut text = String::new();
        push_base32(&mut text, b"foobar");
        assert_eq!(text, "mzxw6ytboi");
        let bytes = |text| from_base32::<6>(text).map(|bytes| *bytes);
        assert_eq!(bytes(&text), Ok(*b"foobar"));
        assert_eq!(bytes("mzxw6ytbo"), Err(Base32Error::Length(9)));
        assert_eq!(bytes("mzxw6ytboj"), Err(Base32Error::Character(9)));
        assert_eq!(bytes("mzx16ytboi"), Err(Base32Error::Character(3)));
    }
}
