//! Networks in bad weather, for minutes: services come and go all the time, lines
//! and machines fail. After each fault, names and virtual IPs must be right on
//! every node; nobody is ever answered by another service's container.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use warren_testbed::{Cluster, Link, Node, Options};

use crate::network::vips;
use crate::pods::Pod;
use crate::support::SOON;
use crate::traffic::{Traffic, look_up, look_up_v6, page};

/// Minutes of it; the variable makes it shorter, for those who try the test itself.
const MINUTES: u64 = 10;
const MINUTES_VARIABLE: &str = "WARREN_SOAK_MINUTES";
/// Changes of services that are not looked at: 200 a minute.
const CHANGE_EVERY: Duration = Duration::from_millis(300);
const CHANGING: usize = 10;
/// Those that are looked at.
const STEADY: [&str; 3] = ["one", "two", "three"];
const REPLICAS: usize = 3;
const FAULT: Duration = Duration::from_secs(10);
/// Addresses in rules that come and go by themselves.
const REMEMBERED_MAX: usize = 8;
/// Questions to each virtual IP in a row.
const MANY: usize = 6;

/// Answers with `name` and what the container is called.
fn server(name: &str) -> String {
    format!("echo {name} $(hostname) > /www/index.html; exec httpd -f -p 80 -h /www")
}

