//! Device rules of version 2: a small BPF program on the container's group.
//!
//! The program is made of the same rules that version 1 takes as text. It is loaded once and
//! attached to each group before anybody is in it; without it no container starts.
#![allow(unsafe_code)]

use std::ffi::c_long;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// One device that may be used, `None` standing for every minor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    pub(crate) is_block: bool,
    pub(crate) major: u32,
    pub(crate) minor: Option<u32>,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Rule {
    const fn all_of(major: u32, minor: Option<u32>) -> Self {
        Self { is_block: false, major, minor, read: true, write: true }
    }

    /// As version 1 takes it: `c 1:3 rwm`.
    pub(super) fn text(&self) -> String {
        let kind = if self.is_block { 'b' } else { 'c' };
        let minor = self.minor.map_or_else(|| "*".to_owned(), |minor| minor.to_string());
        let read = if self.read { "r" } else { "" };
        let write = if self.write { "w" } else { "" };
        format!("{kind} {}:{minor} {read}{write}m", self.major)
    }
}

/// Character devices that every container may read, write and make: those of its /dev, and
/// terminals. Nodes of other devices may be made, but not opened.
pub(super) const RULES: [Rule; 8] = [
    Rule::all_of(1, Some(3)),
    Rule::all_of(1, Some(5)),
    Rule::all_of(1, Some(7)),
    Rule::all_of(1, Some(8)),
    Rule::all_of(1, Some(9)),
    Rule::all_of(5, Some(0)),
    Rule::all_of(5, Some(2)),
    Rule::all_of(136, None),
];

// linux/bpf.h.
const BPF_PROG_LOAD: c_long = 5;
const BPF_PROG_ATTACH: c_long = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Groups above may have programs of their own; all must agree.
const BPF_F_ALLOW_MULTI: u32 = 2;
const ACCESS_MKNOD: i32 = 1;
const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const TYPE_BLOCK: i32 = 1;
const TYPE_CHARACTER: i32 = 2;

// Operation codes: 32-bit comparisons with a number, and what else is needed.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_NUMBER: u8 = 0xb7;
const AND_NUMBER: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: u8 = 0x95;

/// Registers: result, context, kind of access, type, major, minor.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const ACCESS: u8 = 2;
const TYPE: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    /// Target in the low half, source in the high.
    registers: u8,
    offset: i16,
    number: i32,
}

fn op(code: u8, target: u8, source: u8, offset: i16, number: i32) -> Instruction {
    Instruction { code, registers: source << 4 | target, offset, number }
}

