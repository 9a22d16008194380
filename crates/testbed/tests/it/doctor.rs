//! What `warren doctor network` says of a network that works, and of one that does not: which
//! pair, which way, what is too large, who does not answer.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_testbed::{Cluster, Link, Node, Options, Said};

use crate::support::{SOON, web};

/// Longer than any look may take, with a second one of both sides.
const LOOK_MAX: Duration = Duration::from_secs(45);
/// For the command to see that nothing comes; it gives up after three seconds.
const HANGING_MAX: Duration = Duration::from_secs(12);
/// Ethernet, and a packet of 1300 bytes.
const SHORT: usize = 14 + 1300;

fn form(overlay: &str) -> Result<Cluster> {
    let overlay = Some(overlay.to_owned());
    Cluster::form(1, 2, &Options { hybrid: true, overlay, ..Options::default() })
}

/// What was said, and what each row says.
struct Look {
    said: Said,
    rows: Vec<Value>,
}

impl Look {
    fn at(node: &Node, args: &[&str]) -> Result<Self> {
        let start = std::time::Instant::now();
        let said = node.warren(&[&["doctor", "network", "--format", "json"], args].concat())?;
        assert!(start.elapsed() < LOOK_MAX, "it took {:?}", start.elapsed());
        let rows = serde_json::from_str(&said.out).with_context(|| format!("{said:?}"))?;
        Ok(Self { said, rows })
    }

    fn row(&self, to: &str, check: &str) -> Result<&Value> {
        let found = self.rows.iter().find(|row| row["to"] == to && row["check"] == check);
        found.with_context(|| format!("no {check} to {to}: {:#?}", self.rows))
    }

    /// Checks that are bad, as `to check`.
    fn bad(&self) -> Vec<String> {
        let bad = self.rows.iter().filter(|row| row["level"] == "bad");
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        bad.map(|row| format!("{} {}", text(row, "to"), text(row, "check")).trim().to_owned())
            .collect()
    }

    /// All is well, and told so for each other node.
    fn is_fine(&self, others: &[&str], checks: &[&str]) -> Result<()> {
        if self.said.exit != 0 || !self.bad().is_empty() {
            bail!("{:?}: {:#?}", self.bad(), self.rows);
        }
        for other in others {
            for check in checks {
                let row = self.row(other, check)?;
                assert_eq!((&row["level"], &row["hint"]), (&"ok".into(), &"".into()), "{row}");
            }
        }
        Ok(())
    }
}

/// Looks until what is found is as it should be.
fn until(
    cluster: &Cluster,
    what: &str,
    node: &Node,
    args: &[&str],
    fits: impl Fn(&Look) -> Result<bool>,
) -> Result<()> {
    cluster.until(what, SOON, || {
        let look = Look::at(node, args)?;
        match fits(&look) {
            Ok(true) => Ok(Some(())),
            Ok(false) => bail!("{:#?}", look.rows),
            Err(error) => Err(error),
        }
    })
}

fn fine(cluster: &Cluster, node: &Node, others: &[&str], checks: &[&str]) -> Result<()> {
    until(cluster, "all is fine", node, &[], |look| look.is_fine(others, checks).map(|()| true))
}

fn of_each_carrier(overlay: &str, checks: &[&str]) -> Result<()> {
    let cluster = form(overlay)?;
    web(&cluster, "web", 3, None, &[])?;
    for (name, others) in [("m1", ["w1", "w2"]), ("w1", ["m1", "w2"]), ("w2", ["m1", "w1"])] {
        let node = cluster.node(name)?;
        fine(&cluster, node, &others, checks)?;
        let look = Look::at(node, &[])?;
        if name != "m1" {
            assert_eq!(look.row("m1", "manager")?["level"], "ok");
        }
        let names = look.row("", "names")?;
        assert!(names["detail"].as_str().unwrap_or_default().contains("finds web"), "{names}");
        let short = node.warren(&["doctor"])?;
        assert!(short.out.contains("reaches 2 other nodes"), "{short:?}");
    }
    // Of one alone, also from elsewhere.
    let look = Look::at(cluster.node("m1")?, &["--from", "w1", "w2"])?;
    assert!(
        look.rows
            .iter()
            .all(|row| row["from"] == "w1"
                && ["w2", ""].contains(&row["to"].as_str().unwrap_or("?"))),
        "{:?}",
        look.said
    );
    let look = cluster.node("w1")?.warren(&["doctor", "network", "nobody"])?;
    assert!(look.exit == 1 && look.out.contains("no other node that this one knows"), "{look:?}");
    Ok(())
}

