//! Specifications that cannot work: one clear error each, and nothing left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use warren_runtime::{ContainerSpec, Error, Mount, MountKind, Runtime};

use crate::host::Host;

impl Host {
    async fn refuses(&self, spec: ContainerSpec, expected: &str) {
        let id = spec.id.clone();
        let error = self.native().start(spec).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{error:?}");
        assert_eq!(error.to_string(), expected);
        assert_eq!(self.remains(), Vec::<String>::new());
        assert!(matches!(self.native().wait(&id).await, Err(Error::NotFound(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_commands() {
    let host = Host::new();
    let refused = |args: &[&str]| host.spec("a", args);
    host.refuses(refused(&["foo"]), "command \"foo\" not found in the image").await;
    host.refuses(refused(&["/bin/foo"]), "command \"/bin/foo\" not found in the image").await;
    host.refuses(refused(&["/etc/passwd/x"]), "command \"/etc/passwd/x\" not found in the image")
        .await;
    host.refuses(
        refused(&["/etc/passwd"]),
        "command \"/etc/passwd\" cannot be executed: permission denied",
    )
    .await;
    host.refuses(refused(&["/tmp"]), "command \"/tmp\" cannot be executed: permission denied")
        .await;
    host.refuses(refused(&[]), "no command: neither the image nor the service names one").await;

    let program = |name: &str, text: &str| {
        let path = host.image().join("bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    program("script", "#!/bin/bash\necho hello\n");
    host.refuses(
        refused(&["script"]),
        "command \"script\" is in the image, the interpreter or loader it names is not",
    )
    .await;
    program("text", "not a program");
    host.refuses(refused(&["text"]), "command \"text\" is not a program for this machine").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_users_and_folders() {
    let host = Host::new();
    for (user, expected) in [
        ("eve", "no user \"eve\" in the image"),
        ("bob:eve", "no group \"eve\" in the image"),
        ("4294967295", "no user \"4294967295\" in the image"),
    ] {
        let mut spec = host.spec("a", &["true"]);
        spec.user = user.to_owned();
        host.refuses(spec, expected).await;
    }
    for (cwd, expected) in [
        ("/etc/passwd", "working directory \"/etc/passwd\" is not a directory"),
        ("/etc/passwd/x", "working directory \"/etc/passwd/x\" is not a directory"),
        ("etc", "working directory \"etc\" is not an absolute path"),
    ] {
        let mut spec = host.spec("a", &["true"]);
        spec.cwd = cwd.to_owned();
        host.refuses(spec, expected).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_mounts_and_names() {
    let host = Host::new();
    let missing = PathBuf::from("/nonexistent/source");
    for (source, target, expected) in [
        (
            missing,
            "/data",
            "mount /nonexistent/source at /data: No such file or directory (os error 2)",
        ),
        ("/tmp".into(), "/", "mount target \"/\" would hide the image"),
        ("/tmp".into(), "/proc/sys", "mount target \"/proc/sys\" lies in /proc"),
        (
            "/tmp".into(),
            "/a/../proc",
            "mount target \"/a/../proc\" is not an absolute path without \"..\"",
        ),
        ("/tmp".into(), "data", "mount target \"data\" is not an absolute path without \"..\""),
        ("tmp".into(), "/data", "mount source \"tmp\" is not absolute"),
        (
            "/tmp".into(),
            "/etc/passwd",
            "mount /tmp at /etc/passwd: a directory and a file cannot be mounted on each other",
        ),
    ] {
        let mut spec = host.spec("a", &["true"]);
        spec.mounts = vec![Mount {
            kind: MountKind::Bind { source },
            target: target.to_owned(),
            read_only: false,
        }];
        host.refuses(spec, expected).await;
    }
    let mut spec = host.spec("a", &["true"]);
    spec.env = vec!["NOVALUE".to_owned()];
    host.refuses(spec, "environment entry \"NOVALUE\" is not KEY=value").await;
    let mut spec = host.spec("a", &["true", "a\0b"]);
    spec.hostname = "box".to_owned();
    host.refuses(spec, "an argument, environment entry or path holds a NUL byte").await;
    let mut spec = host.spec("a", &["true"]);
    spec.limits.memory_bytes = Some(4096);
    host.refuses(spec, "memory limit of 4096 bytes: at least 6291456 are needed").await;
    for id in ["", "../a", ".a", "A", "a/b", &"a".repeat(65)] {
        let error = host.native().start(host.spec(id, &["true"])).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{error:?}");
        let error = host.native().remove(id).await.unwrap_err();
        assert!(matches!(error, Error::Rejected(_)), "{error:?}");
    }
    let mut spec = host.spec("a", &["true"]);
    spec.layers = vec![host.base.path().join("nothing")];
    let error = host.native().start(spec).await.unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error:?}");
}
