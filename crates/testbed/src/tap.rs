//! A TAP device: a network card whose wire is a file of ours.

#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

/// The card's name on its machine.
pub(crate) const NAME: &str = "eth0";

/// Makes the card in the network namespace of the calling thread. Frames come and go without any
/// header; reading and writing never block.
pub(crate) fn open() -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    let file = options.open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid `ifreq`, a struct of integers and arrays.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = flags.try_into().map_err(io::Error::other)?;
    // SAFETY: the file is open and TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    if outcome == 0 { Ok(file.into()) } else { Err(io::Error::last_os_error()) }
}
