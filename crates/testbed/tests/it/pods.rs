//! Servers and clients in containers' network namespaces, which are this
//! process's own threads: they say who asked, and see what comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use warren_testbed::{Cluster, Host};

/// What answers at all answers within this, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(5);
/// What does not answer within this is dropped.
pub(crate) const SILENCE: Duration = Duration::from_millis(600);

/// Where a client or a server is.
#[derive(Clone)]
pub(crate) struct Pod {
    pub(crate) name: String,
    pub(crate) host: Arc<Host>,
    /// Of a container; nothing: the machine itself.
    pub(crate) pid: Option<u64>,
    pub(crate) v4: Ipv4Addr,
}

/// How an attempt ended, in short: what was said, or `refused`, `silence`, `unreachable`.
pub(crate) type Said = String;

impl Pod {
    /// The container of a task as listed.
    pub(crate) fn of(cluster: &Cluster, task: &Value) -> Result<Self> {
        let text = |key: &str| task[key].as_str().with_context(|| format!("{key} of {task}"));
        Ok(Self {
            name: text("name")?.to_owned(),
            host: cluster.node(text("node")?)?.host().clone(),
            pid: Some(task["pid"].as_u64().filter(|pid| *pid > 0).context("a process")?),
            v4: text("address")?.parse()?,
        })
    }

    pub(crate) fn machine(host: &Arc<Host>) -> Self {
        Self { name: host.name().to_owned(), host: host.clone(), pid: None, v4: host.address() }
    }

    /// Works in its network namespace.
    pub(crate) fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        let pid = self.pid;
        self.host.within(move || {
            if let Some(pid) = pid {
                let path = format!("/proc/{pid}/ns/net");
                let file = std::fs::File::open(&path).with_context(|| path.clone())?;
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                    .with_context(|| format!("enter {path}"))?;
            }
            Ok(work())
        })?
    }

    /// Its IPv6 address, as its link has it.
    pub(crate) fn v6(&self) -> Result<Ipv6Addr> {
        let pid = self.pid.context("a container")?;
        let path = format!("/proc/{pid}/net/if_inet6");
        let text = self.host.within(|| std::fs::read_to_string(&path).context(path))??;
        let mut bits = text.lines().filter_map(|line| {
            let word = line.split_whitespace().next()?;
            u128::from_str_radix(word, 16).ok().map(Ipv6Addr::from_bits)
        });
        let found = bits.find(|address| address.segments()[0] >> 8 == 0xfd);
        found.with_context(|| format!("{} has no IPv6 address: {text}", self.name))
    }

    /// From now on answers at `port`, TCP and UDP of both families, with its name and the
    /// client's address.
    pub(crate) fn serve(&self, port: u16) -> Result<()> {
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let (listener, socket) = self.within(|| {
            Ok::<_, std::io::Error>((TcpListener::bind(any)?, UdpSocket::bind(any)?))
        })??;
        let answer = |name: &str, from: SocketAddr| format!("{name} {}", from.ip().to_canonical());
        // They end with this process.
        let name = self.name.clone();
        std::thread::spawn(move || {
            while let Ok((mut stream, from)) = listener.accept() {
                let name = name.clone();
                std::thread::spawn(move || {
                    let mut byte = [0; 1];
                    while let Ok(1) = stream.read(&mut byte) {
                        let line = format!("{}\n", answer(&name, from));
                        if stream.write_all(line.as_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        let name = self.name.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 16];
            while let Ok((_, from)) = socket.recv_from(&mut buffer) {
                if socket.send_to(answer(&name, from).as_bytes(), from).is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    /// One question by TCP.
    pub(crate) fn tcp(&self, to: impl Into<IpAddr>, port: u16) -> Result<Said> {
        self.tcp_within(to, port, PATIENCE)
    }

    pub(crate) fn tcp_within(
        &self,
        to: impl Into<IpAddr>,
        port: u16,
        limit: Duration,
    ) -> Result<Said> {
        let to = SocketAddr::new(to.into(), port);
        self.within(move || Connection::open(to, limit).and_then(|mut open| open.ask()))
            .map(|outcome| outcome.unwrap_or_else(|error| said(&error)))
    }

    /// A connection that stays.
    pub(crate) fn connect(&self, to: impl Into<IpAddr>, port: u16) -> Result<Connection> {
        let to = SocketAddr::new(to.into(), port);
        Ok(self.within(move || Connection::open(to, PATIENCE))??)
    }

    /// One question by UDP.
    pub(crate) fn udp(&self, to: impl Into<IpAddr>, port: u16) -> Result<Said> {
        self.udp_within(to, port, PATIENCE)
    }

    pub(crate) fn udp_within(
        &self,
        to: impl Into<IpAddr>,
        port: u16,
        limit: Duration,
    ) -> Result<Said> {
        let to = SocketAddr::new(to.into(), port);
        let ask = move || {
            let any: IpAddr = match to {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0))?;
            socket.set_read_timeout(Some(limit))?;
            socket.connect(to)?;
            socket.send(b"?")?;
            let mut buffer = [0; 128];
            let len = socket.recv(&mut buffer)?;
            Ok::<_, std::io::Error>(String::from_utf8_lossy(&buffer[..len]).into_owned())
        };
        Ok(self.within(ask)?.unwrap_or_else(|error| said(&error)))
    }

    /// Whether it answers an echo request.
    pub(crate) fn ping(&self, to: impl Into<IpAddr>) -> Result<bool> {
        let to = to.into().to_string();
        let ping = ["busybox", "ping", "-c", "1", "-W", "1", &to];
        let said = match self.pid {
            Some(pid) => {
                let pid = pid.to_string();
                self.host.run("nsenter", &[&["-t", &pid, "-n"][..], &ping].concat())?
            }
            None => self.host.run(ping[0], &ping[1..])?,
        };
        Ok(said.exit == 0)
    }
}

/// A connection that is asked more than once.
pub(crate) struct Connection(TcpStream);

impl Connection {
    fn open(to: SocketAddr, limit: Duration) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    pub(crate) fn ask(&mut self) -> std::io::Result<Said> {
        self.0.write_all(b"?")?;
        let mut line = Vec::new();
        let mut byte = [0; 1];
        loop {
            if self.0.read(&mut byte)? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            if byte[0] == b'\n' {
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            line.push(byte[0]);
        }
    }
}

fn said(error: &std::io::Error) -> Said {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => "refused".to_owned(),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => "silence".to_owned(),
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => "unreachable".to_owned(),
        kind => format!("{kind:?}"),
    }
}
