//! Names of services, asked by real resolvers from inside containers: who finds
//! what, and that answers go on while daemons and data planes die.

use std::process::Command;
use std::slice::from_ref;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_testbed::{Cluster, Options};

use crate::network;
use crate::pods::Pod;
use crate::support::{SOON, web};

/// Longer than any answer takes, shorter than a person's patience.
const ASK_SECONDS: &str = "+time=2";
/// A data plane that dies is back within this (a client asks again within it).
const BACK: Duration = Duration::from_secs(1);

fn form() -> Result<Cluster> {
    Cluster::form(1, 2, &Options { hybrid: true, ..Options::default() })
}

fn pods(tasks: &[Value], cluster: &Cluster) -> Result<Vec<Pod>> {
    tasks.iter().map(|task| Pod::of(cluster, task)).collect()
}

/// What a resolver in a container says, sorted; `NXDOMAIN` and the like where that is the answer.
pub(crate) fn dig(pod: &Pod, name: &str, kind: &str) -> Result<Vec<String>> {
    let out = pod.within(|| {
        let flags = ["@169.254.1.1", ASK_SECONDS, "+tries=1", "+noall", "+answer", "+comments"];
        Command::new("dig").args(flags).args([name, kind]).output()
    })??;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let status = text.split("status: ").nth(1).and_then(|rest| rest.split(',').next());
    let status = status.with_context(|| format!("{name} {kind} by {}: {text}", pod.name))?;
    if status != "NOERROR" {
        return Ok(vec![status.to_owned()]);
    }
    let lines = text.lines().filter(|line| !line.starts_with(';') && !line.is_empty());
    let mut found: Vec<String> =
        lines.map(|line| line.split_whitespace().skip(4).collect::<Vec<_>>().join(" ")).collect();
    found.sort();
    Ok(found)
}

fn becomes(
    cluster: &Cluster,
    pod: &Pod,
    name: &str,
    kind: &str,
    expected: &[String],
) -> Result<()> {
    cluster.until(&format!("{name} {kind} is {expected:?} for {}", pod.name), SOON, || {
        let said = dig(pod, name, kind)?;
        if said == expected { Ok(Some(())) } else { bail!("{said:?}") }
    })
}

fn sorted(all: impl Iterator<Item = String>) -> Vec<String> {
    let mut all: Vec<String> = all.collect();
    all.sort();
    all
}

/// Virtual IPs of a service on a network, as text.
fn vips(cluster: &Cluster, network: &str, service: &str) -> Result<(String, String)> {
    let (v4, v6) = network::vips(cluster, network, service)?;
    Ok((v4.to_string(), v6.to_string()))
}

#[test]
fn host_containers_find_services_by_name() -> Result<()> {
    let cluster = form()?;
    let manager = cluster.asked()?;
    manager.ok(&["network", "create", "back"])?;
    manager.ok(&["network", "create", "other"])?;
    let servers = web(&cluster, "web", 3, None, &["--network", "back,alias=shop"])?;
    let servers = pods(&servers, &cluster)?;
    let everywhere = |name: &str, network: &str| -> Result<Vec<Pod>> {
        let flags = ["--mode", "global", "--network", network, "--stop-signal", "KILL"];
        cluster.create(name, &flags, &["sleep", "100000"])?;
        pods(&cluster.wait_running(name, 3, SOON)?, &cluster)
    };
    let (v4, v6) = vips(&cluster, "back", "web")?;
    let tasks = sorted(servers.iter().map(|pod| pod.v4.to_string()));
    let tasks6: Result<Vec<_>> = servers.iter().map(Pod::v6).collect();
    let tasks6 = sorted(tasks6?.into_iter().map(|address| address.to_string()));
    for client in everywhere("client", "back")? {
        becomes(&cluster, &client, "web", "A", from_ref(&v4))?;
        becomes(&cluster, &client, "shop", "A", from_ref(&v4))?;
        becomes(&cluster, &client, "web.warren.internal", "AAAA", from_ref(&v6))?;
        becomes(&cluster, &client, "tasks.web", "A", &tasks)?;
        becomes(&cluster, &client, "tasks.web", "AAAA", &tasks6)?;
        let reverse = v4.split('.').rev().collect::<Vec<_>>().join(".");
        let name = "web.warren.internal.".to_owned();
        becomes(&cluster, &client, &format!("{reverse}.in-addr.arpa"), "PTR", &[name])?;
        becomes(&cluster, &client, "nobody", "A", &["NXDOMAIN".to_owned()])?;
    }
    // The program's own resolver, by the container's own resolv.conf; the page is a host name.
    let said = manager.ok(&["exec", "client", "wget", "-q", "-O-", "http://web/"])?;
    assert!(!said.trim().is_empty(), "{said}");
    // Nobody finds what is on other networks.
    for client in everywhere("stranger", "other")? {
        becomes(&cluster, &client, "stranger", "AAAA", &[vips(&cluster, "other", "stranger")?.1])?;
        becomes(&cluster, &client, "web", "A", &["NXDOMAIN".to_owned()])?;
        becomes(&cluster, &client, "tasks.web", "A", &["NXDOMAIN".to_owned()])?;
    }
    // One that goes is in no answer any more.
    manager.ok(&["service", "scale", "web=1"])?;
    let left = pods(&cluster.wait_running("web", 1, SOON)?, &cluster)?;
    let left = sorted(left.iter().map(|pod| pod.v4.to_string()));
    for client in pods(&cluster.wait_running("client", 3, SOON)?, &cluster)? {
        becomes(&cluster, &client, "tasks.web", "A", &left)?;
    }
    Ok(())
}

