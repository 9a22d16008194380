//! A tar stream as members with bounded memory.
//!
//! Header fields are read by the `tar` crate; walking is done here because that
//! crate reads long names and PAX records of any length into memory, splits PAX
//! records at line feeds (which file capabilities may contain), and knows no PAX
//! sparse files. Every length taken from the stream has a named limit.
//!
//! Read a member's data through [`Reader::read`] before calling
//! [`Reader::next`], or leave it: the rest is skipped.
//!
//! Not here: compression (`decode`), what may be written where (`unpack`).

mod pax;

use std::io::{self, Read};

use pax::Pax;

const BLOCK: usize = 512;
/// Linux refuses longer paths, so no image can use them.
pub(crate) const PATH_LEN_MAX: usize = 4095;
/// PAX records of one member: extended attributes are at most 64 KiB each.
const EXTENSION_LEN_MAX: u64 = 1024 * 1024;
/// Pieces of a sparse file; 16 bytes each. GNU tar writes one per hole.
const SPARSE_PIECES_MAX: usize = 65_536;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Bad(String),
    #[error("read archive")]
    Read(#[from] io::Error),
}

fn bad<T>(what: impl Into<String>) -> Result<T, Error> {
    Err(Error::Bad(what.into()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    HardLink,
    Fifo,
    /// Character or block.
    Device,
}

/// Where the data of a sparse file belongs: offset and length, in order.
pub(crate) type Pieces = Vec<(u64, u64)>;

#[derive(Debug)]
pub(crate) struct Member {
    /// As written: not yet checked for `..` and the like.
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    /// Size of the file once unpacked, holes included.
    pub(crate) size: u64,
    pub(crate) sparse: Option<Pieces>,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Where the data starts in the stream.
    pub(crate) offset: u64,
}

impl Member {
    /// For messages: escaped, so that an archive cannot write to a terminal.
    pub(crate) fn name(&self) -> String {
        printable(&self.path)
    }
}

pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).escape_debug().to_string()
}

/// Walks a tar stream.
pub(crate) struct Reader<R> {
    inner: R,
    position: u64,
    /// Data of the current member that was not read yet, without padding.
    left: u64,
    padding: u64,
}

