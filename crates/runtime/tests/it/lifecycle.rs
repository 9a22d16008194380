//! Start, end, stop, signal, limits, removal.

use std::time::Duration;

use warren_runtime::{ContainerState, Error, Limits, LogQuery, Runtime, Stream};

use crate::host::{Host, bounded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_output_and_exit_code() {
    let host = Host::new();
    let spec = host.shell("web.1", "echo out; echo err >&2; printf unended; exit 7");
    let started = host.native().start(spec.clone()).await.unwrap();
    assert!(started.pid > 1);
    let exit = host.wait("web.1").await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, None, false));
    assert!(!exit.supervisor_lost && exit.at >= started.at);
    let lines = host.lines(&host.log_dir(), LogQuery::default()).await;
    let mut seen = lines.iter().map(|line| (line.stream, line.line.as_slice())).collect::<Vec<_>>();
    seen.sort_by_key(|(stream, text)| (*stream == Stream::Stderr, *text));
    let expected = [
        (Stream::Stdout, b"out".as_slice()),
        (Stream::Stdout, b"unended"),
        (Stream::Stderr, b"err"),
    ];
    assert_eq!(seen, expected);

    // Doing it again is harmless.
    assert_eq!(host.native().start(spec).await.unwrap(), started);
    assert_eq!(host.wait("web.1").await, exit);
    let listed = host.native().list().await.unwrap();
    assert_eq!(listed[0].state, ContainerState::Exited(exit));
    assert_eq!(listed[0].labels["task"], "web.1");
    host.native().remove("web.1").await.unwrap();
    host.native().remove("web.1").await.unwrap();
    assert!(matches!(host.native().wait("web.1").await, Err(Error::NotFound(_))));
    assert!(host.native().list().await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_memory_limit() {
    let host = Host::new();
    let limits = Limits { memory_bytes: Some(16 << 20), ..Limits::default() };
    let mut spec = host.spec("eater", &["tail", "/dev/zero"]);
    spec.limits = limits.clone();
    let (exit, _) = host.run(spec).await;
    assert_eq!((exit.code, exit.signal, exit.oom_killed), (137, Some(9), true));

    // The victim is not the first process, which ends well.
    let mut spec = host.shell("parent", "tail /dev/zero; echo survived");
    spec.limits = limits;
    let (exit, text) = host.run(spec).await;
    assert!(text.contains("survived\n"), "{text}");
    assert_eq!((exit.code, exit.oom_killed), (0, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_limits_are_set_and_seen() {
    let host = Host::new();
    let mut spec = host.shell(
        "limited",
        "cd /sys/fs/cgroup
         if [ -e memory.max ]; then cat memory.max cpu.max pids.max; else
         cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us pids/pids.max; fi
         cat /proc/self/cgroup | grep -v ':/$'",
    );
    spec.limits = Limits {
        memory_bytes: Some(64 << 20),
        cpu_millis: Some(500),
        cpu_shares: Some(512),
        pids: Some(77),
        cpuset_cpus: Some("0".into()),
        ..Limits::default()
    };
    let (_, text) = host.run(spec).await;
    assert!(
        ["67108864\n50000\n77\n", "67108864\n50000 100000\n77\n"].contains(&text.as_str()),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_process_limit() {
    let host = Host::new();
    let script = "i=0; while [ $i -lt 30 ]; do sleep 100 & i=$((i+1)); done; echo all";
    let mut spec = host.shell("forker", script);
    spec.limits.pids = Some(10);
    let (exit, text) = host.run(spec).await;
    assert_ne!(exit.code, 0);
    assert!(text.contains("can't fork"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_stop_and_signal() {
    let host = Host::new();
    let obedient = "trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done";
    host.native().start(host.shell("obedient", obedient)).await.unwrap();
    host.printed("ready").await;
    let exit = bounded(host.native().stop("obedient", Duration::from_secs(50))).await.unwrap();
    assert_eq!((exit.code, exit.signal), (3, None));

    let stubborn = "trap '' TERM; sleep 1000 & echo deaf; wait; while :; do sleep 1; done";
    host.native().start(host.shell("stubborn", stubborn)).await.unwrap();
    host.printed("deaf").await;
    let exit = bounded(host.native().stop("stubborn", Duration::from_millis(50))).await.unwrap();
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    // Stopping what has ended tells how.
    let again = host.native().stop("stubborn", Duration::ZERO).await.unwrap();
    assert_eq!(again, exit);
    let error = host.native().signal("stubborn", 15).await.unwrap_err();
    assert!(matches!(error, Error::NotRunning(_)), "{error}");

    let mut spec = host.shell("usr1", "trap 'exit 5' USR1; echo set; while :; do sleep 0.05; done");
    spec.stop_signal = 10;
    host.native().start(spec).await.unwrap();
    host.printed("set").await;
    host.native().signal("usr1", 10).await.unwrap();
    assert_eq!(host.wait("usr1").await.code, 5);

    for id in ["obedient", "stubborn", "usr1"] {
        host.native().remove(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_removing_a_running_container_leaves_nothing() {
    let host = Host::new();
    let spec = host.shell("busy", "touch /file; sleep 1000 & sleep 1000 & echo on; wait");
    host.native().start(spec).await.unwrap();
    host.printed("on").await;
    let pid = host.pid("busy").await;
    assert!(!host.remains().is_empty());
    bounded(host.native().remove("busy")).await.unwrap();
    assert!(!std::fs::exists(format!("/proc/{pid}")).unwrap());
    assert_eq!(host.remains(), Vec::<String>::new());
    assert!(host.log_dir().exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_many_at_once() {
    let host = Host::new();
    let mut ids = Vec::new();
    let mut starts = Vec::new();
    for number in 0..20 {
        let id = format!("many.{number}");
        let mut spec = host.shell(&id, &format!("exit {number}"));
        spec.log.dir = host.base.path().join(format!("logs.{number}"));
        starts.push(host.native().start(spec));
        ids.push(id);
    }
    for started in futures_join(starts).await {
        started.unwrap();
    }
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(host.wait(id).await.code, i32::try_from(number).unwrap());
        host.native().remove(id).await.unwrap();
    }
}

/// All of some futures, at once.
async fn futures_join<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut pinned = futures.into_iter().map(Box::pin).collect::<Vec<_>>();
    let mut results = pinned.iter().map(|_| None).collect::<Vec<Option<T>>>();
    std::future::poll_fn(|context| {
        for (future, result) in pinned.iter_mut().zip(&mut results) {
            if result.is_none()
                && let std::task::Poll::Ready(done) = future.as_mut().poll(context)
            {
                *result = Some(done);
            }
        }
        if results.iter().all(Option::is_some) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    results.into_iter().flatten().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_shims_are_small() {
    let host = Host::new();
    const COUNT: u64 = 5;
    for number in 0..COUNT {
        let spec = host.shell(&format!("small.{number}"), &format!("echo on {number}; sleep 1000"));
        host.native().start(spec).await.unwrap();
        host.printed(&format!("on {number}")).await;
    }
    let mut total_kib = 0;
    for number in 0..COUNT {
        let shim = host.shim_pid(&format!("small.{number}")).await;
        let smaps = std::fs::read_to_string(format!("/proc/{shim}/smaps_rollup")).unwrap();
        let pss = smaps.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        total_kib += pss.trim().trim_end_matches(" kB").parse::<u64>().unwrap();
    }
    for number in 0..COUNT {
        host.native().remove(&format!("small.{number}")).await.unwrap();
    }
    println!("{} KiB each", total_kib / COUNT);
    assert!(total_kib / COUNT <= 150, "{} KiB each", total_kib / COUNT);
}
