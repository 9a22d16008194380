//! Round trips of whatever the model can hold, and refusals of what it cannot.

use proptest::prelude::*;
use prost::Message;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::event::{Action, Event, Kind};
use warren_model::node::{Availability, Description, Node, NodeStatus};
use warren_model::service::{
    Limits, LogOptions, Mode, PortSpec, Protocol, PublishMode, RestartCondition, RestartPolicy,
    Service, ServiceSpec, TaskTemplate, UpdateOrder, UpdatePolicy,
};
use warren_model::task::{Desired, Task, TaskExit, TaskState, TaskStatus};
use warren_model::{ClusterId, NodeId, ServiceId, TaskId, Time};

use super::Error;
use crate::v1;

/// Over the bytes, as it travels: nothing may be lost on the way.
#[track_caller]
fn round_trip<M, W>(object: &M)
where
    M: TryFrom<W, Error = Error> + PartialEq + std::fmt::Debug,
    W: Message + Default + for<'a> From<&'a M>,
{
    let bytes = W::from(object).encode_to_vec();
    let wire = W::decode(bytes.as_slice()).unwrap();
    assert_eq!(M::try_from(wire).as_ref(), Ok(object));
}

fn text() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9=/ é]{0,12}"
}

fn texts() -> impl Strategy<Value = Vec<String>> {
    prop::collection::vec(text(), 0..4)
}

fn labels() -> impl Strategy<Value = std::collections::BTreeMap<String, String>> {
    prop::collection::btree_map(text(), text(), 0..4)
}

fn subnet() -> impl Strategy<Value = Subnet> {
    (any::<u32>(), 0..=32u8).prop_map(|(a, prefix)| Subnet { address: a.into(), prefix })
}

fn ports() -> impl Strategy<Value = Vec<PortSpec>> {
    let protocol = prop_oneof![Just(Protocol::Tcp), Just(Protocol::Udp)];
    let mode = prop_oneof![Just(PublishMode::Ingress), Just(PublishMode::Host)];
    let port = (protocol, any::<u32>(), any::<u16>(), any::<u16>(), mode).prop_map(
        |(protocol, bind, published, target, mode)| PortSpec {
            protocol,
            bind: bind.into(),
            published,
            target,
            mode,
        },
    );
    prop::collection::vec(port, 0..4)
}

fn restart() -> impl Strategy<Value = RestartPolicy> {
    let condition = prop_oneof![
        Just(RestartCondition::None),
        Just(RestartCondition::OnFailure),
        Just(RestartCondition::Any)
    ];
    (condition, any::<u64>(), any::<Option<u32>>(), any::<u64>()).prop_map(
        |(condition, delay_ms, max_attempts, window_ms)| RestartPolicy {
            condition,
            delay_ms,
            max_attempts,
            window_ms,
        },
    )
}

fn template() -> impl Strategy<Value = TaskTemplate> {
    let run = (text(), prop::option::of(texts()), texts(), texts(), labels());
    let places = (
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(text()),
        prop::option::of(text()),
    );
    let rights = (any::<Option<u64>>(), any::<bool>(), texts(), texts());
    let limits = (any::<Option<u64>>(), any::<Option<u32>>(), any::<Option<u32>>());
    let rest = (restart(), any::<u64>(), any::<u32>(), any::<u32>());
    (run, places, rights, limits, rest).prop_map(|(run, places, rights, limits, rest)| {
        TaskTemplate {
            image: run.0,
            entrypoint: run.1,
            command: run.2,
            env: run.3,
            workdir: places.0,
            user: places.1,
            hostname: places.2,
            container_labels: run.4,
            stop_signal: places.3,
            stop_grace_ms: rights.0,
            read_only: rights.1,
            cap_add: rights.2,
            cap_drop: rights.3,
            limits: Limits { memory_bytes: limits.0, cpu_millis: limits.1, pids: limits.2 },
            restart: rest.0,
            log: LogOptions { max_bytes: rest.1, max_files: rest.2 },
            force: rest.3,
        }
    })
}

fn spec() -> impl Strategy<Value = ServiceSpec> {
    let mode = prop_oneof![
        any::<u32>().prop_map(|replicas| Mode::Replicated { replicas }),
        Just(Mode::Global)
    ];
    let order = prop_oneof![Just(UpdateOrder::StartFirst), Just(UpdateOrder::StopFirst)];
    let update = (any::<u32>(), any::<u64>(), order)
        .prop_map(|(parallelism, delay_ms, order)| UpdatePolicy { parallelism, delay_ms, order });
    ("[a-z][a-z0-9_]{0,8}[a-z0-9]", labels(), mode, ports(), update, template()).prop_map(
        |(name, labels, mode, ports, update, task)| ServiceSpec {
            name: name.parse().unwrap(),
            labels,
            mode,
            ports,
            update,
            task,
        },
    )
}

