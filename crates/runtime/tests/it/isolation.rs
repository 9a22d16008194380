//! What a container sees and may do.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;

use warren_runtime::{InjectedFile, Mount, MountKind, Runtime, Seccomp};

use crate::host::Host;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_privileges() {
    let host = Host::new();
    let show = "grep -E '^(Cap|NoNewPrivs|Seccomp:|Sig(Blk|Ign))' /proc/self/status; umask";
    let spec = host.shell("default", show);
    host.prints(
        spec,
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n\
         CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
         CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n0022\n",
    )
    .await;
    let mut spec =
        host.shell("changed", "grep -E '^(CapEff|NoNewPrivs|Seccomp:)' /proc/self/status");
    spec.cap_drop = vec!["ALL".to_owned()];
    spec.cap_add = vec!["NET_ADMIN".to_owned()];
    spec.no_new_privileges = false;
    host.prints(spec, "CapEff:\t0000000000001000\nNoNewPrivs:\t0\nSeccomp:\t2\n").await;
    let mut spec = host.shell("open", "grep -E '^Seccomp:' /proc/self/status");
    spec.seccomp = Seccomp::Unconfined;
    host.prints(spec, "Seccomp:\t0\n").await;
    let mut spec = host.shell("bob", "id; grep -E '^Cap(Eff|Prm)' /proc/self/status; echo $HOME; pwd; echo x > /dev/stdout; echo y > /dev/stderr");
    spec.user = "bob".to_owned();
    spec.cwd = "/new/folder".to_owned();
    host.prints(
        spec,
        "uid=1000(bob) gid=1000(bob) groups=29(audio),50(staff)\n\
         CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n/home/bob\n/new/folder\nx\ny\n",
    )
    .await;
    for (user, expected) in [
        ("1000:50", "uid=1000(bob) gid=50(staff)\n"),
        ("4242", "uid=4242 gid=0(root)\n"),
        ("bob:staff", "uid=1000(bob) gid=50(staff)\n"),
    ] {
        let mut spec = host.spec("user", &["id"]);
        spec.user = user.to_owned();
        let (_, text) = host.run(spec).await;
        assert!(text.starts_with(expected.trim_end()), "{user}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_seccomp_refuses() {
    let host = Host::new();
    let mut spec = host.shell("mounts", "mount -t tmpfs none /tmp 2>&1; echo $?");
    let (_, text) = host.run(spec.clone()).await;
    assert!(text.ends_with("1\n") && text.contains("ermission"), "{text}");
    // The capability opens the system call, too.
    spec.cap_add = vec!["SYS_ADMIN".to_owned()];
    spec.id = "admin".to_owned();
    host.prints(spec, "0\n").await;
    let spec = host.shell("unshare", "busybox unshare -U true 2>&1; echo $?");
    let (_, text) = host.run(spec).await;
    assert!(text.contains("unshare") && text.ends_with("1\n"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_own_world() {
    let host = Host::new();
    let spec = host.shell(
        "world",
        "echo $$; hostname; echo /proc/[0-9]*
         echo $PATH; echo $HOSTNAME; ls /dev | busybox tr '\\n' ' '; echo; ls /dev/pts
         stat -c '%a %F' /dev/null /dev/shm; df -k /dev/shm | tail -1 | busybox awk '{print $2}'
         head -c 3 /dev/urandom | busybox wc -c; ls /proc/self/fd | busybox tr '\\n' ' '; echo
         ulimit -n; ulimit -c",
    );
    host.prints(
        spec,
        "1\nbox\n/proc/1\n/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nbox\n\
         core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \nptmx\n\
         666 character special file\n1777 directory\n65536\n3\n0 1 2 3 \n1024\n0\n",
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_masked_and_read_only_paths() {
    let host = Host::new();
    let spec = host.shell(
        "masked",
        "cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | busybox wc -c
         ls /proc/acpi /proc/scsi /sys/firmware 2>/dev/null | grep -v : | grep -v '^$' | busybox wc -l
         (echo 1 > /proc/sys/kernel/domainname) 2>/dev/null || echo locked
         (echo h > /proc/sysrq-trigger) 2>/dev/null || echo locked
         (echo 1 > /sys/kernel/profiling) 2>/dev/null || echo locked
         mkdir /sys/fs/cgroup/x 2>/dev/null || echo locked
         for name in /sys/fs/cgroup/*; do mkdir $name/x 2>/dev/null && echo open $name; done; echo end",
    );
    host.prints(spec, "0\n0\nlocked\nlocked\nlocked\nlocked\nend\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_devices_are_refused() {
    let host = Host::new();
    // A node of the host's first disk or memory can be made, but not opened.
    let script =
        "busybox mknod /tmp/mem c 1 1 && (cat /tmp/mem | head -c 1) 2>&1 | grep -c ermitted";
    host.prints(host.shell("devices", script), "1\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_root_file_system() {
    let host = Host::new();
    let script =
        "echo changed > /etc/passwd; rm /bin/tty; mkdir /made; cat /etc/passwd; ls -d /made";
    host.prints(host.shell("writes", script), "changed\n/made\n").await;
    assert!(fs::read_to_string(host.image().join("etc/passwd")).unwrap().starts_with("root"));
    assert!(host.image().join("bin/tty").is_symlink());

    let mut spec = host.shell(
        "locked",
        "touch /x 2>/dev/null || echo locked; touch /etc/hosts 2>/dev/null || echo locked; \
         touch /dev/shm/x && echo open; touch /scratch/x && echo open; pwd",
    );
    spec.read_only = true;
    spec.cwd = "/made/for/this".to_owned();
    spec.files = vec![InjectedFile {
        target: "/etc/hosts".to_owned(),
        data: Vec::new(),
        mode: 0o644,
        of_user: false,
    }];
    let kind = MountKind::Tmpfs { size_bytes: Some(1 << 20), mode: 0o1777, exec: false };
    spec.mounts = vec![Mount { kind, target: "/scratch".to_owned(), read_only: false }];
    host.prints(spec, "locked\nlocked\nopen\nopen\n/made/for/this\n").await;

    // Upper layers hide lower ones.
    let upper = host.base.path().join("upper");
    fs::create_dir_all(upper.join("etc")).unwrap();
    fs::write(upper.join("etc/passwd"), "root:x:0:0::/top:/bin/sh\n").unwrap();
    let mut spec = host.shell("layers", "echo $HOME; ls /bin/true");
    spec.layers = vec![upper, host.image()];
    host.prints(spec, "/top\n/bin/true\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_more_layers_than_a_page_of_paths() {
    let host = Host::new();
    let deep = host.base.path().join("d".repeat(200));
    let mut layers = Vec::new();
    for number in 0..100 {
        let layer = deep.join(format!("layer-{number}"));
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join(format!("file-{number}")), "").unwrap();
        layers.push(layer);
    }
    layers.push(host.image());
    let mut spec = host.shell("deep", "ls / | grep -c file-; grep -c layer- /proc/self/mounts");
    spec.layers = layers;
    let (_, text) = host.run(spec).await;
    assert_eq!(text, "100\n0\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_mounts() {
    let host = Host::new();
    let source = host.base.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "data\n").unwrap();
    let bind = |target: &str, read_only| Mount {
        kind: MountKind::Bind { source: source.clone() },
        target: target.to_owned(),
        read_only,
    };
    let script = "cat /a/file /b/deep/file /etc/one; echo new > /a/new; \
        (echo no > /b/deep/no) 2>/dev/null || echo locked; cat /etc/config; stat -c %a /etc/config; \
        grep -E ' /(a|b/deep|t) ' /proc/self/mounts | busybox awk '{print $2, $3}'; stat -c %a /t; \
        readlink /link; cat /target/file";
    let mut spec = host.shell("mounts", script);
    let one = MountKind::Bind { source: source.join("file") };
    spec.mounts = vec![
        bind("/a", false),
        bind("/b/deep", true),
        Mount { kind: one, target: "/etc/one".to_owned(), read_only: true },
        Mount {
            kind: MountKind::Tmpfs { size_bytes: None, mode: 0o700, exec: false },
            target: "/t".to_owned(),
            read_only: false,
        },
        // Through a link of the image that tries to leave it.
        bind("/link", false),
    ];
    symlink("../../../target", host.image().join("link")).unwrap();
    fs::create_dir(host.image().join("target")).unwrap();
    let config = InjectedFile {
        target: "/etc/config".to_owned(),
        data: b"cfg\n".to_vec(),
        mode: 0o600,
        of_user: false,
    };
    spec.files = vec![config];
    // The file system that the folder is on: that of the longest path to it, mounted last.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let at = |line: &&str| PathBuf::from(line.split(' ').nth(4).unwrap());
    let below = mounts.lines().filter(|line| source.starts_with(at(line)));
    let mount = below.max_by_key(|line| at(line).components().count()).unwrap();
    let kind = mount.split(" - ").nth(1).unwrap().split(' ').next().unwrap();
    host.prints(
        spec,
        &format!(
            "data\ndata\ndata\nlocked\ncfg\n600\n/a {kind}\n/t tmpfs\n/b/deep {kind}\n700\n\
             ../../../target\ndata\n"
        ),
    )
    .await;
    assert_eq!(fs::read_to_string(source.join("new")).unwrap(), "new\n");
    assert!(!host.base.path().join("target").exists());
    assert!(!host.image().join("a").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_links_in_the_image_do_not_move_proc() {
    let host = Host::new();
    fs::remove_dir(host.image().join("proc")).unwrap();
    symlink("/tmp", host.image().join("proc")).unwrap();
    let error = host.native().start(host.spec("a", &["true"])).await.unwrap_err();
    assert!(error.to_string().contains("must be a real directory"), "{error}");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_descriptors_of_the_host_are_out_of_reach() {
    let host = Host::new();
    let marker = host.base.path().file_name().unwrap().to_str().unwrap().to_owned();
    for number in 0..24 {
        let mut spec = host.shell("leaky", "pwd; ls; ls ..; ls ../..; ls ../../..");
        spec.cwd = format!("/proc/self/fd/{number}");
        if host.native().start(spec).await.is_err() {
            continue;
        }
        host.wait("leaky").await;
        host.native().remove("leaky").await.unwrap();
        let text = host.text(&host.log_dir()).await;
        assert!(!text.contains(&marker), "descriptor {number}: {text}");
    }
}

/// A namespace without a name, held by its descriptor alone.
#[allow(unsafe_code)]
pub(crate) fn network_namespace() -> OwnedFd {
    std::thread::spawn(|| {
        // SAFETY: a network namespace of this thread's own takes nothing from other threads.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap().into()
    })
    .join()
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_network_namespace_and_kept_descriptors() {
    let host = Host::new();
    let netns = Arc::new(network_namespace());
    let name = fs::read_link(format!("/proc/self/fd/{}", netns.as_raw_fd())).unwrap();
    let mut spec = host.shell("net", "readlink /proc/self/ns/net; ls /sys/class/net; sleep 1000");
    spec.netns = Some(netns);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = port.local_addr().unwrap();
    let file: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    spec.keep =
        vec![("null".to_owned(), Arc::new(file)), ("port".to_owned(), Arc::new(port.into()))];
    host.native().start(spec).await.unwrap();
    host.printed("lo").await;
    assert_eq!(host.text(&host.log_dir()).await, format!("{}\nlo\n", name.display()));
    // Ours are closed with the specification; the shim's is still bound.
    assert!(std::net::TcpListener::bind(address).is_err());
    let kept = host.native().kept("net", "port").await.unwrap().unwrap();
    assert_eq!(std::net::TcpListener::from(kept).local_addr().unwrap(), address);
    assert!(host.native().kept("net", "other").await.unwrap().is_none());
    host.native().signal("net", 9).await.unwrap();
    host.wait("net").await;
    assert!(host.native().kept("net", "port").await.unwrap().is_none());
    std::net::TcpListener::bind(address).unwrap();
    host.native().remove("net").await.unwrap();
}
