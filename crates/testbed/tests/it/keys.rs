//! Keys of the tunnel between nodes that are replaced while streams run.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use warren_base::clock::RealClock;
use warren_testbed::{Cluster, Host, Options};
use warren_trust::{KeyFile, read_tunnel_keys};
use warren_wireguard::{
    Engine, Options as Carrying, PeerConfig, Prefix, PrivateKey, PublicKey, Table, Tun, TunOptions,
    Udp,
};

use crate::pods::Pod;
use crate::support::{SOON, refused};

pub(crate) const WEB: u16 = 80;
/// Where nodes listen for each other.
const TUNNEL: u16 = 51_820;
/// The longest pause of a stream that is no break: far below TCP's patience, and above a busy
/// machine's.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// A connection that is asked again and again.
pub(crate) struct Stream {
    stop: Arc<AtomicBool>,
    asking: std::thread::JoinHandle<Result<(usize, Duration)>>,
    name: String,
}

impl Stream {
    pub(crate) fn start(client: &Pod, to: IpAddr) -> Result<Self> {
        let mut open = client.connect(to, WEB)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let asking = std::thread::spawn(move || {
            let (mut count, mut longest) = (0, Duration::ZERO);
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                open.ask()?;
                longest = longest.max(began.elapsed());
                count += 1;
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok((count, longest))
        });
        Ok(Self { stop, asking, name: format!("{} to {to}", client.host.name()) })
    }

    fn stop(self) -> Result<()> {
        self.stop_within(PAUSE_MAX)
    }

    pub(crate) fn stop_within(self, pause_max: Duration) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let outcome = self.asking.join().unwrap();
        let (count, longest) = outcome.with_context(|| format!("{} broke", self.name))?;
        eprintln!("{}: {count} answers, the slowest {longest:?}", self.name);
        assert!(count > 100 && longest < pause_max, "{}: {count} {longest:?}", self.name);
        Ok(())
    }
}

/// A node's own keys, as they are on its disk.
fn keys(cluster: &Cluster, node: &str) -> Result<Vec<PrivateKey>> {
    let folder = cluster.node(node)?.host().data_dir();
    let keys = read_tunnel_keys(&folder.join("tunnel"), &KeyFile::read(&folder.join("node.key"))?)?;
    Ok(keys.iter().map(|key| PrivateKey::from_bytes(*key.key)).collect())
}

fn public(cluster: &Cluster, node: &str) -> Result<PublicKey> {
    let keys = keys(cluster, node)?;
    let [key] = keys.as_slice() else { bail!("{node} has {} keys", keys.len()) };
    Ok(key.public())
}

/// What commands printed: a node and its key each line.
fn printed(out: &str) -> Vec<(String, String)> {
    let pair = |line: &str| line.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned()));
    let mut all: Vec<_> = out.lines().filter_map(pair).collect();
    all.sort();
    all
}

/// Somebody on the segment with a node's private key, who talks to another node.
fn pretend(host: &Host, own: PrivateKey, to: PublicKey, at: SocketAddr) -> Result<Engine> {
    let network: IpAddr = [198, 18, 0, 0].into();
    in_network(host, || {
        let options = Carrying {
            tun: Tun::open(&TunOptions {
                name: "thief0".into(),
                mtu: 1420,
                queues: 1,
                persist: false,
            })?,
            udp: Udp::bind(SocketAddr::new([0, 0, 0, 0].into(), TUNNEL), 1)?,
            clock: Arc::new(RealClock::new()),
            seed: 7,
            on_reach: None,
            not_before_ms: 0,
            peers: Vec::new(),
        };
        let peer = PeerConfig {
            keys: vec![to],
            via: None,
            preshared_key: None,
            endpoint: Some(at),
            allowed: vec![Prefix::new(network, 24)?],
            keepalive: None,
        };
        Ok(Engine::start(options, &Table { own: vec![own], peers: vec![peer] })?)
    })
}

/// Works in a machine's network alone: who is in its process namespace can start no threads.
fn in_network<R: Send>(host: &Host, work: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    let pid = host.pid().context("it is up")?;
    let file = std::fs::File::open(format!("/proc/{pid}/ns/net"))?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        });
        inside.join().unwrap()
    })
}

/// Sends into the pretender's tunnel, so that it asks for a session.
fn speak(host: &Host) -> Result<()> {
    for args in
        [&["addr", "add", "198.18.0.1/24", "dev", "thief0"][..], &["link", "set", "thief0", "up"]]
    {
        host.run("ip", args)?;
    }
    host.within(|| -> std::io::Result<()> {
        UdpSocket::bind("0.0.0.0:0")?.send_to(b"let me in", "198.18.0.2:9").map(|_| ())
    })??;
    Ok(())
}

