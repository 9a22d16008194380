//! The budget of the shipped binary: one file, static, small.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// 25 MB: a third of k3s, half of Nomad; small enough for an edge site's link.
const BYTES_MAX: u64 = 25_000_000;

/// Checks size and linkage of `binary`.
pub(crate) fn check(binary: &Path) -> Result<()> {
    let bytes =
        std::fs::metadata(binary).with_context(|| format!("look at {}", binary.display()))?.len();
    if bytes > BYTES_MAX {
        bail!("{} has {bytes} bytes, the budget is {BYTES_MAX}", binary.display());
    }
    let ldd = Command::new("ldd").arg(binary).output().context("run ldd")?;
    let said = [ldd.stdout, ldd.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let said = said.trim();
    if !said.contains("not a dynamic executable") && !said.contains("statically linked") {
        bail!("{} is not static: {said}", binary.display());
    }
    println!("size: {bytes} bytes of {BYTES_MAX}; ldd: {said}");
    Ok(())
}
