//! Calls over streams: a connection for each lane to each member, made when needed.
//!
//! The application dials ([`Dial`]): addresses, TLS, socket options and who the
//! peer must be are its own. Queues, calls under way and bytes are bounded;
//! lanes that nobody used for a while close and leave nothing behind.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::lane::{self, Link, Outgoing};
use super::{Call, Lane, Member, Transport, TransportError};

/// Calls that wait for a connection or a place on it.
const QUEUE_LEN: usize = 256;
/// Bytes that do: replication keeps far less under way by itself.
const QUEUE_BYTES: usize = 32 << 20;

/// Both ways of a connection.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

pub type BoxStream = Box<dyn Stream>;

/// The same connection, watched by the runtime that calls this.
///
/// # Errors
/// What the kernel says: too many descriptors.
pub fn moved_here(socket: &TcpStream) -> io::Result<TcpStream> {
    let copy = socket.as_fd().try_clone_to_owned()?;
    TcpStream::from_std(copy.into())
}

/// Opens streams to other managers.
pub trait Dial: Send + Sync + 'static {
    /// A stream to `to`, which proved to be that manager; without delay of small writes
    /// (`TCP_NODELAY`). Dropped when it takes too long.
    fn dial(&self, to: &Member) -> BoxFuture<'static, io::Result<BoxStream>>;
}

struct Handle {
    address: String,
    calls: mpsc::Sender<Outgoing>,
    queued_bytes: Arc<AtomicUsize>,
}

/// A [`Transport`] over streams.
pub struct Tcp {
    number: u64,
    dial: Arc<dyn Dial>,
    lanes: Mutex<BTreeMap<(u64, Lane), Handle>>,
}

impl Tcp {
    /// Calls of manager `number`.
    pub fn new(number: u64, dial: Arc<dyn Dial>) -> Self {
        Self { number, dial, lanes: Mutex::new(BTreeMap::new()) }
    }

    fn hand_over(&self, to: &Member, call: Outgoing) -> Result<(), TransportError> {
        let lane = call.kind.lane();
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let usable = lanes
            .get(&(to.number, lane))
            .is_some_and(|known| known.address == to.address && !known.calls.is_closed());
        if !usable {
            // Lanes that ended, of members that are gone as well.
            lanes.retain(|_, known| !known.calls.is_closed());
            lanes.insert((to.number, lane), self.start(to, lane));
        }
        let full = |why: &str| {
            Err(TransportError::Unreachable { to: to.number, why: format!("{why} are waiting") })
        };
        let Some(known) = lanes.get(&(to.number, lane)) else { return full("too many members") };
        let bytes = call.payload.len();
        if known.queued_bytes.load(Ordering::Relaxed) + bytes > QUEUE_BYTES {
            return full("too many bytes");
        }
        known.queued_bytes.fetch_add(bytes, Ordering::Relaxed);
        if known.calls.try_send(call).is_err() {
            known.queued_bytes.fetch_sub(bytes, Ordering::Relaxed);
            return full("too many calls");
        }
        Ok(())
    }

    fn start(&self, to: &Member, lane: Lane) -> Handle {
        let (calls, waiting) = mpsc::channel(QUEUE_LEN);
        let queued_bytes = Arc::new(AtomicUsize::new(0));
        let link = Link {
            from: self.number,
            to: to.clone(),
            lane,
            dial: self.dial.clone(),
            queued_bytes: queued_bytes.clone(),
        };
        tokio::spawn(lane::run(link, waiting));
        Handle { address: to.address.clone(), calls, queued_bytes }
    }
}

impl Transport for Tcp {
    fn call(
        &self,
        to: &Member,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (answer, answered) = oneshot::channel();
        if let Err(error) = self.hand_over(to, Outgoing { kind, payload, answer }) {
            return futures::future::ready(Err(error)).boxed();
        }
        let to = to.number;
        async move {
            let lost = |why: String| TransportError::Lost { to, why };
            match tokio::time::timeout(kind.deadline(), answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(lost("this manager is ending".to_owned())),
                Err(_) => Err(lost(format!("nothing came in {:?}", kind.deadline()))),
            }
        }
        .boxed()
    }
}
