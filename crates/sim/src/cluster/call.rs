//! Calls of people: the manager's real services, with a network in between.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use warren_manager::{Caller, Control};
use warren_model::Time;
use warren_model::operator::{Operator, OperatorName, OperatorRole};
use warren_proto::v1;
use warren_proto::v1::control_server::Control as _;
use warren_trust::{Peer, PeerRole};

use super::host::Host;
use super::laws;
use super::net::OUTSIDE;
use super::world::{World, held};

/// A person waits no longer for an answer, and asks again.
const PATIENCE: Duration = Duration::from_secs(6);
const KEY: [u8; 32] = [7; 32];

/// Who calls.
pub(crate) fn operator(name: OperatorName) -> Operator {
    Operator {
        name,
        role: OperatorRole::Admin,
        token_hash: None,
        key_hash: Some(KEY),
        expires: None,
        created: Time(0),
        revision: 0,
    }
}

fn request<T>(world: &World, message: T) -> Request<T> {
    let peer = Peer {
        node: None,
        operator: "sim".parse().ok(),
        role: PeerRole::Operator(OperatorRole::Admin),
        cluster: world.cluster,
        key_hash: KEY,
        not_before: Time(0),
        not_after: Time(u64::MAX),
        expired: false,
        issuer_hash: [0; 32],
    };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let mut request = Request::new(message);
    request.extensions_mut().insert(Caller::Remote { peer: Some(peer), address });
    request
}

/// What a person wants.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Create(v1::CreateServiceRequest),
    Update(v1::UpdateServiceRequest),
    Remove(v1::RemoveServicesRequest),
    Node(v1::UpdateNodeRequest),
    RemoveNode(v1::RemoveNodeRequest),
    Run(v1::RunJobRequest),
    Hold(v1::HoldUpdateRequest),
    Suspend(v1::SuspendJobRequest),
    Control(v1::ControlTaskRequest),
}

async fn changed(control: &Control, world: &World, ask: Ask) -> Result<u64, Status> {
    let answer = match ask {
        Ask::Create(wire) => control.create_service(request(world, wire)).await,
        Ask::Update(wire) => control.update_service(request(world, wire)).await,
        Ask::Remove(wire) => control.remove_services(request(world, wire)).await,
        Ask::Node(wire) => control.update_node(request(world, wire)).await,
        Ask::RemoveNode(wire) => control.remove_node(request(world, wire)).await,
        Ask::Run(wire) => return begun(control, world, wire).await,
        Ask::Hold(wire) => {
            let answer = control.hold_update(request(world, wire)).await;
            return answer.map(|answer| answer.into_inner().revision);
        }
        Ask::Suspend(wire) => {
            let answer = control.suspend_job(request(world, wire)).await;
            return answer.map(|answer| answer.into_inner().revision);
        }
        Ask::Control(wire) => {
            let answer = control.control_task(request(world, wire)).await;
            return answer.map(|answer| answer.into_inner().revision);
        }
    };
    answer.map(|answer| answer.into_inner().revision)
}

/// Whoever is told of the run of a wish, is told of the same.
async fn begun(control: &Control, world: &World, wire: v1::RunJobRequest) -> Result<u64, Status> {
    let wish = wire.params.get(laws::WISH).cloned().unwrap_or_default();
    let answer = control.run_job(request(world, wire)).await?.into_inner();
    if let (Some(number), Ok(id)) =
        (answer.runs.first(), warren_proto::service_id("id", &answer.id))
    {
        world.count(|counts| counts.runs += 1);
        world.hold(held(&world.book).laws.is_run(id, &wish, *number));
    }
    Ok(answer.revision)
}

/// Sends a change to a manager; the revision that it answers.
pub(crate) async fn change(world: &Arc<World>, host: &Arc<Host>, ask: Ask) -> Result<u64, Status> {
    over(world, host, async |control| changed(&control, world, ask).await).await
}

pub(crate) async fn list(
    world: &Arc<World>,
    host: &Arc<Host>,
    wire: v1::ListServicesRequest,
) -> Result<v1::ListServicesResponse, Status> {
    let call = async |control: Control| control.list_services(request(world, wire)).await;
    over(world, host, call).await.map(Response::into_inner)
}

/// There and back; what is lost on the way or with its manager is never answered.
async fn over<T>(
    world: &Arc<World>,
    host: &Arc<Host>,
    call: impl AsyncFnOnce(Control) -> Result<T, Status>,
) -> Result<T, Status> {
    let asked = async {
        if !world.net.pass(OUTSIDE, host.place).await {
            return None;
        }
        let Some((life, running)) = host.running() else {
            return Some(Err(Status::unavailable("nobody listens")));
        };
        let control = running.manager.control();
        drop(running);
        let answer = tokio::select! {
            answer = call(control) => answer,
            () = life.ended() => return Some(Err(Status::unknown("the connection broke"))),
        };
        // Said before the end, or never.
        let spoken = !host.is_off() && world.net.pass(host.place, OUTSIDE).await;
        spoken.then_some(answer)
    };
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Some(answer)) => answer,
        Ok(None) | Err(_) => Err(Status::deadline_exceeded("no answer")),
    }
}
