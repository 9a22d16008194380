//! `warren node ls|stop`, `warren cluster info`, `warren events`, `warren wait`.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use clap::{Args, Subcommand};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use tonic::Code;
use warren_proto::v1;

use super::client::is_lost;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::interrupt::Interrupt;
use super::listing::{ListFlags, ReadFlags, Record};
use super::rows::{EventRow, NodeRow, cluster_id};
use super::spec::duration;
use super::template::Format;
use super::wait::{Goal, until};

/// For the daemon's process to end once it has said that it will. Containers
/// have been stopped by then; what is left is closing files.
const END_WAIT_MAX: Duration = Duration::from_secs(60);

/// Revisions that `events` looks back without `-f`: more than a screen, less than the node keeps.
const EVENTS_BACK: u64 = 1024;
/// What the node remembers it sends at once; silence of this length means that it was all.
const EVENTS_QUIET: Duration = Duration::from_millis(200);

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Stop and remove this node's containers first
    #[arg(long)]
    with_containers: bool,
}

#[derive(Debug, Args)]
pub(crate) struct NodeLsArgs {
    #[command(flatten)]
    read: ReadFlags,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// table, json, yaml or a template such as '{{.ClusterID}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on as things happen, until interrupted
    #[arg(short, long)]
    follow: bool,
    /// table, json (one object a line) or a template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WaitVerb {
    /// Wait until a service has converged
    Service(WaitServiceArgs),
}

#[derive(Debug, Args)]
pub(crate) struct WaitServiceArgs {
    /// Name or id of the service
    #[arg(value_name = "SERVICE")]
    service: String,
    /// Give up after this time
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    timeout: Option<u64>,
}

pub(crate) async fn ls(context: &mut Context<'_>, args: &NodeLsArgs) -> Result<(), Failure> {
    let mut nodes = super::members::list(context, args.read.linearizable).await?;
    let name = |node: &v1::Node| node.description.as_ref().map(|about| about.hostname.clone());
    nodes.sort_by_cached_key(|node| (name(node), node.id.clone()));
    let rows: Vec<NodeRow> = nodes.iter().map(NodeRow::from).collect();
    let view = context.view();
    context.printer.list(&rows, &args.list, view)
}

/// The daemon of this machine, held by its process: afterwards the number may be another's.
pub(crate) struct Daemon(OwnedFd);

impl Daemon {
    /// The one whose pid is in `pid_file`.
    pub(crate) fn of(pid_file: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(pid_file).ok()?;
        let pid = Pid::from_raw(text.trim().parse().ok()?)?;
        pidfd_open(pid, PidfdFlags::empty()).ok().map(Self)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It goes on.
    pub(crate) async fn ended(self) -> Result<(), Failure> {
        let ended = tokio::task::spawn_blocking(move || {
            let limit = Timespec::try_from(END_WAIT_MAX).ok();
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], limit.as_ref())
        });
        match ended.await {
            Ok(Ok(1)) => Ok(()),
            _ => Err(Failure::failed(format!(
                "the daemon did not end within {} s",
                END_WAIT_MAX.as_secs()
            ))),
        }
    }
}

/// Stops the daemon; `pid_file` tells whose end to wait for.
pub(crate) async fn stop(
    context: &mut Context<'_>,
    args: &StopArgs,
    pid_file: &Path,
) -> Result<(), Failure> {
    let daemon = Daemon::of(pid_file);
    let request = v1::StopNodeRequest { with_containers: args.with_containers };
    // Not retried: a lost connection is what success may look like.
    let asked = context.client.stop_node(request).await;
    let lost = match asked {
        Ok(()) => false,
        Err(status) if is_lost(&status) => true,
        Err(status) => return Err(status.into()),
    };
    let Some(daemon) = daemon else {
        return match lost {
            true => Err(Failure::new(Exit::Unreachable, "the node ended the conversation")),
            false => Ok(()),
        };
    };
    daemon.ended().await
}

pub(crate) async fn info(context: &mut Context<'_>, args: &InfoArgs) -> Result<(), Failure> {
    let info = context
        .client
        .call(async |mut control| control.get_info(v1::GetInfoRequest {}).await)
        .await?;
    context.stale(info.stale_ms);
    if !info.manager {
        context.printer.note("this node is a worker: managers know the rest, at these addresses");
    }
    context.printer.object(&about(&info), &args.format)
}

