//! How a layer's tar is put together again from its folder, byte for byte.
//!
//! Layers are kept unpacked. A recipe holds what the folder does not: headers,
//! padding, the end of the archive, and where the content of which file belongs, as
//! `tar-split` does it for Docker. Written while the layer is unpacked, compressed
//! (headers shrink to a few percent), read again by `image save`, `push` and `fsck`.
//!
//! ```text
//! WRNTAR1\n, then as zstd:  1 LEN BYTES             bytes as they are
//!                           2 LEN PATH OFFSET LEN   so many bytes of a file from there
//! ```
//! Numbers are 64 bits, little-endian. Contract: a recipe is whole or not there. There
//! is none of a layer whose entries replace each other (their content is gone), nor
//! where it would be larger than [`RECIPE_LEN_MAX`].

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::tarball::PATH_LEN_MAX;

const MAGIC: &[u8; 8] = b"WRNTAR1\n";
const RAW: u8 = 1;
const CONTENT: u8 = 2;
/// Headers repeat themselves: higher levels save little.
const LEVEL: i32 = 1;
/// Raw bytes gathered before they are written down.
const RAW_LEN_MAX: usize = 64 * 1024;
/// Compressed. Two million entries, the most of a layer, need about 60 MiB; more is an
/// archive with rubbish at its end.
pub(crate) const RECIPE_LEN_MAX: u64 = 256 << 20;

/// Takes a recipe down. Shared by the reader of the tar, which passes on all bytes, and
/// by who writes files, which says which of them are content.
pub(crate) struct Tape(RefCell<Option<Taking>>, Cell<u64>);

struct Taking {
    out: zstd::stream::write::Encoder<'static, Counted>,
    raw: Vec<u8>,
}

/// Counts what it writes.
struct Counted {
    file: File,
    len: u64,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.len += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Taking {
    fn flush_raw(&mut self) -> io::Result<()> {
        if !self.raw.is_empty() {
            self.out.write_all(&[RAW])?;
            self.out.write_all(&(self.raw.len() as u64).to_le_bytes())?;
            self.out.write_all(&self.raw)?;
            self.raw.clear();
        }
        Ok(())
    }
}

impl Tape {
    /// Into an empty file, or into none.
    pub(crate) fn new(file: Option<File>) -> io::Result<Rc<Self>> {
        let taking = file.map(|mut file| {
            file.write_all(MAGIC)?;
            let out = zstd::stream::write::Encoder::new(Counted { file, len: 0 }, LEVEL)?;
            Ok::<_, io::Error>(Taking { out, raw: Vec::with_capacity(RAW_LEN_MAX) })
        });
        Ok(Rc::new(Self(RefCell::new(taking.transpose()?), Cell::new(0))))
    }

    /// The next `len` bytes of the tar are that part of the file `path`.
    pub(crate) fn content(&self, path: &[u8], offset: u64, len: u64) -> io::Result<()> {
        let mut taking = self.0.borrow_mut();
        let Some(taking) = taking.as_mut().filter(|_| len > 0) else { return Ok(()) };
        taking.flush_raw()?;
        taking.out.write_all(&[CONTENT])?;
        taking.out.write_all(&(path.len() as u64).to_le_bytes())?;
        taking.out.write_all(path)?;
        taking.out.write_all(&offset.to_le_bytes())?;
        taking.out.write_all(&len.to_le_bytes())?;
        self.1.set(len);
        Ok(())
    }

    /// Bytes of the tar, in order.
    fn pass(&self, bytes: &[u8]) -> io::Result<()> {
        let mut taking = self.0.borrow_mut();
        let Some(whole) = taking.as_mut() else { return Ok(()) };
        let known = usize::try_from(self.1.get()).unwrap_or(usize::MAX).min(bytes.len());
        self.1.set(self.1.get() - known as u64);
        whole.raw.extend_from_slice(&bytes[known..]);
        if whole.raw.len() >= RAW_LEN_MAX {
            whole.flush_raw()?;
            if whole.out.get_ref().len > RECIPE_LEN_MAX {
                *taking = None;
            }
        }
        Ok(())
    }

    /// What was said of content no longer holds: there is no recipe.
    pub(crate) fn spoil(&self) {
        *self.0.borrow_mut() = None;
    }

    /// Whether there is a recipe, which is written then.
    pub(crate) fn finish(&self) -> io::Result<bool> {
        let Some(mut taking) = self.0.borrow_mut().take() else { return Ok(false) };
        taking.flush_raw()?;
        taking.out.finish()?.file.flush()?;
        Ok(true)
    }
}

/// Passes on what it reads to a tape.
pub(crate) struct Taped<R> {
    inner: R,
    tape: Rc<Tape>,
}

impl<R> Taped<R> {
    pub(crate) fn new(inner: R, tape: Rc<Tape>) -> Self {
        Self { inner, tape }
    }
}

impl<R: Read> Read for Taped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.tape.pass(&buffer[..count])?;
        Ok(count)
    }
}

