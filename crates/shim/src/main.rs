//! The shim: parent of one container, from before its start until its exit is on disk.
//!
//! The daemon executes it from a sealed memory file with one end of a socket pair as standard
//! input, sends one datagram (a message and descriptors), and gets one answer. From then on the
//! shim needs nobody: it has its own session, keeps the container's logs, and answers on a socket
//! in the container's state folder. Its size in memory is a budget (150 KiB): no runtime of Rust's
//! and no C library is started, nothing is allocated on a heap, buffers that are not used are never touched.
//!
//! If the shim dies, the kernel kills the container (unless a program in it has changed user,
//! which clears that: then the daemon does, when it sees the shim gone).
//!
//! Not here: anything that can be decided beforehand (the daemon's), cgroup folders (the daemon
//! makes and removes them).
#![no_main]
#![cfg_attr(feature = "bare", no_std)]

#[cfg(feature = "bare")]
mod bare;
mod container;
mod exec;
mod failure;
mod identity;
mod init;
mod log;
mod process;
mod rootfs;
mod supervise;
mod sys;
mod text;

use core::cell::UnsafeCell;
use core::ffi::CStr;

use warren_shim::message::{
    KEPT_BASE, KEPT_MAX, MESSAGE_MAX, Message, Operation, Reply, Request, Step, TREES_MAX, Tag,
    flags,
};
use warren_shim::protection::{Protection, kept};
use warren_shim::record::Run;

use crate::container::Inherited;
use crate::failure::{At, Failure, Outcome};
use crate::log::Buffers;
use crate::supervise::Running;
use crate::sys::{FDS_MAX, Fd, Mapping, Sys};

/// Where the daemon's end of the pair is.
const DAEMON: Fd = 0;

struct Storage(UnsafeCell<Buffers>);

#[allow(unsafe_code)]
// SAFETY: this process has one thread, and `main` alone reaches in, once.
unsafe impl Sync for Storage {}

static BUFFERS: Storage = Storage(UnsafeCell::new(Buffers::new()));

/// The C library calls this once, as the only thread.
#[cfg(not(feature = "bare"))]
#[allow(unsafe_code)]
#[unsafe(no_mangle)]
extern "C" fn main() -> core::ffi::c_int {
    run()
}

#[allow(unsafe_code)]
fn run() -> i32 {
    // SAFETY: the only access, see `Storage`.
    let buffers = unsafe { &mut *BUFFERS.0.get() };
    match start() {
        Ok((running, mapping)) => {
            supervise::run(&running, mapping, buffers);
            0
        }
        Err(failure) => {
            // A daemon that is gone learns it from the state folder.
            let _ = sys::send(DAEMON, &failure.reply().encode(), None);
            1
        }
    }
}

fn start() -> Outcome<(Running, Mapping)> {
    sys::block_signals(true);
    sys::set_process_name(c"warren-shim");
    sys::close_range(3, 0).at(Step::Protocol)?;
    sys::new_session().at(Step::Protocol)?;
    // What we hold of the host is nobody's to trace; execve of the program ends this.
    sys::process_control(libc::PR_SET_DUMPABLE, 0).at(Step::Protocol)?;
    let received = receive()?;
    let mapping = Mapping::new(received.message, MESSAGE_MAX).at(Step::Protocol)?;
    let running = launch(&received, &mapping)?;
    Ok((running, mapping))
}

struct Received {
    message: Fd,
    /// What follows: the network namespace, if any, then the kept ones.
    others: [Fd; FDS_MAX],
    others_len: usize,
}

fn receive() -> Outcome<Received> {
    let mut bytes = [0; Request::LEN + 1];
    let mut fds = [-1; FDS_MAX];
    let (len, count) = sys::receive(DAEMON, &mut bytes, &mut fds).at(Step::Protocol)?;
    let request = Request::decode(&bytes[..len]);
    let is_start = request.is_some_and(|request| request.operation == Operation::Start);
    if !is_start || count == 0 || !sys::is_sealed(fds[0]) {
        return Err(Failure::new(Step::Protocol, libc::EBADMSG));
    }
    let mut others = [-1; FDS_MAX];
    others[..count - 1].copy_from_slice(&fds[1..count]);
    Ok(Received { message: fds[0], others, others_len: count - 1 })
}

