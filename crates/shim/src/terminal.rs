//! A terminal of a container's own, for its first process or for an exec.

use warren_shim::message::{Reply, Settings, Step};
use warren_shim::protection::{Protection, kept};

use crate::failure::{At, Outcome};
use crate::process;
use crate::sys::{self, Fd};

/// linux/magic.h.
const DEVPTS_SUPER_MAGIC: i64 = 0x1cd1;

/// Makes a terminal, sends its master over `to`, and has its other end for all three streams.
/// With `console` it is seen as /dev/console as well.
pub(crate) fn take(settings: &Settings, to: Fd, console: bool) -> Outcome<()> {
    let (master, peer) = make().at(Step::Terminal)?;
    sys::set_terminal_size(peer, settings.rows, settings.columns).at(Step::Terminal)?;
    sys::send(to, &Reply::Terminal.encode(), Some(master)).at(Step::Terminal)?;
    sys::close(master);
    if console {
        show_console(peer).at(Step::Terminal)?;
    }
    process::place_streams([peer; 3])?;
    sys::take_terminal(0).at(Step::Terminal)
}

/// Both ends of a new terminal. The path is the container's to change: what it leads to must be
/// the master of a devpts, and the other end is opened through it, not by name (CVE-2025-52565).
fn make() -> Result<(Fd, Fd), i32> {
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

/// The terminal over a file of our own in /dev, both by descriptor.
fn show_console(peer: Fd) -> Result<(), i32> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let dev = sys::open(c"/dev", flags)?;
    const NEW: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW;
    let shown = match sys::open_at(dev, c"console", NEW, 0o600) {
        Ok(file) => {
            sys::close(file);
            attach(peer, dev)
        }
        // A device of that name was asked for: it is what is wanted.
        Err(libc::EEXIST) => Ok(()),
        Err(error) => Err(error),
    };
    sys::close(dev);
    shown
}

fn attach(peer: Fd, dev: Fd) -> Result<(), i32> {
    let copy = sys::copy_mount(peer, c"", false)?;
    let attached = sys::attach_mount(copy, dev, c"console");
    sys::close(copy);
    attached
}
