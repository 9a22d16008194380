//! Health checks: how a node finds out whether a container does its work.
//!
//! Two things follow from a check. *Readiness*: only a container that is
//! healthy is in names, virtual IPs and published ports, and only then does an
//! update go on. *Liveness*: what becomes of one that is unhealthy
//! ([`HealthAction`]).
//!
//! Where nothing is declared, a container that has a TCP port published is
//! ready once it accepts connections there ([`Gate::Implicit`]); nothing else
//! is asked of it and it is never stopped for that. Any other is ready when it
//! runs.
//!
//! Not here: when to ask and what follows from answers (`agent`).

use std::fmt;

use crate::service::{PortSpec, Protocol, SpecError, wrong};

mod rules;
#[cfg(test)]
mod tests;

/// What a service says of its containers' health.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Healthcheck {
    /// Nothing: what follows from its ports, see [`Healthcheck::gate`].
    #[default]
    Implicit,
    /// That it shall not be asked: a container is ready when it runs.
    Off,
    Explicit(Box<HealthSpec>),
    /// Nothing was declared, but the image has a `HEALTHCHECK` of its own: as it was when the
    /// service was made, or its containers changed.
    Image(Box<HealthSpec>),
}

/// A declared check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthSpec {
    pub probe: Probe,
    /// From the beginning of one probe to the beginning of the next, or to the end of the one
    /// before if that takes longer.
    pub interval_ms: u64,
    /// A probe without an answer after that has failed. May be longer than the interval, as in
    /// Docker: the next one waits.
    pub timeout_ms: u64,
    /// Failures in a row that make a container unhealthy. One success makes it healthy again.
    pub retries: u32,
    /// For so long after its start failures do not count, unless it has been healthy already.
    pub start_period_ms: u64,
    /// Longest pause between probes within the start period; shorter right after the start.
    pub start_interval_ms: u64,
    pub action: HealthAction,
}

/// What a probe does. All but `Exec` and `Shell` come from the node, to the container's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// GET; healthy if the status is within the range.
    Http(HttpProbe),
    /// Healthy if a connection is accepted.
    Tcp { port: u16 },
    /// `grpc.health.v1.Health/Check` without TLS; healthy if the answer is SERVING.
    Grpc {
        port: u16,
        /// Empty asks for the server as a whole.
        service: String,
    },
    /// A program within the container; healthy if it exits with 0.
    Exec(Vec<String>),
    /// The same by `/bin/sh -c`.
    Shell(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpProbe {
    pub port: u16,
    /// With the query, if any.
    pub path: String,
    /// Over TLS; whose certificate it is does not matter.
    pub tls: bool,
    /// Beside `Host`, `User-Agent` and `Connection`, which may be given here as well.
    pub headers: Vec<(String, String)>,
    /// First and last status that is good.
    pub status: (u16, u16),
}

impl HttpProbe {
    /// What browsers take for success, redirects included.
    pub const STATUS: (u16, u16) = (200, 399);

    /// Plain HTTP, no headers of its own.
    pub fn new(port: u16, path: impl Into<String>) -> Self {
        Self { port, path: path.into(), tls: false, headers: Vec::new(), status: Self::STATUS }
    }
}

/// What becomes of a container that is unhealthy; out of rotation it is at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HealthAction {
    /// It is stopped, and its restart policy decides as after an attempt that failed.
    #[default]
    Restart,
    /// It is left alone: it may recover.
    None,
}

impl HealthAction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::None => "none",
        }
    }
}

impl HealthSpec {
    /// Long enough to be cheap for a thousand containers (200 probes a second), short enough that
    /// with the retries a dead one is out within 15 s.
    pub const INTERVAL_MS: u64 = 5_000;
    /// A server that needs longer serves nobody; as most load balancers.
    pub const TIMEOUT_MS: u64 = 2_000;
    /// Docker's: one lost packet or one pause of a garbage collector is no illness.
    pub const RETRIES: u32 = 3;
    /// As long as Docker waits before its first probe; we look at once, so that who is quick does
    /// not wait, and forgive for as long, so that who is slow is not killed while it starts.
    pub const START_PERIOD_MS: u64 = 30_000;
    /// A container is noticed at most a second after it is ready.
    pub const START_INTERVAL_MS: u64 = 1_000;
    /// More often tells nothing that could be acted upon.
    pub const INTERVAL_MIN_MS: u64 = 10;
    /// A day.
    pub const DURATION_MAX_MS: u64 = 86_400_000;
    pub const RETRIES_MAX: u32 = 1_000;
    pub const PATH_MAX: usize = 1_024;
    pub const HEADERS_MAX: usize = 16;
    /// Of a header's name and value together.
    pub const HEADER_MAX: usize = 1_024;
    pub const GRPC_SERVICE_MAX: usize = 256;
    pub const ARGS_MAX: usize = 64;

