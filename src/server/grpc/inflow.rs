//! How much a door holds of calls under way, whoever sends them.
//!
//! The library takes five bytes from anybody who says that a message of so many bytes comes, makes room for
//! it, and waits for ever; a call that is never ended keeps what has arrived. One connection may have a
//! thousand calls open. So the declared length of each message is taken from a budget before the library
//! sees it, a call gives it back when it is answered, and what begins has to end within a time.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Body as HttpBody;
use tonic::codegen::Service;
use tonic::codegen::http::Request;
use tonic::codegen::http::Response;
use tonic::server::NamedService;

use crate::error::Error;
use crate::wire::status::to_status;

/// Calls open at one door, idle streams and slow readers included. Full: refused with
/// `RESOURCE_EXHAUSTED`; nothing was done.
pub const CALLS_OPEN_MAX: usize = 16 * 1024;
/// Bytes of requests that arrive or are in work at one door. Full: refused alike. Four of the largest
/// messages between nodes, sixty-four of the largest requests of clients.
pub const BYTES_MAX: usize = 256 * 1024 * 1024;
/// A message that has begun is whole within this; the slowest honest sender has 140 KiB/s for the largest.
const ARRIVAL_MAX: Duration = Duration::from_secs(30);
/// When a full door is to be asked again.
const RETRY: Duration = Duration::from_millis(100);

/// Where requests come as a stream that may be idle between two messages. All others are one message.
const STREAMS: [&str; 4] = [
    "/quorate.v1.Transport/Append",
    "/quorate.v1.Transport/Snapshot",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// What a gRPC message begins with: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The room at one door.
#[derive(Debug, Clone)]
pub struct Inflow {
    bytes: Arc<Semaphore>,
    calls: Arc<Semaphore>,
}

impl Inflow {
    /// Nothing is under way.
    pub fn new() -> Inflow {
        Inflow::of(BYTES_MAX, CALLS_OPEN_MAX)
    }

    fn of(bytes: usize, calls: usize) -> Inflow {
        Inflow {
            bytes: Arc::new(Semaphore::new(bytes)),
            calls: Arc::new(Semaphore::new(calls)),
        }
    }

    /// The service, within this room.
    pub fn bound<S>(&self, service: S) -> Bounded<S> {
        Bounded {
            service,
            inflow: self.clone(),
        }
    }
}

impl Default for Inflow {
    fn default() -> Inflow {
        Inflow::new()
    }
}

/// A service whose calls share the room of an [`Inflow`].
#[derive(Debug, Clone)]
pub struct Bounded<S> {
    service: S,
    inflow: Inflow,
}

impl<S: NamedService> NamedService for Bounded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Ok(open) = self.inflow.calls.clone().try_acquire_owned() else {
            let refused = full("calls open").into_http();
            return std::future::ready(Ok(refused)).boxed();
        };
        let (head, body) = request.into_parts();
        let held = Arc::new(Held::default());
        let is_stream = STREAMS.contains(&head.uri.path());
        let arriving = Arriving::new(body, self.inflow.bytes.clone(), held.clone(), is_stream);
        let answering = self
            .service
            .call(Request::from_parts(head, Body::new(arriving)));
        let answered = async move {
            let response = answering.await?;
            // The request has become an answer.
            drop(held);
            Ok(response.map(|body| Body::new(Leaving { body, _open: open })))
        };
        answered.boxed()
    }
}

/// What a call has taken of the room; given back when nobody has it any more.
#[derive(Debug, Default)]
struct Held(Mutex<Option<OwnedSemaphorePermit>>);

impl Held {
    fn add(&self, more: OwnedSemaphorePermit) {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match held.as_mut() {
            Some(held) => held.merge(more),
            None => *held = Some(more),
        }
    }

    fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// A request's bytes on their way in.
struct Arriving {
    body: Body,
    room: Arc<Semaphore>,
    held: Arc<Held>,
    is_stream: bool,
    message: Message,
    /// Runs while something is overdue.
    patience: Option<Pin<Box<Sleep>>>,
}

/// Where in the sequence of messages the bytes are.
#[derive(Debug, Default)]
struct Message {
    prefix: [u8; PREFIX_BYTES],
    /// Bytes of the prefix that are there.
    known: usize,
    /// Bytes of the message that are not.
    missing: usize,
}

impl Message {
    fn is_between(&self) -> bool {
        self.known == 0
    }

