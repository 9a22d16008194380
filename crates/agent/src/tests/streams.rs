//! Tunnels: exec, logs, images, checks.

use warren_model::service::{PublishMode, ServiceSpec};
use warren_model::task::{Desired, TaskState};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream::Kind as Open;

use super::manager::{Session, Tunnel};
use super::{Bench, Wish, patiently, port, service_id, task_id, template};

async fn running(bench: &Bench) -> Session {
    let mut session = bench.session().await;
    let wish = Wish::new().task(1, Desired::Running).ports(&[port(8080, PublishMode::Ingress)]);
    session.send(wish.complete()).await;
    session.until(task_id(1), TaskState::Running, 1).await;
    session
}

/// All frames until the agent closes its side.
async fn frames(tunnel: &mut Tunnel) -> Vec<Kind> {
    let mut out = Vec::new();
    while let Some(frame) = patiently(tunnel.incoming.message()).await.unwrap() {
        out.extend(frame.kind);
    }
    out
}

async fn ask(bench: &Bench, session: &Session, kind: Open) -> Vec<Kind> {
    session.open(1, kind).await;
    let mut tunnel = bench.manager.tunnel().await;
    frames(&mut tunnel).await
}

fn error(frames: &[Kind]) -> (u32, String) {
    match frames {
        [.., Kind::Error(error)] => (error.code, error.message.clone()),
        other => panic!("no error: {other:?}"),
    }
}

fn exec(args: &[&str], task: u8) -> Open {
    Open::Exec(v1::Exec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        stdin: true,
        task: task_id(task).as_bytes().to_vec(),
        ..v1::Exec::default()
    })
}

#[tokio::test(start_paused = true)]
async fn exec_carries_both_ways_and_ends_with_a_code() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    session.open(77, exec(&["cat", "-"], 1)).await;
    let mut tunnel = bench.manager.tunnel().await;
    assert_eq!(tunnel.stream, "77");
    let send = async |kind| {
        tunnel.outgoing.send(Ok(v1::Frame { kind: Some(kind) })).await.unwrap();
    };
    // More than pipes and channels hold: nothing may wait for the other way round.
    for _ in 0..200 {
        send(Kind::Stdin(vec![b'x'; 1000].into())).await;
    }
    send(Kind::StdinClosed(true)).await;
    let got = frames(&mut tunnel).await;
    let mut echoed = 0;
    let mut said = Vec::new();
    for kind in &got {
        match kind {
            Kind::Stdout(bytes) => echoed += bytes.len(),
            Kind::Stderr(bytes) => said.extend_from_slice(bytes),
            Kind::ExitCode(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(echoed, 200_000);
    assert_eq!(said, b"cat -");
    assert_eq!(got.last(), Some(&Kind::ExitCode(7)));
}

#[tokio::test(start_paused = true)]
async fn exec_outlives_a_closed_half_and_ends_with_the_caller() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    session.open(1, exec(&["cat"], 1)).await;
    let mut tunnel = bench.manager.tunnel().await;
    tunnel.outgoing.send(Ok(v1::Frame { kind: Some(Kind::Stdin("a".into())) })).await.unwrap();
    let Tunnel { outgoing, .. } = &mut tunnel;
    let (closed, _) = tokio::sync::mpsc::channel(1);
    *outgoing = closed;
    // End of input is the end of `cat`, whose output still arrives.
    let got = frames(&mut tunnel).await;
    assert!(got.contains(&Kind::Stdout("a".into())), "{got:?}");
    assert_eq!(got.last(), Some(&Kind::ExitCode(7)));

    session.open(2, exec(&["cat"], 1)).await;
    let mut tunnel = bench.manager.tunnel().await;
    let gone = tonic::Status::cancelled("the caller went away");
    tunnel.outgoing.send(Err(gone)).await.unwrap();
    let got = frames(&mut tunnel).await;
    assert_eq!(got.last(), Some(&Kind::ExitCode(129)), "hung up");
}

#[tokio::test(start_paused = true)]
async fn exec_says_what_is_wrong() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    let refused = ask(&bench, &session, exec(&["missing"], 1)).await;
    assert_eq!(error(&refused), (2, "missing: not found".into()));
    let unknown = ask(&bench, &session, exec(&["ls"], 9)).await;
    assert_eq!(error(&unknown).0, 3);
    let nothing = ask(&bench, &session, exec(&[], 1)).await;
    assert_eq!(error(&nothing), (2, "no command is given".into()));
}

