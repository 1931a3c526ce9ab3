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

/// The carrier must be accepted in this time: the receiver does it without asking anyone.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// The carrier to one node: opened when first needed, and again after it broke.
#[derive(Debug, Default)]
pub struct Carriers {
    current: tokio::sync::Mutex<Option<Arc<Carrier>>>,
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
        let mut current = self.current.lock().await;
        if let Some(carrier) = &*current
            && carrier.inlets.lock().is_ok()
        {
            return Ok(carrier.clone());
        }
        *current = None;
        let room = Arc::clone(&self.room);
        let carrier = Arc::new(Carrier::open(lane, headers, what, room).await?);
        *current = Some(carrier.clone());
        Ok(carrier)
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
        self.ask(Body::Beat(beat)).await?.appended()
    }

    /// In which term a replica is: the last in which it voted or followed. Waits for no other, as a beat.
    /// Cancel-safe.
    pub async fn term(&self, route: Route) -> Result<u64> {
        let question = Body::Question(transport::route_out(route));
        match self.ask(question).await? {
            Answer::Term(term) => Ok(term),
            Answer::Appended(_) => Err(misplaced()),
        }
    }

    /// Sends a frame that has one answer.
    async fn ask(&self, question: Body) -> Result<Answer> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let mut waiting = Waiting {
            inlets: self.inlets.clone(),
            number,
            answer: self.inlets.open(number)?,
        };
        if !self.push(number, question) {
            return Err(Error::invalid("entries", "too large for one append"));
        }
        let answer = waiting.answer.recv().await;
        answer.unwrap_or_else(|| Err(Error::unavailable("the receiver", "it gave no answer")))
    }

    fn push(&self, stream: u64, body: Body) -> bool {
        let body = Some(body);
        self.outbox.push(v1::AppendFrame { stream, body })
    }
}

/// What comes back on a stream.
#[derive(Debug)]
enum Answer {
    Appended(AppendResponse),
    Term(u64),
}

impl Answer {
    fn appended(self) -> Result<AppendResponse> {
        match self {
            Answer::Appended(answer) => Ok(answer),
            Answer::Term(_) => Err(misplaced()),
        }
    }
}

fn misplaced() -> Error {
    Error::invalid("frame", "it answers something else than what was asked")
}

/// Whoever waits for the answer to a beat or a question. Dropping it forgets what was asked.
struct Waiting {
    inlets: Arc<Inlets>,
    number: u64,
    answer: mpsc::Receiver<Result<Answer>>,
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
struct Inlets(Mutex<Result<HashMap<u64, Inlet>>>);

/// Has room for a whole window and for the error that ends the stream: never full.
type Inlet = mpsc::Sender<Result<Answer>>;

impl Default for Inlets {
    fn default() -> Inlets {
        Inlets(Mutex::new(Ok(HashMap::new())))
    }
}

impl Inlets {
    fn lock(&self) -> MutexGuard<'_, Result<HashMap<u64, Inlet>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, stream: u64) -> Result<mpsc::Receiver<Result<Answer>>> {
        let (inlet, answers) = mpsc::channel(APPENDS_IN_FLIGHT_MAX + 1);
        self.lock()
            .as_mut()
            .map_err(|error| error.clone())?
            .insert(stream, inlet);
        Ok(answers)
    }

    fn remove(&self, stream: u64) -> Option<Inlet> {
        self.lock().as_mut().ok()?.remove(&stream)
    }

    fn break_with(&self, error: Error) {
        let inlets = std::mem::replace(&mut *self.lock(), Err(error.clone()));
        for inlet in inlets.into_iter().flat_map(HashMap::into_values) {
            // Cannot be full, see there; gone if nobody waits.
            let _ = inlet.try_send(Err(error.clone()));
        }
    }

    fn dispatch(&self, frame: v1::AppendFrame) {
        let end = match frame.body {
            Some(Body::Response(answer)) => match transport::appended_of(answer) {
                Ok(answer) => return self.answer(frame.stream, Answer::Appended(answer)),
                Err(error) => Some(error),
            },
            Some(Body::Term(term)) => return self.answer(frame.stream, Answer::Term(term)),
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
            let _ = inlet.try_send(Err(error));
        }
    }

    fn answer(&self, stream: u64, answer: Answer) {
        let mut inlets = self.lock();
        let Ok(inlets) = &mut *inlets else { return };
        // A stream that is not there was given up: its last answers may still come.
        let Some(inlet) = inlets.get(&stream) else {
            return;
        };
        if inlet.capacity() > 1 {
            let _ = inlet.try_send(Ok(answer));
            return;
        }
        let error = Error::invalid("frame", "there are more answers than requests");
        let _ = inlet.try_send(Err(error));
        inlets.remove(&stream);
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
    answers: mpsc::Receiver<Result<Answer>>,
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
        let answer = self.answers.poll_recv(context);
        match answer.map(|answer| answer.map(|answer| answer.and_then(Answer::appended))) {
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
