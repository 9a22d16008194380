//! Volumes, injected files, the root: where they may lie and what they may bring.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};
use warren_runtime::{InjectedFile, Mount, MountKind, Runtime};

use super::{alone, probe};
use crate::host::Host;

fn bind(source: &Path, target: &str, read_only: bool) -> Mount {
    let kind = MountKind::Bind { source: source.to_owned() };
    Mount { kind, target: target.to_owned(), read_only }
}

/// Mounts of this thread are its own from now on.
#[allow(unsafe_code)]
fn own_mounts() {
    // SAFETY: this thread shares no file system attributes with others afterwards, and needs none.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }.unwrap();
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    mount_change("/", private).unwrap();
}

#[tokio::test]
async fn host_targets_in_root() {
    let host = Host::new();
    let (outside, source) = (host.base.path().join("outside"), host.base.path().join("source"));
    fs::create_dir(&outside).unwrap();
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "here\n").unwrap();
    symlink(&outside, host.image().join("out")).unwrap();
    let within = host.image().join(outside.strip_prefix("/").unwrap());
    fs::create_dir_all(&within).unwrap();
    let mut spec = host.shell("link", "cat /out/made/file");
    spec.mounts = vec![bind(&source, "/out/made", false)];
    let started = host.native().start(spec).await;
    let text = match &started {
        Ok(_) => {
            host.wait("link").await;
            host.text(&host.log_dir()).await
        }
        Err(error) => error.to_string(),
    };
    host.native().remove("link").await.unwrap();
    assert!(!outside.join("made").exists());
    assert_eq!(text, "here\n");
}

#[tokio::test]
async fn host_targets_not_in_proc() {
    let host = Host::new();
    symlink("/proc", host.image().join("door")).unwrap();
    fs::create_dir(host.base.path().join("source")).unwrap();
    let source = host.base.path().join("source");
    let mut folder = host.spec("folder", &["true"]);
    folder.mounts = vec![bind(&source, "/door/self/task", false)];
    let mut file = host.spec("file", &["true"]);
    file.files = vec![InjectedFile {
        target: "/door/self/limits".to_owned(),
        data: Vec::new(),
        mode: 0o600,
        of_user: false,
    }];
    for spec in [folder, file] {
        let id = spec.id.clone();
        let started = host.native().start(spec).await;
        host.native().remove(&id).await.unwrap();
        let error = started.unwrap_err().to_string();
        assert!(error.contains("Permission denied"), "{id}: {error}");
    }
}

#[tokio::test]
async fn host_volume_flags() {
    let host = Host::new();
    let source = host.base.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("who"), probe::user()).unwrap();
    fs::set_permissions(source.join("who"), fs::Permissions::from_mode(0o4755)).unwrap();
    let script = "/volume/who; echo $?; grep -c ' /volume .*nosuid,nodev' /proc/self/mounts";
    let mut spec = host.shell("volume", script);
    spec.mounts = vec![bind(&source, "/volume", false)];
    // So that nothing else is in its way.
    spec.no_new_privileges = false;
    spec.user = "bob".to_owned();
    host.prints(spec, "232\n1\n").await;
}

#[test]
fn host_read_only_recursive() {
    alone(own_mounts, || async {
        let host = Host::new();
        let source = host.base.path().join("source");
        let inner = source.join("inner");
        fs::create_dir_all(&inner).unwrap();
        mount("none", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
        let script = "for f in /volume/x /volume/inner/x; do
            (echo x > $f) 2>&1 | grep -c Read-only; done";
        let mut spec = host.shell("volume", script);
        spec.mounts = vec![bind(&source, "/volume", true)];
        host.prints(spec, "1\n1\n").await;
        unmount(&inner, UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn host_propagation() {
    // Everything under the temporary folder is shared, as all of a systemd machine is.
    let prepare = || {
        own_mounts();
        let place = std::env::temp_dir();
        mount("none", &place, "tmpfs", MountFlags::empty(), None).unwrap();
        mount_change(&place, MountPropagationFlags::SHARED).unwrap();
    };
    alone(prepare, || async {
        let mounts = || fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let host = Host::new();
        let source = host.base.path().join("source");
        let inner = source.join("inner");
        fs::create_dir_all(&inner).unwrap();
        let before = mounts();
        let script = "echo up; while [ ! -e /volume/go ]; do sleep 0.02; done; ls /volume/inner";
        let mut spec = host.shell("inside", script);
        spec.mounts = vec![bind(&source, "/volume", false)];
        host.native().start(spec).await.unwrap();
        host.printed("up").await;
        // Nothing of the container's comes out, and nothing of ours goes in.
        assert_eq!(mounts(), before);
        mount("none", &inner, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(inner.join("late"), "").unwrap();
        fs::write(source.join("go"), "").unwrap();
        host.wait("inside").await;
        host.native().remove("inside").await.unwrap();
        assert_eq!(host.text(&host.log_dir()).await, "up\n");
        unmount(&inner, UnmountFlags::DETACH).unwrap();
    });
}

#[tokio::test]
async fn host_read_only_root() {
    let host = Host::new();
    let mut spec = host.shell("locked", "(echo x > /etc/x) 2>&1 | grep -c Read-only");
    spec.read_only = true;
    host.prints(spec, "1\n").await;
}

#[tokio::test]
async fn host_the_machine_is_not_below_the_root() {
    let host = Host::new();
    // What was the root before is let go of; nothing of its mounts is left in the table.
    let script = "ls / | busybox tr '\\n' ' '; busybox awk '{print $2}' /proc/self/mounts | \
                  grep -vE '^/($|proc|sys|dev)'; echo";
    host.prints(host.shell("root", script), "bin dev etc home proc root sys tmp \n").await;
}
