//! Reserved ports, their holders, and what else may be in the way of traffic.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

use warren_net::Protocol::{Tcp, Udp};
use warren_net::{Error, features};

use crate::world::{ANY, HOST, LOOPBACK, Process, World, config, on_host, run, tcp};

/// Who holds a port, or nobody.
fn holder(world: &World, protocol: warren_net::Protocol, bind: Ipv4Addr, port: u16) -> String {
    match world.net.reserve(protocol, bind, port) {
        Ok(_) => "nobody".into(),
        Err(Error::PortTaken { holder, .. }) => holder,
        Err(error) => error.to_string(),
    }
}

/// This process, as a holder.
fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/self/comm").unwrap();
    format!("{} (pid {})", name.trim_end(), std::process::id())
}

#[test]
fn host_busy_port_names_its_holder() {
    on_host(|world| async move {
        let own = own_name();
        let _listeners = (
            TcpListener::bind((ANY, 8080)).unwrap(),
            TcpListener::bind("[::]:8081").unwrap(),
            TcpListener::bind((LOOPBACK, 8082)).unwrap(),
            UdpSocket::bind((ANY, 8083)).unwrap(),
            UdpSocket::bind("[::]:8084").unwrap(),
        );
        assert_eq!(holder(&world, Tcp, ANY, 8080), own);
        assert_eq!(holder(&world, Tcp, HOST, 8080), own);
        assert_eq!(holder(&world, Tcp, ANY, 8081), own);
        assert_eq!(holder(&world, Tcp, ANY, 8082), own);
        assert_eq!(holder(&world, Tcp, HOST, 8082), "nobody");
        assert_eq!(holder(&world, Udp, ANY, 8083), own);
        assert_eq!(holder(&world, Udp, LOOPBACK, 8084), own);
        assert_eq!(holder(&world, Udp, ANY, 8080), "nobody");
        let error = world.net.reserve(Tcp, ANY, 8080).unwrap_err();
        assert_eq!(error.to_string(), format!("port 8080/tcp on 0.0.0.0 is taken by {own}"));
        // An address that is not the host's is another error.
        let error = world.net.reserve(Tcp, Ipv4Addr::new(198, 51, 100, 1), 80).unwrap_err();
        assert_eq!(error.to_string(), "port 80/tcp on 198.51.100.1: the node has no such address");
        assert!(world.net.reserve(Tcp, ANY, 0).is_err());
    });
}

#[test]
fn host_reservation_keeps_others_out() {
    on_host(|world| async move {
        let reserved = world.net.reserve(Tcp, ANY, 8080).unwrap();
        // std sets SO_REUSEADDR, as servers do.
        assert!(TcpListener::bind((ANY, 8080)).is_err());
        assert!(TcpListener::bind((LOOPBACK, 8080)).is_err());
        assert!(TcpListener::bind("[::]:8080").is_err());
        let taken = "a socket that is bound and does not listen";
        assert_eq!(holder(&world, Tcp, ANY, 8080), taken);
        // It does not answer either.
        assert_eq!(tcp(LOOPBACK, 8080), "refused");
        drop(reserved);
        assert_eq!(holder(&world, Tcp, ANY, 8080), "nobody");
        let _reserved = world.net.reserve(Udp, ANY, 8080).unwrap();
        assert!(UdpSocket::bind((ANY, 8080)).is_err());
    });
}

#[test]
fn host_reservation_outlives_its_maker() {
    on_host(|world| async move {
        for protocol in [Tcp, Udp] {
            let reserved = world.net.reserve(protocol, ANY, 8080).unwrap();
            // As a supervisor gets it.
            let sleep = std::process::Command::new("sleep").arg("600").stdin(reserved).spawn();
            let supervisor = Process(sleep.unwrap());
            assert_ne!(holder(&world, protocol, ANY, 8080), "nobody");
            let reclaim = |bind, port| world.net.reclaim(protocol, bind, port, supervisor.pid());
            assert!(reclaim(ANY, 8081).unwrap().is_none());
            assert!(reclaim(LOOPBACK, 8080).unwrap().is_none());
            let reclaimed = reclaim(ANY, 8080).unwrap().unwrap();
            drop(supervisor);
            assert_ne!(holder(&world, protocol, ANY, 8080), "nobody");
            drop(reclaimed);
            assert_eq!(holder(&world, protocol, ANY, 8080), "nobody");
        }
        assert!(world.net.reclaim(Tcp, ANY, 8080, u32::MAX).is_err());
    });
}

#[test]
fn host_leftover_connections_do_not_hold_a_port() {
    on_host(|world| async move {
        let listener = TcpListener::bind((LOOPBACK, 8080)).unwrap();
        let client = TcpStream::connect((LOOPBACK, 8080)).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(listener);
        // Established without a listener, as while a server drains.
        assert_eq!(holder(&world, Tcp, ANY, 8080), "nobody");
        // The side that closes first waits: ours.
        drop(server);
        drop(client);
        assert!(run("ss -Htan sport = :8080").contains("TIME-WAIT"));
        let reserved = world.net.reserve(Tcp, ANY, 8080).unwrap();
        assert_ne!(holder(&world, Tcp, ANY, 8080), "nobody");
        drop(reserved);
    });
}

#[test]
fn host_features_tell_who_drops() {
    on_host(|_world| async move {
        let pool = config(0).pool;
        let found = features(pool);
        assert!(found.nf_tables && found.veth && found.ip_forward, "{found:?}");
        assert_eq!(found.blockers, []);
        // As Docker leaves it.
        run("nft add table ip filter");
        run("nft add chain ip filter DOCKER-USER");
        run(
            "nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }",
        );
        let found = features(pool);
        let fixes: Vec<&str> = found.blockers.iter().map(|blocker| blocker.fix.as_str()).collect();
        let fix = "iptables -I DOCKER-USER -s 10.128.0.0/10 -j ACCEPT; iptables -I DOCKER-USER -d 10.128.0.0/10 -j ACCEPT";
        assert_eq!(fixes, [fix]);
        run("nft flush ruleset");
        assert_eq!(features(pool).blockers, []);
        // The older kind, on machines that still have it.
        let mut legacy = std::process::Command::new("iptables-legacy");
        if legacy.args(["-P", "FORWARD", "DROP"]).status().is_ok_and(|status| status.success()) {
            let found = features(pool);
            assert!(found.blockers[0].fix.starts_with("iptables-legacy -I FORWARD"), "{found:?}");
            run("iptables-legacy -P FORWARD ACCEPT");
            assert_eq!(features(pool).blockers, []);
        }
    });
}
