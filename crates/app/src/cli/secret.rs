//! Secrets that people bring: from standard input or a terminal without echo,
//! never from the command line.

use std::io::{IsTerminal, Read};
use std::path::Path;

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::failure::{Failure, plain};
use super::printer::Printer;

/// Keys and tokens have less than a hundred characters; passphrases may be sentences.
const SECRET_LEN_MAX: usize = 4096;

/// The first line of standard input; asked for by `prompt` on a terminal.
///
/// # Errors
/// Nothing came, or too much.
pub(crate) fn read(printer: &mut Printer, prompt: &str) -> Result<Zeroizing<String>, Failure> {
    let stdin = std::io::stdin();
    let quiet = stdin.is_terminal().then(|| {
        printer.prompt(prompt);
        Quiet::new()
    });
    let line = line(stdin.lock());
    if quiet.is_some() {
        drop(quiet);
        printer.note("");
    }
    let line = line.map_err(|e| Failure::input(format!("standard input: {}", plain(&e))))?;
    if line.is_empty() {
        return Err(Failure::input("standard input: a secret is expected there, nothing came"));
    }
    Ok(line)
}

/// What a file holds, without the line end.
///
/// # Errors
/// Naming the flag and the file.
pub(crate) fn file(flag: &str, path: &Path) -> Result<Zeroizing<String>, Failure> {
    let wrong =
        |e: std::io::Error| Failure::input(format!("{flag}: {}: {}", path.display(), plain(&e)));
    let line = line(std::fs::File::open(path).map_err(wrong)?).map_err(wrong)?;
    match line.is_empty() {
        true => Err(Failure::input(format!("{flag}: {} is empty", path.display()))),
        false => Ok(line),
    }
}

/// One byte after the other: what follows the line is not ours, and no buffer keeps a copy.
fn line(mut from: impl Read) -> std::io::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(SECRET_LEN_MAX));
    let mut byte = [0; 1];
    while from.read(&mut byte)? == 1 && byte[0] != b'\n' {
        if bytes.len() == SECRET_LEN_MAX {
            return Err(std::io::Error::other(format!("more than {SECRET_LEN_MAX} bytes")));
        }
        bytes.push(byte[0]);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| std::io::Error::other("not text"))?;
    Ok(Zeroizing::new(text.trim_end_matches('\r').to_owned()))
}

/// A terminal that does not show what is typed, until dropped.
struct Quiet(Option<rustix::termios::Termios>);

impl Quiet {
    fn new() -> Self {
        let terminal = rustix::stdio::stdin();
        let Ok(before) = tcgetattr(terminal) else { return Self(None) };
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        // One that does not obey shows the secret to whoever types it.
        let _ = tcsetattr(terminal, OptionalActions::Flush, &hidden);
        Self(Some(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // The terminal went away, then.
            let _ = tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_and_no_more() {
        let read =
            |bytes: &[u8]| line(bytes).map(|text| text.to_string()).map_err(|e| e.to_string());
        assert_eq!(read(b"secret\nmore").as_deref(), Ok("secret"));
        assert_eq!(read(b"secret\r\n").as_deref(), Ok("secret"));
        assert_eq!(read(b"secret").as_deref(), Ok("secret"));
        assert_eq!(read(b"").as_deref(), Ok(""));
        assert!(read(&[b'a'; 5000]).unwrap_err().contains("more than 4096"));
        assert!(read(b"\xff\n").unwrap_err().contains("not text"));
    }
}