    /// Takes in what has arrived, up to the next thing to be known.
    fn step(&mut self, bytes: &mut &[u8]) -> Step {
        if self.known < PREFIX_BYTES {
            let taken = bytes.len().min(PREFIX_BYTES - self.known);
            let (head, rest) = bytes.split_at(taken);
            self.prefix[self.known..self.known + taken].copy_from_slice(head);
            self.known += taken;
            *bytes = rest;
            if self.known < PREFIX_BYTES {
                return Step::Nothing;
            }
            let [_, length @ ..] = self.prefix;
            let length = u32::from_be_bytes(length);
            self.missing = length as usize;
            return Step::Begins(length);
        }
        let taken = bytes.len().min(self.missing);
        *bytes = &bytes[taken..];
        self.missing -= taken;
        if self.missing > 0 {
            return Step::Nothing;
        }
        self.known = 0;
        Step::Ends
    }
}

enum Step {
    Nothing,
    Begins(u32),
    Ends,
}

impl Arriving {
    fn new(body: Body, room: Arc<Semaphore>, held: Arc<Held>, is_stream: bool) -> Arriving {
        Arriving {
            body,
            room,
            held,
            is_stream,
            message: Message::default(),
            patience: None,
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), Status> {
        // A message of no bytes ends without any.
        while !bytes.is_empty() || (self.message.known == PREFIX_BYTES && self.message.missing == 0)
        {
            match self.message.step(&mut bytes) {
                Step::Nothing => {}
                Step::Begins(length) => {
                    // What no door takes is refused by the library, in other words than "try again".
                    if length as usize > BYTES_MAX {
                        return Ok(());
                    }
                    let room = self.room.clone().try_acquire_many_owned(length);
                    let room = room.map_err(|_| full("bytes of requests under way"))?;
                    self.held.add(room);
                }
                Step::Ends if self.is_stream => {
                    self.held.give_back();
                    self.patience = None;
                }
                Step::Ends => {}
            }
        }
        Ok(())
    }

    fn poll_patience(&mut self, context: &mut Context<'_>) -> Poll<Status> {
        if self.is_stream && self.message.is_between() {
            return Poll::Pending;
        }
        let sleep = || Box::pin(tokio::time::sleep(ARRIVAL_MAX));
        let patience = self.patience.get_or_insert_with(sleep);
        patience.poll_unpin(context).map(|()| {
            let error = Error::Timeout {
                what: "receiving the request".to_owned(),
                after: ARRIVAL_MAX,
            };
            to_status(&error, None)
        })
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
            return self.poll_patience(context).map(|status| Some(Err(status)));
        };
        let taken = match frame.as_ref() {
            Some(Ok(frame)) => frame.data_ref().map_or(Ok(()), |bytes| self.take(bytes)),
            Some(Err(_)) | None => Ok(()),
        };
        Poll::Ready(match taken {
            Ok(()) => frame,
            Err(status) => Some(Err(status)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

/// An answer on its way out; the call is open as long as it lives.
struct Leaving {
    body: Body,
    _open: OwnedSemaphorePermit,
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

fn full(queue: &str) -> Status {
    let error = Error::Overloaded {
        queue: queue.to_owned(),
        retry_after: RETRY,
    };
    to_status(&error, None)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::future::poll_fn;

    use tokio::time::timeout;
    use tonic::Code;

    use super::*;

    /// What has been sent so far; the rest never comes.
    struct Sent(VecDeque<Bytes>);

    impl HttpBody for Sent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _context: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
            let next = self.0.pop_front();
            next.map_or(Poll::Pending, |bytes| {
                Poll::Ready(Some(Ok(http_body::Frame::data(bytes))))
            })
        }
    }

    fn arriving(pieces: &[&'static [u8]], inflow: &Inflow, is_stream: bool) -> Arriving {
        let pieces = pieces.iter().map(|piece| Bytes::from_static(piece));
        let body = Body::new(Sent(pieces.collect()));
        Arriving::new(body, inflow.bytes.clone(), Arc::default(), is_stream)
    }

    async fn next(arriving: &mut Arriving) -> Result<Bytes, Code> {
        let frame = poll_fn(|context| Pin::new(&mut *arriving).poll_frame(context)).await;
        let frame = frame.expect("what is sent never ends");
        let data = frame.map_err(|status| status.code())?.into_data();
        Ok(data.unwrap_or_default())
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_begun_must_end_and_a_stream_may_be_idle_between_two_messages() {
        let inflow = Inflow::of(100, 1);
        let mut half = arriving(&[b"\0\0\0\0\x09abc"], &inflow, false);
        assert_eq!(next(&mut half).await.unwrap().len(), 8);
        assert_eq!(next(&mut half).await, Err(Code::DeadlineExceeded));
        let mut nothing = arriving(&[], &inflow, false);
        assert_eq!(next(&mut nothing).await, Err(Code::DeadlineExceeded));
        let mut idle = arriving(&[b"\0\0\0\0\x03abc"], &inflow, true);
        next(&mut idle).await.unwrap();
        let waited = timeout(10 * ARRIVAL_MAX, next(&mut idle)).await;
        assert!(waited.is_err(), "{waited:?}");
        let mut late = arriving(&[b"\0\0\0\0\x03abc\0"], &inflow, true);
        next(&mut late).await.unwrap();
        assert_eq!(next(&mut late).await, Err(Code::DeadlineExceeded));
    }

    #[tokio::test]
    async fn room_is_taken_when_a_message_begins_and_given_back_when_it_is_over() {
        let inflow = Inflow::of(10, 1);
        let left = || inflow.bytes.available_permits();
        // The prefix itself comes in two pieces.
        let mut one = arriving(&[b"\0\0\0", b"\0\x06ab", b"cdef"], &inflow, false);
        next(&mut one).await.unwrap();
        assert_eq!(left(), 10);
        next(&mut one).await.unwrap();
        assert_eq!(left(), 4);
        let mut other = arriving(&[b"\0\0\0\0\x06"], &inflow, false);
        assert_eq!(next(&mut other).await, Err(Code::ResourceExhausted));
        next(&mut one).await.unwrap();
        assert_eq!(left(), 4, "it is in work");
        drop(one);
        assert_eq!(left(), 10);
        // A stream's messages are over one by one, empty ones too.
        let two = b"\0\0\0\0\x06abcdef\0\0\0\0\0\0\0\0\0\x06abcdef";
        let mut stream = arriving(&[two], &inflow, true);
        next(&mut stream).await.unwrap();
        assert_eq!(left(), 10);
    }
}
