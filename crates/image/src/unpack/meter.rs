//! Readers that hash and count what passes through them.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use super::Limits;
use crate::digest::{Digest, Hasher};

/// The source of a layer gave up (cancelled, network error): its owner knows why.
#[derive(Debug, thiserror::Error)]
#[error("source ended early")]
pub(crate) struct Aborted;

impl Aborted {
    pub(crate) fn error() -> io::Error {
        io::Error::other(Self)
    }
}

/// More data than any honest layer holds.
#[derive(Debug, thiserror::Error)]
pub(super) enum Bomb {
    #[error("more than {0} bytes after decompression")]
    Bytes(u64),
    #[error("{out} bytes out of {compressed}, at most {max} times as much are allowed")]
    Ratio { out: u64, compressed: u64, max: u64 },
}

pub(super) struct HashRead<R> {
    inner: R,
    hasher: Hasher,
    count: Rc<Cell<u64>>,
}

impl<R: Read> HashRead<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hasher: Hasher::default(), count: Rc::default() }
    }

    /// Bytes read so far.
    pub(super) fn tally(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.count)
    }

    pub(super) fn finish(self) -> Digest {
        self.hasher.finish()
    }
}

impl<R: Read> Read for HashRead<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.count.set(self.count.get() + count as u64);
        Ok(count)
    }
}

/// Ends with [`Bomb`] once a limit is passed.
pub(super) struct Metered<R> {
    inner: R,
    compressed: Rc<Cell<u64>>,
    out: u64,
    limits: Limits,
}

impl<R> Metered<R> {
    pub(super) fn new(inner: R, compressed: Rc<Cell<u64>>, limits: &Limits) -> Self {
        Self { inner, compressed, out: 0, limits: limits.clone() }
    }
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.out += count as u64;
        let Limits { bytes_max, ratio_max, ratio_free_bytes, .. } = self.limits;
        let compressed = self.compressed.get();
        if self.out > bytes_max {
            return Err(io::Error::other(Bomb::Bytes(bytes_max)));
        }
        if self.out > ratio_free_bytes && self.out / ratio_max > compressed {
            let bomb = Bomb::Ratio { out: self.out, compressed, max: ratio_max };
            return Err(io::Error::other(bomb));
        }
        Ok(count)
    }
}
