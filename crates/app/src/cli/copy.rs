//! `warren cp`: files into a container, or out of it.
//!
//! On the way they are a tar archive, which the other end takes apart. What comes from a container
//! is put away without following any link, whatever the archive says.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf, Bytes};
use clap::Args;
use tokio::sync::mpsc;
use warren_image::copy::{self, Counter, Links, Pack, Tally, Unpack, pack, unpack};
use warren_model::quantity;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::client::{Frames, frame as wrap};
use super::context::Context;
use super::failure::{Exit, Failure};
use super::listing::size;
use super::terminal;

/// Bytes in one frame.
const PIECE: usize = 32 * 1024;
/// Pieces on their way.
const PIECES_MAX: usize = 8;
/// How often people are told.
const TELL: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
#[command(
    after_help = "Of a folder, SOURCE/. means what is within it. '-' is a tar archive on standard input, \
    put into the folder of the container; or on standard output.\n\n  \
    warren cp web.1:/etc/nginx ./nginx\n  warren cp site/. web.1:/usr/share/nginx/html\n  \
    warren cp web.1:/var/log - | tar tv"
)]
pub(crate) struct CopyArgs {
    /// Copy what a link in SOURCE leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// Keep owners, by their numbers
    #[arg(short, long)]
    archive: bool,
    /// Say nothing of how it goes
    #[arg(short, long)]
    quiet: bool,
    /// Refuse to copy more
    #[arg(long, value_name = "SIZE", value_parser = limit, default_value = "64GiB")]
    max_size: u64,
    /// An init container or a sidecar of the task, instead of its own
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    container: String,
    /// TASK:PATH, a local path, or '-'
    #[arg(value_name = "SOURCE")]
    source: String,
    /// A local path, TASK:PATH, or '-'
    #[arg(value_name = "DESTINATION")]
    destination: String,
}

fn limit(text: &str) -> Result<u64, String> {
    match quantity::parse_size(text) {
        Ok(0) => Err("at least one byte".to_owned()),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(error.to_string()),
    }
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    Task { target: String, path: String },
    Local(String),
    Stream,
}

impl End {
    /// A colon before any slash makes it a path in a container, unless it begins as local ones do.
    fn parse(text: &str) -> Result<Self, String> {
        if text == "-" {
            return Ok(Self::Stream);
        }
        if text.is_empty() {
            return Err("a path is empty".to_owned());
        }
        let local = || Ok(Self::Local(text.to_owned()));
        let Some((target, path)) = text.split_once(':') else { return local() };
        if text.starts_with(['/', '.']) || target.contains('/') {
            return local();
        }
        if target.is_empty() || path.is_empty() {
            return Err(format!("{text:?} is not of the form TASK:PATH"));
        }
        Ok(Self::Task { target: target.to_owned(), path: path.to_owned() })
    }
}

pub(crate) async fn run(context: &mut Context<'_>, args: CopyArgs) -> Result<(), Failure> {
    let end = |name: &str, text: &str| {
        End::parse(text).map_err(|why| Failure::input(format!("{name}: {why}")))
    };
    let source = end("SOURCE", &args.source)?;
    let destination = end("DESTINATION", &args.destination)?;
    let request = v1::Copy {
        container: args.container.clone(),
        bytes_max: args.max_size,
        ..v1::Copy::default()
    };
    match (source, destination) {
        (End::Task { target, path }, to @ (End::Local(_) | End::Stream)) => {
            if to == End::Stream && terminal::stdout_is_terminal() {
                return Err(Failure::input("DESTINATION: an archive is not for a terminal")
                    .hint("redirect it: warren cp TASK:PATH - > FILE.tar"));
            }
            let request = v1::Copy {
                target,
                path: path.clone(),
                out: true,
                follow: args.follow_link,
                ..request
            };
            out(context, request, &path, to, &args).await
        }
        (from @ (End::Local(_) | End::Stream), End::Task { target, path }) => {
            if from == End::Stream && terminal::stdin_is_terminal() {
                return Err(Failure::input("SOURCE: standard input is a terminal, not an archive"));
            }
            let contents = matches!(&from, End::Local(path) if is_contents(path));
            let plain = from == End::Stream;
            let request =
                v1::Copy { target, path, archive: args.archive, plain, contents, ..request };
            into(context, request, from, &args).await
        }
        (End::Task { .. }, End::Task { .. }) => {
            Err(Failure::input("SOURCE and DESTINATION are both in containers")
                .hint("by way of this machine: warren cp A:PATH - | warren cp - B:FOLDER"))
        }
        (End::Local(_) | End::Stream, End::Local(_) | End::Stream) => {
            Err(Failure::input("neither SOURCE nor DESTINATION is in a container")
                .hint("write e.g. web.1:/etc/hosts; a local name with a colon begins with ./"))
        }
    }
}

/// What is within a folder is meant, not the folder.
fn is_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.") || path.bytes().all(|byte| byte == b'/')
}

fn root() -> io::Result<File> {
    File::open("/")
}

