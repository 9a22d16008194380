//! Questions in datagrams.

use std::io;
use std::net::UdpSocket;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::batch::{BATCH, Batch, Outgoing, Peer, send, want_local_address, watch};
use super::{Action, Shared, Transport, count};
use crate::dns::answer::Ask;
use crate::dns::forward;

/// A socket for many peers.
pub(super) struct Datagrams(Arc<AsyncFd<UdpSocket>>);

impl Datagrams {
    pub(super) fn new(socket: UdpSocket) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        want_local_address(&socket)?;
        Ok(Self(Arc::new(watch(socket)?)))
    }
}

/// Until `stop`: takes what is there, answers it in one go.
pub(super) async fn serve(
    shared: Arc<Shared>,
    Datagrams(socket): Datagrams,
    stop: CancellationToken,
) -> io::Result<()> {
    let mut batch = Batch::new();
    let mut replies: Vec<Outgoing> = Vec::with_capacity(BATCH);
    loop {
        let mut ready = tokio::select! {
            biased;
            ready = socket.readable() => ready?,
            () = stop.cancelled() => return Ok(()),
        };
        match batch.receive(socket.get_ref()) {
            Ok(received) => {
                let mut len = 0;
                for (peer, message) in batch.messages(received) {
                    if replies.len() == len {
                        replies.push(Outgoing::new(peer));
                    }
                    let reply = &mut replies[len];
                    reply.peer = peer;
                    let asker = peer.address.ip().to_canonical();
                    let out = &mut reply.message;
                    match shared.consider(asker, message, Transport::Datagram, out) {
                        Action::Drop => {}
                        Action::Reply(_) => len += 1,
                        Action::Forward(ask) => match forward(&shared, &socket, peer, ask, out) {
                            Waiting::Yes => {}
                            Waiting::Full => len += 1,
                        },
                    }
                }
                let unsent = send(socket.get_ref(), &replies[..len]);
                shared.counters.unsent.fetch_add(unsent, std::sync::atomic::Ordering::Relaxed);
                if received < BATCH {
                    // What comes after this read wakes again; what came before it was read.
                    ready.clear_ready();
                } else {
                    if stop.is_cancelled() {
                        return Ok(());
                    }
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // For lack of memory, or what a packet filter said of an earlier answer.
            Err(error) if is_passing(&error) => ready.clear_ready(),
            Err(error) => return Err(error),
        }
    }
}

fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let passing = [
        Errno::NOMEM,
        Errno::NOBUFS,
        Errno::CONNREFUSED,
        Errno::HOSTUNREACH,
        Errno::NETUNREACH,
        Errno::PERM,
    ];
    error.raw_os_error().is_some_and(|code| passing.iter().any(|e| e.raw_os_error() == code))
}

enum Waiting {
    Yes,
    /// In `out` is what to tell.
    Full,
}

/// Has a question asked upstream; whoever asked is answered when that is.
fn forward(
    shared: &Arc<Shared>,
    socket: &Arc<AsyncFd<UdpSocket>>,
    peer: Peer,
    ask: Ask,
    out: &mut Vec<u8>,
) -> Waiting {
    let Some(place) = shared.forwarder.enter(&ask) else {
        count(&shared.counters.overloaded);
        forward::fail(&ask, out);
        return Waiting::Full;
    };
    count(&shared.counters.forwarded);
    let (socket, shared_too) = (Arc::clone(socket), Arc::clone(shared));
    shared.tasks.spawn_graceful("dns-forward", async move {
        let _place = place;
        let mut reply = Outgoing::new(peer);
        shared_too.forwarder.resolve(&ask, &mut reply.message).await;
        if send(socket.get_ref(), std::slice::from_ref(&reply)) > 0 {
            count(&shared_too.counters.unsent);
        }
    });
    Waiting::Yes
}