#[tokio::test(start_paused = true)]
async fn logs_of_tasks_are_merged_by_time() {
    let bench = Bench::new().await;
    let mut session = running(&bench).await;
    let mut wish = Wish::new().task(1, Desired::Running).task(2, Desired::Running);
    wish.revision = 2;
    session.send(wish.complete()).await;
    session.until(task_id(2), TaskState::Running, 1).await;
    for (task, at, line) in [(1, 10, "a"), (2, 20, "b"), (1, 30, "c"), (2, 40, "d")] {
        let dir = bench.dir.path().join("logs").join(task_id(task).to_string());
        bench.runtime.log(dir, at, line);
    }
    let logs = |tail, since, follow| {
        Open::Logs(v1::Logs {
            tasks: [1, 2, 9].map(|n| task_id(n).as_bytes().to_vec()).to_vec(),
            tail,
            since,
            follow,
            ..v1::Logs::default()
        })
    };
    let text = |frames: Vec<Kind>| {
        let line = |kind: &Kind| match kind {
            Kind::Log(log) => format!("{}{}", log.slot, String::from_utf8_lossy(&log.line)),
            other => panic!("{other:?}"),
        };
        frames.iter().map(line).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(text(ask(&bench, &session, logs(None, None, false)).await), "1a 2b 1c 2d");
    assert_eq!(text(ask(&bench, &session, logs(Some(1), None, false)).await), "1c 2d");
    assert_eq!(text(ask(&bench, &session, logs(None, Some(20), false)).await), "2b 1c 2d");
    assert_eq!(text(ask(&bench, &session, logs(Some(0), None, false)).await), "");

    session.open(5, logs(None, Some(30), true)).await;
    let mut tunnel = bench.manager.tunnel().await;
    let mut got = Vec::new();
    for _ in 0..2 {
        got.extend(patiently(tunnel.incoming.message()).await.unwrap().unwrap().kind);
    }
    assert_eq!(text(got), "1c 2d", "and none of them twice");
}

#[tokio::test(start_paused = true)]
async fn images_in_use_are_kept() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    bench.images.put(&"spare:1".parse().unwrap());
    // Of a revision that the service may go back to.
    bench.images.put(&"before:1".parse().unwrap());
    let listed = ask(&bench, &session, Open::ImageList(v1::ImageList {})).await;
    let [Kind::Images(images)] = &listed[..] else { panic!("{listed:?}") };
    let names: Vec<&str> = images.images.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, ["before:1", "spare:1", "web:1"]);
    let remove = |name: &str, force| {
        Open::ImageRemove(v1::ImageRemove { references: vec![name.into()], force, prune: None })
    };
    for force in [false, true] {
        let refused = ask(&bench, &session, remove("web:1", force)).await;
        assert_eq!(error(&refused), (4, "image web:1 is in use".into()));
    }
    let prune = |all, dry_run| {
        let prune = Some(v1::ImagePrune { all, unused_for_ms: 0, dry_run });
        Open::ImageRemove(v1::ImageRemove { prune, ..v1::ImageRemove::default() })
    };
    for (all, dry_run, expected) in [(false, false, 0), (true, true, 2)] {
        let pruned = ask(&bench, &session, prune(all, dry_run)).await;
        let [Kind::Images(images)] = &pruned[..] else { panic!("{pruned:?}") };
        assert_eq!(images.removed.len(), expected, "name and id of spare:1 alone: {images:?}");
    }
    let removed = ask(&bench, &session, remove("spare:1", false)).await;
    let [Kind::Images(images)] = &removed[..] else { panic!("{removed:?}") };
    assert_eq!(images.removed[0], "spare:1");
    let missing = ask(&bench, &session, remove("spare:1", false)).await;
    assert_eq!(error(&missing).0, 3);
}

