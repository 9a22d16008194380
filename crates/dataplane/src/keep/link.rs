//! A connection to a data plane: one question, one answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::watch;
use warren_model::NodeTable;

use crate::asker::Asker;
use crate::descriptors::Descriptors;
use crate::frame::Frames;
use crate::wire::{
    Answer, Ask, Gathered, LostPeer, Nothing, Reply, Request, Status, Watch, Welcome,
};

/// A table of ten thousand services takes some tens of milliseconds; what does not answer
/// within this does not work.
const ANSWER_MAX: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Link {
    frames: Frames,
    pub(super) welcome: Welcome,
}

/// What a process was told by an earlier daemon.
#[derive(Debug, Default)]
pub(super) struct Recalled {
    pub(super) table: Option<Arc<NodeTable>>,
    pub(super) known: BTreeMap<String, IpAddr>,
    pub(super) askers: Vec<Asker>,
}

impl Link {
    /// With the descriptors that the process holds.
    pub(super) async fn open(stream: UnixStream) -> io::Result<(Self, Descriptors)> {
        let mut frames = Frames::new(stream);
        let (bytes, fds) = in_time(frames.receive()).await?;
        let Some(Answer::Welcome(welcome)) = decode(&bytes)? else {
            return Err(io::Error::other("the data plane does not begin with its name"));
        };
        let held = Descriptors::adopt(&welcome.kinds, fds);
        Ok((Self { frames, welcome }, held))
    }

    /// Resolves when the process is gone.
    pub(super) async fn broken(&self) {
        self.frames.stirred().await;
    }

    pub(super) async fn ask(&mut self, ask: Ask, fds: &[BorrowedFd<'_>]) -> io::Result<Answer> {
        let request = Request::of(ask);
        in_time(self.frames.send(&request, fds)).await?;
        self.answer().await
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        let (bytes, _) = in_time(self.frames.receive()).await?;
        match decode(&bytes)? {
            Some(Answer::Refused(why)) => Err(io::Error::other(why)),
            Some(answer) => Ok(answer),
            None => Err(io::Error::other("the data plane answers what is not known")),
        }
    }

    pub(super) async fn status(&mut self) -> io::Result<Status> {
        match self.ask(Ask::Status(Nothing {}), &[]).await? {
            Answer::Status(status) => Ok(status),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn recall(&mut self) -> io::Result<Recalled> {
        let mut recalled = Recalled::default();
        let mut gathered = Gathered::default();
        let mut answer = self.ask(Ask::Recall(Nothing {}), &[]).await?;
        loop {
            let Answer::Recalled(part) = answer else { return Err(unexpected(&answer)) };
            let known = part.known.iter();
            recalled.known.extend(known.filter_map(|(k, v)| Some((k.clone(), v.parse().ok()?))));
            // One that a newer process tells and this daemon does not understand is told anew.
            recalled.askers.extend(part.admitted.iter().filter_map(|a| Asker::try_from(a).ok()));
            let more = part.table.as_ref().is_some_and(|table| table.more);
            if let Some(change) = part.table.and_then(|part| gathered.add(part)) {
                let mut table = NodeTable::default();
                table.apply(change);
                recalled.table = Some(Arc::new(table));
            }
            if !more {
                return Ok(recalled);
            }
            answer = self.answer().await?;
        }
    }
}

/// Follows who is not reached, by a connection of its own, until that fails.
pub(super) async fn follow(
    stream: UnixStream,
    tell: &watch::Sender<Option<Vec<LostPeer>>>,
) -> io::Result<Infallible> {
    let (mut link, held) = Link::open(stream).await?;
    drop(held);
    let mut seen = 0;
    loop {
        let request = Request::of(Ask::Watch(Watch { seen }));
        in_time(link.frames.send(&request, &[])).await?;
        // Nothing may change for days.
        let (bytes, _) = link.frames.receive().await?;
        let reach = match decode(&bytes)? {
            Some(Answer::Reach(reach)) => reach,
            // Of a version before; it is replaced soon.
            Some(other) => return Err(unexpected(&other)),
            None => return Err(io::Error::other("the data plane answers what is not known")),
        };
        seen = reach.version;
        tell.send_if_modified(|known| {
            let differs = known.as_ref() != Some(&reach.lost);
            *known = Some(reach.lost);
            differs
        });
    }
}

pub(super) fn unexpected(answer: &Answer) -> io::Error {
    let name = match answer {
        Answer::Welcome(_) => "a welcome",
        Answer::Done(_) => "that it is done",
        Answer::Refused(_) => "that it refuses",
        Answer::Recalled(_) => "what it knows",
        Answer::Status(_) => "its status",
        Answer::HandedOver(_) => "that it handed over",
        Answer::Reach(_) => "whom it does not reach",
    };
    io::Error::other(format!("the data plane answers something else: {name}"))
}

fn decode(bytes: &[u8]) -> io::Result<Option<Answer>> {
    Ok(Reply::decode(bytes).map_err(io::Error::other)?.answer)
}

async fn in_time<T>(what: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the data plane does not answer");
    tokio::time::timeout(ANSWER_MAX, what).await.map_err(late)?
}
