//! Containers that attack for a while: `make test-hostile`.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use warren_runtime::{ExecSpec, InjectedFile, LogQuery, Mount, MountKind, Runtime};

use crate::host::{Host, bounded};

fn exec(script: &str) -> ExecSpec {
    let args = ["sh", "-c", script].map(str::to_owned).to_vec();
    ExecSpec { args, ..ExecSpec::default() }
}

/// One container changes links and folders of a volume as fast as it can; others have mounts below
/// that volume. Whatever they meet, nothing of the machine is touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_races_on_mount_targets() {
    let host = Host::new();
    let (shared, inner) = (host.base.path().join("shared"), host.base.path().join("inner"));
    let outside = host.base.path().join("outside");
    for folder in [&shared, &inner, &outside] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(inner.join("file"), "mine\n").unwrap();
    let volume = |source: &std::path::Path, target: &str| Mount {
        kind: MountKind::Bind { source: source.to_owned() },
        target: target.to_owned(),
        read_only: false,
    };
    let away = outside.display();
    let script = format!(
        "echo up; cd /v; while :; do rm -rf door; ln -s / door; ln -sfn {away} door; \
         ln -sfn /proc door; ln -sfn ../../../.. door; rm door; mkdir -p door/deep; done"
    );
    let mut evil = host.shell("evil", &script);
    evil.mounts = vec![volume(&shared, "/v")];
    host.native().start(evil).await.unwrap();
    host.printed("up").await;
    let (mut started, mut refused) = (0, 0);
    let end = Instant::now() + Duration::from_secs(20);
    let mut number = 0;
    while Instant::now() < end {
        number += 1;
        let mut spec = host.shell(&format!("victim.{number}"), "cat /proc/1/status > /dev/null");
        spec.log.dir = host.base.path().join("victim-logs");
        spec.mounts = vec![volume(&shared, "/v"), volume(&inner, "/v/door/deep/in")];
        spec.files = vec![InjectedFile {
            target: "/v/door/secret".to_owned(),
            data: b"secret".to_vec(),
            mode: 0o600,
            of_user: false,
        }];
        let id = spec.id.clone();
        match host.native().start(spec).await {
            Ok(_) => {
                started += 1;
                // Its own /proc is the kernel's, wherever its mounts went.
                assert_eq!(host.wait(&id).await.code, 0);
            }
            Err(_) => refused += 1,
        }
        host.native().remove(&id).await.unwrap();
    }
    host.native().remove("evil").await.unwrap();
    println!("{started} started, {refused} refused");
    assert!(started > 0);
    // Neither places for mounts nor what was mounted.
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&inner).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(inner.join("file")).unwrap(), "mine\n");
    assert!(!std::path::Path::new("/deep").exists() && !std::path::Path::new("/secret").exists());
}

/// /etc/passwd becomes a file of 1 GiB, a pipe, a device, a link while execs read it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_a_passwd_that_changes_under_execs() {
    let host = Host::new();
    let script = "echo up; cd /etc; while :; do
        rm -f passwd; busybox truncate -s 1G passwd; rm -f passwd; busybox mkfifo passwd
        rm -f passwd; ln -s /dev/zero passwd; ln -sfn /proc/1/mem passwd; ln -sfn passwd passwd
        rm -f passwd; echo root:x:0:0::/root:/bin/sh > passwd; done";
    host.native().start(host.shell("web.1", script)).await.unwrap();
    host.printed("up").await;
    let (mut fine, mut refused, mut slowest) = (0, 0, Duration::ZERO);
    let end = Instant::now() + Duration::from_secs(20);
    while Instant::now() < end {
        let begin = Instant::now();
        match bounded(host.native().exec("web.1", exec("exit 0"))).await {
            Ok(mut exec) => {
                assert_eq!(bounded(exec.control.wait()).await.unwrap(), 0);
                fine += 1;
            }
            Err(_) => refused += 1,
        }
        slowest = slowest.max(begin.elapsed());
    }
    host.native().remove("web.1").await.unwrap();
    println!("{fine} executed, {refused} refused, the slowest in {slowest:?}");
    assert!(fine > 0 && slowest < Duration::from_secs(5));
}

