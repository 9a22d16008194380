//! What containers see.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use warren_model::id::ServiceId;
use warren_net::Protocol;
use warren_net::dns::{
    Addresses, Asker, Attachment, Endpoint, NamedPort, NetworkId, Prefix, Service, Tables, Task,
    Upstream as Up, Zone,
};

use crate::world::{UPSTREAM, Upstream, with_server};

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
