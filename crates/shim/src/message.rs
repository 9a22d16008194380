//! The flat message: a header, then records of a tag, a length and padded bytes.
//!
//! [`Message::parse`] checks everything once (bounds, tags, strings ending in their only NUL), so
//! that what reads it afterwards has no failures to report. Strings keep their NUL and go to
//! system calls as they lie. A shim speaks exactly one [`VERSION`]: daemon and shim of one start
//! come from the same binary; an exec reaches a shim of an older daemon, which answers
//! [`Step::Protocol`] when it does not understand.
//!
//! Not here: what the fields mean to the kernel.

/// An enum with numbers that go over the wire.
macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $value:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum $name { $($(#[$doc])* $variant = $value,)* }
        impl $name {
            pub const ALL: &[Self] = &[$(Self::$variant,)*];
            pub fn from_number(number: u32) -> Option<Self> {
                match number { $($value => Some(Self::$variant),)* _ => None }
            }
            pub fn number(self) -> u32 { self as u32 }
        }
    };
}

#[cfg(not(feature = "bare"))]
mod build;
mod datagram;
#[cfg(test)]
mod tests;

use core::ffi::CStr;

#[cfg(not(feature = "bare"))]
pub use build::{Builder, HasNul};
pub use datagram::{Operation, Reply, Request};

/// "WRN1", little endian.
pub const MAGIC: u32 = 0x314e_5257;
pub const VERSION: u32 = 1;
/// Arguments, environment, seccomp program and injected files together. Linux takes 2 MiB of
/// arguments and environment at most; files are small configuration and secrets.
pub const MESSAGE_MAX: usize = 8 << 20;
/// The options string of an overlay mount is one page; at `/proc/self/fd/NNN:` each this is half.
pub const LAYERS_MAX: usize = 128;
/// Pointers that the shim holds on its stack for arguments and for the environment.
pub const STRINGS_MAX: usize = 4096;
/// One datagram carries 253 descriptors at most (SCM_MAX_FD).
pub const KEPT_MAX: usize = 128;
/// Trees of mounts that come as descriptors; numbers of all that came stay below [`KEPT_BASE`].
pub const TREES_MAX: usize = 96;
/// Kept descriptor `i` is number `KEPT_BASE + i` in the shim, where `pidfd_getfd` finds it.
pub const KEPT_BASE: i32 = 256;

const HEADER: usize = 16;
const RECORD: usize = 8;

numbered! {
    /// What a record holds. Records of one tag keep their order.
    Tag {
        /// [`Settings`]; exactly one.
        Settings = 1,
        /// Folder under the run directory; the shim's working directory.
        StateDir = 2,
        /// Overlay lower folder, topmost first.
        Layer = 3,
        UpperDir = 4,
        WorkDir = 5,
        Arg = 6,
        Env = 7,
        Cwd = 8,
        /// As in Docker: `user`, `uid`, `user:group`; missing is root.
        User = 9,
        Hostname = 10,
        /// [`Mount`].
        Mount = 11,
        /// [`File`].
        File = 12,
        /// cgroup v1 `tasks` file that the new process writes itself into.
        CgroupTasks = 13,
        /// cgroup v2 folder to clone into.
        CgroupDir = 14,
        /// [`Pair`]: name under /sys/fs/cgroup (empty: the folder itself) and host folder.
        CgroupView = 15,
        /// [`Pair`]: link under /sys/fs/cgroup and what it points to.
        CgroupLink = 16,
        /// File with a line `oom_kill N`.
        OomFile = 17,
        /// Raw BPF program.
        Seccomp = 18,
        MaskedPath = 19,
        ReadOnlyPath = 20,
        LogDir = 21,
        /// [`Device`].
        Device = 22,
        /// Size of /dev/shm in bytes, 8 bytes; missing is 64 MiB.
        SharedMemory = 23,
        /// Supplementary group: a name in the container's `/etc/group`, or a number.
        Group = 32,
        /// [`Ulimit`].
        Ulimit = 33,
        /// [`Pair`]: file below `/proc/sys` and what is written to it. With a `-` before it, a
        /// file that is not there is done without.
        Sysctl = 34,
        /// Decimal, for `oom_score_adj`.
        OutOfMemoryScore = 35,
        /// cgroup file that the shim itself writes itself into.
        ShimTasks = 50,
    }
}

numbered! {
    /// Where something went wrong, for the daemon to put into words.
    Step {
        Protocol = 1,
        StateDir = 2,
        Socket = 3,
        Pipe = 4,
        Clone = 5,
        Cgroup = 6,
        NetworkNamespace = 7,
        Propagation = 8,
        /// Index: of the layer.
        Layer = 9,
        Overlay = 10,
        Proc = 11,
        Sys = 12,
        Dev = 13,
        CgroupView = 14,
        /// Index: of the mount.
        MountSource = 15,
        MountTarget = 16,
        Mount = 17,
        /// Index: of the file.
        File = 18,
        MaskedPath = 19,
        ReadOnlyPath = 20,
        PivotRoot = 21,
        Hostname = 22,
        UserUnknown = 23,
        GroupUnknown = 24,
        UserFile = 25,
        Cwd = 26,
        CwdNotFolder = 27,
        Limits = 28,
        Identity = 29,
        Capabilities = 30,
        NoNewPrivileges = 31,
        Seccomp = 32,
        /// The program is there, what it names as interpreter or loader is not.
        Interpreter = 33,
        Exec = 34,
        DaemonGone = 35,
        RunFile = 36,
        Namespaces = 37,
        Terminal = 38,
        /// Too many execs at once.
        Busy = 39,
        Keyring = 40,
        LogFolder = 41,
        OutOfMemoryScore = 42,
        /// Index: of the device.
        Device = 43,
        /// Index: of the setting.
        Sysctl = 53,
        /// Index: of the limit.
        Ulimit = 54,
        /// Index: of the group.
        ExtraGroup = 55,
        Init = 56,
    }
}

/// Why bytes are not a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    Header,
    Version(u32),
    Length,
    Tag(u32),
    Record(Tag),
    Missing(Tag),
}

