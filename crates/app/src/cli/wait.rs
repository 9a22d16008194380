//! Waiting until a service is as it should be, with progress for people.
//!
//! The manager judges; this shows its lines and survives a lost connection.

use std::time::Duration;

use tokio::sync::Notify;
use warren_proto::v1;

use super::client::{Client, is_lost};
use super::failure::{Exit, Failure};
use super::printer::Printer;

/// New subscriptions after a lost connection; the calls below retry by themselves too.
const RESUBSCRIBE_MAX: u32 = 20;

/// For the first look, when less time than that was given.
const LOOK_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Goal<'a> {
    /// Name or id that is asked for.
    pub(crate) service: &'a str,
    /// What people call it.
    pub(crate) name: &'a str,
    /// Of the change that is waited for; 0 takes things as they are.
    pub(crate) revision: u64,
    /// Of the specification that is waited for; 0 takes whichever is wanted.
    pub(crate) number: u32,
    /// Of a job; 0 takes the last that a change began.
    pub(crate) run: u32,
    /// Wait until it is gone.
    pub(crate) removed: bool,
    pub(crate) timeout: Option<Duration>,
}

/// Resolves when the goal is reached.
///
/// # Errors
/// It will not be reached, not in time, or the person stopped waiting.
pub(crate) async fn until(
    client: &mut Client,
    printer: &mut Printer,
    goal: &Goal<'_>,
) -> Result<(), Failure> {
    let name = goal.name;
    let looked = Notify::new();
    let timeout = async {
        let Some(timeout) = goal.timeout else { return std::future::pending().await };
        let look = tokio::time::sleep(timeout.max(LOOK_MAX));
        tokio::time::sleep(timeout).await;
        // However little patience there is: one look.
        tokio::select! {
            () = looked.notified() => {}
            () = look => {}
        }
    };
    let mut last = String::new();
    let outcome = tokio::select! {
        biased;
        outcome = follow(client, printer, goal, &mut last, &looked) => outcome,
        () = timeout => {
            let ms = goal.timeout.map_or(0, |t| u64::try_from(t.as_millis()).unwrap_or(u64::MAX));
            let within = warren_model::quantity::format_duration_ms(ms);
            let stand = if last.is_empty() { String::new() } else { format!(": {last}") };
            Err(Failure::failed(format!("service {name} did not converge within {within}{stand}"))
                .hint(format!("warren service ps {name}")))
        }
        _ = tokio::signal::ctrl_c() => Err(left(name, goal.removed)),
    };
    printer.finish_board();
    outcome
}

fn left(name: &str, removed: bool) -> Failure {
    let message = match removed {
        true => format!("stopped waiting; service {name} is still being removed"),
        false => format!("stopped waiting; service {name} stays and goes on converging"),
    };
    Failure::new(Exit::Failed, message).hint(format!("warren service ps {name}"))
}

async fn follow(
    client: &mut Client,
    printer: &mut Printer,
    goal: &Goal<'_>,
    last: &mut String,
    looked: &Notify,
) -> Result<(), Failure> {
    let mut warned = String::new();
    for _ in 0..RESUBSCRIBE_MAX {
        let request = v1::WaitServiceRequest {
            service: goal.service.to_owned(),
            min_revision: goal.revision,
            removed: goal.removed,
            number: goal.number,
            run: goal.run,
        };
        let subscribed =
            client.subscribe(async |mut control| control.wait_service(request.clone()).await).await;
        let mut lines = match subscribed {
            Err(failure) if goal.removed && failure.exit == Exit::NotFound => return Ok(()),
            other => other?,
        };
        loop {
            match lines.message().await {
                Ok(Some(progress)) => {
                    *last = describe(goal, &progress);
                    printer.board(vec![format!("{}: {last}", goal.name)]);
                    warn_once(printer, &mut warned, &progress);
                    if progress.converged {
                        return Ok(());
                    }
                    if !progress.failure.is_empty() {
                        let what = match progress.job {
                            true => format!("job {}: {}", goal.name, progress.failure),
                            false => format!(
                                "service {} will not converge: {}",
                                goal.name, progress.failure
                            ),
                        };
                        return Err(Failure::failed(what).hint(hint(goal.name, &progress.failure)));
                    }
                    looked.notify_one();
                }
                Ok(None) => break,
                Err(status) if goal.removed && status.code() == tonic::Code::NotFound => {
                    return Ok(());
                }
                Err(status) if is_lost(&status) => break,
                Err(status) => return Err(status.into()),
            }
        }
    }
    Err(Failure::new(Exit::Unreachable, "the node keeps ending the conversation"))
}

/// What to look at next: the update that stands still, or the tasks.
fn hint(name: &str, failure: &str) -> String {
    match failure.contains(" is paused: ") || failure.starts_with("rolled back ") {
        true => format!("warren explain service {name}; warren service history {name}"),
        false => format!("warren service ps {name}"),
    }
}

fn describe(goal: &Goal<'_>, progress: &v1::Progress) -> String {
    let mut text = match (goal.removed, progress.converged) {
        (true, true) => "removed".to_owned(),
        (true, false) => "removing".to_owned(),
        (false, _) if progress.job => {
            format!("{}/{} completed", progress.completed, progress.desired)
        }
        (false, _) => format!("{}/{} running", progress.running, progress.desired),
    };
    if !progress.message.is_empty() {
        text.push_str(", ");
        text.push_str(&progress.message);
    }
    text
}

fn warn_once(printer: &mut Printer, warned: &mut String, progress: &v1::Progress) {
    if !progress.warning.is_empty() && progress.warning != *warned {
        printer.warning(&progress.warning);
        warned.clone_from(&progress.warning);
    }
}
