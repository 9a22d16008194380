//! Checks before a service is accepted, the node's own health, and what policies did on it.

use std::sync::Arc;

use tokio::sync::oneshot;
use warren_image::{Image, Progress, Reference, check as image_check};
use warren_model::PolicyId;
use warren_model::health::{HealthSpec, Healthcheck};
use warren_model::service::{Companion, SeccompProfile, ServiceSpec, TaskTemplate};
use warren_net::Action;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use super::{Code, Failure, Line, Outcome};
use crate::container;
use crate::doctor;
use crate::health;
use crate::ports::Error as PortError;
use crate::published;
use crate::worker::Tools;

/// For a new key: managers wait for their nodes twice, and nodes are given a moment each time.
const ROTATE_MAX_MS: u64 = 25_000;

/// Whether the node could run the service: image, program, user, working directory, ports.
pub(super) async fn check(tools: &Arc<Tools>, request: v1::Check, line: &mut Line) -> Outcome {
    let checked = tokio::select! {
        checked = look(tools, request) => checked,
        () = line.gone() => return Outcome::Gone,
    };
    match checked {
        Ok(found) => {
            let answer = Kind::Checked(found);
            line.send(answer).await.map_or(Outcome::Gone, |()| Outcome::Served)
        }
        Err(failure) => Outcome::Failed(failure),
    }
}

/// The image's id, how its containers are asked for their health, if it says so, and for which
/// machines there are builds. One that is not for this machine may be for others.
async fn look(tools: &Tools, request: v1::Check) -> Result<v1::CheckResult, Failure> {
    let spec = request.spec.unwrap_or_default();
    let spec = ServiceSpec::try_from(spec).map_err(|error| error.within("check.spec"))?;
    let service = match request.service.as_slice() {
        [] => None,
        id => Some(warren_proto::service_id("check.service", id)?),
    };
    // Ports first: they are known at once, an image may take a while.
    for claim in published::claims(&spec.ports) {
        tools.ports.probe(service, claim).map_err(port_failure)?;
    }
    check_profiles(&spec.task)?;
    let image = match find_image(tools, &spec.task.image).await? {
        Ok(image) => image,
        Err(platforms) => return Ok(v1::CheckResult { platforms, ..v1::CheckResult::default() }),
    };
    let mut others = Vec::new();
    for companion in &spec.task.companions {
        match find_image(tools, &companion.task.image).await {
            Ok(Ok(found)) => others.push(found),
            // Placed where all of its images are for: the first that is for no platform here says.
            Ok(Err(platforms)) => {
                return Ok(v1::CheckResult { platforms, ..v1::CheckResult::default() });
            }
            Err(failure) => return Err(within(companion, failure)),
        }
    }
    let health = health_of(&image, &spec)?.as_ref().map(v1::Healthcheck::from);
    let platforms = image.platforms.iter().cloned().collect();
    let found = v1::CheckResult { image_id: image.id.clone(), health, platforms };
    let work = move || {
        look_inside(&image, &spec.task)?;
        let companions = spec.task.companions.iter().zip(&others);
        companions.into_iter().try_for_each(|(companion, image)| {
            look_inside(image, &companion.task).map_err(|failure| within(companion, failure))
        })
    };
    // Reads the image's files.
    match tokio::task::spawn_blocking(work).await {
        Ok(looked) => looked.map(|()| found),
        Err(_) => Err(Failure::new(Code::Failed, "looking into the image was interrupted")),
    }
}

/// Seccomp profiles that containers bring along.
fn check_profiles(template: &TaskTemplate) -> Result<(), Failure> {
    let companions = template.companions.iter().map(|companion| &companion.task);
    for task in std::iter::once(template).chain(companions) {
        if let SeccompProfile::Custom(profile) = &task.privileges.seccomp {
            warren_runtime::native::check_seccomp(profile).map_err(|error| {
                Failure::new(Code::BadInput, format!("security_opt: {error}"))
            })?;
        }
    }
    Ok(())
}

/// The error within is what it is for, if that is not this machine.
async fn find_image(tools: &Tools, text: &str) -> Result<Result<Image, Vec<String>>, Failure> {
    let name: Reference = match text.parse() {
        Ok(name) => name,
        Err(error) => {
            let error = warren_image::Error::from(error);
            return tools.images.find(text).map(Ok).map_err(|_| error.into());
        }
    };
    match tools.images.get(&name) {
        Some(image) => Ok(Ok(image)),
        None => match tools.images.pull(&name, Progress::none()).await {
            Ok(image) => Ok(Ok(image)),
            Err(warren_image::Error::NoPlatform { available, .. }) if !available.is_empty() => {
                Ok(Err(available.iter().map(|platform| plain(platform)).collect()))
            }
            Err(error) => Err(error.into()),
        },
    }
}