/// Starts the container and returns once its program runs.
fn launch(received: &Received, mapping: &Mapping) -> Outcome<Running> {
    let message =
        Message::parse(mapping.bytes()).map_err(|_| Failure::new(Step::Protocol, libc::EBADMSG))?;
    protect(&message)?;
    let (network, trees) = place(received, &message)?;
    let state = message.text(Tag::StateDir).unwrap_or_default();
    sys::change_folder(state).at(Step::StateDir)?;
    let listener = sys::listen(c"sock").at(Step::Socket)?;
    let logs = message.text(Tag::LogDir).unwrap_or_default();
    let log_folder = sys::open(logs, libc::O_RDONLY | libc::O_DIRECTORY).at(Step::LogFolder)?;
    let (stdout, stdout_child) = sys::pipe().at(Step::Pipe)?;
    let (stderr, stderr_child) = sys::pipe().at(Step::Pipe)?;
    sys::set_nonblocking(stdout).at(Step::Pipe)?;
    sys::set_nonblocking(stderr).at(Step::Pipe)?;
    let stdin = sys::open(c"/dev/null", libc::O_RDWR).at(Step::Pipe)?;
    let (sync, sync_child) = sys::socket_pair().at(Step::Pipe)?;
    let children = sys::child_events().at(Step::Pipe)?;
    let pid = birth(&message)?;
    if pid == 0 {
        let inherited = Inherited {
            streams: [stdin, stdout_child, stderr_child],
            sync: sync_child,
            network,
            trees,
        };
        container::run(&message, &inherited);
    }
    let given = network.iter().chain(trees).copied();
    for fd in [stdin, stdout_child, stderr_child, sync_child].into_iter().chain(given) {
        sys::close(fd);
    }
    let at_ns = match release(pid, sync) {
        Ok(at_ns) => at_ns,
        Err(failure) => {
            let _ = sys::kill(pid, libc::SIGKILL);
            sys::wait_for(pid);
            let _ = sys::unlink_at(libc::AT_FDCWD, c"run");
            return Err(failure);
        }
    };
    sys::close(sync);
    let started = Reply::Started { pid: pid.cast_unsigned(), at_ns };
    // A daemon that died just now finds the run file.
    let _ = sys::send(DAEMON, &started.encode(), None);
    // Keeps number 0 taken, by /dev/null.
    sys::dup_onto(1, DAEMON).at(Step::Pipe)?;
    Ok(Running { pid, message: received.message, children, listener, stdout, stderr, log_folder })
}

/// What protects this process itself, now that it knows whether something is to be left out.
fn protect(message: &Message<'_>) -> Outcome<()> {
    #[cfg(feature = "mutants")]
    {
        use warren_shim::protection::{FLAGS_SHIFT, leave_out};
        leave_out(message.settings().flags >> FLAGS_SHIFT);
    }
    if kept(Protection::SignalDispositions) {
        sys::reset_signals();
    }
    if !kept(Protection::NotDumpable) {
        sys::process_control(libc::PR_SET_DUMPABLE, 1).at(Step::Protocol)?;
    }
    if kept(Protection::ShimGroup) {
        for (index, tasks) in message.texts(Tag::ShimTasks).enumerate() {
            container::join(tasks, index)?;
        }
    }
    Ok(())
}

