//! Builds the shim and leaves it at `$OUT_DIR/warren-shim` for `include_bytes!`.
//!
//! A cargo of its own with a target folder of its own (the outer one holds its lock), always
//! static, small and with `panic = "abort"`, whatever profile the daemon has. It runs again only
//! when the shim's sources change. It never needs a registry: the outer cargo has fetched `libc`,
//! the only dependency.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// All of it may be in memory, once for all shims of a daemon.
const SIZE_MAX: u64 = 150_000;

fn main() -> Result<(), Box<dyn Error>> {
    let crates = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let shim = crates.parent().ok_or("this crate lies beside the shim")?.join("shim");
    for input in ["src", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", shim.join(input).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let target = env::var("TARGET")?;
    let target_dir = out.join("shim-target");
    build(&shim, &target, &target_dir)?;
    let built = target_dir.join(&target).join("release/warren-shim");
    let size = fs::metadata(&built)?.len();
    if size > SIZE_MAX {
        return Err(format!("the shim has {size} bytes, more than {SIZE_MAX}").into());
    }
    fs::copy(&built, out.join("warren-shim"))?;
    Ok(())
}

fn build(shim: &Path, target: &str, target_dir: &Path) -> Result<(), Box<dyn Error>> {
    let mut cargo = Command::new(env::var("CARGO")?);
    cargo.current_dir(shim).args(["build", "--release", "--offline", "--bin", "warren-shim"]);
    let mutants = env::var_os("CARGO_FEATURE_MUTANTS").is_some();
    cargo.args(["--features", if mutants { "bare,mutants" } else { "bare" }]);
    cargo.arg("--target").arg(target).arg("--target-dir").arg(target_dir);
    for setting in [
        "opt-level=\"z\"",
        "lto=true",
        "codegen-units=1",
        "panic=\"abort\"",
        "strip=true",
        "debug=false",
        "overflow-checks=false",
    ] {
        cargo.arg("--config").arg(format!("profile.release.{setting}"));
    }
    // What the outer cargo set for the daemon or for clippy is not for the shim.
    for name in ["CARGO_ENCODED_RUSTFLAGS", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(name);
    }
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("CARGO_PROFILE_")) {
        cargo.env_remove(name);
    }
    cargo.env(
        "RUSTFLAGS",
        "-C target-feature=+crt-static -C relocation-model=static -C force-unwind-tables=no \
         -C link-arg=-nostdlib -C link-arg=-nostartfiles",
    );
    let status = cargo.status()?;
    if status.success() { Ok(()) } else { Err(format!("building the shim: {status}").into()) }
}
