//! What a container may have beyond what all have, and that no other has it.

use std::fs;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use warren_runtime::{Device, ExecSpec, Runtime, Seccomp, Sysctl, Ulimit};

use crate::host::{Host, until};
use crate::isolation::network_namespace;

fn sysctl(key: &str, value: &str) -> Sysctl {
    Sysctl { key: key.to_owned(), value: value.to_owned() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_groups_limits_and_scores() {
    let host = Host::new();
    let show = "id -G; ulimit -n; ulimit -Hn; ulimit -c; ulimit -l; cat /proc/self/oom_score_adj";
    let mut spec = host.shell("many", show);
    spec.user = "bob".to_owned();
    spec.privileges.groups = vec!["staff".to_owned(), "4242".to_owned(), "eve-less".to_owned()];
    let error = host.native().start(spec.clone()).await.unwrap_err();
    assert_eq!(error.to_string(), "no group \"eve-less\" in the image");
    spec.privileges.groups.pop();
    let limit = |name, resource, soft, hard| Ulimit { name, resource, soft, hard };
    spec.privileges.ulimits =
        vec![limit("nofile", 7, 100, 200), limit("core", 4, 0, 0), limit("memlock", 8, 0, 0)];
    spec.privileges.oom_score_adj = Some(321);
    host.prints(spec, "1000 29 50 4242\n100\n200\n0\n0\n321\n").await;
    // Nothing of it is another's.
    let spec = host.shell("few", "id -G; ulimit -n; cat /proc/self/oom_score_adj");
    host.prints(spec, "0\n1024\n0\n").await;
    let mut spec = host.shell("beyond", "true");
    spec.privileges.ulimits = vec![limit("nofile", 7, 1, 1 << 40)];
    let error = host.native().start(spec).await.unwrap_err().to_string();
    assert!(error.starts_with("ulimit nofile: it is above what"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_settings_of_its_own_namespaces() {
    let host = Host::new();
    let script = "cd /proc/sys/net; cat core/somaxconn ipv4/ip_unprivileged_port_start \
        ipv4/ping_group_range ../kernel/shmmni";
    let before = fs::read_to_string("/proc/sys/kernel/shmmni").unwrap();
    let netns: Arc<OwnedFd> = Arc::new(network_namespace());
    let mut spec = host.shell("set", script);
    spec.netns = Some(Arc::clone(&netns));
    spec.privileges.sysctls =
        vec![sysctl("net.core.somaxconn", "77"), sysctl("kernel.shmmni", "99")];
    host.prints(spec.clone(), "77\n0\n0\t2147483647\n99\n").await;
    assert_eq!(fs::read_to_string("/proc/sys/kernel/shmmni").unwrap(), before);
    // Another's word comes after the default.
    spec.netns = Some(Arc::new(network_namespace()));
    spec.privileges.sysctls = vec![sysctl("net.ipv4.ip_unprivileged_port_start", "80")];
    let (_, text) = host.run(spec.clone()).await;
    assert!(text.contains("\n80\n0\t2147483647\n"), "{text}");
    for (key, netns, expected) in [
        ("vm.swappiness", true, "setting \"vm.swappiness\" is not of the container's namespaces"),
        ("net.core.somaxconn", false, "setting \"net.core.somaxconn\" is not of the container's"),
        ("net..x", true, "setting \"net..x\" is not one of the kernel's"),
        (
            "net.none.such",
            true,
            "setting net.none.such=1: this node's kernel has none of that name",
        ),
    ] {
        spec.privileges.sysctls = vec![sysctl(key, "1")];
        spec.netns = netns.then(|| Arc::new(network_namespace()));
        let error = host.native().start(spec.clone()).await.unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_who_is_not_root_listens_below_1024() {
    let host = Host::new();
    let script = "busybox nc -l -p 80 2>&1 & n=0; \
        while [ $n -lt 1000 ] && ! grep -qs ':0050 ' /proc/net/tcp /proc/net/tcp6; do \
        n=$((n+1)); done; [ $n -lt 1000 ] && echo listens; kill -9 $!";
    let mut spec = host.shell("low", script);
    spec.user = "bob".to_owned();
    spec.netns = Some(Arc::new(network_namespace()));
    host.prints(spec, "listens\n").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_an_init_reaps_and_passes_signals_on() {
    let host = Host::new();
    // The orphan's parent ends first, so that nobody else waits for it.
    let script = "trap 'echo term; exit 7' TERM; echo $$; cat /proc/1/comm; \
        sh -c 'sleep 0.1 & exec true'; n=0; \
        while [ $n -lt 1000 ] && grep -qs sleep /proc/[0-9]*/comm; do n=$((n+1)); done; \
        grep -ls 'State:.Z' /proc/[0-9]*/status | busybox wc -l; echo ready; \
        while true; do sleep 1; done";
    let mut spec = host.shell("init", script);
    spec.privileges.init = true;
    spec.user = "bob".to_owned();
    host.native().start(spec).await.unwrap();
    host.printed("ready").await;
    let text = host.text(&host.log_dir()).await;
    assert_eq!(text, "2\nwarren-init\n0\nready\n");
    let exit = host.native().stop("init", Duration::from_secs(30)).await.unwrap();
    assert_eq!((exit.code, exit.signal), (7, None));
    host.native().remove("init").await.unwrap();
    assert!(host.text(&host.log_dir()).await.ends_with("term\n"));
    fs::remove_dir_all(host.log_dir()).unwrap();
    // Without it the program is the first process and reaps nothing.
    host.prints(host.shell("none", "echo $$"), "1\n").await;
    let mut spec = host.shell("gone", "kill -9 $$");
    spec.privileges.init = true;
    let (exit, _) = host.run(spec).await;
    assert_eq!((exit.code, exit.signal), (137, None));
    let mut spec = host.spec("missing", &["/none"]);
    spec.privileges.init = true;
    let error = host.native().start(spec).await.unwrap_err();
    assert_eq!(error.to_string(), "command \"/none\" not found in the image");
    assert_eq!(host.remains(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_processes_of_the_node() {
    let host = Host::new();
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    let script = "readlink /proc/self/ns/pid; (sleep 1000 &); exit 0";
    let mut spec = host.shell("all", script);
    spec.privileges.host_pid = true;
    spec.privileges.host_ipc = true;
    host.native().start(spec.clone()).await.unwrap();
    assert_eq!(host.wait("all").await.code, 0);
    // What it left is ended with it, though no namespace ends.
    until(|| host.processes().is_empty()).await;
    host.native().remove("all").await.unwrap();
    assert_eq!(host.text(&host.log_dir()).await, format!("{}\n", own.display()));
    fs::remove_dir_all(host.log_dir()).unwrap();
    // Shared memory is the node's.
    let name = format!("warren-{}", std::process::id());
    fs::write(format!("/dev/shm/{name}"), "x\n").unwrap();
    spec.args = vec!["cat".to_owned(), format!("/dev/shm/{name}")];
    spec.id = "shm".to_owned();
    host.prints(spec.clone(), "x\n").await;
    spec.privileges.host_ipc = false;
    let (exit, _) = host.run(spec).await;
    assert_eq!(exit.code, 1);
    fs::remove_file(format!("/dev/shm/{name}")).unwrap();
    let script = "[ $(readlink /proc/self/ns/pid) != \"$OWN\" ] && ls -d /proc/[0-9]*";
    let mut spec = host.shell("one", script);
    spec.env = vec![format!("OWN={}", own.display())];
    let (_, text) = host.run(spec).await;
    assert!(text.starts_with("/proc/1\n") && text.lines().count() <= 2, "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_privileged_and_devices() {
    let host = Host::new();
    let all = {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("CapBnd:")).unwrap();
        line.trim_start_matches("CapBnd:").trim().to_owned()
    };
    let script =
        "grep -E '^(CapEff|NoNewPrivs|Seccomp:)' /proc/self/status | busybox awk '{print $2}'
        [ -c /dev/kmsg ] && echo kmsg; [ -e /dev/pts/0 ] || echo own
        busybox mknod /tmp/zero c 1 5; head -c 1 /tmp/zero | busybox wc -c
        grep -cE ' /proc/(kcore|sys) | /sys/firmware ' /proc/self/mounts
        grep ' /sys sysfs' /proc/self/mounts | busybox awk '{print substr($4, 1, 2)}'
        mount -t tmpfs none /tmp && echo mounted";
    let mut spec = host.shell("privileged", script);
    spec.privileges.privileged = true;
    spec.no_new_privileges = false;
    let expected = format!("{all}\n0\n0\nkmsg\nown\n1\n0\nrw\nmounted\n");
    let kmsg = fs::exists("/dev/kmsg").unwrap();
    let expected = if kmsg { expected } else { expected.replace("kmsg\n", "") };
    host.prints(spec, &expected).await;
    let script = "ls /dev/kmsg /dev/loop-control 2>/dev/null; ls /dev | busybox wc -l";
    host.prints(host.shell("plain", script), "15\n").await;

    // One device, to be read alone.
    let mut spec = host.shell(
        "device",
        "head -c 1 /dev/nought | busybox wc -c; (echo > /dev/nought) 2>&1 | grep -c ermitted",
    );
    let device = |path: &str, host_path: &str, write| Device {
        path: path.to_owned(),
        host_path: host_path.into(),
        read: true,
        write,
        mode: None,
        uid: None,
        gid: None,
    };
    spec.devices = vec![device("/dev/nought", "/dev/mem", false)];
    if fs::exists("/dev/mem").unwrap() {
        spec.args[2] =
            "stat -c '%t %T' /dev/nought; (echo > /dev/nought) 2>&1 | grep -c ermitted".to_owned();
        host.prints(spec.clone(), "1 1\n1\n").await;
    }
    // A folder stands for what is in it.
    let folder = fs::read_dir("/dev").unwrap().filter_map(Result::ok).find(|entry| {
        let own = ["pts", "shm", "mqueue", "fd"];
        let is_own = own.iter().any(|name| entry.file_name().to_str() == Some(name));
        !is_own && entry.file_type().is_ok_and(|kind| kind.is_dir()) && has_device(&entry.path())
    });
    if let Some(folder) = folder {
        let path = folder.path();
        spec.devices = vec![device("/dev/inner", path.to_str().unwrap(), true)];
        spec.args[2] = "find /dev/inner -type b -o -type c | busybox wc -l".to_owned();
        spec.args[2] = spec.args[2].replace("find", "busybox find");
        spec.id = "folder".to_owned();
        let (_, text) = host.run(spec).await;
        assert!(text.trim().parse::<usize>().unwrap() >= 1, "{text}");
    }
}

fn has_device(folder: &std::path::Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_type().ok()).any(|kind| kind.is_char_device())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_a_seccomp_profile_of_its_own() {
    let host = Host::new();
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30}]}"#;
    let mut spec = host.shell("own", "mkdir /x 2>&1; touch /y && ls -d /y");
    spec.seccomp = Seccomp::Custom(profile.into());
    host.prints(spec.clone(), "mkdir: can't create directory '/x': Read-only file system\n/y\n")
        .await;
    spec.seccomp = Seccomp::Custom("{}".into());
    let error = host.native().start(spec).await.unwrap_err().to_string();
    assert!(error.starts_with("seccomp profile: missing field `defaultAction`"), "{error}");
}

/// What is told to the container holds for what is executed in it later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_execs_have_the_same() {
    use tokio::io::AsyncReadExt;

    let host = Host::new();
    let mut spec = host.shell("long", "echo up; sleep 1000");
    spec.privileges.host_pid = true;
    spec.privileges.init = true;
    spec.privileges.groups = vec!["staff".to_owned()];
    spec.privileges.oom_score_adj = Some(9);
    spec.privileges.ulimits = vec![Ulimit { name: "nofile", resource: 7, soft: 64, hard: 65 }];
    host.native().start(spec).await.unwrap();
    host.printed("up").await;
    let script = "id -G; ulimit -n; cat /proc/self/oom_score_adj; readlink /proc/self/ns/pid";
    let exec =
        ExecSpec { args: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() };
    let mut exec = host.native().exec("long", exec).await.unwrap();
    let mut text = String::new();
    exec.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(exec.control.wait().await.unwrap(), 0);
    let own = fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(text, format!("0 50\n64\n9\n{}\n", own.display()));
    host.native().remove("long").await.unwrap();
    assert_eq!(host.remains(), Vec::<String>::new());
}
