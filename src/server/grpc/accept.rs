//! Accepted connections: without delay for small messages, no more than a door can bear, and known, so that
//! they can be cut off.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::io::IoSlice;
use std::net::Shutdown;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::task::Context;
use std::task::Poll;
use std::time::Duration;

use futures::Stream;
use futures::stream;
use tokio::io::AsyncRead;
use tokio::io::AsyncWrite;
use tokio::io::ReadBuf;
use tokio::net::TcpListener;
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// No file handle may be free for a while; asking again at once would only burn the processor.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// What a connection begins with, in bytes; who has not sent it has nothing to ask. The library asks
/// whether somebody is still there only after it.
const PREFACE_BYTES: usize = 24;
/// The time for that.
const PREFACE_MAX: Duration = Duration::from_secs(10);

/// The open connections of a door. Each holds a second handle of its socket.
#[derive(Debug, Clone)]
pub struct Sockets(Arc<Mutex<Open>>);

#[derive(Debug)]
struct Open {
    /// Full: who comes is closed at once.
    max: usize,
    made: u64,
    cut_off: bool,
    handles: HashMap<u64, std::net::TcpStream>,
}

impl Sockets {
    /// None yet, and never more than `max`.
    pub fn with_limit(max: usize) -> Sockets {
        let handles = HashMap::new();
        Sockets(Arc::new(Mutex::new(Open {
            max,
            made: 0,
            cut_off: false,
            handles,
        })))
    }

    /// Ends every connection, now.
    pub fn cut_off(&self) {
        let mut open = self.lock();
        open.cut_off = true;
        for handle in open.handles.values() {
            // It may have ended by itself.
            let _ = handle.shutdown(Shutdown::Both);
        }
    }

    fn take(&self, socket: TcpStream) -> io::Result<Accepted> {
        if self.lock().is_full() {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        // Nagle's algorithm and delayed acknowledgements together hold small messages for 40 ms.
        socket.set_nodelay(true)?;
        let socket = socket.into_std()?;
        let handle = socket.try_clone()?;
        let socket = TcpStream::from_std(socket)?;
        let mut open = self.lock();
        if open.cut_off || open.is_full() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        open.made += 1;
        let number = open.made;
        open.handles.insert(number, handle);
        drop(open);
        Ok(Accepted {
            socket,
            number,
            sockets: self.clone(),
            preface: Some(Preface {
                missing: PREFACE_BYTES,
                patience: Box::pin(tokio::time::sleep(PREFACE_MAX)),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn is_full(&self) -> bool {
        self.handles.len() >= self.max
    }
}

/// Connections as they come.
pub fn incoming(
    listener: TcpListener,
    sockets: Sockets,
) -> impl Stream<Item = io::Result<Accepted>> {
    stream::unfold((listener, sockets), async |(listener, sockets)| {
        let accepted = match listener.accept().await {
            Ok((socket, _address)) => sockets.take(socket),
            Err(error) => {
                tracing::warn!(%error, "accept a connection");
                tokio::time::sleep(ACCEPT_AGAIN).await;
                Err(error)
            }
        };
        Some((accepted, (listener, sockets)))
    })
}

/// One connection.
#[derive(Debug)]
pub struct Accepted {
    socket: TcpStream,
    number: u64,
    sockets: Sockets,
    /// `None` when it is there.
    preface: Option<Preface>,
}

#[derive(Debug)]
struct Preface {
    missing: usize,
    patience: Pin<Box<Sleep>>,
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.sockets.lock().handles.remove(&self.number);
    }
}

impl Connected for Accepted {
    type ConnectInfo = Option<SocketAddr>;

    fn connect_info(&self) -> Option<SocketAddr> {
        self.socket.peer_addr().ok()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(context, buffer);
        let Some(preface) = &mut self.preface else {
            return read;
        };
        let arrived = buffer.filled().len() - before;
        preface.missing = preface.missing.saturating_sub(arrived);
        if preface.missing == 0 {
            self.preface = None;
        } else if read.is_pending() && preface.patience.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        read
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn accepted_sockets_do_not_delay_and_can_be_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sockets = Sockets::with_limit(2);
        let mut incoming = Box::pin(incoming(listener, sockets.clone()));
        let mut client = TcpStream::connect(address).await.unwrap();
        let accepted = incoming.next().await.unwrap().unwrap();
        assert!(accepted.socket.nodelay().unwrap());
        sockets.cut_off();
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
        drop(accepted);
        assert!(
            sockets.lock().handles.is_empty(),
            "nothing is kept of what has ended"
        );
        let _late = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn no_more_are_taken_than_there_is_room_for_and_room_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Box::pin(incoming(listener, Sockets::with_limit(2)));
        let mut clients = Vec::new();
        let mut taken = Vec::new();
        for _ in 0..2 {
            clients.push(TcpStream::connect(address).await.unwrap());
            taken.push(incoming.next().await.unwrap().unwrap());
        }
        let mut third = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.unwrap().is_err());
        assert_eq!(third.read(&mut [0]).await.unwrap(), 0, "it is closed");
        taken.pop();
        let _fourth = TcpStream::connect(address).await.unwrap();
        assert!(incoming.next().await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut incoming = Box::pin(incoming(listener, Sockets::with_limit(2)));
        let _client = TcpStream::connect(address).await.unwrap();
        let mut silent = incoming.next().await.unwrap().unwrap();
        let error = silent.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
