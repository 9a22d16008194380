//! One device specification: its rules, and what it says.
//!
//! CNCF Container Device Interface, SPEC.md, versions 0.3.0 to 1.0.0. Unknown
//! keys are errors, as there. What this node does not do is left out and told:
//! hooks are not run, and neither groups nor cache classes (Intel RDT) given.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

const VERSIONS: [&str; 7] = ["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];
/// Of one file; a machine with eight GPUs in seven parts each has 64.
const DEVICES_MAX: usize = 256;
/// Entries of one list; a GPU's driver has some sixty mounts.
const ENTRIES_MAX: usize = 512;
const TEXT_MAX: usize = 4096;
/// `rwm` of whoever opens it.
const MODE_MAX: u64 = 0o777;
/// A name for all others of a kind together, as NVIDIA's tools write it: not a device of its own.
const ALL: &str = "all";

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spec {
    /// `vendor.com/class`.
    pub(super) kind: String,
    pub(super) devices: BTreeMap<String, Edits>,
    /// For whoever has one of them.
    pub(super) common: Edits,
    /// What is left out, for people.
    pub(super) left_out: BTreeSet<&'static str>,
}

/// What is done to a container.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Edits {
    /// `KEY=value`.
    pub(crate) env: Vec<String>,
    pub(crate) nodes: Vec<DeviceNode>,
    pub(crate) mounts: Vec<BindMount>,
}

/// A device file in the container's /dev.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeviceNode {
    pub(crate) path: String,
    /// Which one of this machine it is.
    pub(crate) host_path: String,
    pub(crate) read: bool,
    pub(crate) write: bool,
    /// As the machine's, where nothing is said.
    pub(crate) mode: Option<u32>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BindMount {
    pub(crate) host_path: String,
    pub(crate) target: String,
    pub(crate) read_only: bool,
}

impl Edits {
    pub(super) fn add(&mut self, other: &Self) {
        self.env.extend_from_slice(&other.env);
        self.nodes.extend_from_slice(&other.nodes);
        self.mounts.extend_from_slice(&other.mounts);
    }
}

/// # Errors
/// In words: which field, which value, what is allowed.
pub(super) fn parse(value: Value) -> Result<Spec, String> {
    let mut spec = Spec::default();
    let mut all = Object::of(value, "")?;
    let version = all.text("cdiVersion")?.unwrap_or_default();
    if !VERSIONS.contains(&version.as_str()) {
        let (first, last) = (VERSIONS[0], VERSIONS[VERSIONS.len() - 1]);
        return Err(format!("cdiVersion: {version:?} is not known, {first} to {last} are"));
    }
    spec.kind = all.text("kind")?.unwrap_or_default();
    warren_model::device::check_kind(&spec.kind).map_err(|error| format!("kind: {error}"))?;
    all.skip("annotations");
    if let Some(edits) = all.value("containerEdits") {
        spec.common = edits_of(edits, "containerEdits", &mut spec.left_out)?;
    }
    let devices = all.list("devices")?;
    all.end()?;
    if devices.len() > DEVICES_MAX {
        return Err(format!("devices: {} of them, at most {DEVICES_MAX}", devices.len()));
    }
    for (at, value) in devices.into_iter().enumerate() {
        let path = format!("devices[{at}]");
        let mut device = Object::of(value, &path)?;
        let name = device.text("name")?.unwrap_or_default();
        warren_model::device::check_name(&name).map_err(|e| format!("{path}.name: {e}"))?;
        device.skip("annotations");
        let edits = device.value("containerEdits").unwrap_or_default();
        device.end()?;
        let edits = edits_of(edits, &format!("{path}.containerEdits"), &mut spec.left_out)?;
        // Some tools name one device by number and by serial number: it is one all the same.
        let alias = spec.devices.values().any(|other| *other == edits);
        if name == ALL || alias {
            continue;
        }
        if spec.devices.insert(name.clone(), edits).is_some() {
            return Err(format!("{path}.name: {name:?} is there twice"));
        }
    }
    Ok(spec)
}

fn edits_of(
    value: Value,
    path: &str,
    left_out: &mut BTreeSet<&'static str>,
) -> Result<Edits, String> {
    let mut all = Object::of(value, path)?;
    let mut edits = Edits::default();
    for value in all.list("env")? {
        let Value::String(pair) = value else { return Err(format!("{path}.env: is no text")) };
        if pair.find('=').is_none_or(|at| at == 0) || pair.len() > TEXT_MAX || pair.contains('\0') {
            return Err(format!("{path}.env: {pair:?} is not of the form KEY=value"));
        }
        edits.env.push(pair);
    }
    for (at, value) in all.list("deviceNodes")?.into_iter().enumerate() {
        edits.nodes.push(node_of(value, &format!("{path}.deviceNodes[{at}]"))?);
    }
    for (at, value) in all.list("mounts")?.into_iter().enumerate() {
        edits.mounts.push(mount_of(value, &format!("{path}.mounts[{at}]"))?);
    }
    for (key, what) in [
        ("hooks", "hooks, which are not run"),
        ("additionalGIDs", "groups, which are not given"),
        ("intelRdt", "cache classes (Intel RDT), which are not given"),
    ] {
        let said = all.value(key).is_some_and(|value| match &value {
            Value::Array(all) => !all.is_empty(),
            other => !other.is_null(),
        });
        if said {
            left_out.insert(what);
        }
    }
    all.end()?;
    Ok(edits)
}

