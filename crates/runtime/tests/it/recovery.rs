//! What happens when the daemon or a shim goes away, or somebody talks nonsense to a shim.

use std::fs;
use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, sendmsg, socket_with,
};
use rustix::process::{Pid, Signal, kill_process};
use warren_runtime::{ContainerState, Error, Runtime};

use crate::host::{Host, bounded, until};

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_a_new_daemon_finds_everything() {
    let mut host = Host::new();
    let stays = "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done";
    let started = host.native().start(host.shell("stays", stays)).await.unwrap();
    let gate = host.base.path().join("gate");
    fs::create_dir(&gate).unwrap();
    let mut ends = host.shell("ends", "while [ ! -e /gate/go ]; do sleep 0.02; done; exit 42");
    ends.mounts = vec![warren_runtime::Mount {
        kind: warren_runtime::MountKind::Bind { source: gate.clone() },
        target: "/gate".to_owned(),
        read_only: true,
    }];
    host.native().start(ends).await.unwrap();
    host.printed("up").await;
    let shim = host.shim_pid("ends").await;

    host.reopen();
    fs::write(gate.join("go"), "").unwrap();
    until(|| {
        !fs::exists(format!("/proc/{shim}/exe")).unwrap_or(false)
            || host.state_dir("ends").join("exit").exists()
    })
    .await;
    assert_eq!(host.wait("ends").await.code, 42);
    host.reopen();
    let listed = host.native().list().await.unwrap();
    let states = listed.iter().map(|known| (known.id.as_str(), &known.state)).collect::<Vec<_>>();
    let ContainerState::Exited(exit) = states[0].1 else { panic!("{states:?}") };
    assert_eq!((states[0].0, exit.code, exit.supervisor_lost), ("ends", 42, false));
    let running = ContainerState::Running { pid: started.pid, started_at: started.at };
    assert_eq!(states[1], ("stays", &running));

    // The found one is as good as the started one.
    let exec = warren_runtime::ExecSpec {
        args: vec!["true".to_owned()],
        ..warren_runtime::ExecSpec::default()
    };
    let mut exec = host.native().exec("stays", exec).await.unwrap();
    assert_eq!(bounded(exec.control.wait()).await.unwrap(), 0);
    let exit = host.native().stop("stays", crate::host::LONGEST).await.unwrap();
    assert_eq!(exit.code, 6);
    host.reopen();
    assert_eq!(host.wait("stays").await, exit);
    for id in ["stays", "ends"] {
        host.native().remove(id).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_a_lost_shim_takes_its_container_along() {
    let mut host = Host::new();
    let spec = host.shell("orphan", "sleep 1000 & echo up; while :; do sleep 1000; done");
    host.native().start(spec.clone()).await.unwrap();
    host.printed("up").await;
    let pid = host.pid("orphan").await;
    kill(host.shim_pid("orphan").await);
    let exit = host.wait("orphan").await;
    assert!(exit.supervisor_lost, "{exit:?}");
    assert_eq!((exit.code, exit.signal), (137, Some(9)));
    until(|| ended(pid)).await;
    host.reopen();
    assert_eq!(host.wait("orphan").await, exit);
    host.native().remove("orphan").await.unwrap();

    // Lost while no daemon looked.
    host.native().start(host.shell("orphan", "echo again; sleep 1000")).await.unwrap();
    host.printed("again").await;
    let (pid, shim) = (host.pid("orphan").await, host.shim_pid("orphan").await);
    host.reopen();
    kill(shim);
    until(|| ended(shim)).await;
    assert!(host.wait("orphan").await.supervisor_lost);
    until(|| ended(pid)).await;
    host.native().remove("orphan").await.unwrap();
}

/// Gone, or only waiting to be reaped by init.
fn ended(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return true };
    stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z") || rest.starts_with(" X"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_a_program_that_changed_user_is_killed_with_its_shim() {
    let host = Host::new();
    // Changing user clears what tells the kernel to kill it with its parent.
    let script = "exec busybox start-stop-daemon -S -c bob -x /bin/sh -- -c 'echo up; sleep 1000'";
    host.native().start(host.shell("setuid", script)).await.unwrap();
    host.printed("up").await;
    let pid = host.pid("setuid").await;
    kill(host.shim_pid("setuid").await);
    assert!(host.wait("setuid").await.supervisor_lost);
    until(|| ended(pid)).await;
    host.native().remove("setuid").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_state_of_another_boot() {
    let mut host = Host::new();
    host.native().start(host.shell("old", "echo up; sleep 1000")).await.unwrap();
    host.printed("up").await;
    let folder = host.state_dir("old");
    let state = fs::read_to_string(folder.join("state.json")).unwrap();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let pid = host.pid("old").await;
    // As a reboot leaves it: the files, and nothing that runs.
    kill(pid);
    host.wait("old").await;
    fs::remove_file(folder.join("exit")).unwrap();
    let other = state.replace(boot_id.trim(), "00000000-0000-0000-0000-000000000000");
    assert_ne!(other, state);
    fs::write(folder.join("state.json"), other).unwrap();
    host.reopen();
    let listed = host.native().list().await.unwrap();
    let ContainerState::Exited(exit) = &listed[0].state else { panic!("{listed:?}") };
    assert!(exit.supervisor_lost);
    host.native().remove("old").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_an_unfinished_start_is_cleaned() {
    let mut host = Host::new();
    fs::create_dir(host.state_dir("half")).unwrap();
    fs::create_dir_all(host.base.path().join("data/containers/half/upper")).unwrap();
    fs::create_dir_all(host.base.path().join("data/containers/swept/upper")).unwrap();
    host.reopen();
    assert!(host.native().list().await.unwrap().is_empty());
    until(|| host.remains().is_empty()).await;
}

fn shim_socket(folder: &Path) -> OwnedFd {
    let kind = SocketType::SEQPACKET;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(folder.join("sock")).unwrap()).unwrap();
    socket
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[&OwnedFd]) {
    let fds = fds.iter().map(std::os::fd::AsFd::as_fd).collect::<Vec<_>>();
    let rights = SendAncillaryMessage::ScmRights(&fds);
    let mut space = vec![std::mem::MaybeUninit::uninit(); rights.size()];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(fds.is_empty() || control.push(rights));
    // The shim may have hung up on us already.
    let _ = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn host_nonsense_does_not_harm_a_shim() {
    use warren_shim::message::{Operation, Request};
    let host = Host::new();
    let script = "trap 'exit 8' TERM; echo up; while :; do sleep 0.05; done";
    host.native().start(host.shell("solid", script)).await.unwrap();
    host.printed("up").await;
    let folder = host.state_dir("solid");
    let exec = Request { operation: Operation::Exec, argument: 0 }.encode();
    let start = Request { operation: Operation::Start, argument: 0 }.encode();
    let signal = Request { operation: Operation::Signal, argument: 999 }.encode();
    let null: OwnedFd = fs::File::open("/dev/null").unwrap().into();
    let text = host.base.path().join("text");
    fs::write(&text, "nonsense").unwrap();
    let text: OwnedFd = fs::File::open(text).unwrap().into();
    let mut wrong = exec;
    wrong[4] = 200;
    let datagrams: [(&[u8], &[&OwnedFd]); 12] = [
        (b"x", &[]),
        (&[0; 16], &[]),
        (&[0xff; 16], &[&null]),
        (&[7; 4096], &[&null, &null, &null]),
        (&exec, &[]),
        (&exec, &[&null]),
        (&exec, &[&text, &null, &null, &null]),
        (&exec[..15], &[&null]),
        (&wrong, &[&null]),
        (&start, &[&null]),
        (&signal, &[]),
        (&exec, &[&null; 60]),
    ];
    for (bytes, fds) in datagrams {
        send(&shim_socket(&folder), bytes, fds);
    }
    // Connections that say nothing, more than the shim takes at once.
    let silent = (0..100)
        .map_while(|_| std::panic::catch_unwind(|| shim_socket(&folder)).ok())
        .collect::<Vec<_>>();
    drop(silent);
    let count = |folder: &str| fs::read_dir(folder).unwrap().count();
    let shim = host.shim_pid("solid").await;
    until(|| count(&format!("/proc/{shim}/fd")) < 15).await;
    let exit = bounded(host.native().stop("solid", crate::host::LONGEST)).await.unwrap();
    assert_eq!((exit.code, exit.supervisor_lost), (8, false));
    host.native().remove("solid").await.unwrap();
    assert!(matches!(host.native().signal("solid", 9).await, Err(Error::NotFound(_))));
}
