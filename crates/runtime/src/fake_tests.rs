//! The fake keeps the promises of [`Runtime`].

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{Limits, LogPolicy, Privileges, Seccomp, Stream};

fn spec(id: &str) -> ContainerSpec {
    ContainerSpec {
        id: id.to_owned(),
        layers: Vec::new(),
        args: vec!["true".to_owned()],
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
        hostname: String::new(),
        read_only: false,
        limits: Limits::default(),
        mounts: Vec::new(),
        shm_bytes: None,
        devices: Vec::new(),
        files: Vec::new(),
        cap_add: Vec::new(),
        cap_drop: Vec::new(),
        no_new_privileges: true,
        seccomp: Seccomp::Default,
        privileges: Privileges::default(),
        stop_signal: 15,
        netns: None,
        keep: Vec::new(),
        log: LogPolicy { dir: PathBuf::from("/logs"), max_bytes: 1 << 20, max_files: 1 },
        labels: BTreeMap::new(),
    }
}

#[tokio::test]
async fn scripted_lives() {
    let fake = Fake::new();
    fake.script(|spec| match spec.id.as_str() {
        "short" => Program::Ends(3),
        "deaf" => Program::Deaf,
        "bad" => Program::Refused("no".to_owned()),
        _ => Program::Runs,
    });
    fake.set_now(UNIX_EPOCH + Duration::from_secs(9));
    assert!(matches!(fake.start(spec("bad")).await, Err(Error::Rejected(why)) if why == "no"));
    let started = fake.start(spec("short")).await.unwrap();
    assert_eq!(started.at, UNIX_EPOCH + Duration::from_secs(9));
    assert_eq!(fake.start(spec("short")).await.unwrap(), started);
    assert_eq!(fake.wait("short").await.unwrap().code, 3);
    for id in ["a", "b", "deaf"] {
        fake.start(spec(id)).await.unwrap();
    }
    assert_eq!(fake.running(), ["a", "b", "deaf"]);
    assert_eq!(fake.stop("a", Duration::MAX).await.unwrap().code, 143);
    assert_eq!(fake.stop("deaf", Duration::ZERO).await.unwrap().code, 137);
    fake.end_with("b", |exit| exit.oom_killed = true);
    assert!(fake.wait("b").await.unwrap().oom_killed);
    assert!(matches!(fake.signal("b", 9).await, Err(Error::NotRunning(_))));
    fake.remove("b").await.unwrap();
    fake.remove("b").await.unwrap();
    assert!(matches!(fake.wait("b").await, Err(Error::NotFound(_))));
    assert_eq!(fake.list().await.unwrap().len(), 3);
    let signals =
        [("a", 15), ("deaf", 15), ("deaf", 9)].map(|(id, signal)| (id.to_owned(), signal));
    assert_eq!(fake.signals(), signals);
    fake.lose_all();
    assert!(fake.list().await.unwrap().is_empty());
    assert_eq!(fake.started().len(), 4);
}

#[tokio::test]
async fn logs_and_execs() {
    let fake = Fake::new();
    let line = |second: u64| LogLine {
        at: UNIX_EPOCH + Duration::from_secs(second),
        stream: Stream::Stdout,
        line: vec![b'x'],
    };
    let dir = PathBuf::from("/logs");
    fake.print(dir.clone(), line(1));
    fake.print(dir.clone(), line(2));
    let query = LogQuery { tail: Some(1), follow: true, ..LogQuery::default() };
    let mut lines = fake.logs(dir.clone(), query).await.unwrap();
    assert_eq!(lines.recv().await, Some(line(2)));
    fake.print(PathBuf::from("/other"), line(3));
    fake.print(dir.clone(), line(4));
    assert_eq!(lines.recv().await, Some(line(4)));
    let query = LogQuery { since: Some(line(2).at), ..LogQuery::default() };
    let mut lines = fake.logs(dir, query).await.unwrap();
    assert_eq!(lines.recv().await, Some(line(2)));
    assert_eq!(lines.recv().await, Some(line(4)));
    assert_eq!(lines.recv().await, None);

    fake.start(spec("a")).await.unwrap();
    let mut exec = fake.exec("a", ExecSpec { stdin: true, ..ExecSpec::default() }).await.unwrap();
    let mut stdin = exec.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    drop(stdin);
    let mut text = String::new();
    exec.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello");
    assert_eq!(exec.control.wait().await.unwrap(), 0);
    let mut exec = fake.exec("a", ExecSpec { stdin: true, ..ExecSpec::default() }).await.unwrap();
    fake.end("a", 0);
    assert_eq!(exec.control.wait().await.unwrap(), 137);
}