#[tokio::test(start_paused = true)]
async fn images_are_pulled_and_imported() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    let pull = |name: &str| Open::ImagePull(v1::ImagePull { reference: name.into() });
    assert_eq!(error(&ask(&bench, &session, pull("far:1")).await).0, 3);
    assert_eq!(error(&ask(&bench, &session, pull("Far:1")).await).0, 2);
    bench.images.publish(&"far:1".parse().unwrap());
    let pulled = ask(&bench, &session, pull("far:1")).await;
    assert!(matches!(&pulled[..], [Kind::Images(images)] if images.images[0].name == "far:1"));

    let import = || {
        Open::ImageImport(v1::ImageImport {
            reference: "root:1".into(),
            ..v1::ImageImport::default()
        })
    };
    session.open(3, import()).await;
    let mut tunnel = bench.manager.tunnel().await;
    for kind in [Kind::Stdin("tar".into()), Kind::StdinClosed(true)] {
        tunnel.outgoing.send(Ok(v1::Frame { kind: Some(kind) })).await.unwrap();
    }
    let made = frames(&mut tunnel).await;
    assert!(matches!(&made[..], [Kind::Images(images)] if images.images[0].size_bytes == 3));

    // Cut off in the middle: not taken for a whole archive.
    session.open(4, import()).await;
    let mut tunnel = bench.manager.tunnel().await;
    tunnel.outgoing.send(Ok(v1::Frame { kind: Some(Kind::Stdin("ta".into())) })).await.unwrap();
    let (closed, _) = tokio::sync::mpsc::channel(1);
    tunnel.outgoing = closed;
    let cut = frames(&mut tunnel).await;
    assert_eq!(error(&cut).0, 1);
}

#[tokio::test(start_paused = true)]
async fn checks_refuse_what_cannot_run() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    let check = |image: &str, published: u16, service: Vec<u8>| {
        let spec = ServiceSpec {
            ports: vec![port(published, PublishMode::Ingress)],
            ..ServiceSpec::new(
                "other".parse().unwrap(),
                warren_model::TaskTemplate { image: image.into(), ..template() },
            )
        };
        Open::Check(v1::Check { spec: Some((&spec).into()), service, resolve: vec![] })
    };
    let other = vec![7; 10];
    let taken = ask(&bench, &session, check("web:1", 8080, other.clone())).await;
    assert_eq!(error(&taken), (4, "port 8080/tcp is taken by service web".into()));
    bench.network.take_port(9090, Some("nginx (pid 12)"));
    let foreign = ask(&bench, &session, check("web:1", 9090, other.clone())).await;
    assert_eq!(error(&foreign).0, 4);
    let missing = ask(&bench, &session, check("none:1", 7070, other)).await;
    assert_eq!(error(&missing).0, 3);
    // Its own port is no obstacle; the pretended image has no files.
    let own = service_id().as_bytes().to_vec();
    let empty = ask(&bench, &session, check("web:1", 8080, own)).await;
    assert_eq!(error(&empty).0, 2);
    assert!(error(&empty).1.contains("/bin/run"), "{empty:?}");
}

#[tokio::test(start_paused = true)]
async fn doctor_answers() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    let answer = ask(&bench, &session, Open::Doctor(v1::Doctor::default())).await;
    let [Kind::Findings(findings)] = &answer[..] else { panic!("{answer:?}") };
    let names: Vec<&str> = findings.findings.iter().map(|one| one.name.as_str()).collect();
    assert!(names.contains(&"containers") && names.contains(&"disk"), "{names:?}");
    let manager = findings.findings.iter().find(|one| one.name == "manager").unwrap();
    assert!(manager.ok && manager.detail.contains(super::ONE), "{manager:?}");
}

