//! What init containers and sidecars may be, and what they reserve.

use super::*;
use crate::health::{HealthSpec, Probe};

/// `i` or `s`, name, and what it reserves: `i:migrate:200m/64`, in thousandths of a core and MiB.
fn companion(text: &str) -> Companion {
    let words: Vec<&str> = text.split(':').collect();
    let [kind, name, amounts] = words[..] else { panic!("{text}") };
    let kind = if kind == "i" { CompanionKind::Init } else { CompanionKind::Sidecar };
    let task = TaskTemplate {
        image: "busybox".to_owned(),
        reserve: resources(amounts),
        ..TaskTemplate::default()
    };
    Companion { name: name.parse().unwrap(), kind, task }
}

fn resources(text: &str) -> Resources {
    let (cpu, memory) = text.split_once('/').unwrap();
    Resources {
        cpu_millis: cpu.parse().unwrap(),
        memory_bytes: memory.parse().unwrap(),
        ..Resources::default()
    }
}

fn template(own: &str, companions: &str) -> TaskTemplate {
    TaskTemplate {
        image: "nginx".to_owned(),
        reserve: resources(own),
        companions: companions.split_whitespace().map(companion).collect(),
        ..TaskTemplate::default()
    }
}

#[track_caller]
fn sum(own: &str, companions: &str, expected: &str) {
    let reserved = template(own, companions).reserved().into_owned();
    assert_eq!(format!("{}/{}", reserved.cpu_millis, reserved.memory_bytes), expected);
}

#[test]
fn sums_are_those_of_kubernetes() {
    sum("100/10", "", "100/10");
    // Sidecars run beside it.
    sum("100/10", "s:a:50/5 s:b:20/1", "170/16");
    // Init containers run one after another, and before all others.
    sum("100/10", "i:a:50/5 i:b:60/1", "100/10");
    sum("100/10", "i:a:500/5 i:b:60/100", "500/100");
    sum("100/10", "i:a:120/12 s:b:50/1", "150/12");
    sum("0/0", "i:a:1/0", "1/0");
}

#[test]
fn names() {
    for good in ["a", "migrate", "log-shipper2"] {
        assert_eq!(good.parse::<CompanionName>().unwrap().as_str(), good);
    }
    let long = "a".repeat(33);
    for bad in ["", "A", "1a", "a_b", "a.b", "a-", "-a", "é", &long] {
        assert_eq!(bad.parse::<CompanionName>(), Err(CompanionNameError::Malformed), "{bad}");
    }
    assert_eq!("main".parse::<CompanionName>(), Err(CompanionNameError::Main));
}

#[track_caller]
fn check(companions: &str, change: impl FnOnce(&mut TaskTemplate), expected: &str) {
    let mut template = template("0/0", companions);
    change(&mut template);
    let got = template.validate().map_or_else(|e| e.to_string(), |()| "ok".to_owned());
    assert_eq!(got, expected);
}

#[test]
fn what_is_refused() {
    check("i:a:0/0 s:b:0/0", |_| {}, "ok");
    check("i:a:0/0 s:a:0/0", |_| {}, "sidecar: \"a\" is the name of two containers of the service");
    check(
        "s:proxy:0/0",
        |t| t.companions[0].task.image.clear(),
        "sidecar proxy: image: \"\" is empty, name one such as nginx:1.27",
    );
    check(
        "i:migrate:0/0",
        |t| t.companions[0].task.env = vec!["A".to_owned()],
        "init_container migrate: env: \"A\" is not of the form KEY=value",
    );
    check(
        "s:proxy:0/0",
        |t| t.companions[0].task.hostname = Some("x".to_owned()),
        "sidecar proxy: hostname: \"x\" is that of the task, and cannot be another for one of its \
         containers",
    );
    check(
        "s:proxy:0/0",
        |t| t.companions[0].task.companions = vec![companion("s:b:0/0")],
        "sidecar proxy: companions: \"1\" cannot have containers of its own",
    );
    let health = || Healthcheck::Explicit(Box::new(HealthSpec::new(Probe::Tcp { port: 1 })));
    check("s:a:0/0", |t| t.companions[0].task.health = health(), "ok");
    check(
        "i:a:0/0",
        |t| t.companions[0].task.health = health(),
        "init_container a: health: \"\" cannot be asked of what runs to its end; leave it out",
    );
    let many: Vec<String> = (0..17).map(|n| format!("s:c{n}:0/0")).collect();
    check(
        &many.join(" "),
        |_| {},
        "companions: \"17\" is more than 16 init containers and sidecars together",
    );
}