fn status() -> impl Strategy<Value = TaskStatus> {
    let exit = prop::option::of(any::<(i32, bool)>());
    (0..TaskState::ALL.len(), any::<(u64, u32, u32, Option<u64>)>(), exit, prop::option::of(text()))
        .prop_map(|(state, (since, attempt, pid, started), exit, error)| TaskStatus {
            state: TaskState::ALL[state],
            since: Time(since),
            attempt,
            pid,
            started: started.map(Time),
            exit: exit.map(|(code, oom_killed)| TaskExit { code, oom_killed }),
            error: error.map(Into::into),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn services_survive(spec in spec(), id: [u8; 10], numbers: (u32, bool, u64, u64, u64)) {
        let (template, removing, created, updated, revision) = numbers;
        round_trip::<_, v1::ServiceSpec>(&spec);
        round_trip::<_, v1::Service>(&Service {
            id: ServiceId::from_bytes(id),
            spec,
            template,
            removing,
            created: Time(created),
            updated: Time(updated),
            revision,
        });
    }

    #[test]
    fn tasks_survive(
        status in status(),
        ids: ([u8; 10], [u8; 10], Option<[u8; 10]>),
        numbers: (u32, u32, Option<u32>, u64, u64),
        desired in 0..3usize,
    ) {
        let (slot, template, address, created, revision) = numbers;
        round_trip::<_, v1::Task>(&Task {
            id: TaskId::from_bytes(ids.0),
            service: ServiceId::from_bytes(ids.1),
            slot,
            template,
            node: ids.2.map(NodeId::from_bytes),
            address: address.map(Into::into),
            desired: [Desired::Running, Desired::Shutdown, Desired::Remove][desired],
            status,
            created: Time(created),
            revision,
        });
    }

    #[test]
    fn clusters_and_nodes_survive(
        id: [u8; 10],
        pool in subnet(),
        blocks in prop::collection::vec(subnet(), 0..4),
        labels in labels(),
        words in (text(), text(), text(), text(), text()),
        numbers: (u32, u64, u64, bool, bool, bool),
        availability in 0..3usize,
    ) {
        let id_of_cluster = ClusterId::from_bytes(id);
        round_trip::<_, v1::Cluster>(&Cluster {
            id: id_of_cluster,
            history_limit: numbers.0,
            pool,
            block_prefix: pool.prefix,
        });
        round_trip::<_, v1::Node>(&Node {
            id: NodeId::from_bytes(id),
            description: Description {
                hostname: words.0,
                address: words.1,
                version: words.2,
                cpus: numbers.0,
                memory_bytes: numbers.1,
                architecture: words.3,
                kernel: words.4,
                labels,
            },
            manager: numbers.3,
            worker: numbers.4,
            availability: [Availability::Active, Availability::Pause, Availability::Drain]
                [availability],
            status: if numbers.5 { NodeStatus::Ready } else { NodeStatus::Down },
            blocks,
            revision: numbers.2,
        });
    }
}

#[test]
fn events_survive() {
    for kind in [Kind::Cluster, Kind::Node, Kind::Service, Kind::Task] {
        for action in [Action::Create, Action::Update, Action::Remove] {
            round_trip::<_, v1::Event>(&Event {
                revision: 7,
                time: Time(8),
                kind,
                action,
                id: "0".into(),
                name: "web.1".into(),
                message: "m".into(),
            });
        }
    }
}

/// The smallest message that is a spec.
fn small() -> v1::ServiceSpec {
    let mode = v1::mode::Kind::Replicated(v1::mode::Replicated { replicas: 2 });
    v1::ServiceSpec {
        name: "web".into(),
        mode: Some(v1::Mode { kind: Some(mode) }),
        task: Some(v1::TaskTemplate { image: "nginx".into(), ..Default::default() }),
        ..Default::default()
    }
}

#[test]
fn what_is_missing_is_the_default() {
    let spec = ServiceSpec::try_from(small()).unwrap();
    assert_eq!(spec.update, UpdatePolicy::default());
    assert_eq!(spec.task, TaskTemplate { image: "nginx".into(), ..TaskTemplate::default() });
    assert_eq!(spec.validate(), Ok(()));
}

#[track_caller]
fn refuses(edit: impl FnOnce(&mut v1::ServiceSpec), expected: &str) {
    let mut wire = small();
    edit(&mut wire);
    assert_eq!(ServiceSpec::try_from(wire).unwrap_err().to_string(), expected);
}

#[test]
fn refusals_name_the_field() {
    let tcp = v1::PortSpec { protocol: 1, published: 80, target: 80, mode: 1, bind: 0 };
    refuses(|s| s.name.clear(), "name: a name cannot be empty");
    refuses(|s| s.mode = None, "mode: is missing");
    refuses(|s| s.mode = Some(v1::Mode { kind: None }), "mode.kind: is missing");
    refuses(|s| s.task = None, "task: is missing");
    refuses(
        |s| s.ports = vec![tcp, v1::PortSpec { target: 70_000, ..tcp }],
        "ports[1].target: 70000 is more than 65535",
    );
    refuses(
        |s| s.ports = vec![v1::PortSpec { protocol: 0, ..tcp }],
        "ports[0].protocol: is missing",
    );
    refuses(
        |s| s.ports = vec![v1::PortSpec { mode: 9, ..tcp }],
        "ports[0].mode: 9 is not a known value",
    );
    refuses(|s| s.update = Some(v1::UpdatePolicy::default()), "update.order: is missing");
    let restart = Some(v1::RestartPolicy::default());
    refuses(|s| s.task.as_mut().unwrap().restart = restart, "task.restart.condition: is missing");
}

#[test]
fn ids_and_prefixes_are_checked() {
    let short = super::task_id("task", &[1; 9]).unwrap_err();
    assert_eq!(short.to_string(), "task: an id has 10 bytes, this has 9");
    let wide = Subnet::try_from(v1::Subnet { address: 0, prefix: 33 }).unwrap_err();
    assert_eq!(wide.to_string(), "prefix: 33 is more than 32");
}
