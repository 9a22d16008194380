//! Policies: what they may name, and what becomes of what they name.

use warren_state::{Object, State};

use crate::rules::check;
use crate::script::run;

fn with(script: &str) -> String {
    format!("cluster\nnetwork back\nservice web on=back\nservice db on=back\n{script}")
}

#[test]
fn they_name_what_is_there() {
    check(&with("policy p only-from to=db from=web ports=5432"), "ok");
    check(&with("policy p deny from=network=back,192.0.2.0/24 to=db"), "ok");
    check(&with("policy p deny to=api"), "there is no service api");
    check(&with("policy p deny from=web to=api"), "there is no service api");
    check(&with("policy p deny from=network=front to=db"), "there is no network front");
    check(&with("policy p deny to=db\n policy p allow to=db"), "policy p exists already");
    check(&with("rm-policy p"), "policy p does not exist");
    check(&with("policy p deny to=db\n rm-policy p\n policy p allow to=db"), "ok");
    check(
        &with("policy p deny to=10.192.0.0/16"),
        "10.192.0.0/16 is of the pool 10.192.0.0/14 of virtual IPs, which rules do not see: name \
         the service instead",
    );
    check(&with("policy p deny to=10.0.0.0/8"), "ok");
}

#[test]
fn they_hold_by_name() {
    // A service may go, and come again; a network may not go while it is named.
    check(&with("policy p deny to=db\n remove db\n drop-service db\n service db on=back"), "ok");
    check(&with("policy p deny to=db\n remove db\n drop-service db\n rm-policy p"), "ok");
    let named =
        with("network front\n policy p deny from=network=front\n policy q allow to=network=front");
    check(&format!("{named}\n rm-network front"), "network front is in use by policy p, policy q");
    check(&format!("{named}\n rm-policy p; rm-policy q\n rm-network front"), "ok");
    check(
        &with("policy p deny to=network=back\n rm-network back"),
        "network back is in use by db, web, policy p",
    );
}

#[test]
fn there_is_a_limit() {
    let many: String = (0..1000).map(|n| format!("policy p{n} deny to=db\n")).collect();
    check(&with(&format!("{many} policy q deny")), "there are 1000 policies, which is the limit");
}

#[test]
fn snapshots_hold_them() {
    let (state, _) = run(&with(
        "policy p only-from to=db from=web,network=back,192.0.2.0/24,2001:db8::/32,outside \
         ports=5432,udp,icmp priority=7\n policy q deny",
    ));
    let objects: Vec<Object> = state.export().collect();
    assert_eq!(objects.len(), state.object_count());
    let back = State::import(state.head(), objects.clone()).unwrap();
    assert_eq!((back.checksum(), back.check()), (state.checksum(), vec![]));
    assert!(!back.policies_differ(&state));
    let mut twice = objects;
    twice.push(twice.last().unwrap().clone());
    assert!(State::import(state.head(), twice).unwrap_err().to_string().contains("twice"));
    let without = run(&with("policy q deny")).0;
    assert!(state.policies_differ(&without));
    assert_ne!(without.checksum(), state.checksum());
}

#[test]
fn people_are_recorded() {
    let (state, _) = run(&with(
        "as anna; policy p deny from=web to=outside ports=icmp priority=7\n as anna; rm-policy p",
    ));
    let records: Vec<String> = state
        .audit()
        .map(|record| format!("{} {} {}", record.action, record.object, record.detail))
        .collect();
    assert_eq!(
        records,
        [
            "policy.create p action=deny from=web to=outside ports=icmp priority=7",
            "policy.remove p "
        ]
    );
}
