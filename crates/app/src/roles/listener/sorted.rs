//! A connection that got in: its bytes, the first of them again, and its place.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use warren_manager::Caller;
use warren_store::transport::tcp::moved_here;
use warren_trust::Peer;

use super::limit::Held;
use super::metrics::Open;

/// Given back when the connection is dropped.
pub(super) type Place = (OwnedSemaphorePermit, Held, Open);

pub(crate) struct Connection {
    stream: Box<TlsStream<TcpStream>>,
    /// Read already, and to be read again.
    first: Vec<u8>,
    peer: Option<Peer>,
    from: SocketAddr,
    _place: Place,
}

impl Connection {
    pub(super) fn new(
        stream: Box<TlsStream<TcpStream>>,
        first: Vec<u8>,
        peer: Option<Peer>,
        from: SocketAddr,
        place: Place,
    ) -> Self {
        Self { stream, first, peer, from, _place: place }
    }

    /// Who is at the other end, if it showed a certificate.
    pub(crate) fn peer(&self) -> Option<&Peer> {
        self.peer.as_ref()
    }

    pub(crate) fn from(&self) -> SocketAddr {
        self.from
    }

    /// Watched by the runtime that calls this, from now on.
    pub(crate) fn moved_here(mut self) -> io::Result<Self> {
        let (socket, _) = self.stream.get_mut();
        *socket = moved_here(socket)?;
        Ok(self)
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller::Remote { peer: self.peer.clone(), address: self.from }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, out);
        }
        let len = self.first.len().min(out.remaining());
        out.put_slice(&self.first[..len]);
        self.first.drain(..len);
        if self.first.is_empty() {
            // Its memory as well: connections are many and live long.
            self.first = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
