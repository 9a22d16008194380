//! Services that reach each other over several machines: addresses, virtual IPs,
//! ports that every node answers, who may reach whom, and what is left afterwards.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use warren_testbed::{Cluster, Options};

use crate::pods::{Pod, SILENCE};
use crate::support::SOON;

/// What a service's containers do; servers are put into their networks by the test.
const IDLE: [&str; 2] = ["sleep", "100000"];
const WEB: u16 = 80;
const PUBLISHED: u16 = 8080;
/// Questions in a row that all must be answered: each backend of two is met, surely.
const MANY: usize = 24;

/// Three machines that manage or work, and run containers all of them.
fn form(overlay: &str) -> Result<Cluster> {
    let overlay = Some(overlay.to_owned());
    Cluster::form(1, 2, &Options { hybrid: true, overlay, ..Options::default() })
}

fn service(cluster: &Cluster, name: &str, flags: &[&str], count: usize) -> Result<Vec<Pod>> {
    // What serves there is begun by the tests, later.
    let fixed = ["--stop-signal", "KILL", "--restart-delay", "0s", "--no-healthcheck"];
    cluster.create(name, &[&fixed[..], flags].concat(), &IDLE)?;
    pods(cluster, name, count)
}

fn pods(cluster: &Cluster, name: &str, count: usize) -> Result<Vec<Pod>> {
    let tasks = cluster.wait_running(name, count, SOON)?;
    tasks.iter().map(|task| Pod::of(cluster, task)).collect()
}

/// On every machine one, of a network.
fn everywhere(cluster: &Cluster, name: &str, network: &str) -> Result<Vec<Pod>> {
    service(cluster, name, &["--mode", "global", "--network", network], 3)
}

/// Virtual IPs of a service, of both families.
pub(crate) fn vips(
    cluster: &Cluster,
    network: &str,
    service: &str,
) -> Result<(Ipv4Addr, Ipv6Addr)> {
    cluster.until(&format!("{service} has a virtual IP"), SOON, || {
        let text = cluster.asked()?.ok(&["network", "inspect", network, "--format", "json"])?;
        let value: Value = serde_json::from_str(&text)?;
        let value = value.as_array().map_or_else(|| value.clone(), |all| all[0].clone());
        let services = value["services"].as_array().context("services")?;
        let found = services.iter().find(|user| user["name"] == service).context("the service")?;
        let address = |key: &str| found[key].as_str();
        let Some((v4, v6)) = address("address").zip(address("address_v6")) else { return Ok(None) };
        Ok(Some((v4.parse()?, v6.parse()?)))
    })
}

/// Waits until a question is answered as it should be: what is new takes a moment to be known
/// everywhere.
fn becomes(
    cluster: &Cluster,
    what: &str,
    expected: &str,
    mut ask: impl FnMut() -> Result<String>,
) -> Result<()> {
    cluster.until(&format!("{what}: {expected}"), SOON, || {
        let said = ask()?;
        if said == expected { Ok(Some(())) } else { bail!("{said}") }
    })
}

/// Who answers `MANY` questions by TCP in a row; each must be answered.
fn answering(client: &Pod, to: impl Into<IpAddr>, port: u16) -> Result<BTreeSet<String>> {
    let to = to.into();
    let mut names = BTreeSet::new();
    for _ in 0..MANY {
        let said = client.tcp(to, port)?;
        let Some((name, _)) = said.split_once(' ') else {
            bail!("{} to {to}: {said}", client.name)
        };
        names.insert(name.to_owned());
    }
    Ok(names)
}

/// All of the names, each of them answering.
fn all_answer(
    cluster: &Cluster,
    client: &Pod,
    to: impl Into<IpAddr> + Copy,
    port: u16,
    pods: &[Pod],
) -> Result<()> {
    let all: BTreeSet<String> = pods.iter().map(|pod| pod.name.clone()).collect();
    cluster.until(&format!("{all:?} answer {}", client.name), SOON, || {
        let names = answering(client, to, port)?;
        if names == all { Ok(Some(())) } else { bail!("{names:?}") }
    })
}

