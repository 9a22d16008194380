//! Health checks: flags of `service create` and `service update`, and how they are shown.

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use warren_model::health::{
    Gate, HealthAction, HealthSpec, Healthcheck, HttpProbe, Probe, first_tcp,
};
use warren_model::quantity::format_duration_ms;
use warren_model::service::{PortSpec, ServiceSpec};

use super::failure::Failure;
use super::spec::{count, duration};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ActionFlag {
    Restart,
    None,
}

/// What `create` and `update` share.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct HealthFlags {
    /// Healthy if this command exits with 0 in the container: a line for /bin/sh, or a JSON array
    /// of words; '' takes the check back
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    health_cmd: Option<String>,
    /// Healthy if a GET is answered with a good status; the port is the first one published
    #[arg(long, value_name = "PATH[:PORT]", allow_hyphen_values = true, value_parser = target)]
    health_http: Option<Target>,
    /// The same over TLS, whoever the certificate is for
    #[arg(long, value_name = "PATH[:PORT]", allow_hyphen_values = true, value_parser = target)]
    health_https: Option<Target>,
    /// Healthy if a connection is accepted
    #[arg(long, value_name = "PORT", allow_hyphen_values = true, value_parser = port)]
    health_tcp: Option<u16>,
    /// Healthy if grpc.health.v1 says SERVING, of one service or of all
    #[arg(long, value_name = "PORT[/SERVICE]", allow_hyphen_values = true, value_parser = grpc)]
    health_grpc: Option<Grpc>,
    /// Header of the GET
    #[arg(long, value_name = "NAME=VALUE", value_parser = header)]
    health_header: Vec<(String, String)>,
    /// Status that is good, or a range [default: 200-399]
    #[arg(long, value_name = "STATUS", allow_hyphen_values = true, value_parser = status)]
    health_status: Option<(u16, u16)>,
    /// From one probe to the next [default: 5s]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    health_interval: Option<u64>,
    /// A probe without an answer after that has failed [default: 2s]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    health_timeout: Option<u64>,
    /// Failures in a row that make a container unhealthy [default: 3]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    health_retries: Option<u32>,
    /// For so long after a start failures do not count, until the first success [default: 30s]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    health_start_period: Option<u64>,
    /// Longest pause between probes within the start period [default: 1s]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = duration)]
    health_start_interval: Option<u64>,
    /// What becomes of an unhealthy container: restart, as if it had failed, or none
    /// [default: restart]
    #[arg(long, value_enum, value_name = "ACTION")]
    health_action: Option<ActionFlag>,
    /// Ask nothing: ready when it runs
    #[arg(long)]
    no_healthcheck: bool,
}

/// A path, and a port if one is given.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    path: String,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Grpc {
    port: u16,
    service: String,
}

fn port(text: &str) -> Result<u16, String> {
    let wrong = || format!("{text:?} is not a port from 1 to 65535");
    text.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)
}

/// What follows the last colon is a port if it is a number.
fn target(text: &str) -> Result<Target, String> {
    if !text.starts_with('/') {
        return Err(format!("{text:?} is not of the form PATH[:PORT], e.g. /healthz:8080"));
    }
    let number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    match text.rsplit_once(':').filter(|(_, last)| number(last)) {
        Some((path, last)) => Ok(Target { path: path.to_owned(), port: Some(port(last)?) }),
        None => Ok(Target { path: text.to_owned(), port: None }),
    }
}

fn grpc(text: &str) -> Result<Grpc, String> {
    let (number, service) = text.split_once('/').unwrap_or((text, ""));
    Ok(Grpc { port: port(number)?, service: service.to_owned() })
}

fn header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form NAME=VALUE, e.g. Host=example.org")),
    }
}

fn status(text: &str) -> Result<(u16, u16), String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok(), last.parse().ok());
    first
        .zip(last)
        .ok_or_else(|| format!("{text:?} is not a status or a range of them, e.g. 204 or 200-399"))
}

