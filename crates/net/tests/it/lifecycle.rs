//! Attaching, adopting after a restart, removing; what is left behind.

use std::net::Ipv4Addr;

use warren_net::Net;
use warren_net::Protocol::{Tcp, Udp};

use crate::world::{
    ANY, Connection, HOST, World, config, eventually, links, on_host, run, tcp, within,
};

#[test]
fn host_attach_is_idempotent_by_id() {
    on_host(|world| async move {
        let one = world.container("one", 2).await;
        let again = world.container("one", 2).await;
        assert!(std::sync::Arc::ptr_eq(&one.sandbox.netns, &again.sandbox.netns));
        let other = world.net.attach("one", Ipv4Addr::new(10, 128, 0, 9)).await;
        let text = other.unwrap_err().to_string();
        assert_eq!(text, "attach container one with 10.128.0.9");
        assert!(world.net.attach("", Ipv4Addr::new(10, 128, 0, 9)).await.is_err());
        let alias = run("ip -o link");
        assert_eq!(alias.matches("alias one").count(), 1);
    });
}

#[test]
fn host_sandbox_is_furnished() {
    on_host(|world| async move {
        let one = world.container("one", 2).await;
        within(one.netns(), || {
            let setting = |name: &str| std::fs::read_to_string(format!("/proc/sys/net/{name}"));
            assert_eq!(setting("ipv4/ping_group_range").unwrap(), "0\t2147483647\n");
            assert_eq!(setting("ipv4/ip_unprivileged_port_start").unwrap(), "0\n");
            assert!(run("ip -o addr show dev lo").contains("127.0.0.1/8"));
            let addresses = run("ip -o addr show dev eth0");
            assert!(addresses.contains("10.128.0.2/32"), "{addresses}");
            assert!(!addresses.contains("inet6"), "{addresses}");
            assert_eq!(
                run("ip route").trim(),
                "default via 169.254.1.1 dev eth0 proto static onlink"
            );
            assert!(
                run("ip neigh").contains("169.254.1.1 dev eth0 lladdr 02:57:a9:fe:01:01 PERMANENT")
            );
        });
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap(), "1\n");
    });
}

#[test]
fn host_burst_is_larger_than_the_pool() {
    on_host(|world| async move {
        world.net.ready().await;
        let before = links().len();
        let names: Vec<String> = (0..100).map(|index| format!("burst{index}")).collect();
        let attaches = names
            .iter()
            .zip(2u8..)
            .map(|(name, last)| world.net.attach(name, Ipv4Addr::new(10, 128, 0, last)));
        for result in futures::future::join_all(attaches).await {
            result.unwrap();
        }
        assert!(links().len() >= before + 98);
        let detaches = names.iter().map(|name| world.net.detach(name));
        for result in futures::future::join_all(detaches).await {
            result.unwrap();
        }
        world.net.ready().await;
        assert_eq!(links().len(), before);
        assert!(!run("ip -o link").contains("alias"));
    });
}

#[test]
fn host_removal_leaves_nothing() {
    on_host(|world| async move {
        world.net.clean().await.unwrap();
        let state = || {
            (links(), run("nft list ruleset"), run("ip route"), run("ip neigh show nud permanent"))
        };
        let clean = state();
        assert_eq!(clean.0, ["lo", "up0"]);
        assert_eq!(clean.1, "");
        let (one, two) = (world.container("one", 2).await, world.container("two", 3).await);
        world.publish(&[(Tcp, ANY, 8080, &[&one, &two]), (Udp, ANY, 53, &[&one])]).await;
        world.net.ready().await;
        assert_ne!(state(), clean);
        // One after the other, with nothing of it left but the base.
        world.publish(&[]).await;
        let base = run("nft list ruleset");
        assert!(!base.contains("10.128.0.2") && !base.contains("8080"), "{base}");
        world.net.detach("one").await.unwrap();
        world.net.detach("unknown").await.unwrap();
        assert!(!run("ip route").contains("10.128.0.2"));
        assert!(run("ip route").contains("10.128.0.3"));
        world.net.clean().await.unwrap();
        assert_eq!(state(), clean);
        world.net.clean().await.unwrap();
        // And it works again.
        let one = world.container("one", 2).await;
        let _server = one.serve("one");
        world.publish(&[(Tcp, ANY, 8080, &[&one])]).await;
        assert_eq!(tcp(HOST, 8080), "one 192.0.2.1");
    });
}

