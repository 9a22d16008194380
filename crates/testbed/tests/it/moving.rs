//! Tasks that are moved while clients ask: to a machine that came back, and off one that drains.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;
use warren_testbed::{Cluster, Options};

use crate::network::vips;
use crate::pods::Pod;
use crate::support::SOON;
use crate::traffic::Traffic;

/// Answers with the name of its container. Told to stop, it answers what it was asked already.
const SERVER: &str = "echo web $(hostname) > /www/index.html; httpd -p 80 -h /www; \
                      trap 'sleep 0.1; exit 0' TERM; sleep 100000 & wait";
const PUBLISHED: u16 = 8080;
/// Ten moves, two at a time, each up for a second before the next; the machine may be busy.
const MOVED: Duration = Duration::from_secs(90);

/// Replicas that run and are wanted, by node; none while any is on its way.
fn settled(cluster: &Cluster) -> Result<Option<BTreeMap<String, usize>>> {
    let mut on = BTreeMap::new();
    for task in cluster.tasks("web")? {
        let text = |key: &str| task[key].as_str().unwrap_or_default().to_owned();
        match text("state").as_str() {
            "running" => *on.entry(text("node")).or_default() += 1,
            _ => return Ok(None),
        }
    }
    Ok(Some(on))
}

fn becomes(cluster: &Cluster, limit: Duration, expected: [(&str, usize); 3]) -> Result<()> {
    let expected = expected.into_iter().filter(|(_, count)| *count > 0);
    let expected = expected.map(|(node, count)| (node.to_owned(), count)).collect();
    cluster.until(&format!("replicas are {expected:?}"), limit, || {
        Ok((settled(cluster)?.as_ref() == Some(&expected)).then_some(()))
    })
}

/// Clients in containers of two machines and one outside, asking by the virtual IP and by the
/// published port of nodes that stay.
fn busy(cluster: &Cluster, stay: [&str; 2]) -> Result<Traffic> {
    let (vip, _) = vips(cluster, "default", "web")?;
    let mut traffic = Traffic::new();
    for task in cluster.tasks("client")? {
        let node = task["node"].as_str().unwrap_or_default();
        if stay.contains(&node) && task["state"] == "running" {
            let pod = Pod::of(cluster, &task)?;
            traffic.fetch(&pod, vip, 80, "web");
            traffic.look_up(&pod, "web", vip);
        }
    }
    let outside = Pod::machine(cluster.hub());
    for name in stay {
        traffic.fetch(&outside, cluster.node(name)?.host().address(), PUBLISHED, "web");
    }
    Ok(traffic)
}

fn form(replicas: &str) -> Result<Cluster> {
    let cluster = Cluster::form(1, 3, &Options::default())?;
    let published = format!("{PUBLISHED}:80");
    cluster.create("client", &["--mode", "global"], &["sleep", "100000"])?;
    let flags = ["--replicas", replicas, "-p", &published, "--stop-grace-period", "3s"];
    cluster.create("web", &flags, &["sh", "-c", SERVER])?;
    Ok(cluster)
}

#[test]
fn host_a_machine_that_comes_back_gets_its_part_and_no_request_fails() -> Result<()> {
    let cluster = form("30")?;
    becomes(&cluster, SOON, [("w1", 10), ("w2", 10), ("w3", 10)])?;
    cluster.node("w3")?.power_off()?;
    becomes(&cluster, MOVED, [("w1", 15), ("w2", 15), ("w3", 0)])?;
    let traffic = busy(&cluster, ["w1", "w2"])?;
    let node = cluster.node("w3")?;
    node.host().up()?;
    node.run()?;
    let back = Instant::now();
    becomes(&cluster, MOVED, [("w1", 10), ("w2", 10), ("w3", 10)])?;
    eprintln!("10/10/10 after {:.1} s", back.elapsed().as_secs_f32());
    traffic.end()?.all_answered()?;
    let moved = |task: &&Value| task["cause"] == "balance" && task["desired_state"] == "running";
    assert_eq!(cluster.tasks("web")?.iter().filter(moved).count(), 10);
    Ok(())
}

#[test]
fn host_a_drain_costs_no_request_and_is_taken_back() -> Result<()> {
    let cluster = form("4")?;
    cluster.wait_running("web", 4, SOON)?;
    let traffic = busy(&cluster, ["w1", "w2"])?;
    let manager = cluster.asked()?;
    manager.ok(&["node", "drain", "--wait", "--timeout", "60s", "--deadline", "50s", "w3"])?;
    let on = cluster.until("nothing is on its way", SOON, || settled(&cluster))?;
    assert!(!on.contains_key("w3") && on.values().sum::<usize>() == 4, "{on:?}");
    manager.ok(&["node", "activate", "w3"])?;
    traffic.end()?.all_answered()
}
