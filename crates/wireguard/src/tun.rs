//! The TUN device: where the kernel routes what is to be encrypted, and takes what was decrypted.
//!
//! Opened with virtio-net headers and segmentation offload: one read or write carries up to
//! 64 KiB of one TCP stream. Not here: cutting and merging (`segment`, `coalesce`), addresses and
//! routes of the link.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};

use crate::Error;

/// IFNAMSIZ without the end.
pub const NAME_LEN_MAX: usize = 15;
/// Queues of one device, one a worker.
pub const QUEUES_MAX: usize = 16;
/// IPv6 needs 1280 (RFC 8200, section 5), and a WireGuard datagram must fit into one of UDP.
pub const MTU_MIN: u16 = 1280;
pub const MTU_MAX: u16 = 65_000;
/// A read: virtio-net header and the longest IP packet.
pub(crate) const READ_LEN: usize = crate::segment::VNET_LEN + 65_535;

#[derive(Debug, Clone)]
pub struct TunOptions {
    pub name: String,
    pub mtu: u16,
    /// How many workers read from it; streams are spread over them by the kernel.
    pub queues: usize,
    /// The link, its addresses and routes outlive this process; whoever opens the name gets it.
    pub persist: bool,
}

/// One queue of a TUN device.
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
}

impl Tun {
    /// Makes the device, or opens one that was left, sets its MTU and brings it up.
    pub fn open(options: &TunOptions) -> Result<Vec<Self>, Error> {
        let name = &options.name;
        let is_name = (1..=NAME_LEN_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b'%');
        if !is_name {
            return Err(Error::TunName { name: name.clone() });
        }
        if !(1..=QUEUES_MAX).contains(&options.queues) {
            return Err(Error::Queues { found: options.queues });
        }
        if !(MTU_MIN..=MTU_MAX).contains(&options.mtu) {
            return Err(Error::Mtu { found: options.mtu });
        }
        let tuns: Result<Vec<_>, _> = (0..options.queues).map(|_| Self::queue(options)).collect();
        let tuns = tuns.map_err(|source| Error::io(format!("open TUN device {name}"), source))?;
        bring_up(name, options.mtu)
            .map_err(|source| Error::io(format!("bring up TUN device {name}"), source))?;
        Ok(tuns)
    }

    fn queue(options: &TunOptions) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = rustix::fs::open("/dev/net/tun", flags, Mode::empty())?;
        let mut request = request(&options.name);
        let mut flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if options.queues > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        request.ifr_ifru.ifru_flags = low(flags);
        // SAFETY: TUNSETIFF reads and writes one ifreq, which `request` is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let persist = libc::c_ulong::from(options.persist);
        // SAFETY: TUNSETPERSIST takes a number.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETPERSIST, persist) })?;
        offload(&fd)?;
        Ok(Self { fd, name: options.name.clone() })
    }

    /// Takes over what another process opened with [`Tun::open`].
    pub fn adopt(fd: OwnedFd) -> Result<Self, Error> {
        let refused = |source| Error::io("take over a TUN device", source);
        let mut request = request("");
        // SAFETY: TUNGETIFF writes one ifreq, which `request` is.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })
            .map_err(refused)?;
        // SAFETY: TUNGETIFF has set the flags, and any bits are a c_short.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        let wanted = low(libc::IFF_TUN | libc::IFF_VNET_HDR);
        if flags & wanted != wanted {
            return Err(Error::NotOurTun);
        }
        offload(&fd).map_err(refused)?;
        let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|c| c.to_ne_bytes()[0]);
        let name = String::from_utf8_lossy(&name.collect::<Vec<u8>>()).into_owned();
        Ok(Self { fd, name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.fd, buffer)?)
    }

    pub(crate) fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(rustix::io::writev(&self.fd, pieces)?)
    }

    /// A second descriptor of the same queue, for a successor.
    pub(crate) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, for which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(NAME_LEN_MAX)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// Flags of an interface are the low 16 bits.
fn low(flags: libc::c_int) -> libc::c_short {
    let [a, b, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([a, b])
}

/// TCP may come uncut and without checksum. A mask of the whole device, so it is set again by
/// whoever takes it over.
fn offload(fd: &OwnedFd) -> io::Result<()> {
    let mask = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    // SAFETY: TUNSETOFFLOAD takes a number.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask)) })
}

fn bring_up(name: &str, mtu: u16) -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let mut request = request(name);
    request.ifr_ifru.ifru_mtu = i32::from(mtu);
    // SAFETY: SIOCSIFMTU reads one ifreq, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFMTU, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS reads and writes one ifreq, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: SIOCGIFFLAGS has set the flags, and any bits are a c_short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | low(libc::IFF_UP);
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
