//! Environment of containers as people give it: `KEY=value`, `KEY` from the
//! caller's own, and files of such lines.

use std::path::Path;

use super::failure::{Failure, plain};

/// No sane list of variables is larger; keeps a wrong path from filling memory.
const FILE_MAX: u64 = 1 << 20;

/// Where `KEY` without a value comes from.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The caller's environment.
pub(crate) fn of_caller(key: &str) -> Option<String> {
    std::env::var(key).ok()
}

/// Files first, then flags; a later key replaces an earlier one of a file. The
/// same key twice among the flags is kept for validation to name.
pub(crate) fn gather<P: AsRef<Path>>(
    files: &[P],
    flags: &[String],
    lookup: Lookup<'_>,
) -> Result<Vec<String>, Failure> {
    let mut pairs: Vec<String> = Vec::new();
    for path in files {
        for pair in read(path.as_ref(), lookup)? {
            pairs.retain(|known| key(known) != key(&pair));
            pairs.push(pair);
        }
    }
    let mut given = Vec::new();
    for flag in flags {
        given.extend(complete("--env", flag, lookup)?);
    }
    pairs.retain(|known| !given.iter().any(|g| key(g) == key(known)));
    pairs.extend(given);
    Ok(pairs)
}

/// The name of a `KEY=value`.
pub(crate) fn key(pair: &str) -> &str {
    pair.split('=').next().unwrap_or_default()
}

/// `KEY=value` as it is, `KEY` with the caller's value, nothing when the caller has none.
fn complete(source: &str, text: &str, lookup: Lookup<'_>) -> Result<Option<String>, Failure> {
    let name = key(text);
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(Failure::input(format!("{source}: {text:?} is not of the form KEY=value")));
    }
    if text.contains('=') {
        return Ok(Some(text.to_owned()));
    }
    Ok(lookup(text).map(|value| format!("{text}={value}")))
}

fn read(path: &Path, lookup: Lookup<'_>) -> Result<Vec<String>, Failure> {
    let named =
        |problem: String| Failure::input(format!("--env-file: {}: {problem}", path.display()));
    let size = std::fs::metadata(path).map_err(|e| named(plain(&e)))?.len();
    if size > FILE_MAX {
        return Err(named(format!("{size} bytes are more than {FILE_MAX}")));
    }
    let bytes = std::fs::read(path).map_err(|e| named(plain(&e)))?;
    let text = String::from_utf8(bytes).map_err(|_| named("not UTF-8 text".to_owned()))?;
    parse(&path.display().to_string(), &text, lookup)
}

/// Lines of `KEY=value`; empty lines and those that start with `#` are skipped.
/// Values are taken as they stand, quotes included, as Docker does.
fn parse(name: &str, text: &str, lookup: Lookup<'_>) -> Result<Vec<String>, Failure> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pairs: Vec<String> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let source = format!("--env-file: {name}:{}", at + 1);
        if let Some(pair) = complete(&source, line, lookup)? {
            pairs.retain(|known| key(known) != key(&pair));
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(key: &str) -> Option<String> {
        (key == "HOME").then(|| "/root".to_owned())
    }

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match parse("f", text, &lookup) {
            Ok(pairs) => pairs.join("|"),
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(got, expected, "{text:?}");
    }

    #[test]
    fn files() {
        check("", "");
        check("\u{feff}A=1\n# no\n\n  B=\"x y\" \r\n", "A=1|B=\"x y\" ");
        check("A=1\nA=2\n", "A=2");
        check("HOME\nUNSET\n", "HOME=/root");
        check("A=b=c", "A=b=c");
        check("A=1\nB C=2", "error: --env-file: f:2: \"B C=2\" is not of the form KEY=value");
        check("=x", "error: --env-file: f:1: \"=x\" is not of the form KEY=value");
    }

    #[test]
    fn flags_win_over_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env");
        std::fs::write(&path, "A=file\nB=file\n").unwrap();
        let flags = vec!["A=flag".to_owned(), "HOME".to_owned()];
        let got = gather(&[&path], &flags, &lookup).unwrap();
        assert_eq!(got, ["B=file", "A=flag", "HOME=/root"]);
        let missing = gather(&[dir.path().join("none")], &[], &lookup).unwrap_err();
        assert!(missing.message.starts_with("--env-file: "), "{missing}");
        assert_eq!(missing.exit.code(), 2);
        let bad = gather::<&Path>(&[], &["=x".to_owned()], &lookup).unwrap_err();
        assert_eq!(bad.message, "--env: \"=x\" is not of the form KEY=value");
    }
}
