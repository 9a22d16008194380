//! What this machine reaches by itself, read for the check that a cluster's
//! addresses are apart from it.

use std::io::Read;

use warren_manager::Pools;
use warren_model::overlap::{HostRoute, overlap, parse_routes};

use crate::cli::failure::{Exit, Failure};

/// The main table of this network namespace.
const ROUTES: &str = "/proc/net/route";
/// A machine with more is a router of the internet's; those that are left out are not checked.
const ROUTES_MAX: usize = 4096;
/// Of a line: 128, padded by the kernel.
const BYTES_MAX: u64 = 128 * (ROUTES_MAX as u64 + 1);

/// The routes of this machine; none if the kernel does not say.
pub(super) fn read() -> Vec<HostRoute> {
    let mut text = String::new();
    let read =
        std::fs::File::open(ROUTES).and_then(|file| file.take(BYTES_MAX).read_to_string(&mut text));
    if let Err(error) = read {
        tracing::warn!(%error, path = ROUTES, "overlaps with other networks are not looked for");
    }
    parse_routes(&text, ROUTES_MAX)
}

/// Whether a new cluster's addresses are apart from what this machine reaches.
///
/// # Errors
/// [`Exit::Conflict`], naming both ranges.
pub(super) fn check(pools: Pools, routes: &[HostRoute]) -> Result<(), Failure> {
    let Some(found) = overlap(&pools.named(), routes) else { return Ok(()) };
    let flag = if found.pool.range == pools.vips { "--vip-pool" } else { "--pool" };
    Err(Failure::new(Exit::Conflict, found.to_string())
        .hint(format!("choose another range with {flag}, e.g. {flag} 10.64.0.0/12")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_refused_with_a_way_out() {
        let route = |text: &str| {
            vec![HostRoute { destination: text.parse().unwrap(), link: "eth1".to_owned() }]
        };
        let pools = Pools::default();
        assert_eq!(check(pools, &route("192.168.0.0/16")), Ok(()));
        let failure = check(pools, &route("10.130.0.0/16")).unwrap_err();
        assert_eq!(failure.exit, Exit::Conflict);
        assert_eq!(
            failure.message,
            "the container pool 10.128.0.0/10 overlaps 10.130.0.0/16, which this machine reaches \
             through eth1"
        );
        assert!(failure.hint.unwrap().contains("--pool 10.64.0.0/12"));
        let failure = check(pools, &route("10.193.0.0/16")).unwrap_err();
        assert!(failure.hint.unwrap().contains("--vip-pool "), "{}", failure.message);
    }

    #[test]
    fn this_machine_has_routes_that_are_read() {
        assert!(read().len() <= ROUTES_MAX);
    }
}
