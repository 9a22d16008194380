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

impl NetworkName {
    /// Of the network that services are on which name none.
    pub const DEFAULT: &str = "default";
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
