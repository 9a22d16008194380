//! Services' addresses: who answers, who is chosen, what is refused.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use warren_net::Protocol::{Tcp, Udp};
use warren_net::{Carrier, Frontend, Group, Networks, Protocol, Service, Table};

use crate::cluster::{Cluster, Pod, on_cluster, service, vip, vip6};
use crate::world::{Connection, UdpClient, pings, run, tcp_to, udp_to, within};

fn port(vip: IpAddr, protocol: Protocol, port: u16, target: u16) -> Frontend {
    Frontend::Port { vip, protocol, port, target }
}

async fn apply(cluster: &Cluster, services: impl Fn(u8) -> Vec<Arc<Service>>) {
    let table = |from| Table { services: services(from).into(), ..Table::default() };
    cluster.apply(Carrier::Vxlan, table).await;
}

#[test]
fn host_service_answers_on_every_node() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (here, there) = (one.pod("here", 2).await, two.pod("there", 2).await);
        let client = one.pod("client", 3).await;
        let _servers = (here.serve("here", 8080), there.serve("there", 8080));
        let frontends: Vec<Frontend> = [vip(1), vip6(1)]
            .into_iter()
            .flat_map(|vip| [port(vip, Tcp, 80, 8080), port(vip, Udp, 80, 8080)])
            .chain([Frontend::Address(vip(2)), Frontend::Address(vip6(2))])
            .collect();
        apply(&cluster, |from| vec![service("web", &frontends, &[&here, &there], from)]).await;
        for (to, at, client_address) in [
            (vip(1), 80, client.v4()),
            (vip6(1), 80, client.v6()),
            (vip(2), 8080, client.v4()),
            (vip6(2), 8080, client.v6()),
        ] {
            for ask in [tcp_to, udp_to] {
                let mut seen = BTreeMap::new();
                for _ in 0..40 {
                    *seen.entry(within(client.netns(), || ask(to, at))).or_insert(0) += 1;
                }
                let expected = ["here", "there"].map(|name| format!("{name} {client_address}"));
                assert!(seen.keys().eq(&expected), "{to} {at}: {seen:?}");
                assert!(seen.values().all(|count| *count >= 5), "{to} {at}: {seen:?}");
            }
        }
        // The host itself, and a container that is its own backend.
        let mut own = BTreeMap::new();
        for _ in 0..40 {
            let answer = within(here.netns(), || tcp_to(vip(1), 80));
            *own.entry(answer.split(' ').next().unwrap().to_owned()).or_insert(0) += 1;
            assert!(within(&one.netns, || tcp_to(vip(1), 80)).contains(" 1"));
            let answer = within(here.netns(), || tcp_to(vip6(1), 80));
            assert!(answer.contains("here ") || answer.contains("there "), "{answer}");
        }
        assert!(own.len() == 2, "{own:?}");
    });
}

#[test]
fn host_service_refuses_and_answers_pings() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        let (web, client) = (node.pod("web", 2).await, node.pod("client", 3).await);
        let _servers = web.serve("web", 80);
        let of = |backends: bool| {
            let pods: &[_] = if backends { &[&web] } else { &[] };
            let frontends = [vip(1), vip6(1)]
                .into_iter()
                .flat_map(|vip| [port(vip, Tcp, 80, 80), port(vip, Udp, 80, 80)])
                .collect::<Vec<_>>();
            let all = [Frontend::Address(vip(2)), Frontend::Address(vip6(2))];
            vec![service("web", &frontends, pods, 1), service("all", &all, pods, 1)]
        };
        let ask =
            |to: IpAddr, port| within(client.netns(), || [tcp_to(to, port), udp_to(to, port)]);
        let refused = ["refused".to_owned(), "refused".to_owned()];
        for backends in [true, false, true] {
            apply(&cluster, |_| of(backends)).await;
            for to in [vip(1), vip6(1), vip(2), vip6(2)] {
                assert_eq!(ask(to, 80) == refused, !backends, "{to}");
                assert_eq!(ask(to, 81), refused, "{to}");
            }
            for to in [vip(1), vip(2), vip6(1), vip6(2)] {
                assert!(within(client.netns(), || pings(to)), "{to}");
            }
            // The host's own clients do not wait either.
            assert_eq!(within(&node.netns, || tcp_to(vip(1), 81)), "refused");
        }
        // From outside nobody gets in by it, with a route or without.
        within(&cluster.outside, || run("ip route add 10.64.0.0/16 via 192.0.2.1"));
        assert_eq!(within(&cluster.outside, || tcp_to(vip(1), 80)), "refused");
        // An address that no service has.
        let answer = within(client.netns(), || tcp_to(vip(9), 80));
        assert!(answer.starts_with("No route to host"), "{answer}");
        apply(&cluster, |_| Vec::new()).await;
        let answer = within(client.netns(), || tcp_to(vip(1), 80));
        assert!(answer.starts_with("No route to host"), "{answer}");
    });
}

