//! One question to one server.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use warren_base::rng::Rng;

use super::cache::Key;
use crate::dns::wire::{Misfit, Rcode, Response, STREAM_LEN, write_query};

/// Answers that do not fit are forged or late; after so many the query leaves the reach of those
/// who guess (RFC 5452 section 9.3).
const MISFITS_MAX: u32 = 8;
/// More than is asked for: a server may not know the limit.
const DATAGRAM_LEN: usize = 4096;

pub(super) struct Exchange<'a> {
    pub(super) server: SocketAddr,
    pub(super) key: &'a Key,
    pub(super) rng: &'a dyn Rng,
}

/// Why a server is of no use for a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    /// It did not answer, or cannot be reached.
    Silent,
    /// It does not want to or cannot.
    Unusable,
}

/// What to try next.
enum Outcome {
    Done(Response),
    OverTcp,
    WithoutEdns,
    Failed,
}

impl Exchange<'_> {
    /// Asks by datagram, by TCP where the answer is too long or guessed at; `patience` for each.
    pub(super) async fn run(&self, patience: Duration) -> Result<Response, Failure> {
        let mut edns = true;
        loop {
            let answer = tokio::time::timeout(patience, self.by_datagram(edns)).await;
            match answer {
                Ok(Ok(Outcome::Done(response))) => return Ok(response),
                Ok(Ok(Outcome::WithoutEdns)) => edns = false,
                Ok(Ok(Outcome::Failed)) => return Err(Failure::Unusable),
                Ok(Ok(Outcome::OverTcp)) => break,
                Ok(Err(_)) | Err(_) => return Err(Failure::Silent),
            }
        }
        match tokio::time::timeout(patience, self.by_stream(edns)).await {
            Ok(Ok(Outcome::Done(response))) => Ok(response),
            Ok(Ok(_)) => Err(Failure::Unusable),
            Ok(Err(_)) | Err(_) => Err(Failure::Silent),
        }
    }

    async fn by_datagram(&self, edns: bool) -> io::Result<Outcome> {
        let any: SocketAddr = match self.server {
            SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
            SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
        };
        // The kernel draws the port at random.
        let socket = UdpSocket::bind(any).await?;
        socket.connect(self.server).await?;
        let id = self.id();
        socket.send(&self.query(id, edns)).await?;
        let mut buffer = vec![0; DATAGRAM_LEN];
        for _ in 0..MISFITS_MAX {
            let len = socket.recv(&mut buffer).await?;
            match Response::read(&buffer[..len], id, &self.key.question) {
                Ok(response) if response.truncated => return Ok(Outcome::OverTcp),
                Ok(response) => return Ok(judge(response, edns)),
                Err(Misfit::Broken) if edns => return Ok(Outcome::WithoutEdns),
                Err(Misfit::Broken) => return Ok(Outcome::Failed),
                Err(Misfit::Foreign) => {}
            }
        }
        Ok(Outcome::OverTcp)
    }

    async fn by_stream(&self, edns: bool) -> io::Result<Outcome> {
        let mut stream = TcpStream::connect(self.server).await?;
        let id = self.id();
        let query = self.query(id, edns);
        let len = u16::try_from(query.len()).map_err(io::Error::other)?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend_from_slice(&query);
        stream.write_all(&framed).await?;
        let mut buffer = vec![0; usize::from(stream.read_u16().await?).min(STREAM_LEN)];
        stream.read_exact(&mut buffer).await?;
        Ok(match Response::read(&buffer, id, &self.key.question) {
            Ok(response) if response.truncated => Outcome::Failed,
            Ok(response) => judge(response, edns),
            Err(Misfit::Broken | Misfit::Foreign) => Outcome::Failed,
        })
    }

    fn query(&self, id: u16, edns: bool) -> Vec<u8> {
        let dnssec = edns.then_some(self.key.dnssec);
        write_query(id, self.key.flags, &self.key.question, dnssec)
    }

    fn id(&self) -> u16 {
        let mut id = [0; 2];
        self.rng.fill(&mut id);
        u16::from_ne_bytes(id)
    }
}

fn judge(response: Response, edns: bool) -> Outcome {
    let not_understood =
        response.rcode == Rcode::FormErr as u16 || response.rcode == Rcode::NotImp as u16;
    if response.is_usable() {
        Outcome::Done(response)
    } else if not_understood && edns {
        // A server from before RFC 6891.
        Outcome::WithoutEdns
    } else {
        Outcome::Failed
    }
}
