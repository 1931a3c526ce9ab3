//! Clients that mean ill, against the real program: whatever they send to whichever port, the node lives,
//! serves an honest client meanwhile, holds no more memory and file handles than its bounds say, and gives
//! them back.
//!
//! | attack | the bound that holds it |
//! |---|---|
//! | messages begun and not ended, whole and not ended | `inflow::BYTES_MAX` |
//! | readers that take nothing | `SCANS_OPEN_MAX`, times a portion and what the library buffers |
//! | connections without a word | as many as a door takes, each with two handles |
//! | bytes that are no protocol, floods of frames | what one connection may hold |
//! | ids, names and lengths that do not exist | the checks at the door |

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use bytes::BytesMut;
use h2::RecvStream;
use h2::SendStream;
use h2::client;
use h2::client::ResponseFuture;
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use quorate::env::handles;
use quorate::server::grpc::SCANS_OPEN_MAX;
use quorate::server::grpc::inflow;
use quorate::wire::proto::v1;
use quorate::wire::proto::v1::kv_client::KvClient;
use quorate::wire::proto::v1::transport_client::TransportClient;
use support::Rig;
use tokio::io::AsyncRead;
use tokio::io::AsyncReadExt as _;
use tokio::io::AsyncWrite;
use tokio::io::AsyncWriteExt as _;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

const MIB: usize = 1024 * 1024;
/// What a node needs beside what the attack makes it hold: buffers of sockets and of the allocator.
const SLACK: usize = 96 * MIB;
/// An honest call is answered within this, on a machine that is busy with the attack.
const HONEST: Duration = Duration::from_secs(10);
/// What ended is given back within this: the longest time limit of a door, and some.
const GIVEN_BACK: Duration = Duration::from_secs(45);

const PUT: &str = "/quorate.v1.Kv/Put";
const SCAN: &str = "/quorate.v1.Kv/Scan";

/// A node of its own cluster, and an honest client that has been there before the others came.
struct Victim {
    rig: Rig,
    honest: KvClient<Channel>,
    pid: u32,
    /// With these another node speaks to it; who has listened knows them.
    headers: Headers,
    memory: usize,
    handles: usize,
}

type Headers = Vec<(&'static str, String)>;

impl Victim {
    async fn start() -> Victim {
        handles::raise();
        let mut rig = Rig::start_of(1, &[]).await;
        let address = format!("http://{}", rig.processes.client_address(0));
        let pid = rig.processes.pid(0).unwrap();
        let status = rig.ready(&[0]).await.remove(0);
        let headers = vec![
            ("quorate-cluster", status.cluster.to_string()),
            ("quorate-to", status.member.id.0.to_string()),
            ("quorate-incarnation", status.member.incarnation.to_string()),
            ("quorate-from", "1".to_owned()),
        ];
        let mut victim = Victim {
            honest: KvClient::connect(address).await.unwrap(),
            rig,
            pid,
            headers,
            memory: 0,
            handles: 0,
        };
        victim.serves("at first").await;
        victim.memory = victim.resident();
        victim.handles = victim.open_handles();
        victim
    }

    fn clients(&self) -> String {
        self.rig.processes.client_address(0)
    }

    fn nodes(&self) -> String {
        self.rig.processes.node_address(0)
    }

    /// A write and a read through the honest client.
    async fn serves(&mut self, when: &str) {
        let (key, value) = (Bytes::from_static(b"honest"), Bytes::from(when.to_owned()));
        let put = v1::PutRequest {
            key: key.clone(),
            value: value.clone(),
            ..Default::default()
        };
        let put = timeout(HONEST, self.honest.put(put)).await;
        put.unwrap_or_else(|_| panic!("no write {when}")).unwrap();
        let get = v1::GetRequest {
            key,
            ..Default::default()
        };
        let got = timeout(HONEST, self.honest.get(get)).await;
        let got = got.unwrap_or_else(|_| panic!("no read {when}")).unwrap();
        assert_eq!(got.into_inner().found.unwrap().value, value, "{when}");
    }

    /// Whether a write is done; else it is refused with the word that it may come again.
    async fn answers(&mut self, when: &str) -> bool {
        let put = v1::PutRequest {
            key: Bytes::from_static(b"honest"),
            ..Default::default()
        };
        let put = timeout(HONEST, self.honest.put(put)).await;
        let put = put.unwrap_or_else(|_| panic!("no answer {when}"));
        let Err(refused) = put else {
            return true;
        };
        assert_eq!(refused.code(), Code::ResourceExhausted, "{when}: {refused}");
        false
    }

    fn status(&self, field: &str) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.expect("the node is dead");
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        let kib = line.split_whitespace().nth(1).unwrap();
        kib.parse::<usize>().unwrap() * 1024
    }

    fn resident(&self) -> usize {
        self.status("VmRSS:")
    }

    fn open_handles(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid))
            .expect("the node is dead")
            .count()
    }

    /// Asserts that the node has never held more than it had before and `bound` beside it.
    fn held_at_most(&self, bound: usize, during: &str) {
        let peak = self.status("VmHWM:");
        let grown = peak.saturating_sub(self.memory);
        println!(
            "{during}: {} MiB before, {} MiB more at the most, bound {} MiB",
            self.memory / MIB,
            grown / MIB,
            (bound + SLACK) / MIB
        );
        assert!(grown <= bound + SLACK, "{during}: {grown} bytes more");
    }

    /// When the attack is over: all handles come back, nothing has panicked, and it serves.
    async fn recovers(&mut self, after: &str) {
        let begun = Instant::now();
        while self.open_handles() > self.handles + 8 {
            let open = self.open_handles();
            assert!(begun.elapsed() < GIVEN_BACK, "{after}: {open} handles");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // The calls of a connection end a moment after its socket.
        while !self.answers(after).await {
            assert!(begun.elapsed() < GIVEN_BACK, "{after}: no room came back");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        self.serves(after).await;
        let log = fs::read_to_string(self.rig.processes.data(0).with_extension("log")).unwrap();
        let panic = log.lines().find(|line| line.contains("panicked"));
        assert_eq!(panic, None, "{after}");
    }
}

/// A socket whose reading can be stopped, as by a peer that takes nothing.
struct Deaf {
    socket: TcpStream,
    is_deaf: Arc<AtomicBool>,
}

impl AsyncRead for Deaf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_deaf.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        Pin::new(&mut self.socket).poll_read(context, buffer)
    }
}

