//! Round trips of all that entries and snapshots can hold, and what older versions wrote.

use std::collections::BTreeMap;

use proptest::prelude::*;
use warren_model::cluster::{Authority, JoinToken};
use warren_model::defaults::Defaults;
use warren_model::device::Devices;
use warren_model::id::ClusterId;
use warren_model::job::{Given, RunState};
use warren_model::moving::{Cause, MinAvailable, Moving, Origin, Rebalance};
use warren_model::network::{Network, NetworkSpec, Vip, VipHolder};
use warren_model::node::{
    Availability, Description, Forgotten, ForgottenChoice, Node, NodeStatus, Relay, Tombstone,
};
use warren_model::operator::{Operator, OperatorRole};
use warren_model::placement::{Placement, Strategy};
use warren_model::policy::{Policy, PolicyAction, PolicySpec};
use warren_model::resources::Resources;
use warren_model::service::{
    Attachment, Change, ChangeKind, Endpoint, EndpointMode, Hook, Limits, OnDisconnect, Privileges,
    Revision, ServiceSpec, UpdatePhase,
};
use warren_model::task::{Desired, Task, TaskControl, TaskState, TaskStatus};
use warren_model::{
    AuditRecord, NetworkId, NodeId, OverlayKind, PolicyId, Secret, ServiceId, TaskId,
};

use super::*;

const TIME: Time = Time(1_700_000_000_000);

fn node(n: u8) -> NodeId {
    NodeId::from_bytes([n; 10])
}

fn operator() -> Operator {
    Operator {
        name: "anna".parse().unwrap(),
        role: OperatorRole::Deploy,
        token_hash: Some([5; 32]),
        key_hash: None,
        expires: Some(TIME),
        created: Time(3),
        revision: 4,
    }
}

const FORGOTTEN: Forgotten = Forgotten { epoch: 2, choice: ForgottenChoice::Drop };

fn member() -> Node {
    Node {
        manager: true,
        number: Some(7),
        labels: [("rack".to_owned(), "1".to_owned())].into(),
        key_hash: [1; 32],
        certificate_not_after: TIME,
        issuer_hash: [2; 32],
        joined: Time(9),
        forgotten: Some(FORGOTTEN),
        generic: [("gpu".to_owned(), 4)].into(),
        system_reserved: Resources { memory_bytes: 1 << 29, ..Resources::default() },
        defaults: defaults(),
        taints: vec!["gpu=yes:no-execute".parse().unwrap()],
        opened: TIME,
        drain_deadline: Some(TIME),
        relays: vec![Relay {
            peer: NodeId::from_bytes([8; 10]),
            via: NodeId::from_bytes([9; 10]),
            slot: 3,
        }],
        ..Node::new(node(3), Description { hostname: "c".into(), ..Description::default() })
    }
}

fn devices() -> Devices {
    ["nvidia.com/gpu=0".to_owned()].into_iter().collect()
}

fn defaults() -> Defaults {
    let limits = Limits { pids: Some(100), ..Limits::default() };
    Defaults { reserve_memory_bytes: 64 << 20, limits, ..Defaults::default() }
}

fn cluster() -> Cluster {
    let token = JoinToken { secret: [8; 16], expires: Some(TIME) };
    Cluster {
        ca: Some(Authority { certificates: vec![vec![1, 2]], key: Secret::new(vec![3]) }),
        worker_token: Some(token.clone()),
        manager_token: Some(token),
        epoch: 2,
        unlock_key: Some(Secret::new(vec![9; 32])),
        next_number: 8,
        vip_pool: "10.9.0.0/16".parse().unwrap(),
        overlay: OverlayKind::None,
        strategy: Strategy::BinPack,
        rebalance: Rebalance::Never,
        defaults: defaults(),
        allowed: "host-pid,cap:NET_ADMIN".parse().unwrap(),
        ..Cluster::new(ClusterId::from_bytes([1; 10]))
    }
}

fn spec() -> ServiceSpec {
    let reserve = Resources { cpu_millis: 250, ..member().system_reserved };
    let privileges = Privileges { host_pid: true, init: true, ..Privileges::default() };
    let template =
        TaskTemplate { image: "nginx".into(), reserve, privileges, ..TaskTemplate::default() };
    let placement = Placement {
        constraints: vec!["node.labels.disk==ssd".parse().unwrap()],
        max_per_node: Some(2),
        ..Placement::default()
    };
    let on_disconnect = OnDisconnect::StopAfter { ms: 5_000 };
    let attachment = Attachment {
        aliases: ["www".parse().unwrap()].into(),
        address: Some([10, 9, 0, 9].into()),
        ..Attachment::new("back".parse().unwrap())
    };
    let endpoint = Endpoint { mode: EndpointMode::Dnsrr, ..Endpoint::default() };
    let spec = ServiceSpec::new("web".parse().unwrap(), template);
    let moving = Moving { min_available: Some(MinAvailable::Percent(80)), ..Moving::default() };
    ServiceSpec { on_disconnect, networks: vec![attachment], endpoint, placement, moving, ..spec }
}