fn reach(overlay: &str) -> Result<()> {
    let cluster = form(overlay)?;
    let manager = cluster.asked()?;
    manager.ok(&["network", "create", "back"])?;
    let ports = ["-p", "8080:80", "-p", "8080:80/udp"];
    let flags = [&["--replicas", "2", "--network", "back"][..], &ports].concat();
    let web = service(&cluster, "web", &flags, 2)?;
    for pod in &web {
        pod.serve(WEB)?;
    }
    let (vip, vip6) = vips(&cluster, "back", "web")?;
    let clients = everywhere(&cluster, "client", "back")?;
    for client in &clients {
        all_answer(&cluster, client, vip, WEB, &web)?;
        all_answer(&cluster, client, vip6, WEB, &web)?;
        let own6 = client.v6()?;
        for server in &web {
            let (name, v6) = (&server.name, server.v6()?);
            let expected = format!("{name} {}", client.v4);
            assert_eq!(client.tcp(server.v4, WEB)?, expected);
            assert_eq!(client.udp(server.v4, WEB)?, expected);
            assert_eq!(client.tcp(v6, WEB)?, format!("{name} {own6}"));
            assert!(client.ping(server.v4)? && client.ping(v6)?);
        }
        assert!(client.udp(vip, WEB)?.ends_with(&format!(" {}", client.v4)));
        // A port that is not served there.
        assert_eq!(client.tcp(vip, 81)?, "refused");
        assert!(client.ping(vip)?);
    }
    // From a machine that is no node: each node answers, and the container sees who asks.
    let outside = Pod::machine(cluster.hub());
    for node in cluster.nodes() {
        let address = node.host().address();
        all_answer(&cluster, &outside, address, PUBLISHED, &web)?;
        for said in [outside.tcp(address, PUBLISHED)?, outside.udp(address, PUBLISHED)?] {
            assert!(said.ends_with(&format!(" {}", outside.v4)), "by {}: {said}", node.name());
        }
        let (address, own) = (node.host().address6(), cluster.hub().address6());
        all_answer(&cluster, &outside, address, PUBLISHED, &web)?;
        for said in [outside.tcp(address, PUBLISHED)?, outside.udp(address, PUBLISHED)?] {
            assert!(said.ends_with(&format!(" {own}")), "by {}: {said}", node.name());
        }
    }
    // More than a greeting, and packets of full size.
    let first = cluster.nodes()[0].host().address();
    let mut open = outside.connect(first, PUBLISHED)?;
    for _ in 0..100 {
        open.ask()?;
    }
    Ok(())
}

#[test]
fn host_services_reach_each_other_by_vxlan() -> Result<()> {
    reach("vxlan")
}

#[test]
fn host_services_reach_each_other_by_wireguard() -> Result<()> {
    reach("wireguard")
}

#[test]
fn host_services_reach_each_other_by_plain_routes() -> Result<()> {
    reach("none")
}

/// Whether somebody at the switch reads what containers say: by their addresses, a virtual IP and
/// a published port, of both families. The page is the word that is looked for.
fn is_readable(overlay: &str) -> Result<bool> {
    const WORD: &str = "quite-a-secret";
    let cluster = form(overlay)?;
    let web = service(&cluster, "web", &["--replicas", "1", "-p", "8080:80"], 1)?.remove(0);
    let elsewhere = cluster.nodes().iter().find(|node| node.name() != web.host.name());
    let elsewhere = elsewhere.context("another node")?;
    let clients = everywhere(&cluster, "client", "default")?;
    let client = clients.iter().find(|pod| pod.host.name() == elsewhere.name());
    let client = client.context("a client elsewhere")?;
    let server = Pod { name: WORD.to_owned(), ..web.clone() };
    server.serve(WEB)?;
    let (vip, vip6) = vips(&cluster, "default", "web")?;
    let server6 = server.v6()?;
    let there = Pod::machine(elsewhere.host());
    let ways: [(&Pod, IpAddr, u16); 5] = [
        (client, server.v4.into(), WEB),
        (client, server6.into(), WEB),
        (client, vip.into(), WEB),
        (client, vip6.into(), WEB),
        (&there, elsewhere.host().address().into(), PUBLISHED),
    ];
    for (client, to, port) in ways {
        becomes(&cluster, "answered", WORD, || Ok(first(&client.tcp(to, port)?)))?;
    }
    cluster.bed().listen();
    for (client, to, port) in ways {
        for said in [client.tcp(to, port)?, client.udp(to, port)?] {
            // Published is TCP alone.
            assert!(first(&said) == WORD || port == PUBLISHED, "{said}");
        }
    }
    let heard = cluster.bed().heard()?;
    assert!(!heard.is_empty());
    let reads = |said: &Vec<u8>| said.windows(WORD.len()).any(|bytes| bytes == WORD.as_bytes());
    Ok(heard.iter().any(reads))
}

