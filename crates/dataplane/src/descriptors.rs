//! Sockets and queues that daemon and data plane share.
//!
//! Made by the daemon, in its network namespace, and duplicated into each process. Not here: who
//! reads from them (`serve`).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use warren_net::dns::Sockets;
use warren_wireguard::{MTU_MAX, MTU_MIN, Tun, TunOptions, Udp};

/// Why a descriptor cannot be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{action}")]
    Io { action: String, source: io::Error },
    #[error(transparent)]
    Net(#[from] warren_net::Error),
    #[error(transparent)]
    Tunnel(#[from] warren_wireguard::Error),
}

/// What a descriptor is for; its number on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Tun = 1,
    Udp = 2,
    Questions = 3,
    Connections = 4,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Tun, Self::Udp, Self::Questions, Self::Connections];

    fn number(self) -> u32 {
        self as u32
    }

    fn of(number: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// What WireGuard adds to a packet, whichever family is below.
const OVERHEAD: u32 = 80;

/// What a tunnel is made of.
#[derive(Debug, Clone)]
pub(crate) struct Tunnel {
    pub(crate) name: String,
    /// Where other nodes reach this one.
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
    pub(crate) queues: usize,
}

/// All that there are, by kind.
#[derive(Debug, Default)]
pub(crate) struct Descriptors {
    pub(crate) tun: Vec<OwnedFd>,
    pub(crate) udp: Vec<OwnedFd>,
    pub(crate) questions: Vec<OwnedFd>,
    pub(crate) connections: Vec<OwnedFd>,
}

impl Descriptors {
    /// Takes what came with a message. What is of no kind that we know is closed.
    pub(crate) fn adopt(kinds: &[u32], fds: Vec<OwnedFd>) -> Self {
        let mut all = Self::default();
        for (number, fd) in kinds.iter().zip(fds) {
            if let Some(kind) = Kind::of(*number) {
                all.of_mut(kind).push(fd);
            }
        }
        all
    }

    pub(crate) fn listed(&self) -> (Vec<u32>, Vec<BorrowedFd<'_>>) {
        let each = Kind::ALL
            .into_iter()
            .flat_map(|kind| self.of(kind).iter().map(move |fd| (kind.number(), fd.as_fd())));
        each.unzip()
    }

    pub(crate) fn duplicate(&self) -> io::Result<Self> {
        let copy = |fds: &[OwnedFd]| -> io::Result<Vec<OwnedFd>> {
            fds.iter().map(OwnedFd::try_clone).collect()
        };
        Ok(Self {
            tun: copy(&self.tun)?,
            udp: copy(&self.udp)?,
            questions: copy(&self.questions)?,
            connections: copy(&self.connections)?,
        })
    }

    /// Adds what `others` has of kinds that this has none of.
    pub(crate) fn complete(&mut self, mut others: Self) {
        for kind in Kind::ALL {
            if self.of(kind).is_empty() {
                *self.of_mut(kind) = std::mem::take(others.of_mut(kind));
            }
        }
    }

    pub(crate) fn has_names(&self) -> bool {
        !self.questions.is_empty() && !self.connections.is_empty()
    }

    pub(crate) fn has_tunnel(&self) -> bool {
        !self.tun.is_empty() && self.tun.len() == self.udp.len()
    }

    pub(crate) fn names(&self) -> io::Result<Sockets> {
        let udp = self.questions.iter().map(|fd| Ok(UdpSocket::from(fd.try_clone()?)));
        let tcp = self.connections.iter().map(|fd| Ok(TcpListener::from(fd.try_clone()?)));
        Ok(Sockets { udp: udp.collect::<io::Result<_>>()?, tcp: tcp.collect::<io::Result<_>>()? })
    }

    pub(crate) fn tunnel(&self) -> Result<(Vec<Tun>, Vec<Udp>), Error> {
        let copy = |fd: &OwnedFd| {
            fd.try_clone()
                .map_err(|source| Error::Io { action: "duplicate a descriptor".into(), source })
        };
        let tun = self.tun.iter().map(|fd| Ok(Tun::adopt(copy(fd)?)?));
        let udp = self.udp.iter().map(|fd| Ok(Udp::adopt(copy(fd)?)?));
        Ok((tun.collect::<Result<_, Error>>()?, udp.collect::<Result<_, Error>>()?))
    }

    /// Whether peers would reach the socket where they look for it.
    pub(crate) fn listens_at(&self, port: u16) -> bool {
        self.udp.iter().all(|fd| {
            let at = rustix::net::getsockname(fd).ok().and_then(|at| SocketAddr::try_from(at).ok());
            at.is_some_and(|at| at.port() == port)
        })
    }

    /// Binds what the name server listens at, in the calling thread's network namespace.
    pub(crate) fn open_names(&mut self, at: SocketAddrV4) -> Result<(), Error> {
        let failed = |source| Error::Io { action: format!("listen for questions at {at}"), source };
        let udp = UdpSocket::bind(at).map_err(failed)?;
        let tcp = TcpListener::bind(at).map_err(failed)?;
        (self.questions, self.connections) = (vec![udp.into()], vec![tcp.into()]);
        Ok(())
    }

    /// Makes the device, unless it is there, and binds the sockets, in the calling thread's
    /// network namespace.
    pub(crate) fn open_tunnel(&mut self, tunnel: &Tunnel) -> Result<(), Error> {
        let queues = if self.tun.is_empty() { tunnel.queues } else { self.tun.len() };
        let owned = |fd: BorrowedFd<'_>| {
            fd.try_clone_to_owned()
                .map_err(|source| Error::Io { action: "duplicate a descriptor".into(), source })
        };
        let udp = bind(SocketAddr::new(tunnel.address, tunnel.port), queues)?;
        let udp = udp.iter().map(|udp| owned(udp.as_fd())).collect::<Result<_, _>>()?;
        if self.tun.is_empty() {
            let tun = device(tunnel, warren_net::underlay_mtu(tunnel.address)?)?;
            self.tun = tun.iter().map(|tun| owned(tun.as_fd())).collect::<Result<_, _>>()?;
        }
        self.udp = udp;
        Ok(())
    }
    fn of(&self, kind: Kind) -> &Vec<OwnedFd> {
        match kind {
            Kind::Tun => &self.tun,
            Kind::Udp => &self.udp,
            Kind::Questions => &self.questions,
            Kind::Connections => &self.connections,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Vec<OwnedFd> {
        match kind {
            Kind::Tun => &mut self.tun,
            Kind::Udp => &mut self.udp,
            Kind::Questions => &mut self.questions,
            Kind::Connections => &mut self.connections,
        }
    }
}

fn device(tunnel: &Tunnel, below_mtu: u32) -> Result<Vec<Tun>, Error> {
    let mtu = below_mtu.saturating_sub(OVERHEAD).clamp(MTU_MIN.into(), MTU_MAX.into());
    let tun = Tun::open(&TunOptions {
        name: tunnel.name.clone(),
        mtu: u16::try_from(mtu).unwrap_or(MTU_MAX),
        queues: tunnel.queues,
        // Both processes hold it; with both of them gone nothing is left in the kernel.
        persist: false,
    })?;
    hush(&tunnel.name);
    Ok(tun)
}

/// At the node's own address, so that nodes that share a namespace do not take each other's; at
/// all of them if others know it by a translated one.
fn bind(own: SocketAddr, queues: usize) -> Result<Vec<Udp>, Error> {
    let mut all = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), own.port());
    if UdpSocket::bind(all).is_err_and(|e| e.raw_os_error() == Some(libc::EAFNOSUPPORT)) {
        all.set_ip(Ipv4Addr::UNSPECIFIED.into());
    }
    let at = match UdpSocket::bind(own) {
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => all,
        // Several sockets of one address share what comes, also with another node's: tried alone.
        Ok(_) => own,
        Err(source) => return Err(Error::Io { action: format!("bind UDP {own}"), source }),
    };
    if at == all {
        let failed = |source| Error::Io { action: format!("bind UDP {all}"), source };
        UdpSocket::bind(all).map_err(failed)?;
    }
    Ok(Udp::bind(at, queues)?)
}

