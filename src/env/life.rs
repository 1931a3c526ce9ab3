//! The lives of simulated nodes. A simulation has many nodes on one thread and ends one of them anywhere, as
//! `kill -9` ends a process, or stops it for a while, as SIGSTOP does. So a task belongs to the life of the
//! task that spawned it ([`crate::env::tasks::spawn`]). In production nothing has one.

use std::collections::BTreeMap;
use std::future::Future;
use std::future::poll_fn;
use std::pin::Pin;
use std::pin::pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

tokio::task_local! {
    static LIFE: Life;
}

/// The life of one simulated node. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Life {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    /// Whoever lives, or waits for the end.
    waiting: BTreeMap<u64, Waker>,
    next: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Running,
    Paused,
    Over,
}

impl Life {
    /// A life that has just begun.
    pub fn new() -> Life {
        Life::default()
    }

    /// The life of the task that asks.
    pub fn current() -> Option<Life> {
        LIFE.try_with(Life::clone).ok()
    }

    /// Ends it. When this returns, nothing that belongs to it is given a turn any more.
    pub fn end(&self) {
        self.enter(Phase::Over);
    }

    /// From now on nothing that belongs to it is given a turn, while time goes on.
    pub fn pause(&self) {
        self.enter(Phase::Paused);
    }

    /// Goes on after a pause.
    pub fn resume(&self) {
        self.enter(Phase::Running);
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.lock().phase == Phase::Over
    }

    /// Returns when it has ended. Cancel-safe.
    pub async fn ended(&self) {
        let mut turn = Turn::new(self);
        poll_fn(|context| match turn.take(context) {
            Phase::Over => Poll::Ready(()),
            Phase::Running | Phase::Paused => Poll::Pending,
        })
        .await;
    }

    /// Lives the work: when the life ends, the work is dropped and this never returns.
    pub async fn live<T>(self, work: impl Future<Output = T>) -> T {
        let mut turn = Turn::new(&self);
        let lived = LIFE.scope(self, async move {
            let mut work = pin!(work);
            poll_fn(|context| take_turn(&mut turn, work.as_mut(), context)).await
        });
        match lived.await {
            Some(done) => done,
            None => std::future::pending().await,
        }
    }

    fn enter(&self, phase: Phase) {
        let mut state = self.lock();
        if state.phase == Phase::Over {
            return;
        }
        state.phase = phase;
        let waiting: Vec<Waker> = state.waiting.values().cloned().collect();
        drop(state);
        waiting.iter().for_each(Waker::wake_by_ref);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics under this lock")
    }
}

/// Nothing once the life has ended.
fn take_turn<T>(
    turn: &mut Turn,
    work: Pin<&mut impl Future<Output = T>>,
    context: &mut Context<'_>,
) -> Poll<Option<T>> {
    match turn.take(context) {
        Phase::Running => work.poll(context).map(Some),
        Phase::Paused => Poll::Pending,
        Phase::Over => Poll::Ready(None),
    }
}

/// One waiter's place.
struct Turn {
    life: Life,
    place: u64,
}

impl Turn {
    fn new(life: &Life) -> Turn {
        let mut state = life.lock();
        let place = state.next;
        state.next += 1;
        drop(state);
        let life = life.clone();
        Turn { life, place }
    }

    /// The phase now; the waiter is woken when it changes.
    fn take(&mut self, context: &mut Context<'_>) -> Phase {
        let mut state = self.life.lock();
        let known = state.waiting.get(&self.place);
        let is_new = known.is_none_or(|known| !known.will_wake(context.waker()));
        let before = match is_new {
            true => state.waiting.insert(self.place, context.waker().clone()),
            false => None,
        };
        let phase = state.phase;
        // The last waker of a task drops the task, which may have a place here: not under the lock.
        drop(state);
        drop(before);
        phase
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let waker = self.life.lock().waiting.remove(&self.place);
        // Outside the lock, as above.
        drop(waker);
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::env::tasks::spawn;

    #[tokio::test]
    async fn what_a_life_has_spawned_ends_with_it() {
        let (life, dropped) = (Life::new(), CancellationToken::new());
        let guard = dropped.clone().drop_guard();
        let grandchild = async move {
            let _guard = guard;
            std::future::pending::<()>().await
        };
        let child = spawn(life.clone().live(async move {
            spawn(async move { drop(spawn(grandchild)) }).await.unwrap();
        }));
        child.await.unwrap();
        assert!(!dropped.is_cancelled());
        life.end();
        life.ended().await;
        dropped.cancelled().await;
    }

    #[tokio::test]
    async fn a_paused_life_takes_no_turn_until_it_goes_on() {
        let (life, token) = (Life::new(), CancellationToken::new());
        let (waited, done) = (token.clone(), CancellationToken::new());
        let told = done.clone();
        let task = spawn(life.clone().live(async move {
            waited.cancelled().await;
            told.cancel();
        }));
        life.pause();
        token.cancel();
        for _ in 0..10 {
            yield_now().await;
        }
        assert!(!done.is_cancelled());
        life.resume();
        task.await.unwrap();
        assert!(done.is_cancelled());
    }
}
