//! From the container's pipes to its log files.
//!
//! Lines are put into one buffer and written whole, one `write` for what one `read` brought. A
//! file that would grow beyond its size is followed by the next number, and the oldest is removed.
//! A disk that takes no more loses lines, counted, and never the container's time.
//!
//! Not here: reading (`warren-runtime`), the format of a line (`warren_shim::line`).

use core::ffi::CStr;

use warren_shim::line::{self, LINE_MAX, PREFIX_LEN, Stream, WHOLE_MAX, file_name, file_number};
use warren_shim::message::{Settings, flags};

use crate::sys::{self, Fd, Sys};
use crate::text::Text;

/// One `read`; a pipe holds 64 KiB, and less memory is worth more than fewer calls.
const INPUT: usize = 8 * 1024;
/// Room for the longest line and some short ones.
const OUTPUT: usize = WHOLE_MAX + INPUT;

/// In .bss: pages count only once they are used.
pub(crate) struct Buffers {
    input: [u8; INPUT],
    output: [u8; OUTPUT],
    partial: [[u8; LINE_MAX]; 2],
}

impl Buffers {
    pub(crate) const fn new() -> Self {
        Self { input: [0; INPUT], output: [0; OUTPUT], partial: [[0; LINE_MAX]; 2] }
    }
}

/// One of the container's two output pipes.
pub(crate) struct Source {
    pub(crate) fd: Fd,
    stream: Stream,
    /// Bytes of a line that has no end yet.
    partial: usize,
}

impl Source {
    pub(crate) fn new(fd: Fd, stream: Stream) -> Self {
        Self { fd, stream, partial: 0 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    Some,
    /// Nothing at the moment.
    None,
    /// Nobody holds the other end any more.
    End,
}

pub(crate) struct Log<'b> {
    folder: Fd,
    file: Option<Fd>,
    number: u64,
    size: u64,
    max_bytes: u64,
    max_files: u64,
    /// Lines that no disk took, and how many of them the log has not mentioned yet.
    pub(crate) lost: u64,
    unmentioned: u64,
    last_ns: u64,
    /// A terminal ends lines with a carriage return before the newline: not part of the line.
    is_terminal: bool,
    buffers: &'b mut Buffers,
    output: usize,
    lines: u64,
}

impl<'b> Log<'b> {
    pub(crate) fn new(folder: Fd, settings: &Settings, buffers: &'b mut Buffers) -> Self {
        Self {
            folder,
            file: None,
            number: 0,
            size: 0,
            max_bytes: settings.log_max_bytes,
            max_files: u64::from(settings.log_max_files.max(1)),
            lost: 0,
            unmentioned: 0,
            last_ns: 0,
            is_terminal: settings.has(flags::TERMINAL),
            buffers,
            output: 0,
            lines: 0,
        }
    }

    /// Takes what a pipe holds, once; `copy` gets the bytes as they came.
    pub(crate) fn pump(
        &mut self,
        source: &mut Source,
        copy: &mut dyn FnMut(Stream, &[u8]),
    ) -> Pumped {
        let count = match sys::read(source.fd, &mut self.buffers.input) {
            Ok(0) => return Pumped::End,
            Ok(count) => count,
            Err(libc::EAGAIN) => return Pumped::None,
            Err(_) => return Pumped::End,
        };
        copy(source.stream, &self.buffers.input[..count]);
        // Never backwards, so that readers can halve a file by time.
        self.last_ns = self.last_ns.max(sys::now_ns());
        let mut start = 0;
        while start < count {
            let rest = start..count;
            let newline = self.buffers.input[rest].iter().position(|byte| *byte == b'\n');
            let end = newline.map_or(count, |at| start + at);
            self.take(source, start, end, newline.is_some());
            start = end + 1;
        }
        self.flush();
        Pumped::Some
    }

    /// Ends a line that never got its newline.
    pub(crate) fn finish(&mut self, source: &mut Source) {
        if source.partial > 0 {
            self.emit(source, 0, 0);
        }
        self.flush();
    }

    /// Input from `start` to `end`, which a newline follows or not.
    fn take(&mut self, source: &mut Source, mut start: usize, mut end: usize, whole: bool) {
        if whole && self.is_terminal {
            if end > start {
                end -= usize::from(self.buffers.input[end - 1] == b'\r');
            } else if let Some(before) = source.partial.checked_sub(1)
                && self.buffers.partial[index(source.stream)][before] == b'\r'
            {
                source.partial = before;
            }
        }
        while source.partial + (end - start) > LINE_MAX {
            let piece = start + LINE_MAX - source.partial;
            self.emit(source, start, piece);
            start = piece;
        }
        if whole {
            self.emit(source, start, end);
        } else {
            let index = index(source.stream);
            let after = source.partial + (end - start);
            self.buffers.partial[index][source.partial..after]
                .copy_from_slice(&self.buffers.input[start..end]);
            source.partial = after;
        }
    }

