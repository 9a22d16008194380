//! Networks and virtual IPs: who is on them, who has which, and for how long nobody has one.

use warren_model::network::Vip;
use warren_model::{Time, ipv6};
use warren_state::change::{Mutation, Transaction};
use warren_state::{Object, State};

use crate::rules::check;
use crate::script::{network, run, service, spec};

fn with(script: &str) -> String {
    format!("cluster\nnetwork default\nnetwork back\nservice web on=back\n{script}")
}

#[test]
fn networks_come_and_go() {
    check("network back\n network back", "network back exists already");
    check("network back\n rm-network back\n network back internal", "ok");
    check("rm-network back", "network back does not exist");
    check(
        "network default\n rm-network default",
        "network default is that of services that name none",
    );
    check(&with("rm-network back"), "network back is in use by web");
    check(&with("update web\n rm-network back"), "ok");
    // One that is on its way out still is on it.
    check(&with("remove web\n rm-network back"), "network back is in use by web");
    check(&with("remove web\n drop-service web\n rm-network back"), "ok");
    let many: String = (0..7).map(|n| format!("service s{n} on=back\n")).collect();
    check(
        &with(&format!("{many} rm-network back")),
        "network back is in use by s0, s1, s2, s3, s4 and 3 more",
    );
}

#[test]
fn services_are_on_networks_that_are_there() {
    check("service web on=back", "there is no network back");
    check("service web\n update web on=back", "there is no network back");
    // The default one is made when it is needed.
    check("service web on=default", "ok");
    let (state, _) = run(&with("service api\n service db on=back on=default"));
    let users = |name: &str| {
        let users = state.users_of(&name.parse().unwrap());
        let names = users.map(|id| state.service(id).unwrap().spec.name.to_string());
        names.collect::<Vec<_>>().join(" ")
    };
    assert_eq!((users("back").as_str(), users("default").as_str()), ("db web", "api db"));
    assert_eq!(users("none"), "");
}

#[test]
fn subnets_of_networks_are_apart() {
    check("network a subnet=10.192.1.0/24", "the cluster does not exist");
    check("cluster\n network a subnet=10.192.1.0/24", "ok");
    check(
        "cluster\n network a subnet=10.128.1.0/24",
        "subnet 10.128.1.0/24 is not of the pool 10.192.0.0/14 of virtual IPs",
    );
    check(
        "cluster\n network a subnet=10.0.0.0/8",
        "subnet 10.0.0.0/8 is not of the pool 10.192.0.0/14 of virtual IPs",
    );
    check(
        "cluster\n network a subnet=10.192.0.0/16\n network b subnet=10.192.1.0/24",
        "subnet 10.192.1.0/24 overlaps that of a",
    );
    check(
        &with("vip web back 10.192.1.7\n network b subnet=10.192.1.0/24"),
        "subnet 10.192.1.0/24 has 10.192.1.7 in it, is that of service web on back",
    );
    let own = "fd01:101:101:7::/64";
    check(&format!("cluster\n network a v6={own}"), "ok");
    check(
        &format!("cluster\n network a v6={own}\n network b v6={own}"),
        "subnet fd01:101:101:7::/64 is that of a",
    );
    check(
        "cluster\n network a v6=fd00::/64",
        "subnet fd00::/64 is not a /64 of fd01:101:101::/48, which is this cluster's",
    );
    let (state, _) = run("cluster");
    let prefix = ipv6::cluster_prefix(state.cluster().unwrap().id);
    assert_eq!(prefix.to_string(), "fd01:101:101::/48");
}

#[test]
fn virtual_ips_are_granted_to_who_needs_them() {
    check(&with("vip web back 10.192.0.2"), "ok");
    check(&with("vip web back 10.192.0.2\n vip web back 10.192.0.2"), "ok");
    check(&with("vip web default 10.192.0.2"), "service web is not on network default");
    check(&with("vip api back 10.192.0.2"), "service api does not exist");
    check(&with("vip web front 10.192.0.2"), "network front does not exist");
    check(&with("remove web\n vip web back 10.192.0.2"), "service web is not on network back");
    let dnsrr = "service web has no virtual IP on back";
    check(&with("update web on=back dnsrr\n vip web back 10.192.0.2"), dnsrr.trim());
    check(&with("vip web.1 back 10.192.0.2"), "service web has no virtual IP of slot 1 on back");
    check(&with("update web on=back slots replicas=2\n vip web.2 back 10.192.0.2"), "ok");
    check(
        &with("update web on=back slots replicas=2\n vip web.3 back 10.192.0.2"),
        "service web has no virtual IP of slot 3 on back",
    );
    for edge in ["10.192.0.0", "10.195.255.255", "10.128.0.2"] {
        check(
            &with(&format!("vip web back {edge}")),
            &format!("virtual IP {edge} is not of the pool 10.192.0.0/14, or is its first or last"),
        );
    }
    check(
        &with("service api on=back\n vip web back 10.192.0.2\n vip api back 10.192.0.2"),
        "virtual IP 10.192.0.2 is that of service web on back",
    );
    check(
        &with("network b subnet=10.192.1.0/24\n vip web back 10.192.1.7"),
        "virtual IP 10.192.1.7 is of the subnet of network b",
    );
    check(
        &with("network b subnet=10.192.1.0/24\n service api on=b\n vip api b 10.192.0.7"),
        "virtual IP 10.192.0.7 is not of the network's subnet 10.192.1.0/24, or is its first or \
         last",
    );
}

