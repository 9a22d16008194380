//! Who the container's process is: user, groups and home, by Docker's rules.
//!
//! Reads `/etc/passwd` and `/etc/group` of the container's root, which the caller has entered.
//! They belong to the image, or to a running container: only regular files, up to a limit, and
//! lines that do not fit are skipped.

use core::ffi::CStr;

use warren_shim::account::{Group, Passwd, Wanted, id};
use warren_shim::message::Step;
use warren_shim::protection::{Protection, kept};

use crate::failure::{At, Failure, Outcome};
use crate::sys::{self, Fd, Sys};

/// A group line names its members: room for hundreds.
const LINE_MAX: usize = 16 * 1024;
/// Read of each file at most; far beyond any image's, and bounded for hostile ones.
const FILE_MAX: usize = 4 << 20;
/// Docker has no limit of its own; the kernel's is 65536.
const GROUPS_MAX: usize = 256;
const HOME_MAX: usize = 1024;

pub(crate) struct Identity {
    pub(crate) user: u32,
    pub(crate) group: u32,
    others: [u32; GROUPS_MAX],
    others_len: usize,
    home: [u8; HOME_MAX],
    home_len: usize,
}

impl Identity {
    /// Supplementary groups.
    pub(crate) fn others(&self) -> &[u32] {
        &self.others[..self.others_len]
    }

    pub(crate) fn home(&self) -> &[u8] {
        if self.home_len == 0 { b"/" } else { &self.home[..self.home_len] }
    }

    /// Adds supplementary groups, each a name or a number.
    pub(crate) fn join<'a>(&mut self, groups: impl Iterator<Item = &'a CStr>) -> Outcome<()> {
        for (index, wanted) in groups.enumerate() {
            let wanted = Wanted { user: b"", group: wanted.to_bytes() };
            let mut found = None;
            each_line(c"/etc/group", |line| {
                let entry = Group::parse(line).filter(|entry| wanted.is_group(entry));
                found = entry.map(|entry| entry.gid);
                found.is_some()
            })
            .at(Step::UserFile)?;
            let group = found.or_else(|| id(wanted.group));
            let group = group.ok_or(libc::ENOENT).at_index(Step::ExtraGroup, index)?;
            if self.others().contains(&group) {
                continue;
            }
            let slot = self.others.get_mut(self.others_len);
            *slot.ok_or(libc::EINVAL).at_index(Step::ExtraGroup, index)? = group;
            self.others_len += 1;
        }
        Ok(())
    }

    /// Looks up what `user[:group]` means here.
    pub(crate) fn find(wanted: &CStr) -> Outcome<Self> {
        let wanted = Wanted::parse(wanted.to_bytes());
        let mut found = Self {
            user: 0,
            group: 0,
            others: [0; GROUPS_MAX],
            others_len: 0,
            home: [0; HOME_MAX],
            home_len: 0,
        };
        // A name longer than this cannot be a member of anything that Linux tools accept.
        let mut name = [0; 64];
        let mut name_len = 0;
        let known = each_line(c"/etc/passwd", |line| {
            let Some(entry) = Passwd::parse(line).filter(|entry| wanted.is_user(entry)) else {
                return false;
            };
            found.user = entry.uid;
            found.group = entry.gid;
            found.home_len = copy(&mut found.home, entry.home);
            name_len = copy(&mut name, entry.name);
            true
        })
        .at(Step::UserFile)?;
        if !known && !wanted.user.is_empty() {
            found.user = id(wanted.user).ok_or_else(|| Failure::new(Step::UserUnknown, 0))?;
        }
        found.find_groups(&wanted, &name[..name_len])?;
        Ok(found)
    }

    fn find_groups(&mut self, wanted: &Wanted<'_>, name: &[u8]) -> Outcome<()> {
        if wanted.group.is_empty() {
            if name.is_empty() {
                return Ok(());
            }
            each_line(c"/etc/group", |line| {
                if let Some(entry) = Group::parse(line).filter(|entry| entry.has_member(name))
                    && let Some(slot) = self.others.get_mut(self.others_len)
                {
                    *slot = entry.gid;
                    self.others_len += 1;
                }
                false
            })
            .at(Step::UserFile)?;
            return Ok(());
        }
        let known = each_line(c"/etc/group", |line| {
            let entry = Group::parse(line).filter(|entry| wanted.is_group(entry));
            self.group = entry.map_or(self.group, |entry| entry.gid);
            entry.is_some()
        })
        .at(Step::UserFile)?;
        if !known {
            self.group = id(wanted.group).ok_or_else(|| Failure::new(Step::GroupUnknown, 0))?;
        }
        Ok(())
    }
}

/// Copies what fits whole; otherwise nothing.
fn copy(to: &mut [u8], from: &[u8]) -> usize {
    match to.get_mut(..from.len()) {
        Some(to) => {
            to.copy_from_slice(from);
            from.len()
        }
        None => 0,
    }
}

/// Calls `stop` with each line until it returns true, and returns that. No file is no lines.
fn each_line(path: &CStr, mut stop: impl FnMut(&[u8]) -> bool) -> Sys<bool> {
    // Not blocking and no terminal: the path may be anything in a running container.
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = match sys::open(path, flags) {
        Err(libc::ENOENT | libc::ENOTDIR) => return Ok(false),
        other => other?,
    };
    let result = lines_of(file, &mut stop);
    sys::close(file);
    result
}

fn lines_of(file: Fd, stop: &mut impl FnMut(&[u8]) -> bool) -> Sys<bool> {
    let is_regular = sys::status(file)?.st_mode & libc::S_IFMT == libc::S_IFREG;
    if kept(Protection::UserFilesRegular) && !is_regular {
        return Err(libc::EINVAL);
    }
    let mut buffer = [0; LINE_MAX];
    let (mut len, mut total, mut too_long) = (0, 0, false);
    loop {
        let count = sys::read(file, &mut buffer[len..])?;
        total += count;
        len += count;
        if count == 0 || (total > FILE_MAX && kept(Protection::UserFilesBounded)) {
            // The last line may lack its newline.
            return Ok(!too_long && len > 0 && stop(&buffer[..len]));
        }
        let mut start = 0;
        while let Some(end) = buffer[start..len].iter().position(|byte| *byte == b'\n') {
            let line = &buffer[start..start + end];
            if !core::mem::take(&mut too_long) && stop(line) {
                return Ok(true);
            }
            start += end + 1;
        }
        buffer.copy_within(start..len, 0);
        len -= start;
        if len == buffer.len() {
            too_long = true;
            len = 0;
        }
    }
}