#[test]
fn host_doctor_finds_wireguard_fine() -> Result<()> {
    let checks = ["underlay", "tunnel", "overlay IPv4", "overlay IPv6", "published ports", "clock"];
    of_each_carrier("wireguard", &checks)
}

#[test]
fn host_doctor_finds_vxlan_fine() -> Result<()> {
    of_each_carrier("vxlan", &["underlay", "overlay IPv4", "overlay IPv6", "clock"])
}

#[test]
fn host_doctor_finds_plain_routes_fine() -> Result<()> {
    let checks = ["underlay", "overlay IPv4", "overlay IPv6", "published ports", "clock"];
    of_each_carrier("none", &checks)
}

#[test]
fn host_doctor_tells_the_pair_and_the_way() -> Result<()> {
    let cluster = form("wireguard")?;
    let manager = cluster.node("m1")?;
    fine(&cluster, manager, &["w1", "w2"], &["underlay", "tunnel"])?;
    let way = |from: &str, to: &str, check: &str, way: &str| {
        until(&cluster, &format!("{from} to {to}: {way}"), manager, &["--from", from], |look| {
            let of_pair = look.bad().iter().all(|bad| bad.starts_with(to));
            let row = look.row(to, check)?;
            let told = row["hint"].as_str().is_some_and(|hint| hint.contains("way from"));
            Ok(look.said.exit == 1 && of_pair && told && row["way"] == way)
        })
    };
    // Nor can a third node pass on: at first nothing goes to where it would.
    let third = manager.host();
    let shut = "table ip shut { chain in { type filter hook prerouting priority -400; \
                udp dport 51821-51836 drop; }; }";
    assert_eq!(third.run("nft", &[shut])?.exit, 0);
    // What comes from w1 does not arrive on w2; addresses of cards are still found.
    let receiver = cluster.node("w2")?.host();
    let from = cluster.node("w1")?.host().address();
    let lose = |what: &str| -> Result<()> {
        let rules = format!(
            "table ip cut {{ chain in {{ type filter hook prerouting priority -400; \
             ip saddr {from} {what} drop; }}; }}"
        );
        let said = receiver.run("nft", &[&rules])?;
        assert_eq!(said.exit, 0, "{said:?}");
        Ok(())
    };
    let heal = || receiver.run("nft", &["delete table ip cut"]);
    lose("")?;
    way("w1", "w2", "underlay", "out")?;
    way("w2", "w1", "underlay", "in")?;
    heal()?;
    // Only the tunnel's own port.
    lose("udp dport 51820")?;
    way("w1", "w2", "tunnel", "out")?;
    way("w2", "w1", "tunnel", "in")?;
    heal()?;
    // A cable that is cut.
    cluster.bed().cut("w1", "w2")?;
    way("w1", "w2", "underlay", "both")?;
    // In short it is told too, by the node itself.
    let short = cluster.node("w1")?.warren(&["doctor"])?;
    assert!(short.exit == 1 && short.out.contains("underlay to w2"), "{short:?}");
    cluster.bed().heal();
    fine(&cluster, cluster.node("w1")?, &["m1", "w2"], &["underlay", "tunnel"])?;
    // What they send each other goes by the third, which is told.
    assert_eq!(third.run("nft", &["delete table ip shut"])?.exit, 0);
    lose("udp dport 51820")?;
    for (from, to) in [("w1", "w2"), ("w2", "w1")] {
        until(&cluster, &format!("{from} to {to} by m1"), manager, &["--from", from], |look| {
            let row = look.row(to, "direct way")?;
            let told =
                row["detail"].as_str().is_some_and(|detail| detail.ends_with("by way of m1"));
            Ok(look.bad().is_empty() && told && row["level"] == "warn")
        })?;
    }
    heal()?;
    fine(&cluster, cluster.node("w1")?, &["m1", "w2"], &["underlay", "tunnel"])
}

