//! A process beside the container's own: in its namespaces, cgroups and limits.
//!
//! The shim stays in its own namespaces; only its future children are set to be born in the
//! container's pid namespace. A program that does not exist ends the exec with 127 and one that
//! cannot run with 126, as in a shell, with the reason on its standard error.

use warren_shim::message::{MESSAGE_MAX, Message, Reply, Step, Tag, flags};
use warren_shim::protection::{Protection, kept};

use crate::container::{join_cgroups, new_keyring, set_oom_score};
use crate::failure::{At, Failure, Outcome};
use crate::process::{self, Description, Gate};
use crate::sys::{self, Fd, Mapping};
use crate::text::Text;

/// linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// What an exec request came with; the caller closes them.
pub(crate) struct Asked<'a> {
    pub(crate) container_pid: i32,
    /// The container's own message.
    pub(crate) container: Fd,
    /// The exec's message, then its streams unless it wants a terminal.
    pub(crate) fds: &'a [Fd],
    pub(crate) connection: Fd,
}

/// A child that is on its way: the socket ends without a word when its program runs.
pub(crate) struct Child {
    pub(crate) pid: i32,
    pub(crate) sync: Fd,
}

pub(crate) fn spawn(asked: &Asked<'_>) -> Outcome<Child> {
    let message_fd =
        *asked.fds.first().ok_or_else(|| Failure::new(Step::Protocol, libc::EINVAL))?;
    let (container, exec) = (map(asked.container)?, map(message_fd)?);
    let (container, exec) = (parse(&container)?, parse(&exec)?);
    let streams = match (exec.settings().has(flags::TERMINAL), asked.fds) {
        (true, [_]) => None,
        (false, [_, stdin, stdout, stderr]) => Some([*stdin, *stdout, *stderr]),
        _ => return Err(Failure::new(Step::Protocol, libc::EINVAL)),
    };
    let namespaces = sys::process_fd(asked.container_pid).at(Step::Namespaces)?;
    let (own, childs) =
        sys::socket_pair().at(Step::Pipe).inspect_err(|_| sys::close(namespaces))?;
    let born = birth(&container, namespaces);
    if let Ok(0) = born {
        let description = Description { container: &container, exec: Some(&exec) };
        let inside = Inside { namespaces, streams, connection: asked.connection, sync: childs };
        run(&description, &inside);
    }
    sys::close(namespaces);
    sys::close(childs);
    match born {
        Ok(pid) => Ok(Child { pid, sync: own }),
        Err(failure) => {
            sys::close(own);
            Err(failure)
        }
    }
}

/// Clones into the container's pid namespace and, with cgroup v2, its cgroup.
fn birth(container: &Message<'_>, namespaces: Fd) -> Outcome<i32> {
    sys::enter(namespaces, libc::CLONE_NEWPID).at(Step::Namespaces)?;
    let folder = container.text(Tag::CgroupDir).filter(|_| kept(Protection::ExecCgroup));
    let cgroup = folder.map(|path| sys::open(path, libc::O_PATH | libc::O_DIRECTORY));
    let cgroup = cgroup.transpose().at(Step::Cgroup)?;
    let born = sys::clone(0, cgroup).at(Step::Clone);
    if let Some(cgroup) = cgroup {
        sys::close(cgroup);
    }
    born
}

fn map(fd: Fd) -> Outcome<Mapping> {
    if kept(Protection::SealedMessages) && !sys::is_sealed(fd) {
        return Err(Failure::new(Step::Protocol, libc::EPERM));
    }
    Mapping::new(fd, MESSAGE_MAX).at(Step::Protocol)
}

fn parse(mapping: &Mapping) -> Outcome<Message<'_>> {
    Message::parse(mapping.bytes()).map_err(|_| Failure::new(Step::Protocol, libc::EBADMSG))
}

struct Inside {
    namespaces: Fd,
    /// None: a terminal of the container's own.
    streams: Option<[Fd; 3]>,
    connection: Fd,
    sync: Fd,
}

fn run(description: &Description<'_>, inside: &Inside) -> ! {
    let failure = match set_up(description, inside) {
        Ok(()) => process::become_program(description, Gate::Open),
        Err(failure) => failure,
    };
    if let Some(code) = as_in_a_shell(description, failure) {
        sys::exit(code);
    }
    let _ = sys::send(process::SYNC, &failure.reply().encode(), None);
    sys::exit(1)
}

fn set_up(description: &Description<'_>, inside: &Inside) -> Outcome<()> {
    process::place_sync(inside.sync)?;
    sys::new_session().at(Step::Identity)?;
    new_keyring()?;
    if kept(Protection::ExecCgroup) {
        join_cgroups(description.container)?;
    }
    set_oom_score(description.container)?;
    let kinds = libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    sys::enter(inside.namespaces, kinds).at(Step::Namespaces)?;
    if let Some(streams) = inside.streams {
        return process::place_streams(streams);
    }
    let settings = description.exec.unwrap_or(description.container).settings();
    let (master, peer) = terminal().at(Step::Terminal)?;
    sys::set_terminal_size(peer, settings.rows, settings.columns).at(Step::Terminal)?;
    sys::send(inside.connection, &Reply::Terminal.encode(), Some(master)).at(Step::Terminal)?;
    process::place_streams([peer; 3])?;
    sys::take_terminal(0).at(Step::Terminal)
}

/// Both ends of a new terminal. The path is the container's to change: what it leads to must be
/// the master of a devpts, and the other end is opened through it, not by name (CVE-2025-52565).
fn terminal() -> Result<(Fd, Fd), i32> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let master = sys::open(c"/dev/pts/ptmx", flags)?;
    let stat = sys::status(master)?;
    let is_ours = sys::file_system(master)? == DEVPTS_SUPER_MAGIC
        && stat.st_mode & libc::S_IFMT == libc::S_IFCHR
        && stat.st_rdev == libc::makedev(5, 2);
    if kept(Protection::Terminal) && !is_ours {
        return Err(libc::ENOTTY);
    }
    let peer = sys::terminal_peer(master)?;
    Ok((master, peer))
}

fn as_in_a_shell(description: &Description<'_>, failure: Failure) -> Option<i32> {
    let missing = failure.is(Step::Exec, libc::ENOENT) || failure.is(Step::Exec, libc::ENOTDIR);
    let (code, reason): (i32, &[u8]) = if missing {
        (127, b"not found\n")
    } else if failure.is_step(Step::Interpreter) {
        (127, b"its interpreter or loader is not in the image\n")
    } else if failure.is(Step::Exec, libc::EACCES) {
        (126, b"permission denied\n")
    } else if failure.is(Step::Exec, libc::ENOEXEC) {
        (126, b"not a program for this machine\n")
    } else if failure.is_step(Step::Exec) {
        (126, b"cannot be executed\n")
    } else {
        return None;
    };
    let program = description.exec.and_then(|exec| exec.text(Tag::Arg)).unwrap_or_default();
    let mut text = Text::<512>::new();
    let name = program.to_bytes();
    let built = text
        .push(b"exec: ")
        .and_then(|()| text.push(&name[..name.len().min(256)]))
        .and_then(|()| text.push(b": "))
        .and_then(|()| text.push(reason));
    if built.is_ok() {
        let _ = sys::write_all(2, text.bytes());
    }
    Some(code)
}