fn first(said: &str) -> String {
    said.split(' ').next().unwrap_or_default().to_owned()
}

#[test]
fn host_nobody_between_nodes_reads_what_containers_say() -> Result<()> {
    assert!(is_readable("vxlan")?, "who listens hears nothing");
    assert!(!is_readable("wireguard")?);
    Ok(())
}

/// Whoever is told that a backend is gone gets no failed request any more.
#[test]
fn host_backends_that_go_are_out() -> Result<()> {
    let cluster = form("vxlan")?;
    let flags = ["--replicas", "3", "-p", "8080:80", "--restart-condition", "none"];
    let web = service(&cluster, "web", &flags, 3)?;
    for pod in &web {
        pod.serve(WEB)?;
    }
    let (vip, _) = vips(&cluster, "default", "web")?;
    let clients = everywhere(&cluster, "client", "default")?;
    let outside = Pod::machine(cluster.hub());
    let asked = |clients: &[Pod], left: &[Pod]| -> Result<()> {
        let left: BTreeSet<&str> = left.iter().map(|pod| pod.name.as_str()).collect();
        let mut answers = Vec::new();
        for client in clients {
            answers.push(answering(client, vip, WEB)?);
        }
        for node in cluster.nodes() {
            answers.push(answering(&outside, node.host().address(), PUBLISHED)?);
        }
        let strange = answers.iter().flatten().find(|name| !left.contains(name.as_str()));
        match strange {
            None => Ok(()),
            Some(name) => Err(anyhow::anyhow!("{name} answers, left are {left:?}")),
        }
    };
    for client in &clients {
        all_answer(&cluster, client, vip, WEB, &web)?;
    }
    cluster.asked()?.ok(&["service", "scale", "web=2"])?;
    let web = pods(&cluster, "web", 2)?;
    gone(&cluster, "web", 2)?;
    asked(&clients, &web)?;

    // A node is drained: what ran there is elsewhere.
    let node = web[0].host.name().to_owned();
    cluster.asked()?.ok(&["node", "update", "--availability", "drain", &node])?;
    let moved = cluster.until("nothing runs there", SOON, || {
        let now = pods(&cluster, "web", 2)?;
        Ok(now.iter().all(|pod| pod.host.name() != node).then_some(now))
    })?;
    for pod in moved.iter().filter(|pod| web.iter().all(|old| old.v4 != pod.v4)) {
        pod.serve(WEB)?;
    }
    gone(&cluster, "web", 2)?;
    let clients: Vec<Pod> =
        clients.into_iter().filter(|client| client.host.name() != node).collect();
    asked(&clients, &moved)?;

    // A process is killed, for good.
    let pid = moved[0].pid.context("a pid")?.to_string();
    moved[0].host.run("/bin/kill", &["-KILL", &pid])?;
    gone(&cluster, "web", 1)?;
    // Nobody could say so before it was gone: others have it out a moment after managers know.
    cluster.until("it is out everywhere", SOON, || Ok(asked(&clients, &moved[1..]).ok()))
}

/// Waits until nothing of a service is on its way out any more.
fn gone(cluster: &Cluster, service: &str, left: usize) -> Result<()> {
    cluster.until(&format!("{left} tasks of {service} are left"), SOON, || {
        let tasks = cluster.asked()?.json(&["service", "ps", service])?;
        let ended = ["complete", "failed", "rejected", "removed"];
        let live = tasks.iter().filter(|task| !ended.iter().any(|state| task["state"] == *state));
        Ok((live.count() == left).then_some(()))
    })
}

