//! A container's first process, from `clone` to `execve`.
//!
//! Nothing here allocates or returns: failures go to the shim over the sync socket.
//!
//! It moves itself into its cgroups: a single thread writing `0` to a v1 `tasks` file skips the
//! lock that moving another process takes, and with it a wait for every processor (12 ms to 0.4 ms
//! for five controllers on Linux 6.18).

use core::ffi::CStr;

use warren_shim::message::{Message, Step, Tag, flags};
use warren_shim::protection::{Protection, kept};

use crate::failure::{At, Failure, Outcome};
use crate::process::{self, Description, Gate};
use crate::rootfs;
use crate::sys::{self, Fd};

/// What the child inherits from the shim.
pub(crate) struct Inherited<'a> {
    pub(crate) streams: [Fd; 3],
    pub(crate) sync: Fd,
    pub(crate) network: Option<Fd>,
    /// Mounts that are to be attached.
    pub(crate) trees: &'a [Fd],
}

/// Becomes the container's program, or reports why not and ends.
pub(crate) fn run(message: &Message<'_>, inherited: &Inherited<'_>) -> ! {
    let failure = match set_up(message, inherited) {
        Ok(()) => {
            let description = Description { container: message, exec: None };
            process::become_program(&description, Gate::Wait)
        }
        Err(failure) => failure,
    };
    // Without a reader the shim is gone, and so are we.
    let _ = sys::send(process::SYNC, &failure.reply().encode(), None);
    sys::exit(1)
}

fn set_up(message: &Message<'_>, inherited: &Inherited<'_>) -> Outcome<()> {
    process::place_sync(inherited.sync)?;
    process::place_streams(inherited.streams)?;
    if kept(Protection::Session) {
        sys::new_session().at(Step::Identity)?;
    }
    new_keyring()?;
    join_cgroups(message)?;
    set_oom_score(message)?;
    if let Some(network) = inherited.network.filter(|_| kept(Protection::NetworkNamespace)) {
        sys::enter(network, libc::CLONE_NEWNET).at(Step::NetworkNamespace)?;
    }
    // Now that the cgroups are joined: they are this namespace's roots.
    if kept(Protection::CgroupNamespace) {
        sys::leave(libc::CLONE_NEWCGROUP).at(Step::Cgroup)?;
    }
    sys::set_umask(0);
    rootfs::build(message, inherited.trees)?;
    let hostname = message.text(Tag::Hostname).unwrap_or_default();
    if !hostname.is_empty() && kept(Protection::UtsNamespace) {
        sys::set_hostname(hostname.to_bytes()).at(Step::Hostname)?;
    }
    Ok(())
}

/// So that the daemon's keys are not the container's. A full quota of keys is no reason to fail.
pub(crate) fn new_keyring() -> Outcome<()> {
    if !kept(Protection::Keyring) {
        return Ok(());
    }
    match sys::new_keyring() {
        Ok(()) | Err(libc::ENOSYS | libc::EDQUOT) => Ok(()),
        Err(errno) => Err(Failure::new(Step::Keyring, errno)),
    }
}

pub(crate) fn join_cgroups(message: &Message<'_>) -> Outcome<()> {
    for (index, tasks) in message.texts(Tag::CgroupTasks).enumerate() {
        join(tasks, index)?;
    }
    Ok(())
}

/// Moves this process into one control group.
pub(crate) fn join(tasks: &CStr, index: usize) -> Outcome<()> {
    let file = sys::open(tasks, libc::O_WRONLY).at_index(Step::Cgroup, index)?;
    let written = sys::write_all(file, b"0");
    sys::close(file);
    written.at_index(Step::Cgroup, index)
}

/// As it is wanted, or 0 where the daemon's own is another.
pub(crate) fn set_oom_score(message: &Message<'_>) -> Outcome<()> {
    let score = match message.text(Tag::OutOfMemoryScore) {
        Some(score) => score.to_bytes(),
        None if message.settings().has(flags::RESET_OOM_SCORE)
            && kept(Protection::OutOfMemoryScore) =>
        {
            b"0"
        }
        None => return Ok(()),
    };
    let file = sys::open(c"/proc/self/oom_score_adj", libc::O_WRONLY).at(Step::OutOfMemoryScore)?;
    let written = sys::write_all(file, score);
    sys::close(file);
    written.at(Step::OutOfMemoryScore)
}
