//! One connection to one address: made when it is first needed, made again after it broke, and not
//! tried in vain more often than makes sense.

use std::error::Error as StdError;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;
use tonic::transport::Endpoint;

use crate::error::Error;
use crate::error::Result;
use crate::wire::status::blames_the_connection;

/// A node that is up answers a connect at once, even when it is busy: the kernel does.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_000);
/// Shorter than an election, so that a node that is back is heard in time.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// A refused connect costs little, so that a node that starts slowly is still found quickly.
const BACKOFF_MAX: Duration = Duration::from_millis(250);
/// Bytes of one stream under way without being acknowledged: a large append at once.
pub const STREAM_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Bytes of one connection under way without being acknowledged.
pub const CONNECTION_WINDOW_BYTES: u32 = 32 * 1024 * 1024;
/// Largest message between nodes and from a node to a client: a message of frames with one of the
/// largest size fits.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// How closely a connection is watched: a peer that is silent is asked whether it is there, and is dead when
/// it does not say so. It says so while its requests take their time, so that slow is not taken for dead.
#[derive(Debug, Clone, Copy)]
pub struct Watch {
    /// After so much silence it is asked.
    interval: Duration,
    /// So long it may take to answer.
    timeout: Duration,
    /// Whether it is asked while nobody waits for it.
    idle: bool,
}

impl Watch {
    /// Between nodes. The timeout is longer than a busy node needs: what breaks here are the streams of all
    /// groups, and whether the other is alive Raft finds out sooner.
    pub const NODE: Watch = Watch {
        interval: Duration::from_millis(1_000),
        timeout: Duration::from_millis(2_000),
        idle: true,
    };
    /// The same, for connections that are mostly not used.
    pub const QUIET: Watch = Watch {
        idle: false,
        ..Watch::NODE
    };
    /// From a client to a node. A client that waits for a node which stands still waits for nothing, however
    /// soon the others elect another leader; and asking another node, under the same id, does no harm.
    pub const CLIENT: Watch = Watch {
        interval: Duration::from_millis(250),
        timeout: Duration::from_millis(500),
        idle: false,
    };
}

/// A connection that is made when needed.
#[derive(Debug)]
pub struct Lane {
    endpoint: Result<Endpoint>,
    what: String,
    state: Mutex<State>,
    // Held while connecting: whoever comes meanwhile waits for the same attempt.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    connection: Option<Connection>,
    made: u64,
    refusal: Option<Refusal>,
}

/// A connection that was made. It may have broken since.
#[derive(Debug, Clone)]
pub struct Connection {
    /// For calls.
    pub channel: Channel,
    number: u64,
}

#[derive(Debug)]
struct Refusal {
    until: Instant,
    backoff: Duration,
    reason: String,
}

impl Lane {
    /// A lane to `host:port`. `what` names it in errors.
    pub fn new(address: &str, what: &str, watch: Watch) -> Lane {
        Lane {
            endpoint: endpoint(address, watch),
            what: what.to_owned(),
            state: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
        }
    }

    /// The connection, made now if need be. An error means that nothing was sent. Cancel-safe: an
    /// attempt that is given up is begun again by the next caller.
    pub async fn connection(&self) -> Result<Connection> {
        if let Some(connection) = self.current()? {
            return Ok(connection);
        }
        let _connecting = self.connecting.lock().await;
        if let Some(connection) = self.current()? {
            return Ok(connection);
        }
        let endpoint = self.endpoint.as_ref().map_err(Clone::clone)?;
        match endpoint.connect().await {
            Ok(channel) => Ok(self.made(channel)),
            Err(error) => Err(self.refused(sentence(&error))),
        }
    }

    /// Whether a failed call was the connection's fault: then the next call makes another one.
    pub fn check(&self, connection: &Connection, status: &Status) {
        if blames_the_connection(status) {
            self.broken(connection);
        }
    }

    /// The connection has broken; the next call makes another one.
    pub fn broken(&self, connection: &Connection) {
        let mut state = self.lock();
        if state
            .connection
            .as_ref()
            .is_some_and(|current| current.number == connection.number)
        {
            state.connection = None;
        }
    }

    fn current(&self) -> Result<Option<Connection>> {
        let state = self.lock();
        if let Some(connection) = &state.connection {
            return Ok(Some(connection.clone()));
        }
        let Some(refusal) = &state.refusal else {
            return Ok(None);
        };
        let wait = refusal.until.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            return Ok(None);
        }
        Err(self.unavailable(&refusal.reason, wait))
    }

    fn made(&self, channel: Channel) -> Connection {
        let mut state = self.lock();
        state.refusal = None;
        state.made += 1;
        let number = state.made;
        let connection = Connection { channel, number };
        state.connection = Some(connection.clone());
        connection
    }

    fn refused(&self, reason: String) -> Error {
        let mut state = self.lock();
        let backoff = state
            .refusal
            .as_ref()
            .map_or(BACKOFF_MIN, |last| BACKOFF_MAX.min(last.backoff * 2));
        let error = self.unavailable(&reason, backoff);
        let until = Instant::now() + backoff;
        state.refusal = Some(Refusal {
            until,
            backoff,
            reason,
        });
        error
    }

    fn unavailable(&self, reason: &str, retry_after: Duration) -> Error {
        Error::Unavailable {
            what: self.what.clone(),
            reason: reason.to_owned(),
            retry_after,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn endpoint(address: &str, watch: Watch) -> Result<Endpoint> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| {
        Error::invalid(
            "address",
            format!("{address:?} is not host:port: {}", sentence(&error)),
        )
    })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(watch.interval)
        .keep_alive_timeout(watch.timeout)
        .keep_alive_while_idle(watch.idle)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES))
}

/// An error with its causes.
pub fn sentence(error: &dyn StdError) -> String {
    let mut sentence = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !sentence.ends_with(&text) {
            sentence = format!("{sentence}: {text}");
        }
        cause = error.source();
    }
    sentence
}
