//! Containers that people work with by hand: terminals, attaching, pausing, what they use.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_runtime::{ContainerState, Error, Exec, ExecSpec, LogQuery, Runtime};

use crate::host::{Host, bounded};

/// Reads until `wanted` has come.
async fn until(exec: &mut Exec, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 1024];
    while !text.contains(wanted) {
        let count = bounded(exec.stdout.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    text
}

async fn type_in(exec: &mut Exec, text: &str) {
    bounded(exec.stdin.as_mut().unwrap().write_all(text.as_bytes())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_terminal_of_a_container() {
    let host = Host::new();
    let script = "tty; test -t 1 && echo console $(stat -c %t /dev/console); echo up; read a; \
        stty size; echo got $a; read b; exit 7";
    let mut spec = host.shell("web.1", script);
    spec.tty = true;
    host.native().start(spec).await.unwrap();
    host.printed("up").await;
    let mut one = host.native().attach("web.1").await.unwrap();
    let mut two = host.native().attach("web.1").await.unwrap();
    assert!(one.stderr.is_none());
    one.control.resize(33, 101).await.unwrap();
    type_in(&mut one, "hello\r").await;
    for exec in [&mut one, &mut two] {
        let seen = until(exec, "got hello\r\n").await;
        assert!(seen.contains("33 101\r\n"), "{seen:?}");
    }
    // Going away is nothing to the container, nor is another daemon.
    drop(two);
    let again = host.other();
    let mut three = again.attach("web.1").await.unwrap();
    type_in(&mut three, "end\r").await;
    assert_eq!(bounded(three.control.wait()).await.unwrap(), 7);
    assert_eq!(bounded(one.control.wait()).await.unwrap(), 7);
    assert_eq!(host.wait("web.1").await.code, 7);
    host.native().remove("web.1").await.unwrap();
    let lines = host.lines(&host.log_dir(), LogQuery::default()).await;
    let lines: Vec<String> =
        lines.iter().map(|line| String::from_utf8_lossy(&line.line).into_owned()).collect();
    let expected = ["/dev/pts/0", "console 88", "up", "hello", "33 101", "got hello", "end"];
    assert_eq!(lines, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_attached_without_a_terminal() {
    let host = Host::new();
    let mut spec =
        host.shell("web.1", "echo up; while read a; do echo out $a; echo err $a >&2; done");
    spec.open_stdin = true;
    host.native().start(spec).await.unwrap();
    host.printed("up").await;
    let mut exec = host.native().attach("web.1").await.unwrap();
    assert!(exec.control.resize(1, 1).await.is_err());
    type_in(&mut exec, "one\n").await;
    assert_eq!(until(&mut exec, "\n").await, "out one\n");
    let mut errors = [0; 8];
    bounded(exec.stderr.as_mut().unwrap().read_exact(&mut errors)).await.unwrap();
    assert_eq!(&errors, b"err one\n");
    // Its input stays open for the next one.
    drop(exec);
    let mut exec = host.native().attach("web.1").await.unwrap();
    type_in(&mut exec, "two\n").await;
    assert_eq!(until(&mut exec, "\n").await, "out two\n");
    exec.control.signal(9).await.unwrap();
    assert_eq!(bounded(exec.control.wait()).await.unwrap(), 137);
    host.wait("web.1").await;
    let ended = host.native().attach("web.1").await;
    assert!(matches!(ended, Err(Error::NotRunning(_))));
    host.native().remove("web.1").await.unwrap();
}

/// One who is attached and does not read costs the container nothing, and is told what it missed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_slow_reader_of_a_copy() {
    let host = Host::new();
    let script = "echo up; read a; busybox yes 0123456789abcde | busybox head -c 4000000; echo; \
        echo done; read b; echo more; read c";
    let mut spec = host.shell("web.1", script);
    spec.open_stdin = true;
    host.native().start(spec).await.unwrap();
    host.printed("up").await;
    let mut slow = host.native().attach("web.1").await.unwrap();
    type_in(&mut slow, "go\n").await;
    host.printed("done").await;
    let mut buffer = vec![0; 1 << 20];
    bounded(slow.stdout.read_exact(&mut buffer[..900_000])).await.unwrap();
    type_in(&mut slow, "on\n").await;
    host.printed("more").await;
    let rest = until(&mut slow, "more\n").await;
    assert!(rest.contains(" bytes left out: read too slowly]\n"));
    host.native().remove("web.1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_paused() {
    let host = Host::new();
    let script = "trap 'echo bye; exit 3' TERM; i=0; echo up; while :; do i=$((i+1)); \
        echo $i > /count; busybox usleep 1000; done";
    host.native().start(host.shell("web.1", script)).await.unwrap();
    host.printed("up").await;
    let count = async || {
        let exec = ExecSpec { args: vec!["cat".into(), "/count".into()], ..ExecSpec::default() };
        let mut exec = host.native().exec("web.1", exec).await.unwrap();
        let mut text = String::new();
        bounded(exec.stdout.read_to_string(&mut text)).await.unwrap();
        text
    };
    let counted = || {
        let files = host.log_dir().with_file_name("data").join("containers/web.1/upper/count");
        std::fs::read_to_string(files).unwrap_or_default()
    };
    for _ in 0..2 {
        bounded(host.native().pause("web.1", true)).await.unwrap();
        let before = counted();
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(counted(), before);
        // Twice is as once, and whoever comes later finds it so.
        bounded(host.native().pause("web.1", true)).await.unwrap();
        let listed = host.other().list().await.unwrap();
        assert!(listed[0].paused && matches!(listed[0].state, ContainerState::Running { .. }));
        assert!(host.native().usage("web.1").await.unwrap().paused);
        bounded(host.native().pause("web.1", false)).await.unwrap();
        let stood = count().await;
        while count().await == stood {}
        assert!(!host.native().list().await.unwrap()[0].paused);
    }
    bounded(host.native().pause("web.1", true)).await.unwrap();
    // It hears its signal, and ends as it wants to.
    let exit = bounded(host.native().stop("web.1", Duration::from_secs(20))).await.unwrap();
    assert_eq!(exit.code, 3);
    host.native().remove("web.1").await.unwrap();
    // One that is deaf is killed, and one that is removed as well.
    let deaf = host.shell("web.2", "trap '' TERM; echo up; while :; do busybox sleep 1; done");
    host.native().start(deaf).await.unwrap();
    bounded(host.native().pause("web.2", true)).await.unwrap();
    let exit = bounded(host.native().stop("web.2", Duration::from_millis(50))).await.unwrap();
    assert_eq!(exit.code, 137);
    host.native().remove("web.2").await.unwrap();
    host.native().start(host.shell("web.3", "busybox sleep 1000")).await.unwrap();
    bounded(host.native().pause("web.3", true)).await.unwrap();
    bounded(host.native().remove("web.3")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_usage_and_processes() {
    let host = Host::new();
    // A shell that holds some memory, and one that wants a processor.
    let script = "a=$(busybox head -c 3000000 /dev/zero | busybox tr '\\0' x); echo up; \
        (while :; do :; done) & busybox sleep 1000; echo ${#a}";
    let mut spec = host.shell("web.1", script);
    spec.limits.memory_bytes = Some(64 << 20);
    spec.limits.cpu_millis = Some(200);
    spec.limits.pids = Some(50);
    host.native().start(spec).await.unwrap();
    host.printed("up").await;
    let first = host.native().usage("web.1").await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let then = host.native().usage("web.1").await.unwrap();
    assert_eq!((then.memory_limit, then.pids_limit), (Some(64 << 20), Some(50)));
    assert_eq!(then.pids, 3);
    assert!((3_000_000..30_000_000).contains(&then.memory_bytes), "{then:?}");
    let (cpu, wall) = (then.cpu_ns - first.cpu_ns, then.at_ns - first.at_ns);
    // A fifth of a processor at most, and it wants it all.
    assert!(cpu > 0 && cpu < wall / 3, "{cpu} of {wall}");
    assert!(then.throttled_periods > 0 && then.throttled_ns > 0, "{then:?}");
    assert!(then.network.is_some() && then.io.is_some());

    let processes = host.native().processes("web.1").await.unwrap();
    assert_eq!(processes.len(), 3);
    let main = processes.iter().find(|process| process.inner == 1).unwrap();
    let sleeper = processes.iter().find(|process| process.command == "busybox sleep 1000").unwrap();
    assert!(main.command.starts_with("/bin/sh -c "), "{}", main.command);
    assert_eq!((sleeper.parent, sleeper.state, sleeper.uid), (main.pid, 'S', 0));
    host.native().remove("web.1").await.unwrap();
    assert!(host.native().usage("web.1").await.is_err());
    assert!(host.native().processes("web.1").await.is_err());
}
