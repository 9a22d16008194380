//! Reception: what people and their tools call.
//!
//! Who are you, may you, is it well-formed, is it there; then a transaction.
//! No rule of the cluster lives here: those are the state's. Reads are of this
//! manager's view, at least as new as the caller asks.

pub(crate) mod authorize;
mod check;
mod list;
mod request;
mod services;
mod wait;
mod watch;

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use warren_proto::v1;
use warren_state::State;

use crate::core::Core;
use crate::refusal::Refusal;
use crate::stream;
use authorize::authorize;

/// How long a read waits for the revision that it is to see.
const REVISION_WAIT_MS: u64 = 5000;

/// The service that the command line calls.
#[derive(Clone)]
pub struct Control {
    core: Arc<Core>,
}

impl Control {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

/// The state once it has reached `revision`.
async fn view_at(core: &Core, revision: u64) -> Result<Arc<State>, Refusal> {
    let mut moved = core.store.watch();
    let reached = async {
        loop {
            let view = core.store.view();
            if view.revision() >= revision {
                return Some(view);
            }
            moved.changed().await.ok()?;
        }
    };
    let view = tokio::select! {
        view = reached => view,
        () = core.clock.sleep(REVISION_WAIT_MS) => None,
    };
    view.ok_or_else(|| {
        let own = core.store.view().revision();
        Refusal::unavailable(format!("this manager is at revision {own}, not yet at {revision}"))
    })
}

#[tonic::async_trait]
impl v1::control_server::Control for Control {
    type WatchStream = ReceiverStream<Result<v1::Event, Status>>;
    type WaitServiceStream = ReceiverStream<Result<v1::Progress, Status>>;
    type StreamStream = ReceiverStream<Result<v1::Frame, Status>>;

    async fn get_info(
        &self,
        request: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::Info>, Status> {
        authorize(&request)?;
        Ok(Response::new(list::info(&self.core)))
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let principal = authorize(&request)?;
        let changed = services::create(&self.core, &principal, request.into_inner()).await?;
        Ok(Response::new(changed))
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let principal = authorize(&request)?;
        let changed = services::update(&self.core, &principal, request.into_inner()).await?;
        Ok(Response::new(changed))
    }

    async fn remove_services(
        &self,
        request: Request<v1::RemoveServicesRequest>,
    ) -> Result<Response<v1::Changed>, Status> {
        let principal = authorize(&request)?;
        let changed = services::remove(&self.core, &principal, request.into_inner()).await?;
        Ok(Response::new(changed))
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Result<Response<v1::ListServicesResponse>, Status> {
        authorize(&request)?;
        let request = request.into_inner();
        let view = view_at(&self.core, request.min_revision).await?;
        Ok(Response::new(list::services(&view, &request)?))
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Result<Response<v1::ListTasksResponse>, Status> {
        authorize(&request)?;
        let request = request.into_inner();
        let view = view_at(&self.core, request.min_revision).await?;
        Ok(Response::new(list::tasks(&view, &request)?))
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        authorize(&request)?;
        let view = view_at(&self.core, request.into_inner().min_revision).await?;
        Ok(Response::new(list::nodes(&self.core, &view)))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        authorize(&request)?;
        Ok(Response::new(watch::open(&self.core, request.into_inner().after)))
    }

    async fn wait_service(
        &self,
        request: Request<v1::WaitServiceRequest>,
    ) -> Result<Response<Self::WaitServiceStream>, Status> {
        authorize(&request)?;
        Ok(Response::new(wait::open(&self.core, request.into_inner()).await?))
    }

    async fn stream(
        &self,
        request: Request<Streaming<v1::Frame>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        authorize(&request)?;
        Ok(Response::new(stream::open(&self.core, request.into_inner()).await?))
    }

    async fn stop_node(
        &self,
        request: Request<v1::StopNodeRequest>,
    ) -> Result<Response<v1::StopNodeResponse>, Status> {
        let principal = authorize(&request)?;
        let with_containers = request.into_inner().with_containers;
        tracing::info!(principal = principal.as_str(), with_containers, "asked to stop the node");
        (self.core.stop_node)(with_containers);
        Ok(Response::new(v1::StopNodeResponse {}))
    }
}