#[test]
fn host_service_changes_keep_connections() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (first, second) = (one.pod("first", 2).await, two.pod("second", 2).await);
        let client = one.pod("client", 3).await;
        let _servers = (first.serve("first", 80), second.serve("second", 80));
        let frontends = [Frontend::Address(vip(1)), Frontend::Address(vip6(1))];
        let with = |pods: Vec<&Pod>| {
            let services = [1, 2].map(|from| service("web", &frontends, &pods, from));
            move |from: u8| vec![Arc::clone(&services[usize::from(from) - 1])]
        };
        apply(&cluster, with(vec![&first])).await;
        let open = |to| within(client.netns(), || Connection::open(to, 80)).unwrap();
        let mut connections = [open(vip(1)), open(vip6(1))];
        let flows =
            [vip(1), vip6(1)].map(|to| within(client.netns(), || UdpClient::open(to, 80)).unwrap());
        let expect = |name: &str| {
            for flow in &flows {
                let answer = flow.outcome();
                assert!(answer.starts_with(name), "{answer}, not {name}");
            }
        };
        expect("first");
        // A flow stays while its backend does, and goes when it goes; a connection stays.
        apply(&cluster, with(vec![&first, &second])).await;
        expect("first");
        apply(&cluster, with(vec![&second])).await;
        expect("second");
        apply(&cluster, with(vec![])).await;
        expect("refused");
        apply(&cluster, with(vec![&first])).await;
        expect("first");
        for connection in &mut connections {
            assert!(connection.echoes());
        }
        // With its container it ends.
        one.net.detach("first").await.unwrap();
        for connection in &mut connections {
            assert!(!connection.echoes());
        }
    });
}

#[test]
fn host_service_affinity_and_preference() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let mut pods = Vec::new();
        for last in 10..14 {
            pods.push(one.pod(&format!("a{last}"), last).await);
            pods.push(two.pod(&format!("b{last}"), last).await);
        }
        let mut servers = Vec::new();
        for pod in &pods {
            servers.push(pod.serve(&pod.v4().to_string(), 80));
        }
        let all: Vec<_> = pods.iter().collect();
        let sticky = |from, all: &[&Pod]| {
            let frontends = [Frontend::Address(vip(1)), Frontend::Address(vip6(1))];
            let mut service = (*service("sticky", &frontends, all, from)).clone();
            service.affinity = true;
            let mut near = service.clone();
            near.key = "near".into();
            near.frontends = vec![Frontend::Address(vip(2))];
            (near.affinity, near.prefer_local) = (false, true);
            vec![Arc::new(service), Arc::new(near)]
        };
        apply(&cluster, |from| sticky(from, &all)).await;
        let of = |pod: &Pod, to| {
            let answers: Vec<String> = (0..8)
                .map(|_| within(pod.netns(), || tcp_to(to, 80)))
                .map(|answer| answer.split(' ').next().unwrap().to_owned())
                .collect();
            assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
            answers[0].clone()
        };
        let before: Vec<String> = pods.iter().map(|pod| of(pod, vip(1))).collect();
        let _six: Vec<String> = pods.iter().map(|pod| of(pod, vip6(1))).collect();
        assert!(before.iter().any(|answer| *answer != before[0]), "{before:?}");
        // A backend goes: only its clients move.
        let gone = before[0].clone();
        let rest: Vec<_> = all.iter().copied().filter(|pod| pod.v4().to_string() != gone).collect();
        apply(&cluster, |from| sticky(from, &rest)).await;
        for (pod, before) in pods.iter().zip(&before) {
            let after = of(pod, vip(1));
            assert!(after == *before || *before == gone, "{after}, before {before}");
        }
        // Each node has its own.
        for (node, client) in [(1, &pods[0]), (2, &pods[1])] {
            for _ in 0..10 {
                let answer = within(client.netns(), || tcp_to(vip(2), 80));
                assert!(answer.starts_with(&format!("10.128.{node}.")), "{answer}");
            }
        }
    });
}

#[test]
fn host_service_of_two_with_one_address() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        let (a, b) = (node.pod("a", 2).await, node.pod("b", 3).await);
        let _servers = (a.serve("a", 80), b.serve("b", 80));
        let of = |key: &str, pod| service(key, &[port(vip(1), Tcp, 80, 80)], &[pod], 1);
        let ask = || within(b.netns(), || tcp_to(vip(1), 80));
        // One after the other, at once, and with the loser's going: the winner is not hurt.
        apply(&cluster, |_| vec![of("a", &a)]).await;
        apply(&cluster, |_| vec![of("a", &a), of("b", &b)]).await;
        assert!(ask().starts_with("a "));
        apply(&cluster, |_| vec![of("a", &a)]).await;
        assert!(ask().starts_with("a "));
        apply(&cluster, |_| vec![of("a", &a), of("b", &b)]).await;
        apply(&cluster, |_| vec![of("b", &b)]).await;
        assert!(ask().starts_with("b "));
    });
}