#[test]
fn host_networks_are_apart() -> Result<()> {
    let cluster = form("vxlan")?;
    let manager = cluster.asked()?;
    for network in ["left", "right"] {
        manager.ok(&["network", "create", network])?;
    }
    manager.ok(&["network", "create", "shut", "--internal"])?;
    let left = everywhere(&cluster, "one", "left")?;
    let right = everywhere(&cluster, "two", "right")?;
    let shut = everywhere(&cluster, "three", "shut")?;
    for pod in left.iter().chain(&right).chain(&shut) {
        pod.serve(WEB)?;
    }
    let (right_vip, _) = vips(&cluster, "right", "two")?;
    for client in &left {
        // Their own network, on every machine.
        for peer in &left {
            becomes(&cluster, "a peer answers", &format!("{} {}", peer.name, client.v4), || {
                client.tcp(peer.v4, WEB)
            })?;
        }
    }
    parted(&left, &right.iter().chain(&shut).cloned().collect::<Vec<_>>())?;
    let said = left[0].tcp_within(right_vip, WEB, SILENCE)?;
    assert!(["silence", "refused", "unreachable"].contains(&said.as_str()), "{said}");
    // The way out is open for one and shut for the other.
    let outside = Pod::machine(cluster.hub());
    outside.serve(9000)?;
    for client in &left {
        let by = format!("hub {}", client.host.address());
        assert_eq!(client.tcp(outside.v4, 9000)?, by);
        assert_eq!(client.udp(outside.v4, 9000)?, by);
        assert!(client.ping(outside.v4)?);
    }
    for client in &shut {
        for peer in &shut {
            becomes(&cluster, "a peer answers", &format!("{} {}", peer.name, client.v4), || {
                client.tcp(peer.v4, WEB)
            })?;
        }
        assert_eq!(client.tcp_within(outside.v4, 9000, SILENCE)?, "silence");
        assert_eq!(client.udp_within(outside.v4, 9000, SILENCE)?, "silence");
        assert!(!client.ping(outside.v4)?);
        // Nor to the nodes themselves.
        assert_eq!(
            client.tcp_within(cluster.nodes()[0].host().address(), 2377, SILENCE)?,
            "silence"
        );
    }
    Ok(())
}

/// None of these reaches any of those: nothing comes back, by whatever protocol.
fn parted(these: &[Pod], those: &[Pod]) -> Result<()> {
    let look = |client: &Pod, other: &Pod| -> Result<()> {
        let said = [
            client.tcp_within(other.v4, WEB, SILENCE)?,
            client.udp_within(other.v4, WEB, SILENCE)?,
            client.tcp_within(other.v6()?, WEB, SILENCE)?,
        ];
        assert_eq!(said, ["silence"; 3], "{} to {}", client.name, other.name);
        assert!(!client.ping(other.v4)?, "{} to {}", client.name, other.name);
        Ok(())
    };
    std::thread::scope(|scope| {
        let pairs = these.iter().flat_map(|client| those.iter().map(move |other| (client, other)));
        let looks: Vec<_> =
            pairs.map(|(client, other)| scope.spawn(move || look(client, other))).collect();
        looks.into_iter().try_for_each(|look| look.join().unwrap())
    })
}

/// A process of the machine that listens already keeps its clients, and people are told.
#[test]
fn host_a_port_that_is_taken_is_left_alone() -> Result<()> {
    let cluster = form("vxlan")?;
    let foreign = Pod::machine(cluster.node("w2")?.host());
    foreign.serve(PUBLISHED)?;
    // Also where it is itself, the container is reached through the others.
    let at = ["--replicas", "1", "-p", "8080:80", "--constraint", "node.hostname==w2"];
    let web = service(&cluster, "web", &at, 1)?;
    web[0].serve(WEB)?;
    let outside = Pod::machine(cluster.hub());
    for name in ["m1", "w1"] {
        let address = cluster.node(name)?.host().address();
        becomes(&cluster, name, &format!("{} {}", web[0].name, outside.v4), || {
            outside.tcp(address, PUBLISHED)
        })?;
    }
    assert_eq!(outside.tcp(foreign.v4, PUBLISHED)?, format!("w2 {}", outside.v4));
    cluster.until("people are told", SOON, || {
        let said = cluster.node("w2")?.warren(&["doctor"])?;
        Ok(said.out.contains("port 8080/tcp of service web is not answered").then_some(()))
    })
}

