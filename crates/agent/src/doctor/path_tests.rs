//! Ways to other nodes, as tables: what is asked of a pair, and what follows from the answers.

use super::*;

/// What came back, in words: `u` its address answers, `h` it is heard, `4:1420` and `6:1420` full
/// packets pass, `4:1420<1300` only of that size, `4:1420<` small ones alone, `4:-` nothing; `w`
/// pieces, `tl` a tunnel without a direct way, `via:m1` by whom it goes instead; `x` and `x-` published ports, `c:MS` its clock; `t` a tunnel with a handshake, `th` one that only hears, `t-` one that
/// does not, `t?` none that knows it; `plain`, `vxlan` without one.
fn parse(words: &str) -> (About, Seen, Tunnel) {
    let mut about = About {
        node: NodeId::from_bytes([2; 10]),
        name: "w2".into(),
        place: "10.0.0.2".into(),
        underlay: Some([10, 0, 0, 2].into()),
        via: None,
        carrier: Some(Carrier::Device),
    };
    let (mut seen, mut tunnel) = (Seen::default(), Tunnel::None);
    let peer = |handshake_ago_ms, heard_ago_ms, failed| {
        let endpoint = "10.0.0.2:51820".to_owned();
        Tunnel::Peer(TunnelPeer {
            key: [2; 32],
            endpoint,
            handshake_ago_ms,
            heard_ago_ms,
            failed,
            ..TunnelPeer::default()
        })
    };
    for word in words.split_whitespace() {
        match word.split_once(':').unwrap_or((word, "")) {
            ("lost", _) => about.underlay = None,
            ("new", _) => about.carrier = None,
            ("plain", _) => about.carrier = Some(Carrier::Plain),
            ("vxlan", _) => about.carrier = Some(Carrier::Vxlan),
            ("u", _) => seen.underlay_us = Some(1450),
            ("n", _) => seen.unsent = Some("no route to host".into()),
            ("h", _) => seen.heard = true,
            ("w", _) => seen.whole = Some((1500, false)),
            ("x", _) => seen.across = Some(true),
            ("x-", _) => seen.across = Some(false),
            ("c", ms) => seen.ahead_ms = ms.parse().ok(),
            ("t", _) => tunnel = peer(Some(12_345), Some(1), 0),
            ("th", _) => tunnel = peer(Some(1), Some(200), 3),
            ("t-", _) => tunnel = peer(None, None, 0),
            ("tl", _) => {
                tunnel = peer(Some(12_345), Some(1), 2);
                if let Tunnel::Peer(peer) = &mut tunnel {
                    peer.lost = true;
                }
            }
            ("via", name) => about.via = Some(name.into()),
            ("t?", _) => tunnel = Tunnel::Stranger,
            ("ts", _) => tunnel = Tunnel::Silent,
            (family, sizes) => {
                let address = if family == "4" { "10.128.2.0" } else { "fd00::2:0" };
                let (bytes, largest) = sizes.split_once('<').unwrap_or((sizes, sizes));
                seen.families.push(Family {
                    address: address.parse().unwrap(),
                    round_trip_us: (sizes != "-").then_some(600),
                    bytes: bytes.parse().ok(),
                    largest: largest.parse().ok(),
                });
            }
        }
    }
    (about, seen, tunnel)
}

/// `-` before what is bad, `~` before what is minor; `*` behind what says that it is heard.
#[track_caller]
fn check(words: &str, expected: &[&str]) {
    let (about, seen, tunnel) = parse(words);
    let found = judge(&about, &seen, &tunnel);
    let shown: Vec<String> = found
        .iter()
        .map(|finding| {
            assert_eq!((finding.peer.as_str(), &finding.node), ("w2", &vec![2; 10]));
            assert!(!finding.ok || finding.hint.is_empty(), "{finding:?}");
            let level = match (finding.ok, finding.minor) {
                (true, _) => "",
                (false, true) => "~",
                (false, false) => "-",
            };
            let heard = if finding.heard { "*" } else { "" };
            format!("{level}{}: {}{heard}", finding.name, finding.detail)
        })
        .collect();
    assert_eq!(shown, expected, "{words}");
}

const ANSWERS: &str = "underlay: 10.0.0.2 answers in 1.4 ms";

