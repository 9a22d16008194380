//! Log files of real containers: rotation, tail, since, follow, long lines, a full disk.

use std::fs;
use std::process::Command;

use warren_runtime::{LogQuery, Runtime};

use crate::host::{Host, bounded};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_rotation_and_tail() {
    let host = Host::new();
    let mut spec = host.shell("chatty", "seq 1 20000");
    spec.log.max_bytes = 128 << 10;
    host.native().start(spec).await.unwrap();
    host.wait("chatty").await;
    let sizes = fs::read_dir(host.log_dir()).unwrap();
    let sizes = sizes.map(|entry| entry.unwrap().metadata().unwrap().len()).collect::<Vec<_>>();
    assert_eq!(sizes.len(), 3, "{sizes:?}");
    assert!(sizes.iter().all(|size| *size <= 128 << 10), "{sizes:?}");

    let last = |tail| LogQuery { tail: Some(tail), ..LogQuery::default() };
    let lines = host.lines(&host.log_dir(), last(3)).await;
    let texts = lines.iter().map(|line| line.line.as_slice()).collect::<Vec<_>>();
    assert_eq!(texts, [b"19998", b"19999", b"20000"]);
    assert!(host.lines(&host.log_dir(), last(0)).await.is_empty());
    // More than one file holds, and all that is left.
    let lines = host.lines(&host.log_dir(), last(5000)).await;
    assert_eq!((lines.len(), lines[0].line.as_slice()), (5000, b"15001".as_slice()));
    let all = host.lines(&host.log_dir(), LogQuery::default()).await;
    assert!(all.len() > 5000 && all.len() < 20000);
    assert_eq!(host.lines(&host.log_dir(), last(1 << 40)).await, all);

    // From the moment of some line on.
    let middle = &all[all.len() / 2];
    let since = LogQuery { since: Some(middle.at), ..LogQuery::default() };
    let lines = host.lines(&host.log_dir(), since).await;
    let first = all.iter().position(|line| line.at >= middle.at).unwrap();
    assert_eq!(lines, all[first..]);
    host.native().remove("chatty").await.unwrap();
    assert_eq!(host.lines(&host.log_dir(), last(1)).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_follow_across_files_and_attempts() {
    let host = Host::new();
    // Before anything exists.
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut follower = host.native().logs(host.log_dir(), query).await.unwrap();
    let mut expected = 1..=6000_u32;
    for (attempt, script) in [(1, "seq 1 3000"), (2, "seq 3001 6000")] {
        let mut spec = host.shell(&format!("task.{attempt}"), script);
        // Files hold more than one read, so that the follower sees each before it is removed.
        spec.log.max_bytes = 64 << 10;
        spec.log.max_files = 20;
        host.native().start(spec).await.unwrap();
        for number in expected.by_ref().take(3000) {
            let line = bounded(follower.recv()).await.unwrap();
            assert_eq!(String::from_utf8(line.line).unwrap(), number.to_string());
        }
        host.wait(&format!("task.{attempt}")).await;
        host.native().remove(&format!("task.{attempt}")).await.unwrap();
    }
    assert!(fs::read_dir(host.log_dir()).unwrap().count() > 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_long_lines_are_cut() {
    let host = Host::new();
    let script = "head -c 40000 /dev/zero | busybox tr '\\0' x; echo; echo end";
    let spec = host.shell("long", script);
    host.native().start(spec).await.unwrap();
    host.wait("long").await;
    let lines = host.lines(&host.log_dir(), LogQuery::default()).await;
    let lens = lines.iter().map(|line| line.line.len()).collect::<Vec<_>>();
    assert_eq!(lens, [16384, 16384, 7232, 3]);
    host.native().remove("long").await.unwrap();
}

/// A small tmpfs, for as long as the test lasts.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(folder: std::path::PathBuf) -> Self {
        fs::create_dir_all(&folder).unwrap();
        let status = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "none"])
            .arg(&folder)
            .status()
            .unwrap();
        assert!(status.success());
        Self(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_a_full_disk_loses_lines_and_no_time() {
    let host = Host::new();
    let disk = SmallDisk::mount(host.base.path().join("small"));
    let mut spec = host.shell("filler", "seq 1 100000; echo done >&2; exit 4");
    spec.log.dir.clone_from(&disk.0);
    spec.log.max_bytes = 10 << 20;
    host.native().start(spec).await.unwrap();
    assert_eq!(host.wait("filler").await.code, 4);
    let lines = host.lines(&disk.0, LogQuery::default()).await;
    assert!(lines.len() > 100 && lines.len() < 3000, "{}", lines.len());
    assert_eq!(lines[99].line, b"100");
    host.native().remove("filler").await.unwrap();

    // The next attempt finds room again, and says what was lost there.
    fs::remove_file(disk.0.join("0000000001.log")).unwrap();
    let mut spec = host.shell("next", "echo room");
    spec.log.dir.clone_from(&disk.0);
    host.native().start(spec).await.unwrap();
    host.wait("next").await;
    assert_eq!(host.text(&disk.0).await, "room\n");
    host.native().remove("next").await.unwrap();
}
