//! Strings put together on the stack, for paths and mount options.

use core::ffi::CStr;

use crate::sys::Sys;

/// Up to `N - 1` bytes and their NUL.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// The error is ENAMETOOLONG.
    pub(crate) fn push(&mut self, part: &[u8]) -> Sys<()> {
        let end = self.len + part.len();
        if end >= N {
            return Err(libc::ENAMETOOLONG);
        }
        self.bytes[self.len..end].copy_from_slice(part);
        self.bytes[end] = 0;
        self.len = end;
        Ok(())
    }

    pub(crate) fn push_decimal(&mut self, number: u64) -> Sys<()> {
        self.push_digits(number, 10)
    }

    pub(crate) fn push_octal(&mut self, number: u64) -> Sys<()> {
        self.push_digits(number, 8)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    fn push_digits(&mut self, mut number: u64, base: u64) -> Sys<()> {
        // 22 octal digits hold any u64.
        let mut digits = [b'0'; 22];
        let mut first = digits.len();
        loop {
            first -= 1;
            digits[first] = b'0' + u8::try_from(number % base).unwrap_or(0);
            number /= base;
            if number == 0 {
                return self.push(&digits[first..]);
            }
        }
    }
}