/// Streams that are closed, filled, never read or held by others: starts, ends and execs go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_streams() {
    let host = Host::new();
    for (number, script) in [
        "exec 0<&- 1>&- 2>&-; exit 3",
        "exec 1>&2 2>&1; yes | head -c 300000000 >&2; exit 3",
        "busybox setsid sleep 1000 & exit 3",
        "cat /dev/urandom | head -c 50000000; exit 3",
        "head -c 100000000 /dev/zero; exit 3",
        "i=0; while [ $i -lt 200 ]; do (exec 9>&1; sleep 1000) & i=$((i+1)); done; exit 3",
        "for i in 1 2 3 4; do head -c 20000000 /dev/zero > /dev/stdout & done; wait; exit 3",
    ]
    .into_iter()
    .enumerate()
    {
        let mut spec = host.shell(&format!("streams.{number}"), script);
        spec.log.dir = host.base.path().join(format!("logs.{number}"));
        let (id, dir) = (spec.id.clone(), spec.log.dir.clone());
        host.native().start(spec).await.unwrap();
        assert_eq!(host.wait(&id).await.code, 3, "{script}");
        let size: u64 =
            fs::read_dir(&dir).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum();
        // Three files of 1 MiB, and what one write brings beyond.
        assert!(size < 4 << 20, "{script}: {size} bytes of logs");
        host.lines(&dir, LogQuery { tail: Some(10), ..LogQuery::default() }).await;
        host.native().remove(&id).await.unwrap();
    }
    // An exec that nobody reads: the container goes on, and ends.
    host.native().start(host.shell("web.1", "echo up; while :; do sleep 1; done")).await.unwrap();
    let mut stuck = Vec::new();
    for _ in 0..8 {
        stuck.push(host.native().exec("web.1", exec("yes")).await.unwrap());
    }
    let mut other = host.native().exec("web.1", exec("echo fine")).await.unwrap();
    let mut text = String::new();
    bounded(other.stdout.read_to_string(&mut text)).await.unwrap();
    assert_eq!(text, "fine\n");
    bounded(host.native().remove("web.1")).await.unwrap();
}

/// Tricks with /proc and control groups, all at once and again and again, under the default rules.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_tricks() {
    let host = Host::new();
    symlink("/proc/self/exe", host.image().join("evil")).unwrap();
    let script = "
        (echo 1 > /proc/sys/kernel/core_pattern) 2>/dev/null && echo open: core_pattern
        (echo x > /proc/sys/kernel/modprobe) 2>/dev/null && echo open: modprobe
        for f in /sys/fs/cgroup/*/release_agent /sys/fs/cgroup/release_agent; do
            (echo /x > $f) 2>/dev/null && echo open: $f; done
        for f in $(busybox find /sys/fs/cgroup -name 'cgroup.procs' -o -name tasks 2>/dev/null | head -40); do
            (echo 0 > $f) 2>/dev/null && echo open: $f; done
        for f in $(busybox find /sys/fs/cgroup -name '*limit_in_bytes' -o -name '*.max' 2>/dev/null | head -60); do
            (echo 1000000000 > $f) 2>/dev/null && echo open: $f; done
        mount -o remount,rw /sys 2>/dev/null && echo open: remount
        mount -t cgroup -o memory x /tmp 2>/dev/null && echo open: cgroup
        mount -t cgroup2 x /tmp 2>/dev/null && echo open: cgroup2
        umount /proc/sys 2>/dev/null && echo open: umount
        busybox nsenter -t 1 -m true 2>/dev/null && echo open: nsenter
        busybox chroot /proc/1/root ls /work 2>/dev/null && echo open: root
        (echo x > /evil) 2>/dev/null && echo open: exe
        (echo -1000 > /proc/self/oom_score_adj) 2>/dev/null && echo open: score
        busybox swapoff -a 2>/dev/null && echo open: swap
        for n in 0 1 2 3 4 5 6 7 8 9; do [ -e /proc/1/fd/$n/../../../../etc/shadow ] && echo open: fd $n; done
        echo done";
    for number in 0..20 {
        let (_, text) = host.run(host.shell(&format!("tricks.{number}"), script)).await;
        assert_eq!(text, "done\n");
    }
}