/// Moves kept descriptors to their numbers; returns the network namespace and trees of mounts.
fn place<'r>(received: &'r Received, message: &Message<'_>) -> Outcome<(Option<Fd>, &'r [Fd])> {
    let settings = message.settings();
    let others = &received.others[..received.others_len];
    let bad = || Failure::new(Step::Protocol, libc::EBADF);
    let (network, rest) = match (settings.has(flags::NETWORK_NAMESPACE), others) {
        (true, [network, rest @ ..]) => (Some(*network), rest),
        (false, rest) => (None, rest),
        (true, []) => return Err(bad()),
    };
    let (kept, trees) = rest.split_at_checked(settings.kept as usize).ok_or_else(bad)?;
    if kept.len() > KEPT_MAX || trees.len() != message.trees() || trees.len() > TREES_MAX {
        return Err(bad());
    }
    for (fd, number) in kept.iter().zip(KEPT_BASE..) {
        if sys::dup_at_least(*fd, number).at(Step::Protocol)? != number {
            return Err(Failure::new(Step::Protocol, libc::EBADF));
        }
        sys::close(*fd);
    }
    Ok((network, trees))
}

fn birth(message: &Message<'_>) -> Outcome<i32> {
    let folder = message.text(Tag::CgroupDir);
    let cgroup = folder.map(|path| sys::open(path, libc::O_PATH | libc::O_DIRECTORY));
    let cgroup = cgroup.transpose().at(Step::Cgroup)?;
    let mut kinds = libc::CLONE_NEWNS;
    let settings = message.settings();
    for (shared, protection, kind) in [
        (0, Protection::UtsNamespace, libc::CLONE_NEWUTS),
        (flags::HOST_PROCESSES, Protection::PidNamespace, libc::CLONE_NEWPID),
        (flags::HOST_IPC, Protection::IpcNamespace, libc::CLONE_NEWIPC),
    ] {
        let is_shared = shared != 0 && settings.has(shared);
        kinds |= if kept(protection) && !is_shared { kind } else { 0 };
    }
    let pid = sys::clone(u64::from(kinds.cast_unsigned()), cgroup).at(Step::Clone)?;
    if let Some(cgroup) = cgroup.filter(|_| pid != 0) {
        sys::close(cgroup);
    }
    Ok(pid)
}

/// Lets the child execute its program, after everything that a later daemon needs to find it is on
/// disk, and only if the present daemon still lives: one that starts meanwhile has either read the
/// run file or can be sure that nothing was started.
fn release(pid: i32, sync: Fd) -> Outcome<u64> {
    let at_ns = sys::now_ns();
    let shim_pid = sys::own_pid().cast_unsigned();
    let run = Run { shim_pid, pid: pid.cast_unsigned(), at_ns };
    leave_file(c"run", None, &run.encode()).at(Step::RunFile)?;
    let mut daemon = [libc::pollfd { fd: DAEMON, events: 0, revents: 0 }];
    sys::poll(&mut daemon, false).at(Step::DaemonGone)?;
    if daemon[0].revents & libc::POLLHUP != 0 {
        return Err(Failure::new(Step::DaemonGone, libc::EPIPE));
    }
    // When the child is gone already, its last word is still to be read.
    let _ = sys::send(sync, &[1], None);
    let mut bytes = [0; Reply::LEN];
    // A child that failed without waiting for our word resets the connection, once, before its own
    // word is read.
    let count = match sys::read(sync, &mut bytes) {
        Err(libc::ECONNRESET) => sys::read(sync, &mut bytes),
        other => other,
    };
    let count = count.at(Step::Clone)?;
    match Reply::decode(&bytes[..count]) {
        Some(Reply::Failed { step, errno, index }) => Err(Failure::with_index(step, errno, index)),
        Some(_) => Err(Failure::new(Step::Protocol, libc::EBADMSG)),
        None => Ok(at_ns),
    }
}

/// Writes a small file into the state folder, by renaming when it has a second name.
fn leave_file(name: &CStr, renamed: Option<&CStr>, bytes: &[u8]) -> Sys<()> {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    let file = sys::open_at(libc::AT_FDCWD, name, flags, 0o600)?;
    let written = sys::write_all(file, bytes);
    sys::close(file);
    written?;
    renamed.map_or(Ok(()), |renamed| sys::rename(name, renamed))
}
