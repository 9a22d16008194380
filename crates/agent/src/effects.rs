//! How effects of task machines are done; each answers with an event.
//!
//! All are harmless to repeat. What must succeed in the end is insisted upon:
//! tried again with growing pauses, its trouble told to the machine.

use std::collections::BTreeSet;
use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;
use warren_image::{Image, Progress, Reference};
use warren_model::quantity::Time;
use warren_model::service::expand::Facts;
use warren_model::{TaskId, TaskTemplate};
use warren_runtime::Error as RuntimeError;

pub(crate) mod mounts;
mod network;

pub(crate) use network::{Roll, apply, hold, readmit, resolve};
use network::{admit, dismiss};
pub(crate) use network::{attach, rules_hold};

use crate::container::{self, Attempt, Parts};
use crate::core::{Input, Order, container_id};
use crate::names;
use crate::ports::{Claimant, Error as PortError, User};
use crate::published::PortKey;
use crate::restart::doubled;
use crate::room;
use crate::task::{Ended, Event, Failure, FailureKind};
use crate::worker::{Message, Tools};

const INSIST_FIRST_MS: u64 = 100;
const INSIST_MAX_MS: u64 = 30_000;
/// What a shell shows for SIGKILL: the shim and its container died unseen.
const KILLED: i32 = 137;

/// A preparation under way, and how to end it.
pub(crate) struct Preparing {
    pub(crate) cancel: CancellationToken,
    ended: oneshot::Receiver<()>,
}

impl Preparing {
    /// The guard is dropped when the preparation has ended.
    pub(crate) fn new() -> (Self, oneshot::Sender<()>) {
        let (guard, ended) = oneshot::channel();
        (Self { cancel: CancellationToken::new(), ended }, guard)
    }

    async fn end(self) {
        self.cancel.cancel();
        // Ends by the guard being dropped, which is the error here.
        let _ = self.ended.await;
    }
}

/// An error with its causes: `fetch layer sha256:ab of web:1: timed out`.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let part = source.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = source.source();
    }
    text
}

pub(crate) async fn answer(
    tools: &Tools,
    order: &Order,
    event: Event,
    claimed: Option<BTreeSet<PortKey>>,
) {
    tell(&event);
    send(tools, order, event, claimed).await;
}

async fn send(tools: &Tools, order: &Order, event: Event, claimed: Option<BTreeSet<PortKey>>) {
    let input = Input::Done { task: order.spec.id, attempt: order.attempt, event, claimed };
    tools.tell(Message::Input(Box::new(input))).await;
}

/// What happened, for people; the span around it says to which task.
fn tell(event: &Event) {
    match event {
        Event::Started { pid, .. } => tracing::info!(pid, "container started"),
        Event::Exited(ended) => tracing::info!(how = ended.describe(), "container ended"),
        Event::PrepareFailed(failure) => {
            tracing::warn!(error = failure.message, "prepare container");
        }
        Event::StartFailed(failure) => tracing::warn!(error = failure.message, "start container"),
        Event::InitFailed { why, .. } => tracing::warn!(error = why, "start container"),
        Event::ClaimFailed(error) => tracing::warn!(error, "take published ports"),
        Event::Trouble(error) => tracing::warn!(error, "will be tried again"),
        Event::Cleaned => tracing::info!("task removed"),
        Event::Wanted(_)
        | Event::Prepared
        | Event::Published
        | Event::PublishFailed(_)
        | Event::Cleared { .. }
        | Event::Released
        | Event::PortsChanged
        | Event::PortsFreed
        | Event::Claimed
        | Event::Health { .. }
        | Event::Gate(_)
        | Event::CutOff(_)
        | Event::Heard
        | Event::Restart
        | Event::Companions(_)
        | Event::Ending
        | Event::SidecarIll(_)
        | Event::Wake => tracing::debug!(?event, "effect done"),
    }
}

fn claimant(order: &Order) -> Claimant {
    Claimant {
        user: User::Task(order.spec.id),
        service: order.spec.service,
        service_name: order.service_name.clone(),
    }
}

