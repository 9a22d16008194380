//! The line between this node's agent and its own manager: the same gRPC as
//! between machines, through memory.

use std::io::{self, Error, ErrorKind, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint};
use warren_manager::Caller;

/// Bytes on their way in one direction: a page of HTTP/2 frames.
const PIPE_BYTES: usize = 64 * 1024;
/// Connections that wait to be accepted; an agent has one at a time.
const LINES_MAX: usize = 2;

/// The agent's end: makes connections. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Pipe {
    to: mpsc::Sender<DuplexStream>,
}

/// The manager's end: connections as they come, for a tonic server.
pub(crate) type Incoming =
    tokio_stream::adapters::Map<ReceiverStream<DuplexStream>, fn(DuplexStream) -> Accepted>;
type Accepted = Result<Own, Error>;

pub(crate) fn pair() -> (Pipe, Incoming) {
    use tokio_stream::StreamExt;
    let (to, from) = mpsc::channel(LINES_MAX);
    (Pipe { to }, ReceiverStream::new(from).map(|stream| Ok(Own(stream))))
}

impl Pipe {
    /// A channel to whoever has the other end.
    ///
    /// # Errors
    /// Nobody has it any more.
    pub(crate) async fn connect(
        &self,
    ) -> Result<Channel, Box<dyn std::error::Error + Send + Sync>> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.to.send(theirs).await.map_err(|_| Error::from(ErrorKind::ConnectionRefused))?;
        let mut ours = Some(TokioIo::new(ours));
        // The address is never looked at: the connector hands out the pipe, once.
        let connector = tower::service_fn(move |_| {
            let taken = ours.take();
            async move { taken.ok_or_else(|| Error::from(ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_static("http://manager.invalid")
            .initial_stream_window_size(warren_manager::STREAM_WINDOW_BYTES)
            .initial_connection_window_size(warren_manager::CONNECTION_WINDOW_BYTES);
        Ok(endpoint.connect_with_connector(connector).await?)
    }
}

/// A connection of this process with itself: nobody else can have made it.
pub(crate) struct Own(DuplexStream);

impl Connected for Own {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller::OwnAgent
    }
}

impl AsyncRead for Own {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, out)
    }
}

impl AsyncWrite for Own {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
