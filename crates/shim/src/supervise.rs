//! The shim's life beside a running container: logs, requests, execs, and the exit.
//!
//! One loop over `poll`; nothing blocks but the log's disk. It ends when the container's first
//! process has ended: by then the kernel has killed everything else in its pid namespace.

use core::ffi::c_int;

use warren_shim::line::Stream;
use warren_shim::message::{Message, Operation, Reply, Request, Step, Tag};
use warren_shim::protection::{Protection, kept};
use warren_shim::record::Exit;

use crate::exec::{self, Asked};
use crate::failure::Failure;
use crate::log::{Buffers, Log, Pumped, Source};
use crate::sys::{self, FDS_MAX, Fd, Mapping};

/// Callers at once, execs included. Each costs two descriptors here.
const CALLERS_MAX: usize = 64;
/// Reads from each pipe after the end: its 64 KiB and then some, but never for ever, since other
/// containers may hold the pipe's other end.
const LAST_READS: usize = 64;

const NONE: Fd = -1;

/// What the loop starts with.
pub(crate) struct Running {
    pub(crate) pid: i32,
    /// The container's message, kept for execs and the end.
    pub(crate) message: Fd,
    pub(crate) children: Fd,
    pub(crate) listener: Fd,
    pub(crate) stdout: Fd,
    pub(crate) stderr: Fd,
    pub(crate) log_folder: Fd,
}

/// A connection and what was started over it.
#[derive(Clone, Copy)]
struct Caller {
    connection: Fd,
    /// Until the exec's program runs.
    sync: Fd,
    pid: i32,
}

const FREE: Caller = Caller { connection: NONE, sync: NONE, pid: 0 };

impl Caller {
    fn is_free(&self) -> bool {
        self.connection == NONE && self.sync == NONE && self.pid == 0
    }

    fn answer(&mut self, reply: Reply) {
        if self.connection != NONE && sys::send(self.connection, &reply.encode(), None).is_err() {
            self.hang_up();
        }
    }

    fn hang_up(&mut self) {
        if self.connection != NONE {
            sys::close(self.connection);
            self.connection = NONE;
        }
    }

    /// The exec's child said why it failed, or went silent because its program runs.
    fn settle(&mut self) {
        if self.sync == NONE {
            return;
        }
        let mut bytes = [0; Reply::LEN];
        let failed = match sys::read(self.sync, &mut bytes) {
            Ok(0) | Err(_) => None,
            Ok(count) => Reply::decode(&bytes[..count]),
        };
        sys::close(self.sync);
        self.sync = NONE;
        let pid = u32::try_from(self.pid).unwrap_or(0);
        self.answer(failed.unwrap_or_else(|| Reply::Started { pid, at_ns: sys::now_ns() }));
        if failed.is_some() {
            // Its exit status means nothing to anybody.
            self.hang_up();
        }
    }
}

/// Runs until the container has ended and its exit is on disk.
pub(crate) fn run(running: &Running, message: Mapping, buffers: &mut Buffers) {
    let settings = Message::parse(message.bytes()).map(|message| *message.settings());
    // From here on the message costs no memory.
    drop(message);
    let mut log = Log::new(running.log_folder, &settings.unwrap_or_default(), buffers);
    let mut sources =
        [Source::new(running.stdout, Stream::Stdout), Source::new(running.stderr, Stream::Stderr)];
    let mut callers = [FREE; CALLERS_MAX];
    let status = loop {
        if let Some(status) = turn(running, &mut log, &mut sources, &mut callers) {
            break status;
        }
    };
    for source in &mut sources {
        for _ in 0..LAST_READS {
            if source.fd == NONE || log.pump(source) != Pumped::Some {
                break;
            }
        }
        log.finish(source);
    }
    let (code, signal) = outcome(status);
    let exit = Exit {
        code,
        signal,
        oom_killed: oom_killed(running.message),
        supervisor_lost: false,
        at_ns: sys::now_ns(),
        lines_lost: log.lost,
    };
    // When even this cannot be written, the daemon finds the shim gone and says so.
    let _ = crate::leave_file(c"exit.tmp", Some(c"exit"), &exit.encode());
}

/// Waits for something and deals with it; the container's wait status when it has ended.
fn turn(
    running: &Running,
    log: &mut Log<'_>,
    sources: &mut [Source; 2],
    callers: &mut [Caller; CALLERS_MAX],
) -> Option<c_int> {
    const FIXED: usize = 4;
    let mut entries =
        [libc::pollfd { fd: NONE, events: libc::POLLIN, revents: 0 }; FIXED + 2 * CALLERS_MAX];
    entries[0].fd = running.children;
    entries[1].fd = running.listener;
    entries[2].fd = sources[0].fd;
    entries[3].fd = sources[1].fd;
    // Only as long as the callers in use.
    let mut used = FIXED;
    for (index, caller) in callers.iter().enumerate() {
        if !caller.is_free() {
            used = FIXED + 2 * index + 2;
            entries[used - 2].fd = caller.connection;
            entries[used - 1].fd = caller.sync;
        }
    }
    if sys::poll(&mut entries[..used], true).is_err() {
        return None;
    }
    for (source, entry) in sources.iter_mut().zip(&entries[2..]) {
        if entry.revents != 0 && log.pump(source) == Pumped::End {
            sys::close(source.fd);
            source.fd = NONE;
        }
    }
    for (index, caller) in callers.iter_mut().enumerate() {
        let Some([connection, sync]) =
            entries[..used].get(FIXED + 2 * index..FIXED + 2 * index + 2)
        else {
            break;
        };
        if sync.revents != 0 {
            caller.settle();
        }
        if connection.revents != 0 {
            hear(running, caller);
        }
    }
    if entries[1].revents != 0 {
        welcome(running.listener, callers);
    }
    if entries[0].revents != 0 { reap(running, callers) } else { None }
}

