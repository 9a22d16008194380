//! Load for minutes, and faults for longer: `make soak`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use warren_testbed::clients::{self, Load};
use warren_testbed::{Cluster, Options};

use crate::register;
use crate::support::{SOON, form, wait_voters};

/// Calls under way at once.
const BATCH: usize = 50;
/// Of creations, in hundredths.
const FAILURES_MAX: usize = 5;
const LISTINGS: u32 = 100;
const LISTING_MEAN_MAX: Duration = Duration::from_secs(2);
const LISTING_MAX: Duration = Duration::from_secs(10);
const MANAGER_BYTES_MAX: u64 = 256 << 20;
/// Minutes of churn; the variable makes it shorter, for those who try the test itself: below half
/// an hour only files are judged.
const CHURN_MINUTES: u64 = 60;
const CHURN_VARIABLE: &str = "WARREN_SOAK_MINUTES";
/// What memory does at first says nothing.
const WARM_UP: Duration = Duration::from_secs(600);
const SLOPE_MAX: f64 = 1024.0 * 1024.0;

/// How much, and how long it may take.
struct Size {
    services: usize,
    replicas: usize,
    created_max: Duration,
    running_max: Duration,
}

/// Creates the services, at most `BATCH` calls at once; how many were refused.
fn create_all(cluster: &Cluster, size: &Size) -> usize {
    let numbers: Vec<usize> = (0..size.services).collect();
    let replicas = size.replicas.to_string();
    let mut failures = 0;
    for batch in numbers.chunks(BATCH) {
        failures += std::thread::scope(|scope| {
            let calls: Vec<_> = batch
                .iter()
                .map(|number| {
                    let replicas = replicas.as_str();
                    scope.spawn(move || {
                        let flags = ["--replicas", replicas, "--stop-signal", "KILL"];
                        let name = format!("load-{number}");
                        cluster.create(&name, &flags, &["sleep", "100000"])
                    })
                })
                .collect();
            let outcomes = calls.into_iter().map(|call| call.join().unwrap());
            outcomes.filter_map(|outcome| outcome.inspect_err(|e| eprintln!("{e:#}")).err()).count()
        });
    }
    failures
}

fn wait_all_running(cluster: &Cluster, wanted: usize, limit: Duration) -> Result<()> {
    cluster.until(&format!("{wanted} tasks run"), limit, || {
        let services = cluster.services()?;
        let running: u64 = services.iter().filter_map(|service| service["running"].as_u64()).sum();
        if running == wanted as u64 {
            return Ok(Some(()));
        }
        bail!("{running} run")
    })
}

/// Latencies of listings by the command line, which include its start.
fn list_often(cluster: &Cluster) -> Result<()> {
    let (mut all, mut longest) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..LISTINGS {
        let start = Instant::now();
        cluster.services()?;
        all += start.elapsed();
        longest = longest.max(start.elapsed());
    }
    let mean = all / LISTINGS;
    eprintln!("{LISTINGS} listings: mean {mean:?}, longest {longest:?}");
    ensure!(mean <= LISTING_MEAN_MAX && longest <= LISTING_MAX, "listings are slow");
    Ok(())
}

/// Creates, waits, breaks what `during` breaks, asks, removes.
fn load(
    cluster: &Cluster,
    size: &Size,
    during: impl FnOnce(&Cluster) -> Result<()> + Send,
) -> Result<()> {
    let nodes = cluster.nodes().len();
    let start = Instant::now();
    let (failures, broken) = std::thread::scope(|scope| {
        let breaking = scope.spawn(|| during(cluster));
        let failures = create_all(cluster, size);
        (failures, breaking.join().unwrap())
    });
    broken?;
    let took = start.elapsed();
    let rate = size.services as f64 / took.as_secs_f64();
    eprintln!("{} services created in {took:?}: {rate:.1}/s, {failures} refused", size.services);
    ensure!(took <= size.created_max, "creating took {took:?}");
    ensure!(failures * 100 <= FAILURES_MAX * size.services, "{failures} creations were refused");
    wait_all_running(cluster, (size.services - failures) * size.replicas, size.running_max)?;
    eprintln!("all run after {:?}", start.elapsed());

    let leader = cluster.leader()?.name().to_owned();
    list_often(cluster)?;
    cluster.wait_ready(nodes, SOON)?;
    assert_eq!(cluster.leader()?.name(), leader, "listings cost nobody the lead");
    for manager in cluster.managers() {
        let bytes = manager.usage()?.memory_bytes;
        eprintln!("{}: {} MiB", manager.name(), bytes >> 20);
        ensure!(bytes <= MANAGER_BYTES_MAX, "{} takes {bytes} bytes", manager.name());
    }
    remove_all(cluster, size)
}

