//! Serves names on sockets that somebody else bound, so that they can outlive this process.
//!
//! One [`Server`] is a few tasks: one for each socket, one for each connection, one for each
//! question that is waiting for an upstream server. It is best run on a thread of its own with
//! a current-thread runtime: what else the process computes then never delays an answer.
//!
//! Limits: connections for all and for each address, time for a message over TCP, and those of
//! [`Forwarder`]. Datagrams wait in the socket's buffer alone; what does not fit there the
//! kernel drops, and resolvers ask again.
//!
//! Not here: what is answered (`zone`, `answer`), binding.

mod batch;
mod stream;
#[cfg(test)]
mod tests;
mod udp;

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use warren_base::tasks::Tasks;

use super::answer::{Action, Kind, Transport, answer};
use super::forward::Forwarder;
use super::zone::Zone;

/// Questions that are waiting upstream when the server stops are answered within this, or not.
const GRACE: Duration = Duration::from_secs(5);

/// Bound, and for TCP listening; their flags are set here.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams.
    pub udp: Vec<UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

/// What happened since the start.
#[derive(Debug, Default)]
pub struct Counters {
    /// Messages that came, of any kind.
    pub received: AtomicU64,
    /// Answered from the tables, also that there is nothing.
    pub answered: AtomicU64,
    /// Answered from what upstream servers said before.
    pub recalled: AtomicU64,
    /// Asked of upstream servers.
    pub forwarded: AtomicU64,
    /// Not answered to this asker: it is unknown, or may not ask this.
    pub refused: AtomicU64,
    /// Not understood, answered or not.
    pub malformed: AtomicU64,
    /// Questions for upstream servers that a limit kept from them.
    pub overloaded: AtomicU64,
    /// Connections that a limit closed.
    pub connections_refused: AtomicU64,
    /// Answers that the kernel did not take.
    pub unsent: AtomicU64,
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Serves the zone that is in `zone` when a question comes.
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    zone: Arc<ArcSwap<Zone>>,
    forwarder: Arc<Forwarder>,
    counters: Arc<Counters>,
    rotation: AtomicU32,
    tasks: Tasks,
}

impl Server {
    /// Serves `zone`; whoever publishes there a new one is heard at the next question.
    pub fn new(zone: Arc<ArcSwap<Zone>>, forwarder: Arc<Forwarder>) -> Self {
        let (counters, rotation) = (Arc::default(), AtomicU32::new(0));
        Self {
            shared: Arc::new(Shared { zone, forwarder, counters, rotation, tasks: Tasks::new() }),
        }
    }

    /// What happened so far, and what will.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.shared.counters)
    }

    /// Serves until `stop`, then finishes what waits.
    ///
    /// # Errors
    /// A socket cannot be used, or not any more; all others are left then too.
    pub async fn run(self, sockets: Sockets, stop: CancellationToken) -> io::Result<()> {
        let shared = self.shared;
        let udp = sockets.udp.iter().map(UdpSocket::local_addr);
        let own = udp.chain(sockets.tcp.iter().map(TcpListener::local_addr));
        shared.forwarder.avoid(own.collect::<io::Result<Vec<SocketAddr>>>()?);
        let mut loops = JoinSet::new();
        let connections = stream::Connections::new();
        for socket in sockets.udp {
            let datagrams = udp::Datagrams::new(socket)?;
            loops.spawn(udp::serve(Arc::clone(&shared), datagrams, stop.clone()));
        }
        for listener in sockets.tcp {
            let listener = stream::listener(listener)?;
            let (shared, connections) = (Arc::clone(&shared), Arc::clone(&connections));
            loops.spawn(stream::serve(shared, listener, connections, stop.clone()));
        }
        let mut ended = Ok(());
        while let Some(end) = loops.join_next().await {
            let end = end.map_err(io::Error::other).flatten();
            if end.is_err() && ended.is_ok() {
                ended = end;
                // The others too: who runs the server decides what follows.
                stop.cancel();
            }
        }
        shared.tasks.stop(GRACE).await;
        ended
    }
}

impl Shared {
    /// What becomes of a message; the reply to it is in `out`.
    fn consider(
        &self,
        asker: IpAddr,
        message: &[u8],
        transport: Transport,
        out: &mut Vec<u8>,
    ) -> Action {
        count(&self.counters.received);
        let rotation = self.rotation.fetch_add(1, Ordering::Relaxed);
        let zone = self.zone.load();
        let action = answer(&zone, asker, message, transport, rotation, out);
        match &action {
            Action::Drop | Action::Reply(Kind::Malformed) => count(&self.counters.malformed),
            Action::Reply(Kind::Answered) => count(&self.counters.answered),
            Action::Reply(Kind::Refused) => count(&self.counters.refused),
            Action::Forward(ask) => {
                if self.forwarder.recall(ask, out) {
                    count(&self.counters.recalled);
                    return Action::Reply(Kind::Answered);
                }
            }
        }
        action
    }
}