/// Gets image, namespace and ports. Whatever was half done is undone by a release.
pub(crate) async fn prepare(tools: &Tools, order: Order, cancel: &CancellationToken) {
    if let Some(why) = &order.refused {
        let refused = Event::PrepareFailed(permanent(why.clone()));
        return answer(tools, &order, refused, None).await;
    }
    let image = tokio::select! {
        biased;
        () = cancel.cancelled() => return,
        () = tools.stopping.cancelled() => return,
        image = find_images(tools, &order.spec.template) => image,
    };
    let permit = tokio::select! {
        biased;
        () = cancel.cancelled() => return,
        permit = Arc::clone(&tools.starts).acquire_owned() => permit,
    };
    let Ok(permit) = permit else { return };
    let gathering = (attach(tools, &order), claim_ports(tools, &order), admit(tools, &order));
    let (sandbox, claimed, admitted) = tokio::join!(gathering.0, gathering.1, gathering.2);
    if cancel.is_cancelled() {
        return;
    }
    let keys = claimed.held.keys().copied().collect();
    let edits = tools.devices.edits(order.spec.devices.iter());
    let edits = edits.map_err(|message| Failure { message, kind: FailureKind::Permanent });
    let gathered = image.and_then(|image| match claimed.problem {
        None => admitted.and(Ok((image, sandbox?, edits?))),
        Some(problem) => Err(port_failure(&problem)),
    });
    match gathered {
        Ok((image, sandbox, edits)) => {
            let keep = claimed.held.into_iter().map(|(key, fd)| (key.label(), fd)).collect();
            let parts = Box::new(Parts { image, sandbox, keep, edits });
            let (task, attempt) = (order.spec.id, order.attempt);
            let message = Message::Prepared { task, attempt, claimed: keys, parts, permit };
            tools.tell(message).await;
        }
        Err(failure) => answer(tools, &order, Event::PrepareFailed(failure), Some(keys)).await,
    }
}

/// The image of the task's own container; those of others are here too, then.
async fn find_images(tools: &Tools, template: &TaskTemplate) -> Result<Image, Failure> {
    let own = find_image(tools, &template.image).await?;
    for companion in &template.companions {
        let within = |failure: Failure| {
            let (kind, name) = (companion.kind.words(), &companion.name);
            Failure { message: format!("{kind} `{name}`: {}", failure.message), ..failure }
        };
        find_image(tools, &companion.task.image).await.map_err(within)?;
    }
    Ok(own)
}

pub(crate) async fn find_image(tools: &Tools, reference: &str) -> Result<Image, Failure> {
    let failure = |error: warren_image::Error| {
        let kind = match error.is_transient() {
            true => FailureKind::Transient,
            false => FailureKind::Permanent,
        };
        Failure { message: chain(&error), kind }
    };
    let name = match reference.parse::<Reference>() {
        Ok(name) => name,
        // Ids of images are no names, but may be meant.
        Err(error) => {
            return tools.images.find(reference).map_err(|_| failure(error.into()));
        }
    };
    // What is here never asks a registry: restarts must work without one.
    if let Some(image) = tools.images.get(&name) {
        return Ok(image);
    }
    let Ok(_permit) = tools.pulls.acquire().await else {
        return Err(transient("the agent is stopping".to_owned()));
    };
    tracing::info!(image = reference, "pulling image");
    let mut pulled = tools.images.pull(&name, Progress::none()).await;
    if pulled.as_ref().is_err_and(room::is_full) && room::make_now(tools).await {
        pulled = tools.images.pull(&name, Progress::none()).await;
    }
    let image = pulled.map_err(failure)?;
    tracing::info!(image = reference, id = image.id, "image pulled");
    tools.image_came.notify_one();
    Ok(image)
}

async fn claim_ports(tools: &Tools, order: &Order) -> crate::ports::Claimed {
    let (claimed, freed) = tools.ports.claim(&claimant(order), &order.claims).await;
    if freed {
        tools.tell(Message::Input(Box::new(Input::PortsFreed))).await;
    }
    claimed
}

