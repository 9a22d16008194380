//! Questions over TCP (RFC 7766): one after the other on a connection.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::{Action, Shared, Transport, count};
use crate::dns::forward;

/// Of all: some 10 KiB each.
const CONNECTIONS_MAX: usize = 512;
/// Of one container: it cannot take the others' places.
const CONNECTIONS_PER_ASKER_MAX: usize = 16;
/// Longer queries are none: they hold one name.
const QUERY_LEN_MAX: usize = 2048;
/// For the next question to be there whole, and for an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// After accept(2) failed for lack of descriptors or memory.
const BACK_OFF: Duration = Duration::from_millis(100);

/// How many there are, of each address.
pub(super) struct Connections(Mutex<HashMap<IpAddr, usize>>);

/// One of them; dropped with it.
struct Connection {
    connections: Arc<Connections>,
    asker: IpAddr,
}

impl Connections {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    fn enter(self: &Arc<Self>, asker: IpAddr) -> Option<Connection> {
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mine = open.get(&asker).copied().unwrap_or(0);
        if mine >= CONNECTIONS_PER_ASKER_MAX || open.values().sum::<usize>() >= CONNECTIONS_MAX {
            return None;
        }
        open.insert(asker, mine + 1);
        Some(Connection { connections: Arc::clone(self), asker })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.connections.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.asker);
            }
        }
    }
}

pub(super) fn listener(listener: std::net::TcpListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Until `stop`: takes connections of those who may ask.
pub(super) async fn serve(
    shared: Arc<Shared>,
    listener: TcpListener,
    connections: Arc<Connections>,
    stop: CancellationToken,
) -> io::Result<()> {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return Ok(()),
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            // Of that connection, or for lack of something: the listener itself stays good.
            Err(error) => {
                tracing::debug!(%error, "a connection to the name server was not accepted");
                tokio::time::sleep(BACK_OFF).await;
                continue;
            }
        };
        let asker = peer.ip().to_canonical();
        // Who may not ask is not worth a place.
        let connection =
            if shared.zone.load().is_asker(asker) { connections.enter(asker) } else { None };
        let Some(connection) = connection else {
            count(&shared.counters.connections_refused);
            continue;
        };
        let (own, stop) = (Arc::clone(&shared), stop.clone());
        shared.tasks.spawn_graceful("dns-connection", async move {
            // A peer that goes away or sends nonsense has nobody to be told.
            let _ = converse(&own, stream, &connection, &stop).await;
        });
    }
}

async fn converse(
    shared: &Arc<Shared>,
    mut stream: TcpStream,
    connection: &Connection,
    stop: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut message, mut out, mut framed) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let read = async {
            let len = usize::from(stream.read_u16().await?);
            if len > QUERY_LEN_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            message.resize(len, 0);
            stream.read_exact(&mut message).await
        };
        tokio::select! {
            read = tokio::time::timeout(PATIENCE, read) => read??,
            () = stop.cancelled() => return Ok(()),
        };
        match shared.consider(connection.asker, &message, Transport::Stream, &mut out) {
            Action::Drop => return Ok(()),
            Action::Reply(_) => {}
            Action::Forward(ask) => match shared.forwarder.enter(&ask) {
                Some(_place) => {
                    count(&shared.counters.forwarded);
                    shared.forwarder.resolve(&ask, &mut out).await;
                }
                None => {
                    count(&shared.counters.overloaded);
                    forward::fail(&ask, &mut out);
                }
            },
        }
        let len = u16::try_from(out.len()).map_err(io::Error::other)?;
        framed.clear();
        framed.extend_from_slice(&len.to_be_bytes());
        framed.extend_from_slice(&out);
        tokio::time::timeout(PATIENCE, stream.write_all(&framed)).await??;
    }
}
