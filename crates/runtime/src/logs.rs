//! Reading the log files that shims write: tail, since, follow, across rotated files.
//!
//! Files are named by rising numbers and only grow at their end; a rotated file is never touched
//! again, only removed. So a position is a number and an offset, and following is: read to the end,
//! see whether a higher number exists, else wait for inotify to say that the folder changed.
//!
//! Not here: writing and rotation (the shim).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::inotify;
use tokio::sync::mpsc;
use warren_shim::line::{self, WHOLE_MAX, file_name, file_number};

use crate::watched::{Watched, watch};
use crate::{Error, LogLine, LogQuery, Stream};

/// Lines on their way to a reader: enough to keep both sides busy, little enough when the reader
/// stops (16 KiB each at most).
const QUEUE: usize = 256;
/// Read at once; holds several of the longest lines.
const BLOCK: usize = 4 * WHOLE_MAX;

/// Starts reading a folder of log files, oldest line first. The channel ends with the last line,
/// or, when following, once the receiver is dropped.
pub(crate) async fn read(dir: PathBuf, query: LogQuery) -> Result<mpsc::Receiver<LogLine>, Error> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let action = format!("read logs in {}", dir.display());
    let at = |source| Error::Io { action, source };
    // Before the first read, so that nothing falls between.
    let watch = if query.follow { Some(watch_folder(&dir).map_err(at)?) } else { None };
    tokio::spawn(async move {
        let shown = dir.display().to_string();
        if let Err(error) = run(dir, query, watch, &sender).await {
            tracing::warn!(folder = shown, %error, "read logs");
        }
    });
    Ok(receiver)
}

/// Readable when a file of the folder is made, grows or is removed. Makes the folder when it is
/// missing: a task may be followed before it has started.
fn watch_folder(dir: &Path) -> io::Result<Watched> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let inotify = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    let kinds = inotify::WatchFlags::CREATE
        | inotify::WatchFlags::MODIFY
        | inotify::WatchFlags::DELETE_SELF
        | inotify::WatchFlags::ONLYDIR;
    inotify::add_watch(&inotify, dir, kinds)?;
    watch(inotify)
}

