//! The sending end of the append streams, heartbeats and questions of all groups between two nodes, carried by one
//! stream of frames.
//!
//! A stream has at most [`APPENDS_IN_FLIGHT_MAX`] requests, of some megabytes, without an answer. That bounds what waits
//! for it on either side, so that a stream that is not read holds back itself alone. When the carrying
//! stream breaks, every open one ends with `Unavailable`: what the receiver has done is for Raft to
//! find out.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::Stream;
use futures::StreamExt;
use futures::stream;
use futures::stream::BoxStream;
use futures::stream::Fuse;
use prost::Message;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tonic::Request;
use tonic::Streaming;
use tonic::metadata::MetadataMap;

use crate::error::Error;
use crate::error::Result;
use crate::types::node::Room;
use crate::wire::convert::transport;
use crate::wire::lane::Connection;
use crate::wire::lane::Lane;
use crate::wire::lane::MESSAGE_BYTES_MAX;
use crate::wire::outbox::Outbox;
use crate::wire::outbox::Taker;
use crate::wire::proto::v1;
use crate::wire::proto::v1::append_frame::Beat;
use crate::wire::proto::v1::append_frame::Body;
use crate::wire::proto::v1::append_frame::Cancel;
use crate::wire::proto::v1::append_frame::End;
use crate::wire::proto::v1::transport_client::TransportClient;
use crate::wire::request::APPENDS_IN_FLIGHT_MAX;
use crate::wire::request::AppendRequest;
use crate::wire::request::AppendResponse;
use crate::wire::request::Route;
use crate::wire::status;
use crate::wire::status::Asked;

/// Bytes of entries of one stream that may be without an answer; one request always may. A receiver that stands
/// still for a moment has all of them in memory when it goes on.
const BYTES_IN_FLIGHT_MAX: usize = 8 * 1024 * 1024;

/// Questions to one node without an answer. A round of reads ends with the quicker voters, and the next one asks
/// again: a voter that stands still must not find all of them when it goes on. Full: `Overloaded`, and whoever
/// asks waits a little.
const QUESTIONS_WAITING_MAX: usize = 1_024;

/// The carrier must be accepted in this time: the receiver does it without asking anyone.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// The carrier to one node: opened when first needed, and again after it broke.
#[derive(Debug, Default)]
pub struct Carriers {
    current: Arc<tokio::sync::Mutex<Option<Arc<Carrier>>>>,
    room: Arc<Mutex<Option<Room>>>,
}

impl Carriers {
    /// The carrier. An error means that nothing was sent. Cancel-safe.
    pub async fn carrier(
        &self,
        lane: &Arc<Lane>,
        headers: MetadataMap,
        what: &Arc<str>,
    ) -> Result<Arc<Carrier>> {
        let mut current = Arc::clone(&self.current).lock_owned().await;
        if let Some(carrier) = &*current
            && carrier.inlets.lock().is_ok()
        {
            return Ok(carrier.clone());
        }
        *current = None;
        let (lane, named, room) = (Arc::clone(lane), Arc::clone(what), Arc::clone(&self.room));
        // Who asks may give up half-way, and again and again: what was begun is for the next one.
        let opening = tokio::spawn(async move {
            let carrier = Arc::new(Carrier::open(&lane, headers, &named, room).await?);
            *current = Some(carrier.clone());
            Ok(carrier)
        });
        let opened = opening.await;
        opened.unwrap_or_else(|_| Err(Error::unavailable(what, "its append stream was not opened")))
    }

