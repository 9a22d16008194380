//! Tables of what people write.

use super::*;

#[track_caller]
fn peer(text: &str, expected: &str) {
    let got = match text.parse::<PolicyPeer>() {
        Ok(peer) => {
            assert_eq!(peer.to_string().parse(), Ok(peer.clone()), "{text:?} comes back");
            format!("{peer:?} {peer}")
        }
        Err(error) => error.to_string(),
    };
    assert_eq!(got, expected, "{text:?}");
}

#[test]
fn ends() {
    peer("web", "Service(ServiceName(\"web\")) web");
    peer("service=web", "Service(ServiceName(\"web\")) web");
    peer("outside", "Outside outside");
    peer("service=outside", "Service(ServiceName(\"outside\")) service=outside");
    peer("network=back", "Network(NetworkName(\"back\")) network=back");
    let range = |address: &str, prefix: u8| {
        format!("Range(IpRange {{ address: {address}, prefix: {prefix} }}) {address}/{prefix}")
    };
    peer("192.0.2.0/24", &range("192.0.2.0", 24));
    peer("192.0.2.7", &range("192.0.2.7", 32));
    peer("0.0.0.0/0", &range("0.0.0.0", 0));
    peer("2001:db8::/32", &range("2001:db8::", 32));
    peer("::1", &range("::1", 128));
    peer("192.0.2.7/24", "\"192.0.2.7/24\" has bits after its prefix; 192.0.2.0/24 has none");
    let shape = |text: &str| {
        format!("{text:?} is no range of addresses like 192.0.2.0/24, 192.0.2.7 or 2001:db8::/32")
    };
    for text in ["192.0.2.0/33", "192.0.2/24", "web.back", "::/129", "1.2.3.4/-1"] {
        peer(text, &shape(text));
    }
    peer(
        "task=web",
        "\"task=web\" is none of SERVICE, service=SERVICE, network=NETWORK, an address or CIDR, \
         outside",
    );
    peer("", "a name cannot be empty");
}

#[track_caller]
fn port(text: &str, expected: Option<&str>) {
    let got = text.parse::<PolicyPort>();
    assert_eq!(got.clone().ok().map(|port| port.to_string()).as_deref(), expected, "{text:?}");
    if let Ok(port) = got {
        assert_eq!(port.to_string().parse(), Ok(port));
    }
}

#[test]
fn ports() {
    port("5432/tcp", Some("5432/tcp"));
    port("5432", Some("5432/tcp"));
    port("53/udp", Some("53/udp"));
    port("8000-8099", Some("8000-8099/tcp"));
    port("1-65535/udp", Some("1-65535/udp"));
    port("tcp", Some("tcp"));
    port("udp", Some("udp"));
    port("icmp", Some("icmp"));
    for text in ["0", "70000", "9-8", "80/sctp", "80/icmp", "", "-80", "80-", "a", "80/tcp/udp"] {
        port(text, None);
    }
}

/// `ACTION from A,B to C ports D priority N`.
fn spec(text: &str) -> PolicySpec {
    let mut words = text.split_whitespace();
    let action = words.next().unwrap();
    let action = PolicyAction::ALL.into_iter().find(|a| a.as_str() == action).unwrap();
    let mut spec = PolicySpec {
        name: "p".parse().unwrap(),
        labels: BTreeMap::new(),
        action,
        from: vec![],
        to: vec![],
        ports: vec![],
        priority: PolicySpec::PRIORITY,
    };
    while let (Some(key), Some(value)) = (words.next(), words.next()) {
        let peers = || value.split(',').map(|peer| peer.parse().unwrap()).collect();
        match key {
            "from" => spec.from = peers(),
            "to" => spec.to = peers(),
            "ports" => spec.ports = value.split(',').map(|port| port.parse().unwrap()).collect(),
            _ => spec.priority = value.parse().unwrap(),
        }
    }
    spec
}

#[track_caller]
fn check(text: &str, expected: &str) {
    let got = spec(text).validate().map_or_else(|error| error.to_string(), |()| "ok".to_owned());
    assert_eq!(got, expected, "{text}");
}

#[test]
fn what_makes_sense() {
    for fine in [
        "deny",
        "deny to db",
        "deny from db to outside",
        "deny to 169.254.169.254",
        "allow from web to db ports 5432/tcp,icmp priority 0",
        "allow from web,192.0.2.0/24 to db,outside",
        "only-from from web,network=back,outside to db",
        "only-from from web",
        "only-to from db to 192.0.2.0/24",
        "deny to db priority 1000",
    ] {
        check(fine, "ok");
    }
    check("deny to db priority 1001", "priority: \"1001\" is more than 1000");
    check("deny from web,web to db", "from: \"web\" is named twice");
    check("deny to db ports 80,80/tcp", "ports: \"80/tcp\" is named twice");
    check(
        "deny from 192.0.2.0/24 to outside",
        "from, to: \"192.0.2.0/24 to outside\" no end is a container: one of them names services \
         or networks, or is left out",
    );
    check(
        "only-from to db",
        "from: \"\" names nobody: to deny everything there is the action deny",
    );
    check(
        "only-to from db,outside to web",
        "from: \"outside\" cannot be shut: only what names services or networks, or is left out",
    );
    let many = (0..65).map(|n| format!("s{n}")).collect::<Vec<_>>().join(",");
    check(&format!("deny from {many}"), "from: \"65\" are too many: at most 64");
    let many = (1..34).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    check(&format!("deny ports {many}"), "ports: \"33\" are too many: at most 32");
}

#[test]
fn ranges_contain() {
    let range: IpRange = "10.192.1.0/24".parse().unwrap();
    assert!(range.is_within(Subnet { address: [10, 192, 0, 0].into(), prefix: 14 }));
    assert!(!range.is_within(Subnet { address: [10, 192, 1, 0].into(), prefix: 25 }));
    assert!(range.contains("10.192.1.9".parse().unwrap()));
    assert!(!range.contains("10.192.2.9".parse().unwrap()));
    assert!(!range.contains("::1".parse().unwrap()));
    let all: IpRange = "::/0".parse().unwrap();
    assert!(all.contains("2001:db8::1".parse().unwrap()));
}
