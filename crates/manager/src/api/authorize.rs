//! Who calls, and whether they may.
//!
//! On the local socket the kernel has asked already: the socket's mode lets
//! root and its group through, nobody else, and whoever holds it may do all.
//! The caller's uid names them in the request table. Other transports put a
//! [`Principal`] into the request's extensions, which cannot come from the wire.

use tonic::Request;
use tonic::transport::server::UdsConnectInfo;

use crate::refusal::Refusal;

/// Who a request comes from, e.g. `socket:0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal(String);

impl Principal {
    /// A caller that a transport has made sure of.
    pub fn new(name: impl Into<String>) -> Self {
        Self(name.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// # Errors
/// When the transport cannot say who calls.
pub(super) fn authorize<T>(request: &Request<T>) -> Result<Principal, Refusal> {
    let extensions = request.extensions();
    if let Some(principal) = extensions.get::<Principal>() {
        return Ok(principal.clone());
    }
    let uid = extensions.get::<UdsConnectInfo>().and_then(|info| info.peer_cred).map(|c| c.uid());
    uid.map(|uid| Principal(format!("socket:{uid}"))).ok_or_else(|| {
        Refusal::denied("the caller is not known").hint("use the node's local socket")
    })
}
