//! The way from this node to others, and the names that its containers ask for.
//!
//! Asks everybody at the same time; ends within [`LOOK_MAX`] whatever answers. Needs no manager:
//! who the others are is kept with the assignments.
//!
//! Not here: what other nodes see (whoever asks both of them knows which way is cut).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use warren_model::node_table::Peer;
use warren_model::{NodeId, NodeTable};
use warren_net::dns::kind;
use warren_net::{Carrier, Overlay, Said, ask_names};
use warren_proto::v1::Finding;

use super::finding;
use super::path::{self, About, Tunnel};
use super::survey::{Target, survey};
use crate::container::{Listed, parse_labels};
use crate::effects::chain;
use crate::kernel::Addresses;
use crate::names::SERVER;
use crate::tunnel::TunnelState;
use crate::worker::{Message, Tools};

/// Other nodes that are looked at in one go.
const NODES_MAX: usize = 256;
/// Nodes that may be named.
const NAMED_MAX: usize = 64;
/// For the node's own loop to say what it knows.
const MAP_MAX: Duration = Duration::from_secs(2);
/// For a connection to a manager's port.
const CONNECT_MAX: Duration = Duration::from_millis(1500);
/// For an answer of the name server; one that asks others may take as long as they do.
const NAME_MAX: Duration = Duration::from_millis(1000);
const FORWARD_MAX: Duration = Duration::from_millis(2500);
/// For everything.
const LOOK_MAX: Duration = Duration::from_secs(12);
const DNS_PORT: u16 = 53;

/// What this node knows of the others.
#[derive(Debug, Clone)]
pub(crate) struct Map {
    pub(crate) table: Arc<NodeTable>,
    pub(crate) overlay: Option<Arc<Overlay>>,
    /// Of nodes that are told by name.
    pub(crate) addresses: Addresses,
    /// `host:port`.
    pub(crate) managers: Vec<String>,
}

/// What was found.
pub(super) struct Looked {
    /// How this node is called.
    pub(super) name: String,
    pub(super) findings: Vec<Finding>,
    /// Other nodes that were looked at.
    pub(super) nodes: usize,
}

/// Looks at the way to the nodes that `wanted` names by id, name or address; to all without any.
pub(super) async fn look(tools: &Arc<Tools>, wanted: &[String]) -> Looked {
    let mut looked = Looked { name: String::new(), findings: Vec::new(), nodes: 0 };
    let (reply, answer) = oneshot::channel();
    let ask = async {
        tools.tell(Message::Map(reply)).await;
        answer.await.ok()
    };
    let Some(map) = tokio::time::timeout(MAP_MAX, ask).await.ok().flatten() else {
        let hint = "the node's log says more; a stack trace of its process would too";
        looked.findings.push(finding("agent", false, "the node's own loop does not answer", hint));
        return looked;
    };
    looked.name = name_of(&map.table, tools.node);
    if wanted.len() > NAMED_MAX {
        let detail = format!("{} nodes are named, at most {NAMED_MAX} can be", wanted.len());
        looked.findings.push(finding("network", false, detail, "ask more than once"));
        return looked;
    }
    let (targets, mut strange) = targets(&map, tools.node, wanted);
    looked.nodes = targets.len();
    let work = async {
        let (ways, managers, names) = tokio::join!(
            ways(tools, &map, targets),
            managers(tools, &map, wanted),
            names(tools, wanted),
        );
        [ways, managers, names].concat()
    };
    match tokio::time::timeout(LOOK_MAX, work).await {
        Ok(found) => looked.findings.extend(found),
        Err(_) => {
            let detail = format!("looking took more than {} s", LOOK_MAX.as_secs());
            looked.findings.push(finding("network", false, detail, "the host is overloaded"));
        }
    }
    looked.findings.append(&mut strange);
    looked
}

fn name_of(table: &NodeTable, node: NodeId) -> String {
    let named = table.peers.get(&node).map(|peer| peer.name.clone());
    named.filter(|name| !name.is_empty()).unwrap_or_else(|| node.to_string())
}

