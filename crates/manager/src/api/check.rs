//! Asks a node whether it could run a service, before it is accepted: image,
//! program, user, folder, ports. Only a node can tell.
//!
//! A wish is not refused because nobody is there to look at it: without a
//! connected worker, at this manager or another, the check is left out.

use warren_model::health::{HealthSpec, Healthcheck};
use warren_model::{NodeId, Placement, ServiceId, ServiceSpec};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream;

use crate::api::pin::Digests;
use crate::core::Core;
use crate::quorum;
use crate::refusal::{Mark, Refusal};
use crate::stream::route::{request, somewhere};

/// The node may have to pull a large image over a slow line; a tool that gives up sooner ends the
/// check with its call.
const CHECK_MS: u64 = 15 * 60 * 1000;

/// What a check came to.
pub(super) struct Checked {
    /// Managers are in touch: nobody takes the change otherwise, which whoever proposes it tells in
    /// time.
    pub(super) in_touch: bool,
    /// A node has looked; what it found of the image's own check of health.
    pub(super) image: Option<Found>,
}

/// What a node found of an image.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) health: Option<HealthSpec>,
    /// What there are builds for; none: unknown.
    pub(super) platforms: Vec<String>,
    pub(super) digests: Digests,
}

impl Checked {
    pub(super) const NOT: Self = Self { in_touch: true, image: None };
}

/// Has a node look, and tell the digests of the images in `resolve`.
///
/// # Errors
/// What the node found, or that it went away.
pub(super) async fn check_on_node(
    core: &Core,
    id: ServiceId,
    spec: &ServiceSpec,
    resolve: Vec<String>,
) -> Result<Checked, Refusal> {
    let Some(node) = somewhere(core) else { return Ok(Checked::NOT) };
    tokio::select! {
        checked = check_there(core, node, id, spec, resolve) => checked.map(|image| Checked { in_touch: true, image }),
        () = quorum::lost(core) => Ok(Checked { in_touch: false, image: None }),
    }
}

async fn check_there(
    core: &Core,
    node: NodeId,
    id: ServiceId,
    spec: &ServiceSpec,
    resolve: Vec<String>,
) -> Result<Option<Found>, Refusal> {
    let service = id.as_bytes().to_vec();
    let check = v1::Check { spec: Some(spec.into()), service, resolve };
    let open = request(node, open_stream::Kind::Check(check));
    // Held until the answer is there: to drop it is to give up.
    let mut tunnel = match core.broker.open(core, node, open).await {
        // It went away, and the state has not heard of it yet.
        Err(refusal) if refusal.mark == Some(Mark::Elsewhere) => return Ok(None),
        opened => opened?,
    };
    let answer = async {
        loop {
            match tunnel.from_node.message().await {
                Ok(Some(v1::Frame { kind: Some(Kind::Checked(found)) })) => {
                    return understood(core, spec, found).map(Some);
                }
                Ok(Some(v1::Frame { kind: Some(Kind::Error(error)) })) => {
                    return Err(Refusal::of_stream(error));
                }
                // Progress of a pull: nobody is shown it here.
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    return Err(Refusal::unavailable("the node went away while checking"));
                }
            }
        }
    };
    tokio::select! {
        answer = answer => answer,
        () = core.clock.sleep(CHECK_MS) => {
            let minutes = CHECK_MS / 60_000;
            Err(Refusal::failed(format!("the node did not finish checking in {minutes} minutes"))
                .hint("pull the image first: warren image pull"))
        }
    }
}

fn understood(
    core: &Core,
    spec: &ServiceSpec,
    mut found: v1::CheckResult,
) -> Result<Found, Refusal> {
    let digests = Digests::of(&mut found);
    let mut platforms = found.platforms;
    platforms.sort();
    platforms.dedup();
    if platforms.len() > Placement::PLATFORMS_MAX {
        platforms.clear();
    }
    let placement = Placement { platforms, ..Placement::default() };
    // The node that looked may be of another kind than those that it is for.
    if found.image_id.is_empty()
        && !core.store.view().nodes().any(|node| node.worker && placement.has_build_for(node))
    {
        let (image, all) = (&spec.task.image, placement.platforms.join(", "));
        return Err(Refusal::bad_input(format!(
            "image {image} is for {all}, and no node of the cluster is"
        ))
        .hint("use an image that is built for the cluster's nodes, or add such a node"));
    }
    Ok(Found { health: health_of(found.health)?, platforms: placement.platforms, digests })
}

fn health_of(found: Option<v1::Healthcheck>) -> Result<Option<HealthSpec>, Refusal> {
    let health = found.map(Healthcheck::try_from).transpose();
    let health = health.map_err(|error| error.within("checked.health"))?;
    Ok(match health {
        Some(Healthcheck::Explicit(spec) | Healthcheck::Image(spec)) => Some(*spec),
        Some(Healthcheck::Implicit | Healthcheck::Off) | None => None,
    })
}