/// What preceded a member: long names and PAX records.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Option<Pax>,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, position: 0, left: 0, padding: 0 }
    }

    /// What is behind the last block that was read.
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }

    /// The next member, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Member>, Error> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_rest()?;
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? || block.iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            let header = tar::Header::from_byte_slice(&block);
            check_sum(header)?;
            let size = header.entry_size().map_err(damaged)?;
            match header.entry_type().as_byte() {
                b'L' => extensions.path = Some(self.read_name(size)?),
                b'K' => extensions.link = Some(self.read_name(size)?),
                b'x' | b'X' => {
                    let records = self.read_extension(size)?;
                    extensions.pax = Some(Pax::parse(&records)?);
                }
                // Global records describe the archive (`git archive` writes its commit).
                b'g' => self.expect_data(size)?,
                kind => return self.member(header, kind, size, extensions).map(Some),
            }
        }
    }

    fn member(
        &mut self,
        header: &tar::Header,
        kind: u8,
        size: u64,
        extensions: Extensions,
    ) -> Result<Member, Error> {
        let mut pax = extensions.pax.unwrap_or_default();
        let size = pax.size.unwrap_or(size);
        let path =
            pax.take_path().or(extensions.path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = pax.linkpath.take().or(extensions.link).unwrap_or_else(|| {
            header.link_name_bytes().map(|link| link.into_owned()).unwrap_or_default()
        });
        let name = printable(&path);
        let kind = match kind {
            // Before POSIX, a folder was a file whose name ends in a slash.
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Dir,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Dir,
            b'6' => Kind::Fifo,
            other => {
                let other = char::from(other).escape_debug();
                return bad(format!("{name}: unknown kind of entry '{other}'"));
            }
        };
        // As Go's reader, and so Docker: these have no data whatever their size says.
        let size = if kind == Kind::File { size } else { 0 };
        for bytes in [&path, &link] {
            if bytes.len() > PATH_LEN_MAX {
                return bad(format!("name of {} bytes, {PATH_LEN_MAX} are allowed", bytes.len()));
            }
            if bytes.contains(&0) {
                return bad(format!("{name}: name contains a zero byte"));
            }
        }
        let mtime = pax.mtime.unwrap_or_else(|| {
            (header.mtime().ok().and_then(|mtime| i64::try_from(mtime).ok()).unwrap_or(0), 0)
        });
        let mut member = Member {
            path,
            link,
            kind,
            size,
            sparse: None,
            mode: header.mode().map_err(damaged)? & 0o7777,
            uid: pax.uid.map_or_else(|| header.uid().map_err(damaged), Ok)?,
            gid: pax.gid.map_or_else(|| header.gid().map_err(damaged), Ok)?,
            mtime,
            xattrs: std::mem::take(&mut pax.xattrs),
            offset: self.position,
        };
        if header.entry_type().is_gnu_sparse() {
            self.old_sparse(header, &mut member, size)?;
            self.expect_data(size)?;
        } else {
            self.expect_data(size)?;
            self.pax_sparse(&mut pax, &mut member)?;
        }
        Ok(member)
    }

    /// The GNU format of old: four pieces in the header, more in blocks after it.
    fn old_sparse(
        &mut self,
        header: &tar::Header,
        member: &mut Member,
        stored: u64,
    ) -> Result<(), Error> {
        let Some(gnu) = header.as_gnu() else {
            return bad(format!("{}: sparse file without a GNU header", member.name()));
        };
        let mut pieces = Pieces::new();
        let mut more = gnu.is_extended();
        add_pieces(&mut pieces, &gnu.sparse)?;
        while more {
            let mut extension = tar::GnuExtSparseHeader::new();
            if !self.read_block(extension.as_mut_bytes())? {
                return bad("archive ends in the middle of an entry");
            }
            add_pieces(&mut pieces, extension.sparse())?;
            more = extension.is_extended();
        }
        member.size = gnu.real_size().map_err(damaged)?;
        member.offset = self.position;
        check_pieces(&pieces, stored, member)?;
        member.sparse = Some(pieces);
        Ok(())
    }

    /// The three PAX formats: 0.0 and 0.1 in records, 1.0 in front of the data.
    fn pax_sparse(&mut self, pax: &mut Pax, member: &mut Member) -> Result<(), Error> {
        let Some(real_size) = pax.sparse_size else {
            return Ok(());
        };
        let pieces = match pax.sparse_map.take() {
            Some(pieces) => pieces,
            None if pax.sparse_major == Some(1) => self.read_sparse_map(member)?,
            None => return bad(format!("{}: sparse file without a map", member.name())),
        };
        member.size = real_size;
        member.offset = self.position;
        check_pieces(&pieces, self.left, member)?;
        member.sparse = Some(pieces);
        Ok(())
    }

    fn read_sparse_map(&mut self, member: &Member) -> Result<Pieces, Error> {
        let mut block = [0; BLOCK];
        let mut used = BLOCK;
        let mut number = |reader: &mut Self| -> Result<u64, Error> {
            let mut value: u64 = 0;
            loop {
                if used == BLOCK {
                    Read::read_exact(reader, &mut block)?;
                    used = 0;
                }
                let byte = block[used];
                used += 1;
                match byte {
                    b'\n' => return Ok(value),
                    b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| Error::Bad("number in a sparse map".to_owned()))?;
                    }
                    _ => return bad(format!("{}: sparse map is damaged", member.name())),
                }
            }
        };
        let count = number(self)?;
        if count > SPARSE_PIECES_MAX as u64 {
            return bad(format!("{}: sparse file of {count} pieces", member.name()));
        }
        (0..count).map(|_| Ok((number(self)?, number(self)?))).collect()
    }

    fn read_name(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > PATH_LEN_MAX as u64 + 1 {
            return bad(format!("name of {size} bytes, {PATH_LEN_MAX} are allowed"));
        }
        let mut name = self.read_extension(size)?;
        if let Some(end) = name.iter().position(|byte| *byte == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn read_extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > EXTENSION_LEN_MAX {
            return bad(format!(
                "extended header of {size} bytes, {EXTENSION_LEN_MAX} are allowed"
            ));
        }
        self.expect_data(size)?;
        let mut bytes = Vec::new();
        Read::read_to_end(self, &mut bytes)?;
        Ok(bytes)
    }

    fn expect_data(&mut self, size: u64) -> Result<(), Error> {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        match size.checked_add(self.padding + self.position) {
            Some(_) => Ok(()),
            None => bad(format!("entry of {size} bytes")),
        }
    }

    fn skip_rest(&mut self) -> Result<(), Error> {
        let mut scratch = [0; 16 * 1024];
        while self.left > 0 {
            Read::read(self, &mut scratch)?;
        }
        // umoci leaves out the padding of the last entry, and all that should follow.
        let padding = std::mem::take(&mut self.padding);
        self.position += io::copy(&mut self.inner.by_ref().take(padding), &mut io::sink())?;
        Ok(())
    }

    /// Whether a block was read; false at a clean end of the stream.
    fn read_block(&mut self, block: &mut [u8]) -> Result<bool, Error> {
        let mut filled = 0;
        while filled < block.len() {
            match self.inner.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return bad("archive ends in the middle of an entry"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position += block.len() as u64;
        Ok(true)
    }
}

/// The data of the current member.
impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..want])?;
        if count == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "archive ends in the middle of an entry",
            ));
        }
        self.left -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

fn damaged(error: io::Error) -> Error {
    Error::Bad(format!("header is damaged: {error}"))
}

fn check_sum(header: &tar::Header) -> Result<(), Error> {
    let bytes = header.as_bytes();
    // The sum counts its own field as eight spaces.
    let sum: u32 =
        bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum::<u32>() + 8 * 32;
    match header.cksum() {
        Ok(stored) if stored == sum => Ok(()),
        Ok(_) | Err(_) => bad("header checksum does not match, this is no tar archive"),
    }
}

fn add_pieces(pieces: &mut Pieces, headers: &[tar::GnuSparseHeader]) -> Result<(), Error> {
    for header in headers.iter().filter(|header| !header.is_empty()) {
        if pieces.len() == SPARSE_PIECES_MAX {
            return bad(format!("sparse file of more than {SPARSE_PIECES_MAX} pieces"));
        }
        pieces.push((header.offset().map_err(damaged)?, header.length().map_err(damaged)?));
    }
    Ok(())
}

/// In order, not overlapping, within the file, and as much data as is stored.
fn check_pieces(pieces: &Pieces, stored: u64, member: &Member) -> Result<(), Error> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for &(offset, length) in pieces {
        let after = offset.checked_add(length).filter(|_| offset >= end);
        let Some(after) = after.filter(|after| *after <= member.size) else {
            return bad(format!("{}: sparse map is out of order", member.name()));
        };
        end = after;
        sum += length;
    }
    if sum == stored {
        Ok(())
    } else {
        bad(format!("{}: sparse map names {sum} bytes, {stored} are stored", member.name()))
    }
}

#[cfg(test)]
mod tests;
