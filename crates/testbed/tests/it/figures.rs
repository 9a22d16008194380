//! What nodes count of services, and ports of one replica's own node.

use std::net::IpAddr;

use anyhow::{Result, bail};
use warren_testbed::{Cluster, Options};

use crate::network::vips;
use crate::pods::Pod;
use crate::support::SOON;

const WEB: u16 = 80;
const PUBLISHED: u16 = 8080;

fn form() -> Result<Cluster> {
    Cluster::form(1, 1, &Options { hybrid: true, ..Options::default() })
}

fn pods(cluster: &Cluster, name: &str, count: usize) -> Result<Vec<Pod>> {
    let tasks = cluster.wait_running(name, count, SOON)?;
    tasks.iter().map(|task| Pod::of(cluster, task)).collect()
}

/// A line of a node's figures.
fn figure(cluster: &Cluster, node: &str, begins: &str, has: &[&str]) -> Result<u64> {
    let at = cluster.node(node)?.host().socket(warren_testbed::node::ADMIN_PORT);
    let text = cluster.hub().get(at, "/metrics")?.text();
    let fits = |line: &&str| line.starts_with(begins) && has.iter().all(|part| line.contains(part));
    let value = text.lines().find(fits).and_then(|line| line.rsplit(' ').next()?.parse().ok());
    Ok(value.unwrap_or(0))
}

#[test]
fn host_connections_to_services_are_counted() -> Result<()> {
    let cluster = form()?;
    let fixed = ["--stop-signal", "KILL", "--restart-delay", "0s"];
    let web = ["--replicas", "2", "-p", "8080:80"];
    cluster.create("web", &[&fixed[..], &web].concat(), &["sleep", "100000"])?;
    let at = ["--replicas", "1", "--constraint", "node.hostname==w1"];
    cluster.create("client", &[&fixed[..], &at].concat(), &["sleep", "100000"])?;
    for pod in &pods(&cluster, "web", 2)? {
        pod.serve(WEB)?;
    }
    let client = pods(&cluster, "client", 1)?.remove(0);
    let (vip, vip6) = vips(&cluster, "default", "web")?;
    let outside = Pod::machine(cluster.hub());
    let by = |by: &str| {
        figure(
            &cluster,
            "w1",
            "warren_network_service_connections_total{",
            &["name=\"web\"", &format!("by=\"{by}\"")],
        )
    };
    let ask = |client: &Pod, to: IpAddr, port| {
        cluster.until("it answers", SOON, || {
            let said = client.tcp(to, port)?;
            if said.contains(' ') { Ok(Some(())) } else { bail!("{said}") }
        })
    };
    let node: IpAddr = cluster.node("w1")?.host().address().into();
    for (client, to, port) in
        [(&client, vip.into(), WEB), (&client, vip6.into(), WEB), (&outside, node, PUBLISHED)]
    {
        ask(client, to, port)?;
    }
    let (address, port) = (by("address")?, by("port")?);
    assert!(address >= 2 && port >= 1, "{address} {port}");
    for _ in 0..5 {
        assert!(client.tcp(vip, WEB)?.contains(' '));
        assert!(client.tcp(vip6, WEB)?.contains(' '));
        assert!(outside.tcp(node, PUBLISHED)?.contains(' '));
    }
    assert_eq!((by("address")?, by("port")?), (address + 10, port + 5));
    // Whoever else comes and goes, what was counted stays.
    cluster.asked()?.ok(&["service", "scale", "web=1"])?;
    cluster.wait_running("web", 1, SOON)?;
    assert!(by("address")? >= address + 10 && by("port")? >= port + 5);

    // A policy's, where it decides.
    let deny = ["policy", "create", "shut", "--from", "client", "--deny", "--to", "web"];
    cluster.asked()?.ok(&deny)?;
    cluster.until("it is denied and counted", SOON, || {
        let said = client.tcp_within(vip, WEB, crate::pods::SILENCE)?;
        let nodes = ["m1", "w1"].map(|node| {
            figure(
                &cluster,
                node,
                "warren_network_policy_packets_total{",
                &["name=\"shut\"", "\"deny\""],
            )
        });
        let count: u64 = nodes.into_iter().sum::<Result<u64>>()?;
        Ok((said == "silence" && count > 0).then_some(()))
    })
}

#[test]
fn host_ports_of_one_replica_are_of_both_families() -> Result<()> {
    let cluster = form()?;
    let publish = "mode=host,published=8080,target=80";
    let flags = [
        "--replicas",
        "1",
        "--constraint",
        "node.hostname==w1",
        "--stop-signal",
        "KILL",
        "-p",
        publish,
    ];
    cluster.create("web", &flags, &["sleep", "100000"])?;
    let web = pods(&cluster, "web", 1)?.remove(0);
    web.serve(WEB)?;
    let (outside, w1, m1) = (Pod::machine(cluster.hub()), cluster.node("w1")?, cluster.node("m1")?);
    let (own4, own6) = (outside.v4.to_string(), cluster.hub().address6().to_string());
    let ways: [(IpAddr, &str); 2] =
        [(w1.host().address().into(), &own4), (w1.host().address6().into(), &own6)];
    for (to, own) in ways {
        let expected = format!("{} {own}", web.name);
        cluster.until(&format!("{to} answers"), SOON, || {
            let said = outside.tcp(to, PUBLISHED)?;
            if said == expected { Ok(Some(())) } else { bail!("{said}") }
        })?;
    }
    // It is that node's port alone.
    for to in [IpAddr::from(m1.host().address()), m1.host().address6().into()] {
        assert_eq!(outside.tcp(to, PUBLISHED)?, "refused", "{to}");
    }
    // Without a replica nobody answers.
    cluster.asked()?.ok(&["service", "rm", "web"])?;
    for (to, _) in ways {
        cluster.until(&format!("{to} refuses"), SOON, || {
            Ok((outside.tcp(to, PUBLISHED)? == "refused").then_some(()))
        })?;
    }
    Ok(())
}