fn node_of(value: Value, path: &str) -> Result<DeviceNode, String> {
    let mut all = Object::of(value, path)?;
    let within = all.absolute("path")?.ok_or_else(|| format!("{path}.path: is missing"))?;
    if !within.starts_with("/dev/") {
        return Err(format!("{path}.path: {within:?} is not in /dev"));
    }
    let host_path = all.absolute("hostPath")?.unwrap_or_else(|| within.clone());
    // What the machine's own node says is what holds.
    for key in ["type", "major", "minor"] {
        all.skip(key);
    }
    let permissions = all.text("permissions")?.unwrap_or_else(|| "rw".to_owned());
    if permissions.is_empty() || permissions.chars().any(|c| !"rwm".contains(c)) {
        return Err(format!("{path}.permissions: {permissions:?} is not of r, w and m"));
    }
    let node = DeviceNode {
        path: within,
        host_path,
        read: permissions.contains('r'),
        write: permissions.contains('w'),
        mode: all.number("fileMode", MODE_MAX)?,
        uid: all.number("uid", u32::MAX.into())?,
        gid: all.number("gid", u32::MAX.into())?,
    };
    all.end()?;
    Ok(node)
}

fn mount_of(value: Value, path: &str) -> Result<BindMount, String> {
    let mut all = Object::of(value, path)?;
    let missing = |key: &str| format!("{path}.{key}: is missing");
    let host_path = all.absolute("hostPath")?.ok_or_else(|| missing("hostPath"))?;
    let target = all.absolute("containerPath")?.ok_or_else(|| missing("containerPath"))?;
    let kind = all.text("type")?.unwrap_or_default();
    if !matches!(kind.as_str(), "" | "bind" | "none") {
        return Err(format!("{path}.type: {kind:?} is not \"bind\""));
    }
    let options = all.list("options")?;
    all.end()?;
    let read_only = options.iter().any(|option| option == "ro");
    Ok(BindMount { host_path, target, read_only })
}

/// A mapping while it is being read: what is left at the end is not known.
struct Object {
    fields: Map<String, Value>,
    path: String,
}

impl Object {
    fn of(value: Value, path: &str) -> Result<Self, String> {
        match value {
            Value::Object(fields) => Ok(Self { fields, path: path.to_owned() }),
            Value::Null if !path.is_empty() => {
                Ok(Self { fields: Map::new(), path: path.to_owned() })
            }
            _ if path.is_empty() => Err("is no mapping".to_owned()),
            _ => Err(format!("{path}: is no mapping")),
        }
    }

    fn at(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn value(&mut self, key: &str) -> Option<Value> {
        self.fields.remove(key).filter(|value| !value.is_null())
    }

    fn skip(&mut self, key: &str) {
        self.fields.remove(key);
    }

    fn text(&mut self, key: &str) -> Result<Option<String>, String> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= TEXT_MAX && !text.contains('\0') => {
                Ok(Some(text))
            }
            Some(Value::String(_)) => {
                Err(format!("{}: is longer than {TEXT_MAX} bytes, or has a zero", self.at(key)))
            }
            Some(other) => Err(format!("{}: {other} is no text; write it in quotes", self.at(key))),
        }
    }

    fn absolute(&mut self, key: &str) -> Result<Option<String>, String> {
        let found = self.text(key)?;
        let fine = |text: &String| {
            text.starts_with('/')
                && !text.ends_with('/')
                && !text.split('/').any(|part| part == "..")
        };
        match found.as_ref().is_none_or(fine) {
            true => Ok(found),
            false => {
                let text = found.unwrap_or_default();
                Err(format!("{}: {text:?} is not an absolute path without \"..\"", self.at(key)))
            }
        }
    }

    fn number(&mut self, key: &str, max: u64) -> Result<Option<u32>, String> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = value.as_u64().filter(|number| *number <= max);
        let number = number.and_then(|number| u32::try_from(number).ok());
        let wrong = || format!("{}: {value} is not a number from 0 to {max}", self.at(key));
        number.map(Some).ok_or_else(wrong)
    }

    fn list(&mut self, key: &str) -> Result<Vec<Value>, String> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(all)) if all.len() <= ENTRIES_MAX => Ok(all),
            Some(Value::Array(all)) => {
                Err(format!("{}: {} entries, at most {ENTRIES_MAX}", self.at(key), all.len()))
            }
            Some(_) => Err(format!("{}: is no list", self.at(key))),
        }
    }

    fn end(self) -> Result<(), String> {
        match self.fields.keys().next() {
            None => Ok(()),
            Some(key) => Err(format!("{}: is not known", self.at(key))),
        }
    }
}
