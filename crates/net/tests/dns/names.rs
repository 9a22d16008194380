//! What containers see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Instant;

use warren_model::id::ServiceId;
use warren_net::Protocol;
use warren_net::dns::{
    Addresses, Asker, Attachment, Endpoint, NamedPort, NetworkId, Prefix, Service, Tables, Task,
    Upstream as Up, Zone,
};

use crate::world::{
    GATEWAY, UPSTREAM, Upstream, new_namespace, run, with_server, with_server_at, within,
};

const SHOP: NetworkId = NetworkId(*b"network001");
const BLOG: NetworkId = NetworkId(*b"network002");

fn v4(last: u8) -> Addresses {
    let v6 = format!("fd01::{last}").parse().unwrap();
    Addresses { v4: Some(Ipv4Addr::new(10, 1, 0, last)), v6: Some(v6) }
}

fn service(id: u8, stack: &str, on: NetworkId, endpoint: Endpoint, tasks: &[u8]) -> Service {
    let task =
        |(last, slot): (&u8, u32)| Task { slot, hostname: None, addresses: v4(*last), ready: true };
    Service {
        id: ServiceId::from_bytes([id; 10]),
        name: "web".into(),
        stack: Some(stack.into()),
        attachments: vec![Attachment { network: on, endpoint, aliases: vec!["www".into()] }],
        ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
        tasks: tasks.iter().zip(1..).map(task).collect(),
    }
}

fn asker(last: u8, stack: &str, network: NetworkId, upstream: Up) -> Asker {
    Asker { addresses: v4(last), stack: Some(stack.into()), networks: [network].into(), upstream }
}

fn tables() -> Tables {
    let vip = Addresses { v4: Some(Ipv4Addr::new(10, 9, 0, 1)), v6: "fd09::1".parse().ok() };
    let many: Vec<u8> = (10..=250).collect();
    let mut shop = service(1, "shop", SHOP, Endpoint::Vip(vip), &many);
    shop.tasks[0].addresses = v4(1);
    Tables {
        pools: vec![
            Prefix { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), len: 8 },
            Prefix { address: "fd00::".parse().unwrap(), len: 8 },
        ],
        services: vec![shop, service(2, "blog", BLOG, Endpoint::Tasks, &[3, 4])],
        askers: vec![
            asker(1, "shop", SHOP, Up::Host),
            asker(3, "blog", BLOG, Up::Host),
            asker(5, "blog", BLOG, Up::Nobody),
        ],
    }
}

#[test]
fn host_dig_is_answered() {
    with_server(tables(), |world| {
        for transport in ["", "+tcp", "+noedns", "+bufsize=4096 +dnssec"] {
            let ask = |last, what: &str| world.ask(last, &format!("{transport} {what}"));
            assert_eq!(ask(1, "web A"), "NOERROR 10.9.0.1");
            assert_eq!(ask(1, "WeB.warren.INTERNAL A"), "NXDOMAIN");
            assert_eq!(ask(1, "WeB.shop.warren.INTERNAL AAAA"), "NOERROR fd09::1");
            assert_eq!(ask(1, "web TXT"), "NOERROR");
            assert_eq!(ask(1, "1.web A"), "NOERROR 10.1.0.1");
            assert_eq!(ask(1, "_http._tcp.web SRV"), "NOERROR 0 1 80 web.shop.warren.internal.");
            assert_eq!(ask(1, "-x 10.9.0.1"), "NOERROR web.shop.warren.internal.");
            assert_eq!(ask(1, "-x fd01::b"), "NXDOMAIN");
            assert_eq!(ask(3, "web A"), "NOERROR 10.1.0.3 10.1.0.4");
            assert_eq!(ask(3, "web.shop A"), "NXDOMAIN");
            assert_eq!(ask(3, "-x 10.9.0.1"), "NXDOMAIN");
            if transport != "+tcp" {
                assert_eq!(ask(9, "web A"), "REFUSED");
            }
        }
        // More than fits: dig comes again over TCP by itself.
        assert_eq!(world.ask(1, "tasks.web A").split(' ').count(), 1 + 241);
        assert!(world.dig(1, "+ignore tasks.web A").contains("flags: qr aa tc rd ra"));
    });
}

