//! Read positions for linearizable reads, shared: however many readers wait, one round trip serves them
//! all.
//!
//! A reader must see every write acknowledged before it asked. So a round that has begun serves nobody
//! who comes later; those wait for the next one. On a follower the round is a call to the leader, whose
//! own rounds are shared again.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::env::mutant;
use crate::env::mutant::Mutant;
use crate::error::Error;
use crate::error::Result;
use crate::raft::Group;
use crate::raft::Leadership;
use crate::types::Position;
use crate::types::shard::Replica;
use crate::wire::request::Call;
use crate::wire::request::Channel;
use crate::wire::request::Request;
use crate::wire::request::Response;

/// Full: the reader is answered Overloaded.
const READERS_WAITING_MAX: usize = 16_384;
/// How long one round may take before its readers are told to try again.
const ROUND_MAX: Duration = Duration::from_secs(1);

type Reader = oneshot::Sender<Result<Position>>;

/// Asks for read positions. Cloning shares the rounds.
#[derive(Clone)]
pub struct Barrier {
    readers: mpsc::Sender<Reader>,
}

impl Barrier {
    /// The barrier of a group, and the task that serves it; it ends when the last barrier is dropped.
    pub fn new(
        group: Group,
        channel: Arc<dyn Channel>,
    ) -> (Barrier, impl Future<Output = ()> + Send) {
        Barrier::over(move || {
            let (group, channel) = (group.clone(), Arc::clone(&channel));
            async move { bounded_round(&group, &channel).await }
        })
    }

    /// As [`Barrier::new`], over any kind of round.
    fn over<Round>(round: impl Fn() -> Round + Send) -> (Barrier, impl Future<Output = ()> + Send)
    where
        Round: Future<Output = Result<Position>> + Send,
    {
        let (readers, waiting) = mpsc::channel(READERS_WAITING_MAX);
        (Barrier { readers }, serve(round, waiting))
    }

    /// A position that, once applied, shows every write acknowledged before the call. Cancel-safe.
    pub async fn position(&self) -> Result<Position> {
        let (reader, position) = oneshot::channel();
        self.readers
            .try_send(reader)
            .map_err(|_| Error::Overloaded {
                queue: "readers waiting for the leader".to_string(),
                retry_after: Duration::from_millis(100),
            })?;
        position
            .await
            .unwrap_or_else(|_| Err(Error::unavailable("the node", "it is stopping")))
    }
}

async fn serve<Round>(round: impl Fn() -> Round, mut waiting: mpsc::Receiver<Reader>)
where
    Round: Future<Output = Result<Position>>,
{
    let mut readers = Vec::new();
    while waiting.recv_many(&mut readers, READERS_WAITING_MAX).await > 0 {
        let position = round().await;
        while mutant::lives(Mutant::RoundServesLatecomers)
            && let Ok(late) = waiting.try_recv()
        {
            readers.push(late);
        }
        for reader in readers.drain(..) {
            // A reader that has gone needs no answer.
            let _ = reader.send(position.clone());
        }
    }
}

/// A round, given up when somebody else leads: a leader that has died answers nobody.
async fn bounded_round(group: &Group, channel: &Arc<dyn Channel>) -> Result<Position> {
    let mut leadership = group.leadership();
    leadership.mark_unchanged();
    tokio::select! {
        biased;
        position = timeout(ROUND_MAX, round(group, channel)) => position.unwrap_or_else(|_| {
            Err(Error::unavailable(group.id(), "its leader does not answer"))
        }),
        _ = leadership.changed() => Err(Error::NotLeader {
            group: group.id(),
            leader: None,
        }),
    }
}

async fn round(group: &Group, channel: &Arc<dyn Channel>) -> Result<Position> {
    let leadership = *group.leadership().borrow();
    match leadership {
        Leadership::Leading { .. } => group.read_position().await,
        Leadership::Following {
            leader: Some(leader),
        } => ask(group, channel, leader).await,
        Leadership::Following { leader: None } => Err(Error::NotLeader {
            group: group.id(),
            leader: None,
        }),
        Leadership::Failed => Err(group.failed()),
    }
}

async fn ask(group: &Group, channel: &Arc<dyn Channel>, leader: Replica) -> Result<Position> {
    let request = Request::ReadPosition(group.id());
    let call = Call {
        request,
        deadline: ROUND_MAX,
        forwarded: true,
        cluster: None,
    };
    match channel.node(leader.node).call(call).await? {
        Response::ReadPosition(position) => Ok(position),
        other => Err(Error::Internal(format!(
            "asked for a read position, got {other:?}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::sync::atomic::Ordering;

    use futures::FutureExt;
    use tokio::sync::Semaphore;
    use tokio::task::yield_now;

    use super::*;

    /// What was acknowledged between its question and the position that the round under way has found already
    /// would be hidden from it.
    #[tokio::test]
    async fn a_reader_that_comes_during_a_round_is_served_by_the_next() {
        let (rounds, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let (begun, opened) = (Arc::clone(&rounds), Arc::clone(&gate));
        let (barrier, serving) = Barrier::over(move || {
            let index = begun.fetch_add(1, Ordering::SeqCst) + 1;
            let opened = Arc::clone(&opened);
            async move {
                opened.acquire().await.unwrap().forget();
                Ok(Position { term: 1, index })
            }
        });
        tokio::spawn(serving);
        let asking = barrier.clone();
        let early = tokio::spawn(async move { asking.position().await });
        while rounds.load(Ordering::SeqCst) == 0 {
            yield_now().await;
        }
        let mut late = Box::pin(barrier.position());
        assert_eq!((&mut late).now_or_never(), None);
        gate.add_permits(2);
        assert_eq!(early.await.unwrap().unwrap().index, 1);
        assert_eq!(late.await.unwrap().index, 2);
    }
}
