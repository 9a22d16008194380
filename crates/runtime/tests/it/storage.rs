//! Folders that are given by descriptors, and content of images.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::sync::Arc;

use warren_runtime::{Mount, MountKind, Opened, storage};

use crate::host::Host;

fn opened(path: &Path, target: &str, read_only: bool) -> Mount {
    let (file, _) = storage::open_real(path).unwrap();
    let name = path.display().to_string();
    let kind = MountKind::Open(Arc::new(Opened { file, name, recursive: true, follows: false }));
    Mount { kind, target: target.to_owned(), read_only }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_what_was_judged_is_mounted() {
    let host = Host::new();
    let (good, bad) = (host.base.path().join("good"), host.base.path().join("bad"));
    for (folder, text) in [(&good, "good\n"), (&bad, "bad\n")] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("file"), text).unwrap();
    }
    let script = "cat /a/file /f; (echo no > /ro/x) 2>/dev/null || echo locked; echo new > /a/new; \
                  grep -c -E ' /(a|f|ro) [^ ]+ r.,nosuid,nodev' /proc/self/mounts";
    let mut spec = host.shell("opened", script);
    spec.mounts = vec![
        opened(&good.join("file"), "/f", true),
        opened(&good, "/ro", true),
        opened(&good, "/a", false),
    ];
    // Whoever can write there puts a link in its place after it was looked at.
    fs::rename(&good, host.base.path().join("moved")).unwrap();
    symlink(&bad, &good).unwrap();
    host.prints(spec, "good\ngood\nlocked\n3\n").await;
    assert!(host.base.path().join("moved/new").exists());
    let left = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!left.contains("/moved"), "nothing stays mounted on the host");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_memory_has_the_size_and_the_rights_it_is_given() {
    let host = Host::new();
    let script = "for to in x n; do cat /bin/true > /$to/true; chmod 755 /$to/true; done; \
                  /x/true && echo runs; /n/true 2>/dev/null || echo not; grep ' /dev/shm ' /proc/self/mounts | \
                  grep -o 'size=[0-9a-z]*'";
    let mut spec = host.shell("memory", script);
    let memory = |target: &str, exec| Mount {
        kind: MountKind::Tmpfs { size_bytes: Some(8 << 20), mode: 0o1777, exec },
        target: target.to_owned(),
        read_only: false,
    };
    spec.mounts = vec![memory("/x", true), memory("/n", false)];
    spec.shm_bytes = Some(2 << 20);
    host.prints(spec, "runs\nnot\nsize=2048k\n").await;
}

#[test]
fn host_content_of_several_layers() {
    let base = tempfile::tempdir().unwrap();
    let (lower, upper, into) =
        (base.path().join("lower"), base.path().join("upper"), base.path().join("into"));
    for folder in [lower.join("data/sub"), upper.join("data"), into.clone()] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(lower.join("data/sub/below"), "below").unwrap();
    fs::write(lower.join("data/both"), "lower").unwrap();
    fs::write(lower.join("data/gone"), "gone").unwrap();
    fs::write(upper.join("data/both"), "upper").unwrap();
    chown(upper.join("data"), Some(7), Some(8)).unwrap();
    let whiteout = upper.join("data/gone");
    let made = std::process::Command::new("mknod").arg(&whiteout).args(["c", "0", "0"]).status();
    assert!(made.unwrap().success());
    storage::populate(&[upper.clone(), lower], "/data", &into).unwrap();
    assert_eq!(fs::read_to_string(into.join("both")).unwrap(), "upper");
    assert_eq!(fs::read_to_string(into.join("sub/below")).unwrap(), "below");
    assert!(!into.join("gone").exists());
    let about = fs::metadata(&into).unwrap();
    assert_eq!((about.uid(), about.gid()), (7, 8));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(upper.to_str().unwrap()), "nothing stays mounted");
}