/// Whom to look at, and what is to be said of those who are not.
fn targets(map: &Map, own: NodeId, wanted: &[String]) -> (Vec<Target>, Vec<Finding>) {
    let fits = |text: &String, id: NodeId, peer: &Peer| {
        let called = *text == peer.name || *text == peer.underlay;
        !text.is_empty() && (called || id.to_string().starts_with(text.as_str()))
    };
    let others = || map.table.peers.iter().filter(|(id, _)| **id != own);
    let mut strange = Vec::new();
    for text in wanted.iter().filter(|text| !others().any(|(id, peer)| fits(text, *id, peer))) {
        let hint = "warren node ls shows the nodes; this one may not have heard of it yet";
        let detail = format!("no other node that this one knows is {text:?}");
        strange.push(finding("network", false, detail, hint));
    }
    let chosen = others()
        .filter(|(id, peer)| wanted.is_empty() || wanted.iter().any(|text| fits(text, **id, peer)));
    let mut targets: Vec<Target> = chosen.map(|(id, peer)| target(map, own, *id, peer)).collect();
    if targets.len() > NODES_MAX {
        let detail = format!("{NODES_MAX} of {} other nodes are looked at", targets.len());
        let hint = "name others: warren doctor network NODE";
        strange.push(Finding { minor: true, ..finding("network", false, detail, hint) });
        targets.truncate(NODES_MAX);
    }
    (targets, strange)
}

/// Who passes on between this node and another.
fn via(map: &Map, own: NodeId, other: NodeId) -> Option<String> {
    let relay = map.table.relays.iter().find(|relay| relay.other(own) == Some(other))?;
    Some(name_of(&map.table, relay.via))
}

fn target(map: &Map, own: NodeId, id: NodeId, peer: &Peer) -> Target {
    let underlay: Option<IpAddr> =
        peer.underlay.parse().ok().or_else(|| map.addresses.get(&peer.underlay).copied());
    let number = |number: u16| u32::from(number) == peer.number;
    let placed = map.overlay.as_ref().and_then(|overlay| {
        let member = overlay.peers.iter().find(|member| number(member.number))?;
        Some((overlay.carrier, member.clone()))
    });
    let (carrier, member) = placed.unzip();
    let about = About {
        node: id,
        name: name_of(&map.table, id),
        place: peer.underlay.clone(),
        underlay,
        carrier,
        via: via(map, own, id),
    };
    Target { about, member }
}

async fn ways(tools: &Arc<Tools>, map: &Map, targets: Vec<Target>) -> Vec<Finding> {
    let needs_tunnel = map.overlay.as_ref().is_some_and(|o| o.carrier == Carrier::Device);
    let asked = targets.clone();
    // Without anybody to ask nothing is done, so nothing is said.
    let seen = match tokio::task::spawn_blocking(move || survey(&asked)).await {
        Ok(Ok(seen)) => seen,
        Ok(Err(error)) => {
            let hint = "the daemon needs to run as root";
            return vec![finding("network", false, chain(&error), hint)];
        }
        Err(_) => return vec![finding("network", false, "looking was interrupted", "")],
    };
    let state = match &tools.tunnel {
        Some(tunnel) if needs_tunnel && !targets.is_empty() => Some(tunnel.state().await),
        _ => None,
    };
    let mut found: Vec<Finding> = state.iter().map(of_plane).collect();
    for (target, seen) in targets.iter().zip(&seen) {
        let tunnel = match &state {
            None => Tunnel::None,
            Some(None) => Tunnel::Silent,
            Some(Some(state)) => {
                // Of two that replace each other the data plane may know the order of a moment ago.
                let keys = map.table.peers.get(&target.about.node);
                let keys = keys.map(|peer| [peer.overlay_key, peer.overlay_key_other]);
                let peer =
                    state.peers.iter().find(|peer| keys.is_some_and(|k| k.contains(&peer.key)));
                peer.cloned().map_or(Tunnel::Stranger, Tunnel::Peer)
            }
        };
        found.extend(path::judge(&target.about, seen, &tunnel));
    }
    found
}

/// The process that encrypts.
fn of_plane(state: &Option<TunnelState>) -> Finding {
    let hint = "it is started anew by itself; data.log in the run folder says why it does not work";
    match state {
        None => finding("data plane", false, "does not answer: nothing goes to other nodes", hint),
        Some(TunnelState { trouble: Some(why), .. }) => finding("data plane", false, why, hint),
        Some(TunnelState { carries: false, .. }) => {
            let hint = "look whether /dev/net/tun can be opened; the node's log says why";
            finding("data plane", false, "carries no packets to other nodes", hint)
        }
        Some(state) => {
            finding("data plane", true, format!("carries for {} others", state.peers.len()), "")
        }
    }
}