pub(crate) fn transient(message: String) -> Failure {
    Failure { message, kind: FailureKind::Transient }
}

pub(crate) fn permanent(message: String) -> Failure {
    Failure { message, kind: FailureKind::Permanent }
}

fn net_failure(error: &warren_net::Error) -> Failure {
    let kind = match error {
        warren_net::Error::PortTaken { .. } => FailureKind::Port,
        // Addresses come and go.
        warren_net::Error::NoAddress { .. }
        | warren_net::Error::Io { .. }
        | warren_net::Error::Overlay(_) => FailureKind::Transient,
        warren_net::Error::Unsupported(_) => FailureKind::Permanent,
    };
    Failure { message: chain(error), kind }
}

fn port_failure(error: &PortError) -> Failure {
    match error {
        PortError::Taken { .. } => Failure { message: error.to_string(), kind: FailureKind::Port },
        PortError::Net(error) => net_failure(error),
    }
}

/// Starts the container of the attempt.
pub(crate) async fn start(
    tools: &Tools,
    order: Order,
    parts: Option<Parts>,
    permit: Option<OwnedSemaphorePermit>,
) {
    // A retry comes without a permit.
    let permit = match permit {
        Some(permit) => Some(permit),
        None => Arc::clone(&tools.starts).acquire_owned().await.ok(),
    };
    let event = match try_start(tools, &order, parts).await {
        Ok(started) => Event::Started { pid: started.pid, at: container::time(started.at) },
        Err(failure) => Event::StartFailed(failure),
    };
    drop(permit);
    answer(tools, &order, event, None).await;
}

pub(crate) async fn try_start(
    tools: &Tools,
    order: &Order,
    parts: Option<Parts>,
) -> Result<warren_runtime::Started, Failure> {
    let parts = parts.ok_or_else(|| transient("nothing was prepared".to_owned()))?;
    rules_hold(tools, order.generation).await?;
    let attempt = Attempt {
        number: order.attempt,
        restarts: order.restarts,
        last_exit: order.last_exit,
        at: Time(tools.clock.now_ms()),
    };
    let resolver = resolver(tools, order).await;
    let logs = tools.log_dir(order.spec.id);
    let volumes = parts.image.config.volumes.clone();
    let mut spec =
        container::container(order, &facts(tools, order), attempt, parts, &resolver, &logs)
            .map_err(|error| permanent(error.to_string()))?;
    let (template, volumes) = (&*order.spec.template, &*volumes);
    let own = mounts::Container { companion: None, template, volumes };
    mounts::add(tools, order, &own, &mut spec).await?;
    start_container(tools, spec).await
}

/// The text of the containers' resolv.conf.
pub(crate) async fn resolver(tools: &Tools, order: &Order) -> String {
    if order.spec.template.privileges.host_network {
        // Whoever answers the node answers the container, on its loopback too.
        return tokio::fs::read_to_string("/etc/resolv.conf").await.unwrap_or_default();
    }
    let host = container::host_resolver().await;
    let stack = order.asker.as_ref().and_then(|asker| asker.stack.as_deref());
    match &tools.names {
        Some(_) => names::resolv_conf(&host, stack),
        None => container::resolv_conf(&host),
    }
}

pub(crate) async fn start_container(
    tools: &Tools,
    spec: warren_runtime::ContainerSpec,
) -> Result<warren_runtime::Started, Failure> {
    let id = spec.id.clone();
    let error = match tools.runtime.start(spec).await {
        Ok(started) => return Ok(started),
        Err(error) => error,
    };
    let kind = match &error {
        RuntimeError::Rejected(_) | RuntimeError::Unsupported(_) => FailureKind::Permanent,
        RuntimeError::NotFound(_) | RuntimeError::NotRunning(_) | RuntimeError::Io { .. } => {
            FailureKind::Transient
        }
    };
    if kind == FailureKind::Transient
        && let Err(error) = tools.runtime.remove(&id).await
    {
        tracing::warn!(container = id, error = chain(&error), "remove what did not start");
    }
    Err(Failure { message: chain(&error), kind })
}

