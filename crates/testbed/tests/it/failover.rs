//! Managers are killed, held still and stopped; containers do not notice.

use std::time::{Duration, Instant};

use anyhow::Result;
use warren_testbed::Cluster;

use crate::support::{
    SOON, form, holds, identities, left_alone, refused, service_names, wait_voters, web,
};

/// Another leads after a kill; measured below a second on an idle machine.
const NEW_LEADER_MAX: Duration = Duration::from_secs(10);
/// A write without a quorum is refused.
const REFUSED_MAX: Duration = Duration::from_secs(5);

/// From `since` until a write is accepted by whoever answers.
fn next_write(cluster: &Cluster, name: &str, since: Instant) -> Result<Duration> {
    cluster.until("a write is accepted", SOON, || {
        cluster.create(name, &["--replicas", "0"], &["true"]).map(Some)
    })?;
    let took = since.elapsed();
    eprintln!("next write after {:.3} s", took.as_secs_f32());
    Ok(took)
}

#[test]
fn host_leader_is_killed_under_workload() -> Result<()> {
    let cluster = form(3, 2)?;
    wait_voters(&cluster, 3)?;
    let mut before = Vec::new();
    for name in ["one", "two", "three"] {
        before.extend(web(&cluster, name, 2, None, &[])?);
    }
    let leader = cluster.leader()?.clone();
    let killed = Instant::now();
    leader.kill()?;
    let took = next_write(&cluster, "after", killed)?;
    assert!(took < NEW_LEADER_MAX, "{took:?}");
    let new = cluster.wait_new_leader(leader.name(), NEW_LEADER_MAX)?;
    assert_ne!(new.name(), leader.name());

    let names = service_names(&cluster)?;
    assert_eq!(names.len(), 4, "{names:?}");
    assert_eq!(cluster.listed()?.len(), 5);
    cluster.asked()?.ok(&["cluster", "info"])?;
    web(&cluster, "new", 2, Some(8080), &[])?;
    let mut now = Vec::new();
    for name in ["one", "two", "three"] {
        now.extend(cluster.wait_running(name, 2, SOON)?);
    }
    assert_eq!(identities(&before), identities(&now));

    leader.run()?;
    cluster.wait_ready(5, SOON)?;
    wait_voters(&cluster, 3)?;
    // It tells what happened without it.
    cluster.until("it has caught up", SOON, || {
        Ok((leader.json(&["service", "ls"])?.len() == 5).then_some(()))
    })
}

#[test]
fn host_two_of_three_managers_are_killed() -> Result<()> {
    let cluster = form(3, 1)?;
    wait_voters(&cluster, 3)?;
    let before = web(&cluster, "web", 2, Some(8080), &[])?;
    let first = cluster.leader()?.clone();
    first.kill()?;
    let second = cluster.wait_new_leader(first.name(), NEW_LEADER_MAX)?.clone();
    second.kill()?;

    let last = cluster.asked()?.clone();
    let image = cluster.image();
    let create = ["service", "create", "late", "--image", &image, "--detach"];
    let asked = Instant::now();
    let why = refused(&last, &create, 5)?;
    assert!(asked.elapsed() < REFUSED_MAX, "{:?}", asked.elapsed());
    assert!(!why.is_empty());
    // Reads are answered, and say that they may be old.
    let said = last.warren(&["service", "ls"])?;
    assert!(said.exit == 0 && said.out.contains("web"), "{said:?}");
    assert!(said.err.contains("no leader"), "{said:?}");
    refused(&last, &["node", "ls", "--linearizable"], 5)?;
    let at = cluster.node("w1")?.host().socket(8080);
    holds("the workload answers", Duration::from_secs(2), || {
        Ok(cluster.hub().get(at, "/").is_ok_and(|answer| answer.status == 200))
    })?;

    first.run()?;
    next_write(&cluster, "again", Instant::now())?;
    cluster.until("a manager that knows who leads", SOON, || cluster.leader().map(Some))?;
    assert_eq!(cluster.listed()?.len(), 4);
    second.run()?;
    cluster.wait_ready(4, SOON)?;
    assert_eq!(identities(&before), identities(&cluster.wait_running("web", 2, SOON)?));
    let names = service_names(&cluster)?;
    assert!(!names.contains("late"), "{names:?}");
    Ok(())
}

#[test]
fn host_leader_stops_and_is_held_still() -> Result<()> {
    let cluster = form(3, 2)?;
    wait_voters(&cluster, 3)?;
    let before = web(&cluster, "web", 4, None, &[])?;

    let first = cluster.leader()?.clone();
    first.stop()?;
    let took = next_write(&cluster, "after-stop", Instant::now())?;
    assert!(took < NEW_LEADER_MAX, "{took:?}");
    first.run()?;
    cluster.wait_ready(5, SOON)?;
    wait_voters(&cluster, 3)?;

    // Longer than any suspicion: another leads, and no task is moved.
    let second = cluster.leader()?.clone();
    second.pause();
    next_write(&cluster, "after-pause", Instant::now())?;
    left_alone(&cluster, "web", &before, Duration::from_secs(5))?;
    second.resume();
    cluster.wait_ready(5, SOON)?;
    cluster.until("it follows", SOON, || {
        let listed = second.json(&["service", "ls"])?;
        Ok(listed.iter().any(|service| service["name"] == "after-pause").then_some(()))
    })?;

    // Everybody stands still for a while: whoever leads afterwards must not trust what it knew.
    for node in cluster.nodes() {
        node.host().freeze()?;
    }
    std::thread::sleep(Duration::from_secs(6));
    for node in cluster.nodes() {
        node.host().thaw()?;
    }
    next_write(&cluster, "after-freeze", Instant::now())?;
    cluster.wait_ready(5, SOON)?;
    left_alone(&cluster, "web", &before, Duration::from_secs(4))
}
