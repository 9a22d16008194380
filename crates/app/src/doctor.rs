//! What this machine must have to run containers, for `warren doctor`.
//!
//! The rooms that need something know how to look for it; here are their
//! answers in one list. The running node adds what only it can know.

use warren_model::{Cluster, ClusterId};

use crate::cli::{Check, Level};

pub(crate) fn local() -> Vec<Check> {
    let mut checks: Vec<Check> =
        warren_runtime::native::features().into_iter().map(feature).collect();
    let pool = Cluster::new(ClusterId::MIN).pool;
    checks.extend(network(&warren_net::features((pool.address, pool.prefix))));
    checks
}

fn feature(found: warren_runtime::native::Feature) -> Check {
    let level = match (found.ok, found.required) {
        (true, _) => Level::Ok,
        (false, true) => Level::Bad,
        (false, false) => Level::Warn,
    };
    Check::new(level, found.name, found.detail, "")
}

fn network(features: &warren_net::Features) -> Vec<Check> {
    let needed = |name, there: bool, hint| match there {
        true => Check::ok(name, "works"),
        false => Check::new(Level::Bad, name, "missing", hint),
    };
    let mut checks = vec![
        needed("nf_tables", features.nf_tables, "load the module: modprobe nf_tables"),
        needed("veth", features.veth, "load the module: modprobe veth"),
    ];
    let blockers = features.blockers.iter();
    checks.extend(blockers.map(|b| Check::new(Level::Warn, "firewall", &b.what, &b.fix)));
    checks
}
