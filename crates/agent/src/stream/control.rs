//! What a person asks of one container: a signal, to begin anew, to stand still.

use std::sync::Arc;

use warren_model::task::CompanionState;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_runtime::Error;

use super::{Code, Failure, Line, Outcome, find_task, must_run};
use crate::core::{Input, TaskView, companion_id};
use crate::effects::chain;
use crate::worker::{Message, Tools};

/// The last signal of Linux.
const SIGNAL_MAX: i32 = 64;

/// Answers once the signal was sent, or the restart is under way.
pub(super) async fn serve(tools: &Arc<Tools>, asked: v1::ControlTask, line: &mut Line) -> Outcome {
    match control(tools, asked).await {
        Ok(attempt) => {
            let answer = Kind::ControlDone(v1::ControlDone { attempt });
            line.send(answer).await.map_or(Outcome::Gone, |()| Outcome::Served)
        }
        Err(failure) => Outcome::Failed(failure),
    }
}

/// The attempt that it was asked of.
async fn control(tools: &Tools, asked: v1::ControlTask) -> Result<u32, Failure> {
    let id = warren_proto::task_id("control.task", &asked.task)?;
    let task = find_task(tools, id).await?;
    let attempt = task.status.attempt;
    if let Some(paused) = asked.pause {
        return pause(tools, &task, paused).await.map(|()| attempt);
    }
    match asked.signal {
        Some(number) if !(1..=SIGNAL_MAX).contains(&number) => {
            let text = format!("control.signal: {number} is not a signal");
            return Err(Failure::new(Code::BadInput, text));
        }
        Some(number) => {
            must_run(&task)?;
            tracing::info!(task_id = %id, number, "signal asked for");
            tools.runtime.signal(&task.spec.container_id(attempt), number).await?;
        }
        None if task.may_restart => {
            tracing::info!(task_id = %id, attempt, "restart asked for");
            tools.tell(Message::Input(Box::new(Input::Restart(id)))).await;
        }
        None => {
            let state = task.status.state.as_str();
            let text = format!("task {id} cannot begin anew, it is {state}");
            return Err(Failure::new(Code::Conflict, text));
        }
    }
    Ok(attempt)
}

/// All containers of a task stand still, or go on. What leads to it is taken away first, and back
/// last of all.
async fn pause(tools: &Tools, task: &TaskView, paused: bool) -> Result<(), Failure> {
    let id = task.spec.id;
    if !task.may_pause {
        let state = task.status.state.as_str();
        let text = format!("task {id} cannot be paused, it is {state}");
        return Err(Failure::new(Code::Conflict, text));
    }
    tracing::info!(task_id = %id, paused, "pause asked for");
    if paused {
        tools.tell(Message::Input(Box::new(Input::Paused(id, true)))).await;
    }
    let mut containers = containers(task);
    // Its own says after a restart of this process whether it stands still.
    if !paused {
        containers.reverse();
    }
    for (at, container) in containers.iter().enumerate() {
        let done = match tools.runtime.pause(container, paused).await {
            // A companion that has just ended.
            Err(Error::NotFound(_) | Error::NotRunning(_)) if containers.len() > 1 => Ok(()),
            done => done,
        };
        if let Err(error) = done {
            if paused {
                for container in &containers[..at] {
                    if let Err(error) = tools.runtime.pause(container, false).await {
                        tracing::warn!(container, error = chain(&error), "unpause again");
                    }
                }
                tools.tell(Message::Input(Box::new(Input::Paused(id, false)))).await;
            }
            return Err(error.into());
        }
    }
    if !paused {
        tools.tell(Message::Input(Box::new(Input::Paused(id, false)))).await;
    }
    Ok(())
}

/// Ids of its containers that run: its own first.
pub(super) fn containers(task: &TaskView) -> Vec<String> {
    named_containers(task).into_iter().map(|(_, id)| id).collect()
}

/// The same, with their names; that of its own is empty.
pub(super) fn named_containers(task: &TaskView) -> Vec<(String, String)> {
    let attempt = task.status.attempt;
    let own = task.is_up.then(|| (String::new(), task.spec.container_id(attempt)));
    let companions = task.status.companions().iter();
    let running = companions.filter(|companion| companion.state == CompanionState::Running);
    let running = running.map(|companion| {
        (companion.name.to_string(), companion_id(task.spec.id, attempt, &companion.name))
    });
    own.into_iter().chain(running).collect()
}