/// The result is 1 for what is allowed.
fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let answer = |allowed: i32| [op(MOVE_NUMBER, RESULT, 0, 0, allowed), op(EXIT, 0, 0, 0, 0)];
    let mut program = vec![
        // struct bpf_cgroup_dev_ctx: access and type in one word, major, minor.
        op(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        op(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        op(LOAD_WORD, MINOR, CONTEXT, 8, 0),
        op(MOVE, TYPE, ACCESS, 0, 0),
        op(AND_NUMBER, TYPE, 0, 0, 0xffff),
        op(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        op(JUMP_NOT_EQUAL, ACCESS, 0, 2, ACCESS_MKNOD),
    ];
    program.extend(answer(1));
    for rule in rules {
        let mut checks = checks(rule);
        // The kinds of jumps in it all lead past the answer.
        let len = checks.len();
        for (at, check) in checks.iter_mut().enumerate() {
            if check.code == JUMP_NOT_EQUAL {
                // A handful of instructions.
                check.offset = i16::try_from(len - at - 1 + 2).unwrap_or(i16::MAX);
            }
        }
        program.extend(checks);
        program.extend(answer(1));
    }
    program.extend(answer(0));
    program
}

/// What must be so for a rule to allow: each jumps away if it is not.
fn checks(rule: &Rule) -> Vec<Instruction> {
    let kind = if rule.is_block { TYPE_BLOCK } else { TYPE_CHARACTER };
    // Majors and minors are small numbers, so signed comparison is as good.
    let mut checks = vec![
        op(JUMP_NOT_EQUAL, TYPE, 0, 0, kind),
        op(JUMP_NOT_EQUAL, MAJOR, 0, 0, rule.major.cast_signed()),
    ];
    if let Some(minor) = rule.minor {
        checks.push(op(JUMP_NOT_EQUAL, MINOR, 0, 0, minor.cast_signed()));
    }
    let refused =
        if rule.read { 0 } else { ACCESS_READ } | if rule.write { 0 } else { ACCESS_WRITE };
    if refused != 0 {
        checks.push(op(MOVE, RESULT, ACCESS, 0, 0));
        checks.push(op(AND_NUMBER, RESULT, 0, 0, refused));
        checks.push(op(JUMP_NOT_EQUAL, RESULT, 0, 0, 0));
    }
    checks
}

/// The start of `union bpf_attr` for loading, which is all that old kernels look at.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Loads the rules as a program.
pub(super) fn load(rules: &[Rule]) -> io::Result<OwnedFd> {
    let program = assemble(rules);
    let attributes = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr().expose_provenance() as u64,
        licence: c"Apache-2.0".as_ptr().expose_provenance() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel made this descriptor just now, close-on-exec, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts the program on a group.
pub(super) fn attach(program: &OwnedFd, group: &Path) -> io::Result<()> {
    let group = File::open(group)?;
    let attributes = Attach {
        target: group.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &attributes).map(drop)
}

fn bpf<T>(command: c_long, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are plain numbers and addresses of memory that outlives the call, and
    // their size is given.
    let answer = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        i32::try_from(answer).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would compute.
    fn run(program: &[Instruction], access: u64, kind: u64, major: u64, minor: u64) -> u64 {
        let mut registers = [0_u64; 6];
        let mut at = 0;
        loop {
            let Instruction { code, registers: both, offset, number } = program[at];
            let (target, source) = (usize::from(both & 15), usize::from(both >> 4));
            let number = u64::try_from(number).unwrap();
            at += 1;
            match code {
                LOAD_WORD => {
                    registers[target] = match offset {
                        0 => access << 16 | kind,
                        4 => major,
                        8 => minor,
                        other => panic!("offset {other}"),
                    }
                }
                MOVE => registers[target] = registers[source],
                MOVE_NUMBER => registers[target] = number,
                AND_NUMBER => registers[target] &= number,
                SHIFT_RIGHT => registers[target] >>= number,
                JUMP_NOT_EQUAL if registers[target] != number => {
                    at += usize::try_from(offset).unwrap();
                }
                JUMP_NOT_EQUAL => {}
                EXIT => return registers[usize::from(RESULT)],
                other => panic!("code {other:#x}"),
            }
        }
    }

    #[test]
    fn answers() {
        let program = assemble(&RULES);
        const MKNOD: u64 = 1;
        const READ: u64 = 2;
        const READ_WRITE: u64 = 6;
        const BLOCK: u64 = 1;
        const CHARACTER: u64 = 2;
        for (access, kind, major, minor, allowed) in [
            (READ_WRITE, CHARACTER, 1, 3, 1),
            (READ, CHARACTER, 1, 9, 1),
            (READ, CHARACTER, 5, 0, 1),
            (READ_WRITE, CHARACTER, 136, 7, 1),
            (MKNOD, CHARACTER, 10, 200, 1),
            (MKNOD, BLOCK, 8, 0, 1),
            (READ, BLOCK, 8, 0, 0),
            (READ, BLOCK, 1, 3, 0),
            (READ, CHARACTER, 1, 1, 0),
            (READ, CHARACTER, 5, 1, 0),
            (READ_WRITE | MKNOD, CHARACTER, 10, 200, 0),
        ] {
            let answer = run(&program, access, kind, major, minor);
            assert_eq!(answer, allowed, "access {access} kind {kind} {major}:{minor}");
        }
    }

    #[test]
    fn a_device_of_its_own() {
        let disk = Rule { is_block: true, write: false, ..Rule::all_of(8, Some(1)) };
        let rules: Vec<Rule> =
            RULES.into_iter().chain([disk, Rule::all_of(195, Some(0))]).collect();
        let program = assemble(&rules);
        for (access, kind, major, minor, allowed) in [
            (2, 1, 8, 1, 1),
            (6, 1, 8, 1, 0),
            (4, 1, 8, 1, 0),
            (2, 1, 8, 2, 0),
            (2, 2, 8, 1, 0),
            (6, 2, 195, 0, 1),
            (6, 2, 1, 3, 1),
        ] {
            let answer = run(&program, access, kind, major, minor);
            assert_eq!(answer, allowed, "access {access} kind {kind} {major}:{minor}");
        }
        let texts: Vec<String> = rules[6..].iter().map(Rule::text).collect();
        assert_eq!(texts, ["c 5:2 rwm", "c 136:* rwm", "b 8:1 rm", "c 195:0 rwm"]);
    }

    #[test]
    fn host_the_kernel_takes_the_program() {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let Some(root) = mounts
            .lines()
            .find(|line| line.contains(" - cgroup2 "))
            .and_then(|line| line.split(' ').nth(4))
        else {
            // A host with version 1 alone.
            return;
        };
        let program = load(&RULES).unwrap();
        let group = Path::new(root).join(format!("warren-devices-{}", std::process::id()));
        std::fs::create_dir(&group).unwrap();
        let attached = attach(&program, &group);
        std::fs::remove_dir(&group).unwrap();
        attached.unwrap();
    }
}
