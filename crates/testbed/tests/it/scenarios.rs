//! What people do with services on several nodes, one after the other, with the limits that they
//! expect: placement, health checks, scaling, updates, many services, many replicas.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use warren_testbed::{Cluster, Kind};

use crate::support::{PAGE, SOON, all_answer, form, holds, nodes_of, web};

const PORT: u16 = 8080;
/// A rolling update of six, two at a time, with five seconds between.
const ROLLED: Duration = Duration::from_secs(60);
/// A thousand containers on one machine's two cores.
const THOUSAND: Duration = Duration::from_secs(60);

/// Running tasks by node.
fn spread(tasks: &[Value]) -> BTreeMap<&str, usize> {
    let mut on = BTreeMap::new();
    for node in tasks.iter().filter_map(|task| task["node"].as_str()) {
        *on.entry(node).or_default() += 1;
    }
    on
}

/// A command that waits, and how long it took.
fn timed(cluster: &Cluster, args: &[&str]) -> Result<Duration> {
    let start = Instant::now();
    cluster.asked()?.ok(args)?;
    Ok(start.elapsed())
}

/// Requests at the published port of the nodes by turns, `at_once` at a time; how long each took,
/// in order of time.
fn ask(cluster: &Cluster, requests: usize, at_once: usize) -> Result<Vec<Duration>> {
    let at: Vec<_> = cluster.nodes().iter().map(|node| node.host().socket(PORT)).collect();
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= requests {
                return Ok(took);
            }
            let start = Instant::now();
            let answer = cluster.hub().get(at[number % at.len()], "/")?;
            ensure!(answer.status == 200, "status {}", answer.status);
            took.push(start.elapsed());
        }
    };
    let mut all = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let clients: Vec<_> = (0..at_once).map(|_| scope.spawn(work)).collect();
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        Ok(all)
    })?;
    all.sort();
    Ok(all)
}

#[test]
fn soak_scenario_replicas_are_spread() -> Result<()> {
    let cluster = form(1, 3)?;
    let start = Instant::now();
    let tasks = web(&cluster, "web", 30, None, &[])?;
    let took = start.elapsed();
    let spread = spread(&tasks);
    eprintln!("30 replicas in {took:?}: {spread:?}");
    ensure!(took <= Duration::from_secs(10), "{took:?}");
    ensure!(spread.len() >= 2 && spread.values().all(|count| *count <= 18), "{spread:?}");
    Ok(())
}

#[test]
fn soak_scenario_health_checks() -> Result<()> {
    let cluster = form(1, 2)?;
    let slow = ["--health-interval", "10s", "--health-timeout", "5s"];
    let http = web(&cluster, "http", 2, None, &[&["--health-http", "/:80"], &slow[..]].concat())?;
    let tcp = web(&cluster, "tcp", 2, None, &[&["--health-tcp", "80"], &slow[..]].concat())?;
    holds("both go on running", Duration::from_secs(30), || {
        let same = |name: &str, before: &[Value]| -> Result<bool> {
            let now = cluster.tasks(name)?;
            let id = |task: &Value| (task["id"].clone(), task["attempt"].clone());
            let runs = now.iter().all(|task| task["state"] == "running");
            Ok(runs && now.iter().map(id).eq(before.iter().map(id)))
        };
        Ok(same("http", &http)? && same("tcp", &tcp)?)
    })?;

    // One that says 404 from some moment on: it is marked, and another runs in its place.
    let check = ["--health-http", "/fine:80", "--health-interval", "5s"];
    let limits = ["--health-timeout", "3s", "--health-retries", "2", "--restart-delay", "0s"];
    let page = format!("echo > /www/fine; {PAGE}");
    let flags = [&["--replicas", "1"], &check[..], &limits[..]].concat();
    cluster.create("sick", &flags, &["sh", "-c", &page])?;
    let before = cluster.wait_running("sick", 1, SOON)?;
    cluster.asked()?.ok(&["exec", "sick.1", "/bin/busybox", "rm", "/www/fine"])?;
    let start = Instant::now();
    let limit = Duration::from_secs(45);
    let now = cluster.until("another runs instead", limit, || {
        let tasks = cluster.tasks("sick")?;
        let other = |task: &&Value| {
            let fresh = task["pid"] != before[0]["pid"] && task["health"] == "healthy";
            fresh && task["state"] == "running"
        };
        Ok(tasks.iter().find(other).cloned())
    })?;
    eprintln!("replaced after {:?}: {}", start.elapsed(), now["attempt"]);
    let events = cluster.asked()?.ok(&["events", "--format", "json"])?;
    let told = events.lines().filter(|line| line.contains("unhealthy")).count();
    ensure!(told > 0, "events tell that it was unhealthy");
    Ok(())
}

