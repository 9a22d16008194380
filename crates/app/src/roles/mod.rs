//! What the program is for longer than a command: a node.
//!
//! Puts the rooms of a node together (store, manager, images, network,
//! containers, agent), keeps them until it is told to stop, and takes them
//! apart in order. Containers are not part of it: they go on.

mod admin;
pub(crate) mod dial;
mod door;
mod files;
mod found;
mod join;
mod keep;
mod kernel;
mod listener;
mod machine;
mod managing;
mod metrics;
mod node;
mod offline;
mod plane;
mod renew;
mod routes;
mod start;
mod streams;
mod wire;

use std::error::Error;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::Instrument;
use warren_base::telemetry::{self, LogFormat};
use warren_manager::Terms;

use crate::cli::failure::Failure;
use crate::cli::printer::Printer;
use crate::cli::{DataPlaneArgs, Role};
use crate::daemon::{self, detach};
use crate::identity;
use crate::settings::{JoinSettings, NodeSettings, environment};
use node::{Broken, Node};
use start::Started;

/// Threads of the event loop: a node waits for the kernel, it does not compute.
const THREADS: usize = 2;
/// For calls that block: file systems mostly. Tokio's 512 would be as many stacks.
const BLOCKING_THREADS_MAX: usize = 32;

/// How a node begins.
pub(crate) enum Begin {
    Init { worker: bool, terms: Terms },
    Join(JoinSettings),
    Run,
}

/// Does what the role asks, until told to stop.
pub(crate) fn run(role: Role, printer: &mut Printer) -> Result<(), Failure> {
    let (place, flags) = match &role {
        Role::Init(place, flags) => (place, &flags.node),
        Role::Join(place, flags) => (place, &flags.node),
        Role::Run(place, flags) => (place, &flags.node),
        Role::Restore(place, flags) => (place, &flags.node),
        Role::Recover(place, flags) => (place, &flags.node),
    };
    let place = place.resolve(&environment)?;
    let settings = match &role {
        Role::Run(_, flags) => flags.resolve(&place, &environment)?,
        Role::Init(..) | Role::Join(..) | Role::Restore(..) | Role::Recover(..) => {
            place.node(flags, &environment)?
        }
    };
    let begin = match &role {
        Role::Init(_, flags) => Begin::Init { worker: !flags.manager_only, terms: flags.terms()? },
        Role::Join(_, flags) => {
            let settings = flags.resolve(&environment, detach::token)?;
            // It must not be seen in lists of processes for as long as the node runs.
            daemon::scrub(settings.token.to_text().as_bytes());
            Begin::Join(settings)
        }
        Role::Run(..) => Begin::Run,
        Role::Restore(_, flags) => return offline::restore(settings, flags, printer),
        Role::Recover(_, flags) => return offline::recover(settings, flags, printer),
    };
    let fit = fit(&begin, &settings);
    if flags.detach {
        fit?;
        let token = match &begin {
            Begin::Join(settings) => Some(settings.token.to_text()),
            Begin::Init { .. } | Begin::Run => None,
        };
        let note = detach::start(&settings.data_dir, token.as_ref().map(|t| t.as_str()))?;
        if let Some(note) = note {
            printer.note(note);
        }
        return Ok(());
    }
    let report = flags.report_to_stdin;
    if report {
        detach::settle();
    }
    let outcome = fit.and_then(|()| run_here(begin, settings, report));
    if let Err(failure) = &outcome
        && report
    {
        detach::failed(failure);
    }
    outcome
}

/// Answers names and carries packets until it is told to end.
pub(crate) fn data_plane(args: &DataPlaneArgs) -> Result<(), Failure> {
    daemon::inherited::close();
    telemetry::start(&args.log_level, LogFormat::Text)
        .map_err(|e| Failure::input(format!("--log-level: {e}")))?;
    daemon::raise_file_limit();
    let build = plane::build().map_err(|e| failed(&e))?;
    warren_dataplane::run(&args.run_dir, &build).map_err(|e| failed(&e))
}

