//! The policy of iptables-legacy's FORWARD chain, which no netlink shows.
//!
//! Asked only if the filter table is there: asking would make the kernel load it.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto, socket_with};

// linux/netfilter_ipv4/ip_tables.h
const GET_INFO: libc::c_int = 64;
const GET_ENTRIES: libc::c_int = 65;
/// Table name, valid hooks, five entry and five underflow offsets, number and size of entries.
const INFO_LEN: usize = 32 + 4 * 13;
const UNDERFLOW_AT: usize = 32 + 4 * 6;
const SIZE_AT: usize = 32 + 4 * 12;
const FORWARD: usize = 2;
/// Entries follow the name and the size, aligned to eight bytes.
const ENTRIES_AT: usize = 40;
/// `struct ipt_entry`, then `struct xt_entry_target`, then the verdict.
const VERDICT_AT: usize = 112 + 32;
const DROP: i32 = -1;
/// More than any table of people: Kubernetes hosts with 20,000 rules have 8 MiB.
const TABLE_LEN_MAX: usize = 64 << 20;

pub(crate) fn forward_drops() -> bool {
    let tables = fs::read_to_string("/proc/thread-self/net/ip_tables_names").unwrap_or_default();
    tables.lines().any(|table| table == "filter") && policy() == Some(DROP)
}

fn policy() -> Option<i32> {
    let flags = SocketFlags::CLOEXEC;
    let socket =
        socket_with(AddressFamily::INET, SocketType::RAW, flags, Some(ipproto::RAW)).ok()?;
    let mut info = vec![0; INFO_LEN];
    info[..6].copy_from_slice(b"filter");
    get(&socket, GET_INFO, &mut info).ok()?;
    let size = number(&info, SIZE_AT)? as usize;
    let underflow = number(&info, UNDERFLOW_AT + 4 * FORWARD)? as usize;
    if size > TABLE_LEN_MAX {
        return None;
    }
    let mut entries = vec![0; ENTRIES_AT + size];
    entries[..6].copy_from_slice(b"filter");
    entries[32..36].copy_from_slice(&info[SIZE_AT..SIZE_AT + 4]);
    get(&socket, GET_ENTRIES, &mut entries).ok()?;
    number(&entries, ENTRIES_AT + underflow + VERDICT_AT).map(u32::cast_signed)
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn get(socket: &impl AsRawFd, option: libc::c_int, buffer: &mut [u8]) -> io::Result<()> {
    let mut len = libc::socklen_t::try_from(buffer.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the descriptor is open for the call; the kernel writes at most `len` bytes,
    // which is the buffer's length, and both pointers are valid and exclusive for its duration.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            option,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
