//! How containers are asked over the network, from the node itself.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use async_trait::async_trait;
use tokio::net::TcpStream;
use warren_model::health::Probe;

use super::{grpc, http, tls};

/// Who asks.
#[async_trait]
pub trait Probes: Send + Sync + 'static {
    /// Asks the container at `address` once; who calls ends it when it takes too long. Programs
    /// within containers are not its business.
    ///
    /// # Errors
    /// What is wrong, in words for people.
    async fn ask(&self, address: Ipv4Addr, probe: &Probe) -> Result<(), String>;
}

/// Connects to containers; no process is started for that.
#[derive(Debug, Default)]
pub struct NetProbes {
    tls: tls::Unverified,
}

#[async_trait]
impl Probes for NetProbes {
    async fn ask(&self, address: Ipv4Addr, probe: &Probe) -> Result<(), String> {
        match probe {
            Probe::Tcp { port } => connect((address, *port).into()).await.map(drop),
            Probe::Http(asked) if asked.tls => {
                let at = (address, asked.port).into();
                let stream = self.tls.connect(connect(at).await?, http::host(asked), at).await?;
                http::ask(stream, asked, at).await
            }
            Probe::Http(asked) => {
                let at = (address, asked.port).into();
                http::ask(connect(at).await?, asked, at).await
            }
            Probe::Grpc { port, service } => grpc::ask((address, *port).into(), service).await,
            Probe::Exec(_) | Probe::Shell(_) => Err("is not asked over the network".to_owned()),
        }
    }
}

async fn connect(at: SocketAddr) -> Result<TcpStream, String> {
    TcpStream::connect(at).await.map_err(|error| format!("connect to {at}: {}", say(&error)))
}

/// Without the number of the error.
pub(super) fn say(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connection reset".to_owned(),
        io::ErrorKind::HostUnreachable => "no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "network is unreachable".to_owned(),
        _ => error.to_string(),
    }
}
