//! Workers are lost, cut off and rebooted.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;
use warren_testbed::{Cluster, Node};

use crate::support::{
    SOON, all_answer, form, holds, identities, left_alone, nodes_of, wait_voters, web,
};

/// Tasks of a lost node run elsewhere; measured far below on an idle machine.
const ELSEWHERE_MAX: Duration = Duration::from_secs(20);
/// A container that ended runs again on its node, whoever can be reached.
const RESTARTED_MAX: Duration = Duration::from_secs(10);
/// So long after a change the last of it has been written to the disk.
const KEPT_QUIET: Duration = Duration::from_millis(1500);
/// As long as a partition lasts: longer than the default patience with a silent node.
const PARTITION: Duration = Duration::from_secs(8);

/// The task of a service on a node.
fn task_on(tasks: &[Value], node: &str) -> Result<Value> {
    let found = tasks.iter().find(|task| task["node"] == node);
    found.cloned().with_context(|| format!("no task on {node}: {tasks:?}"))
}

/// Processes of containers of the image on a machine, as it numbers them.
fn servers(node: &Node) -> Result<Vec<String>> {
    let said = node.host().run("ps", &["-eo", "pid,args"])?;
    let lines =
        said.out.lines().map(str::trim).filter(|line| line.ends_with("httpd -f -p 80 -h /www"));
    Ok(lines.filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
}

fn wait_elsewhere(
    cluster: &Cluster,
    service: &str,
    count: usize,
    lost: &str,
) -> Result<Vec<Value>> {
    let start = Instant::now();
    let tasks = cluster.until("its tasks run elsewhere", ELSEWHERE_MAX, || {
        let tasks = cluster.tasks(service)?;
        let running = |task: &&Value| task["state"] == "running" && task["node"] != lost;
        Ok((tasks.iter().filter(running).count() == count).then_some(tasks))
    })?;
    eprintln!("elsewhere after {:.2} s", start.elapsed().as_secs_f32());
    Ok(tasks)
}

#[test]
fn host_worker_loses_power() -> Result<()> {
    let cluster = form(3, 3)?;
    let before = web(&cluster, "web", 3, Some(8080), &[])?;
    assert_eq!(nodes_of(&before).len(), 3, "{before:?}");
    let lost = cluster.node("w1")?;
    lost.power_off()?;
    let tasks = wait_elsewhere(&cluster, "web", 3, "w1")?;
    all_answer(&cluster, &tasks, 8080)?;
    cluster.until("it is told to be down", SOON, || {
        let listed = cluster.listed()?;
        let down = |node: &Value| node["hostname"] == "w1" && node["status"] == "down";
        Ok(listed.iter().any(down).then_some(()))
    })?;

    lost.host().up()?;
    lost.run()?;
    cluster.wait_ready(6, SOON)?;
    // What has moved stays where it is, and comes back to nobody.
    holds("nothing of it starts there again", Duration::from_secs(2), || {
        Ok(identities(&tasks) == identities(&cluster.tasks("web")?) && servers(lost)?.is_empty())
    })
}

#[test]
fn host_worker_is_cut_off() -> Result<()> {
    let cluster = form(3, 3)?;
    wait_voters(&cluster, 3)?;
    let kept = web(&cluster, "kept", 3, None, &["--on-disconnect", "keep"])?;
    let moved = web(&cluster, "moved", 3, None, &[])?;
    assert_eq!((nodes_of(&kept).len(), nodes_of(&moved).len()), (3, 3));
    let worker = cluster.node("w1")?;
    let pid = task_on(&kept, "w1")?["pid"].as_u64().context("a pid")?.to_string();
    assert_eq!(servers(worker)?.len(), 2);

    cluster.bed().isolate("w1")?;
    let cut = Instant::now();
    let replaced = wait_elsewhere(&cluster, "moved", 3, "w1")?;
    // Both go on while nobody can be asked: the stale copy as well.
    assert_eq!(servers(worker)?.len(), 2);
    worker.host().run("/bin/kill", &["-KILL", &pid])?;
    let killed = Instant::now();
    cluster.until("it is started again there", RESTARTED_MAX, || {
        let running = servers(worker)?;
        Ok((running.len() == 2 && !running.contains(&pid)).then_some(()))
    })?;
    eprintln!("restarted while cut off after {:.2} s", killed.elapsed().as_secs_f32());
    holds("what is to be kept is left alone", PARTITION.saturating_sub(cut.elapsed()), || {
        let now = cluster.tasks("kept")?;
        let ids = |tasks: &[Value]| tasks.iter().map(|t| t["id"].clone()).collect::<Vec<_>>();
        Ok(ids(&now) == ids(&kept))
    })?;

    cluster.bed().heal();
    cluster.wait_ready(6, SOON)?;
    // The stale copy is stopped, the kept one is not touched again.
    cluster.until("one of the two is left", SOON, || {
        Ok((servers(worker)?.len() == 1).then_some(()))
    })?;
    let healed = cluster.until("the kept one is told as it is", SOON, || {
        let task = task_on(&cluster.tasks("kept")?, "w1")?;
        Ok((task["state"] == "running" && task["attempt"] == 2).then_some(task))
    })?;
    assert_eq!(healed["id"], task_on(&kept, "w1")?["id"]);
    assert_eq!(vec![healed["pid"].to_string()], servers(worker)?);
    assert_eq!(identities(&replaced), identities(&cluster.wait_running("moved", 3, SOON)?));
    Ok(())
}

#[test]
fn host_worker_reboots_without_managers() -> Result<()> {
    let cluster = form(1, 2)?;
    let before = web(&cluster, "web", 4, None, &["--on-disconnect", "keep"])?;
    let on_first = before.iter().filter(|task| task["node"] == "w1").count();
    assert!(on_first > 0, "{before:?}");
    let (manager, worker) = (cluster.node("m1")?, cluster.node("w1")?);
    // What is assigned is on disk a moment later; a power cut before that is another story.
    let kept = worker.host().data_dir().join("agent").join("assignments");
    cluster.until("what it holds is on its disk", SOON, || {
        let written = std::fs::metadata(&kept).and_then(|file| file.modified());
        let quiet = written.ok().and_then(|written| written.elapsed().ok());
        Ok(quiet.is_some_and(|quiet| quiet > KEPT_QUIET).then_some(()))
    })?;
    manager.pause();
    worker.reboot()?;
    let booted = Instant::now();
    cluster.until("everything is up from what it kept", SOON, || {
        Ok((servers(worker)?.len() == on_first).then_some(()))
    })?;
    eprintln!("{on_first} tasks up {:.2} s after the boot", booted.elapsed().as_secs_f32());
    let running = servers(worker)?;

    manager.resume();
    cluster.wait_ready(3, SOON)?;
    let after = cluster.wait_running("web", 4, SOON)?;
    let ids =
        |tasks: &[Value]| identities(tasks).into_iter().map(|t| (t.0, t.3)).collect::<Vec<_>>();
    assert_eq!(ids(&before), ids(&after));
    holds("nothing restarts", Duration::from_secs(2), || Ok(servers(worker)? == running))
}

/// kill -9 of a worker's daemon is no reason to touch its containers, and SIGSTOP none either
/// while it is short.
#[test]
fn host_worker_daemon_comes_and_goes() -> Result<()> {
    let cluster = form(1, 2)?;
    let before = web(&cluster, "web", 4, Some(8080), &[])?;
    let worker = cluster.node("w1")?;
    let certificate = worker.host().data_dir().join("certificate");
    let sealed = std::fs::read(&certificate)?;
    worker.kill()?;
    worker.run()?;
    cluster.wait_ready(3, SOON)?;
    left_alone(&cluster, "web", &before, Duration::from_secs(3))?;
    assert_eq!(std::fs::read(&certificate)?, sealed, "a restart needs no new certificate");

    worker.pause();
    std::thread::sleep(Duration::from_secs(1));
    worker.resume();
    cluster.wait_ready(3, SOON)?;
    left_alone(&cluster, "web", &before, Duration::from_secs(2))?;
    all_answer(&cluster, &before, 8080)
}
