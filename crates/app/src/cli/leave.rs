//! `warren node leave`: this node leaves the cluster for good.

use std::path::Path;

use clap::Args;
use tonic::{Code, Status};
use warren_proto::v1;

use super::context::Context;
use super::failure::{Exit, Failure};
use super::interrupt::Interrupt;
use super::node::Daemon;

/// Leaves the cluster for good.
///
/// What runs here is moved away, the node is forgotten by the managers, its daemon ends, and
/// what made it a node is removed from its data folder. Images and logs stay.
#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// Do not wait until tasks run elsewhere; and leave even if no manager answers, which then
    /// take the node for lost until it is removed there
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn run(
    context: &mut Context<'_>,
    args: &LeaveArgs,
    pid_file: &Path,
) -> Result<(), Failure> {
    let daemon = Daemon::of(pid_file);
    match say_goodbye(context, args.force).await {
        Ok(()) => {}
        Err(failure) if args.force && failure.exit == Exit::Unreachable => {
            context.printer.warning(format!("no manager sees this node off: {failure}"));
            context.printer.note("remove it there: warren node rm --force");
            let asked = context.client.forget_node().await;
            asked.or_else(lost).map_err(Failure::from)?;
        }
        Err(failure) => return Err(failure),
    }
    context.printer.finish_board();
    match daemon {
        Some(daemon) => daemon.ended().await,
        None => Ok(()),
    }
}

/// The end of the conversation may be the end of the daemon.
fn lost(status: Status) -> Result<(), Status> {
    if super::client::is_lost(&status) { Ok(()) } else { Err(status) }
}

async fn say_goodbye(context: &mut Context<'_>, force: bool) -> Result<(), Failure> {
    // Not retried: what was begun goes on.
    let mut lines = context.client.leave(v1::LeaveClusterRequest { force }).await?;
    let mut done = false;
    let mut interrupt = Interrupt::new();
    loop {
        let line = tokio::select! {
            line = lines.message() => line,
            () = interrupt.pressed() => {
                return Err(Failure::failed("stopped waiting; the node has not left yet")
                    .hint("it stays drained; `warren node update --availability active` undoes it"));
            }
        };
        match line {
            Ok(Some(line)) => {
                context.printer.board(vec![line.message]);
                done |= line.done;
            }
            Ok(None) if done => return Ok(()),
            // Its daemon ended before the last word came.
            Err(_) if done => return Ok(()),
            Ok(None) => return Err(Failure::failed("the node ended the conversation")),
            Err(status) if status.code() == Code::Unavailable => {
                return Err(Failure::from(status));
            }
            Err(status) => return Err(status.into()),
        }
    }
}