fn given() -> Given {
    let params = [("DAY".to_owned(), "monday".to_owned())].into();
    Given { params, payload: Some([0, 255].into()) }
}

fn network() -> Network {
    let spec = NetworkSpec {
        internal: true,
        encrypted: false,
        subnet: Some("10.9.1.0/24".parse().unwrap()),
        subnet_v6: Some("fd00:1:2:3::/64".parse().unwrap()),
        ..NetworkSpec::new("back".parse().unwrap())
    };
    Network { id: NetworkId::from_bytes([7; 10]), spec, created: TIME, revision: 2 }
}

fn policy() -> Policy {
    let peers = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let spec = PolicySpec {
        name: "db-in".parse().unwrap(),
        labels: BTreeMap::from([("a".into(), "b".into())]),
        action: PolicyAction::OnlyFrom,
        from: peers(&["web", "network=back", "192.0.2.0/24", "2001:db8::/32", "outside"]),
        to: peers(&["db"]),
        ports: vec!["5432/tcp".parse().unwrap(), "udp".parse().unwrap(), "icmp".parse().unwrap()],
        priority: 0,
    };
    Policy { id: PolicyId::from_bytes([8; 10]), spec, created: TIME, revision: 2 }
}

fn vip() -> Vip {
    let holder = VipHolder { service: task().service, network: network().id, slot: 2 };
    Vip { address: [10, 9, 0, 2].into(), holder, released: Some(TIME) }
}

fn task() -> Task {
    Task {
        id: TaskId::from_bytes([6; 10]),
        service: ServiceId::from_bytes([4; 10]),
        slot: 1,
        template: 1,
        run: 4,
        node: Some(node(3)),
        address: Some([10, 128, 0, 2].into()),
        desired: Desired::Running,
        status: TaskStatus::new(TaskState::Assigned, TIME),
        created: TIME,
        devices: devices(),
        origin: Some(Origin { cause: Cause::Drain, revision: 3 }),
        revision: 3,
    }
}

/// One of each kind.
fn mutations() -> Vec<Mutation> {
    let (id, service, node) = (task().id, task().service, node(3));
    vec![
        Mutation::SetCluster(cluster()),
        Mutation::CreateNode(member()),
        Mutation::DescribeNode { id: node, description: member().description },
        Mutation::SetNodeStatus { id: node, status: NodeStatus::Down },
        Mutation::SetAvailability {
            id: node,
            availability: Availability::Drain,
            deadline_ms: Some(5),
        },
        Mutation::GrantBlock { id: node, block: cluster().pool },
        Mutation::SetRole { id: node, manager: true, worker: false },
        Mutation::SetLabels { id: node, labels: member().labels },
        Mutation::SetCertificate {
            id: node,
            key_hash: [1; 32],
            not_after: TIME,
            issuer_hash: [2; 32],
        },
        Mutation::SetForgotten { id: node, forgotten: FORGOTTEN },
        Mutation::SetResources {
            id: node,
            generic: member().generic,
            system_reserved: member().system_reserved,
            defaults: member().defaults,
        },
        Mutation::SetTaints { id: node, taints: member().taints },
        Mutation::SetRelays { id: node, relays: member().relays },
        Mutation::RemoveNode { id: node, keep_until: TIME, force: true },
        Mutation::PutOperator(operator()),
        Mutation::RemoveOperator { name: operator().name },
        Mutation::Restored { epoch: 3, revision_at_least: 900 },
        Mutation::CreateNetwork { id: network().id, spec: network().spec },
        Mutation::RemoveNetwork { id: network().id },
        Mutation::CreatePolicy { id: policy().id, spec: policy().spec },
        Mutation::BeginRun { id: service, scheduled: Some(TIME), given: given() },
        Mutation::SetHook { id: service, hook: Some(Hook::After) },
        Mutation::SetHook { id: service, hook: None },
        Mutation::EndRun {
            id: service,
            run: 2,
            state: RunState::Failed,
            message: "exit code 3".into(),
            completed: 1,
            total: 2,
        },
        Mutation::PassSchedule { id: service, until: TIME, missed: 3, message: "late".into() },
        Mutation::Suspend { id: service, suspended: true },
        Mutation::RemovePolicy { id: policy().id },
        Mutation::GrantVip { holder: vip().holder, address: vip().address },
        Mutation::ReleaseVip { address: vip().address },
        Mutation::CreateService { id: service, spec: spec() },
        Mutation::UpdateService { id: service, spec: spec() },
        Mutation::RollBackService { id: service, to: 3, why: "web.1 is failed".into() },
        Mutation::SetUpdate { id: service, phase: UpdatePhase::Paused, message: "no".into() },
        Mutation::RemoveService { id: service },
        Mutation::DropService { id: service },
        Mutation::CreateTask(task()),
        Mutation::PlaceTask { id, node, address: task().address, devices: devices() },
        Mutation::SetDesired { id, desired: Desired::Remove },
        Mutation::ExplainTask { id, error: "full".into() },
        Mutation::ReportTask { id, node, status: task().status },
        Mutation::DropTask { id },
        Mutation::PreemptTask { id, by: service, slot: 2 },
        Mutation::ControlTask { id, control: TaskControl::Restart },
        Mutation::ControlTask { id, control: TaskControl::Signal(10) },
    ]
}

