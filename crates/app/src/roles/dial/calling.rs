//! Connections of people to managers, whom their context recognises.
//!
//! Besides the channel the caller gets what it may want to keep: the
//! certificates that the manager showed, and whether the manager, later on,
//! refused what was shown to it. In TLS 1.3 that is heard only after the
//! handshake, and HTTP/2 keeps no more of it than words.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use rustls::ClientConfig;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::Channel;
use warren_trust::Refusal;

use super::{DialError, Names, over, stream};
use crate::address::Address;

/// A connection to a manager.
pub(crate) struct Called {
    pub(crate) channel: Channel,
    /// Leaf first; `config` has accepted it.
    pub(crate) shown: Vec<CertificateDer<'static>>,
    pub(crate) distrust: Distrust,
}

/// Whether the other side refused the certificate that it was shown. Clones share what is known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Distrust(Arc<AtomicBool>);

impl Distrust {
    pub(crate) fn is_told(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    fn listen(&self, outcome: &Poll<io::Result<()>>) {
        if let Poll::Ready(Err(error)) = outcome
            && warren_trust::refusal(error) == Some(Refusal::Theirs)
        {
            self.0.store(true, Ordering::Release);
        }
    }
}

/// As [`super::joining`], for the API: whom `config` accepts.
///
/// # Errors
/// [`DialError`].
pub(crate) async fn calling(
    address: &Address,
    config: Arc<ClientConfig>,
) -> Result<Called, DialError> {
    let stream = stream(&Names::default(), address, config).await?;
    let shown = stream.get_ref().1.peer_certificates().map(<[_]>::to_vec).unwrap_or_default();
    let distrust = Distrust::default();
    let heard = Heard { stream, distrust: distrust.clone() };
    Ok(Called { channel: over(address, heard).await?, shown, distrust })
}

/// A stream that remembers being refused.
struct Heard<S> {
    stream: S,
    distrust: Distrust,
}

impl<S: AsyncRead + Unpin> AsyncRead for Heard<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        self.distrust.listen(&outcome);
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heard<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_refusals_of_the_other_side_count() {
        let distrust = Distrust::default();
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::UnknownCA);
        distrust.listen(&Poll::Ready(Err(io::Error::from(io::ErrorKind::ConnectionReset))));
        distrust.listen(&Poll::Ready(Ok(())));
        assert!(!distrust.is_told());
        distrust.listen(&Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, alert))));
        assert!(distrust.is_told());
    }
}
