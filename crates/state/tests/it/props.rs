//! Laws that hold whatever is applied.

use std::net::Ipv4Addr;

use proptest::prelude::*;
use warren_model::Time;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::defaults::Defaults;
use warren_model::health::{Health, HealthState};
use warren_model::id::ClusterId;
use warren_model::network::{NetworkSpec, Vip, VipHolder};
use warren_model::node::{
    Availability, Description, Forgotten, ForgottenChoice, Node, NodeStatus, Relay,
};
use warren_model::operator::{Operator, OperatorRole};
use warren_model::resources::Resources;
use warren_model::task::{Desired, Task, TaskExit, TaskState, TaskStatus};
use warren_state::change::{Expect, Key, Mutation, Outcome, Request, Transaction};
use warren_state::{Object, State};

use crate::script::{network, node, policy, policy_spec, service, spec, task};

// Few objects, so that random transactions meet.
const NODES: [&str; 3] = ["a", "b", "c"];
const SERVICES: [&str; 3] = ["web", "api", "db"];
const NETWORKS: [&str; 3] = ["default", "back", "front"];
const TASKS: [&str; 6] = ["1", "2", "3", "4", "5", "6"];

fn any_task_state() -> impl Strategy<Value = TaskState> {
    (0..TaskState::ALL.len()).prop_map(|at| TaskState::ALL[at])
}

fn any_status() -> impl Strategy<Value = TaskStatus> {
    let error = prop_oneof![Just(None), Just(Some("it broke".into()))];
    (any_task_state(), 0..3u32, error, 0..20u64, any::<bool>()).prop_map(
        |(state, attempt, error, since, ended)| TaskStatus {
            state,
            since: Time(since),
            attempt,
            pid: attempt * 7,
            started: ended.then_some(Time(since)),
            exit: ended.then_some(TaskExit { code: 137, oom_killed: since % 2 == 0 }),
            error,
            health: (attempt > 0).then(|| Health {
                state: HealthState::ALL[usize::from(ended) + usize::from(since % 2 == 0)],
                since: Time(since + 1),
            }),
            companions: None,
            paused: since % 5 == 0,
        },
    )
}

fn block(n: u8) -> Subnet {
    Subnet { address: Ipv4Addr::new(10, 128, n, 0), prefix: 24 }
}

fn any_address() -> impl Strategy<Value = Option<Ipv4Addr>> {
    prop_oneof![
        Just(None),
        (0..4u8, 2..4u8).prop_map(|(n, last)| Some(Ipv4Addr::new(10, 128, n, last)))
    ]
}

fn any_node() -> impl Strategy<Value = Mutation> {
    let id = (0..NODES.len()).prop_map(|at| node(NODES[at]));
    let create = (0..NODES.len(), 0..4u8).prop_map(|(at, n)| {
        Mutation::CreateNode(Node {
            status: NodeStatus::Ready,
            blocks: vec![block(n)],
            revision: 77,
            ..Node::new(
                node(NODES[at]),
                Description { hostname: NODES[at].into(), ..Description::default() },
            )
        })
    });
    let status = prop_oneof![Just(NodeStatus::Ready), Just(NodeStatus::Down)];
    let availability = prop_oneof![Just(Availability::Active), Just(Availability::Drain)];
    prop_oneof![
        4 => create,
        1 => (id.clone(), status).prop_map(|(id, status)| Mutation::SetNodeStatus { id, status }),
        1 => (id.clone(), availability)
            .prop_map(|(id, availability)| Mutation::SetAvailability {
                id,
                availability,
                deadline_ms: None,
            }),
        1 => (id.clone(), 0..6u8).prop_map(|(id, n)| Mutation::GrantBlock { id, block: block(n) }),
        2 => (id.clone(), any::<(bool, bool)>())
            .prop_map(|(id, (manager, worker))| Mutation::SetRole { id, manager, worker }),
        1 => (id.clone(), 0..3u8).prop_map(|(id, n)| {
            let labels = [("rack".to_owned(), n.to_string())].into();
            Mutation::SetLabels { id, labels }
        }),
        1 => (id.clone(), 0..4u8, 0..3u8).prop_map(|(id, key, issuer)| Mutation::SetCertificate {
            id,
            key_hash: [key; 32],
            not_after: Time(u64::from(key)),
            issuer_hash: [issuer; 32],
        }),
        1 => (id.clone(), 0..3u64, any::<bool>()).prop_map(|(id, epoch, keep)| {
            let choice = if keep { ForgottenChoice::Keep } else { ForgottenChoice::Drop };
            Mutation::SetForgotten { id, forgotten: Forgotten { epoch, choice } }
        }),
        1 => (id.clone(), 0..3u64).prop_map(|(id, gpus)| Mutation::SetResources {
            id,
            generic: [("gpu".to_owned(), gpus)].into(),
            system_reserved: Resources { memory_bytes: gpus, ..Resources::default() },
            defaults: Defaults { reserve_cpu_millis: gpus, ..Defaults::default() },
        }),
        1 => (id.clone(), 0..3usize).prop_map(|(id, count)| {
            let taint = "gpu:no-schedule".parse().unwrap();
            Mutation::SetTaints { id, taints: vec![taint; count] }
        }),
        1 => (id.clone(), id.clone(), id.clone(), 0..17u8).prop_map(|(id, peer, via, slot)| {
            Mutation::SetRelays { id, relays: vec![Relay { peer, via, slot }] }
        }),
        2 => (id, 0..60u64, any::<bool>()).prop_map(|(id, until, force)| {
            Mutation::RemoveNode { id, keep_until: Time(until), force }
        }),
        1 => (28..32u8).prop_map(|block_prefix| {
            let cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
            Mutation::SetCluster(Cluster { block_prefix, ..cluster })
        }),
    ]
}

