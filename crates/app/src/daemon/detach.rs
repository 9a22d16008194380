//! `--detach`: the daemon in the background, and how its parent learns that it is ready.
//!
//! The program runs itself again with a pipe as standard input. The child
//! writes one line into it, ready or why not, and then lets go of it; if it
//! dies before, the pipe ends. So the parent's wait always has an end.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde::{Deserialize, Serialize};

use super::{PRIVATE, folder};
use crate::cli::failure::{Exit, Failure};

const LOG_NAME: &str = "daemon.log";
const OLD_LOG_NAME: &str = "daemon.log.1";
/// Above this the log is put aside at a start; one old log is kept.
const LOG_MAX_BYTES: u64 = 16 << 20;
/// More than any message of ours; what else would come through the pipe?
const REPORT_MAX: u64 = 64 * 1024;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Ready,
    Failed { exit: u8, message: String, hint: Option<String> },
}

/// Starts the daemon with our own arguments and returns once it is ready.
///
/// # Errors
/// What the daemon says, with its exit code.
pub(crate) fn start(data_dir: &Path) -> Result<(), Failure> {
    folder(data_dir, PRIVATE)?;
    let log_path = data_dir.join(LOG_NAME);
    let failed = |e: std::io::Error| Failure::failed(format!("start the daemon: {e}"));
    if fs::metadata(&log_path).is_ok_and(|about| about.len() > LOG_MAX_BYTES) {
        fs::rename(&log_path, data_dir.join(OLD_LOG_NAME)).map_err(failed)?;
    }
    let log = OpenOptions::new().append(true).create(true).mode(0o600).open(&log_path);
    let log = log.map_err(|e| Failure::failed(format!("open {}: {e}", log_path.display())))?;
    let (from, to) = std::io::pipe().map_err(failed)?;
    let program = std::env::current_exe().map_err(failed)?;
    let arguments = std::env::args_os().skip(1).filter(|a| a != "--detach" && a != "-d");
    let child = Command::new(program)
        .args(arguments)
        .arg("--report-to-stdin")
        .stdin(Stdio::from(to))
        .stdout(log.try_clone().map_err(failed)?)
        .stderr(log)
        .spawn()
        .map_err(failed)?;
    judge(from, child, &log_path)
}

fn judge(from: PipeReader, mut child: Child, log: &Path) -> Result<(), Failure> {
    use std::io::Read;
    let mut line = String::new();
    // An error reads like an end: the child says no more.
    let _ = BufReader::new(from.take(REPORT_MAX)).read_line(&mut line);
    match serde_json::from_str(&line) {
        Ok(Report::Ready) => Ok(()),
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

/// Leaves the parent's session and folder. First thing in the child.
pub(crate) fn settle() {
    // Fails only for the leader of a session, which has left already.
    let _ = rustix::process::setsid();
    // The root folder is always there; a daemon must not keep another one busy.
    let _ = rustix::process::chdir("/");
}

/// Says that the node is ready and lets go of the pipe.
pub(crate) fn ready() {
    send(&Report::Ready);
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
