//! Networks, probed pair by pair from inside containers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use warren_net::{Carrier, Group, Networks, Table};

use crate::cluster::{Cluster, Pod, name_server_of, on_cluster};
use crate::world::{Server, pings, tcp_to, tcp_to_briefly, udp_to, udp_to_briefly, within};

pub(crate) fn group(key: &str, pods: &[&Pod], networks: &[u32]) -> Arc<Group> {
    Arc::new(Group {
        key: key.into(),
        addresses: pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect(),
        networks: networks.iter().copied().collect(),
    })
}

async fn apply(cluster: &Cluster, carrier: Carrier, networks: &Networks) {
    let table = |_| Table { networks: Some(networks.clone()), ..Table::default() };
    cluster.apply(carrier, table).await;
}

pub(crate) fn ping(from: &Pod, to: IpAddr) -> bool {
    within(from.netns(), || pings(to))
}

/// By everything there is.
fn probe(from: &Pod, own: IpAddr, to: IpAddr, may: bool) {
    let expected = if may { format!("x {own}") } else { "silence".into() };
    let tcp = within(from.netns(), || tcp_to_briefly(to, 80));
    let udp = within(from.netns(), || udp_to_briefly(to, 80));
    assert_eq!([&tcp, &udp], [&expected, &expected], "{own} to {to}");
    assert_eq!(ping(from, to), may, "{own} to {to}");
}

/// Every container asks every other.
fn matrix(carrier: Carrier) {
    on_cluster(2, move |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        // Networks 1 and 2, one container on both, one on none that is named.
        let pods = [
            (one.pod("a1", 2).await, &[1][..]),
            (two.pod("a2", 2).await, &[1][..]),
            (one.pod("b1", 3).await, &[2][..]),
            (two.pod("b2", 3).await, &[2][..]),
            (two.pod("ab", 4).await, &[1, 2][..]),
        ];
        let stranger = one.pod("stranger", 9).await;
        let mut servers = vec![stranger.serve("x", 80)];
        servers.extend(pods.iter().map(|(pod, _)| pod.serve("x", 80)));
        let groups = pods.iter().enumerate();
        let groups =
            groups.map(|(index, (pod, networks))| group(&index.to_string(), &[pod], networks));
        let networks = Networks { groups: groups.collect(), ..Networks::default() };
        apply(&cluster, carrier, &networks).await;
        let nothing: &[u32] = &[];
        let all: Vec<(&Pod, &[u32])> = pods
            .iter()
            .map(|(pod, networks)| (pod, *networks))
            .chain([(&stranger, nothing)])
            .collect();
        // What is dropped takes its time: all of them at once.
        std::thread::scope(|scope| {
            for (from, of_from) in &all {
                for (to, of_to) in all.iter().filter(|(to, _)| !std::ptr::eq(*to, *from)) {
                    let may = of_from.iter().any(|network| of_to.contains(network));
                    for (to, own) in [(to.v4(), from.v4()), (to.v6(), from.v6())] {
                        scope.spawn(move || probe(from, own, to, may));
                    }
                }
            }
        });
        // A node reaches them all.
        for (pod, _) in &pods[..1] {
            assert!(within(&one.netns, || tcp_to(pod.v4(), 80)).starts_with("x "));
            assert!(within(&two.netns, || tcp_to(pod.v4(), 80)).starts_with("x "));
        }
    });
}

#[test]
fn host_networks_part_by_vxlan() {
    matrix(Carrier::Vxlan);
}

#[test]
fn host_networks_part_by_plain_routes() {
    matrix(Carrier::Plain);
}

#[test]
fn host_internal_networks_have_no_way_out() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        let (job, mate, free) =
            (node.pod("job", 2).await, node.pod("mate", 3).await, node.pod("free", 4).await);
        let _servers = (job.serve("x", 80), mate.serve("x", 80), free.serve("x", 80));
        let world: IpAddr = "192.0.2.100".parse().unwrap();
        let _world = within(&cluster.outside, || Server::tcp("world", world, 80));
        let gateway: IpAddr = "169.254.1.1".parse().unwrap();
        let _node = within(&node.netns, || {
            let (at, port) = name_server_of(node.number);
            (Server::udp("dns", at, port), Server::tcp("own", gateway, 22))
        });
        let mut networks = Networks {
            groups: vec![
                group("job", &[&job], &[9]),
                group("mate", &[&mate], &[9, 1]),
                group("free", &[&free], &[1]),
            ]
            .into(),
            internal: BTreeSet::from([9]),
            ..Networks::default()
        };
        apply(&cluster, Carrier::Vxlan, &networks).await;
        let ask = |pod: &Pod, to, port| within(pod.netns(), || tcp_to_briefly(to, port));
        assert_eq!(ask(&job, mate.v4(), 80), "x 10.128.1.2");
        assert_eq!(ask(&job, free.v4(), 80), "silence");
        assert_eq!(ask(&job, world, 80), "silence");
        assert_eq!(ask(&job, gateway, 22), "silence");
        assert_eq!(within(job.netns(), || udp_to(gateway, 53)), "dns 10.128.1.2");
        assert_eq!(ask(&mate, world, 80), "world 192.0.2.1");
        assert_eq!(ask(&mate, gateway, 22), "own 10.128.1.3");
        assert!(within(&node.netns, || tcp_to(job.v4(), 80)).starts_with("x "));
        // The network is no longer internal.
        networks.internal.clear();
        apply(&cluster, Carrier::Vxlan, &networks).await;
        assert_eq!(ask(&job, world, 80), "world 192.0.2.1");
    });
}