fn remove_all(cluster: &Cluster, size: &Size) -> Result<()> {
    let names: Vec<String> = cluster
        .services()?
        .iter()
        .filter_map(|service| service["name"].as_str().map(str::to_owned))
        .collect();
    for some in names.chunks(BATCH) {
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        cluster.asked()?.ok(&[&["service", "rm", "--detach"], &some[..]].concat())?;
    }
    cluster.until("no service is left", size.running_max, || {
        Ok(cluster.services()?.is_empty().then_some(()))
    })?;
    for node in cluster.nodes() {
        cluster.until(&format!("no container is left on {}", node.name()), SOON, || {
            let processes = node.host().run("ps", &["-eo", "args"])?.out;
            Ok((!processes.contains("sleep 100000")).then_some(()))
        })?;
    }
    Ok(())
}

const SMALL: Size = Size {
    services: 50,
    replicas: 2,
    created_max: Duration::from_secs(120),
    running_max: Duration::from_secs(120),
};
const MEDIUM: Size = Size {
    services: 200,
    replicas: 3,
    created_max: Duration::from_secs(300),
    running_max: Duration::from_secs(300),
};
const LARGE: Size = Size {
    services: 1000,
    replicas: 3,
    created_max: Duration::from_secs(900),
    running_max: Duration::from_secs(900),
};

#[test]
fn soak_load_small() -> Result<()> {
    load(&form(1, 2)?, &SMALL, |_| Ok(()))
}

#[test]
fn soak_load_medium() -> Result<()> {
    load(&form(3, 5)?, &MEDIUM, |_| Ok(()))
}

#[test]
fn soak_load_large() -> Result<()> {
    load(&form(3, 10)?, &LARGE, |_| Ok(()))
}

#[test]
fn soak_load_in_parallel() -> Result<()> {
    let size = Size { services: 100, replicas: 5, ..MEDIUM };
    load(&form(3, 3)?, &size, |_| Ok(()))
}

#[test]
fn soak_leader_is_killed_under_large_load() -> Result<()> {
    let size = Size { services: 400, ..LARGE };
    load(&form(3, 5)?, &size, |cluster| {
        wait_services(cluster, size.services / 3)?;
        let leader = cluster.leader()?.clone();
        leader.kill()?;
        cluster.wait_new_leader(leader.name(), SOON)?;
        leader.run()
    })
}

#[test]
fn soak_worker_is_killed_under_medium_load() -> Result<()> {
    load(&form(3, 5)?, &MEDIUM, |cluster| {
        wait_services(cluster, MEDIUM.services / 3)?;
        let worker = cluster.node("w1")?;
        worker.power_off()?;
        wait_services(cluster, MEDIUM.services * 2 / 3)?;
        worker.host().up()?;
        worker.run()
    })
}

fn wait_services(cluster: &Cluster, count: usize) -> Result<()> {
    cluster.until(&format!("{count} services are there"), Duration::from_secs(600), || {
        Ok((cluster.services()?.len() >= count).then_some(()))
    })
}

