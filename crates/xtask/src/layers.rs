//! Which crate may import which: the arrows of docs/ARCHITECTURE.md.
//!
//! An arrow that is not in [`ARROWS`] does not exist. Development dependencies
//! are free: tests may look anywhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Crate, then what of ours it may import.
const ARROWS: [(&str, &[&str]); 19] = [
    ("warren-model", &[]),
    ("warren-base", &[]),
    ("warren-shim", &[]),
    ("warren-state", &["warren-model"]),
    ("warren-planner", &["warren-model", "warren-state"]),
    ("warren-proto", &["warren-model"]),
    ("warren-trust", &["warren-model", "warren-base"]),
    (
        "warren-store",
        &["warren-model", "warren-state", "warren-proto", "warren-base", "warren-trust"],
    ),
    ("warren-runtime", &["warren-model", "warren-base", "warren-shim"]),
    ("warren-image", &["warren-model", "warren-base"]),
    ("warren-net", &["warren-model", "warren-base"]),
    ("warren-wireguard", &["warren-base"]),
    (
        "warren-dataplane",
        &["warren-model", "warren-proto", "warren-net", "warren-wireguard", "warren-base"],
    ),
    (
        "warren-manager",
        &[
            "warren-model",
            "warren-state",
            "warren-planner",
            "warren-store",
            "warren-proto",
            "warren-trust",
            "warren-base",
        ],
    ),
    (
        "warren-agent",
        &[
            "warren-model",
            "warren-proto",
            "warren-runtime",
            "warren-image",
            "warren-net",
            "warren-trust",
            "warren-base",
        ],
    ),
    (
        "warren",
        &[
            "warren-model",
            "warren-proto",
            "warren-manager",
            "warren-agent",
            "warren-store",
            "warren-state",
            "warren-trust",
            "warren-base",
            "warren-runtime",
            "warren-image",
            "warren-net",
            "warren-wireguard",
            "warren-dataplane",
        ],
    ),
    ("xtask", &[]),
    ("warren-sim", ANYTHING),
    ("warren-testbed", ANYTHING),
];

const ANYTHING: &[&str] = &["*"];

/// Crates that are replicated or pure: no runtime, no I/O, no clock, no random source.
const PURE: [&str; 3] = ["warren-model", "warren-state", "warren-planner"];
const PURE_BANNED: [&str; 8] =
    ["tokio", "tracing", "rand", "prost", "tonic", "rustix", "libc", "serde_yaml"];

/// Compares `cargo metadata` with the table.
pub(crate) fn check() -> Result<()> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"])
        .arg(&manifest)
        .output()
        .context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    }
    let found = imports(&serde_json::from_slice(&output.stdout).context("read cargo metadata")?)?;
    let faults = faults(&found);
    if !faults.is_empty() {
        bail!("arrows that do not exist:\n  {}", faults.join("\n  "));
    }
    println!("layers: {} crates keep their arrows", found.len());
    Ok(())
}

type Imports = BTreeMap<String, Vec<String>>;

fn imports(metadata: &Value) -> Result<Imports> {
    let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    Ok(packages
        .iter()
        .map(|package| {
            let dependencies = package["dependencies"].as_array().map_or(&[][..], Vec::as_slice);
            let normal =
                dependencies.iter().filter(|d| d["kind"] != "dev").map(|d| text(&d["name"]));
            (text(&package["name"]), normal.collect())
        })
        .collect())
}

fn faults(found: &Imports) -> Vec<String> {
    let table: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    let mut faults = Vec::new();
    for (name, imports) in found {
        let Some(allowed) = table.get(name.as_str()) else {
            faults.push(format!("{name} is not in the table of layers"));
            continue;
        };
        for import in imports {
            let ours = found.contains_key(import);
            if ours && *allowed != ANYTHING && !allowed.contains(&import.as_str()) {
                faults.push(format!("{name} -> {import}"));
            }
            if PURE.contains(&name.as_str()) && PURE_BANNED.contains(&import.as_str()) {
                faults.push(format!("{name} is pure and imports {import}"));
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(pairs: &[(&str, &[&str])]) -> Imports {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        pairs.iter().map(|(name, list)| ((*name).to_owned(), own(list))).collect()
    }

    #[test]
    fn refuses_what_is_not_drawn() {
        let crates: &[(&str, &[&str])] = &[
            ("warren-model", &[]),
            ("warren-agent", &["warren-model"]),
            ("warren-manager", &["warren-agent"]),
        ];
        assert_eq!(faults(&found(crates)), ["warren-manager -> warren-agent"]);
        assert_eq!(
            faults(&found(&[("warren-state", &["tokio"])])),
            ["warren-state is pure and imports tokio"]
        );
        assert_eq!(
            faults(&found(&[("warren-new", &[])])),
            ["warren-new is not in the table of layers"]
        );
        assert!(
            faults(&found(&[("warren-sim", &["warren-model"]), ("warren-model", &[])])).is_empty()
        );
    }
}
