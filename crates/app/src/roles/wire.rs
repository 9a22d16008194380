//! The line between this node's agent and its own manager: the same gRPC as
//! between machines, through memory.

use std::io::{Error, ErrorKind};

use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use warren_agent::{Connect, ConnectError};

/// Bytes on their way in one direction: a page of HTTP/2 frames.
const PIPE_BYTES: usize = 64 * 1024;
/// Connections that wait to be accepted; an agent has one at a time.
const LINES_MAX: usize = 2;

/// The agent's end: makes connections.
pub(crate) struct Dialer {
    to: mpsc::Sender<DuplexStream>,
}

/// The manager's end: connections as they come, for a tonic server.
pub(crate) type Incoming =
    tokio_stream::adapters::Map<ReceiverStream<DuplexStream>, fn(DuplexStream) -> Accepted>;
type Accepted = Result<DuplexStream, Error>;

pub(crate) fn pair() -> (Dialer, Incoming) {
    use tokio_stream::StreamExt;
    let (to, from) = mpsc::channel(LINES_MAX);
    (Dialer { to }, ReceiverStream::new(from).map(Ok))
}

#[tonic::async_trait]
impl Connect for Dialer {
    async fn connect(&self) -> Result<Channel, ConnectError> {
        let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
        self.to.send(theirs).await.map_err(|_| Error::from(ErrorKind::ConnectionRefused))?;
        let mut ours = Some(TokioIo::new(ours));
        // The address is never looked at: the connector hands out the pipe, once.
        let connector = tower::service_fn(move |_| {
            let taken = ours.take();
            async move { taken.ok_or_else(|| Error::from(ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_static("http://manager.invalid");
        Ok(endpoint.connect_with_connector(connector).await?)
    }
}