/// How many messages a node dropped since nobody has their key.
fn strangers(cluster: &Cluster, node: &str) -> Result<u64> {
    let at = cluster.node(node)?.host().socket(warren_testbed::node::ADMIN_PORT);
    let text = cluster.hub().get(at, "/metrics")?.text();
    let line = text.lines().find(|line| {
        line.starts_with("warren_dataplane_tunnel_drops_total") && line.contains("unknown-peer")
    });
    let count = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
    Ok(count.unwrap_or(0))
}

pub(crate) fn form() -> Result<(Cluster, Vec<Pod>)> {
    let overlay = Some("wireguard".to_owned());
    let cluster = Cluster::form(1, 2, &Options { hybrid: true, overlay, ..Options::default() })?;
    let flags = ["--mode", "global", "--stop-signal", "KILL"];
    cluster.create("web", &flags, &["sleep", "100000"])?;
    let tasks = cluster.wait_running("web", 3, SOON)?;
    let pods = tasks.iter().map(|task| Pod::of(&cluster, task)).collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        pod.serve(WEB)?;
    }
    Ok((cluster, pods))
}

#[test]
fn host_keys_are_replaced_under_streams() -> Result<()> {
    let (cluster, pods) = form()?;
    let mut streams = Vec::new();
    for client in &pods {
        for server in pods.iter().filter(|server| server.v4 != client.v4) {
            for to in [IpAddr::from(server.v4), server.v6()?.into()] {
                cluster.until("a pod elsewhere answers", SOON, || {
                    let said = client.tcp(to, WEB)?;
                    Ok(said.contains(' ').then_some(()))
                })?;
                streams.push(Stream::start(client, to)?);
            }
        }
    }
    let names = ["m1", "w1", "w2"];
    let stolen = keys(&cluster, "w1")?.remove(0);
    let before = names.map(|node| public(&cluster, node).unwrap().to_string());
    // All at the same time, then one again.
    let asked = cluster.asked()?;
    let first = printed(&asked.ok(&["network", "rotate-keys"])?);
    assert_eq!(first.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(), names);
    for ((node, key), before) in first.iter().zip(&before) {
        assert_ne!(key, before, "{node}");
        assert_eq!(*key, public(&cluster, node)?.to_string(), "{node}");
    }
    let second = printed(&asked.ok(&["network", "rotate-keys", "w1"])?);
    assert!(second.len() == 1 && second[0].0 == "w1" && second[0].1 != first[1].1, "{second:?}");
    streams.into_iter().try_for_each(Stream::stop)?;
    refused(asked, &["network", "rotate-keys", "nobody"], 3)?;

    // Who has an old key is a stranger; who has the new one is not.
    let (hub, w2) = (cluster.hub(), cluster.node("w2")?.host());
    let at = SocketAddr::new(w2.address().into(), TUNNEL);
    let (known, to) = (strangers(&cluster, "w2")?, public(&cluster, "w2")?);
    let thief = pretend(hub, stolen, to, at)?;
    cluster.until("w2 refuses a stranger", SOON, || {
        speak(hub)?;
        Ok((strangers(&cluster, "w2")? > known).then_some(()))
    })?;
    assert_eq!(thief.peers()[0].handshake_ms, None);
    drop(thief);
    let twin = pretend(hub, keys(&cluster, "w1")?.remove(0), to, at)?;
    cluster.until("w2 takes it for w1", SOON, || {
        speak(hub)?;
        Ok(twin.peers()[0].handshake_ms)
    })?;
    Ok(())
}

/// A node that does not hear of a key keeps the old one in use, until it does.
#[test]
fn host_a_node_that_is_away_holds_the_old_key() -> Result<()> {
    let (cluster, _) = form()?;
    let old = public(&cluster, "w1")?;
    cluster.node("w2")?.power_off()?;
    let asked = cluster.asked()?;
    let said = refused(asked, &["network", "rotate-keys", "w1"], 1)?;
    assert!(said.contains("some nodes have not taken its new key"), "{said}");
    let held = keys(&cluster, "w1")?;
    assert!(held.len() == 2 && held[0].public() == old);
    let away = cluster.node("w2")?;
    away.host().up()?;
    away.run()?;
    cluster.until("the old key is gone", Duration::from_secs(90), || {
        let now = keys(&cluster, "w1")?;
        Ok((now.len() == 1 && now[0].public() != old).then_some(()))
    })
}
