//! Waiting for the kernel to stop a group of processes.

use std::io;
use std::thread::sleep;
use std::time::Duration;

/// A process in the middle of a system call stops at once, one that waits for a disk or a device
/// when that answers.
const FREEZE_PAUSES_MS: [u64; 11] = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512];

/// Asks until `is_done`, with pauses that grow.
///
/// # Errors
/// `TimedOut` when it never was.
pub(super) fn wait(mut is_done: impl FnMut() -> io::Result<bool>) -> io::Result<()> {
    for pause in FREEZE_PAUSES_MS {
        sleep(Duration::from_millis(pause));
        if is_done()? {
            return Ok(());
        }
    }
    let text = "a process does not stop: it may wait for a disk or a device";
    Err(io::Error::new(io::ErrorKind::TimedOut, text))
}
