//! What a person asks of one container: a signal, or to begin anew.

use std::sync::Arc;

use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use super::{Code, Failure, Line, Outcome, find_task, must_run};
use crate::core::Input;
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
