//! Command lines in, words and exit codes out, against a node made of canned answers.

mod cluster;
mod errors;
mod fake;
mod flows;
mod health;
mod moving;
mod networks;
mod placing;
mod policies;
mod samples;
mod tables;
mod tasks;
mod updates;

use super::*;
use crate::cli::printer::capture;
use fake::FakeNode;

/// What a command said.
struct Said {
    exit: u8,
    out: String,
    err: String,
}

impl Said {
    /// Everything, for snapshots.
    fn all(&self) -> String {
        let mut text = format!("exit {}\n", self.exit);
        for (name, part) in [("out", &self.out), ("err", &self.err)] {
            if !part.is_empty() {
                text.push_str(&format!("--- {name}\n{part}"));
            }
        }
        text
    }
}

/// Runs a command line, split like a shell does, against `node`.
async fn say(node: &FakeNode, line: &str) -> Said {
    let (mut printer, out, err) = capture::printer(None);
    let words = shlex::split(line).unwrap();
    let args = std::iter::once("warren".to_owned()).chain(words).map(OsString::from).collect();
    let socket = node.socket().display().to_string();
    let home = node.folder().display().to_string();
    let environment = move |key: &str| match key {
        "WARREN_SOCKET" => Some(socket.clone()),
        "XDG_CONFIG_HOME" => Some(home.clone()),
        _ => None,
    };
    let outcome = match parse(args, &mut printer) {
        Ok(Asked::Command(command)) => {
            Box::pin(run(command, &mut printer, &environment, Vec::new)).await
        }
        Ok(Asked::Role(_) | Asked::DataPlane(_)) => panic!("{line}: not a command"),
        Err(failure) => Err(failure),
    };
    let exit = match outcome {
        Ok(()) => 0,
        Err(failure) => {
            printer.failure(&failure);
            failure.exit.code()
        }
    };
    Said { exit, out: out.text(), err: err.text() }
}

#[test]
fn the_parser_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn scripts_for_shells() {
    for shell in ["bash", "zsh", "fish"] {
        let (mut printer, out, _) = capture::printer(None);
        let args = ["wrn", "completion", shell].map(OsString::from).to_vec();
        let Ok(Asked::Command(command)) = parse(args, &mut printer) else { panic!("{shell}") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(command, &mut printer, &|_| None, Vec::new)).unwrap();
        let script = out.text();
        assert!(script.contains("wrn") && script.contains("restart-max-attempts"), "{shell}");
    }
}