#[test]
fn soak_scenario_a_day_of_a_service() -> Result<()> {
    let cluster = form(3, 3)?;
    let tasks = web(&cluster, "web", 3, Some(PORT), &["--update-delay", "5s"])?;
    all_answer(&cluster, &tasks, PORT)?;
    for count in ["6", "2"] {
        let took = timed(&cluster, &["service", "scale", &format!("web={count}")])?;
        eprintln!("scaled to {count} in {took:?}");
        ensure!(took <= Duration::from_secs(10), "scaling to {count} took {took:?}");
    }

    let old = cluster.leader()?.clone();
    let start = Instant::now();
    old.kill()?;
    cluster.wait_new_leader(old.name(), Duration::from_secs(10))?;
    cluster.asked()?.ok(&["service", "scale", "web=6"])?;
    eprintln!("another leads, and has scaled to 6, after {:?}", start.elapsed());
    old.run()?;

    // Never fewer than asked for, two renewed at a time.
    let before = cluster.wait_running("web", 6, SOON)?;
    let start = Instant::now();
    let update = ["service", "update", "web", "--update-parallelism", "2", "--env-add", "V=2"];
    let fewest = AtomicUsize::new(usize::MAX);
    std::thread::scope(|scope| -> Result<()> {
        let updating = scope.spawn(|| timed(&cluster, &update));
        while !updating.is_finished() {
            let running = cluster.tasks("web")?.iter().filter(|t| t["state"] == "running").count();
            fewest.fetch_min(running, Ordering::Relaxed);
            std::thread::sleep(warren_testbed::wait::PAUSE);
        }
        updating.join().map_err(|_| anyhow::anyhow!("the update panicked"))?.map(drop)
    })?;
    let (took, fewest) = (start.elapsed(), fewest.load(Ordering::Relaxed));
    let after = cluster.wait_running("web", 6, SOON)?;
    let id = |task: &Value| task["id"].clone();
    eprintln!("rolled in {took:?}, at least {fewest} of 6 ran");
    ensure!(took <= ROLLED && fewest >= 6, "{took:?}, {fewest} ran");
    ensure!(after.iter().all(|task| !before.iter().any(|old| id(old) == id(task))), "all are new");

    timed(&cluster, &["service", "scale", "web=10"])?;
    let took = ask(&cluster, 1000, 100)?;
    eprintln!("1,000 requests, 100 at once: longest {:?}", took.last());
    let failed = cluster.asked()?.json(&["service", "ps", "web"])?;
    let failed = failed.iter().filter(|task| task["state"] == "failed").count();
    ensure!(failed == 0, "{failed} tasks failed");
    Ok(())
}

#[test]
fn soak_scenario_figures() -> Result<()> {
    let cluster = form(3, 3)?;
    let start = Instant::now();
    for number in 0..100 {
        cluster.create(&format!("one-{number}"), &["--replicas", "1"], &["sleep", "100000"])?;
    }
    let mean = start.elapsed() / 100;
    eprintln!("a creation takes {mean:?}, of 100");
    ensure!(mean < Duration::from_millis(500), "{mean:?}");

    let start = Instant::now();
    let next = AtomicUsize::new(0);
    let create = || -> Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= 100 {
                return Ok(());
            }
            cluster.create(&format!("ten-{number}"), &["--replicas", "0"], &["sleep", "9"])?;
        }
    };
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> = (0..10).map(|_| scope.spawn(create)).collect();
        clients.into_iter().try_for_each(|client| client.join().expect("a client"))
    })?;
    let rate = 100.0 / start.elapsed().as_secs_f64();
    eprintln!("{rate:.1} creations a second, ten at once");
    ensure!(rate > 10.0, "{rate}");

    web(&cluster, "web", 1, Some(PORT), &[])?;
    let took = timed(&cluster, &["service", "scale", "web=50"])?;
    eprintln!("50 replicas in {took:?}");
    ensure!(took <= Duration::from_secs(5), "{took:?}");
    let took = timed(&cluster, &["service", "scale", "web=100"])?;
    eprintln!("50 more in {took:?}");
    ensure!(took <= Duration::from_secs(5), "{took:?}");
    let all = ask(&cluster, 1000, 10)?;
    let at = |percent: usize| all[all.len() * percent / 100];
    let (p50, p95, p99) = (at(50), at(95), at(99));
    eprintln!("1,000 requests, ten at once: {p50:?} {p95:?} {p99:?} (50, 95, 99 %)");
    let limits = [50, 100, 200].map(Duration::from_millis);
    ensure!([p50, p95, p99].iter().zip(limits).all(|(took, limit)| *took < limit), "too slow");
    Ok(())
}

#[test]
fn soak_scenario_global_and_a_thousand() -> Result<()> {
    let cluster = form(3, 3)?;
    cluster.create("exporter", &["--mode", "global"], &["sleep", "100000"])?;
    cluster.wait_running("exporter", 3, SOON)?;
    let late = cluster.add(Kind::Worker)?;
    cluster.join(&late, false)?;
    let tasks = cluster.wait_running("exporter", 4, SOON)?;
    ensure!(nodes_of(&tasks).contains(late.name()), "{tasks:?}");

    cluster.create("many", &["--replicas", "1", "--stop-signal", "KILL"], &["sleep", "100000"])?;
    cluster.wait_running("many", 1, SOON)?;
    let start = Instant::now();
    cluster.asked()?.ok(&["service", "scale", "many=1000", "--detach"])?;
    let tasks = cluster.wait_running("many", 1000, THOUSAND)?;
    let took = start.elapsed();
    let spread = spread(&tasks);
    eprintln!("1 to 1,000 real containers in {took:?}: {spread:?}");
    ensure!(took < THOUSAND, "{took:?}");
    let least = spread.values().min().context("nodes")?;
    ensure!(spread.values().all(|count| count - least <= 1), "{spread:?}");
    let took = timed(&cluster, &["service", "scale", "many=1"])?;
    eprintln!("and back in {took:?}");
    Ok(())
}
