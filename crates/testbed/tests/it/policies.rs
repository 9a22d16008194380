//! Networks and policies as a matrix: every container asks every other by TCP, UDP, ICMP, by
//! both families and by name, and what comes back is what was said by commands.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_testbed::{Cluster, Options};

use crate::names::dig;
use crate::network::vips;
use crate::pods::{Connection, Pod, SILENCE};
use crate::support::SOON;

const IDLE: [&str; 2] = ["sleep", "100000"];
/// Ports that containers answer at.
const PORTS: [u16; 2] = [80, 81];

/// Two machines that run containers: what is on one and what is between two is all there is.
fn form(overlay: &str) -> Result<Cluster> {
    let overlay = Some(overlay.to_owned());
    Cluster::form(1, 1, &Options { hybrid: true, overlay, ..Options::default() })
}

fn pods(cluster: &Cluster, name: &str, count: usize) -> Result<Vec<Pod>> {
    let tasks = cluster.wait_running(name, count, SOON)?;
    tasks.iter().map(|task| Pod::of(cluster, task)).collect()
}

/// One container on each machine, which answers.
fn everywhere(cluster: &Cluster, name: &str, flags: &[&str]) -> Result<Vec<Pod>> {
    let fixed = ["--mode", "global", "--stop-signal", "KILL", "--restart-delay", "0s"];
    cluster.create(name, &[&fixed[..], flags].concat(), &IDLE)?;
    let pods = pods(cluster, name, 2)?;
    for pod in &pods {
        PORTS.iter().try_for_each(|port| pod.serve(*port))?;
    }
    Ok(pods)
}

/// What is asked of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Tcp(u16),
    Udp(u16),
    Ping,
}

const WAYS: [Way; 5] = [Way::Tcp(80), Way::Tcp(81), Way::Udp(80), Way::Udp(81), Way::Ping];

/// `web` of `web.1`.
fn service(pod: &Pod) -> &str {
    pod.name.split('.').next().unwrap_or(&pod.name)
}

fn reaches(from: &Pod, to: IpAddr, way: Way) -> Result<bool> {
    let said = match way {
        Way::Tcp(port) => from.tcp_within(to, port, SILENCE)?,
        Way::Udp(port) => from.udp_within(to, port, SILENCE)?,
        Way::Ping => return from.ping(to),
    };
    match said.as_str() {
        "silence" => Ok(false),
        said if said.contains(' ') => Ok(true),
        odd => bail!("{} to {to} by {way:?}: {odd}", from.name),
    }
}

/// Every container asks every other, by all that there is. What is wrong, in words.
fn differences(
    pods: &[Pod],
    may: &(dyn Fn(&str, &str, Way) -> bool + Sync),
) -> Result<Vec<String>> {
    let look = |from: &Pod, to: &Pod| -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for address in [IpAddr::from(to.v4), IpAddr::from(to.v6()?)] {
            for way in WAYS {
                let expected = may(service(from), service(to), way);
                if reaches(from, address, way)? != expected {
                    let but = if expected { "is dropped" } else { "passes" };
                    let (a, b) = (&from.name, &to.name);
                    wrong.push(format!("{a} to {b} at {address} by {way:?} {but}"));
                }
            }
        }
        Ok(wrong)
    };
    // What is dropped takes its time: a thread for each pair.
    std::thread::scope(|scope| {
        let pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (from, to)));
        let pairs = pairs.filter(|(from, to)| from.v4 != to.v4);
        let asking: Vec<_> = pairs.map(|(from, to)| scope.spawn(move || look(from, to))).collect();
        let mut wrong = Vec::new();
        for asked in asking {
            wrong.extend(asked.join().unwrap()?);
        }
        Ok(wrong)
    })
}

/// What was said is so, everywhere, and soon.
fn is_so(
    cluster: &Cluster,
    what: &str,
    pods: &[Pod],
    may: impl Fn(&str, &str, Way) -> bool + Sync,
) -> Result<()> {
    cluster.until(what, SOON, || {
        let wrong = differences(pods, &may)?;
        if wrong.is_empty() { Ok(Some(())) } else { bail!("{}", wrong.join("; ")) }
    })
}

/// Networks that each service is on.
fn networks(service: &str) -> &'static [&'static str] {
    match service {
        "web" => &["front", "back"],
        "api" => &["front"],
        _ => &["back"],
    }
}

fn share(from: &str, to: &str) -> bool {
    networks(from).iter().any(|network| networks(to).contains(network))
}

fn policy(cluster: &Cluster, words: &str) -> Result<()> {
    let words: Vec<&str> = words.split_whitespace().collect();
    cluster.asked()?.ok(&[&["policy", "create"][..], &words].concat()).map(|_| ())
}

/// Packets that a policy let pass and dropped, on all nodes.
fn counted(cluster: &Cluster, name: &str) -> Result<(u64, u64)> {
    let rows = cluster.asked()?.json(&["policy", "ls"])?;
    let row = rows.iter().find(|row| row["name"] == name).context("the policy")?;
    let number = |key: &str| row[key].as_u64().with_context(|| format!("{key} of {row}"));
    Ok((number("allowed")?, number("denied")?))
}