/// Whether managers' ports take connections from here.
async fn managers(tools: &Arc<Tools>, map: &Map, wanted: &[String]) -> Vec<Finding> {
    let own = map.table.peers.get(&tools.node).map(|peer| peer.underlay.clone());
    let at: BTreeMap<&str, NodeId> =
        map.table.peers.iter().map(|(id, peer)| (peer.underlay.as_str(), *id)).collect();
    let looks = map.managers.iter().filter_map(|address| {
        let host = host(address);
        let node = at.get(host).copied();
        let name = node.map_or_else(|| host.to_owned(), |id| name_of(&map.table, id));
        let is_wanted =
            wanted.is_empty() || wanted.contains(&name) || wanted.iter().any(|w| w == host);
        (own.as_deref() != Some(host) && is_wanted).then(|| of_manager(tools, address, node, name))
    });
    futures::future::join_all(looks).await
}

async fn of_manager(tools: &Tools, address: &str, node: Option<NodeId>, name: String) -> Finding {
    let begun = tools.clock.monotonic_ms();
    let outcome = tokio::time::timeout(CONNECT_MAX, connect(tools, address)).await;
    let took_ms = tools.clock.monotonic_ms().saturating_sub(begun);
    let hint = "look whether its daemon runs, and whether TCP to that port passes";
    let found = match outcome {
        Ok(Ok(())) => {
            finding("manager", true, format!("{address} takes connections, {took_ms} ms"), "")
        }
        Ok(Err(error)) => finding("manager", false, format!("{address}: {error}"), hint),
        Err(_) => finding("manager", false, format!("{address} does not answer"), hint),
    };
    let node = node.map_or_else(Vec::new, |id| id.as_bytes().to_vec());
    Finding { node, peer: name, ..found }
}

async fn connect(tools: &Tools, address: &str) -> std::io::Result<()> {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let port: u16 = port.parse().map_err(std::io::Error::other)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let found = match host.parse::<IpAddr>() {
        Ok(address) => vec![address],
        Err(_) => tools.resolve.resolve(host).await?,
    };
    let first = found.first().ok_or_else(|| std::io::Error::other("its name leads nowhere"))?;
    tokio::net::TcpStream::connect(SocketAddr::new(*first, port)).await.map(drop)
}

