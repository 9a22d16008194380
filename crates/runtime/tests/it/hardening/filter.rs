//! What the kernel answers to calls that a container has no business with.

use super::exec;
use super::probe::{Number, call, old_call};
use crate::host::Host;
use warren_runtime::Runtime;

/// CLONE_NEWUSER: needs no capability, so that only the filter is in its way.
const NEW_USER: i64 = 0x1000_0000;

fn numbers(number: i64, args: &[i64]) -> Vec<u8> {
    call(number, &args.iter().map(|arg| Number(*arg)).collect::<Vec<_>>())
}

#[tokio::test]
async fn host_seccomp_calls() {
    let host = Host::new();
    // None of them needs a capability: without the filter each answers something else.
    let programs = [
        ("unshare", numbers(libc::SYS_unshare, &[NEW_USER])),
        ("keyctl", numbers(libc::SYS_keyctl, &[0, -4, 0])),
        ("add_key", numbers(libc::SYS_add_key, &[0, 0, 0, 0, -4])),
        ("io_uring", numbers(libc::SYS_io_uring_setup, &[0, 0])),
        ("userfaultfd", numbers(libc::SYS_userfaultfd, &[0xffff])),
    ];
    let text = host.codes(&programs).await;
    assert_eq!(text, "unshare 1\nkeyctl 1\nadd_key 1\nio_uring 1\nuserfaultfd 1\n");
}

#[tokio::test]
async fn host_seccomp_clone_flags() {
    let host = Host::new();
    let flags = NEW_USER | i64::from(libc::SIGCHLD);
    let programs = [
        ("clone", numbers(libc::SYS_clone, &[flags, 0, 0, 0, 0])),
        ("fork", numbers(libc::SYS_clone, &[libc::SIGCHLD.into(), 0, 0, 0, 0])),
    ];
    assert_eq!(host.codes(&programs).await, "clone 1\nfork 0\n");
}

#[tokio::test]
async fn host_seccomp_clone3() {
    let host = Host::new();
    // C libraries fall back to clone on ENOSYS, and on nothing else.
    let programs = [("clone3", numbers(libc::SYS_clone3, &[0, 0]))];
    assert_eq!(host.codes(&programs).await, "clone3 38\n");
}

#[tokio::test]
async fn host_seccomp_unknown_calls() {
    let host = Host::new();
    // Newer than the profile: programs probe for ENOSYS, too.
    assert_eq!(host.codes(&[("new", numbers(600, &[]))]).await, "new 38\n");
}

#[tokio::test]
async fn host_seccomp_sockets() {
    let host = Host::new();
    let programs = [
        ("alg", numbers(libc::SYS_socket, &[38, 5, 0])),
        ("vsock", numbers(libc::SYS_socket, &[40, 1, 0])),
        ("inet", numbers(libc::SYS_socket, &[2, 1, 0])),
    ];
    assert_eq!(host.codes(&programs).await, "alg 1\nvsock 1\ninet 0\n");
}

#[tokio::test]
async fn host_seccomp_personality() {
    let host = Host::new();
    // ADDR_NO_RANDOMIZE, and PER_LINUX32, which is allowed.
    let programs = [
        ("fixed", numbers(libc::SYS_personality, &[0x4_0000])),
        ("linux32", numbers(libc::SYS_personality, &[8])),
    ];
    assert_eq!(host.codes(&programs).await, "fixed 1\nlinux32 0\n");
}

#[tokio::test]
async fn host_seccomp_architecture() {
    let host = Host::new();
    // getpid by the old door, which the profile's numbers are not about.
    let text = host.codes(&[("old", old_call(20))]).await;
    // Kernels without 32-bit calls end the program instead.
    assert!(["old 38\n", "old 139\n"].contains(&text.as_str()), "{text}");
}

#[tokio::test]
async fn host_seccomp_of_execs() {
    let host = Host::new();
    host.waiting("web.1").await;
    let (_, text) =
        host.executed_in("web.1", exec("grep Seccomp: /proc/self/status")).await.unwrap();
    host.native().remove("web.1").await.unwrap();
    assert_eq!(text, "Seccomp:\t2\n");
}

#[tokio::test]
async fn host_seccomp_without_no_new_privileges() {
    let host = Host::new();
    let mut spec = host.shell("filter", "grep Seccomp: /proc/self/status");
    spec.no_new_privileges = false;
    host.prints(spec, "Seccomp:\t2\n").await;
}