fn matrix(overlay: &str) -> Result<()> {
    let cluster = form(overlay)?;
    let manager = cluster.asked()?;
    for network in ["front", "back"] {
        manager.ok(&["network", "create", network])?;
    }
    let mut of: BTreeMap<&str, Vec<Pod>> = BTreeMap::new();
    for name in ["web", "api", "db", "cache"] {
        let on = networks(name).iter().flat_map(|network| ["--network", network]);
        let mut flags: Vec<&str> = on.collect();
        if name == "db" {
            flags.extend(["-p", "8080:80"]);
        }
        of.insert(name, everywhere(&cluster, name, &flags)?);
    }
    let pods: Vec<Pod> = of.values().flatten().cloned().collect();
    // Without a policy: who shares a network talks, by everything.
    is_so(&cluster, "networks part", &pods, |from, to, _| share(from, to))?;
    by_name(&cluster, &of)?;
    let outside = Pod::machine(cluster.hub());
    outside.serve(9000)?;
    for client in &of["db"] {
        assert!(client.tcp(outside.v4, 9000)?.starts_with("hub "));
    }
    for node in cluster.nodes() {
        assert!(outside.tcp(node.host().address(), 8080)?.starts_with("db."));
    }
    let (vip, vip6) = vips(&cluster, "back", "db")?;
    for client in &of["cache"] {
        assert!(
            client.tcp(vip, 80)?.starts_with("db.") && client.tcp(vip6, 80)?.starts_with("db.")
        );
    }
    let mut held = Held::open(&of)?;

    policy(&cluster, "db-in --to db --only-from web --port 80/tcp")?;
    policy(&cluster, "db-out --from db --deny --to outside")?;
    policy(&cluster, "cache-udp --deny --from db --to cache --port udp")?;
    policy(&cluster, "db-ping --allow --from network=back --to db --port icmp")?;
    let may = |from: &str, to: &str, way: Way| match (from, to) {
        _ if !share(from, to) => false,
        ("web", "db") => matches!(way, Way::Tcp(80) | Way::Ping),
        (_, "db") => way == Way::Ping,
        ("db", "cache") => !matches!(way, Way::Udp(_)),
        _ => true,
    };
    is_so(&cluster, "policies part", &pods, may)?;
    held.ended_but_for_web()?;
    // By the service's address as by the container's own.
    for (clients, answers) in [(&of["web"], true), (&of["cache"], false), (&of["db"], false)] {
        for client in clients {
            for to in [IpAddr::from(vip), IpAddr::from(vip6)] {
                // A container may reach itself by it, and no other of its service.
                let said = client.tcp_within(to, 80, SILENCE)?;
                let own = said.starts_with(&format!("{} ", client.name));
                assert_eq!(said.starts_with("db."), answers || own, "{} {said}", client.name);
                assert!(answers || own || said == "silence", "{} {said}", client.name);
            }
        }
    }
    for client in &of["db"] {
        assert_eq!(client.tcp_within(outside.v4, 9000, SILENCE)?, "silence");
        assert_eq!(client.udp_within(outside.v4, 9000, SILENCE)?, "silence");
        assert!(!client.ping(outside.v4)?);
        // Nor the nodes, its own first of all.
        for node in cluster.nodes() {
            assert_eq!(client.tcp_within(node.host().address(), 2377, SILENCE)?, "silence");
        }
    }
    assert!(of["web"][0].tcp(outside.v4, 9000)?.starts_with("hub "));
    // Names are of networks: policies change none of them.
    by_name(&cluster, &of)?;
    published(&cluster, &outside)?;
    counts(&cluster)?;
    // Without them all is as before, for what begins and for what was denied.
    manager.ok(&["policy", "rm", "db-in", "db-out", "cache-udp", "db-ping", "hub-in"])?;
    is_so(&cluster, "networks part again", &pods, |from, to, _| share(from, to))
}

#[test]
fn host_policies_as_a_matrix_by_wireguard() -> Result<()> {
    matrix("wireguard")
}

#[test]
fn host_policies_as_a_matrix_by_vxlan() -> Result<()> {
    matrix("vxlan")
}

/// A name leads somewhere for those that share a network with its service, and for nobody else.
fn by_name(cluster: &Cluster, of: &BTreeMap<&str, Vec<Pod>>) -> Result<()> {
    for (from, clients) in of {
        for to in of.keys() {
            for (client, kind) in clients.iter().zip(["A", "AAAA"]) {
                let shared = share(from, to);
                cluster.until(&format!("{to} for {from}: {shared}"), SOON, || {
                    let said = dig(client, to, kind)?;
                    let found = said.iter().all(|line| line.parse::<IpAddr>().is_ok());
                    let fits = !said.is_empty() && found == shared;
                    if fits { Ok(Some(())) } else { bail!("{}: {said:?}", client.name) }
                })?;
            }
        }
    }
    Ok(())
}

