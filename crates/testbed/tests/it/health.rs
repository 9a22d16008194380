//! Health of containers, on several nodes: who is out of rotation, when, and what becomes of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_testbed::{Cluster, Options};

use crate::names::dig;
use crate::pods::Pod;
use crate::support::{PAGE, SOON, holds, refused};

const PORT: u16 = 8080;
/// Of the checks here.
const INTERVAL: &str = "200ms";

fn form() -> Result<Cluster> {
    Cluster::form(1, 2, &Options { hybrid: true, ..Options::default() })
}

/// Tasks of a service that are wanted, once they have this health, sorted by slot.
fn become_so(cluster: &Cluster, service: &str, expected: &[&str]) -> Result<Vec<Value>> {
    cluster.until(&format!("{service} is {expected:?}"), SOON, || {
        let mut tasks = cluster.tasks(service)?;
        tasks.sort_by_key(|task| task["slot"].as_u64());
        let health: Vec<&str> = tasks.iter().filter_map(|task| task["health"].as_str()).collect();
        let runs = tasks.iter().all(|task| task["state"] == "running");
        if runs && health == expected {
            return Ok(Some(tasks));
        }
        bail!("{tasks:?}")
    })
}

/// Containers that answer at a node's published port, asked some times.
fn answering(cluster: &Cluster, node: &str) -> Result<BTreeSet<String>> {
    let at = cluster.node(node)?.host().socket(PORT);
    let ask = |_| {
        cluster
            .hub()
            .get(at, "/")
            .map_or_else(|_| "nobody".to_owned(), |answer| page_of(&answer.body))
    };
    Ok((0..12).map(ask).map(|page| page.trim().to_owned()).collect())
}

