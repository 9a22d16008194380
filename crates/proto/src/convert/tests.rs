//! Round trips of whatever the model can hold, and refusals of what it cannot.

use proptest::prelude::*;
use prost::Message;
use warren_model::cluster::{Authority, BackupPolicy, Cluster, JoinToken, Subnet};
use warren_model::defaults::Defaults;
use warren_model::event::{Action, Event, Kind};
use warren_model::health::{
    Health, HealthAction, HealthSpec, HealthState, Healthcheck, HttpProbe, Probe,
};
use warren_model::ipv6::Subnet6;
use warren_model::job::{
    Concurrency, Inputs, JobPolicy, JobStatus, Missed, PayloadRule, Run, RunState, Schedule,
};
use warren_model::moving::{Cause, MinAvailable, Moving, Origin, Rebalance};
use warren_model::network::{Network, NetworkSpec, Vip, VipHolder};
use warren_model::node::{
    Availability, Description, Forgotten, ForgottenChoice, Node, NodeStatus, Relay, Tombstone,
};
use warren_model::operator::{Operator, OperatorRole};
use warren_model::overlap::HostRoute;
use warren_model::placement::{self, Placement};
use warren_model::resources::Resources;
use warren_model::service::{
    Affinity, Attachment, Bind, Change, ChangeKind, Endpoint, EndpointMode, FailureAction, Hook,
    HookStatus, Hooks, IoKind, IoLimit, Limits, LogOptions, Mode, Mount, MountKind, OnDisconnect,
    PortSpec, Privileges, Protocol, PublishMode, RestartCondition, RestartPolicy, Revision,
    RollbackPolicy, Service, ServiceSpec, TaskTemplate, Tmpfs, Tuning, UpdateKind, UpdateOrder,
    UpdatePhase, UpdatePolicy, UpdateStatus, Volume,
};
use warren_model::task::{Desired, Task, TaskExit, TaskState, TaskStatus};
use warren_model::{
    Allowed, AuditRecord, ClusterId, NetworkId, NodeId, OverlayKind, Secret, ServiceId, TaskId,
    Time,
};

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
    let name = prop::option::of("[a-z][a-z0-9]{0,13}");
    let port = (protocol, any::<u32>(), any::<u16>(), any::<u16>(), mode, name).prop_map(
        |(protocol, bind, published, target, mode, name)| PortSpec {
            name: name.map(|name| name.parse().unwrap()),
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

fn resources() -> impl Strategy<Value = Resources> {
    let generic = prop::collection::btree_map("[a-z]{1,4}", 1..9u64, 0..3);
    (any::<[u64; 4]>(), generic).prop_map(|(known, generic)| Resources {
        cpu_millis: known[0],
        memory_bytes: known[1],
        pids: known[2],
        disk_bytes: known[3],
        generic,
    })
}

fn placement() -> impl Strategy<Value = Placement> {
    let constraint = prop_oneof![
        "node\\.labels\\.[a-z]{1,5}(==|!=|=~)[a-z*?. ]{0,4}[a-z]",
        "node\\.id in [a-z]{1,3},[a-z]",
        "node\\.hostname[<>]-?[0-9]{1,4}(\\.[0-9])?",
        Just("node.role==manager".to_owned()),
    ];
    let constraints =
        || prop::collection::vec(constraint.clone().prop_map(|c| c.parse().unwrap()), 0..3);
    let spread = prop::sample::subsequence(vec!["node.labels.zone", "node.role"], 0..=2);
    let affinity = ("[a-z]{1,5}", any::<bool>(), any::<bool>()).prop_map(|(name, apart, soft)| {
        placement::Affinity { service: name.parse().unwrap(), apart, soft }
    });
    let affinities = prop::collection::vec(affinity, 0..3);
    let tolerations = prop::collection::vec("([a-z]{1,4}|\\*)(=[a-z]{0,3})?(:no-execute)?", 0..3);
    let strategy = prop_oneof![
        Just(None),
        Just(Some(placement::Strategy::Spread)),
        Just(Some(placement::Strategy::BinPack)),
    ];
    let most = prop::option::of(1..9u32);
    (constraints(), constraints(), spread, affinities, most, tolerations, strategy).prop_map(
        |(constraints, preferences, spread, affinities, most, tolerations, strategy)| Placement {
            platforms: vec!["linux/arm64".to_owned()],
            constraints,
            preferences,
            spread: spread.iter().map(|text| text.parse().unwrap()).collect(),
            affinities,
            max_per_node: most,
            tolerations: tolerations.iter().map(|text| text.parse().unwrap()).collect(),
            strategy,
            priority: most.and_then(|most| i16::try_from(most).ok()).map_or(0, |n| 4 - n),
            preempt: match most {
                Some(3..) => placement::Preempt::Lower,
                Some(_) | None => placement::Preempt::Never,
            },
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
    let limits = (any::<Option<u64>>(), any::<Option<u32>>(), any::<Option<u32>>(), resources());
    let rest = (restart(), any::<u64>(), any::<u32>(), any::<u32>(), healthcheck());
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
            tuning: Tuning {
                cpuset_cpus: limits.1.map(|n| n.to_string()),
                cpuset_mems: limits.2.map(|n| n.to_string()),
                cpu_shares: limits.1,
                swap_bytes: limits.0,
                io_weight: limits.2.and_then(|n| u16::try_from(n).ok()),
                io_limits: limits
                    .0
                    .map(|rate| IoLimit { kind: IoKind::WriteBps, device: "/dev/sda".into(), rate })
                    .into_iter()
                    .collect(),
            },
            reserve: limits.3,
            restart: rest.0,
            log: LogOptions { max_bytes: rest.1, max_files: rest.2 },
            health: rest.4,
            force: rest.3,
            companions: Vec::new(),
            shared: Vec::new(),
            mounts: mounts(rest.1, rest.2),
            shm_bytes: limits.0,
            privileges: Privileges {
                init: rights.1,
                host_pid: rights.1,
                oom_score_adj: limits.2.map(|n| i16::try_from(n % 1000).unwrap()),
                ..Privileges::default()
            },
            tty: rest.3 & 1 != 0,
            open_stdin: rest.3 & 2 != 0,
        }
    })
}

fn mounts(number: u64, other: u32) -> Vec<Mount> {
    let bind = Bind {
        source: format!("/srv/{number}"),
        recursive: number.is_multiple_of(2),
        follows: number.is_multiple_of(3),
    };
    let volume = Volume {
        name: number.is_multiple_of(2).then(|| format!("data-{number}")),
        copy: number.is_multiple_of(3),
        labels: [("a".to_owned(), number.to_string())].into(),
        subpath: other.is_multiple_of(2).then(|| "x/y".to_owned()),
    };
    let tmpfs = Tmpfs {
        size_bytes: Some(number),
        mode: other.is_multiple_of(2).then_some(other % 0o7777),
        exec: number.is_multiple_of(2),
    };
    let kinds = [MountKind::Bind(bind), MountKind::Volume(volume), MountKind::Tmpfs(tmpfs)];
    let read_only = other.is_multiple_of(3);
    let mount = |(at, kind)| Mount { target: format!("/mnt/{at}"), read_only, kind };
    kinds.into_iter().enumerate().map(mount).collect()
}

fn healthcheck() -> impl Strategy<Value = Healthcheck> {
    let status = (1..=u16::MAX, any::<u16>());
    let headers = prop::collection::vec((text(), text()), 0..3);
    let http = (any::<u16>(), text(), any::<bool>(), headers, status).prop_map(
        |(port, path, tls, headers, status)| {
            Probe::Http(HttpProbe { port, path, tls, headers, status })
        },
    );
    let probe = prop_oneof![
        http,
        any::<u16>().prop_map(|port| Probe::Tcp { port }),
        (any::<u16>(), text()).prop_map(|(port, service)| Probe::Grpc { port, service }),
        texts().prop_map(Probe::Exec),
        text().prop_map(Probe::Shell),
    ];
    let times = any::<(u64, u64, u32, u64, u64, bool)>();
    let explicit = (probe, times).prop_map(|(probe, times)| {
        let action = if times.5 { HealthAction::Restart } else { HealthAction::None };
        Healthcheck::Explicit(Box::new(HealthSpec {
            probe,
            interval_ms: times.0,
            timeout_ms: times.1,
            retries: times.2,
            start_period_ms: times.3,
            start_interval_ms: times.4,
            action,
        }))
    });
    prop_oneof![Just(Healthcheck::Implicit), Just(Healthcheck::Off), explicit]
}

fn spec() -> impl Strategy<Value = ServiceSpec> {
    let mode = prop_oneof![
        any::<u32>().prop_map(|replicas| Mode::Replicated { replicas }),
        Just(Mode::Global),
        any::<(u32, u32)>().prop_map(|(completions, max_concurrent)| Mode::ReplicatedJob {
            completions,
            max_concurrent
        }),
        Just(Mode::GlobalJob)
    ];
    let order = prop_oneof![Just(UpdateOrder::StartFirst), Just(UpdateOrder::StopFirst)];
    let rest = (monitor(), any::<u32>(), action(), any::<[Option<u32>; 2]>(), any::<Option<u64>>());
    let update = (any::<u32>(), any::<u64>(), order, rest).prop_map(
        |(
            parallelism,
            delay_ms,
            order,
            (monitor_ms, ratio, failure_action, bounds, deadline_ms),
        )| {
            UpdatePolicy {
                parallelism,
                delay_ms,
                order,
                monitor_ms,
                max_failure_millis: ratio,
                failure_action,
                max_surge: bounds[0],
                max_unavailable: bounds[1],
                deadline_ms,
            }
        },
    );
    let on_disconnect = prop_oneof![
        Just(OnDisconnect::Keep),
        any::<u64>().prop_map(|ms| OnDisconnect::StopAfter { ms }),
        any::<u64>().prop_map(|ms| OnDisconnect::ReplaceAfter { ms }),
    ];
    let name = "[a-z][a-z0-9_]{0,8}[a-z0-9]";
    let networks = prop::collection::vec(attachment(), 0..4);
    let found = (networks, endpoint(), placement(), rollback(), job(), moving(), hooks());
    (name, labels(), mode, ports(), update, template(), on_disconnect, found).prop_map(
        |(name, labels, mode, ports, update, task, on_disconnect, found)| ServiceSpec {
            name: name.parse().unwrap(),
            labels,
            mode,
            ports,
            update,
            task,
            on_disconnect,
            networks: found.0,
            endpoint: found.1,
            placement: found.2,
            rollback: found.3,
            job: found.4,
            moving: found.5,
            hooks: found.6,
        },
    )
}

fn job() -> impl Strategy<Value = JobPolicy> {
    let rules = (0..3usize, any::<bool>(), any::<Option<u64>>());
    let schedule = ("[a-z*/ 0-9]{1,9}", "[A-Za-z/]{1,9}", rules).prop_map(
        |(cron, timezone, (concurrency, once, deadline_ms))| Schedule {
            cron,
            timezone,
            concurrency: [Concurrency::Allow, Concurrency::Forbid, Concurrency::Replace]
                [concurrency],
            missed: if once { Missed::RunOnce } else { Missed::Skip },
            deadline_ms,
        },
    );
    let params = prop::collection::btree_map("[a-z_]{1,4}", any::<Option<String>>(), 0..3);
    let rules = [PayloadRule::Forbidden, PayloadRule::Optional, PayloadRule::Required];
    let inputs =
        (params, 0..3usize).prop_map(move |(params, rule)| Inputs { params, payload: rules[rule] });
    let concurrency = prop::option::of(0..3usize).prop_map(|at| {
        at.map(|at| [Concurrency::Allow, Concurrency::Forbid, Concurrency::Replace][at])
    });
    let schedule = prop::option::of(schedule);
    (any::<Option<u64>>(), 1..100u32, schedule, inputs, concurrency).prop_map(
        |(time_limit_ms, history, schedule, inputs, concurrency)| JobPolicy {
            time_limit_ms,
            history,
            schedule,
            inputs,
            concurrency,
        },
    )
}

fn job_status() -> impl Strategy<Value = JobStatus> {
    let states = [RunState::Running, RunState::Complete, RunState::Failed, RunState::Stopped];
    let numbers = any::<([u32; 4], [u64; 2], Option<u64>)>();
    let params = prop::collection::btree_map("[a-z]{1,4}", ".{0,8}", 0..3);
    let given = (params, any::<Option<Vec<u8>>>(), any::<u32>());
    let run = (numbers, 0..4usize, ".{0,8}", any::<Vec<u32>>(), given).prop_map(
        move |((numbers, times, scheduled), state, message, forgotten, given)| Run {
            number: numbers[0],
            template: numbers[1],
            scheduled: scheduled.map(Time),
            begun: Time(times[0]),
            state: states[state],
            since: Time(times[1]),
            message,
            completed: numbers[2],
            total: numbers[3],
            forgotten,
            params: given.0,
            payload: given.1.map(Into::into),
            payload_len: given.2,
        },
    );
    let rest = any::<(u32, u64, bool, u64, u64)>();
    (rest, prop::collection::vec(run, 0..4)).prop_map(
        |((last, cursor, suspended, missed, skipped), runs)| JobStatus {
            last,
            cursor: Time(cursor),
            suspended,
            missed,
            skipped,
            runs,
        },
    )
}

fn moving() -> impl Strategy<Value = Moving> {
    let least = prop_oneof![
        any::<u32>().prop_map(MinAvailable::Count),
        (0..=100u8).prop_map(MinAvailable::Percent)
    ];
    (prop::option::of(least), rebalance())
        .prop_map(|(min_available, rebalance)| Moving { min_available, rebalance })
}

fn rebalance() -> impl Strategy<Value = Rebalance> {
    prop_oneof![Just(Rebalance::Auto), Just(Rebalance::Never)]
}

fn monitor() -> impl Strategy<Value = u64> {
    prop_oneof![Just(UpdatePolicy::MONITOR_MS), any::<u64>()]
}

fn action() -> impl Strategy<Value = FailureAction> {
    prop_oneof![
        Just(FailureAction::Pause),
        Just(FailureAction::Continue),
        Just(FailureAction::Rollback)
    ]
}

fn rollback() -> impl Strategy<Value = RollbackPolicy> {
    let order = prop::option::of(Just(UpdateOrder::StopFirst));
    let numbers = any::<(Option<u32>, Option<u64>, Option<u64>, Option<u32>)>();
    (numbers, order, prop::option::of(action())).prop_map(|(numbers, order, failure_action)| {
        RollbackPolicy {
            parallelism: numbers.0,
            delay_ms: numbers.1,
            order,
            monitor_ms: numbers.2,
            max_failure_millis: numbers.3,
            failure_action,
        }
    })
}

fn change() -> impl Strategy<Value = Change> {
    let kind = prop_oneof![
        Just(ChangeKind::Create),
        Just(ChangeKind::Update),
        any::<u32>().prop_map(|to| ChangeKind::Rollback { to }),
        any::<u32>().prop_map(|to| ChangeKind::AutomaticRollback { to }),
    ];
    (prop::option::of(text()), kind).prop_map(|(by, kind)| Change { by, kind })
}

fn update_status() -> impl Strategy<Value = UpdateStatus> {
    let kind = prop_oneof![
        Just(UpdateKind::Update),
        Just(UpdateKind::Rollback),
        Just(UpdateKind::AutomaticRollback)
    ];
    let phase =
        prop_oneof![Just(UpdatePhase::Moving), Just(UpdatePhase::Paused), Just(UpdatePhase::Done)];
    let due = prop::option::of((any::<bool>(), any::<u64>()));
    (kind, phase, any::<u64>(), text(), due).prop_map(|(kind, phase, started, message, due)| {
        UpdateStatus {
            kind,
            phase,
            started: Time(started),
            message,
            hook: due.map(|(before, since)| HookStatus {
                hook: if before { Hook::Before } else { Hook::After },
                since: Time(since),
            }),
        }
    })
}

fn hooks() -> impl Strategy<Value = Hooks> {
    let words = || prop::collection::vec(text(), 0..3);
    (words(), words(), any::<u64>(), any::<u32>()).prop_map(
        |(before, after, timeout_ms, retries)| Hooks { before, after, timeout_ms, retries },
    )
}

fn attachment() -> impl Strategy<Value = Attachment> {
    let name = "[a-z][a-z0-9_]{0,8}[a-z0-9]";
    let aliases = prop::collection::btree_set(name.prop_map(|name| name.parse().unwrap()), 0..3);
    (name, aliases, any::<Option<u32>>()).prop_map(|(name, aliases, address)| Attachment {
        network: name.parse().unwrap(),
        aliases,
        address: address.map(Into::into),
    })
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    any::<(bool, bool, bool, bool)>().prop_map(|(dnsrr, sticky, prefer_local, slots)| Endpoint {
        mode: if dnsrr { EndpointMode::Dnsrr } else { EndpointMode::Vip },
        affinity: if sticky { Affinity::ClientAddress } else { Affinity::None },
        prefer_local,
        slot_addresses: slots,
    })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    let token = || {
        let token = any::<([u8; 16], Option<u64>)>();
        prop::option::of(token.prop_map(|(secret, at)| JoinToken { secret, expires: at.map(Time) }))
    };
    let bytes = || prop::collection::vec(any::<u8>(), 1..40);
    let authority = (prop::collection::vec(bytes(), 1..4), bytes())
        .prop_map(|(certificates, key)| Authority { certificates, key: Secret::new(key) });
    let backup = (text(), any::<u64>(), any::<u32>(), text()).prop_map(
        |(folder, interval_ms, keep, recipient)| BackupPolicy {
            folder,
            interval_ms,
            keep,
            recipient,
        },
    );
    let secrets = (
        prop::option::of(authority),
        token(),
        token(),
        prop::option::of(bytes().prop_map(Secret::new)),
        prop::option::of(backup),
    );
    let numbers = (any::<u32>(), 1..u64::MAX, any::<u64>(), 1..u64::MAX);
    let pools = (subnet(), prop_oneof![Just(Cluster::VIP_POOL), subnet()]);
    let overlay = prop::sample::select(OverlayKind::ALL.to_vec());
    let network = (pools, overlay);
    (any::<[u8; 10]>(), network, secrets, numbers).prop_map(|(id, network, secrets, numbers)| {
        let ((pool, vip_pool), overlay) = network;
        let (ca, worker_token, manager_token, unlock_key, backup) = secrets;
        let (history_limit, certificate_lifetime_ms, epoch, next_number) = numbers;
        Cluster {
            id: ClusterId::from_bytes(id),
            history_limit,
            pool,
            block_prefix: pool.prefix,
            vip_pool,
            overlay,
            ca,
            worker_token,
            manager_token,
            certificate_lifetime_ms,
            epoch,
            unlock_key,
            next_number,
            backup,
            strategy: if epoch % 2 == 0 {
                placement::Strategy::Spread
            } else {
                placement::Strategy::BinPack
            },
            rebalance: if history_limit % 2 == 0 { Rebalance::Auto } else { Rebalance::Never },
            defaults: defaults(epoch, history_limit),
            allow_bind: match epoch % 2 {
                0 => Vec::new(),
                _ => vec!["/srv".parse().unwrap(), "/etc/ssl:ro".parse().unwrap()],
            },
            allowed: match history_limit % 2 {
                0 => Allowed::default(),
                _ => "host-pid,cap:NET_ADMIN,device:/dev/fuse".parse().unwrap(),
            },
        }
    })
}

fn defaults(amount: u64, count: u32) -> Defaults {
    let some = |count: u32| Some(count).filter(|count| *count > 0);
    Defaults {
        reserve_cpu_millis: amount,
        reserve_memory_bytes: amount / 2,
        limits: Limits {
            memory_bytes: Some(amount).filter(|amount| *amount > 0),
            cpu_millis: some(count),
            pids: some(count / 2),
        },
    }
}

fn status() -> impl Strategy<Value = TaskStatus> {
    let exit = prop::option::of(any::<(i32, bool)>());
    let health = (prop::sample::select(HealthState::ALL.to_vec()), any::<u64>());
    let health = health.prop_map(|(state, since)| Health { state, since: Time(since) });
    let health = prop::option::of(health);
    let numbers = any::<(u64, u32, u32, Option<u64>)>();
    (0..TaskState::ALL.len(), numbers, exit, prop::option::of(text()), health).prop_map(
        |(state, (since, attempt, pid, started), exit, error, health)| TaskStatus {
            state: TaskState::ALL[state],
            since: Time(since),
            attempt,
            pid,
            started: started.map(Time),
            exit: exit.map(|(code, oom_killed)| TaskExit { code, oom_killed }),
            error: error.map(Into::into),
            health,
            companions: None,
            paused: pid & 1 != 0,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn services_survive(
        spec in spec(),
        id: [u8; 10],
        numbers: (u32, bool, u64, u64, u64),
        change in change(),
        update in prop::option::of(update_status()),
        job in prop::option::of(job_status()),
        more: (u32, u32, bool),
    ) {
        let (template, removing, created, updated, revision) = numbers;
        let (number, after, good) = more;
        round_trip::<_, v1::ServiceSpec>(&spec);
        round_trip::<_, v1::ServiceRevision>(&Revision {
            number,
            spec: spec.clone(),
            time: Time(updated),
            change: change.clone(),
            good,
        });
        round_trip::<_, v1::Service>(&Service {
            id: ServiceId::from_bytes(id),
            spec,
            number: number.max(1),
            template,
            template_last: template.saturating_add(after),
            change,
            update,
            job,
            removing,
            created: Time(created),
            updated: Time(updated),
            revision,
        });
    }

    #[test]
    fn runs_of_jobs_survive(status in job_status()) {
        round_trip::<_, v1::JobStatus>(&status);
    }

    #[test]
    fn tasks_survive(
        status in status(),
        ids: ([u8; 10], [u8; 10], Option<[u8; 10]>),
        numbers: (u32, u32, u32, Option<u32>, u64, u64),
        desired in 0..3usize,
    ) {
        let (slot, template, run, address, created, revision) = numbers;
        round_trip::<_, v1::Task>(&Task {
            id: TaskId::from_bytes(ids.0),
            service: ServiceId::from_bytes(ids.1),
            slot,
            template,
            run,
            node: ids.2.map(NodeId::from_bytes),
            address: address.map(Into::into),
            desired: [Desired::Running, Desired::Shutdown, Desired::Remove][desired],
            status,
            created: Time(created),
            devices: address.map(|n| format!("a.b/c={n}")).into_iter().collect(),
            origin: address.map(|revision| Origin {
                cause: Cause::ALL[slot as usize % Cause::ALL.len()],
                revision: revision.into(),
            }),
            revision,
        });
    }

    #[test]
    fn networks_survive(
        ids: ([u8; 10], [u8; 10]),
        labels in labels(),
        flags: (bool, bool, bool),
        subnets in (prop::option::of(subnet()), any::<Option<(u128, u8)>>()),
        numbers: (u64, u64, u32, u32, Option<u64>),
    ) {
        let (internal, attachable, encrypted) = flags;
        let (created, revision, slot, address, released) = numbers;
        let v6 = |(address, prefix): (u128, u8)| {
            Subnet6 { address: address.into(), prefix: prefix % 129 }
        };
        let spec = NetworkSpec {
            labels,
            internal,
            attachable,
            encrypted,
            subnet: subnets.0,
            subnet_v6: subnets.1.map(v6),
            ..NetworkSpec::new("shop_default".parse().unwrap())
        };
        let network = NetworkId::from_bytes(ids.0);
        round_trip::<_, v1::NetworkSpec>(&spec);
        let created = Time(created);
        round_trip::<_, v1::Network>(&Network { id: network, spec, created, revision });
        let destination = Subnet { address: address.into(), prefix: 24 };
        round_trip::<_, v1::HostRoute>(&HostRoute { destination, link: "eth1".into() });
        round_trip::<_, v1::Vip>(&Vip {
            address: address.into(),
            holder: VipHolder { service: ServiceId::from_bytes(ids.1), network, slot },
            released: released.map(Time),
        });
    }

    #[test]
    fn clusters_survive(cluster in cluster()) {
        round_trip::<_, v1::Cluster>(&cluster);
        let settings = Cluster::try_from(v1::Cluster::settings_only(&cluster)).unwrap();
        let expected = Cluster {
            history_limit: cluster.history_limit,
            pool: cluster.pool,
            block_prefix: cluster.block_prefix,
            vip_pool: cluster.vip_pool,
            overlay: cluster.overlay,
            certificate_lifetime_ms: cluster.certificate_lifetime_ms,
            epoch: cluster.epoch,
            defaults: cluster.defaults,
            allow_bind: cluster.allow_bind.clone(),
            allowed: cluster.allowed.clone(),
            ..Cluster::new(cluster.id)
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn nodes_survive(
        id: [u8; 10],
        blocks in prop::collection::vec(subnet(), 0..4),
        labels in (labels(), labels()),
        words in (text(), text(), text(), text(), text()),
        numbers: (u32, u64, u64, bool, bool, bool),
        disk: (u64, u64),
        features in prop::collection::vec(text(), 0..4),
        membership: (Option<u64>, [u8; 32], u64, [u8; 32], u64),
        availability in 0..3usize,
        has in (resources(), resources()),
        taints in prop::collection::vec("[a-z]{1,4}(=[a-z]{1,3})?(:no-execute)?", 0..3),
    ) {
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
                labels: labels.0,
                disk_bytes: disk.0,
                disk_free_bytes: disk.1,
                features: features.clone(),
                overlay_key: membership.3,
                overlay_key_other: membership.1,
                overlay_port: u16::from(id[1]),
                devices: [("a.b/c".to_owned(), features.iter().cloned().collect())].into(),
            },
            manager: numbers.3,
            worker: numbers.4,
            availability: [Availability::Active, Availability::Pause, Availability::Drain]
                [availability],
            status: if numbers.5 { NodeStatus::Ready } else { NodeStatus::Down },
            blocks,
            number: membership.0,
            labels: labels.1,
            key_hash: membership.1,
            certificate_not_after: Time(membership.2),
            issuer_hash: membership.3,
            relays: vec![Relay {
                peer: NodeId::from_bytes(id),
                via: NodeId::from_bytes(id),
                slot: id[0] % Relay::SLOTS,
            }],
            joined: Time(membership.4),
            forgotten: membership.0.map(|epoch| Forgotten {
                epoch,
                choice: if numbers.3 { ForgottenChoice::Keep } else { ForgottenChoice::Drop },
            }),
            generic: has.0.generic,
            system_reserved: has.1,
            taints: taints.iter().map(|taint| taint.parse().unwrap()).collect(),
            opened: Time(disk.0),
            drain_deadline: membership.0.map(Time),
            defaults: defaults(disk.0, 7),
            revision: numbers.2,
        });
        round_trip::<_, v1::Tombstone>(&Tombstone {
            node: NodeId::from_bytes(id),
            key_hash: membership.1,
            keep_until: Time(membership.2),
        });
    }

    #[test]
    fn operators_and_records_survive(
        name in "[a-z][a-z0-9.-]{0,31}",
        role in 0..3usize,
        hashes: (Option<[u8; 32]>, Option<[u8; 32]>),
        times: (Option<u64>, u64, u64),
        words in (text(), text(), text(), text()),
    ) {
        round_trip::<_, v1::Operator>(&Operator {
            name: name.parse().unwrap(),
            role: OperatorRole::ALL[role],
            token_hash: hashes.0,
            key_hash: hashes.1,
            expires: times.0.map(Time),
            created: Time(times.1),
            revision: times.2,
        });
        round_trip::<_, v1::AuditRecord>(&AuditRecord {
            revision: times.1,
            time: Time(times.2),
            principal: words.0,
            action: words.1,
            object: words.2,
            detail: words.3,
        });
    }
}

/// A byte that no other field of [`secretive`] has.
const SECRET: u8 = 0xb7;

fn secretive() -> Cluster {
    let token = || Some(JoinToken { secret: [SECRET; 16], expires: Some(Time(9)) });
    Cluster {
        ca: Some(Authority { certificates: vec![vec![1; 8]], key: Secret::new(vec![SECRET; 8]) }),
        worker_token: token(),
        manager_token: token(),
        unlock_key: Some(Secret::new(vec![SECRET; 32])),
        ..Cluster::new(ClusterId::from_bytes([1; 10]))
    }
}

#[test]
fn settings_carry_no_secret() {
    let count = |wire: &v1::Cluster| {
        let bytes = wire.encode_to_vec();
        bytes.iter().filter(|byte| **byte == SECRET).count()
    };
    let cluster = secretive();
    assert_eq!(count(&v1::Cluster::from(&cluster)), 8 + 16 + 16 + 32);
    assert_eq!(count(&v1::Cluster::settings_only(&cluster)), 0);
}

/// As a log of the first version has them.
#[test]
fn what_older_versions_wrote_is_read() {
    let old = v1::Cluster {
        id: vec![1; 10],
        history_limit: 5,
        pool: Some(v1::Subnet { address: 0x0a80_0000, prefix: 10 }),
        block_prefix: 24,
        ..v1::Cluster::default()
    };
    assert_eq!(Cluster::try_from(old).unwrap(), Cluster::new(ClusterId::from_bytes([1; 10])));
    let old = v1::Node {
        id: vec![2; 10],
        description: Some(v1::NodeDescription::default()),
        worker: true,
        availability: v1::Availability::Active.into(),
        status: v1::NodeStatus::Down.into(),
        ..v1::Node::default()
    };
    let node = Node::new(NodeId::from_bytes([2; 10]), Description::default());
    assert_eq!(Node::try_from(old).unwrap(), node);
}

#[test]
fn events_survive() {
    for kind in Kind::ALL {
        for action in Action::ALL {
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
    assert_eq!(spec.rollback, RollbackPolicy::default());
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
    let tcp =
        v1::PortSpec { protocol: 1, published: 80, target: 80, mode: 1, ..v1::PortSpec::default() };
    refuses(|s| s.name.clear(), "name: a name cannot be empty");
    refuses(|s| s.mode = None, "mode: is missing");
    refuses(|s| s.mode = Some(v1::Mode { kind: None }), "mode.kind: is missing");
    refuses(|s| s.task = None, "task: is missing");
    refuses(
        |s| s.ports = vec![tcp.clone(), v1::PortSpec { target: 70_000, ..tcp.clone() }],
        "ports[1].target: 70000 is more than 65535",
    );
    refuses(
        |s| s.ports = vec![v1::PortSpec { protocol: 0, ..tcp.clone() }],
        "ports[0].protocol: is missing",
    );
    refuses(
        |s| s.ports = vec![v1::PortSpec { mode: 9, ..tcp.clone() }],
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

#[test]
fn placements_that_are_none() {
    let check = |wire: v1::Placement, expected: &str| {
        let error = Placement::try_from(wire).unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
    };
    let texts = |text: &str| vec![text.to_owned()];
    check(
        v1::Placement { constraints: texts("node.zone==a"), ..Default::default() },
        "constraints[0]: \"node.zone\" is not an attribute of nodes; there are node.id,",
    );
    check(
        v1::Placement { spread: texts("zone"), ..Default::default() },
        "spread[0]: \"zone\" is not an attribute of nodes",
    );
    check(v1::Placement { strategy: 9, ..Default::default() }, "strategy: 9 is not a known value");
    let twice = vec![v1::Amount { name: "gpu".into(), amount: 1 }; 2];
    let error = Resources::try_from(v1::Resources { generic: twice, ..Default::default() });
    assert_eq!(error.unwrap_err().to_string(), "generic: \"gpu\" comes twice");
}

#[test]
fn services_of_before_have_one_revision() {
    let wire =
        v1::Service { id: vec![1; 10], spec: Some(small()), template: 7, ..v1::Service::default() };
    let service = Service::try_from(wire).unwrap();
    assert_eq!((service.number, service.template_last), (1, 7));
    assert_eq!((service.change, service.update), (Change::default(), None));
}
