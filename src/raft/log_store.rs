//! The library's log storage over one replica's part of the write-ahead log.

use std::fmt::Debug;
use std::io;
use std::ops::Bound;
use std::ops::Range;
use std::ops::RangeBounds;

use futures::FutureExt;
use futures::Stream;
use futures::StreamExt;
use futures::stream;
use openraft::OptionalSend;
use openraft::storage::IOFlushed;
use openraft::storage::LogState;
use openraft::storage::RaftLogReader;
use openraft::storage::RaftLogStorage;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::env::tasks::offload;
use crate::raft::config::Entry;
use crate::raft::config::LogId;
use crate::raft::config::RaftVote;
use crate::raft::config::TypeConfig;
use crate::raft::convert;
use crate::types::Position;
use crate::wal::ReplicaLog;

/// Bytes that one read of the log brings: one message to a follower, one portion of an apply.
const READ_BYTES_MAX: usize = 1024 * 1024;

/// Cloned for every task of the library that reads.
#[derive(Clone)]
pub(super) struct LogStore {
    log: ReplicaLog,
    committed: Option<Position>,
}

impl LogStore {
    /// `committed`: what is known from elsewhere to be committed in this log.
    pub(super) fn new(log: ReplicaLog, committed: Option<Position>) -> LogStore {
        LogStore { log, committed }
    }

    pub(super) fn log(&self) -> &ReplicaLog {
        &self.log
    }

    /// The first entries of the range; at least one unless it is empty.
    async fn read_some(&self, range: Range<u64>) -> io::Result<Vec<Entry>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let entries = if self.log.is_cached(&range) {
            self.log.read(range, READ_BYTES_MAX)?
        } else {
            let log = self.log.clone();
            offload(move || log.read(range, READ_BYTES_MAX)).await?
        };
        entries
            .into_iter()
            .map(|entry| convert::to_entry(entry).map_err(io::Error::other))
            .collect()
    }

    fn bounds(&self, range: &impl RangeBounds<u64>) -> Range<u64> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        let state = self.log.state();
        let first = state.purged.map_or(0, |purged| purged.index + 1);
        let past = state.last.map_or(0, |last| last.index + 1);
        start.max(first)..end.min(past)
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let mut range = self.bounds(&range);
        let mut entries = Vec::new();
        while !range.is_empty() {
            let some = self.read_some(range.clone()).await?;
            let Some(last) = some.last() else { break };
            range.start = last.log_id.index() + 1;
            entries.extend(some);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.read_some(start..end).await
    }

    async fn read_vote(&mut self) -> Result<Option<RaftVote>, io::Error> {
        Ok(self.log.state().vote.map(convert::to_raft_vote))
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let range = self.bounds(&range);
        let store = self.clone();
        stream::unfold((store, range), |(store, mut range)| async move {
            let some = match store.read_some(range.clone()).await {
                Ok(some) => some,
                Err(error) => return Some((vec![Err(error)], (store, 0..0))),
            };
            range.start = some.last()?.log_id.index() + 1;
            Some((some.into_iter().map(Ok).collect(), (store, range)))
        })
        .flat_map(stream::iter)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.purged.map(convert::to_log_id),
            last_log_id: state.last.map(convert::to_log_id),
        })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> Result<(), io::Error> {
        if mutant::lives(Mutant::VoteNotStored) {
            return Ok(());
        }
        let saved = self.log.save_vote(convert::to_vote(vote));
        if mutant::lives(Mutant::VoteNotAwaited) {
            return saved.now_or_never().unwrap_or(Ok(()));
        }
        saved.await
    }

    /// What is committed is not stored. It is said for a log with an entry that another replica's birth has
    /// proven committed, so that opening applies that entry before a snapshot could step over it.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let is_known = |_: &_| !mutant::lives(Mutant::SplitNotKnownCommitted);
        Ok(self.committed.filter(is_known).map(convert::to_log_id))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(convert::to_log_entry).collect();
        self.log
            .append(
                entries,
                Box::new(move |result| callback.io_completed(result)),
            )
            .await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.log
            .truncate_after(last.as_ref().map(convert::to_position))
            .await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.purge(convert::to_position(&upto)).await
    }
}