pub mod flags {
    pub const READ_ONLY: u32 = 1;
    pub const NO_NEW_PRIVILEGES: u32 = 1 << 1;
    /// The second descriptor is a network namespace.
    pub const NETWORK_NAMESPACE: u32 = 1 << 2;
    /// The daemon's own oom_score_adj is not zero: put it back for the container.
    pub const RESET_OOM_SCORE: u32 = 1 << 3;
    /// Exec: make a terminal; otherwise three descriptors follow the message's.
    pub const TERMINAL: u32 = 1 << 4;
    /// Nothing below /sys is read-only.
    pub const PRIVILEGED: u32 = 1 << 10;
    /// No namespace of its own for processes.
    pub const HOST_PROCESSES: u32 = 1 << 11;
    /// No namespace of its own for shared memory and message queues.
    pub const HOST_IPC: u32 = 1 << 12;
    /// The first process stays, passes signals on to the program and reaps.
    pub const INIT: u32 = 1 << 13;
}

/// Numbers of one container or exec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    pub flags: u32,
    /// Kept descriptors that follow in the datagram.
    pub kept: u32,
    /// Capability bits of the bounding set, and of the others when root.
    pub capabilities: u64,
    pub log_max_bytes: u64,
    pub log_max_files: u32,
    pub rows: u16,
    pub columns: u16,
}

impl Settings {
    const LEN: usize = 32;

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        Some(Self {
            flags: u32_at(bytes, 0)?,
            kept: u32_at(bytes, 4)?,
            capabilities: u64_at(bytes, 8)?,
            log_max_bytes: u64_at(bytes, 16)?,
            log_max_files: u32_at(bytes, 24)?,
            rows: u16_at(bytes, 28)?,
            columns: u16_at(bytes, 30)?,
        })
    }

    pub fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    Bind,
    Tmpfs {
        size_bytes: u64,
        mode: u32,
        exec: bool,
    },
    /// One of the descriptors behind the kept ones, with everything set.
    Tree {
        index: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'a> {
    pub kind: MountKind,
    pub read_only: bool,
    /// Empty but for binds.
    pub source: &'a CStr,
    pub target: &'a CStr,
}

