//! What services of people are like: some of everything that there is.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use warren_base::rng::Rng;
use warren_model::health::{HealthAction, HealthSpec, Healthcheck, Probe};
use warren_model::placement::Preempt;
use warren_model::service::{
    Attachment, Endpoint, EndpointMode, FailureAction, Mode, OnDisconnect, PortSpec, Protocol,
    PublishMode, RestartPolicy, ServiceSpec, TaskTemplate, UpdateOrder, UpdatePolicy,
};

use super::super::plan::{DEVICE, NETWORKS, TOKEN};
use super::User;
use crate::machine::pick;
use crate::{hooks, jobs};

impl User {
    pub(super) fn ports(&self) -> Vec<PortSpec> {
        if self.rng.below(2) == 0 {
            return vec![];
        }
        // Of this write alone: a port that is taken would be a refusal.
        let published = u16::try_from(8000 + self.name * 1000 + self.writes % 1000).unwrap_or(8000);
        vec![PortSpec {
            protocol: Protocol::Tcp,
            bind: Ipv4Addr::UNSPECIFIED,
            published,
            target: 80,
            mode: PublishMode::Ingress,
            name: None,
        }]
    }

    pub(super) fn networks(&self) -> Vec<Attachment> {
        let mut names: BTreeSet<&str> = BTreeSet::new();
        for _ in 0..self.rng.below(3) {
            names.extend(pick(&self.rng, NETWORKS.len()).map(|at| NETWORKS[at]));
        }
        names.into_iter().filter_map(|name| name.parse().ok()).map(Attachment::new).collect()
    }

    pub(super) fn endpoint_mode(&self) -> EndpointMode {
        if self.rng.below(3) == 0 { EndpointMode::Dnsrr } else { EndpointMode::Vip }
    }

    pub(super) fn new_spec(&self, token: &str) -> Option<ServiceSpec> {
        let name = format!("s{token}").parse().ok()?;
        let order =
            if self.rng.below(2) == 0 { UpdateOrder::StartFirst } else { UpdateOrder::StopFirst };
        let restart = RestartPolicy { delay_ms: self.rng.below(200), ..RestartPolicy::default() };
        let template = TaskTemplate {
            image: "sim:1".into(),
            restart,
            stop_grace_ms: Some(1000),
            health: health(self.rng.below(4)),
            ..TaskTemplate::default()
        };
        let mut spec = ServiceSpec {
            mode: Mode::Replicated { replicas: u32::try_from(self.rng.below(5)).ok()? },
            labels: [(TOKEN.to_owned(), token.to_owned())].into(),
            update: UpdatePolicy {
                parallelism: u32::try_from(self.rng.below(3)).ok()?,
                delay_ms: self.rng.below(300),
                order,
                // What a fault of the simulation ended must neither pause it nor undo what was
                // acknowledged.
                failure_action: FailureAction::Continue,
                ..UpdatePolicy::default()
            },
            on_disconnect: match self.rng.below(4) {
                0 => OnDisconnect::Keep,
                1 => OnDisconnect::StopAfter { ms: 2_000 + self.rng.below(4_000) },
                _ => OnDisconnect::default(),
            },
            networks: self.networks(),
            endpoint: Endpoint { mode: self.endpoint_mode(), ..Endpoint::default() },
            ..ServiceSpec::new(name, template)
        };
        match self.rng.below(10) {
            0 | 1 => {
                jobs::make(&mut spec, &self.rng);
                if spec.job.schedule.is_some() && self.rng.below(2) == 0 {
                    spec.labels.insert(jobs::RESTS.to_owned(), String::new());
                }
            }
            2 => hooks::make(&mut spec, &self.rng),
            3 => drop(spec.task.reserve.generic.insert(DEVICE.to_owned(), 1)),
            // More than there is, so that some end for others.
            4..=6 => {
                spec.task.reserve.cpu_millis = 1_500 + self.rng.below(2_000);
                spec.placement.priority = i16::try_from(self.rng.below(4)).unwrap_or(0);
                spec.placement.preempt =
                    if self.rng.below(2) == 0 { Preempt::Lower } else { Preempt::Never };
            }
            _ => {}
        }
        Some(spec)
    }
}

/// Some services are asked how they are, and some of those restarted when they are not well.
fn health(lot: u64) -> Healthcheck {
    let action = match lot {
        0 => HealthAction::Restart,
        1 => HealthAction::None,
        _ => return Healthcheck::Implicit,
    };
    let check = HealthSpec::new(Probe::Tcp { port: 80 });
    Healthcheck::Explicit(Box::new(HealthSpec { action, ..check }))
}
