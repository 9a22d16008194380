//! What an exec meets in a root that is the container's to change, and what it brings along.

use warren_runtime::{ExecSpec, Runtime};

use super::exec;
use crate::host::Host;

fn as_user(user: &str) -> ExecSpec {
    ExecSpec { user: Some(user.to_owned()), ..exec("echo fine") }
}

#[tokio::test]
async fn host_user_files_bounded() {
    let host = Host::new();
    host.waiting("web.1").await;
    let script =
        "dd if=/dev/zero bs=1000000 count=5 2>/dev/null | busybox tr '\\0' '\\n' > /etc/passwd
        echo eve:x:77:77::/:/x >> /etc/passwd";
    host.executed_in("web.1", exec(script)).await.unwrap();
    let late = host.executed_in("web.1", as_user("eve")).await;
    // As large as it may be called; read to the limit, in no time.
    host.executed_in("web.1", exec("busybox truncate -s 1G /etc/passwd")).await.unwrap();
    let begin = std::time::Instant::now();
    let huge = host.executed_in("web.1", as_user("0")).await;
    let took = begin.elapsed();
    host.native().remove("web.1").await.unwrap();
    assert_eq!(late.unwrap_err().to_string(), "no user \"eve\" in the image");
    assert_eq!(huge.unwrap(), (0, "fine\n".to_owned()));
    println!("a file of 1 GiB: {took:?}");
}

#[tokio::test]
async fn host_user_files_regular() {
    let host = Host::new();
    host.waiting("web.1").await;
    let mut answers = Vec::new();
    for script in [
        "rm /etc/passwd; busybox mkfifo /etc/passwd",
        "rm /etc/passwd; ln -s /dev/zero /etc/passwd",
        "rm /etc/passwd; ln -s /proc/self/fd/0 /etc/passwd",
    ] {
        host.executed_in("web.1", exec(script)).await.unwrap();
        // The next script must run whatever the file is like: as a number, by root's name.
        let answer = host.executed_in("web.1", as_user("root")).await;
        answers.push(answer.map_or_else(|error| error.to_string(), |(code, _)| code.to_string()));
        host.native().remove("web.1").await.unwrap();
        host.waiting("web.1").await;
    }
    host.native().remove("web.1").await.unwrap();
    let expected = "read /etc/passwd and /etc/group of the image: Invalid argument (os error 22)";
    assert_eq!(answers, [expected; 3]);
}

#[tokio::test]
async fn host_descriptors() {
    let host = Host::new();
    let marker = host.base.path().file_name().unwrap().to_str().unwrap().to_owned();
    for number in 0..24 {
        let mut spec = host.shell("leaky", "pwd; ls; ls ..; ls ../..; ls ../../..");
        spec.cwd = format!("/proc/self/fd/{number}");
        if host.native().start(spec).await.is_err() {
            continue;
        }
        host.wait("leaky").await;
        host.native().remove("leaky").await.unwrap();
        let text = host.text(&host.log_dir()).await;
        assert!(!text.contains(&marker), "descriptor {number}: {text}");
    }
}

#[tokio::test]
async fn host_terminal() {
    let host = Host::new();
    // What looks like the terminals' master, in a place that is the container's own.
    let script = "busybox mount -t tmpfs none /dev/pts && busybox mknod /dev/pts/ptmx c 5 2 &&
        mkdir /dev/pts/pts && busybox mount -t devpts -o newinstance,ptmxmode=666 none /dev/pts/pts &&
        echo up; while :; do sleep 1000; done";
    let mut spec = host.shell("web.1", script);
    spec.cap_add = vec!["SYS_ADMIN".to_owned()];
    host.native().start(spec).await.unwrap();
    host.printed("up").await;
    let exec = ExecSpec { tty: Some((24, 80)), ..exec("tty") };
    let executed = host.executed_in("web.1", exec).await;
    host.native().remove("web.1").await.unwrap();
    let error = executed.unwrap_err().to_string();
    assert!(error.contains("open a terminal in the container"), "{error}");
}

#[tokio::test]
async fn host_not_dumpable() {
    let host = Host::new();
    let watch = "echo up; while [ ! -e /stop ]; do ls -l /proc/[0-9]*/exe 2>/dev/null; done";
    host.native().start(host.shell("web.1", watch)).await.unwrap();
    host.printed("up").await;
    // Between the end of its privileges and its program, it looks in all of these.
    let path = format!("PATH={}/bin", "/n:".repeat(2000));
    for _ in 0..10 {
        let mut exec = exec("exit 0");
        exec.env = vec![path.clone()];
        host.executed_in("web.1", exec).await.unwrap();
    }
    host.executed_in("web.1", exec("touch /stop")).await.unwrap();
    host.wait("web.1").await;
    host.native().remove("web.1").await.unwrap();
    let text = host.text(&host.log_dir()).await;
    assert!(!text.contains("memfd"), "its program was seen");
}
