//! What the program is for longer than a command: a node.
//!
//! Puts the rooms of a node together (store, manager, images, network,
//! containers, agent), keeps them until it is told to stop, and takes them
//! apart in order. Containers are not part of it: they go on.

mod machine;
mod node;
mod wire;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use warren_base::rng::{Rng, SystemRng};
use warren_base::telemetry;

use crate::cli::Role;
use crate::cli::failure::{Exit, Failure};
use crate::daemon::{self, detach};
use crate::identity::{self, Identity};
use crate::settings::{NodeSettings, environment};
use node::Node;

/// Threads of the event loop: a node waits for the kernel, it does not compute.
const THREADS: usize = 2;
/// For calls that block: file systems mostly. Tokio's 512 would be as many stacks.
const BLOCKING_THREADS_MAX: usize = 32;

/// Whether a node is made or was made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Begin {
    Init,
    Run,
}

/// Does what the role asks, until told to stop.
pub(crate) fn run(role: Role) -> Result<(), Failure> {
    let (begin, place, flags) = match role {
        Role::Init(place, flags) => (Begin::Init, place, flags),
        Role::Run(place, flags) => (Begin::Run, place, flags),
    };
    let settings = place.resolve(&environment)?.node(&flags, &environment)?;
    let fit = fit(begin, &settings);
    if flags.detach {
        fit?;
        return detach::start(&settings.data_dir);
    }
    if flags.report_to_stdin {
        detach::settle();
    }
    let outcome = fit.and_then(|()| run_here(begin, &settings, flags.report_to_stdin));
    if let Err(failure) = &outcome
        && flags.report_to_stdin
    {
        detach::failed(failure);
    }
    outcome
}

/// What can be told before anything is made: a refused start leaves nothing behind.
fn fit(begin: Begin, settings: &NodeSettings) -> Result<(), Failure> {
    daemon::check(settings)?;
    if begin == Begin::Run {
        identity_of(begin, &settings.data_dir, &SystemRng)?;
    }
    let mut features = warren_runtime::native::features().into_iter();
    match features.find(|feature| feature.required && !feature.ok) {
        None => Ok(()),
        Some(missing) => Err(Failure::failed(format!("{}: {}", missing.name, missing.detail))
            .hint("warren doctor shows all that is missing")),
    }
}

fn run_here(begin: Begin, settings: &NodeSettings, report: bool) -> Result<(), Failure> {
    telemetry::start(&settings.log_level, settings.log_format)
        .map_err(|e| Failure::input(format!("--log-level: {e}")))?;
    let held = daemon::hold(settings)?;
    let identity = identity_of(begin, &settings.data_dir, &SystemRng)?;
    daemon::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("warren")
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("start the event loop: {e}")))?;
    let outcome = runtime.block_on(live(begin, settings, identity, report));
    runtime.shutdown_background();
    drop(held);
    outcome
}

/// The identity of the node in `data_dir`, or one for the node to be.
fn identity_of(begin: Begin, data_dir: &Path, rng: &dyn Rng) -> Result<Identity, Failure> {
    let known = Identity::read(data_dir).map_err(|e| failed(&e))?;
    let shown = data_dir.display();
    match (begin, known) {
        (Begin::Run, Some(identity)) => Ok(identity),
        (Begin::Init, None) => Ok(Identity::random(rng)),
        (Begin::Init, Some(identity)) => {
            let node = identity.node;
            Err(Failure::new(Exit::Conflict, format!("{shown} holds node {node} already"))
                .hint("run it with `warren node run`, or use another --data-dir"))
        }
        (Begin::Run, None) => {
            Err(Failure::new(Exit::NotFound, format!("no node was ever made in {shown}"))
                .hint("make one with `warren cluster init`, or use another --data-dir"))
        }
    }
}

/// The node from its start to its end.
async fn live(
    begin: Begin,
    settings: &NodeSettings,
    identity: Identity,
    report: bool,
) -> Result<(), Failure> {
    // Before anything is started: a signal must never find the default action.
    let listen = |kind| signal(kind).map_err(|e| failed(&e));
    let mut terminated = listen(SignalKind::terminate())?;
    let mut interrupted = listen(SignalKind::interrupt())?;
    // One order to stop is enough: more are the same.
    let (order, mut ordered) = mpsc::channel(1);
    let stop_node = Arc::new(move |with_containers| {
        let _ = order.try_send(with_containers);
    });
    let mut node = Node::start(begin, settings, identity, stop_node).await?;
    tracing::info!(node = %identity.node, cluster = %identity.cluster, "node is ready");
    if report {
        detach::ready();
    }
    daemon::tell_systemd("READY=1");
    let outcome = tokio::select! {
        _ = terminated.recv() => Ok(false),
        _ = interrupted.recv() => Ok(false),
        with_containers = ordered.recv() => Ok(with_containers.unwrap_or(false)),
        failure = node.broken() => Err(failure),
    };
    daemon::tell_systemd("STOPPING=1");
    let with_containers = *outcome.as_ref().unwrap_or(&false);
    tracing::info!(with_containers, "node stops");
    node.stop(with_containers).await;
    outcome.map(|_| ())
}

/// An error and what is behind it, as one line.
fn failed(error: &dyn Error) -> Failure {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(behind) = cause {
        let more = behind.to_string();
        // Transparent errors repeat the words of what they wrap.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = behind.source();
    }
    Failure::failed(text)
}

impl From<identity::Error> for Failure {
    fn from(error: identity::Error) -> Self {
        failed(&error)
    }
}

#[cfg(test)]
mod tests {
    use warren_base::rng::SeededRng;

    use super::*;

    #[test]
    fn nodes_are_made_once_and_run_after() {
        let dir = tempfile::tempdir().unwrap();
        let rng = SeededRng::new(1);
        let ask = |begin| identity_of(begin, dir.path(), &rng);
        assert_eq!(ask(Begin::Run).unwrap_err().exit, Exit::NotFound);
        let identity = ask(Begin::Init).unwrap();
        identity.write(dir.path()).unwrap();
        assert_eq!(ask(Begin::Init).unwrap_err().exit, Exit::Conflict);
        assert_eq!(ask(Begin::Run).unwrap(), identity);
    }

    #[test]
    fn causes_are_told_once() {
        let io = std::io::Error::other("disk is gone");
        let error = identity::Error::Read { path: "/x".into(), source: io };
        assert_eq!(failed(&error).message, "read /x: disk is gone");
    }
}
