//! What the pretended node knows.

use warren_proto::v1;

use super::fake::NOW;

/// A service with a port and three replicas, two of them running.
pub(crate) fn web() -> v1::Service {
    let spec = v1::ServiceSpec {
        name: "web".into(),
        labels: [("team".to_owned(), "shop".to_owned())].into(),
        mode: Some(v1::Mode {
            kind: Some(v1::mode::Kind::Replicated(v1::mode::Replicated { replicas: 3 })),
        }),
        ports: vec![v1::PortSpec {
            protocol: v1::Protocol::Tcp.into(),
            bind: 0,
            published: 8080,
            target: 80,
            mode: v1::PublishMode::Ingress.into(),
            name: String::new(),
        }],
        update: Some(v1::UpdatePolicy {
            parallelism: 1,
            delay_ms: 0,
            order: v1::UpdateOrder::StartFirst.into(),
            ..v1::UpdatePolicy::default()
        }),
        task: Some(v1::TaskTemplate {
            image: "nginx:1.27".into(),
            env: vec!["LOG=info".into()],
            restart: Some(v1::RestartPolicy {
                condition: v1::RestartCondition::Any.into(),
                delay_ms: 100,
                max_attempts: None,
                window_ms: 10_000,
            }),
            log: Some(v1::LogOptions { max_bytes: 10 << 20, max_files: 3 }),
            limits: Some(v1::Limits {
                memory_bytes: Some(128 << 20),
                cpu_millis: Some(500),
                pids: None,
            }),
            ..v1::TaskTemplate::default()
        }),
        on_disconnect: None,
        networks: vec![],
        endpoint: None,
        placement: None,
        rollback: None,
        moving: None,
        job: None,
        hooks: None,
    };
    v1::Service {
        id: vec![3; 10],
        spec: Some(spec),
        template: 1,
        removing: false,
        created: NOW,
        updated: NOW,
        revision: 5,
        running: 2,
        desired: 3,
        update_state: "none".into(),
        completed: 0,
        addresses: vec![v1::ServiceAddress {
            network: "default".into(),
            slot: 0,
            address: 0x0ac0_0002,
            address_v6: [&[0xfd, 1, 1, 1, 1, 1, 0, 1][..], &[0; 4], &[10, 192, 0, 2]].concat(),
        }],
        number: 2,
        template_last: 1,
        change: None,
        update: None,
        update_message: String::new(),
        job: None,
    }
}

/// A task of `web`; `state` numbers as on the wire.
pub(crate) fn task(slot: u32, state: v1::TaskState, desired: v1::Desired) -> v1::Task {
    let mut id = vec![4; 10];
    id[9] = u8::try_from(slot).unwrap();
    id[8] = u8::try_from(i32::from(state)).unwrap();
    v1::Task {
        id,
        service: vec![3; 10],
        slot,
        template: 1,
        node: Some(vec![2; 10]),
        address: Some(0x0a80_0001 + slot),
        desired: desired.into(),
        status: Some(v1::TaskStatus {
            state: state.into(),
            since: NOW,
            attempt: 1,
            pid: 1000 + slot,
            started: Some(NOW),
            exit: None,
            error: None,
            health: None,
            companions: Vec::new(),
            paused: false,
        }),
        created: NOW,
        revision: 6,
        service_name: "web".into(),
        node_name: "alpha".into(),
        image: "nginx:1.27".into(),
        node_status: v1::NodeStatus::Ready.into(),
        health_implicit: false,
        origin: None,
        run: 0,
        devices: Vec::new(),
    }
}

/// A line of progress.
pub(crate) fn progress(running: u32, message: &str) -> v1::Progress {
    v1::Progress { running, desired: 3, message: message.into(), ..v1::Progress::default() }
}

