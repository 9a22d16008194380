//! `--network`: a service on a network, in Docker's short and long form.
//!
//! `NAME[,alias=A…][,ip=ADDRESS]`, or `name=NAME,alias=A,…`.

use std::net::Ipv4Addr;

use clap::{Args, ValueEnum};
use warren_model::service::{Affinity, Attachment, Endpoint, EndpointMode};
use warren_model::{NetworkName, ServiceSpec};

use super::failure::nearest;

const KEYS: [&str; 3] = ["name", "alias", "ip"];

/// # Errors
/// Naming the part that is wrong, and what is allowed.
pub(crate) fn parse(text: &str) -> Result<Attachment, String> {
    let mut parts = text.split(',');
    let first = parts.next().unwrap_or_default();
    let (mut name, rest): (Option<NetworkName>, Vec<&str>) = match first.contains('=') {
        true => (None, text.split(',').collect()),
        false => (Some(first.parse().map_err(|e| format!("{e}"))?), parts.collect()),
    };
    let mut aliases = std::collections::BTreeSet::new();
    let mut address: Option<Ipv4Addr> = None;
    for part in rest {
        let (key, value) =
            part.split_once('=').ok_or_else(|| format!("{part:?} is not of the form KEY=value"))?;
        match key {
            "name" if name.is_none() => name = Some(value.parse().map_err(|e| format!("{e}"))?),
            "name" => return Err(format!("{part:?} is a second name")),
            "alias" => {
                aliases.insert(value.parse().map_err(|e| format!("alias: {e}"))?);
            }
            "ip" => {
                let given =
                    value.parse().map_err(|_| format!("{value:?} is not an IPv4 address"))?;
                if address.replace(given).is_some() {
                    return Err(format!("{part:?} is a second address"));
                }
            }
            _ => {
                let meant = nearest(key, KEYS).map(|k| format!("did you mean {k}?"));
                let known = meant.unwrap_or_else(|| format!("options are {}", KEYS.join(", ")));
                return Err(format!("there is no option {key:?}; {known}"));
            }
        }
    }
    let network = name.ok_or("the network's name is missing")?;
    Ok(Attachment { network, aliases, address })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeFlag {
    Vip,
    Dnsrr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AffinityFlag {
    None,
    ClientIp,
}

/// How a service is found and reached; the same for `create` and `update`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EndpointFlags {
    /// What its name stands for: a virtual IP, or the addresses of its replicas [default: vip]
    #[arg(long, value_enum, value_name = "MODE")]
    endpoint_mode: Option<ModeFlag>,
    /// client-ip: the same client meets the same replica [default: none]
    #[arg(long, value_enum, value_name = "AFFINITY")]
    endpoint_affinity: Option<AffinityFlag>,
    /// Replicas on the caller's own node come first
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    endpoint_prefer_local: Option<bool>,
    /// Each slot has an address of its own, whichever task is in it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    slot_addresses: Option<bool>,
}

impl EndpointFlags {
    /// Puts what was given into `spec`.
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) {
        let Endpoint { mode, affinity, prefer_local, slot_addresses } = &mut spec.endpoint;
        match self.endpoint_mode {
            Some(ModeFlag::Vip) => *mode = EndpointMode::Vip,
            Some(ModeFlag::Dnsrr) => *mode = EndpointMode::Dnsrr,
            None => {}
        }
        match self.endpoint_affinity {
            Some(AffinityFlag::None) => *affinity = Affinity::None,
            Some(AffinityFlag::ClientIp) => *affinity = Affinity::ClientAddress,
            None => {}
        }
        *prefer_local = self.endpoint_prefer_local.unwrap_or(*prefer_local);
        *slot_addresses = self.slot_addresses.unwrap_or(*slot_addresses);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match parse(text) {
            Ok(Attachment { network, aliases, address }) => {
                let aliases: Vec<String> = aliases.iter().map(ToString::to_string).collect();
                let address = address.map(|address| format!(" {address}"));
                format!("{network} [{}]{}", aliases.join(" "), address.unwrap_or_default())
            }
            Err(problem) => problem,
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn networks_of_a_service() {
        check("back", "back []");
        check("back,alias=www,alias=app,ip=10.192.0.9", "back [app www] 10.192.0.9");
        check("name=back,alias=www", "back [www]");
        check("alias=www,name=back", "back [www]");
        check("", "a name cannot be empty");
        check("alias=www", "the network's name is missing");
        check("name=a,name=b", "\"name=b\" is a second name");
        check("back,www", "\"www\" is not of the form KEY=value");
        check("back,alais=www", "there is no option \"alais\"; did you mean alias?");
        check(
            "back,driver-opt=x",
            "there is no option \"driver-opt\"; options are name, alias, ip",
        );
        check("back,ip=fd00::1", "\"fd00::1\" is not an IPv4 address");
        check("back,ip=1.2.3.4,ip=1.2.3.5", "\"ip=1.2.3.5\" is a second address");
        check(
            "back,alias=W",
            "alias: name \"W\" has 'W' at position 1; allowed are a-z, 0-9, '-' and '_', first and \
             last a letter or digit",
        );
    }
}