/// What can be told before anything is made: a refused start leaves nothing behind.
fn fit(begin: &Begin, settings: &NodeSettings) -> Result<(), Failure> {
    daemon::check(settings)?;
    match begin {
        Begin::Run => start::check(begin, &settings.data_dir)?,
        Begin::Init { terms, .. } => routes::check(terms.pools, &routes::read())?,
        // Only a manager knows what the cluster has.
        Begin::Join(_) => {}
    }
    let mut features = warren_runtime::native::features().into_iter();
    match features.find(|feature| feature.required && !feature.ok) {
        None => Ok(()),
        Some(missing) => Err(Failure::failed(format!("{}: {}", missing.name, missing.detail))
            .hint("warren doctor shows all that is missing")),
    }
}

fn run_here(begin: Begin, settings: NodeSettings, report: bool) -> Result<(), Failure> {
    telemetry::start(&settings.log_level, settings.log_format)
        .map_err(|e| Failure::input(format!("--log-level: {e}")))?;
    let held = daemon::hold(&settings)?;
    start::check(&begin, &settings.data_dir)?;
    daemon::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("warren")
        .enable_all()
        .build()
        .map_err(|e| Failure::failed(format!("start the event loop: {e}")))?;
    // Fields of every line about this node; the id is known once it has one.
    let span = tracing::info_span!("node", node_id = tracing::field::Empty);
    let outcome = runtime.block_on(live(begin, settings, report).instrument(span));
    runtime.shutdown_background();
    drop(held);
    outcome
}

/// What the outside asks of a node: to stop, with its containers or without.
struct Orders {
    terminated: Signal,
    interrupted: Signal,
    ordered: mpsc::Receiver<bool>,
}

impl Orders {
    /// The next order.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.terminated.recv() => false,
            _ = self.interrupted.recv() => false,
            with_containers = self.ordered.recv() => with_containers.unwrap_or(false),
        }
    }
}

/// The node from its start to its end.
async fn live(begin: Begin, settings: NodeSettings, report: bool) -> Result<(), Failure> {
    // Before anything is started: a signal must never find the default action.
    let listen = |kind| signal(kind).map_err(|e| failed(&e));
    let (terminated, interrupted) =
        (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    // One order to stop is enough: more are the same.
    let (order, ordered) = mpsc::channel(1);
    let stop_node: warren_manager::StopNode = Arc::new(move |with_containers| {
        let _ = order.try_send(with_containers);
    });
    let mut orders = Orders { terminated, interrupted, ordered };
    let mut socket = start::Socket::open(&settings).await?;
    let starting = start::start(begin, settings, stop_node, &mut socket, report);
    // A locked node may wait for its key for long, a joining one for managers.
    let started = tokio::select! {
        started = starting => Some(started?),
        _ = orders.next() => None,
    };
    let Some(Started { node, ready }) = started else {
        tracing::info!("the node was told to stop before it was ready");
        socket.close().await;
        return Ok(());
    };
    if !ready {
        tracing::warn!("no manager has answered yet; the node runs what it knows of");
    }
    let (node_id, cluster_id) = (node.shared.node, node.shared.cluster);
    tracing::info!(%node_id, %cluster_id, "node is ready");
    if report {
        detach::ready(None);
    }
    daemon::tell_systemd("READY=1");
    let outcome = end(node, &mut orders, &socket).await;
    socket.close().await;
    outcome
}

/// Waits for the end, and makes it.
async fn end(mut node: Node, orders: &mut Orders, socket: &start::Socket) -> Result<(), Failure> {
    let (left, outcome) = tokio::select! {
        with_containers = orders.next() => (None, Ok(with_containers)),
        (left, broken) = node.broken() => (left, Err(broken)),
    };
    daemon::tell_systemd("STOPPING=1");
    let leaving = matches!(outcome, Ok(true)) && socket.door.is_leaving();
    let removed = matches!(outcome, Err(Broken::Removed));
    let with_containers = matches!(outcome, Ok(true)) || removed;
    tracing::info!(with_containers, leaving, removed, "node stops");
    let files = node.shared.files.clone();
    node.stop(left, with_containers).await;
    if leaving || removed {
        files.forget()?;
    }
    match outcome {
        Ok(_) => Ok(()),
        Err(Broken::Removed) => {
            Err(Failure::failed("this node was removed from the cluster; its containers are gone")
                .hint("to take it in again: warren node join, with a new token"))
        }
        Err(Broken::Failed(failure)) => Err(failure),
    }
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
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let io = std::io::Error::other("disk is gone");
        let error = identity::Error::Read { path: "/x".into(), source: io };
        assert_eq!(failed(&error).message, "read /x: disk is gone");
    }
}
