//! Health checks and what came of them.

use warren_model::health::{
    Health, HealthAction, HealthSpec, HealthState, Healthcheck, HttpProbe, Probe,
};

use super::Digest;

pub(super) fn add_check(digest: &mut Digest, check: &Healthcheck) {
    let (kind, spec) = match check {
        Healthcheck::Implicit => return digest.word(1),
        Healthcheck::Off => return digest.word(2),
        Healthcheck::Explicit(spec) => (3, spec),
        Healthcheck::Image(spec) => (4, spec),
    };
    digest.word(kind);
    let HealthSpec {
        probe,
        interval_ms,
        timeout_ms,
        retries,
        start_period_ms,
        start_interval_ms,
        action,
    } = &**spec;
    add_probe(digest, probe);
    for ms in [interval_ms, timeout_ms, start_period_ms, start_interval_ms] {
        digest.word(*ms);
    }
    let action = match action {
        HealthAction::Restart => 1,
        HealthAction::None => 2,
    };
    digest.word(u64::from(*retries) << 8 | action);
}

fn add_probe(digest: &mut Digest, probe: &Probe) {
    match probe {
        Probe::Http(http) => {
            let HttpProbe { port, path, tls, headers, status } = http;
            digest.word(1 | u64::from(*tls) << 8 | u64::from(*port) << 16);
            digest.word(u64::from(status.0) << 16 | u64::from(status.1));
            digest.text(path);
            digest.word(headers.len() as u64);
            for (name, value) in headers {
                digest.text(name);
                digest.text(value);
            }
        }
        Probe::Tcp { port } => digest.word(2 | u64::from(*port) << 16),
        Probe::Grpc { port, service } => {
            digest.word(3 | u64::from(*port) << 16);
            digest.text(service);
        }
        Probe::Exec(args) => {
            digest.word(4);
            digest.texts(args);
        }
        Probe::Shell(command) => {
            digest.word(5);
            digest.text(command);
        }
    }
}

pub(super) fn add_health(digest: &mut Digest, health: Health) {
    let Health { state, since } = health;
    digest.word(match state {
        HealthState::Starting => 1,
        HealthState::Healthy => 2,
        HealthState::Unhealthy => 3,
    });
    digest.word(since.0);
}