/// Slots, named ports and what containers call themselves.
#[test]
fn host_parts_of_services_have_names() -> Result<()> {
    let cluster = form()?;
    let port = ["-p", "published=8080,target=80,name=http", "--hostname", "box"];
    let servers = pods(&web(&cluster, "web", 3, None, &port)?, &cluster)?;
    let port = ["-p", "published=5432,target=432,name=pg", "--endpoint-mode", "dnsrr"];
    // Nothing listens there.
    let port = [&port[..], &["--no-healthcheck"]].concat();
    let plain = pods(&web(&cluster, "db", 1, None, &port)?, &cluster)?;
    let (v4, _) = vips(&cluster, "default", "web")?;
    let all = sorted(servers.iter().map(|pod| pod.v4.to_string()));
    for client in servers.iter().chain(&plain) {
        for server in &servers {
            let (service, slot) = server.name.split_once('.').context("a slot")?;
            let name = format!("{slot}.{service}");
            becomes(&cluster, client, &name, "A", &[server.v4.to_string()])?;
            becomes(&cluster, client, &name, "AAAA", &[server.v6()?.to_string()])?;
        }
        becomes(&cluster, client, "4.web", "A", &["NXDOMAIN".to_owned()])?;
        becomes(&cluster, client, "box", "A", &all)?;
        let srv = "0 1 80 web.warren.internal.".to_owned();
        becomes(&cluster, client, "_http._tcp.web", "SRV", from_ref(&srv))?;
        becomes(&cluster, client, "web.warren.internal", "A", from_ref(&v4))?;
        // Without a virtual IP a port is at each task.
        let srv = "0 1 432 1.db.warren.internal.".to_owned();
        becomes(&cluster, client, "_pg._tcp.db.warren.internal", "SRV", &[srv])?;
        becomes(&cluster, client, "1.db.warren.internal", "A", &[plain[0].v4.to_string()])?;
        becomes(&cluster, client, "_pg._udp.db", "SRV", &["NXDOMAIN".to_owned()])?;
    }
    // The port is called otherwise from now on.
    let manager = cluster.asked()?;
    let port = "published=5432,target=432,name=sql";
    let change = ["--publish-rm", "432", "--publish-add", port];
    manager.ok(&[&["service", "update", "--detach"], &change[..], &["db"]].concat())?;
    let srv = "0 1 432 1.db.warren.internal.".to_owned();
    becomes(&cluster, &servers[0], "_sql._tcp.db", "SRV", &[srv])?;
    becomes(&cluster, &servers[0], "_pg._tcp.db", "SRV", &["NXDOMAIN".to_owned()])
}

#[test]
fn host_names_outlive_daemon_and_data_plane() -> Result<()> {
    let cluster = form()?;
    let servers = web(&cluster, "web", 3, None, &[])?;
    let servers = pods(&servers, &cluster)?;
    let (v4, _) = vips(&cluster, "default", "web")?;
    let worker = cluster.node("w1")?;
    let client = servers.iter().find(|pod| pod.host.name() == "w1").context("one on w1")?;
    let far = servers.iter().find(|pod| pod.host.name() != "w1").context("one elsewhere")?;
    let whole = || -> Result<()> {
        assert_eq!(dig(client, "web", "A")?, from_ref(&v4));
        assert!(client.ping(far.v4)?, "{} is not reached", far.name);
        Ok(())
    };
    becomes(&cluster, client, "web", "A", from_ref(&v4))?;
    cluster.until("the other node is reached", SOON, || Ok(client.ping(far.v4)?.then_some(())))?;
    let plane = || -> Result<String> {
        let path = worker.host().run_dir().join("data.pid");
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        Ok(text.split_whitespace().next().context("a pid")?.to_owned())
    };
    // The daemon is killed: nothing is lost, also not while the next one begins.
    let before = plane()?;
    worker.kill()?;
    whole()?;
    worker.run()?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        whole()?;
    }
    assert_eq!(plane()?, before, "the data plane was replaced");
    // The data plane is killed: another one takes its place.
    let start = Instant::now();
    worker.host().run("/bin/kill", &["-KILL", &before])?;
    cluster.until("all is as before", BACK, || {
        let is_new = plane()? != before;
        Ok((is_new && client.ping(far.v4)? && dig(client, "web", "A")? == from_ref(&v4))
            .then_some(()))
    })?;
    eprintln!("the data plane was away for at most {:?}", start.elapsed());
    whole()
}