#[test]
fn host_doctor_tells_what_is_too_large() -> Result<()> {
    let cluster = form("wireguard")?;
    let worker = cluster.node("w1")?;
    fine(&cluster, worker, &["m1", "w2"], &["overlay IPv4"])?;
    let narrow = Link { frame_max: Some(SHORT), ..Link::default() };
    cluster.bed().shape_one_way("w1", "w2", narrow)?;
    until(&cluster, "large packets are lost", worker, &[], |look| {
        let row = look.row("w2", "overlay IPv4")?;
        let told = row["detail"].as_str().unwrap_or_default();
        let told = told.starts_with("packets of 1420 bytes are lost, of 1");
        look.row("w2", "underlay")?;
        Ok(told && look.bad().iter().all(|bad| bad.starts_with("w2 overlay")))
    })?;
    cluster.bed().heal();
    fine(&cluster, worker, &["m1", "w2"], &["overlay IPv4", "overlay IPv6"])
}

#[test]
fn host_doctor_works_without_managers_and_data_plane() -> Result<()> {
    let cluster = form("wireguard")?;
    let (manager, worker) = (cluster.node("m1")?, cluster.node("w1")?);
    web(&cluster, "web", 3, None, &[])?;
    fine(&cluster, worker, &["m1", "w2"], &["tunnel"])?;
    manager.kill()?;
    until(&cluster, "the manager's port is shut", worker, &[], |look| {
        look.row("w2", "tunnel")?;
        Ok(look.said.exit == 1 && look.bad() == ["m1 manager"])
    })?;
    // One that hangs: nothing is carried, nobody is answered; soon it is replaced.
    let path = worker.host().run_dir().join("data.pid");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let pid = text.split_whitespace().next().context("a pid")?;
    worker.host().run("/bin/kill", &["-STOP", pid])?;
    let look = Look::at(worker, &[])?;
    for check in ["data plane", "names"] {
        assert_eq!(look.row("", check)?["level"], "bad", "{:#?}", look.rows);
    }
    assert_eq!(look.row("w2", "underlay")?["level"], "ok");
    assert_eq!(look.row("w2", "overlay IPv4")?["level"], "bad");
    manager.run()?;
    cluster.wait_ready(3, SOON)?;
    fine(&cluster, worker, &["m1", "w2"], &["tunnel"])?;
    let at = worker.host().socket(warren_testbed::node::ADMIN_PORT);
    let metrics = cluster.hub().get(at, "/metrics")?;
    let metrics = metrics.text();
    for name in ["peer_sent_bytes_total", "peer_last_handshake_seconds"] {
        let name = format!("warren_dataplane_{name}{{");
        let lines = metrics.lines().filter(|line| line.starts_with(&name));
        assert_eq!(lines.filter(|line| line.contains("name=\"w2\"")).count(), 1, "{metrics}");
    }
    Ok(())
}

#[test]
fn host_doctor_does_not_wait_for_a_daemon_that_hangs() -> Result<()> {
    let cluster = form("wireguard")?;
    let worker = cluster.node("w1")?;
    worker.pause();
    for args in [&["doctor", "network"][..], &["doctor"]] {
        let start = std::time::Instant::now();
        let said = worker.warren(args)?;
        assert!(start.elapsed() < HANGING_MAX, "{args:?} took {:?}", start.elapsed());
        let text = [said.out.as_str(), &said.err].concat();
        assert!(said.exit != 0 && text.contains("did not answer within"), "{said:?}");
    }
    worker.resume();
    cluster.wait_ready(3, SOON)?;
    fine(&cluster, worker, &["m1", "w2"], &["tunnel"])
}