fn absolute(path: &str) -> Result<Vec<u8>, Failure> {
    // Kept as it is written: slashes and dots at its end mean something.
    let whole = match path.starts_with('/') {
        true => path.as_bytes().to_vec(),
        false => {
            let here = std::env::current_dir()
                .map_err(|e| Failure::failed(format!("find the working directory: {e}")))?;
            [Path::as_os_str(&here).as_bytes(), b"/", path.as_bytes()].concat()
        }
    };
    Ok(whole)
}

fn told(error: copy::Error) -> Failure {
    let exit = match &error {
        copy::Error::NotFound(_) => Exit::NotFound,
        copy::Error::Bad(_) => Exit::Input,
        copy::Error::Conflict(_) => Exit::Conflict,
        copy::Error::Io { .. } => Exit::Failed,
    };
    let mut text = error.to_string();
    if let Some(source) = std::error::Error::source(&error) {
        text = format!("{text}: {source}");
    }
    Failure::new(exit, text)
}

/// Tells people how far it is, now and then.
struct Meter {
    counter: Counter,
    shown: bool,
}

impl Meter {
    fn new(context: &Context<'_>, args: &CopyArgs) -> Self {
        let shown = !args.quiet && context.printer.rewrites();
        Self { counter: Counter::default(), shown }
    }

    fn tell(&self, context: &mut Context<'_>) {
        if self.shown {
            context.printer.board(vec![format!("copied {}", size(self.counter.bytes()))]);
        }
    }

    fn finish(&self, context: &mut Context<'_>, tally: &Tally, args: &CopyArgs) {
        if !args.quiet {
            let Tally { files, folders, links, bytes, skipped } = *tally;
            let mut text =
                format!("copied {}: {files} files, {folders} folders, {links} links", size(bytes));
            if skipped > 0 {
                text.push_str(&format!("; {skipped} left out"));
            }
            context.printer.note(text);
        }
    }
}

async fn out(
    context: &mut Context<'_>,
    request: v1::Copy,
    path: &str,
    to: End,
    args: &CopyArgs,
) -> Result<(), Failure> {
    let meter = Meter::new(context, args);
    let mut frames = context.client.open(open_stream::Kind::Copy(request)).await?;
    let End::Local(local) = to else {
        return pass(context, &mut frames).await;
    };
    let (pieces, arrived) = mpsc::channel(PIECES_MAX);
    let (place, contents) = (absolute(&local)?, is_contents(path));
    let (archive, bytes_max, counter) = (args.archive, args.max_size, meter.counter.clone());
    let mut work = tokio::task::spawn_blocking(move || {
        let root = root().map_err(|e| Failure::failed(format!("open /: {e}")))?;
        let asked = Unpack {
            path: &place,
            plain: false,
            contents,
            archive,
            links: Links::Refused,
            bytes_max,
            counter,
        };
        let mut arrived = Arrived { pieces: arrived, piece: Bytes::new() };
        let tally = unpack(root.as_fd(), &asked, &mut arrived).map_err(told)?;
        // The rest of the archive is padding.
        let _ = io::copy(&mut arrived, &mut io::sink());
        Ok::<Tally, Failure>(tally)
    });
    let mut tick = tokio::time::interval(TELL);
    let ended = loop {
        let message = tokio::select! {
            message = frames.from.message() => message?,
            done = &mut work => return Err(early(done)),
            _ = tick.tick() => {
                meter.tell(context);
                continue;
            }
        };
        match message.and_then(|message| message.kind) {
            Some(frame::Kind::Stdout(bytes)) => {
                tokio::select! {
                    _ = pieces.send(Ok(bytes)) => {}
                    done = &mut work => return Err(early(done)),
                }
            }
            Some(frame::Kind::Stderr(bytes)) => context.printer.raw_error(&bytes),
            Some(frame::Kind::ExitCode(_)) => break Ok(()),
            Some(frame::Kind::Error(error)) => break Err(Failure::from(error)),
            None => {
                let text = "the node ended the conversation before the copy was whole";
                break Err(Failure::new(Exit::Unreachable, text));
            }
            _ => {}
        }
    };
    if let Err(failure) = ended {
        // What was copied until then stays, and is said not to be whole.
        let _ = pieces.send(Err(io::ErrorKind::UnexpectedEof.into())).await;
        let _ = work.await;
        return Err(failure);
    }
    drop(pieces);
    let tally = work.await.map_err(|_| interrupted())??;
    meter.finish(context, &tally, args);
    Ok(())
}

fn interrupted() -> Failure {
    Failure::failed("the copy was interrupted")
}

fn early(done: Result<Result<Tally, Failure>, tokio::task::JoinError>) -> Failure {
    match done {
        Ok(Err(failure)) => failure,
        Ok(Ok(_)) | Err(_) => interrupted(),
    }
}

/// The archive as it is.
async fn pass(context: &mut Context<'_>, frames: &mut Frames) -> Result<(), Failure> {
    loop {
        match frames.from.message().await?.and_then(|message| message.kind) {
            Some(frame::Kind::Stdout(bytes)) => context.printer.raw(&bytes)?,
            Some(frame::Kind::Stderr(bytes)) => context.printer.raw_error(&bytes),
            Some(frame::Kind::ExitCode(_)) => return Ok(()),
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            None => {
                let text = "the node ended the conversation before the copy was whole";
                return Err(Failure::new(Exit::Unreachable, text));
            }
            _ => {}
        }
    }
}

