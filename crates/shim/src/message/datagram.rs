//! The small datagrams of a shim's socket. Descriptors travel beside them.

use super::{MAGIC, Step, VERSION, i32_at, u32_at, u64_at};

numbered! {
    /// What a datagram to the shim asks for.
    Operation {
        /// Descriptors: message, [network namespace], kept ones. First and only on the pair socket.
        Start = 1,
        /// Descriptors: message, and without a terminal stdin, stdout, stderr.
        Exec = 2,
        /// `argument`: signal for the container's first process, or for this connection's exec.
        Signal = 3,
        /// Descriptors: pipes that the container's output is copied to, from now on. What a pipe
        /// has no room for is left out.
        Attach = 34,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    pub operation: Operation,
    pub argument: i32,
}

impl Request {
    pub const LEN: usize = 16;

    pub fn encode(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.operation.number().to_le_bytes());
        bytes[12..16].copy_from_slice(&self.argument.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        if u32_at(bytes, 0)? != MAGIC || u32_at(bytes, 4)? != VERSION {
            return None;
        }
        let operation = Operation::from_number(u32_at(bytes, 8)?)?;
        Some(Self { operation, argument: i32_at(bytes, 12)? })
    }
}

/// What the shim answers. Every reply has the same length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The program runs: its process id on the host, and when, in nanoseconds since 1970.
    Started {
        pid: u32,
        at_ns: u64,
    },
    Failed {
        step: Step,
        errno: i32,
        index: u32,
    },
    /// A terminal's master comes with this datagram.
    Terminal,
    /// An exec has ended; the code as a shell shows it.
    Exited {
        code: i32,
    },
    /// The signal was sent, or there was nobody left: 0 or an errno.
    Signalled {
        errno: i32,
    },
    /// Attached. With a pipe or a terminal, its descriptor comes with this datagram.
    Attached {
        input: Input,
    },
}

numbered! {
    /// What leads into a container.
    Input {
        /// It reads from /dev/null.
        Closed = 0,
        Pipe = 1,
        /// The master of its terminal.
        Terminal = 2,
    }
}

impl Reply {
    pub const LEN: usize = 32;

    pub fn encode(&self) -> [u8; Self::LEN] {
        let (kind, a, b, c, d): (u32, u32, i32, u32, u64) = match *self {
            Self::Started { pid, at_ns } => (1, pid, 0, 0, at_ns),
            Self::Failed { step, errno, index } => (2, step.number(), errno, index, 0),
            Self::Terminal => (3, 0, 0, 0, 0),
            Self::Exited { code } => (4, 0, code, 0, 0),
            Self::Signalled { errno } => (5, 0, errno, 0, 0),
            Self::Attached { input } => (36, input.number(), 0, 0, 0),
        };
        let mut bytes = [0; Self::LEN];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..12].copy_from_slice(&kind.to_le_bytes());
        bytes[12..16].copy_from_slice(&a.to_le_bytes());
        bytes[16..20].copy_from_slice(&b.to_le_bytes());
        bytes[20..24].copy_from_slice(&c.to_le_bytes());
        bytes[24..32].copy_from_slice(&d.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; Self::LEN] = bytes.try_into().ok()?;
        if u32_at(bytes, 0)? != MAGIC || u32_at(bytes, 4)? != VERSION {
            return None;
        }
        let (a, b, c) = (u32_at(bytes, 12)?, i32_at(bytes, 16)?, u32_at(bytes, 20)?);
        Some(match u32_at(bytes, 8)? {
            1 => Self::Started { pid: a, at_ns: u64_at(bytes, 24)? },
            2 => Self::Failed { step: Step::from_number(a)?, errno: b, index: c },
            3 => Self::Terminal,
            4 => Self::Exited { code: b },
            5 => Self::Signalled { errno: b },
            36 => Self::Attached { input: Input::from_number(a)? },
            _ => return None,
        })
    }
}
