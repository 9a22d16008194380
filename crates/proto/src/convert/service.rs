//! Services: what a person wants.

use warren_model::Time;
use warren_model::job::JobPolicy;
use warren_model::moving::Moving;
use warren_model::placement::Placement;
use warren_model::service::{
    Change, Endpoint, Hooks, IoKind, IoLimit, Limits, LogOptions, Mode, OnDisconnect, PortSpec,
    Protocol, PublishMode, RestartCondition, RestartPolicy, RollbackPolicy, Service, ServiceSpec,
    TaskTemplate, Tuning,
};

use super::placement::resources_if_any;
use super::{
    Error, address, choice, each, enums, part, part_if_any, part_or_default, port, required,
    service_id,
};
use crate::v1;

enums! {
    Protocol, v1::Protocol { Tcp Udp }
    PublishMode, v1::PublishMode { Ingress Host }
    RestartCondition, v1::RestartCondition { None OnFailure Any }
    IoKind, v1::IoKind { ReadBps WriteBps ReadIops WriteIops }
}

impl From<&Mode> for v1::Mode {
    fn from(mode: &Mode) -> Self {
        use v1::mode::{Global, GlobalJob, Kind, Replicated, ReplicatedJob};
        let kind = match *mode {
            Mode::Replicated { replicas } => Kind::Replicated(Replicated { replicas }),
            Mode::Global => Kind::Global(Global {}),
            Mode::ReplicatedJob { completions, max_concurrent } => {
                Kind::ReplicatedJob(ReplicatedJob { completions, max_concurrent })
            }
            Mode::GlobalJob => Kind::GlobalJob(GlobalJob {}),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::Mode> for Mode {
    type Error = Error;

    fn try_from(wire: v1::Mode) -> Result<Self, Error> {
        use v1::mode::{Global, GlobalJob, Kind, Replicated, ReplicatedJob};
        match required("kind", wire.kind)? {
            Kind::Replicated(Replicated { replicas }) => Ok(Self::Replicated { replicas }),
            Kind::Global(Global {}) => Ok(Self::Global),
            Kind::ReplicatedJob(ReplicatedJob { completions, max_concurrent }) => {
                Ok(Self::ReplicatedJob { completions, max_concurrent })
            }
            Kind::GlobalJob(GlobalJob {}) => Ok(Self::GlobalJob),
        }
    }
}

impl From<OnDisconnect> for v1::OnDisconnect {
    fn from(policy: OnDisconnect) -> Self {
        use v1::on_disconnect::{Keep, Kind};
        let kind = match policy {
            OnDisconnect::Keep => Kind::Keep(Keep {}),
            OnDisconnect::StopAfter { ms } => Kind::StopAfterMs(ms),
            OnDisconnect::ReplaceAfter { ms } => Kind::ReplaceAfterMs(ms),
        };
        Self { kind: Some(kind) }
    }
}

impl TryFrom<v1::OnDisconnect> for OnDisconnect {
    type Error = Error;

    fn try_from(wire: v1::OnDisconnect) -> Result<Self, Error> {
        use v1::on_disconnect::{Keep, Kind};
        Ok(match required("kind", wire.kind)? {
            Kind::Keep(Keep {}) => Self::Keep,
            Kind::StopAfterMs(ms) => Self::StopAfter { ms },
            Kind::ReplaceAfterMs(ms) => Self::ReplaceAfter { ms },
        })
    }
}

impl From<&PortSpec> for v1::PortSpec {
    fn from(port: &PortSpec) -> Self {
        Self {
            protocol: v1::Protocol::from(port.protocol).into(),
            bind: port.bind.into(),
            published: port.published.into(),
            target: port.target.into(),
            mode: v1::PublishMode::from(port.mode).into(),
            name: port.name.map(|name| name.to_string()).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::PortSpec> for PortSpec {
    type Error = Error;

    fn try_from(wire: v1::PortSpec) -> Result<Self, Error> {
        Ok(Self {
            protocol: choice::<v1::Protocol, _>("protocol", wire.protocol)?,
            bind: address(wire.bind),
            published: port("published", wire.published)?,
            target: port("target", wire.target)?,
            mode: choice::<v1::PublishMode, _>("mode", wire.mode)?,
            name: match wire.name.as_str() {
                "" => None,
                name => {
                    Some(name.parse().map_err(|problem| Error::new("name", format!("{problem}")))?)
                }
            },
        })
    }
}

impl From<&Limits> for v1::Limits {
    fn from(limits: &Limits) -> Self {
        Self { memory_bytes: limits.memory_bytes, cpu_millis: limits.cpu_millis, pids: limits.pids }
    }
}

impl From<v1::Limits> for Limits {
    fn from(wire: v1::Limits) -> Self {
        Self { memory_bytes: wire.memory_bytes, cpu_millis: wire.cpu_millis, pids: wire.pids }
    }
}

impl From<&Tuning> for v1::Tuning {
    fn from(tuning: &Tuning) -> Self {
        let t = tuning.clone();
        let limit = |limit: IoLimit| v1::IoLimit {
            kind: v1::IoKind::from(limit.kind).into(),
            device: limit.device,
            rate: limit.rate,
        };
        Self {
            cpuset_cpus: t.cpuset_cpus,
            cpuset_mems: t.cpuset_mems,
            cpu_shares: t.cpu_shares,
            swap_bytes: t.swap_bytes,
            io_weight: t.io_weight.map(Into::into),
            io_limits: t.io_limits.into_iter().map(limit).collect(),
        }
    }
}

impl TryFrom<v1::Tuning> for Tuning {
    type Error = Error;

    fn try_from(wire: v1::Tuning) -> Result<Self, Error> {
        let io_weight = wire.io_weight.map(u16::try_from).transpose();
        Ok(Self {
            cpuset_cpus: wire.cpuset_cpus,
            cpuset_mems: wire.cpuset_mems,
            cpu_shares: wire.cpu_shares,
            swap_bytes: wire.swap_bytes,
            io_weight: io_weight.map_err(|_| Error::new("io_weight", "is out of range"))?,
            io_limits: each("io_limits", wire.io_limits)?,
        })
    }
}

impl TryFrom<v1::IoLimit> for IoLimit {
    type Error = Error;

    fn try_from(wire: v1::IoLimit) -> Result<Self, Error> {
        let kind = choice::<v1::IoKind, _>("kind", wire.kind)?;
        Ok(Self { kind, device: wire.device, rate: wire.rate })
    }
}

impl From<&RestartPolicy> for v1::RestartPolicy {
    fn from(policy: &RestartPolicy) -> Self {
        Self {
            condition: v1::RestartCondition::from(policy.condition).into(),
            delay_ms: policy.delay_ms,
            max_attempts: policy.max_attempts,
            window_ms: policy.window_ms,
        }
    }
}

impl TryFrom<v1::RestartPolicy> for RestartPolicy {
    type Error = Error;

    fn try_from(wire: v1::RestartPolicy) -> Result<Self, Error> {
        Ok(Self {
            condition: choice::<v1::RestartCondition, _>("condition", wire.condition)?,
            delay_ms: wire.delay_ms,
            max_attempts: wire.max_attempts,
            window_ms: wire.window_ms,
        })
    }
}

impl From<&LogOptions> for v1::LogOptions {
    fn from(log: &LogOptions) -> Self {
        Self { max_bytes: log.max_bytes, max_files: log.max_files }
    }
}

impl From<v1::LogOptions> for LogOptions {
    fn from(wire: v1::LogOptions) -> Self {
        Self { max_bytes: wire.max_bytes, max_files: wire.max_files }
    }
}

impl From<&TaskTemplate> for v1::TaskTemplate {
    fn from(template: &TaskTemplate) -> Self {
        let t = template.clone();
        Self {
            image: t.image,
            entrypoint: t.entrypoint.map(|values| v1::Strings { values }),
            command: t.command,
            env: t.env,
            workdir: t.workdir,
            user: t.user,
            hostname: t.hostname,
            container_labels: t.container_labels.into_iter().collect(),
            stop_signal: t.stop_signal,
            stop_grace_ms: t.stop_grace_ms,
            read_only: t.read_only,
            cap_add: t.cap_add,
            cap_drop: t.cap_drop,
            limits: Some((&t.limits).into()),
            restart: Some((&t.restart).into()),
            log: Some((&t.log).into()),
            force: t.force,
            reserve: resources_if_any(&t.reserve),
            health: super::health::declared(&t.health),
            tuning: (!t.tuning.is_empty()).then(|| (&t.tuning).into()),
            companions: t.companions.iter().map(Into::into).collect(),
            shared: t.shared.iter().map(Into::into).collect(),
            mounts: t.mounts.iter().map(Into::into).collect(),
            shm_bytes: t.shm_bytes,
            privileges: (!t.privileges.is_empty()).then(|| (&t.privileges).into()),
        }
    }
}

impl TryFrom<v1::TaskTemplate> for TaskTemplate {
    type Error = Error;

    fn try_from(wire: v1::TaskTemplate) -> Result<Self, Error> {
        Ok(Self {
            image: wire.image,
            entrypoint: wire.entrypoint.map(|strings| strings.values),
            command: wire.command,
            env: wire.env,
            workdir: wire.workdir,
            user: wire.user,
            hostname: wire.hostname,
            container_labels: wire.container_labels.into_iter().collect(),
            stop_signal: wire.stop_signal,
            stop_grace_ms: wire.stop_grace_ms,
            read_only: wire.read_only,
            cap_add: wire.cap_add,
            cap_drop: wire.cap_drop,
            tuning: part_if_any("tuning", wire.tuning)?.unwrap_or_default(),
            limits: wire.limits.map(Into::into).unwrap_or_default(),
            restart: part_or_default("restart", wire.restart)?,
            log: wire.log.map(Into::into).unwrap_or_default(),
            force: wire.force,
            reserve: part_or_default("reserve", wire.reserve)?,
            health: part_or_default("health", wire.health)?,
            companions: each("companions", wire.companions)?,
            shared: each("shared", wire.shared)?,
            mounts: each("mounts", wire.mounts)?,
            shm_bytes: wire.shm_bytes,
            privileges: part_if_any("privileges", wire.privileges)?.unwrap_or_default(),
        })
    }
}

impl From<&ServiceSpec> for v1::ServiceSpec {
    fn from(spec: &ServiceSpec) -> Self {
        Self {
            name: spec.name.as_str().to_owned(),
            labels: spec.labels.clone().into_iter().collect(),
            mode: Some((&spec.mode).into()),
            ports: spec.ports.iter().map(Into::into).collect(),
            update: Some((&spec.update).into()),
            task: Some((&spec.task).into()),
            // The default is left out: an older reader knows no other.
            on_disconnect: (spec.on_disconnect != OnDisconnect::default())
                .then(|| spec.on_disconnect.into()),
            networks: spec.networks.iter().map(Into::into).collect(),
            endpoint: (spec.endpoint != Endpoint::default()).then(|| spec.endpoint.into()),
            placement: (spec.placement != Placement::default()).then(|| (&spec.placement).into()),
            rollback: (spec.rollback != RollbackPolicy::default()).then(|| (&spec.rollback).into()),
            job: (spec.job != JobPolicy::default()).then(|| (&spec.job).into()),
            moving: (spec.moving != Moving::default()).then(|| spec.moving.into()),
            hooks: (spec.hooks != Hooks::default()).then(|| (&spec.hooks).into()),
        }
    }
}

impl TryFrom<v1::ServiceSpec> for ServiceSpec {
    type Error = Error;

    fn try_from(wire: v1::ServiceSpec) -> Result<Self, Error> {
        Ok(Self {
            name: wire.name.parse().map_err(|problem| Error::new("name", format!("{problem}")))?,
            labels: wire.labels.into_iter().collect(),
            mode: part("mode", wire.mode)?,
            ports: each("ports", wire.ports)?,
            update: part_or_default("update", wire.update)?,
            task: part("task", wire.task)?,
            on_disconnect: part_or_default("on_disconnect", wire.on_disconnect)?,
            networks: each("networks", wire.networks)?,
            endpoint: part_or_default("endpoint", wire.endpoint)?,
            placement: part_or_default("placement", wire.placement)?,
            rollback: part_or_default("rollback", wire.rollback)?,
            job: part_or_default("job", wire.job)?,
            moving: part_or_default("moving", wire.moving)?,
            hooks: part_or_default("hooks", wire.hooks)?,
        })
    }
}

/// The counts and the update's state are left empty: only a listing knows.
impl From<&Service> for v1::Service {
    fn from(service: &Service) -> Self {
        Self {
            id: service.id.as_bytes().to_vec(),
            spec: Some((&service.spec).into()),
            template: service.template,
            removing: service.removing,
            created: service.created.0,
            updated: service.updated.0,
            revision: service.revision,
            running: 0,
            desired: 0,
            update_state: String::new(),
            completed: 0,
            addresses: Vec::new(),
            number: service.number,
            template_last: service.template_last,
            change: (service.change != Change::default()).then(|| (&service.change).into()),
            update: service.update.as_ref().map(Into::into),
            update_message: String::new(),
            job: service.job.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::Service> for Service {
    type Error = Error;

    fn try_from(wire: v1::Service) -> Result<Self, Error> {
        Ok(Self {
            id: service_id("id", &wire.id)?,
            spec: part("spec", wire.spec)?,
            // Older versions counted neither.
            number: wire.number.max(1),
            template: wire.template,
            template_last: wire.template_last.max(wire.template),
            change: part_or_default("change", wire.change)?,
            update: part_if_any("update", wire.update)?,
            job: part_if_any("job", wire.job)?,
            removing: wire.removing,
            created: Time(wire.created),
            updated: Time(wire.updated),
            revision: wire.revision,
        })
    }
}