/// Clients outside are known by their own addresses, by whichever node they come.
fn published(cluster: &Cluster, outside: &Pod) -> Result<()> {
    let asked = || -> Result<Vec<String>> {
        let nodes = cluster.nodes().iter();
        nodes.map(|node| outside.tcp_within(node.host().address(), 8080, SILENCE)).collect()
    };
    for said in asked()? {
        assert_eq!(said, "silence");
    }
    policy(cluster, &format!("hub-in --allow --from {} --to db --port 80", outside.v4))?;
    cluster.until("the hub may reach db", SOON, || {
        let said = asked()?;
        let fine = said
            .iter()
            .all(|said| said.starts_with("db.") && said.ends_with(&outside.v4.to_string()));
        if fine { Ok(Some(())) } else { bail!("{said:?}") }
    })
}

/// Connections that were there before the policies.
struct Held {
    web: Vec<Connection>,
    cache: Vec<Connection>,
}

impl Held {
    fn open(of: &BTreeMap<&str, Vec<Pod>>) -> Result<Self> {
        let open = |clients: &[Pod]| -> Result<Vec<Connection>> {
            let mut all = Vec::new();
            for client in clients {
                for server in &of["db"] {
                    for to in [IpAddr::from(server.v4), IpAddr::from(server.v6()?)] {
                        let mut connection = client.connect(to, 80)?;
                        connection.ask()?;
                        all.push(connection);
                    }
                }
            }
            Ok(all)
        };
        Ok(Self { web: open(&of["web"])?, cache: open(&of["cache"])? })
    }

    fn ended_but_for_web(&mut self) -> Result<()> {
        for connection in &mut self.web {
            assert!(connection.ask()?.starts_with("db."));
        }
        for connection in &mut self.cache {
            assert!(connection.ask().is_err());
        }
        Ok(())
    }
}

/// What policies did is summed over nodes.
fn counts(cluster: &Cluster) -> Result<()> {
    let (allowed, denied) = counted(cluster, "db-in")?;
    assert!(allowed > 0 && denied > 0, "{allowed} {denied}");
    assert!(counted(cluster, "db-out")?.1 > 0);
    assert!(counted(cluster, "cache-udp")?.1 > 0);
    let (pinged, none) = counted(cluster, "db-ping")?;
    assert!(pinged > 0 && none == 0, "{pinged} {none}");
    let text = cluster.asked()?.ok(&["policy", "inspect", "db-in"])?;
    let object: Value = serde_json::from_str(&text)?;
    let nodes = object[0]["nodes"].as_array().context("nodes")?;
    assert_eq!(nodes.len(), 2);
    let number = |of: &Value| of["packets"].as_u64().unwrap();
    let parts: Vec<u64> = nodes.iter().map(|node| number(&node["denied"])).collect();
    assert!(parts.iter().all(|part| *part > 0), "{parts:?}");
    assert_eq!(parts.iter().sum::<u64>(), number(&object[0]["denied"]));
    Ok(())
}

/// From its first instruction on a container is held to what was said before it came.
#[test]
fn host_a_container_does_not_start_before_its_policies_hold() -> Result<()> {
    let cluster = form("wireguard")?;
    let manager = cluster.asked()?;
    manager.ok(&["network", "create", "shut"])?;
    let outside = Pod::machine(cluster.hub());
    outside.serve(9000)?;
    let eager = format!(
        "for n in 1 2 3 4 5; do echo '?' | nc -w 1 {} 9000; done; echo asked; exec sleep 100000",
        outside.v4
    );
    policy(&cluster, "out --deny --from network=shut --to outside")?;
    let make = |name: &str, network: &str| {
        let flags = ["--mode", "global", "--stop-signal", "KILL", "--network", network];
        cluster.create(name, &flags, &["sh", "-c", &eager])
    };
    make("shut-in", "shut")?;
    make("free", "default")?;
    let logs = |name: &str| -> Result<String> {
        cluster.until(&format!("{name} has asked"), SOON, || {
            let logs = manager.ok(&["service", "logs", name])?;
            Ok((logs.matches("asked").count() >= 2).then_some(logs))
        })
    };
    assert!(logs("free")?.contains("hub "), "they reach it otherwise");
    let said = logs("shut-in")?;
    assert!(!said.contains("hub "), "{said}");
    assert!(counted(&cluster, "out")?.1 > 0);
    // Of the same name it is meant again.
    policy(&cluster, "again --deny --to shut-in")?;
    manager.ok(&["service", "rm", "shut-in"])?;
    let rows = manager.json(&["policy", "ls"])?;
    let again = rows.iter().find(|row| row["name"] == "again").context("the policy")?;
    assert_eq!(again["missing"], serde_json::json!(["shut-in"]));
    let said = manager.warren(&["network", "rm", "shut"])?;
    assert!(said.err.contains("network shut is in use by policy out"), "{}", said.err);
    make("shut-in", "default")?;
    let made = pods(&cluster, "shut-in", 2)?;
    made.iter().try_for_each(|pod| pod.serve(81))?;
    for client in pods(&cluster, "free", 2)? {
        for pod in &made {
            assert_eq!(client.tcp_within(pod.v4, 81, SILENCE)?, "silence");
        }
    }
    Ok(())
}
