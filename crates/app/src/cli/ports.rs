//! How published ports are written: `[IP:]PUBLISHED:TARGET[/udp]`, ranges, and the long form.

use std::net::Ipv4Addr;

use warren_model::service::{PortSpec, Protocol, PublishMode};

use super::failure::nearest;

/// Ports of one `-p`: a range of more is a typo rather than a wish.
const RANGE_MAX: usize = 256;

/// Keys of the long form.
const KEYS: [&str; 6] = ["published", "target", "protocol", "mode", "host_ip", "name"];

/// The ports of one `-p`; a range gives several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Publish(pub(crate) Vec<PortSpec>);

/// Parses either form.
pub(crate) fn parse(text: &str) -> Result<Publish, String> {
    if text.contains('=') { long(text) } else { short(text) }
}

fn short(text: &str) -> Result<Publish, String> {
    let (ports, protocol) = split_protocol(text, text)?;
    if ports.contains('[') || ports.matches(':').count() > 2 {
        return Err(format!("{text:?} binds an IPv6 address; only IPv4 can be bound"));
    }
    let (rest, target) = ports
        .rsplit_once(':')
        .ok_or_else(|| format!("{text:?} lacks a colon; write PUBLISHED:TARGET, e.g. 8080:80"))?;
    let (bind, published) = match rest.rsplit_once(':') {
        Some((ip, published)) => (parse_ip(ip, text)?, published),
        None => (Ipv4Addr::UNSPECIFIED, rest),
    };
    let (published, target) = (range(published, text)?, range(target, text)?);
    if published.len() != target.len() {
        return Err(format!(
            "{text:?} publishes {} ports for {} targets; ranges must have the same length",
            published.len(),
            target.len()
        ));
    }
    let mode = PublishMode::Ingress;
    let pairs = published.into_iter().zip(target);
    let spec =
        |(published, target)| PortSpec { protocol, bind, published, target, mode, name: None };
    Ok(Publish(pairs.map(spec).collect()))
}

fn long(text: &str) -> Result<Publish, String> {
    let mut port = PortSpec {
        protocol: Protocol::Tcp,
        bind: Ipv4Addr::UNSPECIFIED,
        published: 0,
        target: 0,
        mode: PublishMode::Ingress,
        name: None,
    };
    for pair in text.split(',') {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| format!("{pair:?} in {text:?} is not of the form key=value"))?;
        match key {
            "published" => port.published = parse_port(value, text)?,
            "target" => port.target = parse_port(value, text)?,
            "protocol" => port.protocol = parse_protocol(value, text)?,
            "host_ip" => port.bind = parse_ip(value, text)?,
            "name" => {
                let named = value.parse();
                port.name = Some(named.map_err(|error| format!("name in {text:?}: {error}"))?);
            }
            "mode" => {
                port.mode = match value {
                    "ingress" => PublishMode::Ingress,
                    "host" => PublishMode::Host,
                    _ => {
                        return Err(format!(
                            "{value:?} in {text:?} is not a mode; write ingress or host"
                        ));
                    }
                }
            }
            _ => {
                let meant = nearest(key, KEYS).map(|k| format!("; did you mean {k}?"));
                let known = meant.unwrap_or_else(|| format!("; keys are {}", KEYS.join(", ")));
                return Err(format!("there is no key {key:?} in {text:?}{known}"));
            }
        }
    }
    for (key, value) in [("published", port.published), ("target", port.target)] {
        if value == 0 {
            return Err(format!("{text:?} lacks {key}=PORT"));
        }
    }
    Ok(Publish(vec![port]))
}

fn split_protocol<'a>(ports: &'a str, whole: &str) -> Result<(&'a str, Protocol), String> {
    match ports.split_once('/') {
        Some((ports, protocol)) => Ok((ports, parse_protocol(protocol, whole)?)),
        None => Ok((ports, Protocol::Tcp)),
    }
}

fn parse_protocol(text: &str, whole: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err(format!("{text:?} in {whole:?} is not a protocol; write tcp or udp")),
    }
}

fn parse_ip(text: &str, whole: &str) -> Result<Ipv4Addr, String> {
    text.parse().map_err(|_| format!("{text:?} in {whole:?} is not an IPv4 address"))
}

fn parse_port(text: &str, whole: &str) -> Result<u16, String> {
    let port = text.parse::<u16>().ok().filter(|p| *p > 0 && !text.starts_with('+'));
    port.ok_or_else(|| format!("{text:?} in {whole:?} is not a port, allowed are 1 to 65535"))
}

fn range(text: &str, whole: &str) -> Result<Vec<u16>, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (parse_port(first, whole)?, parse_port(last, whole)?);
    let ports: Vec<u16> = (first..=last).collect();
    if ports.is_empty() || ports.len() > RANGE_MAX {
        return Err(format!("{text:?} in {whole:?} is not a range of 1 to {RANGE_MAX} ports"));
    }
    Ok(ports)
}

