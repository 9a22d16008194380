//! Several nodes on one segment, each a host in a namespace of its own, and a client outside.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use warren_net::{
    Addresses, Backend, Carrier, Member, Net, NetConfig, Overlay, Sandbox, Service, Table,
};

use crate::world::{Server, enter_new_namespace, own_namespace, run, within};

pub(crate) const VNI: u32 = 4096;
pub(crate) const PORT: u16 = 8472;
/// The host that is no node.
const OUTSIDE: u8 = 100;
/// Where services' addresses are.
pub(crate) const VIPS: (IpAddr, u8) = (IpAddr::V4(Ipv4Addr::new(10, 64, 0, 0)), 16);
pub(crate) const VIPS6: (IpAddr, u8) = (IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 0)), 64);

/// Hosts 192.0.2.1, .2, …; also 2001:db8::1, ::2, …
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    /// 192.0.2.100, and no node.
    pub(crate) outside: Arc<OwnedFd>,
}

pub(crate) struct Node {
    pub(crate) number: u8,
    pub(crate) netns: Arc<OwnedFd>,
    pub(crate) net: Net,
}

/// A container with an address of both families.
pub(crate) struct Pod {
    pub(crate) sandbox: Sandbox,
}

/// Runs a test on a cluster of so many nodes.
pub(crate) fn on_cluster<F: Future<Output = ()>>(
    count: u8,
    test: impl FnOnce(Cluster) -> F + Send + 'static,
) {
    if !rustix::process::geteuid().is_root() || Command::new("nft").arg("-v").output().is_err() {
        eprintln!("skipped: needs root and nft");
        return;
    }
    let segment = thread::spawn(move || {
        enter_new_namespace();
        run("ip link add br0 type bridge");
        run("ip link set br0 up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let nodes = (1..=count).map(|number| {
            let netns = host(number);
            within(&netns, || {
                // As strict as distributions have it.
                std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
                std::fs::write("/proc/sys/net/ipv4/conf/default/rp_filter", "1").unwrap();
            });
            let net = within(&netns, || runtime.block_on(Net::open(config(number)))).unwrap();
            Node { number, netns, net }
        });
        let cluster = Cluster { nodes: nodes.collect(), outside: host(OUTSIDE) };
        runtime.block_on(test(cluster));
    });
    if let Err(panic) = segment.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Where the node's name server is to listen.
pub(crate) fn name_server_of(number: u8) -> (Ipv4Addr, u16) {
    let server = warren_net::name_server(&config(number).node_key);
    (*server.ip(), server.port())
}

fn config(number: u8) -> NetConfig {
    let node_key = format!("node{number:02}");
    NetConfig { node_key, pool: (Ipv4Addr::new(10, 128, 0, 0), 10), prepared: 2 }
}

/// A host on the calling thread's segment.
fn host(number: u8) -> Arc<OwnedFd> {
    let netns = thread::spawn(|| {
        enter_new_namespace();
        own_namespace()
    });
    let netns = Arc::new(netns.join().unwrap());
    let path = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
    run(&format!("ip link add up{number} type veth peer name eth0 netns {path}"));
    run(&format!("ip link set up{number} master br0 up"));
    within(&netns, || {
        run("ip link set lo up");
        run(&format!("ip addr add 192.0.2.{number}/24 dev eth0"));
        run(&format!("ip addr add 2001:db8::{number}/64 dev eth0 nodad"));
        run("ip link set eth0 up");
        if number != OUTSIDE {
            // Somewhere where everything else would go.
            run(&format!("ip route add default via 192.0.2.{OUTSIDE}"));
            run(&format!("ip route add default via 2001:db8::{OUTSIDE}"));
        }
    });
    netns
}

pub(crate) fn underlay(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, number)
}

pub(crate) fn vip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 64, 0, last).into()
}

pub(crate) fn vip6(last: u8) -> IpAddr {
    Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, u16::from(last)).into()
}

pub(crate) fn member(number: u8) -> Member {
    let inner6 = Ipv6Addr::new(0xfd00, u16::from(number), 0, 0, 0, 0, 0, 0);
    let inner = Ipv4Addr::new(10, 128, number, 0);
    Member {
        number: u16::from(number),
        underlay: underlay(number).into(),
        port: PORT,
        inner,
        inner6: Some(inner6),
        blocks: vec![(inner.into(), 24), (inner6.into(), 32)],
    }
}

impl Cluster {
    /// What node `own` is to hold of the overlay.
    pub(crate) fn overlay(&self, own: u8, carrier: Carrier) -> Arc<Overlay> {
        let others = self.nodes.iter().map(|node| node.number).filter(|number| *number != own);
        Arc::new(Overlay {
            carrier,
            device: None,
            vni: VNI,
            port: PORT,
            own: member(own),
            peers: others.map(member).collect(),
            vips: vec![VIPS, VIPS6],
            pool6: Some((Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 16)),
        })
    }

    /// Applies to each node the table that is told for it.
    pub(crate) async fn apply(&self, carrier: Carrier, table: impl Fn(u8) -> Table) {
        for node in &self.nodes {
            let overlay = Some(self.overlay(node.number, carrier));
            node.net.apply(Table { overlay, ..table(node.number) }).await.unwrap();
        }
    }
}

impl Node {
    pub(crate) async fn pod(&self, id: &str, last: u8) -> Pod {
        let v4 = Ipv4Addr::new(10, 128, self.number, last);
        let v6 = Ipv6Addr::new(0xfd00, u16::from(self.number), 0, 0, 0, 0, 0, u16::from(last));
        let addresses = Addresses { v4, v6: Some(v6) };
        Pod { sandbox: self.net.attach(id, addresses).await.unwrap() }
    }

    /// As the next process would, which remembers nothing of what the kernel holds.
    pub(crate) fn open_again(&self) -> Net {
        let runtime = tokio::runtime::Handle::current();
        within(&self.netns, || runtime.block_on(Net::open(config(self.number)))).unwrap()
    }

    pub(crate) fn address(&self) -> IpAddr {
        underlay(self.number).into()
    }
}

impl Pod {
    pub(crate) fn netns(&self) -> &OwnedFd {
        &self.sandbox.netns
    }

    pub(crate) fn v4(&self) -> IpAddr {
        self.sandbox.address.into()
    }

    pub(crate) fn v6(&self) -> IpAddr {
        self.sandbox.address6.unwrap().into()
    }

    /// Servers of both families on a port, TCP and UDP.
    pub(crate) fn serve(&self, name: &str, port: u16) -> [Server; 4] {
        within(self.netns(), || {
            [
                Server::tcp(name, self.v4(), port),
                Server::udp(name, self.v4(), port),
                Server::tcp(name, self.v6(), port),
                Server::udp(name, self.v6(), port),
            ]
        })
    }

    /// As a backend of both families, seen from node `from`.
    pub(crate) fn backends(&self, from: u8) -> [Backend; 2] {
        let local = self.sandbox.address.octets()[2] == from;
        [self.v4(), self.v6()].map(|address| Backend { address, weight: 1, local })
    }
}

/// A service of these frontends and pods, seen from node `from`.
pub(crate) fn service(
    key: &str,
    frontends: &[warren_net::Frontend],
    pods: &[&Pod],
    from: u8,
) -> Arc<Service> {
    Arc::new(Service {
        key: key.into(),
        frontends: frontends.to_vec(),
        backends: pods.iter().flat_map(|pod| pod.backends(from)).collect(),
        affinity: false,
        prefer_local: false,
    })
}
