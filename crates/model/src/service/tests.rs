//! Rules of specs, one by one.

use super::*;

fn spec() -> ServiceSpec {
    let task = TaskTemplate { image: "nginx".into(), ..TaskTemplate::default() };
    ServiceSpec::new("web".parse().unwrap(), task)
}

#[track_caller]
fn check(edit: impl FnOnce(&mut ServiceSpec), expected: &str) {
    let mut spec = spec();
    edit(&mut spec);
    let got = spec.validate().err().map_or_else(|| "ok".to_owned(), |e| e.to_string());
    assert_eq!(got, expected);
}

fn port(published: u16, bind: [u8; 4]) -> PortSpec {
    let bind = Ipv4Addr::from(bind);
    let (protocol, mode) = (Protocol::Tcp, PublishMode::Ingress);
    PortSpec { protocol, bind, published, target: 80, mode, name: None }
}

#[test]
fn rules() {
    check(|_| {}, "ok");
    check(|s| s.task.image.clear(), "image: \"\" is empty, name one such as nginx:1.27");
    check(|s| s.task.env = vec!["A".into()], "env: \"A\" is not of the form KEY=value");
    check(|s| s.task.env = vec!["A=1".into(), "A=2".into()], "env: \"A=2\" sets A a second time");
    check(|s| s.task.workdir = Some("tmp".into()), "workdir: \"tmp\" is not an absolute path");
    check(
        |s| s.task.user = Some("a:b:c".into()),
        "user: \"a:b:c\" is not of the form user, uid, user:group or uid:gid",
    );
    check(
        |s| s.task.stop_signal = Some("SIGFOO".into()),
        "stop_signal: \"SIGFOO\" is not a signal; write e.g. SIGTERM, INT or 15",
    );
    check(
        |s| s.task.cap_add = vec!["NET".into()],
        "capabilities: \"NET\" is not a capability; write e.g. NET_ADMIN or ALL",
    );
    check(
        |s| s.task.limits.memory_bytes = Some(5),
        "limit_memory: \"5\" is less than 6291456 bytes (6 MiB)",
    );
    check(|s| s.task.log.max_files = 0, "log: \"max-file=0\" keeps nothing, allowed is 1 or more");
    check(|s| s.task.log.max_bytes = 1, "log: \"max-size=1\" is less than 4096 bytes");
    check(
        |s| s.ports = vec![port(0, [0; 4])],
        "ports: \"0:80\" has port 0, allowed are 1 to 65535",
    );
    check(
        |s| s.ports = vec![port(8080, [0; 4]), port(8080, [127, 0, 0, 1])],
        "ports: \"127.0.0.1:8080:80\" publishes the same port as 8080:80",
    );
    check(|s| s.ports = vec![port(8080, [10, 0, 0, 1]), port(8080, [127, 0, 0, 1])], "ok");
    check(
        |s| s.mode = Mode::Replicated { replicas: 100_001 },
        "replicas: \"100001\" is more than 100000",
    );
    check(|s| s.on_disconnect = OnDisconnect::Keep, "ok");
    check(
        |s| s.on_disconnect = OnDisconnect::StopAfter { ms: 999 },
        "on_disconnect: \"stop-after 999ms\" is not between 1s and 30d",
    );
    check(
        |s| s.on_disconnect = OnDisconnect::ReplaceAfter { ms: 31 * 86_400_000 },
        "on_disconnect: \"replace-after 31d\" is not between 0s and 30d",
    );
}

#[test]
fn signals_and_capabilities() {
    assert_eq!(parse_signal("SIGTERM"), Some(15));
    assert_eq!(parse_signal("quit"), Some(3));
    assert_eq!(parse_signal("9"), Some(9));
    assert_eq!(parse_signal("RTMIN+3"), Some(37));
    assert_eq!(parse_signal("0"), None);
    assert_eq!(parse_signal("RTMIN+99"), None);
    assert!(is_capability("cap_net_admin") && is_capability("ALL") && !is_capability("NET"));
}

fn on(network: &str, address: Option<[u8; 4]>) -> Attachment {
    Attachment { address: address.map(Into::into), ..Attachment::new(network.parse().unwrap()) }
}

#[test]
fn a_service_is_on_the_default_network_unless_it_says_others() {
    let mut spec = spec();
    let names = |spec: &ServiceSpec| {
        let names = spec.attachments().iter().map(|on| on.network.to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&spec), "default");
    spec.networks = vec![on("back", None), on("front", None)];
    assert_eq!(names(&spec), "back front");
}