/// What templates of a container are filled with.
pub(crate) fn facts<'a>(tools: &'a Tools, order: &'a Order) -> Facts<'a> {
    Facts {
        service: order.spec.service,
        service_name: &order.service_name,
        labels: &order.labels,
        node: tools.node,
        hostname: &tools.hostname,
        architecture: &tools.architecture,
        task: order.spec.id,
        slot: order.spec.slot,
        params: &order.spec.given.params,
    }
}

/// Tells when the container has ended.
pub(crate) async fn wait(tools: &Tools, order: &Order) {
    let ended = end_of(tools, &order.spec.container_id(order.attempt)).await;
    answer(tools, order, Event::Exited(ended), None).await;
}

/// How a container ended, once it has.
pub(crate) async fn end_of(tools: &Tools, id: &str) -> Ended {
    let mut failures = 0;
    loop {
        match tools.runtime.wait(id).await {
            Ok(exit) => break container::ended(&exit),
            Err(RuntimeError::NotFound(_)) => break lost(tools),
            Err(error) => {
                tracing::warn!(container = id, error = chain(&error), "wait for the end");
                pause(tools, failures).await;
                failures += 1;
            }
        }
    }
}

fn lost(tools: &Tools) -> Ended {
    Ended {
        code: KILLED,
        signal: None,
        oom_killed: false,
        supervisor_lost: true,
        at: Time(tools.clock.now_ms()),
    }
}

pub(crate) async fn pause(tools: &Tools, failures: u32) {
    tools.clock.sleep(doubled(INSIST_FIRST_MS, failures, INSIST_MAX_MS)).await;
}

/// Stops the container; its end is told by [`wait`] or here, whichever is first.
pub(crate) async fn stop(tools: &Tools, order: &Order, grace_ms: u64) {
    let id = order.spec.container_id(order.attempt);
    // Connections that other nodes send until they know are answered still.
    if let Some(revision) = order.parted {
        tools.parted.wait(tools, revision).await;
    }
    let mut failures = 0;
    let ended = loop {
        match tools.runtime.stop(&id, Duration::from_millis(grace_ms)).await {
            Ok(exit) => break container::ended(&exit),
            Err(RuntimeError::NotFound(_)) => break lost(tools),
            Err(error) => {
                let trouble = format!("stop container: {}", chain(&error));
                answer(tools, order, Event::Trouble(trouble), None).await;
                pause(tools, failures).await;
                failures += 1;
            }
        }
    };
    // Its sidecars are stopped after it; whoever does that says when all have ended.
    if !order.spec.template.companions.is_empty() {
        return;
    }
    // The waiting for its end has told people of it.
    send(tools, order, Event::Exited(ended), None).await;
}

/// Tries until it works; `false` when the agent stops first.
async fn insist<E, F>(tools: &Tools, what: &str, mut attempt: impl FnMut() -> F) -> bool
where
    E: StdError,
    F: Future<Output = Result<(), E>>,
{
    let mut failures = 0;
    loop {
        let Err(error) = attempt().await else { return true };
        tracing::warn!(what, error = chain(&error), "will be tried again");
        tokio::select! {
            () = tools.stopping.cancelled() => return false,
            () = pause(tools, failures) => failures += 1,
        }
    }
}

async fn remove(tools: &Tools, id: &str) -> bool {
    let Ok(_permit) = tools.removals.acquire().await else { return false };
    insist(tools, &format!("remove container {id}"), || tools.runtime.remove(id)).await
}

async fn detach(tools: &Tools, task: TaskId) -> bool {
    let id = task.to_string();
    insist(tools, &format!("detach {id} from the network"), || tools.network.detach(&id)).await
}

async fn release_ports(tools: &Tools, task: TaskId) {
    if tools.ports.release(task) {
        tools.tell(Message::Input(Box::new(Input::PortsFreed))).await;
    }
}

