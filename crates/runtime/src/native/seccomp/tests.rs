//! The program is run by a small interpreter: what the kernel would answer for a call.

use super::*;

const SYS_ADMIN: u64 = 1 << 21;
const X86_64: u32 = 0xc000_003e;

pub(super) fn run(program: &[u8], architecture: u32, number: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend_from_slice(&number.to_ne_bytes());
    data.extend_from_slice(&architecture.to_ne_bytes());
    data.extend_from_slice(&[0; 8]);
    for arg in args {
        data.extend_from_slice(&arg.to_ne_bytes());
    }
    let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
    let (mut at, mut value) = (0, 0);
    loop {
        let instruction = &program[at * 8..at * 8 + 8];
        let operand = word(&instruction[4..8]);
        let jump = |taken: bool| usize::from(instruction[if taken { 2 } else { 3 }]);
        at += 1;
        match u16::from_ne_bytes([instruction[0], instruction[1]]) {
            0x20 => value = word(&data[operand as usize..operand as usize + 4]),
            0x54 => value &= operand,
            0x05 => at += operand as usize,
            0x15 => at += jump(value == operand),
            0x25 => at += jump(value > operand),
            0x35 => at += jump(value >= operand),
            0x06 => return operand,
            other => panic!("instruction {other:#x}"),
        }
    }
}

pub(super) fn word(answer: u32) -> String {
    match answer {
        0x7fff_0000 => "allow".to_owned(),
        0x0005_0001 => "EPERM".to_owned(),
        0x0005_0026 => "ENOSYS".to_owned(),
        other => format!("{other:#x}"),
    }
}

#[track_caller]
fn check(capabilities: u64, number: i64, arg: u64, expected: &str) {
    let program = Programs::default().default_profile(capabilities);
    let number = u32::try_from(number).unwrap();
    let answer = run(&program, X86_64, number, [arg, 0, 0, 0, 0, 0]);
    assert_eq!(word(answer), expected, "{number} with {arg:#x}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn answers() {
    for number in [libc::SYS_read, libc::SYS_execve, libc::SYS_fchmodat2, libc::SYS_openat2] {
        check(0, number, 0, "allow");
    }
    for number in [libc::SYS_keyctl, libc::SYS_io_uring_setup, libc::SYS_mount, libc::SYS_bpf] {
        check(0, number, 0, "EPERM");
    }
    check(SYS_ADMIN, libc::SYS_mount, 0, "allow");
    check(SYS_ADMIN, libc::SYS_keyctl, 0, "EPERM");
    check(1 << 39, libc::SYS_bpf, 0, "allow");
    check(1 << 18, libc::SYS_chroot, 0, "allow");
    check(0, libc::SYS_chroot, 0, "EPERM");

    check(0, libc::SYS_clone, 0x0100_0011, "allow");
    check(0, libc::SYS_clone, 0x1000_0011, "EPERM");
    check(SYS_ADMIN, libc::SYS_clone, 0x1000_0011, "allow");
    check(0, libc::SYS_clone3, 0, "ENOSYS");
    check(SYS_ADMIN, libc::SYS_clone3, 0, "allow");

    check(0, libc::SYS_socket, 2, "allow");
    check(0, libc::SYS_socket, 38, "EPERM");
    check(0, libc::SYS_socket, 40, "EPERM");
    check(0, libc::SYS_personality, 0x2_0008, "allow");
    check(0, libc::SYS_personality, 0x4_0000, "EPERM");

    check(0, 400, 0, "ENOSYS");
    check(0, 600, 0, "ENOSYS");
    // x32, and 32-bit x86.
    check(0, 0x4000_0000, 0, "ENOSYS");
    let program = Programs::default().default_profile(0);
    assert_eq!(word(run(&program, 0x4000_0003, 3, [0; 6])), "ENOSYS");
}

#[test]
fn the_search_answers_like_the_table() {
    for capabilities in [0, SYS_ADMIN, u64::MAX] {
        let actions = actions(capabilities);
        let program = assemble(&actions);
        assert!(program.len() / 8 < 4096, "{}", program.len() / 8);
        for number in 0..700 {
            let answer = word(run(&program, X86_64, number, [1; 6]));
            let expected = match actions.get(&number) {
                Some(Action::Allow) => "allow",
                Some(Action::Errno(errno)) if *errno == 1 => "EPERM",
                Some(Action::AllowIf(_) | Action::Rules(..)) => continue,
                Some(Action::Errno(_)) | None => "ENOSYS",
            };
            assert_eq!(answer, expected, "{number}");
        }
    }
}

#[test]
fn the_table_is_whole() {
    let sections = ["allow", "socket", "personality", "deny"];
    for line in PROFILE.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.strip_suffix(']').unwrap();
            let known = sections.contains(&section)
                || section.strip_prefix("with ").and_then(capability::bit).is_some();
            assert!(known, "{section}");
        } else {
            assert_eq!(line.split(' ').count(), 3, "{line}");
        }
    }
}
