//! What is to be said of the way to one other node.
//!
//! Pure: from what was asked and what came back.
//!
//! Of two nodes that ask each other at the same time, one may hear the other and get no answer:
//! then its own way is cut. It says that it is heard; whoever has both views knows the rest.

use std::net::IpAddr;

use warren_model::NodeId;
use warren_model::quantity::format_duration_ms;
use warren_net::Carrier;
use warren_proto::v1::Finding;

use crate::tunnel::TunnelPeer;

/// What was heard so long ago was heard while we asked.
pub(super) const HEARD_MS: u64 = 3_000;
/// People compare logs by it.
const CLOCK_MINOR_MS: u64 = 2_000;
/// Certificates and tokens go by it.
const CLOCK_BAD_MS: u64 = 10 * 60_000;
/// Of VXLAN; nodes that share an address have the ones behind it.
const VXLAN: &str = "8477/udp";

/// The other node.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) node: NodeId,
    /// As people know it.
    pub(super) name: String,
    /// Where it is, as it says; and the address, if that is known.
    pub(super) place: String,
    pub(super) underlay: Option<IpAddr>,
    /// How packets go there; nothing: it has no place on the overlay yet.
    pub(super) carrier: Option<Carrier>,
    /// Who passes on what the two send each other, if they do not reach each other.
    pub(super) via: Option<String>,
}

/// What came back.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Of its own address.
    pub(super) underlay_us: Option<u64>,
    /// Why it could not even be asked.
    pub(super) unsent: Option<String>,
    /// It asked this node meanwhile.
    pub(super) heard: bool,
    /// What the overlay's largest packets are on the way, and whether they pass in one piece.
    pub(super) whole: Option<(u16, bool)>,
    pub(super) families: Vec<Family>,
    /// Whether foreign clients' packets would get there.
    pub(super) across: Option<bool>,
    /// How far its clock is ahead.
    pub(super) ahead_ms: Option<i64>,
}

/// Packets of one family, over the overlay.
#[derive(Debug, Clone)]
pub(super) struct Family {
    pub(super) address: IpAddr,
    pub(super) round_trip_us: Option<u64>,
    /// The largest that containers send; nothing: there is no route.
    pub(super) bytes: Option<u16>,
    /// The largest that was answered, if the small one was.
    pub(super) largest: Option<u16>,
}

/// What the tunnel says of it.
#[derive(Debug, Clone)]
pub(super) enum Tunnel {
    /// There is none.
    None,
    /// It does not answer; told elsewhere.
    Silent,
    /// It does not know the node.
    Stranger,
    Peer(TunnelPeer),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    Minor,
    Bad,
}

impl About {
    fn say(&self, check: &str, level: Level, detail: impl Into<String>, hint: &str) -> Finding {
        Finding {
            name: check.to_owned(),
            ok: level == Level::Ok,
            minor: level == Level::Minor,
            detail: detail.into(),
            hint: hint.to_owned(),
            node: self.node.as_bytes().to_vec(),
            peer: self.name.clone(),
            heard: false,
        }
    }
}

/// All there is to say, in the order in which one thing needs another.
pub(super) fn judge(about: &About, seen: &Seen, tunnel: &Tunnel) -> Vec<Finding> {
    let Some(underlay) = about.underlay else {
        let detail = format!("no address is found for {:?}", about.place);
        let hint = "put the name into DNS or the hosts file, or have the node advertise an address";
        return vec![about.say("address", Level::Bad, detail, hint)];
    };
    let reached = seen.families.iter().any(|family| family.round_trip_us.is_some());
    let mut found = vec![of_underlay(about, seen, underlay, reached)];
    if about.carrier.is_none() {
        let detail = "it has no addresses for containers yet";
        let hint = "it gets them with the first word of a manager; look whether one is reached";
        found.push(about.say("overlay", Level::Bad, detail, hint));
        return found;
    }
    found.extend(of_tunnel(about, seen, tunnel, reached));
    found.extend(of_way(about, tunnel, reached));
    found.extend(seen.families.iter().map(|family| of_family(about, seen, family)));
    found.extend(of_pieces(about, seen, reached));
    found.extend(of_published(about, seen, reached));
    found.extend(seen.ahead_ms.map(|ahead_ms| of_clock(about, ahead_ms)));
    found
}

fn of_underlay(about: &About, seen: &Seen, underlay: IpAddr, reached: bool) -> Finding {
    let say = |level, detail, hint| about.say("underlay", level, detail, hint);
    if let Some(us) = seen.underlay_us {
        return say(Level::Ok, format!("{underlay} answers in {}", in_ms(us)), "");
    }
    // What is reached by another node has an underlay all the same, which is not reached.
    let bad = if reached { Level::Minor } else { Level::Bad };
    if reached && about.via.is_none() {
        // A firewall that drops pings and nothing else.
        return say(Level::Ok, format!("{underlay} answers no ping, and carries the overlay"), "");
    }
    if let Some(why) = &seen.unsent {
        let hint = "this node has no way there: look at its links and routes";
        let found = say(bad, format!("{underlay} cannot be asked: {why}"), hint);
        return Finding { heard: seen.heard, ..found };
    }
    let (detail, hint) = if seen.heard {
        (
            format!("{underlay} is heard and does not answer: what this node sends there is lost"),
            "look at what is between the two, in the direction away from this node",
        )
    } else {
        (
            format!("{underlay} does not answer, and nothing of it arrives"),
            "is it up? look at links, routes and firewalls between the two; `warren doctor network` \
             there at the same time tells which way is cut",
        )
    };
    Finding { heard: seen.heard, ..say(bad, detail, hint) }
}

