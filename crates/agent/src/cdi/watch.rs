//! Waits until something in folders changes. One that is not there is waited for in the nearest
//! folder above it that is.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use warren_runtime::{Watched, watch};

/// Of one read: dozens of events.
const BUFFER: usize = 4096;

/// Armed when it is made: what changes from then on is not missed.
pub(super) struct Changes {
    events: Watched,
    /// What is to appear in a folder above.
    awaited: Vec<PathBuf>,
    watched: Vec<i32>,
}

impl Changes {
    pub(super) fn of(folders: &[PathBuf]) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let inside = WatchFlags::CREATE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let above = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR
            | WatchFlags::MASK_ADD;
        let (mut awaited, mut watched) = (Vec::new(), Vec::new());
        for folder in folders {
            match inotify::add_watch(&fd, folder, inside | WatchFlags::MASK_ADD) {
                Ok(watch) => {
                    watched.push(watch);
                    continue;
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
            let mut missing = folder.as_path();
            while let Some(parent) = missing.parent() {
                if inotify::add_watch(&fd, parent, above).is_ok() {
                    awaited.push(missing.to_owned());
                    break;
                }
                missing = parent;
            }
        }
        Ok(Self { events: watch(fd)?, awaited, watched })
    }

    /// Resolves when one of the folders, or what is in it, is not as it was.
    pub(super) async fn next(self) -> io::Result<()> {
        // One that appeared before the folder above it was watched.
        if self.has_come() {
            return Ok(());
        }
        loop {
            let mut ready = self.events.readable().await?;
            let mut changed = false;
            let drained = ready.try_io(|fd| self.drain(fd.get_ref(), &mut changed));
            if let Ok(Err(error)) = drained {
                return Err(error);
            }
            if changed || self.has_come() {
                return Ok(());
            }
        }
    }

    fn has_come(&self) -> bool {
        self.awaited.iter().any(|path| std::fs::symlink_metadata(path).is_ok())
    }

    /// Until nothing is left, which is the error that is hoped for.
    fn drain(&self, fd: &OwnedFd, changed: &mut bool) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut events = inotify::Reader::new(fd, &mut buffer);
        loop {
            let event = events.next()?;
            // Lost events are changes, and so is a folder above that went.
            let lost = event.events().intersects(
                inotify::ReadFlags::QUEUE_OVERFLOW
                    | inotify::ReadFlags::DELETE_SELF
                    | inotify::ReadFlags::MOVE_SELF,
            );
            *changed |= lost || self.watched.contains(&event.wd());
        }
    }
}