/// A hybrid that leads and a worker that is away.
pub(crate) fn nodes() -> Vec<v1::Node> {
    let about = |hostname: &str, address: &str| v1::NodeDescription {
        hostname: hostname.into(),
        address: address.into(),
        version: "0.1.0".into(),
        cpus: 2,
        memory_bytes: 1 << 30,
        ..v1::NodeDescription::default()
    };
    let alpha = v1::Node {
        id: vec![2; 10],
        description: Some(about("alpha", "10.0.0.1:2377")),
        manager: true,
        worker: true,
        availability: v1::Availability::Active.into(),
        status: v1::NodeStatus::Ready.into(),
        leader: true,
        reachability: "voter".into(),
        number: Some(1),
        certificate_not_after: NOW + 1000,
        joined: NOW,
        ..v1::Node::default()
    };
    let beta = v1::Node {
        id: vec![5; 10],
        description: Some(about("beta", "10.0.0.2:2377")),
        worker: true,
        availability: v1::Availability::Drain.into(),
        status: v1::NodeStatus::Down.into(),
        labels: [("rack".to_owned(), "7".to_owned())].into(),
        ..v1::Node::default()
    };
    vec![alpha, beta]
}

pub(crate) fn settings() -> v1::ClusterState {
    v1::ClusterState {
        id: vec![1; 10],
        history_limit: 5,
        pool: Some(v1::Subnet { address: 0x0a80_0000, prefix: 10 }),
        block_prefix: 24,
        vip_pool: Some(v1::Subnet { address: 0x0ac0_0000, prefix: 14 }),
        prefix_v6: Some(v1::Subnet6 {
            address: [&[0xfd, 1, 1, 1, 1, 1][..], &[0; 10]].concat(),
            prefix: 48,
        }),
        overlay: v1::OverlayKind::Vxlan.into(),
        certificate_lifetime_ms: 7_776_000_000,
        authority: vec![0xab; 32],
        revision: 7,
        ..v1::ClusterState::default()
    }
}

pub(crate) fn token(wire: &v1::GetJoinTokenRequest) -> v1::JoinTokenText {
    v1::JoinTokenText {
        token: if wire.manager { "wrn1-m-x-y".into() } else { "wrn1-w-x-y".into() },
        expires: wire.expires_in_ms.map(|ms| NOW + ms),
        managers: vec!["10.0.0.1:2377".into(), "10.0.0.3:2377".into()],
    }
}

pub(crate) fn operators() -> v1::ListOperatorsResponse {
    let anna = v1::Operator {
        name: "anna".into(),
        role: v1::OperatorRole::Deploy.into(),
        expires: Some(NOW),
        created: NOW,
        ..v1::Operator::default()
    };
    v1::ListOperatorsResponse { operators: vec![anna] }
}

pub(crate) fn audit() -> v1::ListAuditResponse {
    let record = v1::AuditRecord {
        revision: 7,
        time: NOW,
        principal: "operator:anna".into(),
        action: "service.create".into(),
        object: "web".into(),
        detail: "replicas=3".into(),
    };
    v1::ListAuditResponse { records: vec![record] }
}

pub(crate) fn network() -> v1::Network {
    let web = v1::NetworkUser {
        service: vec![3; 10],
        name: "web".into(),
        address: Some(0x0ac0_0102),
        address_v6: [&[0xfd, 1, 1, 1, 1, 1, 0, 1][..], &[0; 4], &[10, 192, 1, 2]].concat(),
        aliases: vec!["www".into()],
        slots: vec![v1::SlotAddress { slot: 1, address: 0x0ac0_0103 }],
        mode: v1::EndpointMode::Vip.into(),
        tasks: vec![0x0a80_0002],
    };
    v1::Network {
        id: vec![7; 10],
        spec: Some(v1::NetworkSpec {
            name: "back".into(),
            internal: true,
            subnet: Some(v1::Subnet { address: 0x0ac0_0100, prefix: 24 }),
            ..v1::NetworkSpec::default()
        }),
        created: NOW,
        revision: 4,
        users: vec![web],
    }
}