/// All children that have ended.
fn reap(running: &Running, callers: &mut [Caller]) -> Option<c_int> {
    let mut signals = [0; 128];
    let _ = sys::read(running.children, &mut signals);
    let mut ended = None;
    while let Some((pid, status)) = sys::reap() {
        if pid == running.pid {
            ended = Some(status);
        } else if let Some(caller) = callers.iter_mut().find(|caller| caller.pid == pid) {
            caller.settle();
            caller.answer(Reply::Exited { code: outcome(status).0 });
            caller.hang_up();
            caller.pid = 0;
        }
    }
    ended
}

fn welcome(listener: Fd, callers: &mut [Caller]) {
    let Ok((connection, user)) = sys::accept(listener) else { return };
    let free = callers.iter_mut().find(|caller| caller.is_free());
    let is_own = user == sys::own_user() || !kept(Protection::PeerCheck);
    match free.filter(|_| is_own) {
        Some(caller) => caller.connection = connection,
        None => {
            let busy = Failure::new(Step::Busy, libc::EAGAIN).reply();
            let _ = sys::send(connection, &busy.encode(), None);
            sys::close(connection);
        }
    }
}

/// One datagram of a caller; anything that is not a request ends the connection.
fn hear(running: &Running, caller: &mut Caller) {
    let mut bytes = [0; Request::LEN + 1];
    let mut fds = [NONE; FDS_MAX];
    let (len, count) = match sys::receive(caller.connection, &mut bytes, &mut fds) {
        Ok((0, 0)) => return caller.hang_up(),
        Ok(received) => received,
        Err(libc::EAGAIN | libc::EINTR) => return,
        Err(_) => return caller.hang_up(),
    };
    let fds = &fds[..count];
    match Request::decode(&bytes[..len]) {
        Some(Request { operation: Operation::Signal, argument }) => {
            let target = if caller.pid == 0 { running.pid } else { caller.pid };
            // What an exec is killed for is mostly hung in a child of it. It leads a session of its
            // own, but for a moment at its beginning.
            let whole = caller.pid != 0 && argument == libc::SIGKILL;
            let killed = if whole { sys::kill(-target, argument) } else { Err(libc::ESRCH) };
            let killed = killed.or_else(|_| sys::kill(target, argument));
            let errno = killed.err().unwrap_or(0);
            caller.answer(Reply::Signalled { errno });
        }
        Some(Request { operation: Operation::Exec, .. }) if caller.pid == 0 => {
            let asked = Asked {
                container_pid: running.pid,
                container: running.message,
                fds,
                connection: caller.connection,
            };
            match exec::spawn(&asked) {
                Ok(child) => {
                    caller.pid = child.pid;
                    caller.sync = child.sync;
                }
                Err(failure) => caller.answer(failure.reply()),
            }
        }
        Some(Request { operation: Operation::Exec | Operation::Start, .. }) | None => {
            caller.answer(Failure::new(Step::Protocol, libc::EBADMSG).reply());
            caller.hang_up();
        }
    }
    for fd in fds {
        sys::close(*fd);
    }
}

/// Code as a shell shows it, and the signal or 0.
pub(crate) fn outcome(status: c_int) -> (i32, i32) {
    if libc::WIFSIGNALED(status) {
        let signal = libc::WTERMSIG(status);
        return (128 + signal, signal);
    }
    (libc::WEXITSTATUS(status), 0)
}

/// Whether the kernel's count of processes killed for memory has left zero.
fn oom_killed(message: Fd) -> bool {
    let Ok(mapping) = Mapping::new(message, warren_shim::message::MESSAGE_MAX) else {
        return false;
    };
    let Ok(message) = Message::parse(mapping.bytes()) else { return false };
    let Some(path) = message.text(Tag::OomFile) else { return false };
    let Ok(file) = sys::open(path, libc::O_RDONLY) else { return false };
    let mut text = [0; 1024];
    let len = sys::read(file, &mut text).unwrap_or(0);
    sys::close(file);
    text[..len]
        .split(|byte| *byte == b'\n')
        .any(|line| line.strip_prefix(b"oom_kill ").is_some_and(|count| count != b"0"))
}
