//! What this host's kernel and its other firewalls allow, for `doctor`.
//!
//! Reads only: nothing that is looked at is changed or loaded on purpose. Seen from
//! the calling thread's network namespace.

use std::fs;
use std::net::Ipv4Addr;

use crate::docker;
use crate::firewall::{open_socket, table_exists};
use crate::link::Links;
use crate::namespace::in_new_namespace;
use crate::netlink::{Messages, Socket, attribute, flag, text};
use crate::rules::{Family, GET_CHAIN};
use crate::sandbox::{Maker, Names};

mod legacy;

// linux/netfilter/nf_tables.h
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const FORWARD: u32 = 2;
const POLICY_DROP: u32 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u8 = 2;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// The kernel has nf_tables: ports can be published.
    pub nf_tables: bool,
    /// The kernel has veth links: containers can have a network.
    pub veth: bool,
    /// The host forwards packets already (if not, opening a `Net` turns it on).
    pub ip_forward: bool,
    /// Other firewalls that drop what goes to or from containers.
    pub blockers: Vec<Blocker>,
}

/// A firewall that is in the way: an accept in our table does not override a drop in theirs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Who drops, for people.
    pub what: String,
    /// The exact command that makes an exception.
    pub fix: String,
}

/// Looks at the host; `pool` is the container pool that exceptions are to be made for.
pub fn features(pool: (Ipv4Addr, u8)) -> Features {
    let socket = open_socket().and_then(|mut socket| {
        table_exists(&mut socket, "warren", Family::V4)?;
        Ok(socket)
    });
    let veth = in_new_namespace(|| {
        let names = Names::after("wdoctor".to_owned(), &[]);
        Maker::open(names.into())?.make().map(|_| ())
    });
    let forward = fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    let nf_tables = socket.is_ok();
    let mut socket = socket.ok();
    let chains = socket.as_mut().and_then(list_chains).unwrap_or_default();
    let opened = socket.as_mut().is_some_and(docker::is_open);
    Features {
        nf_tables,
        veth: veth.is_ok(),
        ip_forward: forward.is_ok_and(|value| value.trim() == "1"),
        blockers: blockers(&chains, opened, legacy::forward_drops(), pool),
    }
}

/// Those of `kinds` of links (`vxlan`, `wireguard`, …) that the kernel makes: tried, in a
/// namespace that is gone afterwards. Loads modules.
pub fn link_kinds(kinds: &[&'static str]) -> Vec<&'static str> {
    let tried = in_new_namespace(|| {
        let mut links = Links::open()?;
        Ok(kinds.iter().copied().filter(|kind| links.knows(kind)).collect())
    });
    tried.unwrap_or_default()
}

#[derive(Debug, Clone)]
struct Chain {
    family: u8,
    table: String,
    name: String,
    /// A base chain of the forward hook whose policy is to drop.
    drops: bool,
}

fn list_chains(socket: &mut Socket) -> Option<Vec<Chain>> {
    let mut messages = Messages::default();
    messages.push(GET_CHAIN, flag::DUMP, &[0; 4], |_| {});
    let mut chains = Vec::new();
    let listed = socket.query(&messages, |_, payload| {
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u32::from_be_bytes);
        let attributes = payload.get(4..).unwrap_or_default();
        let hook = attribute(attributes, CHAIN_HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER));
        let policy = attribute(attributes, CHAIN_POLICY).and_then(number);
        chains.push(Chain {
            family: payload.first().copied().unwrap_or_default(),
            table: attribute(attributes, CHAIN_TABLE).map(text).unwrap_or_default(),
            name: attribute(attributes, CHAIN_NAME).map(text).unwrap_or_default(),
            drops: hook.and_then(number) == Some(FORWARD) && policy == Some(POLICY_DROP),
        });
    });
    listed.ok().map(|()| chains)
}

