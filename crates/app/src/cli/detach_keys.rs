//! Keys that leave what one is attached to as it is: `ctrl-p,ctrl-q`, in Docker's words.

use std::str::FromStr;

/// Keys of one sequence.
const KEYS_MAX: usize = 16;

/// A sequence of keys, as a terminal sends them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl DetachKeys {
    pub(crate) const DEFAULT: &str = "ctrl-p,ctrl-q";
}

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let keys = text.split(',').map(key).collect::<Result<Vec<u8>, String>>()?;
        match keys.len() {
            0..=KEYS_MAX => Ok(Self(keys)),
            count => Err(format!("{count} keys, at most {KEYS_MAX}")),
        }
    }
}

fn key(text: &str) -> Result<u8, String> {
    let wrong = || {
        format!("{text:?} is no key; write a letter, or ctrl- with one of a-z, @, [, \\, ], ^, _")
    };
    let (control, letter) = match text.strip_prefix("ctrl-") {
        Some(letter) => (true, letter),
        None => (false, text),
    };
    let &[byte] = letter.as_bytes() else { return Err(wrong()) };
    match (control, byte) {
        (true, b'a'..=b'z') => Ok(byte - b'a' + 1),
        (true, b'@') => Ok(0),
        (true, b'['..=b'_') => Ok(byte - b'[' + 27),
        (false, b' '..=b'~') => Ok(byte),
        _ => Err(wrong()),
    }
}

/// Looks for the keys in what is typed.
#[derive(Debug)]
pub(crate) struct Watch {
    keys: DetachKeys,
    /// So many of them were typed in a row, and held back.
    seen: usize,
}

impl Watch {
    pub(crate) fn new(keys: DetachKeys) -> Self {
        Self { keys, seen: 0 }
    }

    /// What goes on of `typed`, and whether all keys have come.
    pub(crate) fn pass(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        let keys = &self.keys.0;
        let mut on = Vec::with_capacity(typed.len());
        for byte in typed {
            if keys.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == keys.len() {
                    return (on, true);
                }
                continue;
            }
            // It was something else: what was held back goes on, and this may begin anew.
            on.extend_from_slice(&keys[..self.seen]);
            self.seen = 0;
            if keys.first() == Some(byte) && keys.len() > 1 {
                self.seen = 1;
            } else {
                on.push(*byte);
            }
        }
        (on, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        for (text, expected) in [
            ("ctrl-p,ctrl-q", Ok(vec![16, 17])),
            ("a", Ok(vec![b'a'])),
            ("ctrl-@,ctrl-[,ctrl-_,~", Ok(vec![0, 27, 31, b'~'])),
            ("ctrl-", Err("\"ctrl-\" is no key")),
            ("", Err("\"\" is no key")),
            ("ctrl-P", Err("\"ctrl-P\" is no key")),
            ("ab", Err("\"ab\" is no key")),
            ("a,,b", Err("\"\" is no key")),
            ("a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a", Err("17 keys, at most 16")),
        ] {
            match (text.parse::<DetachKeys>(), expected) {
                (Ok(keys), Ok(expected)) => assert_eq!(keys.0, expected, "{text}"),
                (Err(got), Err(expected)) => assert!(got.starts_with(expected), "{text}: {got}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }

    /// Pieces of what is typed, and of what goes on: `!` when all keys have come.
    #[track_caller]
    fn check(keys: &str, typed: &[&str], expected: &[&str]) {
        let mut watch = Watch::new(keys.parse().unwrap());
        let mut got = Vec::new();
        for piece in typed {
            let (on, detached) = watch.pass(piece.as_bytes());
            let end = if detached { "!" } else { "" };
            got.push(format!("{}{end}", String::from_utf8(on).unwrap()));
        }
        assert_eq!(got, expected, "{keys} {typed:?}");
    }

    #[test]
    fn found_in_what_is_typed() {
        check("a,b", &["xyz", "ab"], &["xyz", "!"]);
        check("a,b", &["xa", "b"], &["x", "!"]);
        check("a,b", &["a", "c"], &["", "ac"]);
        check("a,b", &["aab"], &["a!"]);
        check("a,b", &["a", "a", "b"], &["", "a", "!"]);
        check("a", &["xay"], &["x!"]);
        check("a,a,b", &["aaxaab"], &["aax!"]);
    }
}
