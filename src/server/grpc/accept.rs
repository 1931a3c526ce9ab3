//! Accepted connections: without delay for small messages, and known, so that they can be cut off.

use std::collections::HashMap;
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
use tonic::transport::server::Connected;

/// No file handle may be free for a while; asking again at once would only burn the processor.
const ACCEPT_AGAIN: Duration = Duration::from_millis(50);

/// The open connections of a door. Each holds a second handle of its socket.
#[derive(Debug, Clone, Default)]
pub struct Sockets(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    made: u64,
    cut_off: bool,
    handles: HashMap<u64, std::net::TcpStream>,
}

impl Sockets {
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
        // Nagle's algorithm and delayed acknowledgements together hold small messages for 40 ms.
        socket.set_nodelay(true)?;
        let socket = socket.into_std()?;
        let handle = socket.try_clone()?;
        let socket = TcpStream::from_std(socket)?;
        let mut open = self.lock();
        if open.cut_off {
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
        })
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        Pin::new(&mut self.socket).poll_read(context, buffer)
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