#[test]
fn host_service_counts_its_connections() {
    on_cluster(1, |cluster| async move {
        let node = &cluster.nodes[0];
        let (a, b) = (node.pod("a", 2).await, node.pod("b", 3).await);
        let client = node.pod("client", 4).await;
        let _servers = (a.serve("a", 80), b.serve("b", 80));
        let frontends = [Frontend::Address(vip(1)), Frontend::Address(vip6(1))];
        let ask = |count| {
            for to in [vip(1), vip6(1)] {
                (0..count).for_each(|_| drop(within(client.netns(), || tcp_to(to, 80))));
            }
        };
        let led = async || -> Vec<(String, u64)> {
            let all = node.net.connections().await.unwrap();
            all.into_iter().map(|of| (of.key.to_string(), of.led)).collect()
        };
        assert_eq!(led().await, []);
        apply(&cluster, |_| vec![service("web", &frontends, &[&a], 1)]).await;
        assert_eq!(led().await, [("web".to_owned(), 0)]);
        ask(3);
        assert_eq!(led().await, [("web".to_owned(), 6)]);
        // Packets of a connection count once, refused ones not at all.
        let mut open = within(client.netns(), || Connection::open(vip(1), 80)).unwrap();
        assert!((0..10).all(|_| open.echoes()));
        assert_eq!(led().await, [("web".to_owned(), 7)]);
        // Backends come and go; rules are all set anew.
        apply(&cluster, |_| vec![service("web", &frontends, &[&a, &b], 1)]).await;
        ask(1);
        apply(&cluster, |_| vec![service("web", &frontends, &[], 1)]).await;
        ask(1);
        assert_eq!(led().await, [("web".to_owned(), 9)]);
        let table = Table {
            services: vec![service("web", &frontends, &[&b], 1)].into(),
            overlay: Some(cluster.overlay(1, Carrier::Plain)),
            ..Table::default()
        };
        node.net.apply(table).await.unwrap();
        assert_eq!(led().await, [("web".to_owned(), 9)]);
        ask(1);
        assert_eq!(led().await, [("web".to_owned(), 11)]);
        apply(&cluster, |_| Vec::new()).await;
        assert_eq!(led().await, []);
    });
}

/// What is said to a client of this node who always has the same port; nothing if nobody answers.
fn ask_again(client: &Pod, to: IpAddr) -> String {
    use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt};
    let ask = || -> std::io::Result<String> {
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        let patience = Some(std::time::Duration::from_millis(500));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, patience)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, patience)?;
        bind(&socket, &std::net::SocketAddr::new(client.v4(), 40000))?;
        connect(&socket, &std::net::SocketAddr::new(to, 80))?;
        let mut said = [0; 64];
        let len = rustix::io::read(&socket, &mut said)?;
        let said = String::from_utf8_lossy(&said[..len]).into_owned();
        Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
    };
    within(client.netns(), || ask().unwrap_or_default())
}

#[test]
fn host_service_whose_address_another_has() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let client = one.pod("client", 3).await;
        let stays = one.pod("stays", 2).await;
        let _stays = stays.serve("first", 80);
        let frontends = [[Frontend::Address(vip(1))], [Frontend::Address(vip(2))]];
        let table = |from: u8, first: &Pod, second: Option<&Pod>| {
            let group = |key: &str, pods: &[&Pod]| {
                let addresses = pods.iter().flat_map(|pod| [pod.v4(), pod.v6()]).collect();
                Arc::new(Group { key: key.into(), addresses, networks: [1].into() })
            };
            let mut services = vec![service("a/1", &frontends[0], &[first], from)];
            let mut groups = vec![group("a", &[first]), group("client", &[&client])];
            services.extend(second.map(|pod| service("b/1", &frontends[1], &[pod], from)));
            groups.extend(second.map(|pod| group("b", &[pod])));
            let networks = Networks { groups: groups.into_iter().collect(), ..Networks::default() };
            let overlay = Some(cluster.overlay(from, Carrier::Vxlan));
            let services = services.into_iter().collect();
            Table { overlay, services, networks: Some(networks), ..Table::default() }
        };
        for restarted in [false, true] {
            let goes = two.pod("goes", 2).await;
            one.net.apply(table(1, &goes, None)).await.unwrap();
            two.net.apply(table(2, &goes, None)).await.unwrap();
            // It goes, and a first packet is lost on the way to it.
            two.net.detach("goes").await.unwrap();
            assert_eq!(ask_again(&client, vip(1)), "", "nobody is there");
            // The next container there is another service's.
            let comes = two.pod("comes", 2).await;
            let _comes = comes.serve("second", 80);
            assert_eq!((comes.v4(), comes.v6()), (goes.v4(), goes.v6()));
            two.net.apply(table(2, &stays, Some(&comes))).await.unwrap();
            let again = if restarted { Some(one.open_again()) } else { None };
            let net = again.as_ref().unwrap_or(&one.net);
            net.apply(table(1, &stays, Some(&comes))).await.unwrap();
            assert_eq!(ask_again(&client, vip(1)), "first", "restarted: {restarted}");
            assert_eq!(ask_again(&client, vip(2)), "second", "restarted: {restarted}");
            two.net.detach("comes").await.unwrap();
        }
    });
}