/// `opened`: our rules are in Docker's chain.
fn blockers(
    chains: &[Chain],
    opened: bool,
    legacy_drops: bool,
    pool: (Ipv4Addr, u8),
) -> Vec<Blocker> {
    let pool = format!("{}/{}", pool.0, pool.1);
    let iptables = |program: &str, chain: &str| {
        format!(
            "{program} -I {chain} -s {pool} -j ACCEPT; {program} -I {chain} -d {pool} -j ACCEPT"
        )
    };
    let exists =
        |name: &str| chains.iter().any(|chain| chain.table == "filter" && chain.name == name);
    let mut found = Vec::new();
    if chains.iter().any(|chain| chain.table == "firewalld") {
        found.push(Blocker {
            what: "firewalld refuses what its zones do not allow".into(),
            fix: format!("firewall-cmd --permanent --zone=trusted --add-source={pool} && firewall-cmd --reload"),
        });
    }
    for chain in chains.iter().filter(|chain| chain.drops && chain.table != "firewalld") {
        let is_iptables = (chain.family, chain.table.as_str(), chain.name.as_str())
            == (NFPROTO_IPV4, "filter", "FORWARD");
        let family = match chain.family {
            NFPROTO_INET => "inet",
            NFPROTO_IPV4 => "ip",
            // Other families do not see the traffic of containers.
            _ => continue,
        };
        found.push(match is_iptables {
            // A running node makes its own way there.
            true if exists("DOCKER-USER") && opened => continue,
            true if exists("DOCKER-USER") => Blocker {
                what: "Docker drops forwarded packets that are not its own (iptables chain FORWARD), and no node of this machine has made its exception".into(),
                fix: iptables("iptables", "DOCKER-USER"),
            },
            true if exists("ufw-user-forward") => Blocker {
                what: "ufw drops forwarded packets".into(),
                fix: format!("ufw route allow from {pool} && ufw route allow to {pool}"),
            },
            true => Blocker {
                what: "iptables drops forwarded packets (policy of chain FORWARD)".into(),
                fix: iptables("iptables", "FORWARD"),
            },
            false => {
                let at = format!("{family} {} {}", chain.table, chain.name);
                Blocker {
                    what: format!("nftables drops forwarded packets (policy of chain {at})"),
                    fix: format!("nft insert rule {at} ip saddr {pool} accept; nft insert rule {at} ip daddr {pool} accept"),
                }
            }
        });
    }
    if legacy_drops {
        found.push(Blocker {
            what: "iptables-legacy drops forwarded packets (policy of chain FORWARD)".into(),
            fix: iptables("iptables-legacy", "FORWARD"),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(chains: &[(u8, &str, &str, bool)], legacy: bool, expected: &[&str]) {
        let chains: Vec<Chain> = chains
            .iter()
            .map(|(family, table, name, drops)| Chain {
                family: *family,
                table: (*table).to_owned(),
                name: (*name).to_owned(),
                drops: *drops,
            })
            .collect();
        let found = blockers(&chains, false, legacy, (Ipv4Addr::new(10, 128, 0, 0), 10));
        let fixes: Vec<&str> =
            found.iter().map(|b| b.fix.split(" 10.128").next().unwrap_or_default()).collect();
        assert_eq!(fixes, expected);
    }

    #[test]
    fn host_kinds_of_links_are_tried() {
        assert_eq!(link_kinds(&["veth", "nosuchkind"]), ["veth"]);
    }

    #[test]
    fn who_drops_and_how_to_make_an_exception() {
        check(&[(2, "filter", "FORWARD", false), (2, "filter", "DOCKER-USER", false)], false, &[]);
        check(
            &[(2, "filter", "FORWARD", true), (2, "filter", "DOCKER-USER", false)],
            false,
            &["iptables -I DOCKER-USER -s"],
        );
        check(
            &[(2, "filter", "FORWARD", true), (2, "filter", "ufw-user-forward", false)],
            false,
            &["ufw route allow from"],
        );
        check(&[(2, "filter", "FORWARD", true)], false, &["iptables -I FORWARD -s"]);
        check(
            &[(1, "mine", "fwd", true), (10, "filter", "FORWARD", true)],
            false,
            &["nft insert rule inet mine fwd ip saddr"],
        );
        check(&[], true, &["iptables-legacy -I FORWARD -s"]);
    }

    #[test]
    fn an_opening_is_no_blocker() {
        let chain = |name: &str, drops| Chain {
            family: 2,
            table: "filter".into(),
            name: name.into(),
            drops,
        };
        let chains = [chain("FORWARD", true), chain("DOCKER-USER", false)];
        assert_eq!(blockers(&chains, true, false, (Ipv4Addr::new(10, 128, 0, 0), 10)), []);
    }
}
