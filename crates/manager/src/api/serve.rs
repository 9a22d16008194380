//! The calls of [`Control`], each with the module that answers it.

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use warren_proto::v1;

use super::table::Rpc;
use super::{
    Control, audit, backup, call, cluster, explain, info, jobs, leave, list, lock, networks, nodes,
    operators, policies, read, revisions, services, simulate, tasks, token, wait, watch,
};
use crate::stream;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl v1::control_server::Control for Control {
    type WatchStream = ReceiverStream<Result<v1::Event, Status>>;
    type WaitServiceStream = ReceiverStream<Result<v1::Progress, Status>>;
    type StreamStream = ReceiverStream<Result<v1::Frame, Status>>;
    type LeaveClusterStream = ReceiverStream<Result<v1::LeaveProgress, Status>>;
    type BackupStream = ReceiverStream<Result<v1::BackupChunk, Status>>;

    async fn get_info(&self, request: Request<v1::GetInfoRequest>) -> Answer<v1::Info> {
        call(&self.core, Rpc::GetInfo, request, |core, who, _| async move {
            Ok(Response::new(info::info(&core, &who).await))
        })
        .await
    }

    async fn create_service(
        &self,
        request: Request<v1::CreateServiceRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::CreateService, request, |core, who, wire| async move {
            Ok(Response::new(Box::pin(services::create(&core, &who, wire)).await?))
        })
        .await
    }

    async fn update_service(
        &self,
        request: Request<v1::UpdateServiceRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::UpdateService, request, |core, who, wire| async move {
            Ok(Response::new(Box::pin(services::update(&core, &who, wire)).await?))
        })
        .await
    }

    async fn remove_services(
        &self,
        request: Request<v1::RemoveServicesRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::RemoveServices, request, |core, who, wire| async move {
            Ok(Response::new(services::remove(&core, &who, wire).await?))
        })
        .await
    }

    async fn list_services(
        &self,
        request: Request<v1::ListServicesRequest>,
    ) -> Answer<v1::ListServicesResponse> {
        call(&self.core, Rpc::ListServices, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(list::services(&core, &view, &wire)?))
        })
        .await
    }

    async fn list_tasks(
        &self,
        request: Request<v1::ListTasksRequest>,
    ) -> Answer<v1::ListTasksResponse> {
        call(&self.core, Rpc::ListTasks, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(list::tasks(&core, &view, &wire)?))
        })
        .await
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Answer<v1::ListNodesResponse> {
        call(&self.core, Rpc::ListNodes, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(list::nodes(&core, &view).await))
        })
        .await
    }

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Answer<Self::WatchStream> {
        call(&self.core, Rpc::Watch, request, |core, _, wire| async move {
            Ok(Response::new(watch::open(&core, wire.after)))
        })
        .await
    }

    async fn wait_service(
        &self,
        request: Request<v1::WaitServiceRequest>,
    ) -> Answer<Self::WaitServiceStream> {
        call(&self.core, Rpc::WaitService, request, |core, _, wire| async move {
            Ok(Response::new(wait::open(&core, wire).await?))
        })
        .await
    }

    async fn stream(&self, request: Request<Streaming<v1::Frame>>) -> Answer<Self::StreamStream> {
        call(&self.core, Rpc::Stream, request, |core, who, frames| async move {
            Ok(Response::new(stream::open(&core, &who, frames).await?))
        })
        .await
    }

    async fn stop_node(
        &self,
        request: Request<v1::StopNodeRequest>,
    ) -> Answer<v1::StopNodeResponse> {
        call(&self.core, Rpc::StopNode, request, |core, who, wire| async move {
            let with_containers = wire.with_containers;
            let principal = who.principal.as_str();
            tracing::info!(principal, with_containers, "asked to stop the node");
            (core.stop_node)(with_containers);
            Ok(Response::new(v1::StopNodeResponse {}))
        })
        .await
    }

    async fn update_node(&self, request: Request<v1::UpdateNodeRequest>) -> Answer<v1::Changed> {
        call(&self.core, Rpc::UpdateNode, request, |core, who, wire| async move {
            Ok(nodes::update(&core, &who, wire).await?)
        })
        .await
    }

    async fn remove_node(&self, request: Request<v1::RemoveNodeRequest>) -> Answer<v1::Changed> {
        call(&self.core, Rpc::RemoveNode, request, |core, who, wire| async move {
            Ok(Response::new(nodes::remove(&core, &who, wire).await?))
        })
        .await
    }

    async fn leave_cluster(
        &self,
        request: Request<v1::LeaveClusterRequest>,
    ) -> Answer<Self::LeaveClusterStream> {
        call(&self.core, Rpc::LeaveCluster, request, |core, who, wire| async move {
            Ok(Response::new(leave::open(&core, who, wire).await?))
        })
        .await
    }

    async fn get_cluster(
        &self,
        request: Request<v1::GetClusterRequest>,
    ) -> Answer<v1::ClusterState> {
        call(&self.core, Rpc::GetCluster, request, |core, _, _| async move {
            Ok(Response::new(cluster::get(&core.store.view())?))
        })
        .await
    }

    async fn update_cluster(
        &self,
        request: Request<v1::UpdateClusterRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::UpdateCluster, request, |core, who, wire| async move {
            Ok(Response::new(cluster::update(&core, &who, wire).await?))
        })
        .await
    }

    async fn get_join_token(
        &self,
        request: Request<v1::GetJoinTokenRequest>,
    ) -> Answer<v1::JoinTokenText> {
        call(&self.core, Rpc::GetJoinToken, request, |core, who, wire| async move {
            Ok(Response::new(token::get(&core, &who, wire).await?))
        })
        .await
    }

    async fn rotate_authority(
        &self,
        request: Request<v1::RotateAuthorityRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::RotateAuthority, request, |core, who, wire| async move {
            Ok(Response::new(cluster::rotate_authority(&core, &who, wire).await?))
        })
        .await
    }

    async fn rotate_data_key(
        &self,
        request: Request<v1::RotateDataKeyRequest>,
    ) -> Answer<v1::RotateDataKeyResponse> {
        call(&self.core, Rpc::RotateDataKey, request, |core, who, _| async move {
            lock::rotate_data_key(&core, &who).await?;
            Ok(Response::new(v1::RotateDataKeyResponse {}))
        })
        .await
    }

    async fn set_lock(&self, request: Request<v1::SetLockRequest>) -> Answer<v1::UnlockKeyText> {
        call(&self.core, Rpc::SetLock, request, |core, who, wire| async move {
            Ok(Response::new(lock::set(&core, &who, wire).await?))
        })
        .await
    }

    async fn unlock(&self, request: Request<v1::UnlockRequest>) -> Answer<v1::UnlockResponse> {
        call(&self.core, Rpc::Unlock, request, |_, _, _| async move { Err(lock::is_open().into()) })
            .await
    }

    async fn backup(&self, request: Request<v1::BackupRequest>) -> Answer<Self::BackupStream> {
        call(&self.core, Rpc::Backup, request, |core, who, wire| async move {
            Ok(backup::open(&core, &who, wire).await?)
        })
        .await
    }

    async fn create_operator(
        &self,
        request: Request<v1::CreateOperatorRequest>,
    ) -> Answer<v1::CreatedOperator> {
        call(&self.core, Rpc::CreateOperator, request, |core, who, wire| async move {
            Ok(Response::new(operators::create(&core, &who, wire).await?))
        })
        .await
    }

    async fn remove_operator(
        &self,
        request: Request<v1::RemoveOperatorRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::RemoveOperator, request, |core, who, wire| async move {
            Ok(Response::new(operators::remove(&core, &who, wire).await?))
        })
        .await
    }

    async fn list_operators(
        &self,
        request: Request<v1::ListOperatorsRequest>,
    ) -> Answer<v1::ListOperatorsResponse> {
        call(&self.core, Rpc::ListOperators, request, |core, _, _| async move {
            Ok(Response::new(operators::list(&core.store.view())))
        })
        .await
    }

    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Answer<v1::ListAuditResponse> {
        call(&self.core, Rpc::ListAudit, request, |core, _, wire| async move {
            Ok(Response::new(audit::list(&core.store.view(), &wire)))
        })
        .await
    }

    async fn set_log_level(
        &self,
        request: Request<v1::SetLogLevelRequest>,
    ) -> Answer<v1::SetLogLevelResponse> {
        call(&self.core, Rpc::SetLogLevel, request, |core, who, wire| async move {
            Ok(Response::new(info::set_log_level(&core, &who, &wire.filter)?))
        })
        .await
    }

    async fn create_network(
        &self,
        request: Request<v1::CreateNetworkRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::CreateNetwork, request, |core, who, wire| async move {
            Ok(Response::new(networks::create(&core, &who, wire).await?))
        })
        .await
    }

    async fn remove_networks(
        &self,
        request: Request<v1::RemoveNetworksRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::RemoveNetworks, request, |core, who, wire| async move {
            Ok(Response::new(networks::remove(&core, &who, wire).await?))
        })
        .await
    }

    async fn list_networks(
        &self,
        request: Request<v1::ListNetworksRequest>,
    ) -> Answer<v1::ListNetworksResponse> {
        call(&self.core, Rpc::ListNetworks, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(networks::list(&core, &view, &wire)?))
        })
        .await
    }

    async fn create_policy(
        &self,
        request: Request<v1::CreatePolicyRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::CreatePolicy, request, |core, who, wire| async move {
            Ok(Response::new(policies::create(&core, &who, wire).await?))
        })
        .await
    }

    async fn remove_policies(
        &self,
        request: Request<v1::RemovePoliciesRequest>,
    ) -> Answer<v1::Changed> {
        call(&self.core, Rpc::RemovePolicies, request, |core, who, wire| async move {
            Ok(Response::new(policies::remove(&core, &who, wire).await?))
        })
        .await
    }

    async fn list_policies(
        &self,
        request: Request<v1::ListPoliciesRequest>,
    ) -> Answer<v1::ListPoliciesResponse> {
        call(&self.core, Rpc::ListPolicies, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(policies::list(&core, &view, &wire)?))
        })
        .await
    }

    async fn explain(&self, request: Request<v1::ExplainRequest>) -> Answer<v1::Explanation> {
        call(&self.core, Rpc::Explain, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(explain::explain(&core, &view, &wire)?))
        })
        .await
    }

    async fn simulate(&self, request: Request<v1::SimulateRequest>) -> Answer<v1::Simulation> {
        call(&self.core, Rpc::Simulate, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(simulate::simulate(&core, &view, &wire)?))
        })
        .await
    }

    async fn list_revisions(
        &self,
        request: Request<v1::ListRevisionsRequest>,
    ) -> Answer<v1::ListRevisionsResponse> {
        call(&self.core, Rpc::ListRevisions, request, |core, _, wire| async move {
            let view = read(&core, wire.min_revision, wire.linearizable).await?;
            Ok(Response::new(revisions::list(&core, &view, &wire)?))
        })
        .await
    }

    async fn roll_back_service(
        &self,
        request: Request<v1::RollBackServiceRequest>,
    ) -> Answer<v1::ServiceChanged> {
        call(&self.core, Rpc::RollBackService, request, |core, who, wire| async move {
            Ok(Response::new(revisions::roll_back(&core, &who, wire).await?))
        })
        .await
    }

    async fn hold_update(
        &self,
        request: Request<v1::HoldUpdateRequest>,
    ) -> Answer<v1::ServiceChanged> {
        call(&self.core, Rpc::HoldUpdate, request, |core, who, wire| async move {
            Ok(Response::new(revisions::hold(&core, &who, wire).await?))
        })
        .await
    }

    async fn run_job(&self, request: Request<v1::RunJobRequest>) -> Answer<v1::RunChanged> {
        call(&self.core, Rpc::RunJob, request, |core, who, wire| async move {
            Ok(Response::new(jobs::run(&core, &who, wire).await?))
        })
        .await
    }

    async fn stop_job(&self, request: Request<v1::StopJobRequest>) -> Answer<v1::RunChanged> {
        call(&self.core, Rpc::StopJob, request, |core, who, wire| async move {
            Ok(Response::new(jobs::stop(&core, &who, wire).await?))
        })
        .await
    }

    async fn suspend_job(
        &self,
        request: Request<v1::SuspendJobRequest>,
    ) -> Answer<v1::ServiceChanged> {
        call(&self.core, Rpc::SuspendJob, request, |core, who, wire| async move {
            Ok(Response::new(jobs::suspend(&core, &who, wire).await?))
        })
        .await
    }

    async fn control_task(
        &self,
        request: Request<v1::ControlTaskRequest>,
    ) -> Answer<v1::TaskControlled> {
        call(&self.core, Rpc::ControlTask, request, |core, who, wire| async move {
            Ok(Response::new(tasks::control(&core, &who, wire).await?))
        })
        .await
    }
}