/// One after the other; each names what it does.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Between two machines nothing passes.
    Cut(&'static str, &'static str),
    /// Nothing passes in one direction.
    OneWay(&'static str, &'static str),
    /// These and the others do not reach each other.
    Apart(&'static [&'static str]),
    Reboot(&'static str),
    /// The process that answers names and encrypts.
    DataPlane(&'static str),
    Daemon(&'static str),
}

const FAULTS: [Fault; 8] = [
    Fault::Cut("w1", "w2"),
    Fault::OneWay("m2", "w1"),
    Fault::Apart(&["m3"]),
    Fault::DataPlane("w1"),
    Fault::Apart(&["m1", "m2"]),
    Fault::Reboot("w2"),
    Fault::Daemon("m2"),
    Fault::OneWay("w2", "m1"),
];

impl Fault {
    /// Until everything is as it should be again.
    fn befall(self, cluster: &Cluster) -> Result<()> {
        let bed = cluster.bed();
        match self {
            Self::Cut(one, other) => bed.cut(one, other)?,
            Self::OneWay(from, to) => bed.shape_one_way(from, to, Link::CUT)?,
            Self::Apart(side) => {
                for inside in side {
                    let outside = |node: &&Arc<Node>| !side.contains(&node.name());
                    for node in cluster.nodes().iter().filter(outside) {
                        bed.cut(inside, node.name())?;
                    }
                }
            }
            Self::Reboot(name) => return cluster.node(name)?.reboot(),
            Self::DataPlane(name) => {
                let host = cluster.node(name)?.host();
                let text = std::fs::read_to_string(host.run_dir().join("data.pid"))?;
                let pid = text.split_whitespace().next().context("a pid")?;
                return host.run("/bin/kill", &["-KILL", pid]).map(drop);
            }
            Self::Daemon(name) => {
                cluster.node(name)?.kill()?;
                return cluster.node(name)?.run();
            }
        }
        std::thread::sleep(FAULT);
        bed.heal();
        Ok(())
    }
}

/// What must be true of a steady service.
struct Steady {
    name: &'static str,
    vips: (Ipv4Addr, Ipv6Addr),
}

/// Containers of a service: those that run, which names must tell, and those that come or go, which
/// they may.
struct Pods {
    running: Vec<Pod>,
    others: Vec<Pod>,
}

fn pods(cluster: &Cluster, service: &str) -> Result<Pods> {
    let (mut running, mut others) = (Vec::new(), Vec::new());
    for task in &cluster.tasks(service)? {
        match task["state"].as_str() {
            Some("running") => running.push(Pod::of(cluster, task)?),
            // Without a node it is nowhere.
            _ => others.extend(Pod::of(cluster, task).ok()),
        }
    }
    ensure!(!running.is_empty(), "{service}: none runs");
    Ok(Pods { running, others })
}

/// Addresses of both families, each in order.
fn families(pods: &[Pod]) -> Result<(Vec<Ipv4Addr>, Vec<Ipv6Addr>)> {
    let v4: BTreeSet<Ipv4Addr> = pods.iter().map(|pod| pod.v4).collect();
    let v6: BTreeSet<Ipv6Addr> = pods.iter().map(Pod::v6).collect::<Result<_>>()?;
    Ok((v4.into_iter().collect(), v6.into_iter().collect()))
}

/// All that must be told is, and nothing but that and what may be.
fn is_between<A: PartialEq>(told: &[A], must: &[A], may: &[A]) -> bool {
    let known = |one: &A| must.contains(one) || may.contains(one);
    must.iter().all(|one| told.contains(one)) && told.iter().all(known)
}

/// Names and virtual IPs, of both families, are right for whoever asks on each node.
fn right(cluster: &Cluster, steady: &[Steady]) -> Result<()> {
    let clients = pods(cluster, "client")?.running;
    for service in steady {
        let servers = pods(cluster, service.name)?;
        let must = families(&servers.running)?;
        let may = families(&servers.others)?;
        for client in &clients {
            let who = format!("{} on {}", client.name, client.host.name());
            let (name, vips) = (service.name, service.vips);
            let asked = client.within(move || {
                let each = format!("tasks.{name}");
                let tasks = (look_up(&each)?, look_up_v6(&each)?);
                let own = (look_up(name)?, look_up_v6(name)?);
                for vip in [IpAddr::V4(vips.0), IpAddr::V6(vips.1)].repeat(MANY) {
                    let said = page((vip, 80).into())?;
                    if said.split_whitespace().next() != Some(name) {
                        return Err(format!("{said:?} answered at {vip}"));
                    }
                }
                Ok((tasks, own))
            })?;
            let (tasks, own) = asked.map_err(|why| anyhow::anyhow!("{who} to {name}: {why}"))?;
            let one = (vec![vips.0], vec![vips.1]);
            ensure!(own == one, "{who}: {name} is {own:?}, not {vips:?}");
            let right =
                is_between(&tasks.0, &must.0, &may.0) && is_between(&tasks.1, &must.1, &may.1);
            ensure!(right, "{who}: tasks.{name} are {tasks:?}, not {must:?}, perhaps {may:?}");
        }
    }
    Ok(())
}

/// One change of a service that nobody looks at; refusals are part of the weather.
fn change(cluster: &Cluster, round: usize) -> Result<()> {
    let name = format!("change-{}", round % CHANGING);
    let manager = cluster.managers().nth(round % 3).context("a manager")?;
    let image = cluster.image();
    let page = server(&name);
    match (round / CHANGING) % 4 {
        0 => {
            let flags = ["--replicas", "2", "--stop-signal", "KILL", "-p"];
            let port = format!("{}:80", 9000 + round % CHANGING);
            let create = ["service", "create", &name, "--image", &image, "--detach"];
            let all = [&create[..], &flags, &[&port, "sh", "-c", &page]].concat();
            manager.warren(&all)?;
        }
        1 => drop(manager.warren(&["service", "scale", &format!("{name}=4"), "--detach"])?),
        2 => drop(manager.warren(&["service", "scale", &format!("{name}=1"), "--detach"])?),
        _ => drop(manager.warren(&["service", "rm", &name])?),
    }
    Ok(())
}

/// A node, and how much it has in its kernel: addresses in rules, links, routes.
type Kept = (String, [usize; 3]);

fn kept(cluster: &Cluster) -> Result<Vec<Kept>> {
    let count = |node: &Arc<Node>| -> Result<Kept> {
        let lines = |program: &str, args: &[&str]| -> Result<usize> {
            Ok(node.host().run(program, args)?.out.lines().count())
        };
        let rules = node.host().run("nft", &["list", "ruleset"])?.out;
        let addresses = rules.matches("10.128.").count() + rules.matches("10.192.").count();
        let links = lines("ip", &["-o", "link"])?;
        let routes = node.host().run("ip", &["route", "show", "table", "all"])?.out;
        // Those of a link's own address come when the kernel has made sure that nobody has it.
        let routes = routes.lines().filter(|line| !line.contains("fe80::")).count();
        Ok((node.name().to_owned(), [addresses, links, routes]))
    };
    cluster.nodes().iter().map(count).collect()
}

/// The weather begins: services change until told to stop.
fn changes(cluster: &Cluster, stop: &AtomicBool, made: &AtomicUsize) -> Result<()> {
    let begun = Instant::now();
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        change(cluster, round)?;
        round += 1;
        made.store(round, Ordering::Relaxed);
        let next = CHANGE_EVERY * u32::try_from(round)?;
        std::thread::sleep(next.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

fn faults(cluster: &Cluster, steady: &[Steady], end: Instant) -> Result<()> {
    for fault in FAULTS.iter().cycle() {
        if Instant::now() >= end {
            return Ok(());
        }
        fault.befall(cluster)?;
        let (healed, mut last) = (Instant::now(), String::new());
        // To ask everybody for everything takes a while by itself.
        let begun = cluster.until(&format!("all is right after {fault:?}"), SOON, || {
            let begun = healed.elapsed().as_secs_f32();
            let outcome = right(cluster, steady);
            if let Err(why) = &outcome {
                last = format!("; asked {begun:.2} s after: {why}");
            }
            outcome.map(|()| Some(begun))
        })?;
        let asked = healed.elapsed().as_secs_f32();
        eprintln!("{fault:?}: right from {begun:.2} s on, all asked by {asked:.2} s{last}");
    }
    Ok(())
}

#[test]
fn soak_networks_are_right_after_every_fault() -> Result<()> {
    let minutes = std::env::var(MINUTES_VARIABLE).ok().map_or(Ok(MINUTES), |text| text.parse())?;
    let cluster = Cluster::form(3, 2, &Options { hybrid: true, ..Options::default() })?;
    let delay = ["--mode", "global", "--restart-delay", "0s"];
    cluster.create("client", &delay, &["sleep", "100000"])?;
    let mut steady = Vec::new();
    for name in STEADY {
        let replicas = REPLICAS.to_string();
        let flags = ["--replicas", &replicas, "--stop-signal", "KILL", "--restart-delay", "0s"];
        cluster.create(name, &flags, &["sh", "-c", &server(name)])?;
        cluster.wait_running(name, REPLICAS, SOON)?;
        steady.push(Steady { name, vips: vips(&cluster, "default", name)? });
    }
    cluster.wait_running("client", cluster.nodes().len(), SOON)?;
    cluster.until("all is right", SOON, || right(&cluster, &steady).map(Some))?;
    let before = kept(&cluster)?;
    let mut traffic = Traffic::new();
    for client in pods(&cluster, "client")?.running.iter().filter(|c| c.host.name() != "w2") {
        for to in &steady {
            traffic.fetch(client, to.vips.0, 80, to.name);
            traffic.fetch(client, to.vips.1, 80, to.name);
        }
    }
    let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let begun = Instant::now();
    let end = begun + Duration::from_secs(minutes * 60);
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| changes(&cluster, &stop, &made));
        let outcome = faults(&cluster, &steady, end);
        stop.store(true, Ordering::Relaxed);
        changing.join().map_err(|_| anyhow::anyhow!("who changes services panicked"))??;
        outcome
    })?;
    let changes = made.load(Ordering::Relaxed);
    eprintln!("{changes} changes in {:?}", begun.elapsed());
    let tally = traffic.end()?;
    let wrong: Vec<&String> = tally.failures.iter().filter(|f| f.contains("answered")).collect();
    eprintln!("{} requests, {} without an answer", tally.requests, tally.failures.len());
    ensure!(wrong.is_empty(), "answers of another service: {wrong:?}");
    tidy(&cluster, &before)
}

/// Without the services that came and went, each node has what it had.
fn tidy(cluster: &Cluster, before: &[Kept]) -> Result<()> {
    let of_change = |service: &Value| {
        let name = service["name"].as_str().unwrap_or_default().to_owned();
        name.starts_with("change-").then_some(name)
    };
    cluster.until("what came and went is gone", SOON, || {
        let names: Vec<String> = cluster.services()?.iter().filter_map(of_change).collect();
        if names.is_empty() {
            return Ok(Some(()));
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        cluster.asked()?.warren(&[&["service", "rm"], &names[..]].concat())?;
        Ok(None)
    })?;
    cluster.until("nothing is left behind", SOON, || {
        let now = kept(cluster)?;
        // Of all nodes: containers of a machine that was away are elsewhere now.
        let sum = |all: &[Kept]| [0, 1, 2].map(|at| all.iter().map(|(_, n)| n[at]).sum::<usize>());
        let ([rules, links, routes], [rules_now, links_now, routes_now]) = (sum(before), sum(&now));
        // Some sets remember for a while who was answered.
        let left = rules_now.saturating_sub(rules) > REMEMBERED_MAX;
        if left || (links, routes) != (links_now, routes_now) {
            bail!("{before:?} became {now:?}")
        }
        Ok(Some(()))
    })
}