    /// How much room the node's disk has, by its last answer; `None` before the first, and after the
    /// stream broke.
    pub fn room(&self) -> Option<Room> {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One stream of frames to one node.
#[derive(Debug)]
pub struct Carrier {
    outbox: Arc<Outbox>,
    inlets: Arc<Inlets>,
    numbers: AtomicU64,
    reader: AbortHandle,
}

impl Carrier {
    async fn open(
        lane: &Arc<Lane>,
        headers: MetadataMap,
        what: &Arc<str>,
        room: Arc<Mutex<Option<Room>>>,
    ) -> Result<Carrier> {
        let connection = lane.connection().await?;
        let outbox = Arc::new(Outbox::default());
        let frames = Taker::of(outbox.clone()).map(|frames| v1::AppendRequest { frames });
        let mut request = Request::new(frames);
        *request.metadata_mut() = headers;
        let mut client = TransportClient::new(connection.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let asked = asked(what);
        let answers = timeout(OPEN_TIMEOUT, client.append(request)).await;
        let answers = answers.map_err(|_| {
            lane.broken(&connection);
            Error::unavailable(what, "it did not accept the append stream in time")
        })?;
        let answers = answers.map_err(|status| {
            lane.check(&connection, &status);
            asked.failed(&status)
        })?;
        let reader = Reader {
            answers: answers.into_inner(),
            inlets: Arc::new(Inlets::default()),
            outbox: outbox.clone(),
            lane: lane.clone(),
            connection,
            what: what.clone(),
            room,
        };
        let inlets = reader.inlets.clone();
        Ok(Carrier {
            outbox,
            inlets,
            numbers: AtomicU64::new(1),
            reader: tokio::spawn(reader.run()).abort_handle(),
        })
    }

    /// One append outside the pipelines. It waits for no other, and shares its message with what is waiting to
    /// be written. Cancel-safe: a dropped call may have happened.
    pub async fn beat(&self, route: Route, request: AppendRequest) -> Result<AppendResponse> {
        let beat = Beat {
            route: Some(transport::route_out(route)),
            entries: Some(transport::append_out(request)),
        };
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut waiting = Waiting {
            inlets: self.inlets.clone(),
            number,
            answer: self.inlets.open(number)?,
        };
        if !self.push(number, Body::Beat(beat)) {
            return Err(Error::invalid("entries", "too large for one append"));
        }
        let answer = waiting.answer.recv().await;
        answer.unwrap_or_else(|| Err(no_answer()))
    }

    /// In which term a replica is: the last in which it voted or followed. Waits for no other, as a beat.
    /// Cancel-safe: what nobody waits for any more counts among those without an answer until it comes.
    ///
    /// # Errors
    /// `Overloaded` when too many are without an answer.
    pub async fn term(&self, route: Route) -> Result<u64> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let answer = self.inlets.open_question(number)?;
        self.push(number, Body::Question(transport::route_out(route)));
        answer.await.unwrap_or_else(|_| Err(no_answer()))
    }

    fn push(&self, stream: u64, body: Body) -> bool {
        let body = Some(body);
        self.outbox.push(v1::AppendFrame { stream, body })
    }
}

fn no_answer() -> Error {
    Error::unavailable("the receiver", "it gave no answer")
}

/// Whoever waits for the answer to a beat. Dropping it forgets the beat.
struct Waiting {
    inlets: Arc<Inlets>,
    number: u64,
    answer: mpsc::Receiver<Result<AppendResponse>>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.inlets.remove(self.number);
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.reader.abort();
        self.outbox.close();
    }
}

fn asked(what: &str) -> Asked<'_> {
    Asked {
        what,
        write: None,
        deadline: OPEN_TIMEOUT,
    }
}

/// Where the answers of each open stream go; the error once the carrier has broken.
#[derive(Debug)]
struct Inlets(Mutex<Result<Open>>);

#[derive(Debug, Default)]
struct Open {
    inlets: HashMap<u64, Inlet>,
    /// How many of them are questions.
    questions: usize,
}

impl Open {
    fn remove(&mut self, stream: u64) -> Option<Inlet> {
        let removed = self.inlets.remove(&stream)?;
        self.questions -= usize::from(matches!(removed, Inlet::Question(_)));
        Some(removed)
    }
}

#[derive(Debug)]
enum Inlet {
    /// Of appends. Has room for a whole window and for the error that ends the stream: never full.
    Appends(mpsc::Sender<Result<AppendResponse>>),
    /// Of a question, whether somebody waits or not.
    Question(oneshot::Sender<Result<u64>>),
}

impl Inlet {
    /// The last that comes.
    fn fail(self, error: Error) {
        // Cannot be full, see there; gone if nobody waits.
        match self {
            Inlet::Appends(inlet) => drop(inlet.try_send(Err(error))),
            Inlet::Question(inlet) => drop(inlet.send(Err(error))),
        }
    }
}

impl Default for Inlets {
    fn default() -> Inlets {
        Inlets(Mutex::new(Ok(Open::default())))
    }
}

