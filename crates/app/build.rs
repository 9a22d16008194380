#![allow(clippy::print_stdout)] // how build scripts talk to cargo
//! Tells the program what it was built of: commit, compiler, target.
//!
//! The commit is `WARREN_COMMIT` from outside (packages built without git) or
//! what git says; `unknown` where neither is there.

use std::process::Command;

fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn main() {
    let env = |key: &str| std::env::var(key).ok().filter(|value| !value.is_empty());
    let say = |text: String| println!("cargo::{text}");
    say("rerun-if-env-changed=WARREN_COMMIT".into());
    say("rerun-if-changed=build.rs".into());
    if let Some(log) =
        output("git", &["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])
    {
        say(format!("rerun-if-changed={log}"));
    }
    let commit =
        env("WARREN_COMMIT").or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]));
    let rustc = env("RUSTC").and_then(|rustc| output(&rustc, &["--version"]));
    let unknown = || "unknown".to_owned();
    say(format!("rustc-env=WARREN_COMMIT={}", commit.unwrap_or_else(unknown)));
    say(format!("rustc-env=WARREN_RUSTC={}", rustc.unwrap_or_else(unknown)));
    say(format!("rustc-env=WARREN_TARGET={}", env("TARGET").unwrap_or_else(unknown)));
}
