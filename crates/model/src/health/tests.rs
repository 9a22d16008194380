//! Rules of checks, and how they are written.

use std::net::Ipv4Addr;

use super::*;
use crate::service::PublishMode;

fn http(path: &str) -> HealthSpec {
    HealthSpec::new(Probe::Http(HttpProbe::new(80, path)))
}

fn exec(args: &[&str]) -> HealthSpec {
    HealthSpec::new(Probe::Exec(args.iter().map(|arg| (*arg).to_owned()).collect()))
}

fn port(protocol: Protocol, target: u16) -> PortSpec {
    let (bind, mode) = (Ipv4Addr::UNSPECIFIED, PublishMode::Ingress);
    PortSpec { protocol, bind, published: target, target, mode, name: None }
}

#[track_caller]
fn refused(spec: HealthSpec, expected: &str) {
    let error = Healthcheck::Explicit(Box::new(spec)).validate().unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn what_a_container_must_pass() {
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    let implicit = Healthcheck::Implicit;
    assert_eq!(implicit.gate(&[]), Gate::Open);
    assert_eq!(implicit.gate(&[port(udp, 53)]), Gate::Open);
    assert_eq!(
        implicit.gate(&[port(udp, 53), port(tcp, 80), port(tcp, 81)]),
        Gate::Implicit { port: 80 }
    );
    assert_eq!(Healthcheck::Off.gate(&[port(tcp, 80)]), Gate::Open);
    let explicit = Healthcheck::Explicit(Box::new(http("/")));
    assert!(matches!(explicit.gate(&[]), Gate::Explicit(_)));
}

#[test]
fn defaults_are_allowed() {
    let header = ("X-Probe".to_owned(), "a b".to_owned());
    let headers = vec![header; HealthSpec::HEADERS_MAX];
    let all = [
        http("/healthz?full=1"),
        HealthSpec::new(Probe::Http(HttpProbe { headers, ..HttpProbe::new(1, "/") })),
        HealthSpec::new(Probe::Tcp { port: 65535 }),
        HealthSpec::new(Probe::Grpc { port: 1, service: String::new() }),
        HealthSpec::new(Probe::Grpc { port: 1, service: "shop.v1.Cart".to_owned() }),
        exec(&["/bin/check", ""]),
        HealthSpec::new(Probe::Shell("test -f /ok".to_owned())),
        // As in Docker: the next probe waits.
        HealthSpec { interval_ms: 10, timeout_ms: 60_000, start_period_ms: 0, ..http("/") },
    ];
    for spec in all {
        Healthcheck::Explicit(Box::new(spec)).validate().unwrap();
    }
}

#[test]
fn what_is_wrong_is_said() {
    refused(
        HealthSpec::new(Probe::Tcp { port: 0 }),
        "health_tcp: \"0\" is no port, allowed are 1 to 65535",
    );
    refused(
        http("healthz"),
        "health_http: \"healthz\" is not a path such as /healthz: it begins with / and has no spaces",
    );
    refused(
        http("/a\r\nX: y"),
        "health_http: \"/a\\\\r\\\\nX: y\" is not a path such as /healthz: it begins with / and has no spaces",
    );
    refused(
        HealthSpec { interval_ms: 9, ..http("/") },
        "health_interval: \"9ms\" is not between 10ms and 1d",
    );
    refused(
        HealthSpec { timeout_ms: 0, ..http("/") },
        "health_timeout: \"0s\" is not between 1ms and 1d",
    );
    refused(
        HealthSpec { retries: 0, ..http("/") },
        "health_retries: \"0\" is not between 1 and 1000",
    );
    refused(exec(&[]), "health_cmd: \"\" names no program");
    refused(exec(&[" "]), "health_cmd: \" \" names no program");
    refused(exec(&["a\0b"]), "health_cmd: \"a\\\\0b\" contains a zero byte");
    let status =
        |status| HealthSpec::new(Probe::Http(HttpProbe { status, ..HttpProbe::new(80, "/") }));
    let range = "is not a range of status codes from 100 to 599, such as 200-399";
    refused(status((300, 200)), &format!("health_status: \"300-200\" {range}"));
    refused(status((200, 600)), &format!("health_status: \"200-600\" {range}"));
    let headers = vec![("X".to_owned(), "a\r\nEvil: 1".to_owned())];
    refused(
        HealthSpec::new(Probe::Http(HttpProbe { headers, ..HttpProbe::new(80, "/") })),
        "health_header: \"X=a\\\\r\\\\nEvil: 1\" is not a header NAME=VALUE of plain text with at most 1024 bytes",
    );
}

#[test]
fn probes_are_written_as_they_are_asked_for() {
    assert_eq!(Probe::Http(HttpProbe::new(80, "/ok")).to_string(), "http /ok:80");
    assert_eq!(Probe::Tcp { port: 5432 }.to_string(), "tcp 5432");
    assert_eq!(Probe::Grpc { port: 9, service: "a.B".to_owned() }.to_string(), "grpc 9/a.B");
    assert_eq!(exec(&["test", "-f", "/ok"]).probe.to_string(), "cmd test -f /ok");
}