/// Without its variant: `linux/arm64` of `linux/arm64/v8`.
fn plain(platform: &str) -> String {
    platform.splitn(3, '/').take(2).collect::<Vec<_>>().join("/")
}

fn within(companion: &Companion, failure: Failure) -> Failure {
    let message = format!("{} {}: {}", companion.kind.words(), companion.name, failure.message);
    Failure { message, ..failure }
}

fn look_inside(image: &Image, template: &TaskTemplate) -> Result<(), Failure> {
    let config = &image.config;
    let args = container::arguments(template, config);
    let user = template.user.as_deref().unwrap_or(&config.user);
    let workdir = template.workdir.as_deref().unwrap_or(&config.workdir);
    let env = container::environment(template, config, "");
    let path = env.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    image_check::check(image, user, workdir, &args, path).map_err(|error| {
        let message = format!("image {}: {error}", template.image);
        Failure::new(Code::BadInput, message).hint(error.hint())
    })
}

/// What the image says, where the service itself says nothing.
fn health_of(image: &Image, spec: &ServiceSpec) -> Result<Option<HealthSpec>, Failure> {
    if matches!(spec.task.health, Healthcheck::Off | Healthcheck::Explicit(_)) {
        return Ok(None);
    }
    let Some(health) = &image.config.health else { return Ok(None) };
    health::of_image(health).map_err(|why| {
        let text = format!("image {}: its HEALTHCHECK: {why}", spec.task.image);
        Failure::new(Code::BadInput, text)
            .hint("declare one, e.g. --health-cmd, or leave it out: --no-healthcheck")
    })
}

fn port_failure(error: PortError) -> Failure {
    let (code, hint) = match &error {
        PortError::Taken { .. } | PortError::Net(warren_net::Error::PortTaken { .. }) => {
            (Code::Conflict, "publish another port, or stop what holds this one")
        }
        PortError::Net(warren_net::Error::NoAddress { .. }) => {
            (Code::BadInput, "leave the address out, or write one that the node has")
        }
        PortError::Net(
            warren_net::Error::Io { .. }
            | warren_net::Error::Overlay(_)
            | warren_net::Error::Unsupported(_),
        ) => (Code::Failed, "warren doctor shows what the node lacks"),
    };
    Failure::new(code, crate::effects::chain(&error)).hint(hint)
}

/// What works on this node and what does not.
pub(super) async fn doctor(tools: &Arc<Tools>, asked: v1::Doctor, line: &mut Line) -> Outcome {
    let answer = Kind::Findings(doctor::findings(tools, &asked).await);
    line.send(answer).await.map_or(Outcome::Gone, |()| Outcome::Served)
}

/// How often policies decided on this node.
pub(super) async fn count_policies(tools: &Arc<Tools>, line: &mut Line) -> Outcome {
    let counts = match tools.network.counts().await {
        Ok(counts) => counts,
        Err(error) => {
            let text = format!("count what policies did: {}", crate::effects::chain(&error));
            return Outcome::Failed(Failure::new(Code::Failed, text));
        }
    };
    let counts = counts.into_iter().filter_map(|count| {
        // Names of clauses are ours; nothing: no policy, but networks.
        let policy = match &*count.name {
            "" => Vec::new(),
            name => name.parse::<PolicyId>().ok()?.as_bytes().to_vec(),
        };
        let denied = count.action == Action::Deny;
        Some(v1::PolicyCount { policy, denied, packets: count.packets, bytes: count.bytes })
    });
    let answer = Kind::PolicyCounts(v1::PolicyCounts { counts: counts.collect() });
    line.send(answer).await.map_or(Outcome::Gone, |()| Outcome::Served)
}

/// Has the key of the tunnel replaced, and waits for a while until it is.
pub(super) async fn rotate_key(tools: &Arc<Tools>, line: &mut Line) -> Outcome {
    let keys = tools.tunnel.as_ref().map(|tunnel| tunnel.keys()).unwrap_or_default();
    if keys.is_empty() {
        let failure = Failure::new(Code::Conflict, "this node has no tunnel to other nodes");
        return Outcome::Failed(failure.hint("warren doctor shows what it lacks"));
    }
    let (wish, replaced) = oneshot::channel();
    if tools.wishes.try_send(wish).is_err() {
        let text = "too many ask for another key at the same time";
        return Outcome::Failed(Failure::new(Code::Failed, text));
    }
    let replaced = tokio::select! {
        replaced = replaced => replaced.ok(),
        () = tools.clock.sleep(ROTATE_MAX_MS) => None,
    };
    let key = replaced.or_else(|| keys.first().map(|key| key.public)).unwrap_or_default();
    let answer = v1::KeyRotated { key: key.to_vec(), done: replaced.is_some() };
    line.send(Kind::KeyRotated(answer)).await.map_or(Outcome::Gone, |()| Outcome::Served)
}
