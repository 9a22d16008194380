//! Rust code from the .proto files, by protox: no protoc anywhere.
//!
//! The result is checked in; `--check` fails when it is stale.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

const PROTOS: [&str; 2] = ["warren/v1/warren.proto", "grpc/health/v1/health.proto"];

/// Messages that hold secrets: `proto` says itself how they are printed.
const SECRETIVE: [&str; 9] = [
    ".warren.v1.Authority",
    ".warren.v1.BackupRequest",
    ".warren.v1.Cluster",
    ".warren.v1.CreatedOperator",
    ".warren.v1.JoinRequest",
    ".warren.v1.JoinToken",
    ".warren.v1.JoinTokenText",
    ".warren.v1.UnlockKeyText",
    ".warren.v1.UnlockRequest",
];

fn proto_crate() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto")
}

fn generate(out: &Path) -> Result<()> {
    let root = proto_crate().join("proto");
    let files = PROTOS.map(|p| root.join(p));
    let descriptors = protox::compile(&files, [&root]).context("compile .proto files")?;
    tonic_prost_build::configure()
        .out_dir(out)
        .bytes(".warren.v1.Frame")
        .skip_debug(SECRETIVE)
        .compile_fds(descriptors)
        .context("generate code")
}

/// Writes `crates/proto/src/generated`.
pub(crate) fn write() -> Result<()> {
    let out = proto_crate().join("src/generated");
    fs::create_dir_all(&out)?;
    generate(&out)
}

/// Fails when the checked-in code differs from what would be generated.
pub(crate) fn check() -> Result<()> {
    let fresh = std::env::temp_dir().join(format!("warren-codegen-{}", std::process::id()));
    fs::create_dir_all(&fresh)?;
    let outcome =
        generate(&fresh).and_then(|()| compare(&fresh, &proto_crate().join("src/generated")));
    fs::remove_dir_all(&fresh)?;
    outcome
}

fn compare(fresh: &Path, kept: &Path) -> Result<()> {
    for entry in fs::read_dir(fresh)? {
        let name = entry?.file_name();
        if fs::read(fresh.join(&name))? != fs::read(kept.join(&name)).unwrap_or_default() {
            bail!("{} is stale: run `cargo xtask codegen`", name.to_string_lossy());
        }
    }
    Ok(())
}
