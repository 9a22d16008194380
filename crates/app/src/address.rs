//! Where a node is reached: a host and a port.
//!
//! A host is an IP address or a name; IPv6 addresses stand in brackets when a
//! port follows. Written `host:port` everywhere: in the state, in files, in
//! messages.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// Of DNS.
const NAME_LEN_MAX: usize = 253;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(String),
}

impl Address {
    /// Reads `host:port`, or `host` alone for `default_port`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(crate) fn parse(text: &str, default_port: u16) -> Result<Self, String> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::new(Host::Ip(address.ip()), address.port(), text);
        }
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return Self::new(Host::Ip(ip), default_port, text);
        }
        let (name, port) = match text.rsplit_once(':') {
            None => (text, default_port),
            Some((name, port)) => {
                let port = port.parse();
                (name, port.map_err(|_| format!("{text:?}: the port is not 1 to 65535"))?)
            }
        };
        if name.is_empty() {
            return Err(format!("{text:?} has no host"));
        }
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if name.len() > NAME_LEN_MAX || !name.chars().all(fits) {
            return Err(format!("{text:?} is not a host and a port; write 10.0.0.1:2377"));
        }
        Self::new(Host::Name(name.to_owned()), port, text)
    }

    fn new(host: Host, port: u16, text: &str) -> Result<Self, String> {
        match port {
            0 => Err(format!("{text:?}: the port is not 1 to 65535")),
            port => Ok(Self { host, port }),
        }
    }

    pub(crate) fn of(address: SocketAddr) -> Self {
        Self { host: Host::Ip(address.ip()), port: address.port() }
    }

    /// The same, if others can connect to it.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub(crate) fn dialled(self) -> Result<Self, String> {
        match &self.host {
            Host::Ip(ip) if ip.is_unspecified() || ip.is_multicast() => {
                Err(format!("nobody can connect to {ip}; write the address that others know"))
            }
            Host::Ip(_) | Host::Name(_) => Ok(self),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = Address::parse(text, 2377).and_then(Address::dialled);
        assert_eq!(got.map_or_else(|e| e, |address| address.to_string()), expected);
    }

    #[test]
    fn addresses() {
        check("10.0.0.1", "10.0.0.1:2377");
        check("10.0.0.1:99", "10.0.0.1:99");
        check("::1", "[::1]:2377");
        check("[::1]", "[::1]:2377");
        check("[fd00::1]:99", "[fd00::1]:99");
        check("m1.example.org", "m1.example.org:2377");
        check("m1:99", "m1:99");
        check("m1:0", "\"m1:0\": the port is not 1 to 65535");
        check("m1:x", "\"m1:x\": the port is not 1 to 65535");
        check("10.0.0.1:0", "\"10.0.0.1:0\": the port is not 1 to 65535");
        check("", "\"\" has no host");
        check(":1", "\":1\" has no host");
        check("http://m1", "\"http://m1\": the port is not 1 to 65535");
        check("m 1:5", "\"m 1:5\" is not a host and a port; write 10.0.0.1:2377");
        check("0.0.0.0:5", "nobody can connect to 0.0.0.0; write the address that others know");
    }
}