#[test]
fn host_sweep_removes_what_is_not_kept() {
    on_host(|world| async move {
        let (one, two) = (world.container("one", 2).await, world.container("two", 3).await);
        let processes = (one.process(), two.process());
        drop((one, two));
        drop(world.net);
        let net = Net::open(config(1)).await.unwrap();
        let three = net.attach("three", Ipv4Addr::new(10, 128, 0, 4)).await.unwrap();
        net.sweep(&["one".into(), "three".into()]).await.unwrap();
        let aliases = run("ip -o link");
        assert!(aliases.contains("alias one") && aliases.contains("alias three"));
        assert!(!aliases.contains("alias two"));
        net.adopt("one", Ipv4Addr::new(10, 128, 0, 2), processes.0.pid()).await.unwrap();
        net.sweep(&["one".into()]).await.unwrap();
        let aliases = run("ip -o link");
        assert!(aliases.contains("alias one") && !aliases.contains("alias three"));
        drop(three);
        // Never adopted, but known to the kernel.
        drop(net);
        let net = Net::open(config(1)).await.unwrap();
        net.detach("one").await.unwrap();
        assert!(!run("ip -o link").contains("alias one"));
    });
}

#[test]
fn host_restart_is_not_noticed() {
    on_host(|world| async move {
        let one = world.container("one", 2).await;
        let (_server, process) = (one.serve("one"), one.process());
        world.publish(&[(Tcp, ANY, 8080, &[&one])]).await;
        let mut open = within(&world.other, || Connection::open(HOST, 8080)).unwrap();
        drop(world.net);
        // Nobody runs: everything answers.
        assert!(open.echoes());
        assert_eq!(within(&world.other, || tcp(HOST, 8080)), "one 192.0.2.2");
        let net = Net::open(config(1)).await.unwrap();
        assert_eq!(within(&world.other, || tcp(HOST, 8080)), "one 192.0.2.2");
        net.adopt("one", one.address(), process.pid()).await.unwrap();
        net.adopt("one", one.address(), process.pid()).await.unwrap();
        // The first table replaces all.
        net.apply(crate::world::table(&[(Tcp, ANY, 8080, &[&one])])).await.unwrap();
        assert!(open.echoes());
        assert_eq!(within(&world.other, || tcp(HOST, 8080)), "one 192.0.2.2");
        // The prepared links of the first daemon end with it.
        net.ready().await;
        eventually("old links go", || links().len() == 4);
    });
}

#[test]
fn host_adopt_repairs_what_is_missing() {
    on_host(|world| async move {
        let (one, two) = (world.container("one", 2).await, world.container("two", 3).await);
        let (_servers, processes) =
            ((one.serve("one"), two.serve("two")), (one.process(), two.process()));
        world.publish(&[(Tcp, ANY, 8081, &[&one]), (Tcp, ANY, 8082, &[&two])]).await;
        drop(world.net);
        run("ip route del 10.128.0.2");
        let link_of_two = run("ip -o route get 10.128.0.3");
        let link_of_two = link_of_two.split_whitespace().nth(2).unwrap();
        run(&format!("ip link del {link_of_two}"));
        let net = Net::open(config(1)).await.unwrap();
        net.adopt("one", one.address(), processes.0.pid()).await.unwrap();
        net.adopt("two", two.address(), processes.1.pid()).await.unwrap();
        assert_eq!(within(&world.other, || tcp(HOST, 8081)), "one 192.0.2.2");
        assert_eq!(within(&world.other, || tcp(HOST, 8082)), "two 192.0.2.2");
        // A process that is gone, or is no container, is an error that names both.
        let gone = net.adopt("three", Ipv4Addr::new(10, 128, 0, 4), u32::MAX).await;
        assert_eq!(
            gone.unwrap_err().to_string(),
            "open /proc/4294967295/ns/net of container three"
        );
    });
}

#[test]
fn host_two_nodes_share_a_namespace() {
    on_host(|world| async move {
        let mut second = config(1);
        second.node_key = "othernode".into();
        let second = World { net: Net::open(second).await.unwrap(), other: world.other.clone() };
        let one = world.container("same", 2).await;
        let two = second.container("same", 3).await;
        let _servers = (one.serve("one"), two.serve("two"));
        world.publish(&[(Tcp, ANY, 8081, &[&one])]).await;
        second.publish(&[(Tcp, ANY, 8082, &[&two])]).await;
        let ask = |port| within(&world.other, || tcp(HOST, port));
        assert_eq!((ask(8081), ask(8082)), ("one 192.0.2.2".into(), "two 192.0.2.2".into()));
        world.net.sweep(&[]).await.unwrap();
        world.net.clean().await.unwrap();
        assert_eq!((ask(8081), ask(8082)), ("refused".into(), "two 192.0.2.2".into()));
    });
}

#[test]
fn host_wrong_configuration_is_refused() {
    on_host(|_world| async move {
        for key in ["", "ABCDEFGH", "short", "with-dash"] {
            let mut config = config(1);
            config.node_key = key.into();
            assert!(Net::open(config).await.is_err(), "{key}");
        }
    });
}