#[track_caller]
fn survives(given: &Transaction) {
    let payload = encode_entry(TIME, vec![transaction(given)]);
    let (time, found) = decode_entry(&payload).unwrap();
    assert_eq!((time, found.as_slice()), (TIME, std::slice::from_ref(given)));
}

#[test]
fn every_mutation_survives() {
    for mutation in mutations() {
        survives(&Transaction { mutations: vec![mutation], ..Transaction::default() });
    }
    let keys = [
        Key::Cluster,
        Key::Node(node(3)),
        Key::Service(task().service),
        Key::Task(task().id),
        Key::Operator(operator().name),
        Key::Network(network().id),
        Key::Policy(policy().id),
    ];
    survives(&Transaction {
        request: Some(Request { principal: "socket:0".into(), id: 1 << 100, hash: 2 }),
        expects: keys.map(|key| Expect { key, revision: 5 }).into(),
        mutations: mutations(),
        principal: Some("operator:anna".into()),
    });
}

#[test]
fn every_object_survives() {
    let objects = [
        Object::Node(member()),
        Object::Template { service: task().service, number: 2, template: Arc::new(spec().task) },
        Object::Task(task()),
        Object::Request {
            request: Request { principal: "a".into(), id: 1, hash: 2 },
            revision: 3,
            time: TIME,
        },
        Object::Tombstone(Tombstone { node: node(3), key_hash: [1; 32], keep_until: TIME }),
        Object::Operator(operator()),
        Object::Network(network()),
        Object::Policy(policy()),
        Object::Revision {
            service: task().service,
            revision: Arc::new(Revision {
                number: 4,
                spec: spec(),
                time: TIME,
                change: Change {
                    by: Some("operator:anna".into()),
                    kind: ChangeKind::Rollback { to: 2 },
                },
                good: true,
            }),
        },
        Object::Given { node: member().id, address: [10, 128, 0, 2].into() },
        Object::Vip(vip()),
        Object::Vip(Vip { released: None, ..vip() }),
        Object::Audit(Arc::new(AuditRecord {
            revision: 3,
            time: TIME,
            principal: "operator:anna".into(),
            action: "node.update".into(),
            object: "c".into(),
            detail: "availability=drain".into(),
        })),
    ];
    for given in objects {
        let bytes = object(&given).encode_to_vec();
        let wire = v1::SnapshotObject::decode(bytes.as_slice()).unwrap();
        assert_eq!(object_from(wire).unwrap(), given);
    }
    let given = Head { revision: 4, time: TIME, cluster: Some(cluster()) };
    assert_eq!(head_from(head(&given, 1, 2)).unwrap(), given);
}

/// Bytes of the first version: a cluster and its first node, which is a manager.
const ENTRY_OF_VERSION_1: &str = "010801123a1a1b0a190a0a0101010101010101010110051a070880808054100a20181a1b12190a0a\
    0202020202020202020212030a01611801200128013002";

#[test]
fn entries_of_the_first_version_are_read() {
    let bytes: Vec<u8> = (0..ENTRY_OF_VERSION_1.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&ENTRY_OF_VERSION_1[at..at + 2], 16).unwrap())
        .collect();
    let (_, found) = decode_entry(&bytes).unwrap();
    let node = Node {
        manager: true,
        ..Node::new(node(2), Description { hostname: "a".into(), ..Description::default() })
    };
    let cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
    let expected = Transaction {
        mutations: vec![Mutation::SetCluster(cluster), Mutation::CreateNode(node)],
        ..Transaction::default()
    };
    assert_eq!(found, [expected]);
}

#[test]
fn what_is_not_understood_is_an_error() {
    let check = |wire: v1::Mutation, expected: &str| {
        let wire = v1::Transaction { mutations: vec![wire], ..Default::default() };
        let error = decode_entry(&encode_entry(TIME, vec![wire])).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    use v1::mutation::{Kind, SetCertificate};
    let kind = |kind| v1::Mutation { kind: Some(kind) };
    check(v1::Mutation::default(), "decode mutation: it is empty, or of a newer version");
    check(
        kind(Kind::RemoveOperator("A".into())),
        "decode mutation: operator: operator \"A\" has 'A' at position 1; allowed are a-z, 0-9, \
         '-', '_' and '.', the first a letter or digit",
    );
    let certificate = SetCertificate { id: vec![1; 10], key_hash: vec![1], ..Default::default() };
    check(
        kind(Kind::SetCertificate(certificate)),
        "decode mutation: key_hash: a hash has 32 bytes, this has 1",
    );
}

proptest! {
    /// A damaged entry that got past the seal is refused, and nothing worse.
    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        drop(decode_entry(&bytes));
    }

    #[test]
    fn labels_survive(labels in prop::collection::btree_map("[a-z]{1,8}", "[a-z ]{0,8}", 0..9)) {
        let labels: BTreeMap<String, String> = labels;
        let mutation = Mutation::SetLabels { id: node(1), labels };
        survives(&Transaction { mutations: vec![mutation], ..Transaction::default() });
    }
}