/// Which ports `--publish-rm` names: `TARGET[/udp]` as in Docker, or a whole `-p` text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unpublish {
    Target(u16, Option<Protocol>),
    Whole(Publish),
}

pub(crate) fn parse_removal(text: &str) -> Result<Unpublish, String> {
    if text.contains([':', '=']) {
        return parse(text).map(Unpublish::Whole);
    }
    match text.split_once('/') {
        Some((port, protocol)) => {
            Ok(Unpublish::Target(parse_port(port, text)?, Some(parse_protocol(protocol, text)?)))
        }
        None => Ok(Unpublish::Target(parse_port(text, text)?, None)),
    }
}

impl Unpublish {
    pub(crate) fn names(&self, port: &PortSpec) -> bool {
        match self {
            Self::Target(target, protocol) => {
                port.target == *target && protocol.is_none_or(|p| p == port.protocol)
            }
            Self::Whole(Publish(ports)) => {
                let plain =
                    |p: &PortSpec| PortSpec { mode: PublishMode::Ingress, name: None, ..*p };
                ports.iter().any(|p| plain(p) == plain(port))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match parse(text) {
            Ok(Publish(ports)) => {
                ports.iter().map(PortSpec::to_string).collect::<Vec<_>>().join(" ")
            }
            Err(error) => format!("error: {error}"),
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn publish_syntax() {
        check("8080:80", "8080:80");
        check("8080:80/udp", "8080:80/udp");
        check("127.0.0.1:8080:80/tcp", "127.0.0.1:8080:80");
        check("8000-8002:80-82", "8000:80 8001:81 8002:82");
        check("published=8080,target=80", "8080:80");
        check("published=8080,target=80,name=http", "8080:80 (http)");
        check("published=53,target=53,mode=host,name=dns", "53:53 (host, dns)");
        check(
            "published=53,target=53,protocol=udp,mode=host,host_ip=10.0.0.1",
            "10.0.0.1:53:53/udp (host)",
        );
    }

    #[test]
    fn publish_errors() {
        check("80", "error: \"80\" lacks a colon; write PUBLISHED:TARGET, e.g. 8080:80");
        check("0:80", "error: \"0\" in \"0:80\" is not a port, allowed are 1 to 65535");
        check("70000:80", "error: \"70000\" in \"70000:80\" is not a port, allowed are 1 to 65535");
        check(":80", "error: \"\" in \":80\" is not a port, allowed are 1 to 65535");
        check("+8:80", "error: \"+8\" in \"+8:80\" is not a port, allowed are 1 to 65535");
        check("a:b:c", "error: \"a\" in \"a:b:c\" is not an IPv4 address");
        check(
            "8080:80/sctp",
            "error: \"sctp\" in \"8080:80/sctp\" is not a protocol; write tcp or udp",
        );
        check(
            "[::1]:80:80",
            "error: \"[::1]:80:80\" binds an IPv6 address; only IPv4 can be bound",
        );
        check(
            "8000-8001:80",
            "error: \"8000-8001:80\" publishes 2 ports for 1 targets; ranges must have the same length",
        );
        check("9-8:9-8", "error: \"9-8\" in \"9-8:9-8\" is not a range of 1 to 256 ports");
        check(
            "1-9999:1-9999",
            "error: \"1-9999\" in \"1-9999:1-9999\" is not a range of 1 to 256 ports",
        );
        check("published=80", "error: \"published=80\" lacks target=PORT");
        check(
            "publish=80,target=80",
            "error: there is no key \"publish\" in \"publish=80,target=80\"; did you mean published?",
        );
        check(
            "published=80,target=80,mode=hots",
            "error: \"hots\" in \"published=80,target=80,mode=hots\" is not a mode; write ingress or host",
        );
        check(
            "published=80,target=80,name=HTTP",
            "error: name in \"published=80,target=80,name=HTTP\": \"HTTP\" is no name for a port; \
             allowed are at most 15 of a-z, 0-9 and '-', one letter at least, no '-' first, last or \
             twice in a row",
        );
        check(
            "published=80,80",
            "error: \"80\" in \"published=80,80\" is not of the form key=value",
        );
    }

    #[test]
    fn removals() {
        let Publish(ports) = parse("8080:80/udp").unwrap();
        let names = |text: &str| parse_removal(text).unwrap().names(&ports[0]);
        assert!(names("80") && names("80/udp") && names("8080:80/udp"));
        assert!(!names("8080") && !names("80/tcp") && !names("8080:80"));
        assert!(parse_removal("x").is_err());
    }
}