impl<'a> Mount<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(24)?;
        let kind = match u32_at(head, 0)? {
            1 => MountKind::Bind,
            2 => MountKind::Tmpfs {
                size_bytes: u64_at(head, 8)?,
                mode: u32_at(head, 16)?,
                exec: u32_at(head, 20)? != 0,
            },
            3 => MountKind::Tree { index: u32_at(head, 16)? },
            _ => return None,
        };
        let pair = Pair::decode(rest)?;
        Some(Self {
            kind,
            read_only: u32_at(head, 4)? != 0,
            source: pair.first,
            target: pair.second,
        })
    }
}

/// A device file to be made at `path`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device<'a> {
    /// Of blocks, not of characters.
    pub is_block: bool,
    pub major: u32,
    pub minor: u32,
    /// Of whoever is who.
    pub mode: u32,
    pub user: u32,
    pub group: u32,
    pub path: &'a CStr,
}

impl<'a> Device<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(24)?;
        Some(Self {
            is_block: u32_at(head, 0)? != 0,
            major: u32_at(head, 4)?,
            minor: u32_at(head, 8)?,
            mode: u32_at(head, 12)?,
            user: u32_at(head, 16)?,
            group: u32_at(head, 20)?,
            path: CStr::from_bytes_with_nul(rest).ok()?,
        })
    }
}

/// One limit of the container's processes (`setrlimit(2)`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

impl Ulimit {
    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 24] = bytes.try_into().ok()?;
        let (soft, hard) = (u64_at(bytes, 8)?, u64_at(bytes, 16)?);
        Some(Self { resource: u32_at(bytes, 0)?, soft, hard })
    }
}

/// A small file to be seen at `target`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct File<'a> {
    pub mode: u32,
    pub target: &'a CStr,
    pub data: &'a [u8],
}

impl<'a> File<'a> {
    /// Beside the bits of `mode`: the container's user owns it.
    pub const OF_USER: u32 = 1 << 31;

    pub fn is_of_user(&self) -> bool {
        self.mode & Self::OF_USER != 0
    }

    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (head, rest) = bytes.split_at_checked(4)?;
        let target = CStr::from_bytes_until_nul(rest).ok()?;
        let data = rest.get(target.to_bytes_with_nul().len()..)?;
        Some(Self { mode: u32_at(head, 0)?, target, data })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair<'a> {
    pub first: &'a CStr,
    pub second: &'a CStr,
}

impl<'a> Pair<'a> {
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let first = CStr::from_bytes_until_nul(bytes).ok()?;
        let second =
            CStr::from_bytes_with_nul(bytes.get(first.to_bytes_with_nul().len()..)?).ok()?;
        Some(Self { first, second })
    }
}

/// A checked message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    records: &'a [u8],
    settings: Settings,
}

