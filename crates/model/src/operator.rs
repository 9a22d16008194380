//! People and programs that may call from afar, by token or by certificate.

use std::fmt;
use std::str::FromStr;

use crate::quantity::Time;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operator {
    pub name: OperatorName,
    pub role: OperatorRole,
    /// SHA-256 of the token.
    pub token_hash: Option<[u8; 32]>,
    /// SHA-256 of the public key of the certificate.
    pub key_hash: Option<[u8; 32]>,
    /// Not let in from then on.
    pub expires: Option<Time>,
    pub created: Time,
    /// Revision of the last change.
    pub revision: u64,
}

/// What an operator may do; each includes those below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorRole {
    /// Looks.
    Read,
    /// Services.
    Deploy,
    /// Everything.
    Admin,
}

impl OperatorRole {
    pub const ALL: [Self; 3] = [Self::Read, Self::Deploy, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Deploy => "deploy",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for OperatorRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Why a text is not a role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role; allowed are admin, deploy and read")]
pub struct RoleError(String);

impl FromStr for OperatorRole {
    type Err = RoleError;

    fn from_str(text: &str) -> Result<Self, RoleError> {
        let role = Self::ALL.into_iter().find(|role| role.as_str() == text);
        role.ok_or_else(|| RoleError(text.to_owned()))
    }
}

/// Why a text cannot be an operator's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OperatorNameError {
    #[error("an operator's name cannot be empty")]
    Empty,
    #[error("operator {name:?} has {len} characters, at most {max} are allowed", max = OperatorName::LEN_MAX)]
    TooLong { name: String, len: usize },
    #[error(
        "operator {name:?} has {found:?} at position {at}; allowed are a-z, 0-9, '-', '_' and '.', the first a letter or digit"
    )]
    Character { name: String, found: char, at: usize },
}

/// E.g. `anna` or `ci.shop`. Held in place, so that what names an object is copied like a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OperatorName {
    /// Filled up with zeros, which no name has.
    bytes: [u8; Self::LEN_MAX],
}

impl OperatorName {
    pub const LEN_MAX: usize = 32;

    pub fn as_str(&self) -> &str {
        let len = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(Self::LEN_MAX);
        // Nothing but ASCII gets in.
        std::str::from_utf8(&self.bytes[..len]).unwrap_or_default()
    }
}

impl FromStr for OperatorName {
    type Err = OperatorNameError;

    fn from_str(text: &str) -> Result<Self, OperatorNameError> {
        if text.is_empty() {
            return Err(OperatorNameError::Empty);
        }
        let len = text.chars().count();
        if len > Self::LEN_MAX {
            return Err(OperatorNameError::TooLong { name: text.into(), len });
        }
        for (at, found) in text.chars().enumerate() {
            let plain = found.is_ascii_lowercase() || found.is_ascii_digit();
            if !(plain || at > 0 && matches!(found, '-' | '_' | '.')) {
                return Err(OperatorNameError::Character { name: text.into(), found, at: at + 1 });
            }
        }
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { bytes })
    }
}

impl fmt::Display for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match text.parse::<OperatorName>() {
            Ok(name) => name.to_string(),
            Err(error) => format!("error: {error}"),
        };
        assert!(got.starts_with(expected), "{text:?} gave {got}");
    }

    #[test]
    fn names() {
        check("anna", "anna");
        check("ci.shop-2_b", "ci.shop-2_b");
        check("", "error: an operator's name cannot be empty");
        check("Anna", "error: operator \"Anna\" has 'A' at position 1");
        check(".anna", "error: operator \".anna\" has '.' at position 1");
        check("aé", "error: operator \"aé\" has 'é' at position 2");
        check(&"a".repeat(32), &"a".repeat(32));
        check(&"a".repeat(33), "error: operator");
        let (short, long): (OperatorName, OperatorName) =
            ("ab".parse().unwrap(), "ab-".parse().unwrap());
        assert!(short < long);
    }

    #[test]
    fn roles() {
        for role in OperatorRole::ALL {
            assert_eq!(role.to_string().parse(), Ok(role));
        }
        assert!(OperatorRole::Admin > OperatorRole::Read);
        let error = "root".parse::<OperatorRole>().unwrap_err();
        assert_eq!(error.to_string(), "\"root\" is not a role; allowed are admin, deploy and read");
    }
}