fn any_operator() -> impl Strategy<Value = Mutation> {
    let name = (0..3usize).prop_map(|at| ["anna", "ben", "ci"][at].parse().unwrap());
    let hash = prop::option::of((0..3u8).prop_map(|n| [n; 32]));
    let put = (name.clone(), 0..3usize, hash.clone(), hash, prop::option::of(0..9u64)).prop_map(
        |(name, role, token_hash, key_hash, expires)| {
            Mutation::PutOperator(Operator {
                name,
                role: OperatorRole::ALL[role],
                token_hash,
                key_hash,
                expires: expires.map(Time),
                created: Time(3),
                revision: 5,
            })
        },
    );
    prop_oneof![
        3 => put,
        1 => name.prop_map(|name| Mutation::RemoveOperator { name }),
    ]
}

fn any_service() -> impl Strategy<Value = Mutation> {
    let which = 0..SERVICES.len();
    let spec = |(at, port, image, on, endpoint): (usize, u16, u8, String, usize)| {
        let reserve = ["replicas=2", "reserve=5", "reserve=gpu:1"][usize::from(port % 3)];
        let (port, image) = (port.to_string(), format!("image={image}"));
        let name = SERVICES[at];
        let endpoint = ["replicas=2", "dnsrr", "slots"][endpoint];
        (service(name), spec(name, &[&port, &image, &on, endpoint, reserve]))
    };
    let on = (0..NETWORKS.len(), 0..6u8, any::<bool>()).prop_map(|(at, last, asked)| {
        let address = if asked { format!(":10.192.0.{last}") } else { String::new() };
        format!("on={}{address}", NETWORKS[at])
    });
    let specs = (which.clone(), 80..84u16, 0..3u8, on, 0..3usize).prop_map(spec);
    let id = which.prop_map(|at| service(SERVICES[at]));
    prop_oneof![
        3 => specs.clone().prop_map(|(id, spec)| Mutation::CreateService { id, spec }),
        2 => specs.prop_map(|(id, spec)| Mutation::UpdateService { id, spec }),
        1 => id.clone().prop_map(|id| Mutation::RemoveService { id }),
        1 => id.prop_map(|id| Mutation::DropService { id }),
    ]
}

fn any_network() -> impl Strategy<Value = Mutation> {
    let which = (0..NETWORKS.len()).prop_map(|at| network(NETWORKS[at]));
    let create = (0..NETWORKS.len(), any::<bool>()).prop_map(|(at, own)| {
        let name = NETWORKS[at];
        let subnet = own.then(|| "10.192.0.0/29".parse().unwrap());
        let spec = NetworkSpec { subnet, ..NetworkSpec::new(name.parse().unwrap()) };
        Mutation::CreateNetwork { id: network(name), spec }
    });
    let address = (0..12u8).prop_map(|last| Ipv4Addr::new(10, 192, 0, last));
    prop_oneof![
        2 => create,
        1 => which.clone().prop_map(|id| Mutation::RemoveNetwork { id }),
        4 => (which, 0..SERVICES.len(), 0..3u32, address.clone()).prop_map(
            |(network, at, slot, address)| Mutation::GrantVip {
                holder: VipHolder { service: service(SERVICES[at]), network, slot },
                address,
            }
        ),
        2 => address.prop_map(|address| Mutation::ReleaseVip { address }),
    ]
}