/// Nobody on the tunnel answers a search for routers: the kernel need not ask, again and again.
fn hush(name: &str) {
    for setting in ["router_solicitations", "accept_ra"] {
        // A kernel without IPv6 has no such file, and asks nobody.
        let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{setting}"), "0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket() -> OwnedFd {
        UdpSocket::bind("127.0.0.1:0").unwrap().into()
    }

    #[test]
    fn descriptors_are_told_by_their_kinds() {
        let all = Descriptors::adopt(&[3, 4, 99, 3], (0..4).map(|_| socket()).collect());
        assert_eq!((all.questions.len(), all.connections.len(), all.tun.len()), (2, 1, 0));
        assert!(all.has_names() && !all.has_tunnel());
        let (kinds, fds) = all.listed();
        assert_eq!((kinds, fds.len()), (vec![3, 3, 4], 3));
        assert_eq!(all.duplicate().unwrap().listed().0, [3, 3, 4]);
        let mut some = Descriptors::adopt(&[1, 2, 3], (0..3).map(|_| socket()).collect());
        some.complete(all);
        assert_eq!(some.listed().0, [1, 2, 3, 4]);
        assert!(some.has_tunnel());
    }

    #[test]
    fn a_port_is_one_nodes() {
        let own = |last: u8, port| SocketAddr::from(([127, 99, 0, last], port));
        let first = bind(own(1, 0), 2).unwrap();
        let port = first[0].address().unwrap().port();
        assert_eq!(first[1].address().unwrap(), own(1, port));
        assert!(bind(own(1, port), 2).is_err());
        assert_eq!(bind(own(2, port), 2).unwrap()[0].address().unwrap(), own(2, port));
        // Of a node behind a translator.
        let foreign = SocketAddr::from(([192, 0, 2, 99], 0));
        assert!(bind(foreign, 1).unwrap()[0].address().unwrap().ip().is_unspecified());
    }

    #[test]
    fn the_name_server_is_bound_once() {
        let at = warren_net::name_server("descriptors");
        let mut all = Descriptors::default();
        all.open_names(at).unwrap();
        let taken = Descriptors::default().open_names(at).unwrap_err();
        assert!(taken.to_string().ends_with(&at.to_string()), "{taken}");
        let sockets = all.names().unwrap();
        assert_eq!(sockets.udp[0].local_addr().unwrap(), SocketAddr::V4(at));
        assert_eq!(sockets.tcp[0].local_addr().unwrap(), SocketAddr::V4(at));
    }
}
