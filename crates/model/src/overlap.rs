//! Whether a cluster's addresses are apart from what a machine reaches already.
//!
//! Pure: whoever asks has read the machine's routes. Where ranges overlap, one
//! side loses: containers cannot reach those hosts, or the machine cannot reach
//! those containers; and nobody finds out why.

use std::fmt;
use std::net::Ipv4Addr;

use crate::cluster::Subnet;

/// What a machine reaches otherwise than by its default route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    pub destination: Subnet,
    /// Name of the link that it leaves by, e.g. `eth1`.
    pub link: String,
}

/// A range of the cluster's, and for what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// `container pool`, `pool of virtual IPs`.
    pub what: &'static str,
    pub range: Subnet,
}

/// Both ranges of two that overlap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlap {
    pub pool: Pool,
    pub route: HostRoute,
}

impl fmt::Display for Overlap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pool: Pool { what, range }, route: HostRoute { destination, link } } = self;
        write!(
            f,
            "the {what} {range} overlaps {destination}, which this machine reaches through {link}"
        )
    }
}

/// Everything is behind a default route; VPNs make one of two halves.
const DEFAULT_PREFIX_MAX: u8 = 1;
/// A route to one address takes the place of one container at most, and those to the containers
/// of a node of before are of this kind.
const SINGLE_PREFIX: u8 = 32;

/// The first pool that is not apart from the routes, with the most specific of these.
pub fn overlap(pools: &[Pool], routes: &[HostRoute]) -> Option<Overlap> {
    let counts = |route: &&HostRoute| {
        let prefix = route.destination.prefix;
        prefix > DEFAULT_PREFIX_MAX && prefix < SINGLE_PREFIX
    };
    pools.iter().find_map(|pool| {
        let overlapping = routes.iter().filter(counts);
        let overlapping = overlapping.filter(|route| route.destination.overlaps(&pool.range));
        // `max_by_key` gives the last of equals; the first is the one that `ip route` shows first.
        let route = overlapping.rev().max_by_key(|route| route.destination.prefix)?;
        Some(Overlap { pool: *pool, route: route.clone() })
    })
}

/// Of routes that nodes of Warren make for their overlay; nobody else has such large ones.
pub const OWN_METRIC_MIN: u32 = 0x4000_0000;

/// Columns of `/proc/net/route`, from the left.
const DESTINATION: usize = 1;
const FLAGS: usize = 3;
const METRIC: usize = 6;
const MASK: usize = 7;
/// `RTF_UP` and `RTF_REJECT` of `linux/route.h`.
const UP: u32 = 0x1;
const REJECT: u32 = 0x200;

/// Routes as `/proc/net/route` shows them, at most `max`; what is no route is left out. Routes
/// that lead nowhere (`unreachable`) are: nothing is reached by them. So are those of an overlay,
/// which may be that of a node of before.
pub fn parse_routes(text: &str, max: usize) -> Vec<HostRoute> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |at: usize| u32::from_str_radix(words.get(at)?, 16).ok();
        // Written as the machine's own number over bytes in the order of the network.
        let address = |at: usize| Some(Ipv4Addr::from(number(at)?.to_ne_bytes()));
        let prefix = address(MASK)?.to_bits().leading_ones();
        let flags = number(FLAGS)?;
        let metric: u32 = words.get(METRIC)?.parse().ok()?;
        let destination =
            Subnet { address: address(DESTINATION)?, prefix: u8::try_from(prefix).ok()? };
        let link = (*words.first()?).to_owned();
        let counts = flags & UP != 0 && flags & REJECT == 0 && metric < OWN_METRIC_MIN;
        counts.then_some(HostRoute { destination, link })
    });
    routes.take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(range: &str) -> Pool {
        Pool { what: "container pool", range: range.parse().unwrap() }
    }

    #[track_caller]
    fn check(routes: &str, expected: &str) {
        let routes: Vec<HostRoute> = routes
            .split_whitespace()
            .map(|word| {
                let (destination, link) = word.split_once('@').unwrap();
                HostRoute { destination: destination.parse().unwrap(), link: link.to_owned() }
            })
            .collect();
        let pools = [pool("10.128.0.0/10"), pool("10.192.0.0/14")];
        let found = overlap(&pools, &routes);
        assert_eq!(found.map_or_else(|| "apart".to_owned(), |found| found.to_string()), expected);
    }

    #[test]
    fn ranges_are_apart_or_named() {
        check("", "apart");
        check("0.0.0.0/0@eth0 192.168.0.0/16@eth0 10.0.0.0/9@eth1", "apart");
        check("0.0.0.0/1@tun0 128.0.0.0/1@tun0", "apart");
        check("10.128.0.2/32@wabcdef0", "apart");
        check(
            "10.130.5.0/24@eth1",
            "the container pool 10.128.0.0/10 overlaps 10.130.5.0/24, which this machine reaches \
             through eth1",
        );
        check(
            "10.0.0.0/8@vpn 10.130.5.0/24@eth1 10.131.5.0/24@eth2",
            "the container pool 10.128.0.0/10 overlaps 10.130.5.0/24, which this machine reaches \
             through eth1",
        );
        check(
            "10.192.0.0/14@eth1",
            "the container pool 10.192.0.0/14 overlaps 10.192.0.0/14, which this machine reaches \
             through eth1",
        );
    }

    #[test]
    fn routes_are_read() {
        if cfg!(target_endian = "big") {
            return;
        }
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\n\
            eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            *\t0000800A\t00000000\t0200\t0\t0\t0\t0000C0FF\t0\t0\t0\n\
            eth1\t0005820A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            w-abc123\t0000C00A\t00000000\t0001\t0\t0\t1530726262\t0000FCFF\t0\t0\t0\n\
            nonsense\n\
            eth2\tzz\t0\t1\n";
        let show = |max| {
            let routes = parse_routes(text, max);
            let text = routes.iter().map(|route| format!("{}@{}", route.destination, route.link));
            text.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(show(9), "0.0.0.0/0@eth0 192.0.2.0/24@eth0 10.130.5.0/24@eth1");
        assert_eq!(show(2), "0.0.0.0/0@eth0 192.0.2.0/24@eth0");
        assert_eq!(parse_routes("", 9), []);
    }
}
