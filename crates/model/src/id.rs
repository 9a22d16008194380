//! Identifiers: 80 random bits, written as 16 characters of base 32.
//!
//! 80 bits make a collision among a billion ids less likely than 1 in a
//! million, fit in ten bytes in every index, and are short enough to be read
//! aloud. The alphabet is Crockford's in lower case (no `i`, `l`, `o`, `u`).

use std::fmt;
use std::str::FromStr;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error("an id has 16 characters, {0:?} has {1}")]
    Length(String, usize),
    #[error(
        "character {1:?} in id {0:?} is not one of {alphabet}",
        alphabet = "0-9 a-z without i l o u"
    )]
    Character(String, char),
}

fn encode(bytes: &[u8; 10]) -> [u8; 16] {
    let mut wide = [0u8; 16];
    wide[6..].copy_from_slice(bytes);
    let number = u128::from_be_bytes(wide);
    let mut out = [0u8; 16];
    for (at, slot) in out.iter_mut().enumerate() {
        let five = (number >> (75 - 5 * at)) & 31;
        *slot = ALPHABET[five as usize & 31];
    }
    out
}

fn decode(text: &str) -> Result<[u8; 10], IdError> {
    if text.len() != 16 {
        return Err(IdError::Length(text.into(), text.chars().count()));
    }
    let mut number = 0u128;
    for found in text.chars() {
        let five = ALPHABET.iter().position(|c| char::from(*c) == found);
        let Some(five) = five else {
            return Err(IdError::Character(text.into(), found));
        };
        number = number << 5 | five as u128;
    }
    let mut bytes = [0u8; 10];
    bytes.copy_from_slice(&number.to_be_bytes()[6..]);
    Ok(bytes)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 10]);

        impl $name {
            /// Smallest and largest id, for range queries.
            pub const MIN: Self = Self([0; 10]);
            pub const MAX: Self = Self([255; 10]);

            pub const fn from_bytes(bytes: [u8; 10]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 10] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let text = encode(&self.0);
                f.pad(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                decode(text).map(Self)
            }
        }
    )*};
}

ids! {
    /// One cluster, for life: a backup restored elsewhere keeps it.
    ClusterId
    /// One node, from joining to leaving.
    NodeId
    /// One network, whatever it is called.
    NetworkId
    /// One policy, whatever it is called.
    PolicyId
    /// One service, whatever it is called.
    ServiceId
    /// One task: a slot of a service at a revision on a node. Restarts in place keep it.
    TaskId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_and_order() {
        let low = TaskId::from_bytes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        let high = TaskId::from_bytes([255; 10]);
        assert_eq!(low.to_string().parse::<TaskId>(), Ok(low));
        assert_eq!(high.to_string(), "zzzzzzzzzzzzzzzz");
        assert_eq!(high.to_string().parse::<TaskId>(), Ok(high));
        assert!(low < high && low.to_string() < high.to_string());
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let short = "abc".parse::<TaskId>().unwrap_err();
        assert_eq!(short.to_string(), "an id has 16 characters, \"abc\" has 3");
        let letter = "0000000000000u00".parse::<TaskId>().unwrap_err();
        assert!(letter.to_string().contains("'u'"));
        assert!("ééééé000000".parse::<TaskId>().is_err());
        assert!("éééééééé".parse::<TaskId>().is_err());
    }
}
