//! `--detach`: the daemon in the background, and how its parent learns that it is ready.
//!
//! The program runs itself again with one end of a pair of sockets as standard
//! input. A token goes through it to the child, so that no list of processes
//! ever shows it; then the child writes one line back, ready or why not, and
//! lets go of it. If it dies before, the line ends. So the parent's wait always
//! has an end.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{PRIVATE, folder};
use crate::cli::failure::{Exit, Failure};

const LOG_NAME: &str = "daemon.log";
const OLD_LOG_NAME: &str = "daemon.log.1";
/// Above this the log is put aside at a start; one old log is kept.
const LOG_MAX_BYTES: u64 = 16 << 20;
/// More than any message of ours; what else would come through the pipe?
const REPORT_MAX: u64 = 64 * 1024;
/// More than any token.
const TOKEN_MAX: usize = 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Ready { note: Option<String> },
    Failed { exit: u8, message: String, hint: Option<String> },
}

/// Starts the daemon with our own arguments, but for a token, which is handed to it in private.
/// Returns once it is ready, with what is to be known about that.
///
/// # Errors
/// What the daemon says, with its exit code.
pub(crate) fn start(data_dir: &Path, token: Option<&str>) -> Result<Option<String>, Failure> {
    folder(data_dir, PRIVATE)?;
    let log_path = data_dir.join(LOG_NAME);
    let failed = |e: io::Error| Failure::failed(format!("start the daemon: {e}"));
    if fs::metadata(&log_path).is_ok_and(|about| about.len() > LOG_MAX_BYTES) {
        fs::rename(&log_path, data_dir.join(OLD_LOG_NAME)).map_err(failed)?;
    }
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&log_path);
    let log = log.map_err(|e| Failure::failed(format!("open {}: {e}", log_path.display())))?;
    let (mut from, to) = UnixStream::pair().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let arguments = arguments(std::env::args_os().skip(1), token.is_some());
    let child = Command::new(program)
        .args(arguments)
        .arg("--report-to-stdin")
        .env_remove("WARREN_TOKEN")
        .stdin(Stdio::from(OwnedFd::from(to)))
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    if let Some(token) = token {
        // A child that has died is told about by the report that does not come.
        let _ = from.write_all(token.as_bytes()).and_then(|()| from.write_all(b"\n"));
    }
    judge(from, child, &log_path)
}

/// What the child is started with: without the token, which comes another way.
fn arguments(given: impl Iterator<Item = OsString>, token: bool) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut skip = false;
    for argument in given {
        let with_value = argument.as_bytes().starts_with(b"--token=");
        if std::mem::take(&mut skip) || with_value || argument == "--detach" || argument == "-d" {
            continue;
        }
        if argument == OsStr::new("--token") {
            skip = true;
            continue;
        }
        kept.push(argument);
    }
    if token {
        kept.extend([OsString::from("--token"), OsString::from("-")]);
    }
    kept
}

/// Reads a token, the first line of standard input. One byte after the other: what follows is
/// not ours.
pub(crate) fn token() -> io::Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(Vec::with_capacity(TOKEN_MAX));
    let mut byte = [0; 1];
    while line.len() < TOKEN_MAX {
        match rustix::io::read(rustix::stdio::stdin(), &mut byte) {
            Ok(0) => break,
            Ok(_) if byte[0] == b'\n' => break,
            Ok(_) => line.push(byte[0]),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let text = std::str::from_utf8(&line).map_err(|_| io::Error::other("not text"))?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

fn judge(from: UnixStream, mut child: Child, log: &Path) -> Result<Option<String>, Failure> {
    let mut line = String::new();
    // An error reads like an end: the child says no more.
    let _ = BufReader::new(from.take(REPORT_MAX)).read_line(&mut line);
    match serde_json::from_str(&line) {
        Ok(Report::Ready { note }) => Ok(note),
        Ok(Report::Failed { exit, message, hint }) => {
            Err(Failure { exit: Exit::from_code(u32::from(exit)), message, hint })
        }
        Err(_) => {
            let end = child.wait().map_or_else(|e| e.to_string(), |status| status.to_string());
            Err(Failure::failed(format!("the daemon ended while starting ({end})"))
                .hint(format!("its log is {}", log.display())))
        }
    }
}

/// Leaves the parent's session, folder and descriptors. First thing in the child.
pub(crate) fn settle() {
    super::inherited::close();
    // Fails only for the leader of a session, which has left already.
    let _ = rustix::process::setsid();
    // The root folder is always there; a daemon must not keep another one busy.
    let _ = rustix::process::chdir("/");
}

/// Says that the node is ready and lets go of the pipe. Only the first time counts.
pub(crate) fn ready(note: Option<&str>) {
    send(&Report::Ready { note: note.map(str::to_owned) });
}

/// Says why the node could not start.
pub(crate) fn failed(failure: &Failure) {
    let Failure { exit, message, hint } = failure.clone();
    send(&Report::Failed { exit: exit.code(), message, hint });
}

fn send(report: &Report) {
    let Ok(mut line) = serde_json::to_vec(report) else { return };
    line.push(b'\n');
    // A parent that was interrupted no longer listens; the node runs all the same.
    let _ = rustix::io::write(rustix::stdio::stdin(), &line);
    if let Ok(null) = fs::File::open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_no_arguments() {
        let check = |given: &str, token: bool, expected: &str| {
            let given = given.split_whitespace().map(OsString::from);
            let kept = arguments(given, token);
            assert_eq!(kept.join(OsStr::new(" ")).to_string_lossy(), expected);
        };
        check("node run --detach --data-dir /d", false, "node run --data-dir /d");
        check("node join --token T -d a:1", true, "node join a:1 --token -");
        check("node join --token=T a:1,b:2", true, "node join a:1,b:2 --token -");
        check("node join a:1 -d", true, "node join a:1 --token -");
    }
}