fn page_of(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

/// By the name that its page says.
fn pod(cluster: &Cluster, task: &Value) -> Result<Pod> {
    let name = task["id"].as_str().context("id")?[..12].to_owned();
    Ok(Pod { name, ..Pod::of(cluster, task)? })
}

fn all_lead_to(cluster: &Cluster, expected: &[&Pod]) -> Result<Duration> {
    let mut names: BTreeSet<String> = expected.iter().map(|pod| pod.name.clone()).collect();
    if names.is_empty() {
        names.insert("nobody".to_owned());
    }
    let start = Instant::now();
    for node in cluster.nodes() {
        cluster.until(&format!("{} leads to {names:?}", node.name()), SOON, || {
            let found = answering(cluster, node.name())?;
            if found == names { Ok(Some(())) } else { bail!("{found:?}") }
        })?;
    }
    Ok(start.elapsed())
}

/// What events say of changes of health.
fn events(cluster: &Cluster) -> Result<Vec<String>> {
    let text = cluster.asked()?.ok(&["events", "--format", "json"])?;
    let all = text.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    let health = all.iter().filter(|event| event["action"] == "health");
    Ok(health.filter_map(|event| event["message"].as_str()).map(str::to_owned).collect())
}

fn addresses(pods: &[&Pod]) -> Vec<String> {
    let mut all: Vec<String> = pods.iter().map(|pod| pod.v4.to_string()).collect();
    all.sort();
    all
}

fn becomes(cluster: &Cluster, client: &Pod, expected: &[String]) -> Result<()> {
    cluster.until(&format!("tasks.web is {expected:?}"), SOON, || {
        let said = dig(client, "tasks.web", "A")?;
        if said == expected { Ok(Some(())) } else { bail!("{said:?}") }
    })
}

#[test]
fn host_who_is_unhealthy_is_out_of_rotation_everywhere() -> Result<()> {
    let cluster = form()?;
    let manager = cluster.asked()?;
    let flags = [
        &["--replicas", "2", "-p", "8080:80", "--health-http", "/health"][..],
        &["--health-interval", INTERVAL, "--health-retries", "2", "--health-action", "none"],
    ];
    let page = format!("echo fine > /www/health; {PAGE}");
    cluster.create("web", &flags.concat(), &["sh", "-c", &page])?;
    let tasks = become_so(&cluster, "web", &["healthy"; 2])?;
    let pods: Vec<Pod> = tasks.iter().map(|task| pod(&cluster, task)).collect::<Result<_>>()?;
    let (first, second) = (&pods[0], &pods[1]);
    cluster.create("client", &["--replicas", "1"], &["sleep", "600"])?;
    let client = Pod::of(&cluster, &cluster.wait_running("client", 1, SOON)?[0])?;
    all_lead_to(&cluster, &[first, second])?;
    becomes(&cluster, &client, &addresses(&[first, second]))?;

    manager.ok(&["exec", "web.1", "/bin/busybox", "rm", "/www/health"])?;
    let sick = become_so(&cluster, "web", &["unhealthy", "healthy"])?;
    let error = sick[0]["error"].as_str().context("why")?;
    assert!(error.starts_with("GET /health: status 404"), "{error}");
    let took = all_lead_to(&cluster, &[second])?;
    eprintln!("out of rotation on all nodes {took:?} after it was seen in the listing");
    becomes(&cluster, &client, &addresses(&[second]))?;
    manager.ok(&["exec", "web.2", "/bin/busybox", "rm", "/www/health"])?;
    become_so(&cluster, "web", &["unhealthy"; 2])?;
    // Nobody rather than somebody who says that it cannot.
    all_lead_to(&cluster, &[])?;
    becomes(&cluster, &client, &[])?;
    let rows = manager.json(&["service", "ls"])?;
    let row = rows.iter().find(|row| row["name"] == "web").context("web")?;
    assert_eq!((&row["running"], &row["desired"]), (&0.into(), &2.into()));
    refused(manager, &["wait", "service", "web", "--timeout", "0s"], 1)?;

    for slot in ["web.1", "web.2"] {
        manager.ok(&["exec", slot, "sh", "-c", "echo fine > /www/health"])?;
    }
    let well = become_so(&cluster, "web", &["healthy"; 2])?;
    all_lead_to(&cluster, &[first, second])?;
    becomes(&cluster, &client, &addresses(&[first, second]))?;
    // Nobody touched the containers.
    let identity = |tasks: &[Value]| crate::support::identities(tasks);
    assert_eq!(identity(&well), identity(&tasks));
    let said = events(&cluster)?;
    assert!(said.iter().any(|said| said.starts_with("running (unhealthy): GET")), "{said:?}");
    assert!(said.iter().any(|said| said == "running (healthy)"), "{said:?}");
    Ok(())
}

#[test]
fn host_what_fails_its_check_is_restarted_in_place() -> Result<()> {
    let cluster = form()?;
    let manager = cluster.asked()?;
    let flags = [
        &["--replicas", "1", "--health-cmd", "test ! -e /tmp/sick", "--stop-signal", "KILL"][..],
        &["--health-interval", INTERVAL, "--health-retries", "1", "--restart-delay", "0s"],
    ];
    cluster.create("job", &flags.concat(), &["sleep", "600"])?;
    let before = become_so(&cluster, "job", &["healthy"])?;
    manager.ok(&["exec", "job.1", "touch", "/tmp/sick"])?;
    let after = cluster.until("it is restarted", SOON, || {
        let tasks = become_so(&cluster, "job", &["healthy"])?;
        Ok((tasks[0]["attempt"] != before[0]["attempt"]).then_some(tasks))
    })?;
    assert_eq!(after[0]["id"], before[0]["id"]);
    assert_eq!(after[0]["restarts"], 1);
    let said = events(&cluster)?;
    assert!(said.iter().any(|said| said.contains("unhealthy): exit code 1")), "{said:?}");

    // One that hangs is killed with its children, and never asked twice at once.
    let change = ["--health-cmd", "sleep 300; true", "--health-timeout", "300ms"];
    let keep = ["--health-action", "none", "--health-start-period", "0s", "--detach"];
    manager.ok(&[&["service", "update", "job"][..], &change, &keep].concat())?;
    let new = cluster.until("the new one hangs", SOON, || {
        let tasks = cluster.tasks("job")?;
        Ok(tasks.into_iter().find(|task| task["health"] == "unhealthy"))
    })?;
    assert_eq!(new["error"], "no answer within 300ms");
    // The old one, which works, stays.
    assert_eq!(cluster.tasks("job")?.len(), 2);
    let id = new["id"].as_str().context("id")?;
    holds("one probe at a time: a shell and its child", Duration::from_secs(2), || {
        let list = "for p in /proc/[0-9]*/cmdline; do /bin/busybox tr '\\0' ' ' < $p; echo; done";
        let said = manager.ok(&["exec", id, "sh", "-c", list])?;
        Ok(said
            .lines()
            .filter(|line| line.contains("sleep 300") && !line.contains("/proc"))
            .count()
            <= 3)
    })
}

#[test]
fn host_a_port_that_nobody_listens_at_is_out_of_rotation() -> Result<()> {
    let cluster = form()?;
    let manager = cluster.asked()?;
    let page = format!("while [ ! -e /tmp/go ]; do sleep 0.05; done; {PAGE}");
    cluster.create("web", &["--replicas", "1", "-p", "8080:80"], &["sh", "-c", &page])?;
    let tasks = become_so(&cluster, "web", &["starting"])?;
    assert_eq!(tasks[0]["health_implicit"], true);
    cluster.until("it is said why", SOON, || {
        let tasks = cluster.tasks("web")?;
        let error = tasks[0]["error"].as_str().unwrap_or_default().to_owned();
        Ok(error.contains("connection refused").then_some(()))
    })?;
    all_lead_to(&cluster, &[])?;
    refused(manager, &["wait", "service", "web", "--timeout", "0s"], 1)?;
    manager.ok(&["exec", "web.1", "touch", "/tmp/go"])?;
    manager.ok(&["wait", "service", "web", "--timeout", "20s"])?;
    let tasks = become_so(&cluster, "web", &["healthy"])?;
    assert_eq!((&tasks[0]["attempt"], &tasks[0]["error"]), (&1.into(), &Value::Null));
    all_lead_to(&cluster, &[&pod(&cluster, &tasks[0])?])?;
    // A port that was wrong is put right without another container.
    cluster.create("api", &["--replicas", "1", "-p", "8081:81"], &["sh", "-c", PAGE])?;
    become_so(&cluster, "api", &["starting"])?;
    let right = ["--publish-rm", "81", "--publish-add", "8081:80"];
    manager.ok(&[&["service", "update", "api"][..], &right].concat())?;
    let tasks = become_so(&cluster, "api", &["healthy"])?;
    assert_eq!(tasks[0]["attempt"], 1);
    // Nothing is asked: in rotation as soon as it runs.
    cluster.create("off", &["--no-healthcheck", "-p", "8082:80"], &["sleep", "600"])?;
    manager.ok(&["wait", "service", "off", "--timeout", "20s"])?;
    become_so(&cluster, "off", &["none"])?;
    // Nobody may reach it, but its node asks all the same.
    let flags = ["--replicas", "2", "--health-tcp", "80", "--health-interval", INTERVAL];
    cluster.create("shut", &flags, &["sh", "-c", PAGE])?;
    manager.ok(&["policy", "create", "shut", "--deny", "--to", "shut"])?;
    manager.ok(&["service", "restart", "shut"])?;
    let tasks = become_so(&cluster, "shut", &["healthy"; 2])?;
    crate::support::left_alone(&cluster, "shut", &tasks, Duration::from_secs(2))?;
    become_so(&cluster, "shut", &["healthy"; 2]).map(drop)
}