fn of_tunnel(about: &About, seen: &Seen, tunnel: &Tunnel, reached: bool) -> Option<Finding> {
    let say = |level, detail, hint: &str| Some(about.say("tunnel", level, detail, hint));
    let peer = match tunnel {
        Tunnel::None | Tunnel::Silent => return None,
        Tunnel::Stranger => {
            let detail = "it has told no key, or one that another node has".to_owned();
            return say(Level::Bad, detail, "its log says why it has no tunnel (/dev/net/tun?)");
        }
        Tunnel::Peer(peer) => peer,
    };
    let at = &peer.endpoint;
    let failed = match peer.failed {
        0 => String::new(),
        count => format!(", {count} failed before"),
    };
    if reached {
        let ago = peer.handshake_ago_ms.map_or_else(
            || "no handshake yet".to_owned(),
            |ms| format!("handshake {} ago", format_duration_ms(ms / 1000 * 1000)),
        );
        return say(Level::Ok, format!("{ago}{failed}"), "");
    }
    if seen.underlay_us.is_none() && !seen.heard {
        return say(Level::Bad, "no handshake: its address does not answer either".into(), "");
    }
    let heard = peer.heard_ago_ms.is_some_and(|ms| ms <= HEARD_MS);
    let (detail, hint) = if heard {
        (
            format!("its messages arrive, ours are not answered: what is sent to {at}/udp is lost"),
            format!("let UDP to {at} pass: out of this node, and into that one"),
        )
    } else {
        (
            format!("no handshake with {at}/udp: nothing of it arrives"),
            format!(
                "let UDP to {at}, and back, pass; `warren doctor network` there at the same time tells which way is cut"
            ),
        )
    };
    say(Level::Bad, detail, &hint).map(|finding| Finding { heard, ..finding })
}

/// Whether it is reached itself.
fn of_way(about: &About, tunnel: &Tunnel, reached: bool) -> Option<Finding> {
    let lost = matches!(tunnel, Tunnel::Peer(peer) if peer.lost);
    let level = if reached { Level::Minor } else { Level::Bad };
    let (detail, hint) = match &about.via {
        Some(via) => (
            format!("it is not reached itself: what the two send each other goes by way of {via}"),
            "it works, at a cost; let the tunnel's UDP port pass between the two, in both directions",
        ),
        None if lost && !reached => (
            "it is not reached itself, and no other node passes on".to_owned(),
            "a node that reaches both could, at the 16 UDP ports behind its tunnel's",
        ),
        None => return None,
    };
    Some(about.say("direct way", level, detail, hint))
}

fn of_family(about: &About, seen: &Seen, family: &Family) -> Finding {
    let check = if family.address.is_ipv4() { "overlay IPv4" } else { "overlay IPv6" };
    let (address, say) =
        (family.address, |level, detail, hint| about.say(check, level, detail, hint));
    let Some(us) = family.round_trip_us else {
        let below = seen.underlay_us.is_some() && about.carrier == Some(Carrier::Vxlan);
        let hint = match below {
            true => "UDP port 8477 must be open between nodes, both ways",
            false => "",
        };
        return say(Level::Bad, format!("{address} does not answer"), hint);
    };
    let took = in_ms(us);
    match (family.bytes, family.largest) {
        (Some(bytes), Some(largest)) if largest >= bytes => {
            say(Level::Ok, format!("packets of {bytes} bytes pass, {took}"), "")
        }
        (Some(bytes), largest) => {
            let passes = largest.map_or_else(
                || "only small ones pass".to_owned(),
                |largest| format!("of {largest} they pass"),
            );
            let hint = "something on the way carries less than this node's link says: set the MTU \
                        of the link (ip link set DEV mtu N) on all nodes, and start the daemon anew";
            say(Level::Bad, format!("packets of {bytes} bytes are lost, {passes}"), hint)
        }
        (None, _) => say(Level::Ok, format!("answers in {took}"), ""),
    }
}

/// Packets of the overlay that are broken up on the way cost much, and some firewalls drop them.
fn of_pieces(about: &About, seen: &Seen, reached: bool) -> Option<Finding> {
    let (bytes, passes) = seen.whole?;
    let full = |family: &Family| family.bytes.is_some() && family.largest >= family.bytes;
    if passes || !reached || seen.underlay_us.is_none() || !seen.families.iter().any(full) {
        return None;
    }
    let detail = format!("the overlay's packets of {bytes} bytes are broken up on the way");
    let hint = "it works, at a cost: set the MTU of the link to what the way carries, on all nodes, \
                and start the daemon anew";
    Some(about.say("fragments", Level::Minor, detail, hint))
}

fn of_published(about: &About, seen: &Seen, reached: bool) -> Option<Finding> {
    let say = |level, detail, hint| Some(about.say("published ports", level, detail, hint));
    match seen.across? {
        true => say(Level::Ok, format!("{VXLAN} passes"), ""),
        // It follows.
        false if !reached => None,
        false => {
            let detail = format!(
                "{VXLAN} does not pass: clients that come by this node do not reach containers there"
            );
            say(Level::Bad, detail, "let UDP port 8477 into that node, from all others")
        }
    }
}

fn of_clock(about: &About, ahead_ms: i64) -> Finding {
    let (apart, side) = (ahead_ms.unsigned_abs(), if ahead_ms < 0 { "behind" } else { "ahead" });
    let level = match apart {
        CLOCK_BAD_MS.. => Level::Bad,
        CLOCK_MINOR_MS.. => Level::Minor,
        _ => Level::Ok,
    };
    let (detail, hint) = match level {
        Level::Ok => (format!("{apart} ms apart"), ""),
        Level::Minor | Level::Bad => (
            format!("its clock is {} {side}", format_duration_ms(apart)),
            "set the clock of one of them, e.g. by NTP",
        ),
    };
    about.say("clock", level, detail, hint)
}

fn in_ms(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us / 100 % 10)
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
