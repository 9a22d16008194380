//! Beside Docker's firewall: its policy is to drop, and its chain for others is there.

use std::process::Command;

use warren_net::Protocol::Tcp;

use crate::world::{
    ANY, HOST, OTHER, Server, World, eventually, on_host, run, tcp, tcp_briefly, within,
};

const LIST: &str = "iptables -w -S DOCKER-USER";

/// As Docker has it when it has started.
fn install_docker() {
    for rule in [
        "-N DOCKER-USER",
        "-A DOCKER-USER -j RETURN",
        "-I FORWARD -j DOCKER-USER",
        "-P FORWARD DROP",
    ] {
        run(&format!("iptables -w {rule}"));
    }
}

fn has_iptables() -> bool {
    let nft = Command::new("iptables").arg("-V").output();
    nft.is_ok_and(|said| String::from_utf8_lossy(&said.stdout).contains("nf_tables"))
}

fn ours() -> Vec<String> {
    run(LIST).lines().filter(|line| line.contains("warren node")).map(str::to_owned).collect()
}

/// A client elsewhere reaches a published port, a container the world, and a sibling.
async fn works(world: &World) -> bool {
    let web = world.container("web", 2).await;
    let client = world.container("client", 3).await;
    let _server = web.serve("web");
    let _foreign = within(&world.other, || Server::tcp("foreign", ANY, 80));
    world.publish(&[(Tcp, ANY, 8080, &[&web])]).await;
    within(&world.other, || tcp_briefly(HOST, 8080)) == "web 192.0.2.2"
        && within(client.netns(), || tcp_briefly(OTHER, 80)) == "foreign 192.0.2.1"
        && within(client.netns(), || tcp_briefly(web.address(), 80)) == "web 10.128.0.3"
}

#[test]
fn host_docker_that_comes_later_does_not_cut_containers() {
    on_host(|world| async move {
        if !has_iptables() {
            return eprintln!("skipped: needs iptables (nf_tables)");
        }
        assert!(works(&world).await);
        install_docker();
        eventually("an opening", || ours().len() == 6);
        assert!(works(&world).await);
        // Behind what people wrote, before the end; put back when it is lost.
        run("iptables -w -I DOCKER-USER -s 203.0.113.0/24 -j DROP");
        run("iptables -w -D DOCKER-USER 3");
        eventually("all of it again", || ours().len() == 6);
        let lines: Vec<String> = run(LIST).lines().map(str::to_owned).collect();
        assert!(lines[1].contains("203.0.113.0/24") && lines[8] == "-A DOCKER-USER -j RETURN");
        run("iptables -w -F DOCKER-USER");
        eventually("an opening in an empty chain", || ours().len() == 6);
        assert!(works(&world).await);
        // It opens nothing of ours to anybody.
        let web = world.container("web", 2).await;
        let _server = web.serve("web");
        assert_eq!(within(&world.other, || tcp_briefly(web.address(), 80)), "silence");
        assert_eq!(tcp(HOST, 8080), "web 192.0.2.1");
        // Nothing is left, and nothing of theirs is gone.
        world.net.clean().await.unwrap();
        assert_eq!(ours(), Vec::<String>::new());
        assert_eq!(run("iptables -w -S FORWARD"), "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n");
    });
}

#[test]
fn host_docker_that_was_there_is_opened_at_the_start() {
    on_host(|world| async move {
        if !has_iptables() {
            return eprintln!("skipped: needs iptables (nf_tables)");
        }
        drop(world.net);
        install_docker();
        let pool = (std::net::Ipv4Addr::new(10, 128, 0, 0), 10);
        assert_eq!(warren_net::features(pool).blockers.len(), 1);
        let net = warren_net::Net::open(crate::world::config(2)).await.unwrap();
        let world = World { other: world.other, net };
        assert_eq!(ours().len(), 6);
        assert_eq!(warren_net::features(pool).blockers, []);
        assert!(works(&world).await);
        // Another node of the same host has its own.
        let other =
            warren_net::NetConfig { node_key: "othernode".into(), ..crate::world::config(1) };
        let second = warren_net::Net::open(other).await.unwrap();
        assert_eq!(ours().len(), 12);
        second.clean().await.unwrap();
        assert_eq!(ours().len(), 6);
        assert!(works(&world).await);
    });
}