/// `10.0.0.1` of `10.0.0.1:2377`, `fd00::1` of `[fd00::1]:2377`.
fn host(address: &str) -> &str {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Whether containers are answered: asked from within one of them, else the server itself.
async fn names(tools: &Arc<Tools>, wanted: &[String]) -> Vec<Finding> {
    let Some(server) = tools.name_server.filter(|_| wanted.is_empty()) else { return Vec::new() };
    let listed = tools.runtime.list().await.unwrap_or_default();
    let running = listed.iter().filter_map(parse_labels).find(|l| l.pid().is_some());
    let asked = tokio::task::spawn_blocking(move || match running {
        Some(running) => within(&running),
        None => vec![alone(server.into())],
    });
    asked.await.unwrap_or_else(|_| vec![finding("names", false, "asking was interrupted", "")])
}

const NAMES_HINT: &str = "the data plane answers names: it is started anew by itself; data.log in \
                          the run folder says why it does not work";

/// Asked as a container, which has to find its own service.
fn within(container: &Listed) -> Vec<Finding> {
    let (pid, name) = (container.pid(), container.service_name.as_str());
    let server = SocketAddr::new(SERVER, DNS_PORT);
    let own = ask_names(pid, server, name, kind::A, NAME_MAX);
    let answers = matches!(own, Ok(Some(_)));
    let mut found = vec![of_name(name, own)];
    if answers {
        found.extend(of_forward(ask_names(pid, server, "", kind::NS, FORWARD_MAX)));
    }
    found
}

fn of_name(name: &str, own: Result<Option<Said>, warren_net::Error>) -> Finding {
    let what = |text: String| finding("names", false, text, NAMES_HINT);
    match own {
        Ok(Some(Said { code: 0, records: 1.. })) => {
            finding("names", true, format!("a container here finds {name}"), "")
        }
        // Of `dnsrr`, while none of its tasks takes connections.
        Ok(Some(Said { code: 0, .. })) => {
            finding("names", true, format!("{name} has no address right now"), "")
        }
        Ok(Some(Said { code, .. })) => {
            what(format!("a container here asks for {name}, and is answered with code {code}"))
        }
        Ok(None) => what(format!("a container here asks for {name}, and nobody answers")),
        Err(error) => what(format!("a container here cannot ask: {}", chain(&error))),
    }
}

/// Names of the world. Without them the cluster works.
fn of_forward(said: Result<Option<Said>, warren_net::Error>) -> Option<Finding> {
    let name = "names elsewhere";
    let hint =
        "look at the nameserver lines of /etc/resolv.conf on this host, and whether they answer";
    let minor = |text: &str| Some(Finding { minor: true, ..finding(name, false, text, hint) });
    match said {
        // On internal networks alone nobody is asked.
        Ok(Some(Said { code: 5, .. })) | Err(_) => None,
        Ok(Some(Said { code: 2, .. })) => {
            minor("the host's servers do not answer what is passed on")
        }
        Ok(Some(_)) => Some(finding(name, true, "the host's servers answer what is passed on", "")),
        Ok(None) => minor("what is passed on to the host's servers is not answered in time"),
    }
}

/// Without a container nobody may ask, and is told so.
fn alone(server: SocketAddr) -> Finding {
    match ask_names(None, server, "", kind::NS, NAME_MAX) {
        Ok(Some(_)) => finding("names", true, "the name server answers; no container is here", ""),
        // It begins with the first container.
        Ok(None) | Err(_) => finding("names", true, "no container is here that would ask", ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> Map {
        let mut table = NodeTable::default();
        let all = [("m1", "10.0.0.1"), ("w1", "10.0.0.2"), ("w2", "w2.test"), ("", "10.0.0.4")];
        for (n, (name, underlay)) in (1..).zip(all) {
            let peer = Peer {
                number: n.into(),
                underlay: underlay.to_owned(),
                blocks: Vec::new(),
                overlay_key: [n; 32],
                overlay_key_other: [0; 32],
                overlay_port: 0,
                name: name.to_owned(),
            };
            table.peers.insert(NodeId::from_bytes([n; 10]), Arc::new(peer));
        }
        let addresses = [("w2.test".to_owned(), [10, 0, 0, 3].into())].into();
        Map { table: Arc::new(table), overlay: None, addresses, managers: Vec::new() }
    }

    #[track_caller]
    fn check(wanted: &[&str], expected: &[&str], strange: usize) {
        let wanted: Vec<String> = wanted.iter().map(|text| (*text).to_owned()).collect();
        let (targets, told) = targets(&map(), NodeId::from_bytes([1; 10]), &wanted);
        let places = targets.iter().map(|target| {
            target.about.underlay.map_or_else(String::new, |address| address.to_string())
        });
        assert_eq!(places.collect::<Vec<_>>(), expected);
        assert_eq!(told.len(), strange, "{told:?}");
    }

    #[test]
    fn nodes_are_found_by_what_people_know() {
        check(&[], &["10.0.0.2", "10.0.0.3", "10.0.0.4"], 0);
        check(&["w1", "w2.test"], &["10.0.0.2", "10.0.0.3"], 0);
        let id = NodeId::from_bytes([4; 10]).to_string();
        check(&[&id[..8]], &["10.0.0.4"], 0);
        // Itself is no other.
        check(&["m1"], &[], 1);
        check(&["w1", "w9", ""], &["10.0.0.2"], 2);
    }

    #[test]
    fn hosts_of_addresses() {
        assert_eq!(["a:1", "[fd00::1]:1", "a"].map(host), ["a", "fd00::1", "a"]);
    }

    #[test]
    fn answers_of_the_name_server() {
        let said = |code, records| Ok(Some(Said { code, records }));
        let check = |said, ok: bool, part: &str| {
            let found = of_name("web", said);
            assert!(found.ok == ok && found.detail.contains(part), "{found:?}");
        };
        check(said(0, 1), true, "finds web");
        check(said(0, 0), true, "no address right now");
        check(said(3, 0), false, "code 3");
        check(Ok(None), false, "nobody answers");
        let level = |said| of_forward(said).map(|found| (found.ok, found.minor));
        assert_eq!(level(said(0, 13)), Some((true, false)));
        assert_eq!(level(said(3, 0)), Some((true, false)));
        assert_eq!(level(said(2, 0)), Some((false, true)));
        assert_eq!(level(Ok(None)), Some((false, true)));
        assert_eq!(level(said(5, 0)), None);
    }
}