impl AsyncWrite for Deaf {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

/// A connection of bare HTTP/2, driven by a task that ends with it.
struct Raw {
    send: SendRequest<Bytes>,
    pings: h2::PingPong,
    address: String,
    /// Sent with every call.
    headers: Headers,
    is_deaf: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Raw {
    async fn connect(address: &str) -> Raw {
        let is_deaf = Arc::new(AtomicBool::new(false));
        let socket = Deaf {
            socket: TcpStream::connect(address).await.unwrap(),
            is_deaf: is_deaf.clone(),
        };
        let (send, mut connection) = client::Builder::new()
            .initial_window_size(1 << 30)
            .initial_connection_window_size(1 << 30)
            .handshake::<_, Bytes>(socket)
            .await
            .unwrap();
        let pings = connection.ping_pong().unwrap();
        let task = tokio::spawn(async move {
            let _ = connection.await;
        });
        Raw {
            send,
            pings,
            address: address.to_owned(),
            headers: Headers::new(),
            is_deaf,
            task,
        }
    }

    /// Whether all that was sent has arrived: the answer to a ping comes behind it.
    async fn is_heard(&mut self) {
        let pong = self.pings.ping(h2::Ping::opaque());
        timeout(HONEST, pong).await.unwrap().unwrap();
    }

    /// A call that has begun.
    async fn call(&mut self, path: &str) -> (ResponseFuture, SendStream<Bytes>) {
        let mut request = Request::post(format!("http://{}{path}", self.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(()).unwrap();
        self.send = self.send.clone().ready().await.unwrap();
        self.send.send_request(request, false).unwrap()
    }
}

/// A message in gRPC's frame.
fn framed(declared: usize, content: &[u8]) -> Bytes {
    let mut frame = BytesMut::from(&[0][..]);
    frame.extend_from_slice(&u32::try_from(declared).unwrap().to_be_bytes());
    frame.extend_from_slice(content);
    frame.freeze()
}

/// The status with which a call ended, from its headers or trailers.
async fn status_of(response: ResponseFuture) -> Result<i32, String> {
    let response = timeout(HONEST, response).await;
    let response = response.map_err(|_| "no answer".to_owned())?;
    let response = response.map_err(|error| error.to_string())?;
    let number = |headers: &http::HeaderMap| {
        let status = headers.get("grpc-status")?;
        status.to_str().ok()?.parse::<i32>().ok()
    };
    if let Some(status) = number(response.headers()) {
        return Ok(status);
    }
    let mut body: RecvStream = response.into_body();
    while let Some(data) = body.data().await {
        let data = data.map_err(|error| error.to_string())?;
        let _ = body.flow_control().release_capacity(data.len());
    }
    let trailers = body.trailers().await.map_err(|error| error.to_string())?;
    let status = trailers.as_ref().and_then(number);
    status.ok_or_else(|| "an answer without a status".to_owned())
}

fn put_of(value: usize) -> Vec<u8> {
    let put = v1::PutRequest {
        key: Bytes::from_static(b"half"),
        value: vec![7; value].into(),
        ..Default::default()
    };
    put.encode_to_vec()
}

/// Calls whose request never ends: each has said how long it is, and has sent a MiB of it.
async fn left_half(
    (address, headers): (&str, &Headers),
    path: &str,
    declared: usize,
    content: &[u8],
) -> Vec<Raw> {
    let content = framed(declared, content);
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut raw = Raw::connect(address).await;
        raw.headers = headers.clone();
        for _ in 0..150 {
            let (response, mut body) = raw.call(path).await;
            // As fast as the windows let it; what is refused is refused.
            let _ = body.send_data(content.clone(), false);
            tokio::spawn(async move {
                let _keep = body;
                let _ = response.await;
                std::future::pending::<()>().await;
            });
        }
        connections.push(raw);
    }
    connections
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_do_not_end_take_no_more_than_the_room_for_all() {
    let mut victim = Victim::start().await;
    let half = vec![7; MIB];
    let whole = put_of(MIB - 64);
    for (what, address, path, declared, content) in [
        ("half messages", victim.clients(), PUT, 8 * MIB, &half),
        ("whole messages", victim.clients(), PUT, whole.len(), &whole),
        (
            "half frames of a log",
            victim.nodes(),
            "/quorate.v1.Transport/Append",
            8 * MIB,
            &half,
        ),
    ] {
        let to = (&address[..], &victim.headers.clone());
        let attackers = left_half(to, path, declared, content).await;
        victim.answers(what).await;
        // Nothing tells that the last bytes have arrived: what they may cost is looked at for a while.
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            victim.answers(what).await;
        }
        victim.held_at_most(inflow::BYTES_MAX, what);
        drop(attackers);
        victim.recovers(what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_no_room_is_told_so_and_may_come_again() {
    let mut victim = Victim::start().await;
    let mut raw = Raw::connect(&victim.clients()).await;
    let mut open = Vec::new();
    let mut refused = Vec::new();
    let declared = 8 * MIB;
    let room_for = inflow::BYTES_MAX / declared;
    for number in 0..room_for + 3 {
        let (response, mut body) = raw.call(PUT).await;
        body.send_data(framed(declared, b"x"), false).unwrap();
        if number < room_for {
            open.push((response, body));
            // Each has its place before the next one asks.
            raw.is_heard().await;
        } else {
            refused.push(status_of(response).await);
        }
    }
    let exhausted = Ok(Code::ResourceExhausted as i32);
    assert_eq!(refused, [exhausted.clone(), exhausted.clone(), exhausted]);
    drop(open);
    drop(raw);
    victim.recovers("a full door").await;
    // A length that nobody takes is no matter of room.
    let mut raw = Raw::connect(&victim.clients()).await;
    for declared in [9 * MIB, u32::MAX as usize] {
        let (response, mut body) = raw.call(PUT).await;
        body.send_data(framed(declared, b"x"), false).unwrap();
        assert_eq!(status_of(response).await, Ok(Code::OutOfRange as i32));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_take_nothing_hold_no_more_than_the_scans_that_may_be_open() {
    let mut victim = Victim::start().await;
    for number in 0..32 {
        let put = v1::PutRequest {
            key: format!("big/{number:03}").into(),
            value: vec![7; MIB / 2].into(),
            ..Default::default()
        };
        victim.honest.put(put).await.unwrap();
    }
    victim.memory = victim.resident();
    let scan = framed(0, &[]);
    let mut attackers = Vec::new();
    for _ in 0..2 {
        let mut raw = Raw::connect(&victim.clients()).await;
        let mut answers = Vec::new();
        for _ in 0..500 {
            let (response, mut body) = raw.call(SCAN).await;
            body.send_data(scan.clone(), true).unwrap();
            answers.push(response);
        }
        raw.is_deaf.store(true, Ordering::Relaxed);
        attackers.push((raw, answers));
    }
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        victim.serves("deaf readers").await;
    }
    // A portion with its encoding, and what the library takes of a stream before it waits.
    victim.held_at_most(SCANS_OPEN_MAX * (2 * MIB + MIB / 2), "deaf readers");
    drop(attackers);
    victim.recovers("deaf readers").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_are_bounded_and_end() {
    let mut victim = Victim::start().await;
    let mut silent = Vec::new();
    for (address, count) in [
        (victim.clients(), 1_500),
        (victim.nodes(), 1_500),
        (victim.rig.processes.http_address(0), 200),
    ] {
        for number in 0..count {
            let mut socket = TcpStream::connect(&address).await.unwrap();
            if number % 2 == 1 {
                let _ = socket.write_all(b"PRI * HT").await;
            }
            silent.push(socket);
        }
    }
    victim.serves("silent connections").await;
    let open = victim.open_handles();
    let bound = victim.handles + 2 * (1_024 + 1_024) + 64 + 16;
    println!("silent connections: {open} handles, bound {bound}");
    assert!(open <= bound, "{open}");
    victim.held_at_most(0, "silent connections");
    // They are still open at this end: it is the node that has given up.
    victim.recovers("silent connections").await;
    drop(silent);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_protocol_harm_nobody() {
    let mut victim = Victim::start().await;
    let http = victim.rig.processes.http_address(0);
    let preface: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let started = [preface, settings].concat();
    let noise: Vec<u8> = (0..256 * 1024u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let ping = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[1; 8]].concat();
    // Headers that continue and never end, each frame as long as may be.
    let mut endless = vec![0, 0x40, 0, 1, 0, 0, 0, 0, 1];
    endless.resize(9 + 16_384, 0x40);
    let mut more = vec![0, 0x40, 0, 9, 0, 0, 0, 0, 1];
    more.resize(9 + 16_384, 0x40);
    let attacks: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise.clone()),
        ("zeros", vec![0; 256 * 1024]),
        (
            "TLS",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        ),
        ("HTTP/1", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec()),
        ("noise after the preface", [&started[..], &noise].concat()),
        (
            "a frame of 16 MiB",
            [&started[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
        ),
        ("settings", [preface, &settings.repeat(50_000)].concat()),
        ("pings", [&started[..], &ping.repeat(50_000)].concat()),
        (
            "endless headers",
            [&started[..], &endless, &more.repeat(200)].concat(),
        ),
        (
            "a long line",
            [&b"GET /"[..], &b"a".repeat(4 * MIB)].concat(),
        ),
        (
            "huge headers",
            [
                &b"GET /livez HTTP/1.1\r\n"[..],
                &b"X-A: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n".repeat(100_000),
            ]
            .concat(),
        ),
        (
            "a body of any length",
            [
                &b"POST /livez HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n"[..],
                &noise,
            ]
            .concat(),
        ),
    ];
    for (what, bytes) in &attacks {
        for address in [victim.clients(), victim.nodes(), http.clone()] {
            for _ in 0..3 {
                throw(&address, bytes).await;
            }
        }
        victim.serves(what).await;
    }
    victim.held_at_most(0, "no protocol");
    assert!(get(&http, "/livez").await.ends_with("ok\n"));
    victim.recovers("no protocol").await;
}

/// Sends what is taken of it, and reads a little of what comes back.
async fn throw(address: &str, bytes: &[u8]) {
    let Ok(mut socket) = TcpStream::connect(address).await else {
        return;
    };
    let _ = timeout(Duration::from_secs(2), socket.write_all(bytes)).await;
    let mut answer = [0; 1024];
    let _ = timeout(Duration::from_millis(100), socket.read(&mut answer)).await;
}

async fn get(address: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_opened_and_reset_at_once_are_not_kept() {
    let mut victim = Victim::start().await;
    for _ in 0..20 {
        let mut raw = Raw::connect(&victim.clients()).await;
        for _ in 0..500 {
            let request = Request::post(format!("http://{}{PUT}", raw.address)).body(());
            let Ok(ready) = raw.send.clone().ready().await else {
                break;
            };
            raw.send = ready;
            let Ok((_response, mut body)) = raw.send.send_request(request.unwrap(), false) else {
                break;
            };
            body.send_reset(h2::Reason::CANCEL);
        }
    }
    victim.serves("resets").await;
    victim.held_at_most(0, "resets");
    victim.recovers("resets").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_empty_fields_are_refused_before_they_take_memory() {
    let mut victim = Victim::start().await;
    let mut raw = Raw::connect(&victim.clients()).await;
    // Four million operations that say nothing.
    let fields = [0x12, 0].repeat(4 * MIB - 64);
    let message = framed(fields.len(), &fields);
    let mut answers = Vec::new();
    for _ in 0..8 {
        let (response, mut body) = raw.call("/quorate.v1.Kv/Write").await;
        body.send_data(message.clone(), true).unwrap();
        answers.push(response);
    }
    for answer in answers {
        assert_eq!(status_of(answer).await, Ok(Code::InvalidArgument as i32));
    }
    victim.held_at_most(8 * message.len(), "empty fields");
    drop(raw);
    victim.recovers("empty fields").await;
}

async fn code<T>(call: impl Future<Output = Result<T, tonic::Status>>) -> Code {
    let ended = timeout(HONEST, call).await.expect("it is answered");
    ended.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_do_not_exist_are_refused_by_name() {
    let mut victim = Victim::start().await;
    let put = |change: fn(&mut v1::PutRequest)| {
        let mut put = v1::PutRequest {
            key: Bytes::from_static(b"k"),
            ..Default::default()
        };
        change(&mut put);
        put
    };
    let mut kv = victim.honest.clone();
    for (request, expected) in [
        (
            put(|put| put.request_id = vec![0; 16].into()),
            Code::InvalidArgument,
        ),
        (
            put(|put| put.request_id = vec![0xff; 16].into()),
            Code::InvalidArgument,
        ),
        (
            put(|put| put.request_id = vec![7; 15].into()),
            Code::InvalidArgument,
        ),
        (
            put(|put| put.request_id = vec![7; 4_000_000].into()),
            Code::InvalidArgument,
        ),
        (
            put(|put| put.cluster_id = vec![9; 16].into()),
            Code::FailedPrecondition,
        ),
        (
            put(|put| put.cluster_id = vec![9; 3].into()),
            Code::InvalidArgument,
        ),
        (put(|put| put.key = Bytes::new()), Code::InvalidArgument),
        (
            put(|put| put.key = vec![7; 2_049].into()),
            Code::InvalidArgument,
        ),
        (
            put(|put| put.value = vec![7; MIB + 1].into()),
            Code::InvalidArgument,
        ),
    ] {
        assert_eq!(code(kv.put(request)).await, expected);
    }
    let node = format!("http://{}", victim.nodes());
    let mut transport = TransportClient::connect(node).await.unwrap();
    // Whoever does not say for whom it is, or names another, has no business here.
    for headers in [
        vec![],
        vec![("quorate-cluster", "0".repeat(32))],
        vec![
            ("quorate-cluster", "z".repeat(32)),
            ("quorate-to", "1".to_owned()),
        ],
        vec![
            ("quorate-cluster", "f".repeat(32)),
            ("quorate-to", u64::MAX.to_string()),
            ("quorate-incarnation", "0".repeat(32)),
            ("quorate-from", "0".to_owned()),
        ],
        vec![("quorate-from", "9".repeat(4_000))],
    ] {
        let mut request = tonic::Request::new(v1::ReadPositionRequest { group: u64::MAX });
        for (name, value) in headers {
            request.metadata_mut().insert(name, value.parse().unwrap());
        }
        let refused = code(transport.read_position(request)).await;
        let known = [Code::InvalidArgument, Code::FailedPrecondition];
        assert!(known.contains(&refused), "{refused:?}");
    }
    // A formed node is asked to form and to be joined, again and again, by nobody.
    for _ in 0..200 {
        let form = v1::FormRequest {
            token: "another".repeat(100),
            list: vec![1; 16].into(),
            confirmed: vec![2; 16].into(),
            ..Default::default()
        };
        code(transport.form(form)).await;
        code(transport.join(v1::JoinRequest::default())).await;
    }
    victim.held_at_most(0, "names that do not exist");
    victim.recovers("names that do not exist").await;
}