fn any_task() -> impl Strategy<Value = Mutation> {
    let id = (0..TASKS.len()).prop_map(|at| task(TASKS[at]));
    let on = (0..NODES.len()).prop_map(|at| node(NODES[at]));
    let create = (
        (id.clone(), 0..SERVICES.len(), 1..4u32, 1..4u32),
        (prop_oneof![Just(None), on.clone().prop_map(Some)], any_address(), any::<bool>()),
    )
        .prop_map(|((id, at, slot, template), (node, address, odd))| {
            let fits = if node.is_some() { TaskState::Assigned } else { TaskState::Pending };
            let state = if odd && slot == 3 { TaskState::Running } else { fits };
            Mutation::CreateTask(Task {
                id,
                service: service(SERVICES[at]),
                slot,
                run: 0,
                template,
                node,
                address: address.filter(|_| node.is_some()),
                desired: Desired::Running,
                status: TaskStatus::new(state, Time(3)),
                created: Time(3),
                devices: Default::default(),
                origin: None,
                revision: 5,
            })
        });
    let desired =
        prop_oneof![Just(Desired::Running), Just(Desired::Shutdown), Just(Desired::Remove)];
    prop_oneof![
        5 => create,
        2 => (id.clone(), on.clone(), any_address())
            .prop_map(|(id, node, address)| Mutation::PlaceTask {
                id,
                node,
                address,
                devices: Default::default(),
            }),
        2 => (id.clone(), desired).prop_map(|(id, desired)| Mutation::SetDesired { id, desired }),
        1 => id.clone().prop_map(|id| Mutation::ExplainTask { id, error: "full".into() }),
        6 => (id.clone(), on, any_status())
            .prop_map(|(id, node, status)| Mutation::ReportTask { id, node, status }),
        1 => id.prop_map(|id| Mutation::DropTask { id }),
    ]
}

fn any_policy() -> impl Strategy<Value = Mutation> {
    let names = ["p", "q"];
    let to = prop::sample::select(vec!["to=web", "to=network=back", "from=api", "from=outside"]);
    let action = prop::sample::select(vec!["allow", "deny"]);
    prop_oneof![
        2 => (0..names.len(), action, to).prop_map(move |(at, action, to)| {
            let spec = policy_spec(names[at], action, &[to]);
            Mutation::CreatePolicy { id: policy(names[at]), spec }
        }),
        1 => (0..names.len()).prop_map(move |at| Mutation::RemovePolicy { id: policy(names[at]) }),
    ]
}

fn any_transaction() -> impl Strategy<Value = Transaction> {
    let mutation = prop_oneof![
        3 => any_node(),
        3 => any_service(),
        6 => any_task(),
        1 => any_operator(),
        3 => any_network(),
        2 => any_policy(),
    ];
    let request = (0..4u128, 0..2u64).prop_map(|(id, hash)| Request {
        principal: "socket:0".into(),
        id,
        hash,
    });
    let expect = (0..SERVICES.len(), 0..4u64)
        .prop_map(|(at, revision)| Expect { key: Key::Service(service(SERVICES[at])), revision });
    (
        prop::option::weighted(0.2, request),
        prop::collection::vec(expect, 0..=1),
        prop::collection::vec(mutation, 0..4),
        prop::option::of(Just("operator:anna".to_owned())),
    )
        .prop_map(|(request, mut expects, mutations, principal)| {
            // Most random expectations are wrong; keep a few.
            expects.retain(|expect| expect.revision == 0);
            Transaction { request, expects, mutations, principal }
        })
}