/// The leader is killed thirty times while clients write; nothing acknowledged is lost, which the
/// history tells, and the times are shown.
#[test]
fn soak_leader_is_killed_thirty_times() -> Result<()> {
    let cluster = Cluster::form(3, 0, &Options { registry: false, ..Options::default() })?;
    wait_voters(&cluster, 3)?;
    let load = Load { clients: 8, registers: 8, seed: 1 };
    let (record, kills) = clients::record(&cluster, &load, |start| {
        let mut kills = Vec::new();
        for _ in 0..30 {
            let leader = cluster.leader()?.clone();
            kills.push(start.elapsed());
            leader.kill()?;
            cluster.wait_new_leader(leader.name(), SOON)?;
            leader.run()?;
            wait_voters(&cluster, 3)?;
            cluster.wait_ready(3, SOON)?;
        }
        Ok(kills)
    })?;
    let mut gaps: Vec<Duration> = kills.iter().filter_map(|at| record.next_change(*at)).collect();
    assert_eq!(gaps.len(), kills.len(), "a write followed each kill");
    gaps.sort_unstable();
    eprintln!("next write: median {:?}, p90 {:?}, all {gaps:?}", gaps[15], gaps[26]);
    register::judge(1, &record)
}

#[test]
fn soak_linearizable_twenty_times() -> Result<()> {
    (1..=20).try_for_each(|seed| register::run(seed, Duration::from_secs(60)))
}

/// Steps of a straight line through the points, per second.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|point| point.0), mean(|point| point.1));
    let over: f64 = points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum();
    let under: f64 = points.iter().map(|point| (point.0 - x).powi(2)).sum();
    over / under
}

#[test]
fn soak_an_hour_of_churn_leaks_nothing() -> Result<()> {
    let minutes = std::env::var(CHURN_VARIABLE).ok().and_then(|text| text.parse().ok());
    let length = Duration::from_secs(60 * minutes.unwrap_or(CHURN_MINUTES));
    let warm_up = WARM_UP.min(length / 3);
    let cluster = form(3, 2)?;
    let start = Instant::now();
    let mut samples: Vec<Vec<(f64, f64, usize)>> = vec![Vec::new(); cluster.nodes().len()];
    let mut round = 0u32;
    while start.elapsed() < length {
        let name = format!("churn-{round}");
        cluster.create(&name, &["--replicas", "4", "--stop-signal", "KILL"], &["sleep", "1000"])?;
        cluster.wait_running(&name, 4, SOON)?;
        cluster.asked()?.ok(&["service", "scale", &format!("{name}=2"), "--detach"])?;
        cluster.wait_running(&name, 2, SOON)?;
        cluster.asked()?.ok(&["service", "rm", &name])?;
        round += 1;
        for (node, samples) in cluster.nodes().iter().zip(&mut samples) {
            let usage = node.usage()?;
            let at = start.elapsed();
            if at > warm_up {
                samples.push((at.as_secs_f64(), usage.memory_bytes as f64, usage.files));
            }
        }
    }
    for (node, samples) in cluster.nodes().iter().zip(&samples) {
        let points: Vec<(f64, f64)> = samples.iter().map(|(at, bytes, _)| (*at, *bytes)).collect();
        let per_hour = slope(&points) * 3600.0;
        let files = samples.iter().map(|sample| sample.2);
        let (least, most) = files.clone().min().zip(files.max()).context("samples")?;
        let name = node.name();
        eprintln!(
            "{name}: {:.2} MiB/h, {least} to {most} files, {round} rounds",
            per_hour / SLOPE_MAX
        );
        // A shorter run ends while the table of answers still fills.
        let long = length >= 3 * WARM_UP;
        ensure!(!long || per_hour <= SLOPE_MAX, "{name} grows by {per_hour:.0} bytes an hour");
        let (first, last) = (samples[0].2, samples[samples.len() - 1].2);
        ensure!(last <= first + 8, "{name} had {first} files open and has {last}");
    }
    Ok(())
}

#[test]
fn lines_have_slopes() {
    assert!((slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) - 2.0).abs() < 1e-9);
}
