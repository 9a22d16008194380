//! Nodes whose kernels have WireGuard: run by `make test-guest`.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::keys::{Stream, WEB, form};
use crate::support::SOON;

/// A machine that is emulated takes its time; TCP has the patience.
const PAUSE_MAX: std::time::Duration = std::time::Duration::from_secs(20);

#[test]
fn guest_the_kernel_encrypts_between_nodes() -> Result<()> {
    let (cluster, pods) = form()?;
    let mut streams = Vec::new();
    let answers = |at: usize, to: IpAddr| {
        cluster.until("a pod elsewhere answers", SOON, || {
            Ok(pods[at].tcp(to, WEB)?.contains(' ').then_some(()))
        })
    };
    let mut pairs: Vec<(usize, IpAddr)> = Vec::new();
    for (at, client) in pods.iter().enumerate() {
        let others = pods.iter().filter(|pod| pod.v4 != client.v4);
        pairs.extend(others.map(|pod| (at, pod.v4.into())));
    }
    for (at, to) in &pairs {
        answers(*at, *to)?;
        streams.push(Stream::start(&pods[*at], *to)?);
    }
    // The kernel has the device, and the data plane none.
    for node in ["m1", "w1", "w2"] {
        let host = cluster.node(node)?.host();
        let device = host.run("ip", &["-o", "link", "show", "type", "wireguard"])?.out;
        assert_eq!(device.lines().count(), 1, "{node}: {device}");
        let others = host.run("ip", &["-o", "link", "show", "type", "tun"])?.out;
        // The machine's own link to the segment is such a one.
        assert!(others.lines().all(|line| line.contains(" eth0: ")), "{node}: {others}");
    }
    // A key that is replaced costs a moment, and no stream.
    let keys = cluster.asked()?.ok(&["network", "rotate-keys", "w1"])?;
    assert!(keys.starts_with("w1 "), "{keys}");
    for stream in streams {
        stream.stop_within(PAUSE_MAX)?;
    }
    // Who takes the device away gets it put back.
    let host = cluster.node("w1")?.host();
    let device = host.run("ip", &["-o", "link", "show", "type", "wireguard"])?.out;
    let name = device.split(": ").nth(1).context("a name")?.to_owned();
    host.run("ip", &["link", "del", &name])?;
    for (at, to) in pairs {
        answers(at, to)?;
    }
    // What is counted of other nodes.
    let at = host.socket(warren_testbed::node::ADMIN_PORT);
    let text = cluster.hub().get(at, "/metrics")?.text();
    let carries = text.lines().any(|line| line == "warren_dataplane_carries 1");
    assert!(carries, "{text}");
    Ok(())
}