#[test]
fn all_is_fine() {
    check(
        "u t 4:1420 6:1420 x c:-3",
        &[
            ANSWERS,
            "tunnel: handshake 12s ago",
            "overlay IPv4: packets of 1420 bytes pass, 0.6 ms",
            "overlay IPv6: packets of 1420 bytes pass, 0.6 ms",
            "published ports: 8477/udp passes",
            "clock: 3 ms apart",
        ],
    );
    check("plain u 4:1500", &[ANSWERS, "overlay IPv4: packets of 1500 bytes pass, 0.6 ms"]);
    check(
        "vxlan 4:1450",
        &[
            "underlay: 10.0.0.2 answers no ping, and carries the overlay",
            "overlay IPv4: packets of 1450 bytes pass, 0.6 ms",
        ],
    );
}

#[test]
fn which_way_is_cut() {
    let tunnel = "-tunnel: no handshake: its address does not answer either";
    let overlay = "-overlay IPv4: 10.128.2.0 does not answer";
    check(
        "t- 4:- x-",
        &["-underlay: 10.0.0.2 does not answer, and nothing of it arrives", tunnel, overlay],
    );
    check(
        "h th 4:-",
        &[
            "-underlay: 10.0.0.2 is heard and does not answer: what this node sends there is lost*",
            "-tunnel: its messages arrive, ours are not answered: what is sent to 10.0.0.2:51820/udp is lost*",
            overlay,
        ],
    );
    check("n t- 4:-", &["-underlay: 10.0.0.2 cannot be asked: no route to host", tunnel, overlay]);
    // UDP alone.
    check(
        "u th 4:-",
        &[
            ANSWERS,
            "-tunnel: its messages arrive, ours are not answered: what is sent to 10.0.0.2:51820/udp is lost*",
            overlay,
        ],
    );
    check(
        "u t- 4:-",
        &[ANSWERS, "-tunnel: no handshake with 10.0.0.2:51820/udp: nothing of it arrives", overlay],
    );
    check("u vxlan 4:-", &[ANSWERS, overlay]);
    check(
        "u t 4:1420 x-",
        &[
            ANSWERS,
            "tunnel: handshake 12s ago",
            "overlay IPv4: packets of 1420 bytes pass, 0.6 ms",
            "-published ports: 8477/udp does not pass: clients that come by this node do not reach containers there",
        ],
    );
}

#[test]
fn what_is_too_large() {
    check(
        "plain u 4:1420<1300",
        &[ANSWERS, "-overlay IPv4: packets of 1420 bytes are lost, of 1300 they pass"],
    );
    check(
        "plain u 6:1420<",
        &[ANSWERS, "-overlay IPv6: packets of 1420 bytes are lost, only small ones pass"],
    );
    check(
        "vxlan u 4:1450 w",
        &[
            ANSWERS,
            "overlay IPv4: packets of 1450 bytes pass, 0.6 ms",
            "~fragments: the overlay's packets of 1500 bytes are broken up on the way",
        ],
    );
    // That they are lost is told; a host that is not pinged tells nothing.
    check(
        "vxlan u 4:1450<1300 w",
        &[ANSWERS, "-overlay IPv4: packets of 1450 bytes are lost, of 1300 they pass"],
    );
}

#[test]
fn who_is_not_there_yet() {
    check("lost", &["-address: no address is found for \"10.0.0.2\""]);
    check("u new", &[ANSWERS, "-overlay: it has no addresses for containers yet"]);
    check(
        "u t? 4:-",
        &[
            ANSWERS,
            "-tunnel: it has told no key, or one that another node has",
            "-overlay IPv4: 10.128.2.0 does not answer",
        ],
    );
    check("u ts 4:-", &[ANSWERS, "-overlay IPv4: 10.128.2.0 does not answer"]);
}

#[test]
fn clocks() {
    check("plain u c:1999", &[ANSWERS, "clock: 1999 ms apart"]);
    check("plain u c:-2500", &[ANSWERS, "~clock: its clock is 2s500ms behind"]);
    check("plain u c:600000", &[ANSWERS, "-clock: its clock is 10m ahead"]);
}

#[test]
fn who_is_not_reached_itself() {
    let way = "direct way: it is not reached itself";
    check(
        "tl via:m1 4:1420",
        &[
            "~underlay: 10.0.0.2 does not answer, and nothing of it arrives",
            "tunnel: handshake 12s ago, 2 failed before",
            &format!("~{way}: what the two send each other goes by way of m1"),
            "overlay IPv4: packets of 1420 bytes pass, 0.6 ms",
        ],
    );
    check(
        "u tl 4:-",
        &[
            ANSWERS,
            "-tunnel: its messages arrive, ours are not answered: what is sent to 10.0.0.2:51820/udp is lost*",
            &format!("-{way}, and no other node passes on"),
            "-overlay IPv4: 10.128.2.0 does not answer",
        ],
    );
}