/// Words, if it is a JSON array of them.
fn command(text: &str) -> Result<Probe, Failure> {
    if !text.trim_start().starts_with('[') {
        return Ok(Probe::Shell(text.to_owned()));
    }
    // `[ -f /ok ]` is a test of the shell.
    match serde_json::from_str(text) {
        Ok(args) => Ok(Probe::Exec(args)),
        Err(_) if text.trim_start().starts_with("[\"") => Err(Failure::input(format!(
            "--health-cmd: {text:?} is neither a line for a shell nor a JSON array of texts, e.g. [\"/check\",\"-q\"]"
        ))),
        Err(_) => Ok(Probe::Shell(text.to_owned())),
    }
}

impl HealthFlags {
    /// Puts what was given into `spec`, whose ports are set already.
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) -> Result<(), Failure> {
        let kinds = self.kinds();
        let others = self.others();
        if let [first, second, ..] = kinds[..] {
            return Err(Failure::input(format!("{second} cannot be given beside {first}"))
                .hint("one check a service; a command may look at several things"));
        }
        if self.no_healthcheck {
            if let Some(other) = kinds.iter().chain(&others).next() {
                return Err(Failure::input(format!(
                    "--no-healthcheck cannot be given beside {other}"
                )));
            }
            spec.task.health = Healthcheck::Off;
            return Ok(());
        }
        if self.health_cmd.as_deref() == Some("") {
            if let Some(other) = others.first() {
                return Err(Failure::input(format!(
                    "{other} cannot be given beside --health-cmd '', which takes the check back"
                )));
            }
            spec.task.health = Healthcheck::Implicit;
            return Ok(());
        }
        let probe = self.probe(&spec.ports)?;
        let known = match &spec.task.health {
            // Tuning what the image says makes it the service's own.
            Healthcheck::Explicit(known) | Healthcheck::Image(known) => Some((**known).clone()),
            Healthcheck::Implicit | Healthcheck::Off => None,
        };
        let mut check = match (probe, known) {
            (Some(probe), Some(known)) => HealthSpec { probe, ..known },
            (Some(probe), None) => HealthSpec::new(probe),
            (None, Some(known)) => known,
            (None, None) => match others.first() {
                None => return Ok(()),
                Some(other) => {
                    return Err(Failure::input(format!("{other} is of no use without a check"))
                        .hint("say what to ask: --health-http, --health-tcp, --health-grpc or --health-cmd"));
                }
            },
        };
        self.tune(&mut check)?;
        spec.task.health = Healthcheck::Explicit(Box::new(check));
        Ok(())
    }

    fn tune(&self, check: &mut HealthSpec) -> Result<(), Failure> {
        match &mut check.probe {
            Probe::Http(http) => {
                if !self.health_header.is_empty() {
                    http.headers.clone_from(&self.health_header);
                }
                http.status = self.health_status.unwrap_or(http.status);
            }
            other => {
                let header = (!self.health_header.is_empty()).then_some("--health-header");
                let status = self.health_status.map(|_| "--health-status");
                if let Some(flag) = header.or(status) {
                    return Err(Failure::input(format!(
                        "{flag} is for --health-http and --health-https, the check is {other}"
                    )));
                }
            }
        }
        check.interval_ms = self.health_interval.unwrap_or(check.interval_ms);
        check.timeout_ms = self.health_timeout.unwrap_or(check.timeout_ms);
        check.retries = self.health_retries.unwrap_or(check.retries);
        check.start_period_ms = self.health_start_period.unwrap_or(check.start_period_ms);
        check.start_interval_ms = self.health_start_interval.unwrap_or(check.start_interval_ms);
        match self.health_action {
            Some(ActionFlag::Restart) => check.action = HealthAction::Restart,
            Some(ActionFlag::None) => check.action = HealthAction::None,
            None => {}
        }
        Ok(())
    }

    /// Flags that say what to ask.
    fn kinds(&self) -> Vec<&'static str> {
        given([
            (self.health_cmd.is_some(), "--health-cmd"),
            (self.health_http.is_some(), "--health-http"),
            (self.health_https.is_some(), "--health-https"),
            (self.health_tcp.is_some(), "--health-tcp"),
            (self.health_grpc.is_some(), "--health-grpc"),
        ])
    }

    /// Those that say how.
    fn others(&self) -> Vec<&'static str> {
        given([
            (!self.health_header.is_empty(), "--health-header"),
            (self.health_status.is_some(), "--health-status"),
            (self.health_interval.is_some(), "--health-interval"),
            (self.health_timeout.is_some(), "--health-timeout"),
            (self.health_retries.is_some(), "--health-retries"),
            (self.health_start_period.is_some(), "--health-start-period"),
            (self.health_start_interval.is_some(), "--health-start-interval"),
            (self.health_action.is_some(), "--health-action"),
        ])
    }

    fn probe(&self, ports: &[PortSpec]) -> Result<Option<Probe>, Failure> {
        let http = |flag: &str, target: &Target, tls: bool| {
            let port = target.port.or_else(|| first_tcp(ports)).ok_or_else(|| {
                let path = &target.path;
                Failure::input(format!(
                    "{flag}: {path:?} has no port, and no TCP port is published"
                ))
                .hint(format!("name the port in the container: {flag} {path}:8080"))
            })?;
            Ok(Some(Probe::Http(HttpProbe { tls, ..HttpProbe::new(port, target.path.clone()) })))
        };
        if let Some(target) = &self.health_http {
            return http("--health-http", target, false);
        }
        if let Some(target) = &self.health_https {
            return http("--health-https", target, true);
        }
        if let Some(Grpc { port, service }) = &self.health_grpc {
            return Ok(Some(Probe::Grpc { port: *port, service: service.clone() }));
        }
        if let Some(port) = self.health_tcp {
            return Ok(Some(Probe::Tcp { port }));
        }
        self.health_cmd.as_deref().map(command).transpose()
    }
}