/// Scripts have an entry a second from 1 on; `with` has four.
#[test]
fn what_was_given_up_is_nobodys_for_a_while() {
    const LATER: &str = "1970-01-01T00:10:07.000Z";
    let taken = format!("virtual IP 10.192.0.2 was given up lately, it is nobody's until {LATER}");
    let given_up = with("service api on=back\n vip web back 10.192.0.2\n release 10.192.0.2");
    check(&format!("{given_up}\n vip api back 10.192.0.2"), &taken);
    check(&format!("{given_up}\n @606\n vip api back 10.192.0.2"), "ok");
    check(&format!("{given_up}\n @605\n vip api back 10.192.0.2"), &taken);
    // Who had it may have it back: it means the same to everybody.
    check(&format!("{given_up}\n vip web back 10.192.0.2"), "ok");
    check(&with("release 10.192.0.2"), "nobody has virtual IP 10.192.0.2");
    check(&format!("{given_up}\n release 10.192.0.2\n vip api back 10.192.0.2"), &taken);
    assert_eq!(Vip::QUARANTINE_MS, 600_000);
    // Given up with its service, with its network, for another one.
    let (state, outcomes) = run(&with(
        "vip web back 10.192.0.2\n vip web back 10.192.0.3\n remove web\n drop-service web",
    ));
    assert!(outcomes.iter().all(|outcome| outcome == "ok"), "{outcomes:?}");
    let quarantine: Vec<String> = state
        .quarantined_vips()
        .map(|(until, address)| format!("{address} {}", until.0 / 1000))
        .collect();
    assert_eq!(quarantine, ["10.192.0.2 606", "10.192.0.3 608"]);
    let (state, _) =
        run(&with("vip web back 10.192.0.2\n update web\n rm-network back\n @900\n network x"));
    assert_eq!((state.vips().count(), state.quarantined_vips().count()), (0, 0));
}

#[test]
fn addresses_that_are_asked_for_are_granted_with_the_spec() {
    let base = "cluster\n network back\n network front subnet=10.192.9.0/24\n";
    let has = |script: &str| {
        let (state, outcomes) = run(&format!("{base}{script}"));
        assert!(outcomes.iter().all(|outcome| outcome == "ok"), "{outcomes:?}");
        let all = state.vips_of(service("web"));
        all.map(|(holder, address)| format!("{} {address}", holder.slot)).collect::<Vec<_>>()
    };
    assert_eq!(has("service web on=back:10.192.0.9"), ["0 10.192.0.9"]);
    assert_eq!(
        has("service web on=back:10.192.0.9 slots replicas=2"),
        ["0 10.192.0.9", "1 10.192.0.10", "2 10.192.0.11"]
    );
    assert_eq!(
        has("service web on=back:10.192.0.9 slots dnsrr replicas=2"),
        ["1 10.192.0.10", "2 10.192.0.11"]
    );
    assert_eq!(
        has("service web on=back:10.192.0.9\n update web on=back:10.192.0.7"),
        ["0 10.192.0.7"]
    );
    assert_eq!(
        has("service web on=back:10.192.0.9\n update web on=back on=front:10.192.9.9"),
        ["0 10.192.0.9", "0 10.192.9.9"]
    );
    check(
        &format!("{base} service web on=back:10.192.0.9\n service api on=back:10.192.0.9"),
        "virtual IP 10.192.0.9 is that of service web on back",
    );
    check(
        &format!("{base} service web on=back:10.192.9.9"),
        "virtual IP 10.192.9.9 is of the subnet of network front",
    );
    let slots = "service api on=back:10.192.0.11\n service web on=back:10.192.0.9 slots";
    check(
        &format!("{base} {slots} replicas=2"),
        "virtual IP 10.192.0.11 is that of service api on back",
    );
    check(
        &format!("{base} {slots} replicas=1\n update web on=back:10.192.0.9 slots replicas=2"),
        "virtual IP 10.192.0.11 is that of service api on back",
    );
}

