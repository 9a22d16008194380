//! The shim: what it runs from, whom it hears, where it is.

use std::fs::{self, File};
use std::io::{IoSlice, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_get_seals, memfd_create};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};
use warren_runtime::Runtime;
use warren_shim::message::{Builder, Operation, Reply, Request, Settings, Step, Tag};

use super::{alone, done};
use crate::host::Host;

fn connected(folder: &Path) -> OwnedFd {
    let socket =
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    let folder = File::open(folder).unwrap();
    let path = format!("/proc/self/fd/{}/sock", folder.as_raw_fd());
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

fn ask(socket: &OwnedFd, request: Request, fds: &[BorrowedFd<'_>]) -> Option<Reply> {
    let rights = SendAncillaryMessage::ScmRights(fds);
    let mut space = vec![MaybeUninit::uninit(); rights.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(rights));
    let bytes = request.encode();
    let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
    let mut bytes = [0; Reply::LEN];
    let mut control = RecvAncillaryBuffer::default();
    let flags = RecvFlags::CMSG_CLOEXEC;
    let mut receive = || recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags);
    // A connection that was closed before it was read says so once, then what was sent before.
    let received = receive().or_else(|_| receive());
    assert!(sent.is_ok() || received.is_ok());
    Reply::decode(&bytes[..received.ok()?.bytes])
}

#[tokio::test]
async fn host_sealed_program() {
    let host = Host::new();
    host.waiting("web.1").await;
    let exe = format!("/proc/{}/exe", host.shim_pid("web.1").await);
    let name = fs::read_link(&exe).unwrap();
    let seals = fcntl_get_seals(File::open(&exe).unwrap()).unwrap();
    host.native().remove("web.1").await.unwrap();
    assert_eq!(name.to_str(), Some("/memfd:warren-shim (deleted)"));
    let wanted = SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    assert_eq!(seals & wanted, wanted);
}

#[tokio::test]
async fn host_an_image_that_names_the_shim_as_interpreter_gets_nothing() {
    let host = Host::new();
    // CVE-2019-5736: what runs then is our own program, in the container.
    host.add_program("evil", b"#!/proc/self/exe\n", 0o755);
    let script = "evil; echo $?; (echo x > /proc/self/exe) 2>/dev/null || echo locked";
    let (_, text) = host.run(host.shell("evil", script)).await;
    assert!(text.ends_with("locked\n"), "{text}");
    let spec = host.spec("direct", &["/bin/evil"]);
    if host.native().start(spec).await.is_ok() {
        let exit = host.wait("direct").await;
        assert_ne!(exit.code, 0);
    }
    host.native().remove("direct").await.unwrap();
}

#[tokio::test]
async fn host_sealed_messages() {
    let host = Host::new();
    host.waiting("web.1").await;
    let mut builder = Builder::new(&Settings::default());
    builder.text(Tag::Arg, b"true").unwrap_or_else(|_| unreachable!());
    let mut message: File = memfd_create("message", MemfdFlags::ALLOW_SEALING).unwrap().into();
    message.write_all(&builder.finish().unwrap()).unwrap();
    let null = File::open("/dev/null").unwrap();
    let fds = [message.as_fd(), null.as_fd(), null.as_fd(), null.as_fd()];
    let socket = connected(&host.state_dir("web.1"));
    let reply = ask(&socket, Request { operation: Operation::Exec, argument: 0 }, &fds);
    drop(socket);
    host.native().remove("web.1").await.unwrap();
    let Some(Reply::Failed { step: Step::Protocol, errno: libc::EPERM, .. }) = reply else {
        panic!("{reply:?}");
    };
}

#[test]
#[allow(unsafe_code)]
fn host_peer_check() {
    alone(
        || {},
        || async {
            let host = Host::new();
            host.waiting("web.1").await;
            let folder = host.state_dir("web.1");
            // Even when the folder and the socket are open to everybody.
            for path in ["", "..", "../..", "../../..", "sock"] {
                use std::os::unix::fs::PermissionsExt;
                let mode = fs::Permissions::from_mode(0o777);
                fs::set_permissions(folder.join(path), mode).unwrap();
            }
            let asked = std::thread::spawn(move || {
                // SAFETY: no memory is passed; this thread's alone, as no C library is asked.
                done(unsafe { libc::syscall(libc::SYS_setresuid, 1000, 1000, 1000) });
                let socket = connected(&folder);
                ask(&socket, Request { operation: Operation::Signal, argument: 9 }, &[])
            });
            let reply = asked.join().unwrap();
            host.native().remove("web.1").await.unwrap();
            let Some(Reply::Failed { step: Step::Busy, .. }) = reply else { panic!("{reply:?}") };
        },
    );
}

#[tokio::test]
async fn host_shim_group() {
    let host = Host::new();
    host.waiting("web.1").await;
    let shim = host.shim_pid("web.1").await;
    let groups = fs::read_to_string(format!("/proc/{shim}/cgroup")).unwrap();
    host.native().remove("web.1").await.unwrap();
    // Where processes are limited: the one hierarchy, or that of pids.
    let group = groups.lines().find(|line| line.contains(":pids:"));
    let group = group.or_else(|| groups.lines().find(|line| line.starts_with("0::"))).unwrap();
    assert!(group.ends_with("/_shims"), "{groups}");
}