async fn run(
    dir: PathBuf,
    query: LogQuery,
    watch: Option<Watched>,
    sender: &mpsc::Sender<LogLine>,
) -> io::Result<()> {
    let mut reader = blocking(move || {
        let position = first_position(&dir, &query)?;
        Ok(Reader { dir, position, file: None, since_ns: since_ns(&query) })
    })
    .await?;
    loop {
        let (back, lines) = blocking(move || {
            let lines = reader.batch();
            lines.map(|lines| (reader, lines))
        })
        .await?;
        reader = back;
        let at_end = lines.is_empty();
        for line in lines {
            if sender.send(line).await.is_err() {
                return Ok(());
            }
        }
        if !at_end {
            continue;
        }
        let Some(watch) = &watch else { return Ok(()) };
        let woken = tokio::select! {
            () = sender.closed() => return Ok(()),
            woken = drain(watch) => woken?,
        };
        if woken == Woken::FolderGone {
            return Ok(());
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    Changed,
    FolderGone,
}

/// Waits for a change and takes all that have been reported.
async fn drain(watch: &Watched) -> io::Result<Woken> {
    let mut ready = watch.readable().await?;
    let mut space = [std::mem::MaybeUninit::uninit(); 4096];
    let mut events = inotify::Reader::new(watch.get_ref(), &mut space);
    let mut woken = Woken::Changed;
    loop {
        match events.next() {
            Ok(event) => {
                let gone = inotify::ReadFlags::DELETE_SELF | inotify::ReadFlags::IGNORED;
                if event.events().intersects(gone) {
                    woken = Woken::FolderGone;
                }
            }
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                return Ok(woken);
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// File number and offset of the next line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Position {
    number: u64,
    offset: u64,
}

struct Reader {
    dir: PathBuf,
    position: Position,
    file: Option<File>,
    since_ns: u64,
}

impl Reader {
    /// Some lines; none at the end of what there is.
    fn batch(&mut self) -> io::Result<Vec<LogLine>> {
        loop {
            if let Some(lines) = self.block()? {
                return Ok(lines);
            }
            let Some(next) = numbers(&self.dir)?.into_iter().find(|at| *at > self.position.number)
            else {
                return Ok(Vec::new());
            };
            // The writer moved on: what it wrote before that is complete by now.
            if let Some(lines) = self.block()? {
                return Ok(lines);
            }
            self.position = Position { number: next, offset: 0 };
            self.file = None;
        }
    }

    /// Whole lines from the present file; `None` at its end.
    fn block(&mut self) -> io::Result<Option<Vec<LogLine>>> {
        loop {
            if self.file.is_none() {
                self.file = open(&self.dir, self.position.number)?;
            }
            let Some(file) = &self.file else { return Ok(None) };
            let mut bytes = vec![0; BLOCK];
            let count = read_at(file, &mut bytes, self.position.offset)?;
            let Some(last) = bytes[..count].iter().rposition(|byte| *byte == b'\n') else {
                if count == BLOCK {
                    // Nothing of ours is that long: damage, to be skipped.
                    self.position.offset += count as u64;
                    continue;
                }
                return Ok(None);
            };
            self.position.offset += last as u64 + 1;
            let lines = bytes[..last].split(|byte| *byte == b'\n');
            let lines = lines.filter_map(|line| parse(line, self.since_ns)).collect::<Vec<_>>();
            // All before the wanted moment, or not ours.
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
        }
    }
}

fn parse(line: &[u8], since_ns: u64) -> Option<LogLine> {
    let (at_ns, stream, text) = line::parse(line)?;
    let stream = match stream {
        line::Stream::Stdout => Stream::Stdout,
        line::Stream::Stderr => Stream::Stderr,
    };
    let at = SystemTime::UNIX_EPOCH + std::time::Duration::from_nanos(at_ns);
    (at_ns >= since_ns).then(|| LogLine { at, stream, line: text.to_vec() })
}

fn since_ns(query: &LogQuery) -> u64 {
    let since = query.since.and_then(|since| since.duration_since(SystemTime::UNIX_EPOCH).ok());
    since.map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Where a query begins: the later of its moment and its count of lines.
fn first_position(dir: &Path, query: &LogQuery) -> io::Result<Position> {
    let numbers = numbers(dir)?;
    let mut first = Position { number: numbers.first().copied().unwrap_or(0), offset: 0 };
    if query.since.is_some() {
        first = first.max(position_since(dir, &numbers, since_ns(query))?);
    }
    if let Some(tail) = query.tail {
        first = first.max(position_of_tail(dir, &numbers, tail)?);
    }
    Ok(first)
}

/// In the last file that begins before the moment, the first line that does not.
fn position_since(dir: &Path, numbers: &[u64], since_ns: u64) -> io::Result<Position> {
    for number in numbers.iter().rev() {
        let Some(file) = open(dir, *number)? else { continue };
        let len = file.metadata()?.len();
        match line_from(&file, 0, len)? {
            Some((_, at_ns)) if at_ns < since_ns => {
                let offset = halve(&file, len, since_ns)?;
                return Ok(Position { number: *number, offset });
            }
            Some(_) | None => {}
        }
    }
    Ok(Position::default())
}

/// Offset of the first line at or after a moment, by halving.
fn halve(file: &File, len: u64, since_ns: u64) -> io::Result<u64> {
    // Lines that begin before `low` are too early; one that begins at `high` or later is not.
    let (mut low, mut high) = (0, len);
    while low < high {
        let middle = low.midpoint(high);
        match line_from(file, middle, high)? {
            Some((start, at_ns)) if at_ns < since_ns => low = start + 1,
            Some(_) | None => high = middle,
        }
    }
    // `low` may lie within the last early line.
    Ok(line_from(file, low, len)?.map_or(len, |(start, _)| start))
}

/// The first line that begins at or after `from` and before `end`: its offset and time.
fn line_from(file: &File, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    // One byte earlier, to see whether `from` is itself a beginning.
    let mut at = from.saturating_sub(1);
    let mut skip = from > 0;
    let mut bytes = vec![0; BLOCK];
    loop {
        let count = read_at(file, &mut bytes, at)?;
        let mut start = 0;
        for end_of_line in memchr(&bytes[..count]) {
            let text = &bytes[start..end_of_line];
            if !std::mem::take(&mut skip) {
                let begin = at + start as u64;
                if begin >= end {
                    return Ok(None);
                }
                if let Some((at_ns, _, _)) = line::parse(text) {
                    return Ok(Some((begin, at_ns)));
                }
            }
            start = end_of_line + 1;
        }
        if count < BLOCK {
            return Ok(None);
        }
        // A block without an end of line is damage; its start is no beginning.
        skip |= start == 0;
        at += if start == 0 { count as u64 } else { start as u64 };
    }
}

fn memchr(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at)
}

/// Counts ends of lines backwards, file by file.
fn position_of_tail(dir: &Path, numbers: &[u64], tail: usize) -> io::Result<Position> {
    let mut wanted = tail;
    for number in numbers.iter().rev() {
        let Some(file) = open(dir, *number)? else { continue };
        let mut end = file.metadata()?.len();
        if wanted == 0 {
            return Ok(Position { number: *number, offset: end });
        }
        // The end of the last line wanted is not the beginning of one.
        let mut is_last = true;
        let mut bytes = vec![0; BLOCK];
        while end > 0 {
            let begin = end.saturating_sub(BLOCK as u64);
            let len = usize::try_from(end - begin).unwrap_or(BLOCK);
            let count = read_at(&file, &mut bytes[..len], begin)?;
            for at in bytes[..count].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                if std::mem::take(&mut is_last) {
                    continue;
                }
                wanted -= 1;
                if wanted == 0 {
                    return Ok(Position { number: *number, offset: begin + at.0 as u64 + 1 });
                }
            }
            end = begin;
        }
        // The file's first line.
        if !is_last {
            wanted -= 1;
            if wanted == 0 {
                return Ok(Position { number: *number, offset: 0 });
            }
        }
    }
    Ok(Position::default())
}

/// Numbers of the log files in a folder, rising; none when it is missing.
fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        numbers.extend(file_number(entry?.file_name().as_encoded_bytes()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// `None` when it has been removed meanwhile.
fn open(dir: &Path, number: u64) -> io::Result<Option<File>> {
    let name = file_name(number);
    // All digits and letters, and a NUL that is not part of the name.
    let name = String::from_utf8_lossy(&name[..name.len() - 1]);
    match File::open(dir.join(name.as_ref())) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Fills the buffer as far as the file goes.
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut count = 0;
    while count < bytes.len() {
        match file.read_at(&mut bytes[count..], offset + count as u64)? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