/// Why a tar cannot be put together again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("its recipe is damaged")]
    Recipe,
    #[error("\"{0}\" is missing or shorter than it was")]
    Content(String),
}

impl Broken {
    fn error(self) -> io::Error {
        io::Error::other(self)
    }
}

/// The tar of a layer, as a stream.
pub(crate) struct Replay {
    recipe: zstd::stream::read::Decoder<'static, BufReader<File>>,
    root: OwnedFd,
    /// Of the record that is being read.
    raw_left: u64,
    content: Option<Content>,
}

struct Content {
    path: Vec<u8>,
    file: File,
    offset: u64,
    left: u64,
}

impl Replay {
    /// Opens a recipe and the folder that it is for.
    pub(crate) fn open(recipe: &Path, folder: &Path) -> io::Result<Self> {
        let mut file = File::open(recipe)?;
        let mut magic = [0; MAGIC.len()];
        if file.read_exact(&mut magic).is_err() || magic != *MAGIC {
            return Err(Broken::Recipe.error());
        }
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(folder, flags, Mode::empty())?;
        let recipe = zstd::stream::read::Decoder::new(file)?;
        Ok(Self { recipe, root, raw_left: 0, content: None })
    }

    /// Goes to the next record; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        let mut kind = [0];
        if self.take(&mut kind)? == 0 {
            return Ok(false);
        }
        let len = self.number()?;
        match kind[0] {
            RAW if len > 0 => self.raw_left = len,
            CONTENT if len <= PATH_LEN_MAX as u64 => {
                let mut path = vec![0; usize::try_from(len).unwrap_or(0)];
                self.whole(&mut path)?;
                let (offset, left) = (self.number()?, self.number()?);
                let known = self.content.take().filter(|known| known.path == path);
                let file = known.map_or_else(|| self.file(&path), |known| Ok(known.file))?;
                self.content = Some(Content { path, file, offset, left });
            }
            _ => return Err(Broken::Recipe.error()),
        }
        Ok(true)
    }

    fn file(&self, path: &[u8]) -> io::Result<File> {
        let missing = || Broken::Content(crate::tarball::printable(path)).error();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let fd = match rustix::fs::openat2(&self.root, path, flags, Mode::empty(), resolve) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Err(missing()),
            Err(error) => return Err(error.into()),
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::RegularFile => Ok(fd.into()),
            _ => Err(missing()),
        }
    }

    fn take(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.recipe.read(buffer).map_err(|error| match error.raw_os_error() {
            Some(_) => error,
            None => Broken::Recipe.error(),
        })
    }

    fn whole(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.take(buffer)? {
                0 => return Err(Broken::Recipe.error()),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.whole(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Bytes of the tar, without reading content.
    pub(crate) fn len(mut self) -> io::Result<u64> {
        let mut len = 0u64;
        loop {
            let more = self.raw_left + self.content.as_ref().map_or(0, |content| content.left);
            len = len.checked_add(more).ok_or_else(|| Broken::Recipe.error())?;
            if let Some(content) = &mut self.content {
                content.left = 0;
            }
            let mut raw = (&mut self.recipe).take(std::mem::take(&mut self.raw_left));
            let (want, got) = (raw.limit(), io::copy(&mut raw, &mut io::sink()));
            if got.map_err(|_| Broken::Recipe.error())? != want {
                return Err(Broken::Recipe.error());
            }
            if !self.advance()? {
                return Ok(len);
            }
        }
    }
}

impl Read for Replay {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if self.raw_left > 0 {
                let want = usize::try_from(self.raw_left).unwrap_or(usize::MAX).min(buffer.len());
                let count = self.take(&mut buffer[..want])?;
                self.raw_left -= count as u64;
                return if count == 0 { Err(Broken::Recipe.error()) } else { Ok(count) };
            }
            if let Some(content) = self.content.as_mut().filter(|content| content.left > 0) {
                let want = usize::try_from(content.left).unwrap_or(usize::MAX).min(buffer.len());
                let count = content.file.read_at(&mut buffer[..want], content.offset)?;
                if count == 0 {
                    let name = crate::tarball::printable(&content.path);
                    return Err(Broken::Content(name).error());
                }
                content.offset += count as u64;
                content.left -= count as u64;
                return Ok(count);
            }
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}
