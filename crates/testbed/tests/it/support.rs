//! What the scenarios share: limits, small questions, and services to ask about.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_testbed::{Cluster, Node, Options};

/// For what takes seconds at most; the machine may be busy.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// A service that answers with the name of its container.
pub(crate) const PAGE: &str = "hostname > /www/index.html; exec httpd -f -p 80 -h /www";

/// As every scenario wants it: managers apart from workers, a registry.
pub(crate) fn form(managers: usize, workers: usize) -> Result<Cluster> {
    let cluster = Cluster::form(managers, workers, &Options::default())?;
    eprintln!("{managers}+{workers} formed in {:.2} s", cluster.formed_in().as_secs_f32());
    Ok(cluster)
}

/// Creates a service of `replicas` web servers at `port`, or without one, and waits for them.
pub(crate) fn web(
    cluster: &Cluster,
    name: &str,
    replicas: usize,
    port: Option<u16>,
    flags: &[&str],
) -> Result<Vec<Value>> {
    let (count, publish) = (replicas.to_string(), port.map(|port| format!("{port}:80")));
    let mut all = vec!["--replicas", count.as_str(), "--stop-signal", "KILL"];
    all.extend(["--restart-delay", "0s"]);
    if let Some(publish) = &publish {
        all.extend(["-p", publish.as_str()]);
    }
    all.extend(flags);
    cluster.create(name, &all, &["sh", "-c", PAGE])?;
    cluster.wait_running(name, replicas, SOON)
}

/// Names of the nodes that tasks are on.
pub(crate) fn nodes_of(tasks: &[Value]) -> BTreeSet<String> {
    tasks.iter().filter_map(|task| task["node"].as_str()).map(str::to_owned).collect()
}

/// What tells that nobody touched the containers: task, attempt and process of each.
pub(crate) fn identities(tasks: &[Value]) -> BTreeSet<(String, u64, u64, String)> {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let one = |task: &Value| {
        let text = |key: &str| task[key].as_str().unwrap_or_default().to_owned();
        (text("id"), number(&task["attempt"]), number(&task["pid"]), text("node"))
    };
    tasks.iter().map(one).collect()
}

/// For a while, nobody touches the containers of a service.
pub(crate) fn left_alone(
    cluster: &Cluster,
    service: &str,
    before: &[Value],
    time: Duration,
) -> Result<()> {
    let before = identities(before);
    holds("nobody touches a container", time, || {
        let now = identities(&cluster.tasks(service)?);
        if now != before {
            eprintln!("{service}: {before:?} became {now:?}");
        }
        Ok(now == before)
    })
}

/// Every node that has a task of the service answers at `port`, asked from the hub.
pub(crate) fn all_answer(cluster: &Cluster, tasks: &[Value], port: u16) -> Result<()> {
    for name in nodes_of(tasks) {
        let at = cluster.node(&name)?.host().socket(port);
        cluster.until(&format!("{name} answers at {port}"), SOON, || {
            let answer = cluster.hub().get(at, "/")?;
            Ok((answer.status == 200).then_some(()))
        })?;
    }
    Ok(())
}

/// What must hold the whole time; level-triggered, at least one look at the end.
pub(crate) fn holds(
    what: &str,
    time: Duration,
    mut look: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let start = Instant::now();
    loop {
        let last = start.elapsed() >= time;
        if !look()? {
            bail!("did not hold for {time:?}, but ended after {:?}: {what}", start.elapsed());
        }
        if last {
            return Ok(());
        }
        std::thread::sleep(warren_testbed::wait::PAUSE);
    }
}

/// A command that must be refused with this exit code; what it said.
pub(crate) fn refused(node: &Node, args: &[&str], exit: i32) -> Result<String> {
    let said = node.warren(args)?;
    if said.exit != exit {
        bail!("`warren {}` ended with {}, not {exit}: {said:?}", args.join(" "), said.exit);
    }
    Ok(said.err)
}

/// Names of the nodes of a role, as listed.
pub(crate) fn of_role(listed: &[Value], role: &str) -> BTreeSet<String> {
    let fitting = listed.iter().filter(|node| node["role"] == role);
    fitting.filter_map(|node| node["hostname"].as_str()).map(str::to_owned).collect()
}

/// Waits until the leader counts so many voters, all of them reachable.
pub(crate) fn wait_voters(cluster: &Cluster, count: usize) -> Result<()> {
    cluster.until(&format!("{count} managers vote"), SOON, || {
        let listed = cluster.leader()?.json(&["node", "ls"])?;
        let status = |node: &&Value| {
            ["leader", "voter"].iter().any(|status| node["manager_status"] == *status)
        };
        let voters = listed.iter().filter(status).count();
        if voters == count {
            return Ok(Some(()));
        }
        let all: Vec<String> =
            listed.iter().map(|node| node["manager_status"].to_string()).collect();
        bail!("{voters} vote: {all:?}")
    })
}

/// The names of all services.
pub(crate) fn service_names(cluster: &Cluster) -> Result<BTreeSet<String>> {
    let services = cluster.services()?;
    services
        .iter()
        .map(|service| service["name"].as_str().map(str::to_owned).context("a name"))
        .collect()
}
