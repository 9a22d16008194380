//! BPF instructions for a table of actions: a binary search over the numbers.
//!
//! The kernel remembers which numbers are allowed whatever their arguments and skips the program
//! for them (Linux 5.11), so size matters little; the search keeps older kernels quick.

use std::collections::BTreeMap;

use warren_shim::protection::{Protection, kept};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// x32 system calls have this bit in their number.
const X32_BIT: u32 = 0x4000_0000;

const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;

// linux/bpf_common.h, put together.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

// struct seccomp_data.
const AT_NUMBER: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGS: u32 = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Errno(u32),
    /// Allowed when all tests pass, otherwise EPERM.
    AllowIf(Vec<Test>),
}

/// The low 32 bits of an argument, which is all that the kernel uses of an `int`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) arg: u32,
    pub(super) mask: u32,
    pub(super) values: Vec<u32>,
    /// Whether the argument must be, or must not be, one of the values.
    pub(super) equal: bool,
}

#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    if_true: u8,
    if_false: u8,
    value: u32,
}

fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

/// The program as the kernel takes it; numbers that are not in the table answer ENOSYS.
pub(super) fn assemble(actions: &BTreeMap<u32, Action>) -> Vec<u8> {
    let nothing = Action::Errno(libc::ENOSYS.cast_unsigned());
    let unknown = match kept(Protection::SeccompUnknown) {
        true => nothing.clone(),
        false => Action::Errno(libc::EPERM.cast_unsigned()),
    };
    let foreign = match kept(Protection::SeccompArchitecture) {
        true => nothing.clone(),
        false => Action::Allow,
    };
    let ranges = ranges(actions, &unknown);
    let mut program = vec![
        plain(LOAD, AT_ARCHITECTURE),
        Instruction { code: JUMP_EQUAL, if_true: 1, if_false: 0, value: ARCHITECTURE },
        plain(RETURN, result(&foreign)),
        plain(LOAD, AT_NUMBER),
    ];
    if cfg!(target_arch = "x86_64") {
        program.push(Instruction { code: JUMP_AT_LEAST, if_true: 0, if_false: 1, value: X32_BIT });
        program.push(plain(RETURN, result(&nothing)));
    }
    program.extend(search(&ranges));
    program.iter().flat_map(bytes).collect()
}

/// First numbers of stretches with one action.
fn ranges<'a>(actions: &'a BTreeMap<u32, Action>, unknown: &'a Action) -> Vec<(u32, &'a Action)> {
    let mut ranges = vec![(0, unknown)];
    let mut push = |start: u32, action: &'a Action| match ranges.last_mut() {
        Some((_, last)) if *last == action => {}
        Some((first, last)) if *first == start => *last = action,
        _ => ranges.push((start, action)),
    };
    let mut expected = 0;
    for (number, action) in actions {
        if *number > expected {
            push(expected, unknown);
        }
        push(*number, action);
        expected = number + 1;
    }
    push(expected, unknown);
    ranges
}

fn search(ranges: &[(u32, &Action)]) -> Vec<Instruction> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some((middle, action)) = upper.first() else { return Vec::new() };
    if lower.is_empty() {
        return leaf(action);
    }
    let (below, above) = (search(lower), search(upper));
    // Conditional jumps reach 255 instructions, plain ones any.
    let distance = u32::try_from(below.len()).unwrap_or(u32::MAX);
    let mut program = vec![
        Instruction { code: JUMP_AT_LEAST, if_true: 0, if_false: 1, value: *middle },
        plain(JUMP, distance),
    ];
    program.extend(below);
    program.extend(above);
    program
}

fn leaf(action: &Action) -> Vec<Instruction> {
    let Action::AllowIf(tests) = action else { return vec![plain(RETURN, result(action))] };
    let refused = RETURN_EPERM;
    let mut program = Vec::new();
    for test in tests {
        program.push(plain(LOAD, AT_ARGS + 8 * test.arg));
        program.push(plain(AND, test.mask));
        let count = test.values.len();
        for (index, value) in test.values.iter().enumerate() {
            // After the values comes the way of no match, then that of a match.
            let to_match = u8::try_from(count - index).unwrap_or(u8::MAX);
            program.push(Instruction {
                code: JUMP_EQUAL,
                if_true: to_match,
                if_false: 0,
                value: *value,
            });
        }
        if test.equal {
            program.push(refused);
        } else {
            program.push(plain(JUMP, 1));
            program.push(refused);
        }
    }
    program.push(plain(RETURN, RET_ALLOW));
    program
}

const RETURN_EPERM: Instruction = Instruction {
    code: RETURN,
    if_true: 0,
    if_false: 0,
    value: RET_ERRNO | libc::EPERM.cast_unsigned(),
};

fn result(action: &Action) -> u32 {
    match action {
        Action::Allow => RET_ALLOW,
        Action::Errno(errno) => RET_ERRNO | errno,
        Action::AllowIf(_) => RETURN_EPERM.value,
    }
}

fn bytes(instruction: &Instruction) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[0..2].copy_from_slice(&instruction.code.to_ne_bytes());
    bytes[2] = instruction.if_true;
    bytes[3] = instruction.if_false;
    bytes[4..8].copy_from_slice(&instruction.value.to_ne_bytes());
    bytes
}