    /// One line into the output: what was kept, then input from `start` to `end`.
    fn emit(&mut self, source: &mut Source, start: usize, end: usize) {
        let len = PREFIX_LEN + source.partial + (end - start) + 1;
        if self.output + len > OUTPUT {
            self.flush();
        }
        let Buffers { input, output, partial } = &mut *self.buffers;
        let out = &mut output[self.output..self.output + len];
        out[..PREFIX_LEN].copy_from_slice(&line::prefix(self.last_ns, source.stream));
        let kept = PREFIX_LEN + source.partial;
        out[PREFIX_LEN..kept].copy_from_slice(&partial[index(source.stream)][..source.partial]);
        out[kept..len - 1].copy_from_slice(&input[start..end]);
        out[len - 1] = b'\n';
        self.output += len;
        self.lines += 1;
        source.partial = 0;
    }

    fn flush(&mut self) {
        if self.output == 0 {
            return;
        }
        if self.write_output().is_err() {
            self.lost += self.lines;
            self.unmentioned += self.lines;
        }
        self.output = 0;
        self.lines = 0;
    }

    fn write_output(&mut self) -> Sys<()> {
        let file = self.ready(self.output)?;
        if self.unmentioned > 0 {
            self.mention(file)?;
        }
        self.append(file, self.output)
    }

    /// Writes the start of the output buffer, whole or not at all.
    fn append(&mut self, file: Fd, len: usize) -> Sys<()> {
        let written = write_whole(file, &self.buffers.output[..len]);
        if written.is_ok() {
            self.size += len as u64;
        }
        written
    }

    fn mention(&mut self, file: Fd) -> Sys<()> {
        let mut text = Text::<96>::new();
        text.push(&line::prefix(self.last_ns, Stream::Stderr))?;
        text.push(b"[")?;
        text.push_decimal(self.unmentioned)?;
        text.push(b" lines lost: the disk took no more]\n")?;
        write_whole(file, text.bytes())?;
        self.size += text.bytes().len() as u64;
        self.unmentioned = 0;
        Ok(())
    }

    /// The file to write `len` more bytes to.
    fn ready(&mut self, len: usize) -> Sys<Fd> {
        let file = match self.file {
            Some(file) => file,
            None => self.open_newest()?,
        };
        if self.size > 0 && self.size + len as u64 > self.max_bytes {
            return self.rotate(file);
        }
        Ok(file)
    }

    /// Goes on where an earlier attempt stopped.
    fn open_newest(&mut self) -> Sys<Fd> {
        self.number = newest(self.folder)?.max(1);
        let file = open_file(self.folder, self.number)?;
        self.size = u64::try_from(sys::status(file)?.st_size).unwrap_or(0);
        let mut last = [b'\n'];
        if let Some(before) = self.size.checked_sub(1) {
            sys::read_at(file, &mut last, i64::try_from(before).unwrap_or(0))?;
        }
        if last != *b"\n" {
            write_whole(file, b"\n")?;
            self.size += 1;
        }
        self.file = Some(file);
        Ok(file)
    }

    fn rotate(&mut self, old: Fd) -> Sys<Fd> {
        let file = open_file(self.folder, self.number + 1)?;
        sys::close(old);
        self.number += 1;
        self.size = 0;
        self.file = Some(file);
        let mut oldest = self.number.saturating_sub(self.max_files);
        while oldest > 0 && sys::unlink_at(self.folder, name(&file_name(oldest))).is_ok() {
            oldest -= 1;
        }
        Ok(file)
    }
}

fn index(stream: Stream) -> usize {
    match stream {
        Stream::Stdout => 0,
        Stream::Stderr => 1,
    }
}

fn name(bytes: &[u8]) -> &CStr {
    CStr::from_bytes_until_nul(bytes).unwrap_or_default()
}

fn open_file(folder: Fd, number: u64) -> Sys<Fd> {
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_APPEND | libc::O_NOFOLLOW;
    sys::open_at(folder, name(&file_name(number)), flags, 0o640)
}

/// Takes back a part of a line that fitted on a full disk.
fn write_whole(file: Fd, bytes: &[u8]) -> Sys<()> {
    let count = sys::write(file, bytes)?;
    if count == bytes.len() {
        return Ok(());
    }
    let size = sys::status(file)?.st_size - i64::try_from(count).unwrap_or(0);
    sys::truncate(file, size)?;
    Err(libc::ENOSPC)
}

/// The highest number of a log file; 0 when there is none.
fn newest(folder: Fd) -> Sys<u64> {
    sys::rewind(folder)?;
    let mut highest = 0;
    let mut entries = [0; 2048];
    loop {
        let len = sys::folder_entries(folder, &mut entries)?;
        if len == 0 {
            return Ok(highest);
        }
        let mut rest = &entries[..len];
        // linux_dirent64: inode 8, offset 8, length 2, type 1, name.
        while let Some(size) = rest.get(16..18) {
            let size = usize::from(u16::from_ne_bytes([size[0], size[1]]));
            let Some((entry, after)) = rest.split_at_checked(size.max(19)) else { break };
            let name = CStr::from_bytes_until_nul(&entry[19..]).unwrap_or_default();
            highest = highest.max(file_number(name.to_bytes()).unwrap_or(0));
            rest = after;
        }
    }
}