    /// With all else by default.
    pub fn new(probe: Probe) -> Self {
        Self {
            probe,
            interval_ms: Self::INTERVAL_MS,
            timeout_ms: Self::TIMEOUT_MS,
            retries: Self::RETRIES,
            start_period_ms: Self::START_PERIOD_MS,
            start_interval_ms: Self::START_INTERVAL_MS,
            action: HealthAction::default(),
        }
    }
}

/// What a container must pass to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate<'a> {
    /// Nothing: it is ready when it runs.
    Open,
    /// Once it accepts a connection on this port it is ready, until it ends.
    Implicit {
        port: u16,
    },
    Explicit(&'a HealthSpec),
}

impl Healthcheck {
    /// What follows from it for a container of a service that publishes `ports`: of them the
    /// first TCP port counts.
    pub fn gate(&self, ports: &[PortSpec]) -> Gate<'_> {
        match self {
            Self::Off => Gate::Open,
            Self::Explicit(spec) | Self::Image(spec) => Gate::Explicit(spec),
            Self::Implicit => match first_tcp(ports) {
                Some(port) => Gate::Implicit { port },
                None => Gate::Open,
            },
        }
    }

    /// # Errors
    /// The first [`SpecError`] found; fields are named as flags are.
    pub fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Implicit | Self::Off => Ok(()),
            Self::Explicit(spec) | Self::Image(spec) => spec.validate(),
        }
    }

    /// The same with what its image says, if the service itself says nothing.
    #[must_use]
    pub fn with_image(self, image: Option<HealthSpec>) -> Self {
        match self {
            Self::Off | Self::Explicit(_) => self,
            Self::Implicit | Self::Image(_) => {
                image.map_or(Self::Implicit, |spec| Self::Image(Box::new(spec)))
            }
        }
    }

    pub(crate) fn text_len(&self) -> usize {
        match self {
            Self::Implicit | Self::Off => 0,
            Self::Explicit(spec) | Self::Image(spec) => spec.probe.text_len(),
        }
    }
}

/// The container's port behind the first TCP port that is published.
pub fn first_tcp(ports: &[PortSpec]) -> Option<u16> {
    ports.iter().find(|port| port.protocol == Protocol::Tcp).map(|port| port.target)
}

impl Probe {
    /// The word for its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Http(http) if http.tls => "https",
            Self::Http(_) => "http",
            Self::Tcp { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
            Self::Exec(_) | Self::Shell(_) => "cmd",
        }
    }

    fn text_len(&self) -> usize {
        match self {
            Self::Http(http) => {
                let headers = http.headers.iter().map(|(name, value)| name.len() + value.len());
                http.path.len() + headers.sum::<usize>()
            }
            Self::Tcp { .. } => 0,
            Self::Grpc { service, .. } => service.len(),
            Self::Exec(args) => args.iter().map(String::len).sum(),
            Self::Shell(command) => command.len(),
        }
    }
}

/// `http /healthz:80`, `tcp 5432`, `grpc 50051/api`, `cmd test -f /ok`.
impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind())?;
        match self {
            Self::Http(http) => write!(f, "{}:{}", http.path, http.port),
            Self::Tcp { port } => write!(f, "{port}"),
            Self::Grpc { port, service } if service.is_empty() => write!(f, "{port}"),
            Self::Grpc { port, service } => write!(f, "{port}/{service}"),
            Self::Exec(args) => f.write_str(&args.join(" ")),
            Self::Shell(command) => f.write_str(command),
        }
    }
}

/// What the agent found out last of a container that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Health {
    pub state: HealthState,
    /// When that was entered.
    pub since: crate::Time,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HealthState {
    /// Not healthy yet since its start.
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthState {
    /// Also the wire's numbering from 1.
    pub const ALL: [Self; 3] = [Self::Starting, Self::Healthy, Self::Unhealthy];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

fn bad(flag: &str, value: impl fmt::Display, problem: impl Into<String>) -> SpecError {
    wrong(&format!("health_{flag}"), value, problem)
}
