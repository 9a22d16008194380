//! `--wait` of commands about nodes: until what was decided has come about.
//!
//! Consensus and tasks that move tell nobody of themselves, so the managers are
//! asked again and again; what is seen is shown as progress. Giving up changes
//! nothing about what was decided.

use std::time::Duration;

use clap::Args;
use warren_model::quantity::format_duration_ms;
use warren_proto::v1;

use super::context::Context;
use super::failure::{Exit, Failure};
use super::interrupt::Interrupt;
use super::members;
use super::rows::{service_id, state_of};
use super::spec::duration;

/// Between questions: quick enough for people, and nothing to the managers.
const ASK_EVERY: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, Args)]
pub(crate) struct WaitFlags {
    /// Return when it is done, not when it is decided
    #[arg(short, long)]
    wait: bool,
    /// Give up waiting after this time
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    #[arg(requires = "wait")]
    timeout: Option<u64>,
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Nothing runs there any more.
    Empty,
    /// It is a manager that votes.
    Votes,
    /// It has left the managers.
    Left,
}

/// How a node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stand {
    Reached,
    NotYet(String),
}

/// Whether a person waited to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Patience {
    Kept,
    /// Not; how it stood then.
    Interrupted {
        last: String,
    },
}

/// Resolves when the nodes are as wanted, one after the other; at once without `--wait`.
///
/// # Errors
/// Not in time, the node is gone, or the person stopped waiting.
pub(crate) async fn settled(
    context: &mut Context<'_>,
    nodes: &[Vec<u8>],
    goal: Goal,
    flags: &WaitFlags,
) -> Result<(), Failure> {
    match settled_or(context, nodes, goal, flags).await? {
        Patience::Kept => Ok(()),
        Patience::Interrupted { last } => Err(Failure::failed(format!("stopped waiting: {last}"))
            .hint("it goes on by itself; warren node ls shows how far it is")),
    }
}

/// As [`settled`], but what becomes of it when a person stops waiting is the caller's.
///
/// # Errors
/// Not in time, or the node is gone.
pub(crate) async fn settled_or(
    context: &mut Context<'_>,
    nodes: &[Vec<u8>],
    goal: Goal,
    flags: &WaitFlags,
) -> Result<Patience, Failure> {
    if !flags.wait {
        return Ok(Patience::Kept);
    }
    let timeout = async {
        match flags.timeout {
            Some(ms) => tokio::time::sleep(Duration::from_millis(ms)).await,
            None => std::future::pending().await,
        }
    };
    let mut interrupt = Interrupt::new();
    let mut last = String::new();
    let follow = async {
        for node in nodes {
            follow(context, node, goal, &mut last).await?;
        }
        Ok(Patience::Kept)
    };
    let outcome = tokio::select! {
        outcome = follow => outcome,
        () = timeout => {
            let within = format_duration_ms(flags.timeout.unwrap_or(0));
            Err(Failure::failed(format!("not within {within}: {last}"))
                .hint("it goes on by itself; warren node ls shows how far it is"))
        }
        () = interrupt.pressed() => Ok(Patience::Interrupted { last: last.clone() }),
    };
    context.printer.finish_board();
    outcome
}

async fn follow(
    context: &mut Context<'_>,
    id: &[u8],
    goal: Goal,
    last: &mut String,
) -> Result<(), Failure> {
    loop {
        let nodes = members::list(context, false).await?;
        let node = nodes.iter().find(|node| node.id == id).ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("node {} is gone", service_id(id)))
        })?;
        let live = match goal {
            Goal::Empty => live(context, id).await?,
            Goal::Votes | Goal::Left => 0,
        };
        let name = node.description.as_ref().map_or("", |about| about.hostname.as_str());
        match stand(node, live, goal) {
            Stand::Reached => return Ok(()),
            Stand::NotYet(text) => *last = format!("{name}: {text}"),
        }
        context.printer.board(vec![last.clone()]);
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Tasks on a node that have not ended.
async fn live(context: &mut Context<'_>, id: &[u8]) -> Result<usize, Failure> {
    let request = v1::ListTasksRequest { nodes: vec![service_id(id)], ..Default::default() };
    let answer = context.client.call(async |mut c| c.list_tasks(request.clone()).await).await?;
    let state = |task: &v1::Task| task.status.as_ref().and_then(|status| state_of(status.state));
    let live = |task: &&v1::Task| state(task).is_some_and(|state| !state.is_terminal());
    Ok(answer.tasks.iter().filter(live).count())
}

fn stand(node: &v1::Node, live: usize, goal: Goal) -> Stand {
    let not_yet = |text: &str| Stand::NotYet(text.to_owned());
    match (goal, live, node.reachability.as_str()) {
        (Goal::Empty, 0, _) => Stand::Reached,
        (Goal::Empty, 1, _) => not_yet("1 task to move"),
        (Goal::Empty, live, _) => Stand::NotYet(format!("{live} tasks to move")),
        (Goal::Votes, _, _) if !node.manager => not_yet("is to be no manager any more"),
        (Goal::Votes, _, "voter") => Stand::Reached,
        (Goal::Votes, _, "learner") => not_yet("fetches the state"),
        (Goal::Votes, _, _) => not_yet("becomes a manager"),
        (Goal::Left, _, _) if node.manager => not_yet("is to be a manager again"),
        (Goal::Left, _, "") => Stand::Reached,
        (Goal::Left, _, _) => not_yet("leaves the managers"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(goal: Goal, manager: bool, reachability: &str, live: usize, expected: &str) {
        let node = v1::Node { manager, reachability: reachability.into(), ..Default::default() };
        let got = match stand(&node, live, goal) {
            Stand::Reached => "reached".to_owned(),
            Stand::NotYet(text) => text,
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn how_nodes_stand() {
        check(Goal::Empty, false, "", 2, "2 tasks to move");
        check(Goal::Empty, false, "", 1, "1 task to move");
        check(Goal::Empty, true, "voter", 0, "reached");
        check(Goal::Votes, true, "", 0, "becomes a manager");
        check(Goal::Votes, true, "unreachable", 0, "becomes a manager");
        check(Goal::Votes, true, "learner", 0, "fetches the state");
        check(Goal::Votes, true, "voter", 0, "reached");
        check(Goal::Votes, false, "", 0, "is to be no manager any more");
        check(Goal::Left, false, "leaving", 0, "leaves the managers");
        check(Goal::Left, false, "", 0, "reached");
        check(Goal::Left, true, "voter", 0, "is to be a manager again");
    }
}