fn given<const N: usize>(flags: [(bool, &'static str); N]) -> Vec<&'static str> {
    flags.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag).collect()
}

/// For `inspect`: what is asked, whether anybody declared it or not.
pub(crate) fn health_json(spec: &ServiceSpec) -> Value {
    check_json(&spec.task.health, &spec.ports)
}

/// The same of any container that has such ports.
pub(crate) fn check_json(health: &Healthcheck, ports: &[PortSpec]) -> Value {
    match health.gate(ports) {
        Gate::Open => {
            let off = *health == Healthcheck::Off;
            let origin = if off { "service" } else { "none" };
            json!({"declared": off, "origin": origin, "probe": "none"})
        }
        Gate::Implicit { port } => json!({
            "declared": false,
            "origin": "ports",
            "probe": format!("tcp {port}"),
            "until": "the first success",
            "action": "none",
        }),
        Gate::Explicit(check) => {
            let mut value = json!({
                "declared": true,
                "origin": match health {
                    Healthcheck::Image(_) => "image",
                    Healthcheck::Implicit | Healthcheck::Off | Healthcheck::Explicit(_) => {
                        "service"
                    }
                },
                "probe": check.probe.to_string(),
                "interval": format_duration_ms(check.interval_ms),
                "timeout": format_duration_ms(check.timeout_ms),
                "retries": check.retries,
                "start_period": format_duration_ms(check.start_period_ms),
                "start_interval": format_duration_ms(check.start_interval_ms),
                "action": check.action.as_str(),
            });
            if let (Value::Object(all), Probe::Http(http)) = (&mut value, &check.probe) {
                let header = |(name, value): &(String, String)| format!("{name}={value}");
                let headers: Vec<String> = http.headers.iter().map(header).collect();
                all.insert("headers".to_owned(), json!(headers));
                let (first, last) = http.status;
                all.insert("status".to_owned(), json!(format!("{first}-{last}")));
            }
            value
        }
    }
}