impl Inlets {
    fn lock(&self) -> MutexGuard<'_, Result<Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, stream: u64) -> Result<mpsc::Receiver<Result<AppendResponse>>> {
        let (inlet, answers) = mpsc::channel(APPENDS_IN_FLIGHT_MAX + 1);
        let mut open = self.lock();
        let open = open.as_mut().map_err(|error| error.clone())?;
        open.inlets.insert(stream, Inlet::Appends(inlet));
        Ok(answers)
    }

    fn open_question(&self, stream: u64) -> Result<oneshot::Receiver<Result<u64>>> {
        let (inlet, answer) = oneshot::channel();
        let mut open = self.lock();
        let open = open.as_mut().map_err(|error| error.clone())?;
        if open.questions >= QUESTIONS_WAITING_MAX {
            return Err(Error::Overloaded {
                queue: "questions without an answer".to_owned(),
                retry_after: Duration::from_millis(20),
            });
        }
        open.questions += 1;
        open.inlets.insert(stream, Inlet::Question(inlet));
        Ok(answer)
    }

    fn remove(&self, stream: u64) -> Option<Inlet> {
        self.lock().as_mut().ok()?.remove(stream)
    }

    fn break_with(&self, error: Error) {
        let open = std::mem::replace(&mut *self.lock(), Err(error.clone()));
        for inlet in open.into_iter().flat_map(|open| open.inlets.into_values()) {
            inlet.fail(error.clone());
        }
    }

    fn dispatch(&self, frame: v1::AppendFrame) {
        let end = match frame.body {
            Some(Body::Response(answer)) => match transport::appended_of(answer) {
                Ok(answer) => return self.answer(frame.stream, answer),
                Err(error) => Some(error),
            },
            Some(Body::Term(term)) => return self.answer_question(frame.stream, term),
            Some(Body::End(_)) => None,
            Some(Body::Failed(detail)) => Some(status::from_detail_bytes(detail)),
            Some(
                Body::Open(_)
                | Body::Request(_)
                | Body::Cancel(_)
                | Body::Beat(_)
                | Body::Question(_),
            )
            | None => Some(Error::invalid(
                "frame",
                "it is none for the sending end of a stream",
            )),
        };
        if let (Some(inlet), Some(error)) = (self.remove(frame.stream), end) {
            inlet.fail(error);
        }
    }

    fn answer(&self, stream: u64, answer: AppendResponse) {
        let mut open = self.lock();
        let Ok(open) = &mut *open else { return };
        let complaint = match open.inlets.get(&stream) {
            // It was given up: its last answers may still come.
            None => return,
            Some(Inlet::Appends(inlet)) if inlet.capacity() > 1 => {
                let _ = inlet.try_send(Ok(answer));
                return;
            }
            Some(Inlet::Appends(_)) => "there are more answers than requests",
            Some(Inlet::Question(_)) => "it answers no question",
        };
        if let Some(inlet) = open.remove(stream) {
            inlet.fail(Error::invalid("frame", complaint));
        }
    }

    fn answer_question(&self, stream: u64, term: u64) {
        match self.remove(stream) {
            // Gone if nobody waits.
            Some(Inlet::Question(inlet)) => drop(inlet.send(Ok(term))),
            Some(inlet @ Inlet::Appends(_)) => {
                inlet.fail(Error::invalid("frame", "it answers no append"));
            }
            None => {}
        }
    }
}

/// Takes frames from the network to the streams, until it breaks.
struct Reader {
    answers: Streaming<v1::AppendResponse>,
    inlets: Arc<Inlets>,
    outbox: Arc<Outbox>,
    lane: Arc<Lane>,
    connection: Connection,
    what: Arc<str>,
    /// What the receiver's disk has; said beside the answers.
    room: Arc<Mutex<Option<Room>>>,
}

impl Reader {
    async fn run(mut self) {
        let error = loop {
            match self.answers.message().await {
                Ok(Some(message)) => {
                    self.hear(transport::room_of(message.room));
                    message
                        .frames
                        .into_iter()
                        .for_each(|frame| self.inlets.dispatch(frame));
                }
                Ok(None) => {
                    break Error::unavailable(&self.what, "it has closed the append stream");
                }
                Err(status) => {
                    self.lane.check(&self.connection, &status);
                    break asked(&self.what).failed(&status);
                }
            }
        };
        tracing::debug!(peer = %self.what, %error, "append stream broke");
        self.hear(None);
        self.inlets.break_with(error);
        self.outbox.close();
    }

    fn hear(&self, room: Option<Room>) {
        *self.room.lock().unwrap_or_else(PoisonError::into_inner) = room;
    }
}

/// The answers to `requests`, sent over the carrier that `opening` gives.
pub fn appends(
    opening: impl Future<Output = Result<Arc<Carrier>>> + Send + 'static,
    route: Route,
    requests: BoxStream<'static, AppendRequest>,
) -> BoxStream<'static, Result<AppendResponse>> {
    let opened = async move {
        match opening
            .await
            .and_then(|carrier| Appends::open(carrier, route, requests))
        {
            Ok(appends) => appends.left_stream(),
            Err(error) => stream::once(async { Err(error) }).right_stream(),
        }
    };
    opened.flatten_stream().boxed()
}

/// One stream. Polling it takes requests, sends them, and gives answers. Dropping it tells the receiver.
struct Appends {
    carrier: Arc<Carrier>,
    number: u64,
    requests: Fuse<BoxStream<'static, AppendRequest>>,
    requests_ended: bool,
    answers: mpsc::Receiver<Result<AppendResponse>>,
    /// Bytes of each request that was taken and whose answer nobody has polled yet.
    in_flight: VecDeque<usize>,
    bytes_in_flight: usize,
    over: bool,
}