/// kill -9 and a restart cost no connection, and everything is as before.
#[test]
fn host_networks_outlive_the_daemon() -> Result<()> {
    let cluster = form("vxlan")?;
    let web = service(&cluster, "web", &["--replicas", "3", "-p", "8080:80"], 3)?;
    for pod in &web {
        pod.serve(WEB)?;
    }
    let (vip, vip6) = vips(&cluster, "default", "web")?;
    let clients = everywhere(&cluster, "client", "default")?;
    let client = clients.iter().find(|pod| pod.host.name() == "w1").context("a client on w1")?;
    let outside = Pod::machine(cluster.hub());
    let worker = cluster.node("w1")?;
    let address = worker.host().address();
    all_answer(&cluster, client, vip, WEB, &web)?;
    all_answer(&cluster, &outside, address, PUBLISHED, &web)?;
    let mut open = [client.connect(vip, WEB)?, outside.connect(address, PUBLISHED)?];
    let before: Vec<String> = open.iter_mut().map(|open| open.ask()).collect::<Result<_, _>>()?;
    let mut ask = || -> Result<()> {
        answering(client, vip, WEB)?;
        answering(client, vip6, WEB)?;
        answering(&outside, address, PUBLISHED)?;
        let now: Vec<String> = open.iter_mut().map(|open| open.ask()).collect::<Result<_, _>>()?;
        assert_eq!(now, before);
        Ok(())
    };
    worker.kill()?;
    ask()?;
    worker.run()?;
    let start = std::time::Instant::now();
    // While it adopts, connects and applies, and for a while after.
    while start.elapsed() < Duration::from_secs(3) {
        ask()?;
    }
    cluster.wait_ready(3, SOON)?;
    ask()
}

/// What a node has in its kernel by its own name.
fn left(cluster: &Cluster, node: &str) -> Result<String> {
    let host = cluster.node(node)?.host();
    let ask = |program: &str, args: &[&str]| host.run(program, args).map(|said| said.out);
    let links = ask("ip", &["-o", "link"])?;
    let links =
        links.lines().filter(|line| line.split(' ').nth(1).is_some_and(|n| n.starts_with('w')));
    let routes = ask("ip", &["route", "show", "table", "all"])?;
    let routes = routes.lines().filter(|line| line.contains("10.128.") || line.contains("10.192."));
    let rules = ask("ip", &["rule"])?;
    let rules = rules.lines().filter(|line| {
        !line.contains("lookup local")
            && !line.contains("lookup main")
            && !line.contains("lookup default")
    });
    let tables = ask("nft", &["list", "tables"])?;
    let all = links.chain(routes).chain(rules).chain(tables.lines());
    Ok(all.map(|line| format!("{line}\n")).collect())
}

#[test]
fn host_nothing_is_left_behind() -> Result<()> {
    let cluster = form("vxlan")?;
    let rules = |node: &str| -> Result<String> {
        let said = cluster.node(node)?.host().run("nft", &["list", "ruleset"])?;
        Ok(said.out)
    };
    let links = |node: &str| -> Result<usize> {
        let said = cluster.node(node)?.host().run("ip", &["-o", "link", "show", "type", "veth"])?;
        // Prepared ones have no alias.
        Ok(said.out.lines().filter(|line| line.contains("alias")).count())
    };
    let web = service(&cluster, "web", &["--replicas", "3", "-p", "8080:80"], 3)?;
    let (vip, _) = vips(&cluster, "default", "web")?;
    for node in ["m1", "w1", "w2"] {
        cluster.until("its rules have the service", SOON, || {
            let rules = rules(node)?;
            Ok((rules.contains(&vip.to_string()) && rules.contains("8080")).then_some(()))
        })?;
        assert_eq!(links(node)?, 1);
    }
    cluster.asked()?.ok(&["service", "rm", "web"])?;
    for node in ["m1", "w1", "w2"] {
        cluster.until("nothing is left of the service", SOON, || {
            let rules = rules(node)?;
            let pods = web.iter().any(|pod| rules.contains(&format!("{} ", pod.v4)));
            let left = pods || rules.contains(&vip.to_string()) || rules.contains("8080");
            if left {
                bail!("{rules}")
            }
            Ok((links(node)? == 0).then_some(()))
        })?;
    }
    assert!(left(&cluster, "w2")?.contains("10.192.0.0/14"));
    let worker = cluster.node("w2")?;
    worker.ok(&["node", "leave"])?;
    wait_left(&cluster)
}

fn wait_left(cluster: &Cluster) -> Result<()> {
    warren_testbed::wait::until("nothing is left of the node", SOON, || {
        let left = left(cluster, "w2")?;
        if left.is_empty() { Ok(Some(())) } else { bail!("{left}") }
    })
}
