//! What this node can tell of itself that nobody outside can.
//!
//! Changes nothing; blocking look-ups run off the event loop.

mod network;
mod path;
mod survey;

use std::sync::Arc;

use tokio::sync::oneshot;
use warren_model::Time;
use warren_model::quantity::format_duration_ms;
use warren_proto::v1;
use warren_proto::v1::Finding;
use warren_runtime::ContainerState;

use crate::effects::chain;
use crate::worker::{Message, Tools};
pub(crate) use network::Map;

/// Less than this is filled by one large image.
const FREE_MIN_BYTES: u64 = 2 << 30;
/// 2025-01-01: a clock before this was never set, and certificates will not hold.
const CLOCK_MIN: Time = Time(1_735_689_600_000);

fn finding(name: &str, ok: bool, detail: impl Into<String>, hint: &str) -> Finding {
    let hint = if ok { String::new() } else { hint.to_owned() };
    Finding { name: name.to_owned(), ok, detail: detail.into(), hint, ..Finding::default() }
}

/// What was asked for.
pub(crate) async fn findings(tools: &Arc<Tools>, asked: &v1::Doctor) -> v1::Findings {
    let node = tools.node.as_bytes().to_vec();
    if asked.network {
        let looked = network::look(tools, &asked.nodes).await;
        return v1::Findings { findings: looked.findings, node, name: looked.name };
    }
    let (own, looked) = tokio::join!(own(tools), network::look(tools, &[]));
    let name = looked.name.clone();
    v1::Findings { findings: [own, in_short(looked)].concat(), node, name }
}

/// Of the way to other nodes what is wrong; else that nothing is.
fn in_short(looked: network::Looked) -> Vec<Finding> {
    let network::Looked { findings, nodes, .. } = looked;
    let troubles = findings.into_iter().filter(|finding| !finding.ok);
    let named = troubles.map(|finding| Finding {
        name: match finding.peer.as_str() {
            "" => finding.name,
            peer => format!("{} to {peer}", finding.name),
        },
        ..finding
    });
    let mut short: Vec<Finding> = named.collect();
    if short.iter().all(|finding| finding.minor) && nodes > 0 {
        let detail = format!("reaches {nodes} other node{}", if nodes == 1 { "" } else { "s" });
        short.push(finding("network", true, detail, ""));
    }
    short
}

/// What concerns this node alone.
async fn own(tools: &Arc<Tools>) -> Vec<Finding> {
    let mut out = vec![containers(tools).await, clock(tools), manager(tools)];
    out.extend(forgotten(tools).await);
    out.extend(networks(tools).await);
    let (dir, pool) = (tools.data_dir.clone(), tools.pool);
    let host = tokio::task::spawn_blocking(move || {
        let mut found = vec![disk(&dir)];
        found.extend(network(&warren_net::features(pool)));
        // What containers could use but do not need is no defect: only told when it is there.
        let kernel = warren_runtime::native::features().into_iter();
        let told = kernel.filter(|feature| feature.ok || feature.required);
        found.extend(told.map(|feature| finding(feature.name, feature.ok, feature.detail, "")));
        found
    });
    match host.await {
        Ok(found) => out.extend(found),
        Err(_) => out.push(finding("host", false, "looking at the host was interrupted", "")),
    }
    out
}

async fn containers(tools: &Tools) -> Finding {
    match tools.runtime.list().await {
        Ok(listed) => {
            let runs = |state: &ContainerState| matches!(state, ContainerState::Running { .. });
            let running = listed.iter().filter(|info| runs(&info.state)).count();
            let detail = format!("{running} running, {} known", listed.len());
            finding("containers", true, detail, "")
        }
        Err(error) => finding("containers", false, chain(&error), "see the node's log"),
    }
}

