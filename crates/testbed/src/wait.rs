//! Waiting for what other processes do: level-triggered, bounded, and told why
//! when it was in vain.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Between two looks at something that announces itself to nobody.
pub const PAUSE: Duration = Duration::from_millis(20);

/// Whether the process behind a pidfd ends in time.
pub(crate) fn ended_within(process: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    let limit = Timespec::try_from(limit).context("a limit in range")?;
    let mut wanted = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    Ok(poll(&mut wanted, Some(&limit)).context("wait for a process")? > 0)
}

/// Looks until the answer is there. An error of a look is a reason to look again, and the reason
/// given in the end.
///
/// # Errors
/// In vain for longer than `limit`.
pub fn until<R>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<R>>,
) -> Result<R> {
    let start = Instant::now();
    loop {
        let last = match look() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if start.elapsed() >= limit {
            let seconds = limit.as_secs_f32();
            match last {
                Some(error) => return Err(error.context(format!("{seconds} s in vain: {what}"))),
                None => bail!("{seconds} s in vain: {what}"),
            }
        }
        std::thread::sleep(PAUSE);
    }
}
