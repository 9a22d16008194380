//! The log as the library wants it.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};

use futures::Stream;
use futures::stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::oneshot;

use super::types::{
    Entry, LogId, Types, Vote, entry_from, log_id, our_entry, our_log_id, our_vote, vote,
};
use crate::log::{Done, Log, LogError};

/// Bytes of entries in memory at once while they are applied, and in one message to a follower.
const READ_BYTES: usize = 1 << 20;

#[derive(Clone)]
pub(super) struct LogStore {
    log: Log,
}

impl LogStore {
    pub(super) fn new(log: Log) -> Self {
        Self { log }
    }

    fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let entries = self.log.read(start..end, bytes_max).map_err(io::Error::other)?;
        entries.into_iter().map(|entry| entry_from(entry).map_err(io::Error::other)).collect()
    }
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

/// Runs an operation of the log and waits until it is durable.
async fn durable(run: impl FnOnce(Done) -> Result<(), LogError>) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    // Nobody listens any more only when the member is going down.
    let done: Done = Box::new(move |result| drop(sender.send(result)));
    run(done).map_err(io::Error::other)?;
    let result = receiver.await.map_err(|_| io::Error::other("the log ended"))?;
    result.map_err(io::Error::other)
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX)
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        let store = self.clone();
        // A few at a time: at start this is the whole log since the snapshot.
        stream::unfold((start, Vec::new().into_iter()), move |(mut next, mut ready)| {
            if ready.len() == 0 && next < end {
                match store.read(next, end, READ_BYTES) {
                    Ok(entries) => ready = entries.into_iter(),
                    Err(error) => return std::future::ready(Some((Err(error), (end, ready)))),
                }
            }
            let item = ready.next();
            next += 1;
            std::future::ready(item.map(|entry| (Ok(entry), (next, ready))))
        })
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.vote().map(vote))
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, READ_BYTES)
    }

    async fn get_key_log_ids(
        &mut self,
        range: RangeInclusive<LogId>,
    ) -> Result<Vec<LogId>, io::Error> {
        // The last of each leader: what the library does by default, not what its page says.
        let ids = self.log.key_ids(range.start().index, range.end().index);
        Ok(ids.into_iter().map(log_id).collect())
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let (purged, last) = self.log.range();
        Ok(LogState { last_purged_log_id: purged.map(log_id), last_log_id: last.map(log_id) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let vote = our_vote(vote);
        durable(|done| self.log.save_vote(vote, done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(id) = committed {
            self.log.save_committed(our_log_id(&id).index);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.committed().map(log_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter().map(our_entry).collect();
        let done: Done =
            Box::new(move |result| callback.io_completed(result.map_err(io::Error::other)));
        self.log.append(entries, done).map_err(io::Error::other)
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let after = last.as_ref().map(our_log_id);
        durable(|done| self.log.truncate_after(after, done)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        let upto = our_log_id(&upto);
        // Not waited for: a purge that is lost is done again after the next snapshot.
        self.log.purge(upto, Box::new(|_| {})).map_err(io::Error::other)
    }
}