/// Removes what an attempt has beside the task's own container.
async fn remove_companions(
    tools: &Tools,
    task: TaskId,
    attempt: u32,
    template: Option<&TaskTemplate>,
) -> bool {
    for id in tools.crews.containers(task, attempt, template) {
        if !remove(tools, &id).await {
            return false;
        }
    }
    true
}

pub(crate) async fn clear(tools: &Tools, order: &Order, attempt: u32) {
    let (task, template) = (order.spec.id, Some(&*order.spec.template));
    if remove_companions(tools, task, attempt, template).await
        && remove(tools, &order.spec.container_id(attempt)).await
    {
        answer(tools, order, Event::Cleared { attempt }, None).await;
    }
}

pub(crate) async fn claim(tools: &Tools, order: &Order) {
    let claimed = claim_ports(tools, order).await;
    let keys = claimed.held.keys().copied().collect();
    let event = match claimed.problem {
        None => Event::Claimed,
        Some(problem) => Event::ClaimFailed(port_failure(&problem).message),
    };
    answer(tools, order, event, Some(keys)).await;
}

pub(crate) async fn release(tools: &Tools, order: &Order, preparing: Option<Preparing>) {
    if let Some(preparing) = preparing {
        preparing.end().await;
    }
    // Of a start that an earlier process began, and that nobody went on with.
    let template = Some(&*order.spec.template);
    if !remove_companions(tools, order.spec.id, order.attempt, template).await {
        return;
    }
    dismiss(tools, order.spec.id).await;
    if detach(tools, order.spec.id).await {
        release_ports(tools, order.spec.id).await;
        answer(tools, order, Event::Released, Some(BTreeSet::new())).await;
    }
}

/// Removes all that is left of a task; `false` when the agent stops first.
pub(crate) async fn clean(
    tools: &Tools,
    task: TaskId,
    attempts: &[u32],
    template: Option<&TaskTemplate>,
    preparing: Option<Preparing>,
) -> bool {
    if let Some(preparing) = preparing {
        preparing.end().await;
    }
    // Containers are dead by now or never were: the kernel takes links and mounts apart at once.
    let containers = async {
        for attempt in attempts {
            if !remove_companions(tools, task, *attempt, template).await {
                return false;
            }
            if !remove(tools, &container_id(task, *attempt)).await {
                return false;
            }
        }
        let shared = tools.shared_dir().join(task.to_string());
        let logs = tools.log_dir(task);
        insist(tools, "remove shared folders", || remove_folder(shared.clone())).await
            && insist(tools, "remove logs", || remove_folder(logs.clone())).await
    };
    dismiss(tools, task).await;
    let (removed, detached) = tokio::join!(containers, detach(tools, task));
    if !removed || !detached {
        return false;
    }
    release_ports(tools, task).await;
    true
}

async fn remove_folder(path: std::path::PathBuf) -> io::Result<()> {
    match tokio::fs::remove_dir_all(path).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Removes containers in nobody's name, and logs and shared folders of tasks that are not ours any
/// more.
pub(crate) async fn sweep(tools: &Tools, keep: &BTreeSet<TaskId>, strangers: Vec<String>) {
    for id in strangers {
        tracing::info!(container = id, "removing a container that is nobody's");
        if !remove(tools, &id).await {
            return;
        }
    }
    for folder in [tools.shared_dir(), tools.logs_dir()] {
        sweep_folder(&folder, keep).await;
    }
}

async fn sweep_folder(folder: &std::path::Path, keep: &BTreeSet<TaskId>) {
    // No folder yet, nothing to sweep.
    let Ok(mut folders) = tokio::fs::read_dir(folder).await else { return };
    while let Ok(Some(folder)) = folders.next_entry().await {
        let name = folder.file_name();
        let task = name.to_str().and_then(|name| name.parse::<TaskId>().ok());
        if task.is_some_and(|task| !keep.contains(&task))
            && let Err(error) = remove_folder(folder.path()).await
        {
            tracing::warn!(task_id = name.to_str(), %error, "remove what is left of a task");
        }
    }
}
