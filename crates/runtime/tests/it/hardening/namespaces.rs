//! Each kind of namespace is the container's own.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::host::Host;

async fn is_own(host: &Host, kind: &str) {
    let ours = fs::read_link(format!("/proc/thread-self/ns/{kind}")).unwrap();
    let mut spec = host.shell("own", &format!("readlink /proc/self/ns/{kind}"));
    if kind == "net" {
        spec.netns = Some(Arc::new(network()));
    }
    let (_, text) = host.run(spec).await;
    assert!(text.starts_with(&format!("{kind}:[")), "{text}");
    assert_ne!(text.trim(), ours.to_str().unwrap());
}

#[allow(unsafe_code)]
fn network() -> OwnedFd {
    let made = std::thread::spawn(|| {
        // SAFETY: a network namespace of this thread's own takes nothing from other threads.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        File::open("/proc/thread-self/ns/net").unwrap().into()
    });
    made.join().unwrap()
}

#[tokio::test]
async fn host_pid_namespace() {
    is_own(&Host::new(), "pid").await;
}

#[tokio::test]
async fn host_uts_namespace() {
    is_own(&Host::new(), "uts").await;
}

#[tokio::test]
async fn host_ipc_namespace() {
    is_own(&Host::new(), "ipc").await;
}

#[tokio::test]
async fn host_cgroup_namespace() {
    is_own(&Host::new(), "cgroup").await;
}

#[tokio::test]
async fn host_network_namespace() {
    is_own(&Host::new(), "net").await;
}

/// Without a way to leave it out: the machine's own root would be changed.
#[tokio::test]
async fn host_mount_namespace() {
    is_own(&Host::new(), "mnt").await;
}
