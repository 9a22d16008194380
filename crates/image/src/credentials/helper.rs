//! Programs that know credentials: `docker-credential-NAME` of Docker's `config.json`.
//!
//! The protocol of docker/docker-credential-helpers: `get`, the registry on standard
//! input, a JSON object on standard output. They run as the daemon does, for as long as
//! [`PATIENCE`] at most, and say at most [`ANSWER_LEN_MAX`]; what they started goes with
//! them. Only names without a slash are run, found in `PATH`.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use zeroize::Zeroizing;

use super::Credentials;

/// Helpers of clouds ask a service over the network.
pub(super) const PATIENCE: Duration = Duration::from_secs(15);
const ANSWER_LEN_MAX: u64 = 64 * 1024;
/// What helpers say, with exit code 1, when they know nothing.
const UNKNOWN: &str = "credentials not found";

#[derive(serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Asks a helper; nothing if it knows none. Blocking.
///
/// # Errors
/// What is wrong with the helper, for people; never what it said.
pub(super) fn ask(
    name: &str,
    server: &str,
    patience: Duration,
) -> Result<Option<Credentials>, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || !name.chars().all(allowed) {
        return Err(format!("{name:?} is no name of a credential helper"));
    }
    let program = format!("docker-credential-{name}");
    let (status, output) = run(&program, server, patience)?;
    let text = std::str::from_utf8(&output).map_err(|_| format!("{program} answers no text"))?;
    if !status.success() {
        return match text.contains(UNKNOWN) {
            true => Ok(None),
            // It may hold anything: it is not repeated.
            false => Err(format!("{program} ended with {status}")),
        };
    }
    let answer: Answer =
        serde_json::from_str(text).map_err(|_| format!("{program} answers no credentials"))?;
    let secret = Zeroizing::new(answer.secret);
    Ok((!secret.is_empty()).then_some(Credentials { user: answer.username, password: secret }))
}

type Ended = std::io::Result<(ExitStatus, Zeroizing<Vec<u8>>)>;

fn run(
    program: &str,
    server: &str,
    patience: Duration,
) -> Result<(ExitStatus, Zeroizing<Vec<u8>>), String> {
    let failed = |error: std::io::Error| format!("{program}: {error}");
    let mut command = Command::new(program);
    command.arg("get").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    // A group of its own, to be ended as a whole.
    let mut child = command.process_group(0).spawn().map_err(failed)?;
    let group = rustix::process::Pid::from_child(&child);
    let (ended, end) = std::sync::mpsc::channel::<Ended>();
    let server = server.to_owned();
    let waited = std::thread::Builder::new().name("warren-helper".into()).spawn(move || {
        let mut talk = || {
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not want to know has its own way to say so.
                let _ = stdin.write_all(server.as_bytes());
            }
            let mut output = Zeroizing::new(Vec::new());
            if let Some(stdout) = child.stdout.take() {
                stdout.take(ANSWER_LEN_MAX).read_to_end(&mut output)?;
            }
            Ok((child.wait()?, output))
        };
        let _ = ended.send(talk());
    });
    waited.map_err(failed)?;
    match end.recv_timeout(patience) {
        Ok(ended) => ended.map_err(failed),
        Err(_) => {
            // Gone by itself just now: as good.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
            Err(format!("{program} gave no answer within {} s", patience.as_secs()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A helper of a shell script; `PATH` belongs to the whole process, so it is run by its path.
    fn script(dir: &std::path::Path, text: &str) -> String {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn helpers_are_asked_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let echo = script(dir.path(), "read server; echo \"$1 $server\"");
        let (status, output) = run(&echo, "r.io", PATIENCE).unwrap();
        assert!(status.success());
        assert_eq!(output.as_slice(), b"get r.io\n");
        let begun = std::time::Instant::now();
        // What it started has its output too.
        let silent = script(dir.path(), "sleep 600 & sleep 600");
        let problem = run(&silent, "r.io", Duration::from_millis(300)).unwrap_err();
        assert!(problem.contains("gave no answer"), "{problem}");
        assert!(begun.elapsed() < Duration::from_secs(20));
        let endless = script(dir.path(), "while echo 0123456789abcdef; do :; done");
        let (_, output) = run(&endless, "r.io", PATIENCE).unwrap();
        assert_eq!(output.len() as u64, ANSWER_LEN_MAX);
    }

    #[test]
    fn only_plain_names_are_run() {
        for name in ["", "../x", "a/b", "a b", "x\n"] {
            let problem = ask(name, "r.io", PATIENCE).unwrap_err();
            assert!(problem.contains("no name of a credential helper"), "{problem}");
        }
        let problem = ask("none-such", "r.io", PATIENCE).unwrap_err();
        assert!(problem.starts_with("docker-credential-none-such: "), "{problem}");
    }
}