#[test]
fn networks() {
    let address = Some([10, 192, 0, 9]);
    check(|s| s.networks = vec![on("back", None), on("front", address)], "ok");
    check(
        |s| s.networks = vec![on("back", None), on("back", None)],
        "network: \"back\" is named twice",
    );
    check(
        |s| s.networks = (0..33).map(|n| on(&format!("n{n}"), None)).collect(),
        "network: \"33\" is more than 32",
    );
    check(
        |s| {
            let aliases = (0..33).map(|n| format!("a{n}").parse().unwrap()).collect();
            s.networks = vec![Attachment { aliases, ..on("back", None) }];
        },
        "network: \"back\" has 33 aliases, at most 32 are allowed",
    );
    let dnsrr = Endpoint { mode: EndpointMode::Dnsrr, ..Endpoint::default() };
    check(
        |s| (s.networks, s.endpoint) = (vec![on("back", address)], dnsrr),
        "network: \"10.192.0.9\" cannot be had without a virtual IP: the endpoint mode is dnsrr",
    );
    let slots = Endpoint { slot_addresses: true, ..dnsrr };
    check(|s| (s.networks, s.endpoint) = (vec![on("back", address)], slots), "ok");
    check(
        |s| (s.networks, s.endpoint) = (vec![on("back", Some([255; 4]))], slots),
        "network: \"255.255.255.255\" leaves no room for the slots",
    );
    check(
        |s| (s.mode, s.endpoint) = (Mode::Global, slots),
        "slot_addresses: \"true\" cannot be had by a global service: its tasks have no slots",
    );
    check(
        |s| (s.mode, s.endpoint) = (Mode::Replicated { replicas: 1001 }, slots),
        "replicas: \"1001\" is more than the 1000 whose slots can have addresses",
    );
}

#[test]
fn limits_are_no_less_than_reservations() {
    let gpus =
        |name: &str| Resources { generic: [(name.into(), 2)].into(), ..Resources::default() };
    check(|s| s.task.reserve = gpus("gpu"), "ok");
    check(
        |s| {
            s.task.reserve.memory_bytes = 1 << 30;
            s.task.limits.memory_bytes = Some(512 << 20);
        },
        "limit_memory: \"512MiB\" is less than the 1GiB that are reserved; raise it or lower \
         --reserve-memory",
    );
    check(
        |s| {
            s.task.reserve.cpu_millis = 1500;
            s.task.limits.cpu_millis = Some(1000);
        },
        "limit_cpu: \"1\" is less than the 1.5 that are reserved; raise it or lower --reserve-cpu",
    );
    check(
        |s| {
            s.task.reserve.pids = 100;
            s.task.limits.pids = Some(100);
        },
        "ok",
    );
    check(
        |s| s.task.reserve = gpus("memory"),
        "reserve: \"memory\" cannot be reserved: \"memory\" is counted by itself and has \
         a field of its own",
    );
}

#[test]
fn names_of_ports() {
    let named = |published, target, name: &str| PortSpec {
        target,
        name: Some(name.parse().unwrap()),
        ..port(published, [0; 4])
    };
    // One port at two places.
    check(|s| s.ports = vec![named(80, 8080, "http"), named(81, 8080, "http")], "ok");
    check(|s| s.ports = vec![named(80, 8080, "http"), port(81, [0; 4]), port(82, [0; 4])], "ok");
    let udp = PortSpec { protocol: Protocol::Udp, ..named(80, 9090, "http") };
    check(|s| s.ports = vec![named(80, 8080, "http"), udp], "ok");
    check(
        |s| s.ports = vec![named(80, 8080, "http"), named(81, 9090, "http")],
        "ports: \"81:9090 (http)\" has the name of 80:8080 (http), another port",
    );
}

#[test]
fn placements() {
    let affinity = |text: &str, apart| crate::placement::Affinity::parse(text, apart).unwrap();
    let constraint = |n: usize| format!("node.labels.a{n}==1").parse().unwrap();
    check(
        |s| s.placement.constraints = (0..33).map(constraint).collect(),
        "constraint: \"33\" is more than 32",
    );
    check(
        |s| s.placement.spread = vec!["node.role".parse().unwrap(), "node.role".parse().unwrap()],
        "placement_pref: \"node.role\" is spread over twice",
    );
    check(
        |s| s.placement.affinities = vec![affinity("db", false), affinity("db:soft", true)],
        "anti_affinity: \"db\" is named twice; a service is near, apart, or neither",
    );
    check(
        |s| s.placement.affinities = vec![affinity("web", true)],
        "anti_affinity: \"web\" is the service itself; to have its replicas apart, use \
         --replicas-max-per-node 1",
    );
    check(
        |s| s.placement.max_per_node = Some(0),
        "replicas_max_per_node: \"0\" leaves no node, allowed is 1 or more",
    );
}
