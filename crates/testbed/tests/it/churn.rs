//! Services that come and go, daemons that die, machines and lines that fail:
//! what clients notice of it, and that names and virtual IPs are right after.

use anyhow::{Context, Result};
use serde_json::Value;
use warren_testbed::{Cluster, Options};

use crate::network::vips;
use crate::pods::Pod;
use crate::support::SOON;
use crate::traffic::{Traffic, page};

/// Answers with the name of its container. A stop lets it answer what it was asked already, and
/// nothing that comes later.
const SERVER: &str = "echo web $(hostname) > /www/index.html; httpd -p 80 -h /www; \
                      trap 'sleep 0.1; exit 0' TERM; while :; do sleep 0.05; done";
const PUBLISHED: u16 = 8080;

fn form() -> Result<Cluster> {
    Cluster::form(1, 2, &Options { hybrid: true, ..Options::default() })
}

fn pods(cluster: &Cluster, name: &str, count: usize) -> Result<Vec<Pod>> {
    let tasks = cluster.wait_running(name, count, SOON)?;
    tasks.iter().map(|task| Pod::of(cluster, task)).collect()
}

/// Clients in containers on all machines and one outside, each asking for `web` by its name, its
/// virtual IP and the published port of every node.
fn busy(cluster: &Cluster, replicas: usize) -> Result<Traffic> {
    let (published, count) = (format!("{PUBLISHED}:80"), replicas.to_string());
    let flags = ["--replicas", &count, "-p", &published, "--restart-delay", "0s"];
    cluster.create("web", &flags, &["sh", "-c", SERVER])?;
    cluster.create("client", &["--mode", "global"], &["sleep", "100000"])?;
    begin(cluster, replicas)
}

/// Once all servers answer everybody.
fn begin(cluster: &Cluster, replicas: usize) -> Result<Traffic> {
    let servers = pods(cluster, "web", replicas)?;
    let (clients, (vip, vip6)) = (pods(cluster, "client", 3)?, vips(cluster, "default", "web")?);
    let outside = Pod::machine(cluster.hub());
    for (client, server) in clients.iter().flat_map(|c| servers.iter().map(move |s| (c, s))) {
        let to = (server.v4, 80).into();
        cluster.until(&format!("{} answers {}", server.name, client.name), SOON, || {
            Ok(client.within(move || page(to))?.is_ok().then_some(()))
        })?;
    }
    let mut traffic = Traffic::new();
    for client in &clients {
        traffic.fetch(client, vip, 80, "web");
        traffic.fetch(client, vip6, 80, "web");
        traffic.look_up(client, "web", vip);
    }
    for node in cluster.nodes() {
        traffic.fetch(&outside, node.host().address(), PUBLISHED, "web");
    }
    Ok(traffic)
}

/// Daemons are killed, one after the other, and started again.
fn daemons_die(times: usize) -> Result<()> {
    let cluster = form()?;
    let traffic = busy(&cluster, 3)?;
    let names = ["w1", "w2", "m1"];
    for round in 0..times {
        let node = cluster.node(names[round % names.len()])?;
        node.kill()?;
        node.run()?;
        cluster.wait_ready(3, SOON)?;
    }
    traffic.end()?.all_answered()
}

#[test]
fn host_daemons_that_die_cost_no_request() -> Result<()> {
    daemons_die(3)
}

#[test]
fn soak_daemons_that_die_cost_no_request() -> Result<()> {
    daemons_die(20)
}

/// Only one state is wanted of the tasks that are not at their end.
fn settled(cluster: &Cluster, service: &str, count: usize) -> Result<()> {
    cluster.until(&format!("{service} has {count} tasks, all of them running"), SOON, || {
        let tasks = cluster.tasks(service)?;
        let ended = ["complete", "failed", "rejected", "removed"];
        let state = |task: &Value| task["state"].as_str().unwrap_or_default().to_owned();
        let live: Vec<String> = tasks.iter().map(state).collect();
        let mut live = live.iter().filter(|state| !ended.contains(&state.as_str()));
        let running = live.clone().filter(|state| *state == "running").count();
        Ok((running == count && live.all(|state| state == "running")).then_some(()))
    })
}

/// One that starts is led to before its program listens: readiness is another matter.
#[test]
fn host_backends_that_go_cost_no_request() -> Result<()> {
    let cluster = form()?;
    let mut traffic = busy(&cluster, 3)?;
    for round in 0..3 {
        for count in [2, 1] {
            cluster.asked()?.ok(&["service", "scale", &format!("web={count}")])?;
            settled(&cluster, "web", count)?;
        }
        traffic.end()?.all_answered().with_context(|| format!("round {round}"))?;
        cluster.asked()?.ok(&["service", "scale", "web=6"])?;
        traffic = begin(&cluster, 6)?;
    }
    cluster.asked()?.ok(&["service", "scale", "web=1"])?;
    settled(&cluster, "web", 1)?;
    traffic.end()?.all_answered()
}