/// Tasks that a recovery made managers forget, if there are any.
async fn forgotten(tools: &Tools) -> Option<Finding> {
    let (reply, answer) = oneshot::channel();
    tools.tell(Message::Forgotten(reply)).await;
    let (tasks, left_ms) = answer.await.ok().flatten()?;
    let detail = match left_ms {
        Some(ms) => format!("{tasks}, removed in {}", format_duration_ms(ms)),
        None => format!("{tasks}, kept until they are dropped"),
    };
    let hint = "decide: warren node update NODE --forgotten keep, or drop";
    Some(finding("tasks that managers forgot", false, detail, hint))
}

/// What this node cannot do for networks, if there is anything.
async fn networks(tools: &Tools) -> Vec<Finding> {
    let (reply, answer) = oneshot::channel();
    tools.tell(Message::Troubles(reply)).await;
    let troubles = answer.await.unwrap_or_default();
    let hint = "the node's log says more; what is in the way is looked at again by itself";
    troubles.into_iter().map(|text| finding("networks", false, text, hint)).collect()
}

fn clock(tools: &Tools) -> Finding {
    let now = Time(tools.clock.now_ms());
    let hint = "set the clock: certificates and logs depend on it";
    finding("clock", now >= CLOCK_MIN, now.to_string(), hint)
}

fn manager(tools: &Tools) -> Finding {
    let manager = tools.manager.borrow().clone();
    let detail = match &manager {
        Some(manager) => format!("session with {manager}"),
        None => "no manager answers this node; what runs goes on".to_owned(),
    };
    let hint = "look whether managers run and this machine reaches their port; \
                the node's log says what was tried";
    finding("manager", manager.is_some(), detail, hint)
}

fn disk(dir: &std::path::Path) -> Finding {
    let place = dir.display();
    match rustix::fs::statvfs(dir) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let inodes = stat.f_files == 0 || stat.f_favail > 0;
            let mut detail = format!("{} MiB free in {place}", free >> 20);
            if !inodes {
                detail.push_str(", no inodes left");
            }
            let hint = "free space: warren image ls shows what images take";
            finding("disk", inodes && free >= FREE_MIN_BYTES, detail, hint)
        }
        Err(error) => finding("disk", false, format!("look at {place}: {error}"), ""),
    }
}

fn network(features: &warren_net::Features) -> Vec<Finding> {
    let have = |yes: bool| if yes { "works" } else { "missing" };
    let mut out = vec![
        finding(
            "nf_tables",
            features.nf_tables,
            have(features.nf_tables),
            "load the module: modprobe nf_tables; without it no port can be published",
        ),
        finding(
            "veth",
            features.veth,
            have(features.veth),
            "load the module: modprobe veth; without it containers have no network",
        ),
        finding(
            "forwarding",
            features.ip_forward,
            if features.ip_forward { "on" } else { "off" },
            "turn it on: sysctl -w net.ipv4.ip_forward=1",
        ),
    ];
    let blockers = features.blockers.iter();
    out.extend(blockers.map(|blocker| finding("firewall", false, &blocker.what, &blocker.fix)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ok`, `bad` or `minor` findings about w2; what is told in short.
    #[track_caller]
    fn check(words: &str, nodes: usize, expected: &[&str]) {
        let findings = words.split_whitespace().map(|word| Finding {
            peer: "w2".to_owned(),
            minor: word == "minor",
            ..finding("clock", word == "ok", word, "")
        });
        let looked = network::Looked { name: "w1".to_owned(), findings: findings.collect(), nodes };
        let short = in_short(looked);
        let shown: Vec<String> =
            short.iter().map(|found| format!("{}: {}", found.name, found.detail)).collect();
        assert_eq!(shown, expected);
    }

    #[test]
    fn what_is_wrong_is_told_in_short() {
        check("", 0, &[]);
        check("ok ok", 1, &["network: reaches 1 other node"]);
        check("ok minor", 2, &["clock to w2: minor", "network: reaches 2 other nodes"]);
        check("ok bad minor", 2, &["clock to w2: bad", "clock to w2: minor"]);
    }
}
