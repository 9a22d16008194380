//! The program is run by the interpreter of the default profile's tests.

use proptest::prelude::*;

use super::super::tests::{run, word};
use super::*;

const X86_64: u32 = 0xc000_003e;

fn program(profile: &str, capabilities: u64) -> Vec<u8> {
    compile(profile, capabilities, "6.1.0-13-amd64").unwrap()
}

#[track_caller]
fn check(program: &[u8], number: i64, args: [u64; 6], expected: &str) {
    let answer = run(program, X86_64, u32::try_from(number).unwrap(), args);
    assert_eq!(word(answer), expected, "{number} with {args:x?}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn names_and_defaults() {
    let denying = program(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64"], "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW", "comment": "x"},
            {"name": "mkdir", "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
            {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_BPF"]}},
            {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
            {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "7.0"}},
            {"names": ["acct"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm64"]}}
        ]}"#,
        1 << 18,
    );
    check(&denying, libc::SYS_read, [0; 6], "allow");
    check(&denying, libc::SYS_write, [0; 6], "EPERM");
    check(&denying, libc::SYS_mkdir, [0; 6], "0x80000000");
    check(&denying, libc::SYS_chroot, [0; 6], "allow");
    check(&denying, libc::SYS_bpf, [0; 6], "allow");
    check(&denying, libc::SYS_ptrace, [0; 6], "allow");
    check(&denying, libc::SYS_mount, [0; 6], "EPERM");
    check(&denying, libc::SYS_acct, [0; 6], "EPERM");
    check(&denying, 2000, [0; 6], "ENOSYS");
    assert_eq!(word(run(&denying, 0x4000_0003, 3, [0; 6])), "ENOSYS");

    let allowing = program(
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}"#,
        0,
    );
    check(&allowing, libc::SYS_mkdir, [0; 6], "ENOSYS");
    check(&allowing, libc::SYS_mount, [0; 6], "allow");
    check(&allowing, 2000, [0; 6], "allow");
    assert_eq!(word(run(&allowing, 0x4000_0003, 3, [0; 6])), "ENOSYS");
}

/// What one comparison of the second argument says of numbers.
#[track_caller]
fn compared(op: &str, value: u64, value_two: u64, allowed: &[u64], refused: &[u64]) {
    let profile = format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["kill"], "action":
        "SCMP_ACT_ALLOW", "args": [{{"index": 1, "value": {value}, "valueTwo": {value_two},
        "op": "SCMP_CMP_{op}"}}]}}]}}"#
    );
    let program = program(&profile, 0);
    for (numbers, expected) in [(allowed, "allow"), (refused, "EPERM")] {
        for number in numbers {
            check(&program, libc::SYS_kill, [0, *number, 0, 0, 0, 0], expected);
        }
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn arguments() {
    const HIGH: u64 = 1 << 32;
    compared("EQ", HIGH | 7, 0, &[HIGH | 7], &[7, HIGH, HIGH | 8, 2 * HIGH | 7]);
    compared("NE", HIGH | 7, 0, &[7, HIGH, HIGH | 8, 0], &[HIGH | 7]);
    compared(
        "LT",
        HIGH | 7,
        0,
        &[0, u64::from(u32::MAX), HIGH | 6],
        &[HIGH | 7, HIGH | 8, 2 * HIGH],
    );
    compared("LE", HIGH | 7, 0, &[0, HIGH | 7], &[HIGH | 8, 2 * HIGH, u64::MAX]);
    compared("GE", HIGH | 7, 0, &[HIGH | 7, HIGH | 8, 2 * HIGH, u64::MAX], &[0, 9, HIGH | 6]);
    compared("GT", HIGH | 7, 0, &[HIGH | 8, 2 * HIGH], &[0, 9, HIGH | 7]);
    compared("MASKED_EQ", HIGH | 6, 2, &[2, 3, 2 * HIGH | 2], &[0, 4, 6, HIGH | 2]);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn several_rules_of_one_call() {
    let both = program(
        r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [
            {"names": ["kill"], "action": "SCMP_ACT_LOG"},
            {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": 1, "value": 9, "op": "SCMP_CMP_NE"}]},
            {"names": ["dup2"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]}
        ]}"#,
        0,
    );
    check(&both, libc::SYS_kill, [1, 8, 0, 0, 0, 0], "allow");
    check(&both, libc::SYS_kill, [1, 9, 0, 0, 0, 0], "0x7ffc0000");
    check(&both, libc::SYS_kill, [2, 8, 0, 0, 0, 0], "0x7ffc0000");
    check(&both, libc::SYS_dup2, [1, 0, 0, 0, 0, 0], "allow");
    check(&both, libc::SYS_dup2, [2, 0, 0, 0, 0, 0], "allow");
    check(&both, libc::SYS_dup2, [3, 0, 0, 0, 0, 0], "EPERM");
}

#[test]
fn refusals() {
    for (profile, expected) in [
        ("", "EOF while parsing"),
        ("{}", "missing field `defaultAction`"),
        (r#"{"defaultAction": "ALLOW"}"#, "action: \"ALLOW\" is not one of SCMP_ACT_ALLOW"),
        (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#, "action: \"SCMP_ACT_NOTIFY\" is not one"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "x": 1}"#, "unknown field `x`"),
        (r#"{"defaultAction": "SCMP_ACT_ALLOW", "flags": ["LOG"]}"#, "flags: \"LOG\" is not"),
        (r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}"#, "errnoRet: 70000 is"),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action":
            "SCMP_ACT_ALLOW", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}]}"#,
            "args: index 6 is not below 6",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action":
            "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "EQ"}]}]}"#,
            "op: \"EQ\" is not known",
        ),
        (
            r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action":
            "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]}"#,
            "minKernel: \"new\" is not of the form 4.8",
        ),
    ] {
        let error = compile(profile, 0, "6.1").unwrap_err().to_string();
        assert!(error.starts_with(&format!("seccomp profile: {expected}")), "{error}");
    }
    // More than the kernel takes.
    let args = r#"[{"index": 0, "value": 99, "op": "SCMP_CMP_GT"}]"#;
    let entry = format!(r#"{{"names": ["kill"], "action": "SCMP_ACT_LOG", "args": {args}}}"#);
    let many = vec![entry; 1000].join(",");
    let profile = format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{many}]}}"#);
    let error = compile(&profile, 0, "6.1").unwrap_err().to_string();
    assert!(error.contains("the kernel takes 4096"), "{error}");
}

/// Numbers that are near each other in one half or in both.
fn near() -> impl Strategy<Value = u64> {
    let half = prop_oneof![0_u64..3, Just(u64::from(u32::MAX) - 1), Just(u64::from(u32::MAX))];
    (half.clone(), half).prop_map(|(high, low)| high << 32 | low)
}

proptest! {
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn comparisons_are_those_of_numbers(
        op in 0..7_usize,
        value in near(),
        second in near(),
        given in near(),
    ) {
        let (name, holds) = [
            ("EQ", given == value),
            ("NE", given != value),
            ("LT", given < value),
            ("LE", given <= value),
            ("GE", given >= value),
            ("GT", given > value),
            ("MASKED_EQ", given & value == second),
        ][op];
        let profile = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{{"names": ["kill"], "action":
            "SCMP_ACT_ALLOW", "args": [{{"index": 5, "value": {value}, "valueTwo": {second},
            "op": "SCMP_CMP_{name}"}}]}}]}}"#
        );
        let answer = run(&program(&profile, 0), X86_64, 62, [0, 0, 0, 0, 0, given]);
        prop_assert_eq!(word(answer), if holds { "allow" } else { "EPERM" });
    }
}