/// What a node that is no manager does not know is null.
fn about(info: &v1::Info) -> serde_json::Value {
    let text = |text: String| Some(text).filter(|text| !text.is_empty());
    let known = |number: u64| info.manager.then_some(number);
    json!({
        "cluster_id": cluster_id(&info.cluster_id),
        "node_id": cluster_id(&info.node_id),
        "version": info.version,
        "revision": known(info.revision),
        "nodes": known(info.nodes.into()),
        "services": known(info.services.into()),
        "tasks": known(info.tasks.into()),
        "leader": text(info.leader_name.clone()),
        "leader_id": text(cluster_id(&info.leader)),
        "managers": known(info.managers.into()),
        "managers_reachable": known(info.managers_reachable.into()),
        "manager_addresses": info.manager_addresses,
        "epoch": known(info.epoch),
        "stale_ms": known(info.stale_ms),
    })
}

pub(crate) async fn events(context: &mut Context<'_>, args: &EventsArgs) -> Result<(), Failure> {
    let mut interrupt = Interrupt::new();
    let mut now = revision(context).await?;
    let mut back = if args.follow { 0 } else { EVENTS_BACK };
    // Revision 0 means "from now on" to the node.
    let mut after = now.saturating_sub(back).max(1);
    loop {
        // A node that is no manager is at none: it says so when it is asked for events.
        if !args.follow && after >= now && now > 0 {
            return Ok(());
        }
        match stream(context, args, &mut after, now, &mut interrupt).await? {
            Ended::Done => return Ok(()),
            Ended::Lost => {}
            // Asked for more than the node remembers: ask for less.
            Ended::Gap if !args.follow => {
                back /= 2;
                after = now.saturating_sub(back).max(1);
            }
            Ended::Gap => {
                context
                    .printer
                    .warning("some events were missed: they came faster than they were read");
                now = revision(context).await?;
                after = now;
            }
        }
    }
}

enum Ended {
    Done,
    Lost,
    Gap,
}

async fn revision(context: &mut Context<'_>) -> Result<u64, Failure> {
    let asked =
        context.client.call(async |mut control| control.get_info(v1::GetInfoRequest {}).await);
    Ok(asked.await?.revision)
}

/// Shows events after `after`, which goes with them; without following, those up to `now`.
async fn stream(
    context: &mut Context<'_>,
    args: &EventsArgs,
    after: &mut u64,
    now: u64,
    interrupt: &mut Interrupt,
) -> Result<Ended, Failure> {
    let request = v1::WatchRequest { after: *after };
    let mut events =
        context.client.subscribe(async |mut control| control.watch(request).await).await?;
    loop {
        let event = tokio::select! {
            event = events.message() => event,
            // Following has no other end: stopping it is no error.
            () = interrupt.pressed() => return Ok(Ended::Done),
            // Not every revision has an event, so the last one may never come.
            () = tokio::time::sleep(EVENTS_QUIET), if !args.follow => return Ok(Ended::Done),
        };
        match event {
            Ok(Some(event)) if !args.follow && event.revision > now => return Ok(Ended::Done),
            Ok(Some(event)) => {
                *after = (*after).max(event.revision);
                show(context, event, &args.format)?;
            }
            Ok(None) => return Ok(Ended::Lost),
            Err(status) if status.code() == Code::Aborted => return Ok(Ended::Gap),
            Err(status) if is_lost(&status) => return Ok(Ended::Lost),
            Err(status) => return Err(status.into()),
        }
    }
}

fn show(context: &mut Context<'_>, event: v1::Event, format: &Format) -> Result<(), Failure> {
    let row = EventRow::from(event);
    let object = row.object();
    let view = context.view();
    match format {
        Format::Json => context.printer.line(object.to_string()),
        Format::Yaml => context.printer.object(&serde_json::Value::Array(vec![object]), format),
        Format::Template(template) => {
            context.printer.line(template.fill(&object, EventRow::COLUMNS, &row.cells(view))?)
        }
        Format::Table => context.printer.line(row.cells(view).join("  ").trim_end()),
    }
}

pub(crate) async fn wait(context: &mut Context<'_>, verb: WaitVerb) -> Result<(), Failure> {
    let WaitVerb::Service(args) = verb;
    let goal = Goal {
        service: &args.service,
        name: &args.service,
        revision: 0,
        number: 0,
        run: 0,
        removed: false,
        timeout: args.timeout.map(Duration::from_millis),
    };
    until(&mut context.client, context.printer, &goal).await
}