impl<'a> Message<'a> {
    /// # Errors
    /// Says what is wrong with the bytes; any bytes are allowed.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (header, records) = bytes.split_at_checked(HEADER).ok_or(Malformed::Header)?;
        if u32_at(header, 0) != Some(MAGIC) {
            return Err(Malformed::Header);
        }
        let version = u32_at(header, 4).ok_or(Malformed::Header)?;
        if version != VERSION {
            return Err(Malformed::Version(version));
        }
        if u64_at(header, 8) != Some(bytes.len() as u64) || bytes.len() > MESSAGE_MAX {
            return Err(Malformed::Length);
        }
        let mut settings = None;
        let mut rest = records;
        while !rest.is_empty() {
            let (record, after) = next(rest).ok_or(Malformed::Length)?;
            let tag = Tag::from_number(record.tag).ok_or(Malformed::Tag(record.tag))?;
            check(tag, record.bytes).ok_or(Malformed::Record(tag))?;
            if tag == Tag::Settings {
                settings = Settings::decode(record.bytes);
            }
            rest = after;
        }
        let settings = settings.ok_or(Malformed::Missing(Tag::Settings))?;
        Ok(Self { records, settings })
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Records of one tag, in order.
    pub fn all(&self, tag: Tag) -> Records<'a> {
        Records { rest: self.records, tag }
    }

    pub fn bytes(&self, tag: Tag) -> Option<&'a [u8]> {
        self.all(tag).next()
    }

    pub fn text(&self, tag: Tag) -> Option<&'a CStr> {
        self.texts(tag).next()
    }

    pub fn texts(&self, tag: Tag) -> impl Iterator<Item = &'a CStr> + use<'a> {
        self.all(tag).filter_map(|bytes| CStr::from_bytes_with_nul(bytes).ok())
    }

    pub fn mounts(&self) -> impl Iterator<Item = Mount<'a>> + use<'a> {
        self.all(Tag::Mount).filter_map(Mount::decode)
    }

    /// Descriptors of trees that its mounts name.
    pub fn trees(&self) -> usize {
        self.mounts().filter(|mount| matches!(mount.kind, MountKind::Tree { .. })).count()
    }

    /// Bytes of /dev/shm, if it says so.
    pub fn shared_memory(&self) -> Option<u64> {
        u64_at(self.bytes(Tag::SharedMemory)?, 0)
    }

    pub fn devices(&self) -> impl Iterator<Item = Device<'a>> + use<'a> {
        self.all(Tag::Device).filter_map(Device::decode)
    }

    pub fn ulimits(&self) -> impl Iterator<Item = Ulimit> + use<'a> {
        self.all(Tag::Ulimit).filter_map(Ulimit::decode)
    }

    pub fn files(&self) -> impl Iterator<Item = File<'a>> + use<'a> {
        self.all(Tag::File).filter_map(File::decode)
    }

    pub fn pairs(&self, tag: Tag) -> impl Iterator<Item = Pair<'a>> + use<'a> {
        self.all(tag).filter_map(Pair::decode)
    }
}

pub struct Records<'a> {
    rest: &'a [u8],
    tag: Tag,
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let (record, after) = next(self.rest)?;
            self.rest = after;
            if record.tag == self.tag.number() {
                return Some(record.bytes);
            }
        }
    }
}

struct Record<'a> {
    tag: u32,
    bytes: &'a [u8],
}

fn next(bytes: &[u8]) -> Option<(Record<'_>, &[u8])> {
    let (head, rest) = bytes.split_at_checked(RECORD)?;
    let len = u32_at(head, 4)? as usize;
    let padded = len.checked_next_multiple_of(8)?;
    let (padded, after) = rest.split_at_checked(padded)?;
    Some((Record { tag: u32_at(head, 0)?, bytes: padded.get(..len)? }, after))
}

fn check(tag: Tag, bytes: &[u8]) -> Option<()> {
    match tag {
        Tag::Settings => Settings::decode(bytes).map(drop),
        Tag::Mount => Mount::decode(bytes).map(drop),
        Tag::File => File::decode(bytes).map(drop),
        Tag::Device => Device::decode(bytes).map(drop),
        Tag::SharedMemory => (bytes.len() == 8).then_some(()),
        Tag::Ulimit => Ulimit::decode(bytes).map(drop),
        Tag::CgroupView | Tag::CgroupLink | Tag::Sysctl => Pair::decode(bytes).map(drop),
        // Instructions of eight bytes; the kernel takes 4096 of them.
        Tag::Seccomp => (bytes.len().is_multiple_of(8) && bytes.len() <= 4096 * 8).then_some(()),
        Tag::StateDir
        | Tag::Layer
        | Tag::UpperDir
        | Tag::WorkDir
        | Tag::Arg
        | Tag::Env
        | Tag::Cwd
        | Tag::User
        | Tag::Hostname
        | Tag::CgroupTasks
        | Tag::ShimTasks
        | Tag::CgroupDir
        | Tag::OomFile
        | Tag::MaskedPath
        | Tag::ReadOnlyPath
        | Tag::Group
        | Tag::OutOfMemoryScore
        | Tag::LogDir => CStr::from_bytes_with_nul(bytes).ok().map(drop),
    }
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn i32_at(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