#[test]
fn host_the_rest_comes_from_upstream() {
    with_server(tables(), |world| {
        let text = "x".repeat(250);
        let texts = [text.as_str(); 20].join(",");
        let upstream = Upstream::start(
            UPSTREAM,
            &format!(
                "--host-record=www.example.com,192.0.2.7,300 --cname=alias.example.com,www.example.com \
                 --txt-record=long.example.com,{texts} --local=/example.com/"
            ),
        );
        assert_eq!(world.ask(1, "www.example.com A"), "NOERROR 192.0.2.7");
        assert_eq!(world.ask(1, "alias.example.com A"), "NOERROR 192.0.2.7 www.example.com.");
        assert_eq!(world.ask(1, "no.example.com A"), "NXDOMAIN");
        assert_eq!(world.ask(1, "www.example.com MX"), "NOERROR");
        // 5 KiB: truncated twice, then whole.
        assert!(world.ask(1, "long.example.com TXT").len() > 5000);
        // On internal networks alone nothing leaves.
        assert_eq!(world.ask(5, "www.example.com A"), "REFUSED");
        assert_eq!(world.ask(5, "web A"), "NOERROR 10.1.0.3 10.1.0.4");
        // Of the cluster's names the upstream server never heard.
        world.ask(3, "web.shop A");
        world.ask(3, "tasks.web.shop A");
        world.ask(3, "gone A");
        world.ask(3, "gone.warren.internal A");
        world.ask(3, "-x 10.77.0.1");
        let heard = upstream.heard();
        assert!(heard.contains("alias.example.com"), "{heard}");
        assert!(heard.lines().all(|name| name.ends_with("example.com")), "{heard}");
    });
}

#[test]
fn host_servers_that_are_away_are_passed_over() {
    with_server(tables(), |world| {
        let _upstream = Upstream::start(UPSTREAM, "--host-record=www.example.com,192.0.2.7");
        // 127.0.0.6 refuses by ICMP, 192.0.2.9 has no route.
        let text = format!("nameserver 127.0.0.6\nnameserver 192.0.2.9\nnameserver {UPSTREAM}\n");
        std::fs::write(&world.resolv_conf, text).unwrap();
        let start = Instant::now();
        assert_eq!(world.ask(1, "www.example.com A"), "NOERROR 192.0.2.7");
        assert!(start.elapsed().as_secs() < 2, "{:?}", start.elapsed());
    });
}

#[test]
fn host_without_upstream_names_of_the_cluster_stay() {
    with_server(tables(), |world| {
        assert_eq!(world.ask(1, "www.example.com A"), "SERVFAIL");
        assert_eq!(world.ask(1, "web A"), "NOERROR 10.9.0.1");
        let mut zone = Zone::clone(&world.zone.load());
        zone.remove_service(ServiceId::from_bytes([1; 10]));
        world.zone.store(Arc::new(zone));
        assert_eq!(world.ask(1, "web A"), "NXDOMAIN");
    });
}

/// Every link of a node has the same gateway: one socket answers on each from there.
#[test]
fn host_gateways_of_both_families_are_one_socket() {
    with_server_at((Ipv6Addr::UNSPECIFIED, 53).into(), tables(), |_| {
        for (number, last) in [(1, 1), (2, 3)] {
            let container = new_namespace();
            let path = format!("/proc/{}/fd/{}", std::process::id(), container.as_raw_fd());
            let link = format!("w{number}");
            run(&format!("ip link add {link} type veth peer name eth0 netns {path}"));
            run(&format!("ip addr add fe80::1/64 dev {link} nodad"));
            run(&format!("ip link set {link} up"));
            run(&format!("ip addr del 10.1.0.{last}/32 dev lo"));
            run(&format!("ip route add 10.1.0.{last}/32 dev {link}"));
            run(&format!("ip route add fd01::{last}/128 dev {link}"));
            let short = |server: &str, own: &str| {
                run(&format!("dig -r +short +tries=1 -b {own} @{server} web AAAA"))
            };
            let (v4, v6, tcp) = within(&container, || {
                run(&format!("ip addr add fd01::{last}/128 dev eth0 nodad"));
                run(&format!("ip addr add 10.1.0.{last}/32 dev eth0"));
                run("ip link set eth0 up");
                run(&format!("ip route add {GATEWAY} dev eth0"));
                let (own_v4, own_v6) = (format!("10.1.0.{last}"), format!("fd01::{last}"));
                let tcp = "fe80::1%eth0 +tcp";
                (
                    short(&GATEWAY.to_string(), &own_v4),
                    short("fe80::1%eth0", &own_v6),
                    short(tcp, &own_v6),
                )
            });
            let mut all: Vec<&str> = v4.lines().collect();
            all.sort_unstable();
            let expected: &[&str] = if last == 1 { &["fd09::1"] } else { &["fd01::3", "fd01::4"] };
            assert_eq!(all, expected);
            for text in [v6, tcp] {
                let mut all: Vec<&str> = text.lines().collect();
                all.sort_unstable();
                assert_eq!(all, expected);
            }
        }
    });
}
