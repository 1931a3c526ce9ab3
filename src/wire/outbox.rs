//! Frames of many streams on their way into one: whoever writes them to the network takes all that
//! wait, so that one message and one wake-up carry them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::task::Waker;

use futures::Stream;
use prost::Message;

use crate::telemetry::metrics;
use crate::telemetry::metrics::Queue;
use crate::wire::proto::v1::AppendFrame;

/// Bytes that may wait before streams hold back further requests. Full: requests stay with whoever
/// made them, until the network has taken some.
const WAITING_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Bytes after which a message is sent with what it has: large ones would only delay the first frame.
const MESSAGE_BYTES_ENOUGH: usize = 256 * 1024;

/// Largest frame: far above what one append should hold, so that only a mistake reaches it.
pub const FRAME_BYTES_MAX: usize = 48 * 1024 * 1024;

/// Frames that wait to be written, in order. Each stream adds at most its window and a few frames that
/// end it, so that the number is bounded by the number of streams; bytes are bounded by
/// [`Outbox::poll_room`].
#[derive(Debug, Default)]
pub struct Outbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<(AppendFrame, usize)>,
    bytes: usize,
    closed: bool,
    writer: Option<Waker>,
    held_back: Vec<Waker>,
}

impl Outbox {
    /// Adds a frame; false when it is too large to be sent. Dropped when the outbox is closed.
    pub fn push(&self, frame: AppendFrame) -> bool {
        let bytes = frame.encoded_len();
        if bytes > FRAME_BYTES_MAX {
            return false;
        }
        let mut state = self.lock();
        if state.closed {
            return true;
        }
        state.bytes += bytes;
        state.waiting.push_back((frame, bytes));
        metrics::queue_depth(Queue::Messages, state.waiting.len());
        let writer = state.writer.take();
        drop(state);
        if let Some(writer) = writer {
            writer.wake();
        }
        true
    }

    /// Ready when another request may be added; else wakes the caller then.
    pub fn poll_room(&self, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        if state.bytes < WAITING_BYTES_MAX || state.closed {
            return Poll::Ready(());
        }
        if !state
            .held_back
            .iter()
            .any(|waker| waker.will_wake(context.waker()))
        {
            state.held_back.push(context.waker().clone());
        }
        Poll::Pending
    }

    /// Nothing more comes: the writer ends after what waits.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let wakers = state.writer.take().into_iter();
        let wakers: Vec<Waker> = wakers.chain(std::mem::take(&mut state.held_back)).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn poll_take(&self, context: &mut Context<'_>) -> Poll<Option<Vec<AppendFrame>>> {
        let mut state = self.lock();
        if state.waiting.is_empty() {
            if state.closed {
                return Poll::Ready(None);
            }
            state.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        let (mut taken, mut taken_bytes) = (Vec::with_capacity(state.waiting.len()), 0);
        while taken_bytes < MESSAGE_BYTES_ENOUGH
            && let Some((frame, bytes)) = state.waiting.pop_front()
        {
            taken.push(frame);
            taken_bytes += bytes;
        }
        state.bytes -= taken_bytes;
        let held_back = match state.bytes < WAITING_BYTES_MAX {
            true => std::mem::take(&mut state.held_back),
            false => Vec::new(),
        };
        drop(state);
        held_back.into_iter().for_each(Waker::wake);
        Poll::Ready(Some(taken))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the lock is released, so a panic elsewhere leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All that waits, again and again, until the outbox is closed. Dropping it closes the outbox.
#[derive(Debug)]
pub struct Taker(Arc<Outbox>);

impl Taker {
    /// The one taker of an outbox.
    pub fn of(outbox: Arc<Outbox>) -> Taker {
        Taker(outbox)
    }
}

impl Stream for Taker {
    type Item = Vec<AppendFrame>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_take(context)
    }
}

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::proto::v1::Entries;
    use crate::wire::proto::v1::Entry;
    use crate::wire::proto::v1::append_frame::Body;
    use futures::FutureExt;
    use futures::StreamExt;

    fn frame(stream: u64, bytes: usize) -> AppendFrame {
        let entry = Entry {
            payload: vec![0; bytes].into(),
            ..Entry::default()
        };
        let entries = Entries {
            entries: vec![entry],
            ..Entries::default()
        };
        AppendFrame {
            stream,
            body: Some(Body::Request(entries)),
        }
    }

    fn numbers(frames: Option<Option<Vec<AppendFrame>>>) -> Vec<u64> {
        let frames = frames.expect("something waits").expect("not closed");
        frames.iter().map(|frame| frame.stream).collect()
    }

    #[test]
    fn what_waits_together_is_taken_together_and_in_order() {
        let outbox = Arc::new(Outbox::default());
        let mut taker = Taker::of(outbox.clone());
        assert_eq!(taker.next().now_or_never(), None);
        assert!((1..=3).all(|number| outbox.push(frame(number, 10))));
        assert_eq!(numbers(taker.next().now_or_never()), [1, 2, 3]);
        outbox.push(frame(4, MESSAGE_BYTES_ENOUGH));
        outbox.push(frame(5, 1));
        outbox.close();
        assert_eq!(numbers(taker.next().now_or_never()), [4]);
        assert_eq!(numbers(taker.next().now_or_never()), [5]);
        assert_eq!(taker.next().now_or_never(), Some(None));
    }

    #[tokio::test]
    async fn a_full_outbox_holds_back_until_some_of_it_is_taken() {
        let outbox = Arc::new(Outbox::default());
        let mut taker = Taker::of(outbox.clone());
        outbox.push(frame(1, WAITING_BYTES_MAX));
        let mut room = Box::pin(std::future::poll_fn(|context| outbox.poll_room(context)));
        assert!(room.as_mut().now_or_never().is_none());
        taker.next().await.unwrap();
        room.await;
    }
}
