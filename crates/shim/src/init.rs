//! The first process of a container that is not its program: it passes signals on, reaps what its
//! parent left behind, and ends as the program does.
//!
//! It is the shim's own code, in the container's namespaces, with the program's user and
//! privileges, and nothing open but the standard streams. Nobody without CAP_SYS_PTRACE may look
//! into its memory, where the container's message is.

use warren_shim::message::Step;

use crate::failure::{At, Outcome};
use crate::process::SYNC;
use crate::supervise::outcome;
use crate::sys;

/// Returns in a new process, which becomes the program; the old one stays as its parent.
pub(crate) fn stay_behind() -> Outcome<()> {
    sys::block_signals(true);
    // Processes without a parent come to this one also where it is not the first of all.
    sys::process_control(libc::PR_SET_CHILD_SUBREAPER, 1).at(Step::Init)?;
    let child = sys::fork().at(Step::Init)?;
    if child == 0 {
        return begin();
    }
    // The program's success is told by its end of the socket being closed: ours must not be open.
    let _ = sys::close_range(SYNC.cast_unsigned(), 0);
    let _ = sys::process_control(libc::PR_SET_DUMPABLE, 0);
    sys::set_process_name(c"warren-init");
    watch(child)
}

/// A process group of its own, which has the terminal if there is one: what is typed there is told
/// to the program, not to both.
fn begin() -> Outcome<()> {
    let kill = u64::from(libc::SIGKILL.cast_unsigned());
    sys::process_control(libc::PR_SET_PDEATHSIG, kill).at(Step::Init)?;
    sys::new_group().at(Step::Init)?;
    // No terminal is no error.
    let _ = sys::come_to_the_fore(0);
    sys::block_signals(false);
    Ok(())
}

fn watch(child: i32) -> ! {
    loop {
        match sys::next_signal() {
            Ok(libc::SIGCHLD) => {
                let mut ended = None;
                while let Some((pid, status)) = sys::reap() {
                    if pid == child {
                        ended = Some(status);
                    }
                }
                if let Some(status) = ended {
                    sys::exit(outcome(status).0);
                }
            }
            // Of a terminal that others have.
            Ok(libc::SIGTTIN | libc::SIGTTOU) | Err(libc::EINTR) => {}
            Ok(signal) => drop(sys::kill(child, signal)),
            // A seccomp profile that forbids it: signals are lost then, the end is not.
            Err(_) => sys::exit(outcome(sys::wait_for(child)).0),
        }
    }
}
