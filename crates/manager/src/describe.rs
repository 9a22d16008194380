//! What a node says of itself, checked before it is written down.
//!
//! Pure. A description ends up in listings, events and other nodes' heads:
//! every text is bounded and printable, and an address can be dialled.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use warren_model::device::{DEVICES_MAX, KINDS_MAX, check_kind, check_name};
use warren_model::node::Description;
use warren_proto::v1;

use crate::refusal::Refusal;

/// Of a DNS name; Linux gives a host 64.
const HOSTNAME_MAX: usize = 253;
/// Of the other texts: versions of kernels are the longest.
const TEXT_MAX: usize = 256;
/// More than any kernel has that we know of.
const FEATURES_MAX: usize = 64;
/// As for labels that people set.
const LABELS_MAX: usize = warren_model::Node::LABELS_MAX;

/// # Errors
/// Naming the field that cannot be right.
pub(crate) fn parse(wire: v1::NodeDescription) -> Result<Description, Refusal> {
    let description = Description::try_from(wire).map_err(|e| e.within("description"))?;
    check("hostname", &description.hostname, HOSTNAME_MAX)?;
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if let Some(found) = description.hostname.chars().find(|c| !name(*c)) {
        let hostname = &description.hostname;
        let text = format!("description.hostname: {hostname:?} has {found:?} in it");
        return Err(Refusal::bad_input(text)
            .hint("letters, digits, '-', '_' and '.' are allowed; set the machine's host name"));
    }
    check("address", &description.address, TEXT_MAX)?;
    check("version", &description.version, TEXT_MAX)?;
    check("architecture", &description.architecture, TEXT_MAX)?;
    check("kernel", &description.kernel, TEXT_MAX)?;
    let features = description.features.len();
    if features > FEATURES_MAX {
        return Err(Refusal::bad_input(format!(
            "description.features: {features} of them, at most {FEATURES_MAX} are allowed"
        )));
    }
    for feature in &description.features {
        check("features", feature, TEXT_MAX)?;
    }
    check_devices(&description)?;
    let labels = description.labels.len();
    if labels > LABELS_MAX {
        return Err(Refusal::bad_input(format!(
            "description.labels: {labels} of them, at most {LABELS_MAX} are allowed"
        )));
    }
    for (key, value) in &description.labels {
        check("labels", key, TEXT_MAX)?;
        check("labels", value, TEXT_MAX)?;
    }
    Ok(description)
}

fn check_devices(description: &Description) -> Result<(), Refusal> {
    let wrong = |what: String| Refusal::bad_input(format!("description.devices: {what}"));
    let kinds = description.devices.len();
    let devices: usize = description.devices.values().map(BTreeSet::len).sum();
    if kinds > KINDS_MAX || devices > DEVICES_MAX {
        return Err(wrong(format!(
            "{devices} of {kinds} kinds, at most {DEVICES_MAX} of {KINDS_MAX} are allowed"
        )));
    }
    for (kind, names) in &description.devices {
        check_kind(kind).map_err(|error| wrong(error.to_string()))?;
        names.iter().try_for_each(|name| check_name(name)).map_err(|e| wrong(e.to_string()))?;
    }
    Ok(())
}

/// Where others reach a manager: an address and a port.
///
/// # Errors
/// When it is something else, or an address that means another machine everywhere.
pub(crate) fn reachable_at(address: &str) -> Result<(), Refusal> {
    let wrong = |why: &str| {
        Refusal::bad_input(format!("description.address: {address:?} {why}"))
            .hint("give the address that others reach this machine at: --advertise ADDR[:PORT]")
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
    if port.parse::<u16>().ok().is_none_or(|port| port == 0) {
        return Err(wrong("has no port that can be dialled"));
    }
    if let Ok(socket) = address.parse::<SocketAddr>() {
        let anywhere = socket.ip().is_unspecified() || socket.ip().is_multicast();
        return if anywhere { Err(wrong("is not one machine's address")) } else { Ok(()) };
    }
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    if host.is_empty() || !host.chars().all(name) {
        return Err(wrong("is neither an address nor a name"));
    }
    Ok(())
}

fn check(field: &str, text: &str, max: usize) -> Result<(), Refusal> {
    let len = text.len();
    if len > max {
        let text = format!("description.{field}: has {len} bytes, at most {max} are allowed");
        return Err(Refusal::bad_input(text));
    }
    match text.chars().find(|c| c.is_control()) {
        Some(found) => Err(Refusal::bad_input(format!("description.{field}: has {found:?} in it"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_description(change: impl FnOnce(&mut v1::NodeDescription), expected: &str) {
        let mut wire = v1::NodeDescription {
            hostname: "host-1.example".into(),
            address: "10.0.0.1:2377".into(),
            kernel: "6.18 #1 SMP".into(),
            ..Default::default()
        };
        change(&mut wire);
        let got = parse(wire).map_or_else(|refusal| refusal.to_string(), |_| "ok".into());
        assert_eq!(got, expected);
    }

    #[test]
    fn descriptions() {
        check_description(|_| {}, "ok");
        check_description(
            |d| d.hostname = "a b".into(),
            "description.hostname: \"a b\" has ' ' in it",
        );
        check_description(
            |d| d.hostname = "a".repeat(300),
            "description.hostname: has 300 bytes, at most 253 are allowed",
        );
        check_description(|d| d.kernel = "6\n7".into(), "description.kernel: has '\\n' in it");
        check_description(
            |d| d.labels.extend((0..200).map(|n| (n.to_string(), String::new()))),
            "description.labels: 200 of them, at most 128 are allowed",
        );
        check_description(
            |d| d.features = vec!["x".into(); 65],
            "description.features: 65 of them, at most 64 are allowed",
        );
        let kind =
            |kind: &str, name: &str| v1::DeviceKind { kind: kind.into(), names: vec![name.into()] };
        check_description(|d| d.devices = vec![kind("nvidia.com/gpu", "0")], "ok");
        check_description(
            |d| d.devices = vec![kind("gpu", "0")],
            "description.devices: \"gpu\" is not a kind of devices: vendor.com/class of a-z, A-Z, \
             0-9, '-' and '_', at most 63 characters",
        );
        check_description(
            |d| d.devices = (0..33).map(|n| kind(&format!("a/x{n}"), "0")).collect(),
            "description.devices: 33 of 33 kinds, at most 512 of 32 are allowed",
        );
        check_description(
            |d| d.features = vec!["a\tb".into()],
            "description.features: has '\\t' in it",
        );
    }

    #[test]
    fn addresses() {
        for good in ["10.0.0.1:2377", "[fd00::1]:2377", "db.example.org:1"] {
            assert_eq!(reachable_at(good), Ok(()), "{good}");
        }
        for bad in ["", "10.0.0.1", "10.0.0.1:0", "0.0.0.0:2377", "[::]:1", ":80", "a b:1", "h:x"] {
            assert!(reachable_at(bad).is_err(), "{bad}");
        }
    }
}