async fn into(
    context: &mut Context<'_>,
    request: v1::Copy,
    from: End,
    args: &CopyArgs,
) -> Result<(), Failure> {
    let meter = Meter::new(context, args);
    let place = match &from {
        End::Local(path) => {
            let place = absolute(path)?;
            // Before anything is asked of a node.
            std::fs::symlink_metadata(path).map_err(|error| {
                let exit = match error.kind() {
                    io::ErrorKind::NotFound => Exit::NotFound,
                    _ => Exit::Failed,
                };
                Failure::new(exit, format!("SOURCE: {path}: {error}"))
            })?;
            Some(place)
        }
        End::Stream | End::Task { .. } => None,
    };
    let mut frames = context.client.open(open_stream::Kind::Copy(request)).await?;
    let (follow, bytes_max, counter) = (args.follow_link, args.max_size, meter.counter.clone());
    let to = Pieces { to: frames.to.clone(), held: Vec::new() };
    let mut work = tokio::task::spawn_blocking(move || send(place, follow, bytes_max, counter, to));
    let mut tick = tokio::time::interval(TELL);
    let mut sent: Option<Option<Tally>> = None;
    loop {
        let message = tokio::select! {
            message = frames.from.message() => message?,
            done = &mut work, if sent.is_none() => {
                match done.map_err(|_| interrupted())? {
                    Ok(tally) => {
                        sent = Some(tally);
                        let _ = frames.to.send(wrap(frame::Kind::StdinClosed(true))).await;
                    }
                    // The node may have the better reason.
                    Err(Trouble::NotTaken) => sent = Some(None),
                    Err(Trouble::Own(failure)) => return Err(failure),
                }
                continue;
            }
            _ = tick.tick() => {
                meter.tell(context);
                continue;
            }
        };
        match message.and_then(|message| message.kind) {
            Some(frame::Kind::Stderr(bytes)) => context.printer.raw_error(&bytes),
            Some(frame::Kind::ExitCode(_)) => {
                if let Some(Some(tally)) = sent {
                    meter.finish(context, &tally, args);
                }
                return Ok(());
            }
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            None => {
                let text = "the node ended the conversation before the copy was whole";
                return Err(Failure::new(Exit::Unreachable, text));
            }
            _ => {}
        }
    }
}

/// Why not everything was sent.
enum Trouble {
    /// The node takes no more.
    NotTaken,
    Own(Failure),
}

/// Sends a file or folder as an archive, or standard input as it is.
fn send(
    place: Option<Vec<u8>>,
    follow: bool,
    bytes_max: u64,
    counter: Counter,
    mut to: Pieces,
) -> Result<Option<Tally>, Trouble> {
    let Some(place) = place else {
        let copied = io::copy(&mut io::stdin().lock(), &mut to).and_then(|_| to.flush());
        return match copied {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Trouble::NotTaken),
            Err(error) => {
                Err(Trouble::Own(Failure::failed(format!("read standard input: {error}"))))
            }
        };
    };
    let root = root().map_err(|e| Trouble::Own(Failure::failed(format!("open /: {e}"))))?;
    let asked = Pack { path: &place, follow, bytes_max, counter };
    match pack(root.as_fd(), &asked, to) {
        Ok(tally) => Ok(Some(tally)),
        Err(copy::Error::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
            Err(Trouble::NotTaken)
        }
        Err(error) => Err(Trouble::Own(told(error))),
    }
}

/// What is written goes out in pieces.
struct Pieces {
    to: mpsc::Sender<v1::Frame>,
    held: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (PIECE - self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..count]);
        if self.held.len() == PIECE {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let piece = frame::Kind::Stdin(std::mem::take(&mut self.held).into());
        self.to.blocking_send(wrap(piece)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// What came, piece by piece.
struct Arrived {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => return Ok(0),
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let got = match End::parse(text) {
            Ok(End::Task { target, path }) => format!("{target} {path}"),
            Ok(End::Local(path)) => format!("local {path}"),
            Ok(End::Stream) => "stream".to_owned(),
            Err(why) => why,
        };
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn ends() {
        check("-", "stream");
        check("web.1:/etc", "web.1 /etc");
        check("web.1:etc:x", "web.1 etc:x");
        check("./a:b", "local ./a:b");
        check("/a:b", "local /a:b");
        check("dir/a:b", "local dir/a:b");
        check("file", "local file");
        check("web.1:", "\"web.1:\" is not of the form TASK:PATH");
        check(":/x", "\":/x\" is not of the form TASK:PATH");
        check("", "a path is empty");
        for (path, contents) in
            [("a/.", true), (".", true), ("/", true), ("a/", false), ("a", false), ("a.", false)]
        {
            assert_eq!(is_contents(path), contents, "{path}");
        }
        assert_eq!(limit("64GiB"), Ok(copy::BYTES_DEFAULT));
        assert!(limit("0").is_err() && limit("much").is_err());
    }
}
