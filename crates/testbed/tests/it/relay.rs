//! Nodes that do not reach each other over the tunnel: a third passes on what they send, and reads
//! none of it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_testbed::{Cluster, Link, Options};

use crate::network::vips;
use crate::pods::Pod;
use crate::support::SOON;
use crate::traffic::look_up;

const IDLE: [&str; 2] = ["sleep", "100000"];
const WEB: u16 = 80;
const WORD: &str = "quite-a-secret";
/// What a client waits for one answer; it asks again at once.
const PATIENCE: Duration = Duration::from_millis(250);
/// Found out, told, decided and gone another way; on a machine that does other things as well.
const AROUND_MAX: Duration = Duration::from_secs(5);
const BACK_MAX: Duration = Duration::from_secs(30);

struct World {
    cluster: Cluster,
    client: Pod,
    vip: Ipv4Addr,
}

impl World {
    /// A server on w2 and a client on w1.
    fn form(workers: usize) -> Result<Self> {
        let overlay = Some("wireguard".to_owned());
        let cluster =
            Cluster::form(1, workers, &Options { hybrid: true, overlay, ..Options::default() })?;
        let pod = |name: &str, node: &str| -> Result<Pod> {
            let at = format!("node.hostname=={node}");
            cluster.create(name, &["--no-healthcheck", "--constraint", &at], &IDLE)?;
            Pod::of(&cluster, &cluster.wait_running(name, 1, SOON)?[0])
        };
        let (server, client) = (pod("web", "w2")?, pod("client", "w1")?);
        Pod { name: WORD.to_owned(), ..server }.serve(WEB)?;
        let (vip, _) = vips(&cluster, "default", "web")?;
        let world = Self { cluster, client, vip };
        world.answered(SOON)?;
        Ok(world)
    }

    /// How long it takes until requests by name are answered.
    fn answered(&self, limit: Duration) -> Result<Duration> {
        let begun = Instant::now();
        loop {
            let said = self.ask()?;
            if said.starts_with(WORD) {
                return Ok(begun.elapsed());
            }
            if begun.elapsed() > limit {
                bail!("not answered within {limit:?}: {said}\n{}", self.cluster.last_words());
            }
        }
    }

    fn ask(&self) -> Result<String> {
        let found = self.client.within(|| look_up("web"))?;
        let found = found.map_err(anyhow::Error::msg)?;
        ensure!(found == [self.vip], "web is {found:?}");
        self.client.tcp_within(IpAddr::V4(self.vip), WEB, PATIENCE)
    }

    /// Who passes on for w1 and w2, as anybody is told; nobody.
    fn via(&self) -> Result<Option<String>> {
        let listed = self.cluster.asked()?.json(&["network", "inspect", "default"])?;
        let relays = listed[0]["relays"].as_array().context("relays")?.clone();
        let named = |relay: &serde_json::Value| {
            let mut nodes: Vec<_> = relay["nodes"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|n| n.as_str())
                .collect();
            nodes.sort_unstable();
            nodes == ["w1", "w2"]
        };
        let found = relays.iter().find(|relay| named(relay));
        Ok(found.and_then(|relay| relay["via"].as_str()).map(str::to_owned))
    }

    fn becomes(&self, via: Option<&str>, limit: Duration) -> Result<()> {
        self.cluster.until(&format!("w1 and w2 meet by {via:?}"), limit, || {
            Ok((self.via()?.as_deref() == via).then_some(()))
        })
    }

    fn carried(&self, from: &str, to: &str) -> Result<u64> {
        Ok(self.cluster.bed().traffic(from, to)?.bytes)
    }

    /// A thousand requests' worth, none of which anybody on the lines reads, and all of them by m1.
    fn goes_by(&self, via: &str) -> Result<()> {
        self.cluster.bed().listen();
        let before = self.carried("w1", via)?;
        for _ in 0..50 {
            let said = self.ask()?;
            ensure!(said.starts_with(WORD), "{said}");
        }
        let after = self.carried("w1", via)?;
        ensure!(after > before + 10_000, "{before} to {after} bytes by {via}");
        let heard = self.cluster.bed().heard()?;
        let word = WORD.as_bytes();
        let readable = heard.iter().any(|frame| frame.windows(word.len()).any(|part| part == word));
        ensure!(!readable, "what containers say can be read on the lines");
        Ok(())
    }
}

#[test]
fn host_nodes_that_do_not_reach_each_other_go_by_a_third() -> Result<()> {
    let world = World::form(2)?;
    let bed = world.cluster.bed();
    ensure!(world.via()?.is_none());
    bed.cut("w1", "w2")?;
    let took = world.answered(AROUND_MAX)?;
    eprintln!("cut both ways: answered after {took:?}");
    world.becomes(Some("m1"), SOON)?;
    world.goes_by("m1")?;
    // The data plane of the one in between is killed: another is there at once.
    let m1 = world.cluster.node("m1")?.host();
    let text = std::fs::read_to_string(m1.run_dir().join("data.pid"))?;
    m1.run("/bin/kill", &["-KILL", text.split_whitespace().next().context("a pid")?])?;
    let took = world.answered(AROUND_MAX)?;
    eprintln!("its data plane killed: answered after {took:?}");
    let doctor = world.cluster.node("w1")?.warren(&["doctor", "network", "w2"])?;
    ensure!(doctor.out.contains("by way of m1"), "{}", doctor.out);
    bed.heal();
    let begun = Instant::now();
    world.becomes(None, BACK_MAX)?;
    eprintln!("direct again after {:?}", begun.elapsed());
    let before = world.carried("w1", "w2")?;
    world.answered(AROUND_MAX)?;
    ensure!(world.carried("w1", "w2")? > before, "it goes elsewhere");
    let events = world.cluster.asked()?.ok(&["events"])?;
    ensure!(events.contains("by way of m1") && events.contains("itself again"), "{events}");
    // One direction alone.
    bed.shape_one_way("w1", "w2", Link::CUT)?;
    let took = world.answered(AROUND_MAX)?;
    eprintln!("cut one way: answered after {took:?}");
    world.becomes(Some("m1"), SOON)
}

#[test]
fn host_who_passes_on_is_replaced() -> Result<()> {
    let world = World::form(3)?;
    let bed = world.cluster.bed();
    let manager = world.cluster.asked()?;
    // Who is about to go is not chosen.
    manager.ok(&["node", "update", "m1", "--availability", "drain"])?;
    bed.cut("w1", "w2")?;
    world.answered(AROUND_MAX)?;
    world.becomes(Some("w3"), SOON)?;
    manager.ok(&["node", "update", "m1", "--availability", "active"])?;
    ensure!(world.via()?.as_deref() == Some("w3"), "a choice stands");
    world.cluster.node("w3")?.power_off()?;
    let took = world.answered(AROUND_MAX * 2)?;
    eprintln!("w3 without power: answered after {took:?}");
    world.becomes(Some("m1"), SOON)?;
    Ok(())
}
