//! What a container sees of the kernel: /proc, /sys and /dev.

use std::fs;
use std::os::unix::fs::symlink;

use warren_runtime::Runtime;

use crate::host::Host;

/// Whether each of some mounts has a word among its options.
fn options(of: &str, word: &str) -> String {
    format!(
        "for m in {of}; do busybox awk -v m=$m '$2 == m {{ o = $4 }} END {{ print o }}' \
         /proc/self/mounts | grep -cE '(^|,){word}(,|$)'; done"
    )
}

#[tokio::test]
async fn host_masked_paths() {
    let host = Host::new();
    let script = "cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts \
         /proc/sched_debug /proc/latency_stats 2>/dev/null | busybox wc -c
         ls -A /proc/acpi /proc/asound /proc/scsi /sys/firmware /sys/devices/virtual/powercap \
         2>/dev/null | grep -v : | grep -v '^$' | busybox wc -l";
    host.prints(host.shell("masked", script), "0\n0\n").await;
}

#[tokio::test]
async fn host_read_only_paths() {
    let host = Host::new();
    let script = "(echo x > /proc/sys/kernel/domainname) 2>&1 | grep -c Read-only
         (cat /proc/irq/default_smp_affinity > /proc/irq/default_smp_affinity) 2>&1 | grep -c Read-only";
    host.prints(host.shell("locked", script), "1\n1\n").await;
}

#[tokio::test]
async fn host_read_only_sys() {
    let host = Host::new();
    host.prints(host.shell("sys", &options("/sys", "ro")), "1\n").await;
}

#[tokio::test]
async fn host_read_only_cgroups() {
    let host = Host::new();
    // A group of one's own would do: its release agent runs on the host, with version 1.
    let script = "cd /sys/fs/cgroup; mkdir x 2>/dev/null && echo open
         for name in *; do [ -d $name ] && mkdir $name/x 2>/dev/null && echo open $name; done
         ls | grep -c . > /tmp/count; [ $(cat /tmp/count) -gt 0 ] && echo there";
    host.prints(host.shell("groups", script), "there\n").await;
}

#[tokio::test]
async fn host_kernel_mount_flags() {
    let host = Host::new();
    let script = ["nosuid", "nodev", "noexec"].map(|word| options("/proc /sys", word)).join("\n");
    host.prints(host.shell("flags", &script), "1\n1\n1\n1\n1\n1\n").await;
}

#[tokio::test]
async fn host_real_proc() {
    let host = Host::new();
    fs::remove_dir(host.image().join("proc")).unwrap();
    symlink("/tmp", host.image().join("proc")).unwrap();
    let started = host.native().start(host.spec("moved", &["true"])).await;
    let _ = host.native().remove("moved").await;
    let error = started.unwrap_err();
    assert!(error.to_string().contains("must be a real directory"), "{error}");
}

#[tokio::test]
async fn host_fresh_dev() {
    let host = Host::new();
    fs::write(host.image().join("dev/evil"), "").unwrap();
    let script = "ls /dev | busybox tr '\\n' ' '; stat -c '%t:%T' /dev/null";
    let expected = "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom \
                    zero 1:3\n";
    host.prints(host.shell("dev", script), expected).await;
}

#[tokio::test]
async fn host_masked_paths_with_a_mount_on_null() {
    let host = Host::new();
    // Files are covered by a /dev/null: not by one that a volume has taken the place of.
    let file = host.base.path().join("file");
    fs::write(&file, "mine\n").unwrap();
    let mut spec = host.shell("null", "cat /dev/null; cat /proc/interrupts | busybox wc -c");
    spec.mounts = vec![warren_runtime::Mount {
        kind: warren_runtime::MountKind::Bind { source: file },
        target: "/dev/null".to_owned(),
        read_only: true,
    }];
    host.prints(spec, "mine\n0\n").await;
}
