//! Processes beside a container's own.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_runtime::{Error, Exec, ExecSpec, Runtime};

use crate::host::{Host, bounded};

fn spec(args: &[&str]) -> ExecSpec {
    ExecSpec { args: args.iter().map(|arg| (*arg).to_owned()).collect(), ..ExecSpec::default() }
}

impl Host {
    async fn running(&self) {
        let mut spec = self.shell("web.1", "echo up; while :; do sleep 1000; done");
        spec.env = vec!["COLOUR=blue".to_owned(), "SHAPE=round".to_owned()];
        spec.cwd = "/tmp".to_owned();
        spec.cap_drop = vec!["MKNOD".to_owned()];
        self.native().start(spec).await.unwrap();
        self.printed("up").await;
    }

    async fn exec(&self, exec: ExecSpec) -> Result<Exec, Error> {
        bounded(self.native().exec("web.1", exec)).await
    }

    /// Exit code, standard output and standard error.
    async fn executed(&self, exec: ExecSpec) -> (i32, String, String) {
        finish(self.exec(exec).await.unwrap()).await
    }
}

async fn finish(mut exec: Exec) -> (i32, String, String) {
    drop(exec.stdin.take());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    bounded(exec.stdout.read_to_end(&mut stdout)).await.unwrap();
    if let Some(stream) = &mut exec.stderr {
        bounded(stream.read_to_end(&mut stderr)).await.unwrap();
    }
    let code = bounded(exec.control.wait()).await.unwrap();
    (code, String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_streams_and_code() {
    let host = Host::new();
    host.running().await;
    let (code, stdout, stderr) =
        host.executed(spec(&["sh", "-c", "echo out; echo err >&2; exit 9"])).await;
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (9, "out\n", "err\n"));

    let mut exec = host.exec(ExecSpec { stdin: true, ..spec(&["cat"]) }).await.unwrap();
    exec.stdin.as_mut().unwrap().write_all(b"through").await.unwrap();
    assert_eq!(finish(exec).await, (0, "through".to_owned(), String::new()));

    let mut exec = host.exec(spec(&["sleep", "1000"])).await.unwrap();
    exec.control.signal(9).await.unwrap();
    assert_eq!(bounded(exec.control.wait()).await.unwrap(), 137);
    assert!(matches!(exec.control.signal(9).await, Err(Error::NotRunning(_))));
    assert!(exec.control.resize(1, 1).await.is_err());
    host.native().remove("web.1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_inside_as_the_container_is() {
    let host = Host::new();
    host.running().await;
    let script = "pwd; echo $COLOUR $SHAPE $EXTRA $HOME; hostname; id -u; ls -d /proc/[0-9]* | head -1
        grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status
        readlink /proc/1/ns/mnt /proc/1/ns/net /proc/1/ns/ipc /proc/1/ns/uts /proc/1/ns/cgroup | sort -u > /tmp/one
        readlink /proc/self/ns/mnt /proc/self/ns/net /proc/self/ns/ipc /proc/self/ns/uts /proc/self/ns/cgroup | sort -u > /tmp/self
        ls /proc/self/fd | head -5 | busybox tr '\\n' ' '; cat /proc/1/cgroup > /tmp/a; cat /proc/self/cgroup > /tmp/b
        busybox cmp /tmp/a /tmp/b && echo same";
    let exec = ExecSpec {
        env: vec!["SHAPE=square".to_owned(), "EXTRA=1".to_owned()],
        ..spec(&["sh", "-c", script])
    };
    let (code, stdout, stderr) = host.executed(exec).await;
    assert_eq!(
        (code, stdout.as_str()),
        (
            0,
            "/tmp\nblue square 1 /root\nbox\n0\n/proc/1\n\
             CapEff:\t00000000a00425fb\nCapBnd:\t00000000a00425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n\
             0 1 2 3 same\n"
        ),
        "{stderr}"
    );
    let exec = ExecSpec {
        user: Some("bob".to_owned()),
        cwd: Some("/etc".to_owned()),
        ..spec(&["sh", "-c", "id; pwd; echo $HOME"])
    };
    let (_, stdout, _) = host.executed(exec).await;
    let expected = "uid=1000(bob) gid=1000(bob) groups=29(audio),50(staff)\n/etc\n/home/bob\n";
    assert_eq!(stdout, expected);
    host.native().remove("web.1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_terminal() {
    let host = Host::new();
    host.running().await;
    let script = "tty; stty size; test -t 0 && test -t 1 && test -t 2 && echo terminal
        trap 'stty size; exit 6' WINCH; echo ready; while :; do sleep 0.05; done";
    let exec = ExecSpec { tty: Some((24, 80)), stdin: true, ..spec(&["sh", "-c", script]) };
    let mut exec = host.exec(exec).await.unwrap();
    assert!(exec.stderr.is_none());
    let mut seen = Vec::new();
    while !seen.ends_with(b"ready\r\n") {
        let mut byte = [0];
        bounded(exec.stdout.read_exact(&mut byte)).await.unwrap();
        seen.push(byte[0]);
    }
    assert_eq!(String::from_utf8(seen).unwrap(), "/dev/pts/0\r\n24 80\r\nterminal\r\nready\r\n");
    exec.control.resize(50, 132).await.unwrap();
    let mut rest = Vec::new();
    bounded(exec.stdout.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(String::from_utf8(rest).unwrap(), "50 132\r\n");
    assert_eq!(bounded(exec.control.wait()).await.unwrap(), 6);

    let exec = ExecSpec { tty: Some((24, 80)), stdin: true, ..spec(&["sh"]) };
    let mut exec = host.exec(exec).await.unwrap();
    exec.stdin.as_mut().unwrap().write_all(b"exit 4\n").await.unwrap();
    assert_eq!(bounded(exec.control.wait()).await.unwrap(), 4);
    host.native().remove("web.1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_exec_refusals() {
    let host = Host::new();
    host.running().await;
    let (code, _, stderr) = host.executed(spec(&["nothing"])).await;
    assert_eq!((code, stderr.as_str()), (127, "exec: nothing: not found\n"));
    let (code, _, stderr) = host.executed(spec(&["/etc/passwd"])).await;
    assert_eq!((code, stderr.as_str()), (126, "exec: /etc/passwd: permission denied\n"));
    for (exec, expected) in [
        (spec(&[]), "no command to execute"),
        (
            ExecSpec { user: Some("eve".to_owned()), ..spec(&["true"]) },
            "no user \"eve\" in the image",
        ),
        (
            ExecSpec { cwd: Some("/etc/passwd".to_owned()), ..spec(&["true"]) },
            "working directory \"/etc/passwd\" is not a directory",
        ),
        (
            ExecSpec { cwd: Some("/no/such/folder".to_owned()), ..spec(&["true"]) },
            "working directory \"/no/such/folder\" does not exist",
        ),
    ] {
        let error = host.exec(exec).await.err().unwrap();
        assert_eq!(error.to_string(), expected);
    }
    let (code, stdout, _) = host.executed(spec(&["ls", "-d", "/no"])).await;
    assert_eq!((code, stdout.as_str()), (1, ""));
    // Descriptors of the host are closed before the working directory is entered.
    for number in 3..20 {
        let exec = ExecSpec {
            cwd: Some(format!("/proc/self/fd/{number}/../../../../..")),
            ..spec(&["ls", "-d", "run"])
        };
        if let Ok(exec) = host.exec(exec).await {
            assert_ne!(finish(exec).await.0, 0, "descriptor {number}");
        }
    }
    host.native().remove("web.1").await.unwrap();
    let error = host.exec(spec(&["true"])).await.err().unwrap();
    assert!(matches!(error, Error::NotFound(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_execs_end_with_their_container() {
    let host = Host::new();
    host.running().await;
    let mut execs = Vec::new();
    for _ in 0..5 {
        execs.push(host.exec(spec(&["sleep", "1000"])).await.unwrap());
    }
    host.native().signal("web.1", 9).await.unwrap();
    assert_eq!(host.wait("web.1").await.code, 137);
    for mut exec in execs {
        assert_eq!(bounded(exec.control.wait()).await.unwrap(), 137);
    }
    let error = host.exec(spec(&["true"])).await.err().unwrap();
    assert!(matches!(error, Error::NotRunning(_)), "{error}");
    host.native().remove("web.1").await.unwrap();
}
