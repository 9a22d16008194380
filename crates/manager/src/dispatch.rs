//! The post room: what each node must hold goes out, what each node saw comes in.
//!
//! One session per agent ([`session`]); what it carries is decided in
//! [`assign`], [`membership`] and [`table`]; [`post`] wakes the sessions that a change
//! concerns; [`parted`] says when all of them have acted upon it; [`status`] brings
//! reports to the store, many at a time.
//!
//! Not here: byte streams of people (`stream`), though the agent's side of one
//! arrives at this service.

pub mod assign;
mod batch;
pub(crate) mod membership;
mod parted;
pub(crate) mod post;
mod session;
pub(crate) mod sessions;
pub(crate) mod status;
pub mod table;

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use warren_proto::v1;

use crate::api::call;
use crate::api::table::Rpc;
use crate::core::Core;
use crate::refusal::Refusal;

/// Metadata of a tunnel: which stream it carries, in decimal.
pub const STREAM_ID_KEY: &str = "stream-id";

/// The service that agents call.
#[derive(Clone)]
pub struct Dispatch {
    core: Arc<Core>,
}

impl Dispatch {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

#[tonic::async_trait]
impl v1::dispatch_server::Dispatch for Dispatch {
    type SessionStream = ReceiverStream<Result<v1::ManagerMessage, Status>>;
    type TunnelStream = ReceiverStream<Result<v1::Frame, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        call(&self.core, Rpc::Session, request, |core, who, messages| async move {
            Ok(Response::new(session::open(&core, &who, messages).await?))
        })
        .await
    }

    async fn parted(
        &self,
        request: Request<v1::PartedRequest>,
    ) -> Result<Response<v1::PartedResponse>, Status> {
        call(&self.core, Rpc::Parted, request, |core, who, asked| async move {
            Ok(Response::new(parted::answer(&core, &who, &asked).await?))
        })
        .await
    }

    async fn tunnel(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<Self::TunnelStream>, Status> {
        let text = request.metadata().get(STREAM_ID_KEY).and_then(|value| value.to_str().ok());
        let id = text.and_then(|text| text.parse().ok()).ok_or_else(|| {
            Refusal::bad_input(format!("{STREAM_ID_KEY}: {text:?} is not a number of a stream"))
        })?;
        call(&self.core, Rpc::Tunnel, request, |core, who, frames| async move {
            Ok(Response::new(core.broker.accept(id, &who, frames)?))
        })
        .await
    }
}
