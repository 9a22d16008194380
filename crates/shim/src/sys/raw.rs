//! System calls without a C library: its start-up and pages would cost each container half a
//! megabyte of mapped text.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_long};

use super::Sys;

/// What fits a register.
pub(super) trait Word {
    fn word(self) -> usize;
}

macro_rules! word {
    ($($kind:ty),*) => { $(impl Word for $kind {
        // Sign extension and same-size reinterpretation are what the kernel expects.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_lossless)]
        fn word(self) -> usize { self as usize }
    })* };
}
word!(i32, u32, i64, u64, usize);

impl<T> Word for *const T {
    fn word(self) -> usize {
        self.addr()
    }
}

impl<T> Word for *mut T {
    fn word(self) -> usize {
        self.addr()
    }
}

impl Word for &CStr {
    fn word(self) -> usize {
        self.as_ptr().expose_provenance()
    }
}

/// The error is an errno.
///
/// # Safety
/// Arguments are what this system call expects; pointers are valid for what it does with them.
pub(super) unsafe fn checked(number: c_long, args: [usize; 6]) -> Sys<usize> {
    // SAFETY: passed on to the caller.
    let result = unsafe { enter(number, args) };
    // -4095 to -1 are errors.
    if result > -4096 && result < 0 {
        return Err(i32::try_from(-result).unwrap_or(libc::EINVAL));
    }
    Ok(result.cast_unsigned())
}

/// # Safety
/// As [`checked`].
#[cfg(target_arch = "x86_64")]
unsafe fn enter(number: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller vouches for the arguments; the kernel clobbers rcx and r11 alone.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// # Safety
/// As [`checked`].
#[cfg(target_arch = "aarch64")]
unsafe fn enter(number: c_long, args: [usize; 6]) -> isize {
    let result: isize;
    // SAFETY: the caller vouches for the arguments.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => result,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            in("x5") args[5],
            options(nostack),
        );
    }
    result
}

/// `call!(SYS_close, fd)`: the kernel's answer, or an errno.
macro_rules! call {
    ($number:ident) => { call!(@ $number, [0, 0, 0, 0, 0, 0]) };
    ($number:ident, $a:expr) => { call!(@ $number, [$a.word(), 0, 0, 0, 0, 0]) };
    ($number:ident, $a:expr, $b:expr) => { call!(@ $number, [$a.word(), $b.word(), 0, 0, 0, 0]) };
    ($number:ident, $a:expr, $b:expr, $c:expr) => {
        call!(@ $number, [$a.word(), $b.word(), $c.word(), 0, 0, 0])
    };
    ($number:ident, $a:expr, $b:expr, $c:expr, $d:expr) => {
        call!(@ $number, [$a.word(), $b.word(), $c.word(), $d.word(), 0, 0])
    };
    ($number:ident, $a:expr, $b:expr, $c:expr, $d:expr, $e:expr) => {
        call!(@ $number, [$a.word(), $b.word(), $c.word(), $d.word(), $e.word(), 0])
    };
    ($number:ident, $a:expr, $b:expr, $c:expr, $d:expr, $e:expr, $f:expr) => {
        call!(@ $number, [$a.word(), $b.word(), $c.word(), $d.word(), $e.word(), $f.word()])
    };
    (@ $number:ident, $args:expr) => { $crate::sys::raw::checked(libc::$number, $args) };
}
pub(super) use call;