#[test]
fn a_service_has_changed_when_its_addresses_have() {
    let (before, _) = run(&with("service api on=back\n vip api back 10.192.0.7"));
    let mut after = before.clone();
    let apply = |state: &mut State, mutation: Mutation| {
        let transaction = Transaction { mutations: vec![mutation], ..Transaction::default() };
        let mut events = vec![];
        state.apply(Time(20_000), &[transaction], &mut events);
        events.into_iter().map(|event| format!("{} {}", event.name, event.message)).collect()
    };
    let holder = before.vips_of(service("api")).next().unwrap().0;
    let address = [10, 192, 0, 8].into();
    let told: Vec<String> = apply(&mut after, Mutation::GrantVip { holder, address });
    assert_eq!(told, ["api virtual ip 10.192.0.8 on back"]);
    assert_eq!(after.services_since(&before), [service("api")]);
    assert_eq!(before.services_since(&after), [service("api")]);
    assert_eq!(after.services_since(&after.clone()), []);
    assert_eq!(after.nodes_since(&before), []);
    assert!(after.activity(service("api")) > before.activity(service("api")));
    let told: Vec<String> = apply(&mut after, Mutation::ReleaseVip { address });
    assert_eq!(told, ["api without virtual ip 10.192.0.8"]);
    // Refused: all is as it was.
    let once = after.clone();
    let spec = spec("web", &["on=back:10.192.0.7"]);
    let told = apply(&mut after, Mutation::UpdateService { id: service("web"), spec });
    assert_eq!(told, Vec::<String>::new());
    assert_eq!(after.checksum(), once.checksum());
}

#[test]
fn networks_are_found_by_name_id_and_prefix() {
    let (state, _) = run("network back\n network bark\n network front");
    let find = |text: &str| state.resolve_network(text).map(|n| n.spec.name.to_string());
    let id = network("front").to_string();
    assert_eq!(find("back").as_deref(), Some("back"));
    assert_eq!(find(&id).as_deref(), Some("front"));
    assert_eq!(find(&id[..4]).as_deref(), Some("front"));
    assert_eq!(find(&network("back").to_string()[..3]), None, "two begin so");
    for nothing in ["", "none", "zzz", "É"] {
        assert_eq!(find(nothing), None, "{nothing}");
    }
}

#[test]
fn snapshots_hold_them() {
    let (state, _) = run(&with(
        "vip web back 10.192.0.2\n service api on=back\n vip api back 10.192.0.3\n \
         release 10.192.0.3",
    ));
    let objects: Vec<Object> = state.export().collect();
    assert_eq!(objects.len(), state.object_count());
    let import = |objects: Vec<Object>| State::import(state.head(), objects);
    let back = import(objects.clone()).unwrap();
    assert_eq!(back.checksum(), state.checksum());
    assert_eq!(back.check(), Vec::<String>::new());
    let is_vip = |object: &Object| matches!(object, Object::Vip(vip) if vip.released.is_none());
    let without = |drop: &dyn Fn(&Object) -> bool| {
        let mut left = objects.clone();
        left.retain(|object| !drop(object));
        import(left).map(drop_state).map_err(|error| error.to_string())
    };
    assert_eq!(without(&is_vip), Ok(()));
    let no_network = |object: &Object| matches!(object, Object::Network(_));
    assert!(without(&no_network).unwrap_err().contains("it refers to network"));
    let mut twice = objects.clone();
    twice.extend(objects.iter().filter(|object| is_vip(object)).cloned());
    assert!(import(twice).unwrap_err().to_string().contains("twice"));
    let mut two = objects.clone();
    two.extend(objects.iter().filter_map(|object| match object {
        Object::Vip(vip) if vip.released.is_none() => {
            Some(Object::Vip(Vip { address: [10, 192, 0, 99].into(), ..*vip }))
        }
        _ => None,
    }));
    assert!(import(two).unwrap_err().to_string().contains("in use by virtual IP 10.192.0.2"));
}

fn drop_state(_: State) {}

#[test]
fn people_are_recorded() {
    let (state, _) = run("cluster\n as anna; network back internal subnet=10.192.1.0/24\n \
         as anna; service web image=a on=back\n as anna; update web image=a dnsrr\n \
         vip web back 10.192.1.7\n as anna; rm-network back");
    let records: Vec<String> = state
        .audit()
        .map(|record| format!("{} {} {}", record.action, record.object, record.detail))
        .collect();
    assert_eq!(
        records,
        [
            "network.create back internal subnet=10.192.1.0/24",
            "service.create web image=a replicas=1",
            "service.update web networks endpoint",
            "network.remove back ",
        ]
    );
}
