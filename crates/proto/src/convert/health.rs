//! Health checks as services declare them.

use warren_model::health::{HealthAction, HealthSpec, Healthcheck, HttpProbe, Probe};

use super::{Error, port, required};
use crate::v1;
use crate::v1::healthcheck::{Grpc, Header, Http, Off, Probe as Kind};

/// Nothing where nothing is declared: an older reader knows no other.
pub(super) fn declared(health: &Healthcheck) -> Option<v1::Healthcheck> {
    match health {
        Healthcheck::Implicit => None,
        Healthcheck::Off => {
            Some(v1::Healthcheck { probe: Some(Kind::Off(Off {})), ..v1::Healthcheck::default() })
        }
        Healthcheck::Explicit(spec) => Some((&**spec).into()),
        Healthcheck::Image(spec) => Some(v1::Healthcheck { of_image: true, ..(&**spec).into() }),
    }
}

impl From<&HealthSpec> for v1::Healthcheck {
    fn from(spec: &HealthSpec) -> Self {
        Self {
            probe: Some((&spec.probe).into()),
            interval_ms: Some(spec.interval_ms),
            timeout_ms: Some(spec.timeout_ms),
            retries: Some(spec.retries),
            start_period_ms: Some(spec.start_period_ms),
            start_interval_ms: Some(spec.start_interval_ms),
            action: match spec.action {
                HealthAction::Restart => v1::HealthAction::Restart,
                HealthAction::None => v1::HealthAction::None,
            }
            .into(),
            of_image: false,
        }
    }
}

impl TryFrom<v1::Healthcheck> for Healthcheck {
    type Error = Error;

    fn try_from(wire: v1::Healthcheck) -> Result<Self, Error> {
        let probe = match required("probe", wire.probe)? {
            Kind::Off(Off {}) => return Ok(Self::Off),
            Kind::Http(http) => Probe::Http(http.try_into().map_err(|e: Error| e.within("http"))?),
            Kind::Tcp(number) => Probe::Tcp { port: port("tcp", number)? },
            Kind::Grpc(Grpc { port: number, service }) => {
                Probe::Grpc { port: port("grpc.port", number)?, service }
            }
            Kind::Exec(args) => Probe::Exec(args.values),
            Kind::Shell(command) => Probe::Shell(command),
        };
        let action = match v1::HealthAction::try_from(wire.action) {
            Ok(v1::HealthAction::Unspecified) => HealthAction::default(),
            Ok(v1::HealthAction::Restart) => HealthAction::Restart,
            Ok(v1::HealthAction::None) => HealthAction::None,
            Err(_) => {
                let problem = format!("{} is not a known value", wire.action);
                return Err(Error::new("action", problem));
            }
        };
        let default = HealthSpec::new(probe);
        let spec = HealthSpec {
            interval_ms: wire.interval_ms.unwrap_or(default.interval_ms),
            timeout_ms: wire.timeout_ms.unwrap_or(default.timeout_ms),
            retries: wire.retries.unwrap_or(default.retries),
            start_period_ms: wire.start_period_ms.unwrap_or(default.start_period_ms),
            start_interval_ms: wire.start_interval_ms.unwrap_or(default.start_interval_ms),
            action,
            probe: default.probe,
        };
        let spec = Box::new(spec);
        Ok(if wire.of_image { Self::Image(spec) } else { Self::Explicit(spec) })
    }
}

impl From<&Probe> for Kind {
    fn from(probe: &Probe) -> Self {
        match probe {
            Probe::Http(http) => Self::Http(http.into()),
            Probe::Tcp { port } => Self::Tcp((*port).into()),
            Probe::Grpc { port, service } => {
                Self::Grpc(Grpc { port: (*port).into(), service: service.clone() })
            }
            Probe::Exec(args) => Self::Exec(v1::Strings { values: args.clone() }),
            Probe::Shell(command) => Self::Shell(command.clone()),
        }
    }
}

impl From<&HttpProbe> for Http {
    fn from(http: &HttpProbe) -> Self {
        let header =
            |(name, value): &(String, String)| Header { name: name.clone(), value: value.clone() };
        Self {
            port: http.port.into(),
            path: http.path.clone(),
            tls: http.tls,
            headers: http.headers.iter().map(header).collect(),
            status_first: http.status.0.into(),
            status_last: http.status.1.into(),
        }
    }
}

impl TryFrom<Http> for HttpProbe {
    type Error = Error;

    fn try_from(wire: Http) -> Result<Self, Error> {
        let status = match (wire.status_first, wire.status_last) {
            (0, 0) => Self::STATUS,
            // Both have the range of ports, as far as the type goes.
            (first, last) => (port("status_first", first)?, port("status_last", last)?),
        };
        let headers = wire.headers.into_iter().map(|Header { name, value }| (name, value));
        Ok(Self {
            port: port("port", wire.port)?,
            path: wire.path,
            tls: wire.tls,
            headers: headers.collect(),
            status,
        })
    }
}
