//! Commands that do things: what they send, how they wait, how they end.

use expect_test::expect;
use warren_model::ServiceSpec;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::fake::{FakeNode, World};
use super::samples::{progress, web};
use super::say;

fn converging() -> Vec<v1::Progress> {
    let mut warned = progress(1, "2 starting");
    warned.warning = "web.2: exit code 1, restarting".into();
    let mut done = progress(3, "");
    done.converged = true;
    vec![progress(0, "3 preparing"), warned.clone(), warned, done]
}

#[tokio::test]
async fn create_waits_and_tells() {
    let node = FakeNode::start(World { progress: converging(), ..World::default() });
    let line = "service create web --image nginx --replicas 3 -p 8080:80 -e A=b \
                --limit-cpu 0.5 --limit-memory 128m --restart-max-attempts 0 sh -c 'echo --image'";
    let said = say(&node, line).await;
    expect![[r#"
        exit 0
        --- out
        0c1g60r30c1g60r3
        --- err
        web: 0/3 running, 3 preparing
        web: 1/3 running, 2 starting
        warning: web.2: exit code 1, restarting
        web: 3/3 running
    "#]]
    .assert_eq(&said.all());
    let request = node.world(|world| world.created[0].clone());
    assert_eq!(request.request_id.len(), 16);
    let spec = ServiceSpec::try_from(request.spec.unwrap()).unwrap();
    assert_eq!(spec.task.command, ["sh", "-c", "echo --image"]);
    assert_eq!(spec.task.limits.cpu_millis, Some(500));
    assert_eq!(spec.task.limits.memory_bytes, Some(128 << 20));
    assert_eq!(spec.task.restart.max_attempts, None);
    assert_eq!(node.world(|world| world.waited[0].min_revision), 8);
}

#[tokio::test]
async fn detached_does_not_wait() {
    let node = FakeNode::start(World::default());
    let said = say(&node, "service create web --image nginx --detach -- -x").await;
    assert_eq!((said.exit, said.err.as_str()), (0, ""));
    node.world(|world| {
        assert!(world.waited.is_empty());
        assert_eq!(world.created[0].spec.as_ref().unwrap().task.as_ref().unwrap().command, ["-x"]);
    });
}

#[tokio::test]
async fn failing_to_converge_is_told() {
    let mut failed = progress(0, "");
    failed.failure = "web.1: command /nope not found".into();
    let node = FakeNode::start(World { progress: vec![failed], ..World::default() });
    let said = say(&node, "service create web --image nginx").await;
    expect![[r#"
        exit 1
        --- out
        0c1g60r30c1g60r3
        --- err
        web: 0/3 running
        error: service web will not converge: web.1: command /nope not found
        hint: warren service ps web
    "#]]
    .assert_eq(&said.all());
}

#[tokio::test]
async fn without_patience_there_is_one_look() {
    let node = FakeNode::start(World { progress: vec![progress(1, "")], ..World::default() });
    let said = say(&node, "wait service web --timeout 0s").await;
    expect![[r#"
        exit 1
        --- err
        web: 1/3 running
        error: service web did not converge within 0s: 1/3 running
        hint: warren service ps web
    "#]]
    .assert_eq(&said.all());
    let converged = v1::Progress { converged: true, ..progress(3, "") };
    let node = FakeNode::start(World { progress: vec![converged], ..World::default() });
    let said = say(&node, "wait service web --timeout 0s").await;
    expect![[r#"
        exit 0
        --- err
        web: 3/3 running
    "#]]
    .assert_eq(&said.all());
}

#[tokio::test]
async fn waiting_has_a_limit() {
    let node = FakeNode::start(World { progress: vec![progress(1, "")], ..World::default() });
    let said = say(&node, "wait service web --timeout 50ms").await;
    expect![[r#"
        exit 1
        --- err
        web: 1/3 running
        error: service web did not converge within 50ms: 1/3 running
        hint: warren service ps web
    "#]]
    .assert_eq(&said.all());
}

#[tokio::test]
async fn lost_connections_are_tried_again_with_the_same_id() {
    let world = World { losses: 2, progress: converging(), ..World::default() };
    let node = FakeNode::start(world);
    let said = say(&node, "service create web --image nginx -d").await;
    assert_eq!(said.exit, 0, "{}", said.err);
    node.world(|world| {
        assert_eq!(world.created.len(), 3);
        assert!(world.created.windows(2).all(|pair| pair[0] == pair[1]));
    });
}

#[tokio::test]
async fn update_sends_the_changed_whole() {
    let node = FakeNode::start(World {
        services: vec![web()],
        progress: converging(),
        ..World::default()
    });
    let line = "service update web --image nginx:1.28 --env-add LOG=debug --env-add A=1 --env-rm X \
                --publish-rm 80 --publish-add 9090:80 --label-rm team --replicas 5 \
                --args 'nginx -g \"daemon off;\"' --limit-memory 0 --force";
    let said = say(&node, line).await;
    expect![[r#"
        exit 0
        --- out
        web
        --- err
        warning: --env-rm: the service has no variable X
        web: 0/3 running, 3 preparing
        web: 1/3 running, 2 starting
        warning: web.2: exit code 1, restarting
        web: 3/3 running
    "#]]
    .assert_eq(&said.all());
    let request = node.world(|world| world.updated[0].clone());
    assert_eq!(request.revision, 5);
    let spec = ServiceSpec::try_from(request.spec.unwrap()).unwrap();
    let ports: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
    let shown = format!(
        "{:?} {:?} {:?} {ports:?} {:?} {:?} {:?} {}",
        spec.mode,
        spec.task.image,
        spec.task.env,
        spec.labels,
        spec.task.command,
        spec.task.limits.memory_bytes,
        spec.task.force
    );
    expect![[r#"Replicated { replicas: 5 } "nginx:1.28" ["LOG=debug", "A=1"] ["9090:80"] {} ["nginx", "-g", "daemon off;"] None 1"#]].assert_eq(&shown);
}

#[tokio::test]
async fn scale_restart_and_remove() {
    let node = FakeNode::start(World {
        services: vec![web()],
        progress: converging(),
        ..World::default()
    });
    assert_eq!(say(&node, "service scale web=7").await.exit, 0);
    assert_eq!(say(&node, "service restart web -d").await.out, "web\n");
    assert_eq!(say(&node, "service rm web").await.out, "web\n");
    assert_eq!(say(&node, "service scale db=7").await.exit, 3);
    let force: Vec<u32> = node.world(|world| {
        let template = |r: &v1::UpdateServiceRequest| {
            r.spec.as_ref().and_then(|s| s.task.as_ref()).map(|t| t.force)
        };
        world.updated.iter().filter_map(template).collect()
    });
    assert_eq!(force, [0, 1]);
    assert!(node.world(|world| world.waited.last().unwrap().removed));
}

#[tokio::test]
async fn exec_ends_as_its_command() {
    let frames = vec![
        frame::Kind::Stdout(b"out".to_vec().into()),
        frame::Kind::Stderr(b"err".to_vec().into()),
        frame::Kind::ExitCode(42),
    ];
    let node = FakeNode::start(World { frames, ..World::default() });
    let said = say(&node, "exec -e A=1 -u root -w /tmp web.2 sh -c 'exit 42'").await;
    assert_eq!((said.exit, said.out.as_str(), said.err.as_str()), (42, "out", "err"));
    node.world(|world| {
        let Some(open_stream::Kind::Exec(exec)) = world.opened.first() else { panic!() };
        assert_eq!(exec.target, "web.2");
        assert_eq!(exec.args, ["sh", "-c", "exit 42"]);
        assert_eq!((exec.user.as_deref(), exec.workdir.as_deref()), (Some("root"), Some("/tmp")));
        assert!(!exec.tty && !exec.stdin);
    });
}

#[tokio::test]
async fn streams_tell_why_they_fail() {
    let error = v1::StreamError {
        code: 3,
        message: "there is no task web.9".into(),
        hint: "warren service ps web".into(),
    };
    let node =
        FakeNode::start(World { frames: vec![frame::Kind::Error(error)], ..World::default() });
    let said = say(&node, "exec web.9 true").await;
    expect![[r#"
        exit 3
        --- err
        error: there is no task web.9
        hint: warren service ps web
    "#]]
    .assert_eq(&said.all());
    // An exec that just ends has not told its exit code.
    assert_eq!(say(&node, "exec web.9 true").await.exit, 5);
}

#[tokio::test]
async fn logs_are_told_apart() {
    let line = |slot, stderr, text: &str| {
        frame::Kind::Log(v1::LogLine {
            slot,
            stderr,
            line: text.into(),
            service: "web".into(),
            ..v1::LogLine::default()
        })
    };
    let frames = vec![line(1, false, "one"), line(2, true, "two")];
    let node = FakeNode::start(World { frames, ..World::default() });
    let said = say(&node, "service logs web --tail 5").await;
    assert_eq!((said.out.as_str(), said.err.as_str()), ("web.1 | one\n", "web.2 | two\n"));
}

#[tokio::test]
async fn images_are_uploaded_whole() {
    let image = v1::ImageRow {
        name: "demo:1".into(),
        id: "sha256:00112233445566778899".into(),
        size_bytes: 2_000_000,
        created: super::fake::NOW,
        digest: String::new(),
    };
    let answer = || {
        vec![frame::Kind::Images(v1::Images {
            images: vec![image.clone()],
            removed: vec![],
            freed_bytes: 0,
        })]
    };
    let node = FakeNode::start(World { frames: answer(), ..World::default() });
    let archive = vec![7_u8; 300_000];
    let path = node.folder().join("rootfs.tar");
    std::fs::write(&path, &archive).unwrap();
    let line = format!("image import {} demo:1 --cmd 'httpd -f' -e A=1", path.display());
    let said = say(&node, &line).await;
    assert_eq!((said.exit, said.out.as_str()), (0, "demo:1\n"), "{}", said.err);
    node.world(|world| {
        assert_eq!(world.input, archive);
        let Some(open_stream::Kind::ImageImport(import)) = world.opened.first() else { panic!() };
        assert_eq!(import.cmd, ["httpd", "-f"]);
        world.frames = answer();
    });
    let said = say(&node, "image ls --format '{{.Name}} {{.Size}} {{.SizeBytes}}'").await;
    assert_eq!(said.out, "demo:1 2.0MB 2000000\n");
}

#[tokio::test]
async fn archives_are_there_when_they_are_whole() {
    let piece = |text: &'static [u8]| frame::Kind::Stdout(text.into());
    let end = || frame::Kind::Images(v1::Images::default());
    let node = FakeNode::start(World::default());
    let path = node.folder().join("web.tar");
    let line = format!("image save -o {} web:1 db:2", path.display());
    let left = || std::fs::read_dir(node.folder()).unwrap().count();
    let before = left();
    // Without the end it is not whole.
    node.world(|world| world.frames = vec![piece(b"half")]);
    let said = say(&node, &line).await;
    assert_eq!((said.exit, path.exists(), left()), (1, false, before), "{}", said.err);
    node.world(|world| world.frames = vec![piece(b"one "), piece(b"two"), end()]);
    let said = say(&node, &line).await;
    assert_eq!((said.exit, left()), (0, before + 1), "{}", said.err);
    assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    node.world(|world| {
        let Some(open_stream::Kind::ImageSave(save)) = world.opened.first() else { panic!() };
        assert_eq!(save.images, ["web:1", "db:2"]);
        world.frames = vec![piece(b"out"), end()];
    });
    let said = say(&node, "image save -o - web:1").await;
    assert_eq!((said.exit, said.out.as_str()), (0, "out"), "{}", said.err);
}

#[tokio::test]
async fn the_check_of_images_says_what_is_left() {
    let finding = |name: &str, ok, hint: &str| v1::Finding {
        name: name.into(),
        ok,
        detail: "is altered".into(),
        hint: hint.into(),
        ..v1::Finding::default()
    };
    let end = v1::Finding { detail: "2 images, 5 layers compared".into(), ..finding("", true, "") };
    let findings = vec![finding("layers/ab", true, ""), finding("image web:1", false, "pull"), end];
    let answer = |findings| {
        vec![frame::Kind::Findings(v1::Findings { findings, ..v1::Findings::default() })]
    };
    let node = FakeNode::start(World { frames: answer(findings.clone()), ..World::default() });
    expect![[r#"
        exit 1
        --- out
        WHAT          PROBLEM      REPAIRED   HINT
        layers/ab     is altered   yes
        image web:1   is altered   no         pull
        --- err
        2 images, 5 layers compared
        error: 1 thing of the image store is not sound
        hint: warren image fsck --repair removes what nothing uses
    "#]]
    .assert_eq(&say(&node, "image fsck").await.all());
    node.world(|world| world.frames = answer(findings[2..].to_vec()));
    expect![[r#"
        exit 0
        --- out
        []
        --- err
        2 images, 5 layers compared
    "#]]
    .assert_eq(&say(&node, "image fsck --repair --format json").await.all());
}

#[tokio::test]
async fn events_without_follow_end() {
    let event = |revision, action: &str| v1::Event {
        revision,
        time: super::fake::NOW,
        kind: "service".into(),
        action: action.into(),
        id: "0c1g60r30c1g60r3".into(),
        name: "web".into(),
        message: String::new(),
    };
    let events = vec![event(3, "create"), event(7, "update"), event(8, "remove")];
    let node = FakeNode::start(World { events, ..World::default() });
    expect![[r#"
        exit 0
        --- out
        3  2027-01-15T08:00:00.000Z  service  create  0c1g60r30c1g60r3  web
        7  2027-01-15T08:00:00.000Z  service  update  0c1g60r30c1g60r3  web
    "#]]
    .assert_eq(&say(&node, "events").await.all());
    expect![[r#"
        exit 0
        --- out
        {"action":"create","id":"0c1g60r30c1g60r3","kind":"service","message":"","name":"web","revision":3,"time":"2027-01-15T08:00:00.000Z"}
        {"action":"update","id":"0c1g60r30c1g60r3","kind":"service","message":"","name":"web","revision":7,"time":"2027-01-15T08:00:00.000Z"}
    "#]].assert_eq(&say(&node, "events --format json").await.all());
}

#[tokio::test]
async fn doctor_counts_what_is_broken() {
    let finding = |name: &str, ok| v1::Finding {
        name: name.into(),
        ok,
        detail: "looked at".into(),
        hint: if ok { String::new() } else { "mend it".into() },
        ..v1::Finding::default()
    };
    let findings = vec![finding("images", true), finding("rules", false)];
    let findings = v1::Findings { findings, ..v1::Findings::default() };
    let node = FakeNode::start(World {
        frames: vec![frame::Kind::Findings(findings)],
        ..World::default()
    });
    let said = say(&node, "doctor").await;
    expect![[r#"
        exit 1
        --- out
        LEVEL   CHECK      FOUND                                    HINT
        ok      managers   1 of 1 can be reached
        ok      node       answers at DIR/warren.sock
        ok      images     looked at
        bad     rules      looked at                                mend it
        --- err
        error: 1 thing that is needed is broken
    "#]]
    .assert_eq(&said.all().replace(&*node.folder().to_string_lossy(), "DIR"));
}