impl Appends {
    fn open(
        carrier: Arc<Carrier>,
        route: Route,
        requests: BoxStream<'static, AppendRequest>,
    ) -> Result<Appends> {
        let number = carrier.numbers.fetch_add(1, Ordering::Relaxed);
        let answers = carrier.inlets.open(number)?;
        carrier.push(number, Body::Open(transport::route_out(route)));
        Ok(Appends {
            carrier,
            number,
            requests: requests.fuse(),
            requests_ended: false,
            answers,
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            over: false,
        })
    }

    /// Sends what the window and the network have room for.
    fn send(&mut self, context: &mut Context<'_>) -> Result<()> {
        while !self.requests_ended && self.has_room() {
            if self.carrier.outbox.poll_room(context).is_pending() {
                return Ok(());
            }
            match self.requests.poll_next_unpin(context) {
                Poll::Pending => return Ok(()),
                Poll::Ready(None) => {
                    self.requests_ended = true;
                    self.carrier.push(self.number, Body::End(End {}));
                }
                Poll::Ready(Some(request)) => {
                    let entries = transport::append_out(request);
                    let bytes = entries.encoded_len();
                    if !self.carrier.push(self.number, Body::Request(entries)) {
                        return Err(Error::invalid("entries", "too large for one append"));
                    }
                    self.in_flight.push_back(bytes);
                    self.bytes_in_flight += bytes;
                }
            }
        }
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.in_flight.len() < APPENDS_IN_FLIGHT_MAX && self.bytes_in_flight < BYTES_IN_FLIGHT_MAX
    }

    fn answered(&mut self) {
        self.bytes_in_flight -= self.in_flight.pop_front().unwrap_or_default();
    }
}

impl Stream for Appends {
    type Item = Result<AppendResponse>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Err(error) = self.send(context) {
            self.end();
            return Poll::Ready(Some(Err(error)));
        }
        match self.answers.poll_recv(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Some(Ok(answer))) => {
                self.answered();
                Poll::Ready(Some(Ok(answer)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.end();
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(None) => {
                self.over = true;
                Poll::Ready(None)
            }
        }
    }
}

impl Appends {
    fn end(&mut self) {
        self.over = true;
        if self.carrier.inlets.remove(self.number).is_some() {
            self.carrier.push(self.number, Body::Cancel(Cancel {}));
        }
    }
}

impl Drop for Appends {
    fn drop(&mut self) {
        self.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(stream: u64, body: Body) -> v1::AppendFrame {
        let body = Some(body);
        v1::AppendFrame { stream, body }
    }

    fn appended() -> Body {
        Body::Response(transport::appended_out(AppendResponse::Matched(None)))
    }

    #[test]
    fn a_question_counts_until_its_answer_comes_whether_somebody_waits_or_not() {
        let inlets = Inlets::default();
        let most = QUESTIONS_WAITING_MAX as u64;
        (1..most).for_each(|stream| drop(inlets.open_question(stream).unwrap()));
        let mut last = inlets.open_question(most).unwrap();
        let refused = inlets.open_question(most + 1).unwrap_err();
        assert!(matches!(refused, Error::Overloaded { .. }), "{refused:?}");
        inlets.dispatch(frame(1, Body::Term(7)));
        inlets.dispatch(frame(2, Body::Failed(Default::default())));
        for stream in [most + 1, most + 2] {
            inlets.open_question(stream).unwrap();
        }
        inlets.open_question(most + 3).unwrap_err();
        inlets.dispatch(frame(most, Body::Term(9)));
        assert_eq!(last.try_recv().unwrap(), Ok(9));
        // Once more, and of a stream that never was: nobody is there.
        inlets.dispatch(frame(most, Body::Term(10)));
        inlets.dispatch(frame(5 * most, Body::Term(10)));
        inlets.break_with(Error::unavailable("n2", "it broke"));
        inlets.open_question(most + 4).unwrap_err();
    }

    #[test]
    fn an_answer_of_another_kind_than_was_asked_for_ends_the_stream() {
        let inlets = Inlets::default();
        let mut appends = inlets.open(1).unwrap();
        let mut question = inlets.open_question(2).unwrap();
        inlets.dispatch(frame(1, Body::Term(7)));
        inlets.dispatch(frame(2, appended()));
        assert!(matches!(appends.try_recv(), Ok(Err(Error::Invalid { .. }))));
        assert!(matches!(
            question.try_recv(),
            Ok(Err(Error::Invalid { .. }))
        ));
        assert_eq!(inlets.lock().as_ref().unwrap().questions, 0);
    }
}
