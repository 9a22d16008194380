//! Names that people give: DNS labels, so that what they name resolves.

use std::fmt;
use std::str::FromStr;

/// RFC 1035 section 2.3.4.
const LABEL_MAX: usize = 63;

/// Why a text cannot be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("a name cannot be empty")]
    Empty,
    #[error("name {name:?} has {len} characters, at most {LABEL_MAX} are allowed")]
    TooLong { name: String, len: usize },
    #[error(
        "name {name:?} has {found:?} at position {at}; allowed are a-z, 0-9, '-' and '_', first and last a letter or digit"
    )]
    Character { name: String, found: char, at: usize },
}

fn check(text: &str) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty);
    }
    let len = text.chars().count();
    if len > LABEL_MAX {
        return Err(NameError::TooLong { name: text.into(), len });
    }
    for (at, found) in text.chars().enumerate() {
        let edge = at == 0 || at + 1 == len;
        let plain = found.is_ascii_lowercase() || found.is_ascii_digit();
        if !(plain || !edge && (found == '-' || found == '_')) {
            return Err(NameError::Character { name: text.into(), found, at: at + 1 });
        }
    }
    Ok(())
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            pub const LEN_MAX: usize = LABEL_MAX;

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text).map(|()| Self(text.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    )*};
}

names! {
    /// A DNS label naming a service, e.g. `web`. Underscores are allowed inside
    /// because Compose stacks use them (`shop_web`).
    ServiceName
    /// A label naming a network, e.g. `shop_default`.
    NetworkName
    /// A label naming a policy, e.g. `db-from-web`.
    PolicyName
    /// Another name of a service on one network.
    Alias
}

/// A port's name, e.g. `http`: what `_http._tcp.web` asks for. Small, and without memory of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortName {
    len: u8,
    /// Zeros behind the name.
    bytes: [u8; Self::LEN_MAX],
}

impl PortName {
    /// RFC 6335, section 5.1.
    pub const LEN_MAX: usize = 15;

    pub fn as_str(&self) -> &str {
        // Letters, digits and hyphens alone: see `from_str`.
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl FromStr for PortName {
    type Err = PortNameError;

    fn from_str(text: &str) -> Result<Self, PortNameError> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let is_one = (1..=Self::LEN_MAX).contains(&text.len())
            && text.bytes().all(plain)
            && text.bytes().any(|b| b.is_ascii_lowercase())
            && !text.starts_with('-')
            && !text.ends_with('-')
            && !text.contains("--");
        let len = u8::try_from(text.len()).ok().filter(|_| is_one);
        let len = len.ok_or_else(|| PortNameError(text.chars().take(40).collect()))?;
        let mut bytes = [0; Self::LEN_MAX];
        bytes[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { len, bytes })
    }
}

impl fmt::Display for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for PortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PortName({:?})", self.as_str())
    }
}

/// Why a text cannot be a port's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name for a port; allowed are at most 15 of a-z, 0-9 and '-', one letter at least, \
     no '-' first, last or twice in a row"
)]
pub struct PortNameError(String);

impl NetworkName {
    /// Of the network that services are on which name none.
    pub const DEFAULT: &str = "default";
    /// The node's own, which is none of the cluster's.
    pub const HOST: &str = "host";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match text.parse::<ServiceName>() {
            Ok(name) => name.to_string(),
            Err(error) => format!("error: {error}"),
        };
        assert!(got.starts_with(expected), "{text:?} gave {got}");
    }

    #[test]
    fn names_of_ports() {
        for text in ["http", "x", "a-1-b", "123456789012345", "http2", "0a"] {
            let parsed = text.parse::<PortName>();
            match text.bytes().any(|b| b.is_ascii_lowercase()) {
                true => assert_eq!(parsed.unwrap().as_str(), text),
                false => assert!(parsed.is_err(), "{text}"),
            }
        }
        for text in
            ["", "-a", "a-", "a--b", "HTTP", "_http", "a.b", "abcdefghijklmnop", "8080", "ä"]
        {
            let error = text.parse::<PortName>().unwrap_err();
            assert!(error.to_string().contains("no name for a port"), "{error}");
        }
    }

    #[test]
    fn names() {
        check("web", "web");
        check("shop_web-2", "shop_web-2");
        check("", "error: a name cannot be empty");
        check("Web", "error: name \"Web\" has 'W' at position 1");
        check("-web", "error: name \"-web\" has '-' at position 1");
        check("web-", "error: name \"web-\" has '-' at position 4");
        check("a.b", "error: name \"a.b\" has '.' at position 2");
        check(&"a".repeat(64), "error: name");
        check(&"a".repeat(63), "aaa");
    }
}