#[tokio::test(start_paused = true)]
async fn a_login_that_is_denied_says_what_else_to_try() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    let login = Open::RegistryLogin(v1::RegistryLogin {
        registry: "r.example".into(),
        user: "anna".into(),
        password: "wrong".into(),
        logout: false,
    });
    let answer = ask(&bench, &session, login).await;
    let [Kind::Error(error)] = &answer[..] else { panic!("{answer:?}") };
    assert!(error.hint.contains("access token") && !error.hint.contains("login"), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn one_container_is_signalled_or_begins_anew() {
    let bench = Bench::new().await;
    let mut session = running(&bench).await;
    let control = |task, signal| {
        Open::ControlTask(v1::ControlTask {
            task: task_id(task).as_bytes().to_vec(),
            signal,
            pause: None,
        })
    };
    let done = ask(&bench, &session, control(1, None)).await;
    assert_eq!(done, [Kind::ControlDone(v1::ControlDone { attempt: 1 })]);
    session.until(task_id(1), TaskState::Running, 2).await;
    let done = ask(&bench, &session, control(1, Some(10))).await;
    assert_eq!(done, [Kind::ControlDone(v1::ControlDone { attempt: 2 })]);
    // It does not stand it, and its restart policy has the say.
    session.until(task_id(1), TaskState::Running, 3).await;
    for (kind, code) in [(control(1, Some(65)), 2), (control(9, None), 3)] {
        assert_eq!(error(&ask(&bench, &session, kind).await).0, code);
    }
}

#[tokio::test(start_paused = true)]
async fn one_container_stands_still_and_is_looked_at() {
    let bench = Bench::new().await;
    let session = running(&bench).await;
    let task = task_id(1).as_bytes().to_vec();
    let pause = |paused| {
        Open::ControlTask(v1::ControlTask { task: task.clone(), signal: None, pause: Some(paused) })
    };
    let done = ask(&bench, &session, pause(true)).await;
    assert_eq!(done, [Kind::ControlDone(v1::ControlDone { attempt: 1 })]);
    // What would stand still as well is refused.
    let refused = error(&ask(&bench, &session, exec(&["cat"], 1)).await);
    assert_eq!(refused.0, 4, "{refused:?}");
    assert!(refused.1.ends_with(" is paused"), "{refused:?}");
    let usage = v1::Usage { targets: Vec::new(), tasks: vec![task.clone(), vec![9; 10]] };
    let rows = ask(&bench, &session, Open::Usage(usage)).await;
    let [Kind::Usage(rows)] = &rows[..] else { panic!("{rows:?}") };
    let row = &rows.rows[0];
    assert_eq!((rows.rows.len(), row.slot, row.cpu_ns, row.memory_limit), (1, 1, 7, 9));
    let top = v1::Top { task: task.clone(), ..v1::Top::default() };
    let found = ask(&bench, &session, Open::Top(top)).await;
    assert_eq!(found, [Kind::Processes(v1::Processes::default())]);
    for _ in 0..2 {
        let done = ask(&bench, &session, pause(false)).await;
        assert_eq!(done, [Kind::ControlDone(v1::ControlDone { attempt: 1 })]);
    }
    let privileged = v1::Exec {
        args: vec!["cat".to_owned()],
        task: task.clone(),
        privileged: true,
        ..v1::Exec::default()
    };
    let refused = error(&ask(&bench, &session, Open::Exec(privileged)).await);
    assert_eq!(refused.0, 4, "{refused:?}");
    for (path, code) in [("", 2), ("/x", 1)] {
        let copy = v1::Copy { task: task.clone(), path: path.to_owned(), ..v1::Copy::default() };
        let refused = error(&ask(&bench, &session, Open::Copy(copy)).await);
        assert_eq!(refused.0, code, "{refused:?}");
    }
}
