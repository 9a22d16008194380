//! A thread that carries packets in both directions, between one queue of the TUN device and one
//! UDP socket.
//!
//! Both in one thread: an answer that the kernel gives at once (to a ping, to a segment) is read
//! in the turn after the write that caused it, without waking anyone. Several workers share the
//! streams: the kernel spreads those from containers over the queues, and peers over the sockets.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use crate::inbound::Inbound;
use crate::outbound::Outbound;
use crate::shared::Shared;
use crate::tun::Tun;

pub(crate) struct Worker {
    shared: Arc<Shared>,
    tun: Arc<Tun>,
    /// Which of the sockets.
    socket: usize,
    outbound: Outbound,
    inbound: Inbound,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, tun: Arc<Tun>, socket: usize) -> Self {
        Self { shared, tun, socket, outbound: Outbound::new(), inbound: Inbound::new() }
    }

    /// Runs until the engine stops, or the device or socket is gone.
    pub(crate) fn run(mut self) {
        if let Err(error) = self.carry() {
            tracing::error!(device = self.tun.name(), %error, "carry packets");
        }
    }

    fn carry(&mut self) -> io::Result<()> {
        let (shared, tun) = (&*self.shared, &*self.tun);
        let (inbound, outbound) = (&mut self.inbound, &mut self.outbound);
        let udp = &shared.udp[self.socket];
        let mut from_peers = true;
        while !shared.is_stopping() {
            // Each is tried until it is empty, in turns.
            from_peers = from_peers && inbound.turn(shared, tun, udp)?;
            let from_tun = outbound.turn(shared, tun, udp)?;
            if from_peers || from_tun {
                from_peers = true;
                continue;
            }
            let mut fds = [
                PollFd::new(udp, PollFlags::IN),
                PollFd::new(tun, PollFlags::IN),
                PollFd::from_borrowed_fd(shared.stop_fd.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            from_peers = !fds[0].revents().is_empty();
        }
        Ok(())
    }
}