fn any_entries() -> impl Strategy<Value = Vec<(Time, Vec<Transaction>)>> {
    let time = prop_oneof![9 => 0..50u64, 1 => Just(4_000_000)].prop_map(Time);
    let entry = (time, prop::collection::vec(any_transaction(), 1..4));
    // A world first, so that there is something to meet.
    let world = Transaction {
        mutations: vec![
            Mutation::SetCluster(Cluster::new(ClusterId::from_bytes([1; 10]))),
            Mutation::CreateNetwork {
                id: network("back"),
                spec: NetworkSpec::new("back".parse().unwrap()),
            },
            Mutation::CreateService { id: service("web"), spec: spec("web", &["80", "on=back"]) },
            Mutation::CreateNode(Node {
                manager: true,
                status: NodeStatus::Ready,
                blocks: vec![block(0)],
                ..Node::new(node("a"), Description::default())
            }),
        ],
        ..Transaction::default()
    };
    prop::collection::vec(entry, 0..24).prop_map(move |mut entries| {
        entries.insert(0, (Time(1), vec![world.clone()]));
        entries
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// After every entry: invariants hold, revisions and events go up by one a transaction, and a
    /// refused transaction left nothing behind.
    #[test]
    fn entries_keep_the_invariants(entries in any_entries()) {
        let mut state = State::default();
        for (time, transactions) in &entries {
            let before = state.clone();
            let mut events = vec![];
            let outcomes = state.apply(*time, transactions, &mut events);
            prop_assert_eq!(outcomes.len(), transactions.len());
            prop_assert_eq!(state.check(), Vec::<String>::new());
            prop_assert_eq!(state.time(), before.time().max(*time));
            // What a virtual IP meant it means no other thing for a while.
            for vip in before.vips() {
                let until = match vip.released {
                    Some(released) => released.plus_ms(Vip::QUARANTINE_MS),
                    None => state.time().plus_ms(1),
                };
                let kept = state.vip(vip.address).is_some_and(|now| now.holder == vip.holder);
                prop_assert!(kept || state.time() >= until, "{vip:?}");
            }
            // Numbers are never given twice, not even to the same node.
            for node in state.nodes().filter(|node| node.manager) {
                let known = before.cluster().map_or(0, |cluster| cluster.next_number);
                let same = before.node(node.id).is_some_and(|b| b.number == node.number);
                prop_assert!(same || node.number.is_none_or(|number| number >= known));
            }
            let mut expected = before.revision();
            for outcome in &outcomes {
                match outcome {
                    Outcome::Applied { revision } => {
                        expected += 1;
                        prop_assert_eq!(*revision, expected);
                    }
                    Outcome::Repeated { revision } => prop_assert!(*revision <= expected),
                    Outcome::Rejected(_) => {}
                }
            }
            prop_assert_eq!(state.revision(), expected);
            let revisions = events.iter().map(|event| event.revision);
            prop_assert!(revisions.clone().is_sorted());
            prop_assert!(revisions.clone().all(|r| r > before.revision() && r <= expected));
            if expected == before.revision() {
                prop_assert!(events.is_empty());
                // But for what time alone ends.
                let tables = |state: &State| {
                    let lasting = |object: &Object| match object {
                        Object::Request { .. } | Object::Tombstone(_) => false,
                        Object::Vip(vip) => vip.released.is_none(),
                        _ => true,
                    };
                    state.export().filter(lasting).collect::<Vec<_>>()
                };
                prop_assert_eq!(tables(&state), tables(&before));
            }
        }
    }

    /// Atomic: only what was applied matters; dropping the refused gives the same content.
    #[test]
    fn refused_transactions_might_as_well_not_have_been(entries in any_entries()) {
        let (mut all, mut applied) = (State::default(), State::default());
        for (time, transactions) in &entries {
            let outcomes = all.apply(*time, transactions, &mut vec![]);
            let kept: Vec<Transaction> = transactions.iter().zip(&outcomes)
                .filter(|(_, outcome)| matches!(outcome, Outcome::Applied { .. }))
                .map(|(transaction, _)| transaction.clone()).collect();
            applied.apply(*time, &kept, &mut vec![]);
            prop_assert_eq!(all.checksum(), applied.checksum());
        }
        prop_assert!(all.export().eq(applied.export()));
    }

    /// A replica restored from a snapshot at any point goes on like one that applied everything.
    #[test]
    fn snapshots_change_nothing(entries in any_entries(), at in any::<prop::sample::Index>()) {
        let at = at.index(entries.len());
        let (mut whole, mut restored) = (State::default(), State::default());
        for (n, (time, transactions)) in entries.iter().enumerate() {
            if n == at {
                let objects: Vec<_> = restored.export().collect();
                prop_assert_eq!(objects.len(), restored.object_count());
                let imported = State::import(restored.head(), objects).unwrap();
                prop_assert_eq!(imported.checksum(), restored.checksum());
                restored = imported;
            }
            let (mut told, mut retold) = (vec![], vec![]);
            let outcomes = whole.apply(*time, transactions, &mut told);
            prop_assert_eq!(restored.apply(*time, transactions, &mut retold), outcomes);
            prop_assert_eq!(told, retold);
        }
        prop_assert!(whole.export().eq(restored.export()));
        prop_assert_eq!(whole.checksum(), restored.checksum());
    }
}
