//! Flags of health checks, and how health is shown.

use expect_test::{Expect, expect};
use warren_model::ServiceSpec;
use warren_proto::v1;

use super::fake::{FakeNode, World};
use super::samples::{task, web};
use super::say;

/// What is said, then the check that the node was asked for.
async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(World { services: vec![web()], ..World::default() });
    let mut said = say(&node, line).await.all();
    let (created, updated) = node
        .world(|world| (std::mem::take(&mut world.created), std::mem::take(&mut world.updated)));
    let specs = created.into_iter().map(|wire| wire.spec);
    for spec in specs.chain(updated.into_iter().map(|wire| wire.spec)) {
        let spec = ServiceSpec::try_from(spec.unwrap()).unwrap();
        said.push_str(&format!("check {}\n", crate::cli::health::health_json(&spec)));
    }
    expected.assert_eq(&said);
}

#[tokio::test]
async fn checks() {
    check(
        "service create a -d --image nginx",
        expect![[r#"
            exit 0
            --- out
            0c1g60r30c1g60r3
            check {"declared":false,"origin":"none","probe":"none"}
        "#]],
    )
    .await;
    check(
        "service create a -d --image nginx -p 53:53/udp -p 8080:80",
        expect![[r#"
            exit 0
            --- out
            0c1g60r30c1g60r3
            check {"action":"none","declared":false,"origin":"ports","probe":"tcp 80","until":"the first success"}
        "#]],
    )
    .await;
    check(
        "service create a -d --image nginx -p 8080:80 --no-healthcheck",
        expect![[r#"
            exit 0
            --- out
            0c1g60r30c1g60r3
            check {"declared":true,"origin":"service","probe":"none"}
        "#]],
    )
    .await;
    check("service create a -d --image nginx -p 8080:80 --health-http /ok --health-header Host=x.example --health-status 200-299", expect![[r#"
        exit 0
        --- out
        0c1g60r30c1g60r3
        check {"action":"restart","declared":true,"headers":["Host=x.example"],"interval":"5s","origin":"service","probe":"http /ok:80","retries":3,"start_interval":"1s","start_period":"30s","status":"200-299","timeout":"2s"}
    "#]]).await;
    check("service create a -d --image nginx --health-https /ok:8443 --health-interval 1s --health-timeout 5s --health-retries 1 --health-start-period 0s --health-start-interval 100ms --health-action none", expect![[r#"
        exit 0
        --- out
        0c1g60r30c1g60r3
        check {"action":"none","declared":true,"headers":[],"interval":"1s","origin":"service","probe":"https /ok:8443","retries":1,"start_interval":"100ms","start_period":"0s","status":"200-399","timeout":"5s"}
    "#]]).await;
    for (flags, probe) in [
        ("--health-tcp 5432", "tcp 5432"),
        ("--health-grpc 50051", "grpc 50051"),
        ("--health-grpc 50051/shop.Cart", "grpc 50051/shop.Cart"),
        ("--health-cmd 'test -f /ok'", "cmd test -f /ok"),
        ("--health-cmd '[ -f /ok ]'", "cmd [ -f /ok ]"),
        (r#"--health-cmd '["/check", "-q"]'"#, "cmd /check -q"),
    ] {
        let node = FakeNode::start(World::default());
        let said = say(&node, &format!("service create a -d --image nginx {flags}")).await;
        assert_eq!(said.exit, 0, "{}", said.err);
        let spec = node.world(|world| world.created[0].spec.clone().unwrap());
        let spec = ServiceSpec::try_from(spec).unwrap();
        assert_eq!(crate::cli::health::health_json(&spec)["probe"], probe);
    }
}

#[tokio::test]
async fn changes() {
    check("service update web -d --health-tcp 80 --health-retries 5", expect![[r#"
        exit 0
        --- out
        web
        check {"action":"restart","declared":true,"interval":"5s","origin":"service","probe":"tcp 80","retries":5,"start_interval":"1s","start_period":"30s","timeout":"2s"}
    "#]]).await;
    check(
        "service update web -d --no-healthcheck",
        expect![[r#"
            exit 0
            --- out
            web
            check {"declared":true,"origin":"service","probe":"none"}
        "#]],
    )
    .await;
    check(
        "service update web -d --health-interval 1s",
        expect![[r#"
        exit 2
        --- err
        error: --health-interval is of no use without a check
        hint: say what to ask: --health-http, --health-tcp, --health-grpc or --health-cmd
    "#]],
    )
    .await;
}

#[tokio::test]
async fn contradictions() {
    check(
        "service create a --image nginx --health-tcp 80 --health-http /ok:80",
        expect![[r#"
        exit 2
        --- err
        error: --health-tcp cannot be given beside --health-http
        hint: one check a service; a command may look at several things
    "#]],
    )
    .await;
    check(
        "service create a --image nginx --no-healthcheck --health-retries 2",
        expect![[r#"
        exit 2
        --- err
        error: --no-healthcheck cannot be given beside --health-retries
    "#]],
    )
    .await;
    check(
        "service create a --image nginx --health-cmd '' --health-retries 2",
        expect![[r#"
        exit 2
        --- err
        error: --health-retries cannot be given beside --health-cmd '', which takes the check back
    "#]],
    )
    .await;
    check(
        "service create a --image nginx -p 53:53/udp --health-http /ok",
        expect![[r#"
        exit 2
        --- err
        error: --health-http: "/ok" has no port, and no TCP port is published
        hint: name the port in the container: --health-http /ok:8080
    "#]],
    )
    .await;
    check(
        "service create a --image nginx --health-tcp 80 --health-status 200",
        expect![[r#"
        exit 2
        --- err
        error: --health-status is for --health-http and --health-https, the check is tcp 80
    "#]],
    )
    .await;
    check(
        "service create a --image nginx --health-tcp 80 --health-interval 1ms",
        expect![[r#"
        exit 2
        --- err
        error: --health-interval: "1ms" is not between 10ms and 1d
    "#]],
    )
    .await;
    check("service create a --image nginx --health-cmd '[\"/check\"'", expect![[r#"
        exit 2
        --- err
        error: --health-cmd: "[\"/check\"" is neither a line for a shell nor a JSON array of texts, e.g. ["/check","-q"]
    "#]]).await;
    for (flag, said) in [
        ("--health-tcp 0", "\"0\" is not a port from 1 to 65535"),
        ("--health-tcp http", "\"http\" is not a port from 1 to 65535"),
        ("--health-grpc /a", "\"\" is not a port from 1 to 65535"),
        ("--health-http ok:80", "\"ok:80\" is not of the form PATH[:PORT], e.g. /healthz:8080"),
        ("--health-http /ok:99999", "\"99999\" is not a port from 1 to 65535"),
        ("--health-header x", "\"x\" is not of the form NAME=VALUE, e.g. Host=example.org"),
        ("--health-status ok", "\"ok\" is not a status or a range of them, e.g. 204 or 200-399"),
    ] {
        let node = FakeNode::start(World::default());
        let line = format!("service create a --image nginx -p 1:1 --health-http /a {flag}");
        let line = if flag.starts_with("--health-http") {
            line.replace(" --health-http /a", "")
        } else {
            line
        };
        let heard = say(&node, &line).await;
        assert!(heard.exit == 2 && heard.err.contains(said), "{flag}: {}", heard.err);
    }
}

fn ill(slot: u32, state: v1::HealthState, implicit: bool) -> v1::Task {
    let mut task = task(slot, v1::TaskState::Running, v1::Desired::Running);
    let status = task.status.as_mut().unwrap();
    status.health = Some(v1::Health { state: state.into(), since: status.since });
    task.health_implicit = implicit;
    task
}

#[tokio::test]
async fn health_is_shown() {
    let tasks = vec![
        ill(1, v1::HealthState::Healthy, false),
        ill(2, v1::HealthState::Starting, true),
        ill(3, v1::HealthState::Unhealthy, false),
    ];
    let node = FakeNode::start(World { services: vec![web()], tasks, ..World::default() });
    let template = "'{{.Name}} {{.State}} {{.Health}} {{.HealthImplicit}}'";
    let said = say(&node, &format!("service ps web --format {template}")).await;
    expect![[r#"
        web.1 running healthy false
        web.2 running starting true
        web.3 running unhealthy false
    "#]]
    .assert_eq(&said.out);
    let said = say(&node, "service ps web").await;
    for shown in ["running (healthy) ", "running (starting, implicit) ", "running (unhealthy) "] {
        assert!(said.out.contains(shown), "{}", said.out);
    }
}