pub(crate) fn policies() -> Vec<v1::Policy> {
    let service =
        |name: &str| v1::PolicyPeer { kind: Some(v1::policy_peer::Kind::Service(name.into())) };
    let outside = v1::PolicyPeer { kind: Some(v1::policy_peer::Kind::Outside(true)) };
    let (tcp, first, last) = (v1::PolicyProtocol::Tcp.into(), 5432, 5432);
    let db_in = v1::PolicySpec {
        name: "db-in".into(),
        action: v1::PolicyAction::OnlyFrom.into(),
        from: vec![service("web"), service("api")],
        to: vec![service("db")],
        ports: vec![v1::PolicyPort { protocol: tcp, first, last }],
        ..v1::PolicySpec::default()
    };
    let db_out = v1::PolicySpec {
        name: "db-out".into(),
        action: v1::PolicyAction::Deny.into(),
        from: vec![service("db")],
        to: vec![outside],
        priority: Some(7),
        ..v1::PolicySpec::default()
    };
    let policy = |id: u8, spec, missing: &[&str]| v1::Policy {
        id: vec![id; 10],
        spec: Some(spec),
        created: NOW,
        revision: 4,
        missing: missing.iter().map(|name| (*name).to_owned()).collect(),
    };
    vec![policy(8, db_out, &[]), policy(9, db_in, &["api"])]
}

/// Of a task that waits for memory.
pub(crate) fn explanation() -> v1::Explanation {
    let short = v1::Obstacle {
        kind: "memory".into(),
        text: "needs 512MiB memory, 310MiB free of 2GiB".into(),
        needed: Some(512 << 20),
        free: Some(310 << 20),
        capacity: Some(2 << 30),
        fix: "free 202MiB more memory on alpha".into(),
    };
    let label = v1::Obstacle {
        kind: "constraint".into(),
        text: "not node.labels.disk==ssd: has no node.labels.disk".into(),
        fix: "warren node update --label-add 'disk=ssd' beta".into(),
        ..v1::Obstacle::default()
    };
    let node = |id: u8, name: &str, obstacles: Vec<v1::Obstacle>| v1::NodeVerdict {
        node: vec![id; 10],
        name: name.into(),
        tasks: 1,
        load: 3,
        obstacles,
        ..v1::NodeVerdict::default()
    };
    v1::Explanation {
        kind: "task".into(),
        id: vec![4; 10],
        name: "web.2".into(),
        summary: "web.2 is pending: no node fits".into(),
        reserve: Some(v1::Resources { memory_bytes: 512 << 20, ..v1::Resources::default() }),
        asks: vec!["node.labels.disk==ssd".into()],
        nodes: vec![
            node(2, "alpha", vec![short.clone()]),
            node(5, "beta", vec![short.clone(), label]),
        ],
        nearest: vec![2; 10],
        fixes: vec![short.fix, "warren service update --reserve-memory 310MiB web".into()],
        revision: 7,
        ..v1::Explanation::default()
    }
}

/// What `web` was before it had three replicas, and what it is.
pub(crate) fn revisions() -> Vec<v1::ServiceRevision> {
    let now = web().spec.unwrap();
    let one = v1::mode::Kind::Replicated(v1::mode::Replicated { replicas: 1 });
    let before = v1::ServiceSpec { mode: Some(v1::Mode { kind: Some(one) }), ..now.clone() };
    let change = |kind: v1::ChangeKind, by: Option<&str>| v1::ServiceChange {
        by: by.map(str::to_owned),
        kind: kind.into(),
        to: 0,
    };
    vec![
        v1::ServiceRevision {
            number: 1,
            spec: Some(before),
            time: NOW - 120_000,
            change: Some(change(v1::ChangeKind::Create, Some("socket:0"))),
            good: true,
            current: false,
        },
        v1::ServiceRevision {
            number: 2,
            spec: Some(now),
            time: NOW,
            change: Some(change(v1::ChangeKind::Update, Some("operator:anna"))),
            good: true,
            current: true,
        },
    ]
}

/// One task that would move, one that would wait.
pub(crate) fn simulation() -> v1::Simulation {
    let task = |slot: u32, from: &str, to: &str, what: &str| v1::SimulatedTask {
        service: vec![3; 10],
        slot,
        name: format!("web.{slot}"),
        from: from.into(),
        to: to.into(),
        what: what.into(),
    };
    v1::Simulation {
        tasks: vec![task(1, "alpha", "beta", "moves"), task(2, "alpha", "", "pending")],
        pending: vec![explanation()],
        nodes: vec![v1::SimulatedNode {
            node: vec![2; 10],
            name: "alpha".into(),
            tasks_before: 2,
            ..v1::SimulatedNode::default()
        }],
        took_ms: 3_001,
        revision: 7,
        ..v1::Simulation::default()
    }
}
