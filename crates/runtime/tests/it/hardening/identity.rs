//! Who the container's program is, and what it inherits of the daemon.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use warren_runtime::{Runtime, Seccomp};

use super::probe::{self, Number, Text, call};
use super::{alone, done};
use crate::host::{Host, within};
use std::time::Duration;

#[tokio::test]
async fn host_bounding_set() {
    let host = Host::new();
    let spec = host.shell("caps", "grep -E '^Cap(Prm|Eff|Bnd)' /proc/self/status");
    let set = "00000000a80425fb";
    host.prints(spec, &format!("CapPrm:\t{set}\nCapEff:\t{set}\nCapBnd:\t{set}\n")).await;
}

#[test]
#[allow(unsafe_code)]
fn host_inherited_capabilities() {
    // NET_RAW, which containers have: it is in the bounding set and could be handed on.
    const NET_RAW: u32 = 1 << 13;
    let prepare = || {
        let mut header = [0x2008_0522_u32, 0];
        let mut sets = [0_u32; 6];
        // SAFETY: version 3 reads and writes one header and two times three numbers.
        unsafe {
            done(libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()));
            sets[2] |= NET_RAW;
            done(libc::syscall(libc::SYS_capset, header.as_mut_ptr(), sets.as_ptr()));
            done(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 13, 0, 0).into());
        }
    };
    alone(prepare, || async {
        let host = Host::new();
        let spec = host.shell("caps", "grep -E '^Cap(Inh|Amb)' /proc/self/status");
        host.prints(spec, "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000\n").await;
    });
}

#[tokio::test]
async fn host_no_new_privileges() {
    let host = Host::new();
    // Root's, and runs as root whoever starts it.
    host.add_program("who", &probe::user(), 0o4755);
    let mut spec = host.shell("bob", "/bin/who; echo $?; grep NoNewPrivs /proc/self/status");
    spec.user = "bob".to_owned();
    // 1000, in its low eight bits.
    host.prints(spec.clone(), "232\nNoNewPrivs:\t1\n").await;
    // Who turns it off has it off.
    spec.no_new_privileges = false;
    host.prints(spec, "0\nNoNewPrivs:\t0\n").await;
}

#[test]
#[allow(unsafe_code)]
fn host_supplementary_groups() {
    let prepare = || {
        let groups = [4242_u32];
        // SAFETY: pointer and length are of one array; this thread's alone, as no C library is asked.
        done(unsafe { libc::syscall(libc::SYS_setgroups, 1, groups.as_ptr()) });
    };
    alone(prepare, || async {
        let host = Host::new();
        host.prints(host.shell("groups", "grep Groups /proc/self/status"), "Groups:\t \n").await;
    });
}

#[tokio::test]
#[allow(unsafe_code)]
async fn host_signal_dispositions() {
    // SAFETY: nobody in this process waits for this signal.
    unsafe { libc::signal(libc::SIGUSR2, libc::SIG_IGN) };
    let host = Host::new();
    let spec = host.spec("signals", &["grep", "SigIgn", "/proc/self/status"]);
    host.prints(spec, "SigIgn:\t0000000000000000\n").await;
}

#[tokio::test]
async fn host_signal_mask() {
    let host = Host::new();
    let spec = host.spec("signals", &["grep", "SigBlk", "/proc/self/status"]);
    host.prints(spec, "SigBlk:\t0000000000000000\n").await;
}

#[tokio::test]
async fn host_umask() {
    let host = Host::new();
    host.prints(host.shell("umask", "umask"), "0022\n").await;
}

#[tokio::test]
#[allow(unsafe_code)]
async fn host_resource_limits() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct lives through both calls.
    unsafe {
        done(libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit).into());
        limit.rlim_cur = limit.rlim_max.min(5000);
        done(libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit).into());
    }
    let host = Host::new();
    host.prints(host.shell("limits", "ulimit -n; ulimit -c"), "1024\n0\n").await;
}

#[tokio::test]
async fn host_oom_score() {
    let file = "/proc/self/oom_score_adj";
    fs::write(file, "300").unwrap();
    let host = Host::new();
    host.prints(host.shell("score", "cat /proc/self/oom_score_adj"), "0\n").await;
    fs::write(file, "0").unwrap();
}

#[tokio::test]
async fn host_session() {
    let host = Host::new();
    // Process and session, as the container numbers them: no terminal of others is its own.
    let script = "set -- $(cat /proc/$$/stat); [ $1 = $6 ] && echo own; echo $7";
    host.prints(host.shell("session", script), "own\n0\n").await;
}

#[test]
#[allow(unsafe_code)]
fn host_keyring() {
    let prepare = || {
        // SAFETY: a null name means an anonymous keyring; all strings end in NUL.
        unsafe {
            done(libc::syscall(libc::SYS_keyctl, 1, std::ptr::null::<u8>()));
            let (kind, name) = (c"user".as_ptr(), c"warren-secret".as_ptr());
            done(libc::syscall(libc::SYS_add_key, kind, name, c"x".as_ptr(), 1, -3));
        }
    };
    alone(prepare, || async {
        let host = Host::new();
        // KEYCTL_SEARCH in the session's keyring.
        let args = [Number(10), Number(-3), Text("user"), Text("warren-secret"), Number(0)];
        host.add_program("find", &call(libc::SYS_keyctl, &args), 0o755);
        let mut spec = host.shell("keys", "/bin/find; echo $?");
        // The filter alone would refuse the call.
        spec.seccomp = Seccomp::Unconfined;
        host.prints(spec, &format!("{}\n", libc::ENOKEY)).await;
    });
}

#[test]
fn host_death_signal() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let (mut host, pid, shim) = first.block_on(async {
        let host = Host::new();
        host.waiting("orphan").await;
        let (pid, shim) = (host.pid("orphan").await, host.shim_pid("orphan").await);
        (host, pid, shim)
    });
    // No daemon that would notice, nor anything it began.
    host.close();
    drop(first);
    let killed = rustix::process::Pid::from_raw(shim.cast_signed()).unwrap();
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
    let gone = within(Duration::from_secs(5), || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    runtime().block_on(async {
        let gone = gone.await;
        host.reopen();
        host.native().remove("orphan").await.unwrap();
        drop(host);
        assert!(gone, "it outlives its supervisor");
    });
}

#[tokio::test]
async fn host_the_suid_program_of_these_tests_works() {
    // What the tests above rely on: on the host, the bit does what it says.
    let host = Host::new();
    host.add_program("who", &probe::user(), 0o4755);
    let mode = fs::metadata(host.image().join("bin/who")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o4755);
}
