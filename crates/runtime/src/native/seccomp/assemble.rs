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
const JUMP_GREATER: u16 = 0x25;
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
    /// The answer of the first rule that holds, otherwise this one.
    Rules(Vec<Rule>, u32),
}

/// Holds when all comparisons do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) all: Vec<Comparison>,
    /// As the kernel takes it.
    pub(super) answer: u32,
}

/// Of all 64 bits of an argument, after the mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Comparison {
    pub(super) arg: u32,
    pub(super) operator: Operator,
    pub(super) mask: u64,
    pub(super) value: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    AtMost,
    AtLeast,
    Greater,
    Masked,
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
    let unknown = match kept(Protection::SeccompUnknown) {
        true => Action::Errno(libc::ENOSYS.cast_unsigned()),
        false => Action::Errno(libc::EPERM.cast_unsigned()),
    };
    assemble_with(actions, &unknown)
}

/// With another answer to numbers that are not in the table; calls of other kinds of processors
/// answer ENOSYS.
pub(super) fn assemble_with(actions: &BTreeMap<u32, Action>, unknown: &Action) -> Vec<u8> {
    let nothing = Action::Errno(libc::ENOSYS.cast_unsigned());
    let foreign = match kept(Protection::SeccompArchitecture) {
        true => nothing.clone(),
        false => Action::Allow,
    };
    let ranges = ranges(actions, unknown);
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
    let tests = match action {
        Action::AllowIf(tests) => tests,
        Action::Rules(rules, otherwise) => {
            let mut program: Vec<Instruction> = rules.iter().flat_map(rule).collect();
            program.push(plain(RETURN, *otherwise));
            return program;
        }
        Action::Allow | Action::Errno(_) => return vec![plain(RETURN, result(action))],
    };
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

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    /// This comparison holds.
    Holds,
    /// It does not, and so the rule does not.
    Fails,
}

/// Ends in its answer, or goes on behind it.
fn rule(rule: &Rule) -> Vec<Instruction> {
    let steps: Vec<Vec<(Instruction, To, To)>> = rule.all.iter().map(compare).collect();
    let whole: usize = steps.iter().map(Vec::len).sum();
    let mut program = Vec::with_capacity(whole + 1);
    for step in steps {
        let end = program.len() + step.len();
        for (instruction, if_true, if_false) in step {
            let at = program.len() + 1;
            // Six arguments of at most six instructions each.
            let distance = |to| match to {
                To::Next => 0,
                To::Holds => u8::try_from(end - at).unwrap_or(u8::MAX),
                To::Fails => u8::try_from(whole + 1 - at).unwrap_or(u8::MAX),
            };
            let (if_true, if_false) = (distance(if_true), distance(if_false));
            program.push(Instruction { if_true, if_false, ..instruction });
        }
    }
    program.push(plain(RETURN, rule.answer));
    program
}

/// The high half first, as numbers are compared by hand.
fn compare(comparison: &Comparison) -> Vec<(Instruction, To, To)> {
    let Comparison { arg, operator, mask, value } = *comparison;
    let half = |number: u64, shift: u32| {
        u32::try_from(number >> shift & u64::from(u32::MAX)).unwrap_or_default()
    };
    let mut steps = Vec::with_capacity(6);
    let load = |steps: &mut Vec<_>, shift: u32| {
        // Little endian: the high half comes second.
        steps.push((plain(LOAD, AT_ARGS + 8 * arg + shift / 8), To::Next, To::Next));
        if operator == Operator::Masked {
            steps.push((plain(AND, half(mask, shift)), To::Next, To::Next));
        }
    };
    let (high, low) = (half(value, 32), half(value, 0));
    let (above, below, otherwise) = match operator {
        Operator::Equal | Operator::Masked => {
            (To::Fails, To::Fails, (JUMP_EQUAL, To::Next, To::Fails))
        }
        Operator::NotEqual => (To::Holds, To::Holds, (JUMP_EQUAL, To::Fails, To::Next)),
        Operator::Less => (To::Fails, To::Holds, (JUMP_AT_LEAST, To::Fails, To::Next)),
        Operator::AtMost => (To::Fails, To::Holds, (JUMP_GREATER, To::Fails, To::Next)),
        Operator::AtLeast => (To::Holds, To::Fails, (JUMP_AT_LEAST, To::Next, To::Fails)),
        Operator::Greater => (To::Holds, To::Fails, (JUMP_GREATER, To::Next, To::Fails)),
    };
    load(&mut steps, 32);
    if above != below {
        steps.push((plain(JUMP_GREATER, high), above, To::Next));
    }
    steps.push((plain(JUMP_EQUAL, high), To::Next, below));
    load(&mut steps, 0);
    let (code, if_true, if_false) = otherwise;
    steps.push((plain(code, low), if_true, if_false));
    steps
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
        Action::Rules(_, otherwise) => *otherwise,
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
