//! Files of a running container, as an archive that flows either way.
//!
//! Reading and writing files waits for disks: it is done on a thread of its own, joined to the
//! stream by a bounded channel each way.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::sync::{Semaphore, mpsc};
use warren_image::copy::{self, BYTES_DEFAULT, Counter, Links, Pack, Tally, Unpack, pack, unpack};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use super::{CHUNK, Code, Failure, Gone, Heard, Line, Outcome, exec, find_task};
use crate::effects::chain;
use crate::worker::Tools;

/// Pieces on their way.
const PIECES_MAX: usize = 8;
/// Copies at a time on this node; each has a thread, and keeps a disk busy.
const COPIES_MAX: usize = 16;
/// As Linux has it.
const PATH_MAX: usize = 4096;

static ROOM: Semaphore = Semaphore::const_new(COPIES_MAX);

pub(super) async fn serve(tools: &Arc<Tools>, asked: v1::Copy, line: &mut Line) -> Outcome {
    let Ok(_permit) = ROOM.try_acquire() else {
        let text = format!("this node carries out {COPIES_MAX} copies already");
        return Outcome::Failed(Failure::new(Code::Failed, text));
    };
    let root = match root(tools, &asked).await {
        Ok(root) => root,
        Err(failure) => return Outcome::Failed(failure),
    };
    let done = match asked.out {
        true => send(root, asked, line).await,
        false => receive(root, asked, line).await,
    };
    let tally = match done {
        Ok(Ok(tally)) => tally,
        Ok(Err(failure)) => return Outcome::Failed(failure),
        Err(Gone) => return Outcome::Gone,
    };
    match finish(tally, line).await {
        Ok(()) => Outcome::Served,
        Err(Gone) => Outcome::Gone,
    }
}

async fn finish(tally: Tally, line: &Line) -> Result<(), Gone> {
    if tally.skipped > 0 {
        let count = tally.skipped;
        let text =
            format!("{count} left out: devices, sockets, pipes, and what the kernel makes up\n");
        line.send(Kind::Stderr(text.into())).await?;
    }
    line.send(Kind::ExitCode(0)).await
}

async fn root(tools: &Tools, asked: &v1::Copy) -> Result<OwnedFd, Failure> {
    let path = &asked.path;
    if path.is_empty() || path.len() > PATH_MAX || path.contains('\0') {
        let text = format!("copy.path: has 1 to {PATH_MAX} bytes, none of them zero");
        return Err(Failure::new(Code::BadInput, text));
    }
    let task = find_task(tools, warren_proto::task_id("copy.task", &asked.task)?).await?;
    let id = exec::container(&task, &asked.container)?;
    Ok(tools.runtime.root(&id).await?)
}

fn bytes_max(asked: &v1::Copy) -> u64 {
    if asked.bytes_max == 0 { BYTES_DEFAULT } else { asked.bytes_max }
}

/// How a copy ended, unless nobody is there to hear it.
type Ended = Result<Result<Tally, Failure>, Gone>;

async fn send(root: OwnedFd, asked: v1::Copy, line: &mut Line) -> Ended {
    let (to, mut pieces) = mpsc::channel(PIECES_MAX);
    let work = tokio::task::spawn_blocking(move || {
        let pack_asked = Pack {
            path: asked.path.as_bytes(),
            follow: asked.follow,
            bytes_max: bytes_max(&asked),
            counter: Counter::default(),
        };
        pack(root.as_fd(), &pack_asked, Pieces { to, held: Vec::new() })
    });
    while let Some(piece) = pieces.recv().await {
        // Dropping the channel ends the work.
        line.send(Kind::Stdout(piece)).await?;
    }
    Ok(ended(work).await)
}

async fn receive(root: OwnedFd, asked: v1::Copy, line: &mut Line) -> Ended {
    let (to, pieces) = mpsc::channel(PIECES_MAX);
    let mut to = Some(to);
    let mut work = tokio::task::spawn_blocking(move || {
        let unpack_asked = Unpack {
            path: asked.path.as_bytes(),
            plain: asked.plain,
            contents: asked.contents,
            archive: asked.archive,
            links: Links::InRoot,
            bytes_max: bytes_max(&asked),
            counter: Counter::default(),
        };
        let mut pieces = Arrived { pieces, piece: Bytes::new(), whole: false };
        let tally = unpack(root.as_fd(), &unpack_asked, &mut pieces)?;
        // What follows the end of an archive is of no interest, but for whether it was sent whole.
        io::copy(&mut pieces, &mut io::sink())
            .map_err(|source| copy::Error::Io { action: "read the archive".to_owned(), source })?;
        Ok(tally)
    });
    loop {
        let heard = tokio::select! {
            biased;
            done = &mut work => return Ok(judged(done)),
            heard = line.receive(), if to.is_some() => heard,
        };
        match heard {
            Heard::Frame(frame) => match *frame {
                Kind::Stdin(bytes) => {
                    let Some(sender) = &to else { continue };
                    // An error: the work is over, and says why above.
                    tokio::select! {
                        _ = sender.send(Piece::Bytes(bytes)) => {}
                        done = &mut work => return Ok(judged(done)),
                    }
                }
                Kind::StdinClosed(_) => {
                    if let Some(sender) = to.take() {
                        let _ = sender.send(Piece::End).await;
                    }
                }
                _ => {}
            },
            // Without its end the archive is not whole.
            Heard::End | Heard::Gone => to = None,
        }
    }
}

async fn ended(
    work: tokio::task::JoinHandle<Result<Tally, copy::Error>>,
) -> Result<Tally, Failure> {
    judged(work.await)
}

fn judged(
    done: Result<Result<Tally, copy::Error>, tokio::task::JoinError>,
) -> Result<Tally, Failure> {
    let Ok(done) = done else {
        return Err(Failure::new(Code::Failed, "the copy was interrupted"));
    };
    done.map_err(|error| {
        let code = match &error {
            copy::Error::NotFound(_) => Code::NotFound,
            copy::Error::Bad(_) => Code::BadInput,
            copy::Error::Conflict(_) => Code::Conflict,
            copy::Error::Io { .. } => Code::Failed,
        };
        Failure::new(code, chain(&error))
    })
}

/// What is written goes out in pieces.
struct Pieces {
    to: mpsc::Sender<Bytes>,
    held: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = CHUNK - self.held.len();
        let count = room.min(bytes.len());
        self.held.extend_from_slice(&bytes[..count]);
        if self.held.len() == CHUNK {
            self.flush()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.held.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.held));
        self.to.blocking_send(piece).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

enum Piece {
    Bytes(Bytes),
    /// All of it was sent.
    End,
}

/// What came in, piece by piece.
struct Arrived {
    pieces: mpsc::Receiver<Piece>,
    piece: Bytes,
    whole: bool,
}

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.whole {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.piece = bytes,
                Some(Piece::End) => self.whole = true,
                None => {
                    let text = "the caller went away before the end";
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
