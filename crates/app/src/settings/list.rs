//! Settings whose value is a list: repeated or with commas as a flag, with commas in the
//! environment, a list of strings in the file.

use std::path::PathBuf;

use warren_image::Mirror;

use super::{Environment, File, PORT};
use crate::address::Address;
use crate::cli::failure::Failure;

pub(super) const REGISTRIES: &str = "insecure_registry";
pub(super) const MIRRORS: &str = "registry_mirror";
pub(super) const MANAGERS: &str = "managers";
pub(super) const DEVICES: &str = "cdi_spec_dir";
/// As every reader of such files has it.
const DEVICES_DEFAULT: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// Whether the file has a list under this key.
pub(super) fn is_list(key: &str) -> bool {
    matches!(key, REGISTRIES | MIRRORS | MANAGERS | DEVICES)
}

/// The first of flags, environment and file that has some, and which it was.
fn pick(env: Environment<'_>, file: &File, flags: &[String], key: &str) -> (Vec<String>, String) {
    if !flags.is_empty() {
        return (flags.to_vec(), format!("--{}", key.replace('_', "-")));
    }
    let variable = format!("WARREN_{}", key.to_ascii_uppercase());
    if let Some(text) = env(&variable).filter(|text| !text.is_empty()) {
        return (text.split(',').map(str::to_owned).collect(), variable);
    }
    let list = file.values.get(key).and_then(toml::Value::as_array);
    let texts = list.into_iter().flatten().filter_map(toml::Value::as_str);
    (texts.map(str::to_owned).collect(), format!("{}: {key}", file.path.display()))
}

/// Registries that may be spoken to in plain text.
pub(super) fn registries(
    env: Environment<'_>,
    file: &File,
    flags: &[String],
) -> Result<Vec<String>, Failure> {
    let (hosts, source) = pick(env, file, flags, REGISTRIES);
    let sane = |host: &&String| {
        !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-:[]".contains(c))
    };
    match hosts.iter().find(|host| !sane(host)) {
        None => Ok(hosts),
        Some(host) => Err(Failure::input(format!("{source}: {host:?} is not a host"))
            .hint("write registry.example.org or 10.0.0.1:5000, without a scheme")),
    }
}

/// Registries that are asked before others.
pub(super) fn mirrors(
    env: Environment<'_>,
    file: &File,
    flags: &[String],
) -> Result<Vec<Mirror>, Failure> {
    let (mirrors, source) = pick(env, file, flags, MIRRORS);
    let parse = |text: &String| {
        Mirror::parse(text).map_err(|problem| Failure::input(format!("{source}: {problem}")))
    };
    mirrors.iter().map(parse).collect()
}

/// Folders of files that say which devices this machine has.
pub(super) fn devices(
    env: Environment<'_>,
    file: &File,
    flags: &[String],
) -> Result<Vec<PathBuf>, Failure> {
    let (folders, source) = pick(env, file, flags, DEVICES);
    if folders.is_empty() {
        return Ok(DEVICES_DEFAULT.map(PathBuf::from).to_vec());
    }
    match folders.iter().find(|folder| !folder.starts_with('/')) {
        None => Ok(folders.into_iter().map(PathBuf::from).collect()),
        Some(folder) => Err(Failure::input(format!("{source}: {folder:?} is not a folder"))
            .hint("write an absolute path, such as /etc/cdi")),
    }
}

/// Where managers are, before anything that is remembered.
pub(super) fn managers(
    env: Environment<'_>,
    file: &File,
    flags: &[String],
) -> Result<Vec<Address>, Failure> {
    let (addresses, source) = pick(env, file, flags, MANAGERS);
    let parse = |text: &String| {
        let address = Address::parse(text, PORT).and_then(Address::dialled);
        address.map_err(|problem| Failure::input(format!("{source}: {problem}")))
    };
    addresses.iter().map(parse).collect()
}
