//! What a check must obey.

use super::{HealthSpec, HttpProbe, Probe, bad};
use crate::quantity::format_duration_ms;
use crate::service::SpecError;

impl HealthSpec {
    pub(super) fn validate(&self) -> Result<(), SpecError> {
        self.probe.validate()?;
        let least = Self::INTERVAL_MIN_MS;
        for (flag, ms, least) in [
            ("interval", self.interval_ms, least),
            ("timeout", self.timeout_ms, 1),
            ("start_period", self.start_period_ms, 0),
            ("start_interval", self.start_interval_ms, least),
        ] {
            if !(least..=Self::DURATION_MAX_MS).contains(&ms) {
                let (least, most) =
                    (format_duration_ms(least), format_duration_ms(Self::DURATION_MAX_MS));
                let problem = format!("is not between {least} and {most}");
                return Err(bad(flag, format_duration_ms(ms), problem));
            }
        }
        if !(1..=Self::RETRIES_MAX).contains(&self.retries) {
            let problem = format!("is not between 1 and {}", Self::RETRIES_MAX);
            return Err(bad("retries", self.retries, problem));
        }
        Ok(())
    }
}

impl Probe {
    fn validate(&self) -> Result<(), SpecError> {
        match self {
            Self::Http(http) => http.validate(),
            Self::Tcp { port } => check_port("tcp", *port),
            Self::Grpc { port, service } => {
                check_port("grpc", *port)?;
                let plain = |c: char| c.is_ascii_graphic();
                match service.len() <= HealthSpec::GRPC_SERVICE_MAX && service.chars().all(plain) {
                    true => Ok(()),
                    false => Err(bad(
                        "grpc",
                        service.escape_debug(),
                        format!(
                            "is not the name of a gRPC service (at most {} letters without spaces)",
                            HealthSpec::GRPC_SERVICE_MAX
                        ),
                    )),
                }
            }
            Self::Exec(args) => check_args(args),
            Self::Shell(command) => check_args(std::slice::from_ref(command)),
        }
    }
}

impl HttpProbe {
    fn validate(&self) -> Result<(), SpecError> {
        let flag = if self.tls { "https" } else { "http" };
        check_port(flag, self.port)?;
        let path = &self.path;
        if !path.starts_with('/') || !path.chars().all(|c| c.is_ascii_graphic()) {
            let problem = "is not a path such as /healthz: it begins with / and has no spaces";
            return Err(bad(flag, path.escape_debug(), problem));
        }
        if path.len() > HealthSpec::PATH_MAX {
            let problem = format!("is longer than {} bytes", HealthSpec::PATH_MAX);
            return Err(bad(flag, path, problem));
        }
        let (first, last) = self.status;
        if first < 100 || last > 599 || first > last {
            let problem = "is not a range of status codes from 100 to 599, such as 200-399";
            return Err(bad("status", format!("{first}-{last}"), problem));
        }
        if self.headers.len() > HealthSpec::HEADERS_MAX {
            let problem = format!("is more than {}", HealthSpec::HEADERS_MAX);
            return Err(bad("header", self.headers.len(), problem));
        }
        for (name, value) in &self.headers {
            // RFC 9110, 5.6.2 and 5.5; without the obsolete bytes above ASCII.
            let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            let text = |c: char| c.is_ascii_graphic() || c == ' ' || c == '\t';
            let fits = name.len() + value.len() <= HealthSpec::HEADER_MAX;
            if name.is_empty() || !name.chars().all(token) || !value.chars().all(text) || !fits {
                let problem = format!(
                    "is not a header NAME=VALUE of plain text with at most {} bytes",
                    HealthSpec::HEADER_MAX
                );
                return Err(bad("header", format!("{name}={value}").escape_debug(), problem));
            }
        }
        Ok(())
    }
}

fn check_port(flag: &str, port: u16) -> Result<(), SpecError> {
    match port {
        0 => Err(bad(flag, 0, "is no port, allowed are 1 to 65535")),
        _ => Ok(()),
    }
}

fn check_args(args: &[String]) -> Result<(), SpecError> {
    let program = args.first().is_some_and(|program| !program.trim().is_empty());
    if !program {
        return Err(bad("cmd", args.join(" "), "names no program"));
    }
    if args.len() > HealthSpec::ARGS_MAX {
        let problem = format!("words are more than {}", HealthSpec::ARGS_MAX);
        return Err(bad("cmd", args.len(), problem));
    }
    match args.iter().find(|arg| arg.contains('\0')) {
        Some(arg) => Err(bad("cmd", arg.escape_debug(), "contains a zero byte")),
        None => Ok(()),
    }
}
