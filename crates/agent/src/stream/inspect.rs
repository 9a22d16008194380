//! Checks before a service is accepted, the node's own health, and what policies did on it.

use std::sync::Arc;

use tokio::sync::oneshot;
use warren_image::{Image, check as image_check};
use warren_model::PolicyId;
use warren_model::bind::is_below;
use warren_model::health::{HealthSpec, Healthcheck};
use warren_model::service::expand::is_template;
use warren_model::service::{
    Companion, Mount, MountKind, SeccompProfile, ServiceSpec, TaskTemplate,
};
use warren_net::Action;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use super::resolve::Resolved;
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
    let mut resolved = Resolved::new(request.resolve);
    let image = match resolved.find(tools, &spec.task.image).await? {
        Ok(image) => image,
        Err(platforms) => return Ok(answer(v1::CheckResult { platforms, ..none() }, resolved)),
    };
    let mut others = Vec::new();
    for companion in &spec.task.companions {
        match resolved.find(tools, &companion.task.image).await {
            Ok(Ok(found)) => others.push(found),
            // Placed where all of its images are for: the first that is for no platform here says.
            Ok(Err(platforms)) => {
                return Ok(answer(v1::CheckResult { platforms, ..none() }, resolved));
            }
            Err(failure) => return Err(within(companion, failure)),
        }
    }
    let health = health_of(&image, &spec)?.as_ref().map(v1::Healthcheck::from);
    let platforms = image.platforms.iter().cloned().collect();
    let found = v1::CheckResult { image_id: image.id.clone(), health, platforms, ..none() };
    let found = answer(found, resolved);
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
            warren_runtime::native::check_seccomp(profile)
                .map_err(|error| Failure::new(Code::BadInput, format!("security_opt: {error}")))?;
        }
    }
    Ok(())
}

fn none() -> v1::CheckResult {
    v1::CheckResult::default()
}

fn answer(found: v1::CheckResult, resolved: Resolved) -> v1::CheckResult {
    let Resolved { pinned, unresolved, local, .. } = resolved;
    v1::CheckResult { pinned, unresolved, local, ..found }
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
    let looked = image_check::check(image, user, workdir, &args, path);
    if looked.as_ref().is_err_and(|error| may_be_mounted(template, error, path)) {
        return Ok(());
    }
    looked.map_err(|error| {
        let message = format!("image {}: {error}", template.image);
        Failure::new(Code::BadInput, message).hint(error.hint())
    })
}

/// Whether what is wrong with the image may be right with what is mounted into it.
fn may_be_mounted(template: &TaskTemplate, error: &image_check::Error, path: &str) -> bool {
    use image_check::Error as Wrong;
    let has_files = |mount: &&Mount| !matches!(mount.kind, MountKind::Tmpfs(_));
    let mounts = template.mounts.iter().filter(has_files).map(|mount| &mount.target);
    let targets = mounts.chain(template.shared.iter().map(|folder| &folder.target));
    // One that a template comes to may be anywhere.
    let beside = |wanted: &str| {
        targets.clone().any(|target| {
            is_template(target) || is_below(target, wanted) || is_below(wanted, target)
        })
    };
    match error {
        Wrong::NoProgram { program }
        | Wrong::IsFolder { program }
        | Wrong::NotExecutable { program } => beside(program),
        Wrong::NotInPath { .. } => path.split(':').any(beside),
        Wrong::NoUser { .. } => beside("/etc/passwd"),
        Wrong::NoGroup { .. } => beside("/etc/group"),
        Wrong::WorkdirIsFile { workdir } => beside(workdir),
        Wrong::Unreadable { path, .. } => beside(path),
        Wrong::NoCommand | Wrong::IdRange { .. } | Wrong::WorkdirRelative { .. } => false,
    }
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

#[cfg(test)]
mod tests {
    use warren_model::service::{Tmpfs, Volume};

    use super::*;

    #[test]
    fn what_mounts_may_bring() {
        let volume = |target: &str| Mount {
            target: target.to_owned(),
            read_only: false,
            kind: MountKind::Volume(Volume::default()),
        };
        let check = |mount: Mount, error: image_check::Error| {
            let template = TaskTemplate { mounts: vec![mount], ..TaskTemplate::default() };
            may_be_mounted(&template, &error, "/usr/local/bin:/bin")
        };
        let program = |path: &str| image_check::Error::NoProgram { program: path.to_owned() };
        let in_path = || image_check::Error::NotInPath { program: "x".into(), path: String::new() };
        let user = || image_check::Error::NoUser { user: "bob".into() };
        assert!(check(volume("/app"), program("/app/run")));
        assert!(check(volume("/app/run"), program("/app/run")));
        assert!(!check(volume("/app"), program("/apps/run")));
        assert!(check(volume("/usr/local"), in_path()));
        assert!(check(volume("/bin/tool"), in_path()));
        assert!(!check(volume("/data"), in_path()));
        assert!(check(volume("/etc"), user()) && !check(volume("/srv"), user()));
        assert!(check(volume("/{{.Task.Slot}}"), program("/1/run")));
        assert!(!check(volume("/app"), image_check::Error::NoCommand));
        let memory = Mount { kind: MountKind::Tmpfs(Tmpfs::default()), ..volume("/app") };
        assert!(!check(memory, program("/app/run")));
    }
}
