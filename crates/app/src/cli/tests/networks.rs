//! Networks: made, shown, removed; and services that are put on them.

use expect_test::{Expect, expect};

use super::fake::{FakeNode, World};
use super::samples::web;
use super::say;
use crate::cli::listing::Record;
use crate::cli::network::NetworkRow;
use warren_proto::v1;

async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(World { services: vec![web()], ..World::default() });
    expected.assert_eq(&say(&node, line).await.all());
}

/// What arrives of a command.
async fn asked(line: &str) -> String {
    let node = FakeNode::start(World::default());
    let said = say(&node, line).await;
    assert_eq!(said.exit, 0, "{}", said.err);
    node.world(|world| world.asked.join(" "))
}

#[tokio::test]
async fn networks_are_made() {
    check(
        "network create back",
        expect![[r#"
        exit 0
        --- out
        0w3ge1r70w3ge1r7
    "#]],
    )
    .await;
    let wire = asked(
        "network create back --internal --encrypted=false --label a=b \
         --subnet 10.192.1.0/24 --subnet fd01:101:101:7::/64",
    )
    .await;
    for part in [
        "name: \"back\"",
        "internal: true, attachable: false, plain: true",
        "Subnet { address: 180355328, prefix: 24 }",
        "prefix: 64",
        "{\"a\": \"b\"}",
    ] {
        assert!(wire.contains(part), "{part} is not in {wire}");
    }
    assert!(asked("network create back").await.contains("plain: false"));
}

#[tokio::test]
async fn mistakes_are_named() {
    check("network create Back", expect![[r#"
        exit 2
        --- err
        error: NAME: name "Back" has 'B' at position 1; allowed are a-z, 0-9, '-' and '_', first and last a letter or digit
    "#]])
    .await;
    check(
        "network create back --subnet 10.192.1.7/24",
        expect![[r#"
        exit 2
        --- err
        error: --subnet: "10.192.1.7/24" has bits after its prefix; 10.192.1.0/24 has none
    "#]],
    )
    .await;
    check(
        "network create back --subnet 10.192.1.0/24 --subnet 10.192.2.0/24",
        expect![[r#"
        exit 2
        --- err
        error: --subnet: 10.192.2.0/24 is a second one of its family
    "#]],
    )
    .await;
    check("network create back --attachable", expect![[r#"
        exit 2
        --- err
        error: --attachable: "true" means nothing here: every container is a service's, and services join networks by themselves
    "#]]).await;
    // The cluster's packets travel by VXLAN.
    check(
        "network create back --encrypted",
        expect![[r#"
        exit 2
        --- err
        error: --encrypted: true is not to be had: this cluster's overlay does not encrypt
        hint: leave it out; the overlay is chosen when a cluster is made: warren cluster settings
    "#]],
    )
    .await;
    check(
        "network create back --driver overlay",
        expect![[r#"
        exit 2
        --- err
        error: there is no flag "--driver" here
        hint: networks have no driver here: the cluster's overlay carries all of them
    "#]],
    )
    .await;
}

#[tokio::test]
async fn networks_are_shown() {
    check(
        "network ls --format '{{.Name}} {{.Internal}} {{.Services}} {{.Subnet}}'",
        expect![[r#"
        exit 0
        --- out
        back true 1 10.192.1.0/24
    "#]],
    )
    .await;
    check(
        "network ls -q --filter name=back",
        expect![[r#"
        exit 0
        --- out
        0w3ge1r70w3ge1r7
    "#]],
    )
    .await;
    check(
        "network inspect back",
        expect![[r#"
            exit 0
            --- out
            [
              {
                "created_at": "2027-01-15T08:00:00.000Z",
                "encrypted": true,
                "id": "0w3ge1r70w3ge1r7",
                "internal": true,
                "labels": {},
                "name": "back",
                "relays": [],
                "revision": 4,
                "services": [
                  {
                    "address": "10.192.1.2",
                    "address_v6": "fd01:101:101:1::ac0:102",
                    "aliases": [
                      "www"
                    ],
                    "endpoint_mode": "vip",
                    "id": "0c1g60r30c1g60r3",
                    "name": "web",
                    "slot_addresses": {
                      "1": "10.192.1.3"
                    },
                    "tasks": [
                      "10.128.0.2"
                    ]
                  }
                ],
                "subnet": "10.192.1.0/24",
                "subnet_v6": null
              }
            ]
        "#]],
    )
    .await;
    let row = NetworkRow::new(super::samples::network(), true).unwrap();
    let object = row.object();
    let mut keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
    let mut promised = NetworkRow::KEYS.to_vec();
    keys.sort_unstable();
    promised.sort_unstable();
    assert_eq!(keys, promised);
}

#[tokio::test]
async fn networks_are_removed() {
    check(
        "network rm back front",
        expect![[r#"
        exit 0
        --- out
        back
        front
    "#]],
    )
    .await;
    assert!(asked("network rm back").await.contains("networks: [\"back\"]"));
    let refusal = Some((
        tonic::Code::FailedPrecondition,
        "network back is in use by web",
        "remove these services, or take them off it",
    ));
    let node = FakeNode::start(World { refusal, ..World::default() });
    expect![[r#"
        exit 4
        --- err
        error: network back is in use by web
        hint: remove these services, or take them off it
    "#]]
    .assert_eq(&say(&node, "network rm back").await.all());
}

/// The networks that a service is asked to be on.
fn wished(spec: &v1::ServiceSpec) -> String {
    let one = |on: &v1::Attachment| format!("{}{:?}{:?}", on.network, on.aliases, on.address);
    spec.networks.iter().map(one).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn services_are_put_on_networks() {
    let node = FakeNode::start(World::default());
    let said = say(
        &node,
        "service create web --image nginx -d --network back,alias=www --network front \
         --endpoint-mode dnsrr --endpoint-affinity client-ip --endpoint-prefer-local",
    )
    .await;
    assert_eq!(said.exit, 0, "{}", said.err);
    let spec = node.world(|world| world.created.remove(0).spec.unwrap());
    assert_eq!(wished(&spec), "back[\"www\"]None front[]None");
    let endpoint = spec.endpoint.unwrap();
    assert_eq!(endpoint.mode, i32::from(v1::EndpointMode::Dnsrr));
    assert_eq!(endpoint.affinity, i32::from(v1::Affinity::ClientAddress));
    assert!(endpoint.prefer_local && !endpoint.slot_addresses);
    check(
        "service create web --image nginx --network back --network back",
        expect![[r#"
        exit 2
        --- err
        error: --network: "back" is named twice
    "#]],
    )
    .await;
    check("service create web --image nginx --network back,ip=10.192.0.9 --endpoint-mode dnsrr", expect![[r#"
        exit 2
        --- err
        error: --network: "10.192.0.9" cannot be had without a virtual IP: the endpoint mode is dnsrr
    "#]])
    .await;
}

#[tokio::test]
async fn services_are_put_on_other_networks() {
    let update = async |flags: &str| {
        let node = FakeNode::start(World { services: vec![web()], ..World::default() });
        let said = say(&node, &format!("service update web -d {flags}")).await;
        assert_eq!(said.exit, 0, "{}", said.err);
        let spec = node.world(|world| world.updated.remove(0).spec.unwrap());
        let remarks = said.err.lines().filter(|line| line.contains("--network-rm"));
        format!("{}{}", wished(&spec), remarks.collect::<String>())
    };
    assert_eq!(update("--network back").await, "default[]None back[]None");
    assert_eq!(update("--network back --network-rm default").await, "back[]None");
    assert_eq!(update("--network default,alias=www").await, "default[\"www\"]None");
    assert_eq!(update("--network default").await, "");
    assert_eq!(
        update("--network-rm frnt").await,
        "warning: --network-rm: the service has no network frnt"
    );
    assert_eq!(
        update("--network-rm default").await,
        "warning: --network-rm: no network is left: it is on default now"
    );
}
