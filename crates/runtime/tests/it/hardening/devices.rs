//! Devices, and the control groups that containers and execs are in.

use warren_runtime::Runtime;

use super::exec;
use crate::host::Host;

#[tokio::test]
async fn host_device_rules() {
    let host = Host::new();
    // Nodes can be made (10:229 is fuse, which needs no capability; 7:0 a loop device), not opened.
    let script = "busybox mknod /tmp/c c 10 229; busybox mknod /tmp/b b 7 0
        for f in /tmp/c /tmp/b; do (cat < $f) 2>&1 | grep -c 'not permitted'; done
        echo fine > /dev/null; head -c 1 /dev/zero | busybox wc -c";
    host.prints(host.shell("devices", script), "1\n1\n1\n").await;
}

#[tokio::test]
async fn host_process_limit() {
    let host = Host::new();
    let script = "cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null; true";
    host.prints(host.shell("pids", script), "4096\n").await;
}

#[tokio::test]
async fn host_cgroup_of_execs() {
    let host = Host::new();
    host.waiting("web.1").await;
    // A group beside the container's would be seen as one above its own.
    let executed = host.executed_in("web.1", exec("grep -c '/[.][.]' /proc/self/cgroup")).await;
    host.native().remove("web.1").await.unwrap();
    assert_eq!(executed.unwrap().1, "0\n");
}

#[tokio::test]
async fn host_capabilities_of_execs() {
    let host = Host::new();
    host.waiting("web.1").await;
    let executed = host.executed_in("web.1", exec("grep CapEff /proc/self/status")).await;
    host.native().remove("web.1").await.unwrap();
    assert_eq!(executed.unwrap().1, "CapEff:\t00000000a80425fb\n");
}
