//! The process: one thread that is told, one that answers questions, those of the engine.
//!
//! It begins with one end of a pair of sockets as standard input, on which it is told what it
//! is to do. Once it knows, it listens in the run folder, so that a later daemon finds it; if
//! the other end is gone before that, nobody will ever know of it and it ends. After that it
//! ends when it is asked to, and not before.
//!
//! While nobody asks and nothing is carried, nothing runs.

mod plane;

use std::fs;
use std::io;
use std::os::unix::net::UnixStream as Pair;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message;
use rustix::fs::Mode;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::frame::Frames;
use crate::mark::{self, Mark};
use crate::wire::{Answer, Ask, Reply, Request};
use plane::{Plane, Then};

/// Where a later daemon finds the process. Both names are no longer than the daemon's own socket.
pub(crate) const SOCKET: &str = "data.sock";
const SOCKET_FRESH: &str = "data.new";
const NAME: &std::ffi::CStr = c"warren-data";
/// The daemon's, and that of one that was killed and is not noticed yet.
const CONNECTIONS_MAX: usize = 4;
/// After accept(2) failed for lack of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the process cannot be.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// By hand it has nobody who tells it anything.
    #[error("the data plane is started by the daemon alone: standard input is no socket")]
    Alone,
    /// The system refused.
    #[error("{action}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it was refused.
        source: io::Error,
    },
}

fn failed(action: &'static str) -> impl Fn(io::Error) -> Failure {
    move |source| Failure::Io { action, source }
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Nobody has its descriptors after it.
    Now,
    /// A successor has them: what waits is finished, files in the run folder are that one's.
    HandedOver,
}

/// Runs until it is asked to end. `build` names the program, so that a daemon of another one
/// replaces it. Threads are in the calling thread's network namespace.
///
/// # Errors
/// [`Failure`], before anything was begun.
pub fn run(run_dir: &Path, build: &str) -> Result<(), Failure> {
    // It is executed by a name that says nothing; only lists of processes care.
    let _ = rustix::thread::set_name(NAME);
    // Fails only for the leader of a session, which has left its parent's already.
    let _ = rustix::process::setsid();
    let stdin = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|e| failed("keep the socket of the daemon")(e.into()))?;
    let first = Pair::from(stdin);
    if first.peer_addr().is_err() {
        return Err(Failure::Alone);
    }
    let null = fs::File::open("/dev/null").map_err(failed("open /dev/null"))?;
    rustix::stdio::dup2_stdin(&null).map_err(|e| failed("let go of stdin")(e.into()))?;
    // The root folder is always there; the run folder's path is absolute.
    let _ = rustix::process::chdir("/");
    // Sockets are for their owner alone from their first moment.
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(failed("start the event loop"))?;
    let server =
        Arc::new(Server { run_dir: run_dir.to_owned(), plane: Mutex::new(Plane::new(build)) });
    let end = runtime.block_on(Arc::clone(&server).serve(first))?;
    tracing::info!(?end, "the data plane ends");
    match end {
        End::Now => server.forget(),
        End::HandedOver => server.plane().finish(),
    }
    Ok(())
}

struct Server {
    run_dir: PathBuf,
    plane: Mutex<Plane>,
}

/// What connections tell the server.
#[derive(Clone)]
struct Bell {
    settled: watch::Sender<bool>,
    end: mpsc::Sender<End>,
}

impl Server {
    fn plane(&self) -> MutexGuard<'_, Plane> {
        self.plane.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self: Arc<Self>, first: Pair) -> Result<End, Failure> {
        let (end, mut ended) = mpsc::channel(1);
        let (settled, mut settles) = watch::channel(false);
        let bell = Bell { settled, end };
        first.set_nonblocking(true).map_err(failed("watch the daemon's socket"))?;
        let first = UnixStream::from_std(first).map_err(failed("watch the daemon's socket"))?;
        let talk = tokio::spawn(Arc::clone(&self).talk(first, bell.clone()));
        tokio::select! {
            _ = talk => {}
            _ = settles.wait_for(|settled| *settled) => {}
            Some(end) = ended.recv() => return Ok(end),
        }
        if !*settles.borrow() {
            return Ok(End::Now);
        }
        let listener = self.listen().map_err(failed("listen in the run folder"))?;
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(end) = ended.recv() => return Ok(end),
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let ours = rustix::process::geteuid().as_raw();
            let is_ours = stream.peer_cred().is_ok_and(|peer| peer.uid() == ours);
            let place = Arc::clone(&places).try_acquire_owned();
            let (true, Ok(place)) = (is_ours, place) else { continue };
            let talk = Arc::clone(&self).talk(stream, bell.clone());
            tokio::spawn(async move {
                talk.await;
                drop(place);
            });
        }
    }

    /// Nobody sees the socket before it works; that of a predecessor is replaced at once.
    fn listen(&self) -> io::Result<UnixListener> {
        let (fresh, path) = (self.run_dir.join(SOCKET_FRESH), self.run_dir.join(SOCKET));
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        Mark::own()?.write(&self.run_dir.join(mark::FILE))?;
        fs::rename(&fresh, &path)?;
        Ok(listener)
    }

    /// Removes what leads here, unless it leads to another by now.
    fn forget(&self) {
        let path = self.run_dir.join(mark::FILE);
        if Mark::read(&path).is_some_and(|mark| Mark::own().is_ok_and(|own| own == mark)) {
            // What stays is seen to be left over.
            let _ = fs::remove_file(self.run_dir.join(SOCKET));
            let _ = fs::remove_file(path);
        }
    }

    /// One connection, until its other end is gone or says what nobody understands.
    async fn talk(self: Arc<Self>, stream: UnixStream, bell: Bell) {
        let mut frames = Frames::new(stream);
        if let Err(error) = self.answer(&mut frames, &bell).await
            && error.kind() != io::ErrorKind::UnexpectedEof
        {
            tracing::warn!(%error, "a connection of the daemon");
        }
    }

    async fn answer(&self, frames: &mut Frames, bell: &Bell) -> io::Result<()> {
        let (welcome, held) = self.plane().welcome()?;
        let (_, fds) = held.listed();
        frames.send(&Reply::of(Answer::Welcome(welcome)), &fds).await?;
        loop {
            let (bytes, fds) = frames.receive().await?;
            let request = Request::decode(&bytes[..]).map_err(io::Error::other)?;
            drop(bytes);
            if let Some(Ask::Watch(watch)) = &request.ask {
                let mut reach = self.plane().watch_reach();
                tokio::select! {
                    // The sender is the plane's, which lives as long as this.
                    _ = reach.wait_for(|version| *version != watch.seen) => {}
                    // Gone; or it asks for something else, and is answered with what there is.
                    () = frames.stirred() => {}
                }
            }
            let (answers, then) = self.plane().ask(request, fds);
            for answer in answers {
                frames.send(&Reply::of(answer), &[]).await?;
            }
            match then {
                Then::Go => {}
                Then::Settled => {
                    bell.settled.send_replace(true);
                }
                // One end is enough.
                Then::End => drop(bell.end.try_send(End::Now)),
                Then::HandedOver => drop(bell.end.try_send(End::HandedOver)),
            }
        }
    }
}
