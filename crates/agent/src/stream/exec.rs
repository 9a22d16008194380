//! A command beside a running container, its streams carried both ways.

use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use warren_model::service::CompanionName;
use warren_model::task::CompanionState;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_runtime::{Exec, ExecControl, ExecSpec};

use super::{CHUNK, Code, Failure, Heard, Line, Outcome, Outgoing, find_task, must_run};
use crate::core::{TaskView, companion_id};
use crate::effects::chain;
use crate::worker::Tools;

/// Input on its way to the process, in frames.
const INPUT_MAX: usize = 32;
/// A process that left children behind may keep its output open for ever; what it wrote itself
/// arrives well within this.
const DRAIN_MS: u64 = 500;
/// The terminal is gone: what a closed SSH session sends.
const SIGHUP: i32 = 1;

pub(super) async fn serve(tools: &Arc<Tools>, request: v1::Exec, line: &mut Line) -> Outcome {
    let started = match start(tools, request).await {
        Ok(started) => started,
        Err(failure) => return Outcome::Failed(failure),
    };
    // Frames of every kind pass through it: it is on the heap.
    Box::pin(carry(tools, started, line)).await
}

async fn start(tools: &Tools, request: v1::Exec) -> Result<Exec, Failure> {
    let task = find_task(tools, warren_proto::task_id("exec.task", &request.task)?).await?;
    let id = container(&task, &request.container)?;
    if request.args.is_empty() {
        return Err(Failure::new(Code::BadInput, "no command is given"));
    }
    // Terminals have at most some thousands of rows; more is nonsense, not an error.
    let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
    let spec = ExecSpec {
        args: request.args,
        env: request.env,
        cwd: request.workdir,
        user: request.user,
        tty: request.tty.then(|| (cells(request.rows), cells(request.columns))),
        stdin: request.stdin,
    };
    tools.runtime.exec(&id, spec).await.map_err(Failure::from)
}

/// The id of the container that is meant.
fn container(task: &TaskView, wanted: &str) -> Result<String, Failure> {
    if wanted.is_empty() || wanted == CompanionName::MAIN {
        must_run(task)?;
        return Ok(task.spec.container_id(task.status.attempt));
    }
    let companions = &task.spec.template.companions;
    let Some(companion) = companions.iter().find(|known| known.name.as_str() == wanted) else {
        let names = companions.iter().map(|known| known.name.as_str());
        let names: Vec<&str> = std::iter::once(CompanionName::MAIN).chain(names).collect();
        let text = format!("task {} has no container {wanted:?}", task.spec.id);
        return Err(Failure::new(Code::NotFound, text).hint(format!("it has {}", names.join(", "))));
    };
    let known = task.status.companions().iter().find(|known| known.name == companion.name);
    let state = known.map_or(CompanionState::Waiting, |known| known.state);
    if state != CompanionState::Running {
        let (kind, state) = (companion.kind.words(), state.as_str());
        let text =
            format!("{kind} {wanted} of task {} is not running, it is {state}", task.spec.id);
        return Err(Failure::new(Code::Conflict, text));
    }
    Ok(companion_id(task.spec.id, task.status.attempt, &companion.name))
}

async fn carry(tools: &Tools, exec: Exec, line: &mut Line) -> Outcome {
    let Exec { stdin, stdout, stderr, mut control } = exec;
    let (input, typed) = mpsc::channel(INPUT_MAX);
    let mut input = Some(input);
    // Input that waits for room; nothing more is read meanwhile.
    let mut held = None;
    let outgoing = line.outgoing.clone();
    let out = copy_out(stdout, outgoing.clone(), Kind::Stdout);
    let errors = outgoing.clone();
    let err = async {
        if let Some(stderr) = stderr {
            copy_out(stderr, errors, Kind::Stderr).await;
        }
    };
    let feed = copy_in(stdin, typed);
    let outputs = async { tokio::join!(out, err) };
    tokio::pin!(outputs, feed);
    let (mut drained, mut fed, mut listening) = (false, false, true);
    let mut code = None;
    let mut late = tools.clock.sleep_until(u64::MAX);
    while code.is_none() || !drained {
        tokio::select! {
            ended = control.wait(), if code.is_none() => match ended {
                Ok(ended) => {
                    code = Some(ended);
                    late = tools.clock.sleep(DRAIN_MS);
                }
                Err(error) => return Outcome::Failed(Failure::new(Code::Failed, chain(&error))),
            },
            _ = &mut outputs, if !drained => drained = true,
            () = &mut feed, if !fed => fed = true,
            () = &mut late, if code.is_some() => drained = true,
            permit = room(input.clone()), if held.is_some() => {
                if let (Some(permit), Some(bytes)) = (permit, held.take()) {
                    permit.send(bytes);
                }
            }
            () = outgoing.closed(), if listening => {
                listening = false;
                hang_up(control.as_mut()).await;
            }
            heard = line.receive(), if listening && held.is_none() => match heard {
                Heard::Frame(frame) => match *frame {
                    Kind::Stdin(bytes) => held = Some(bytes),
                    other => take(other, &mut input, control.as_mut()).await,
                },
                Heard::End => input = None,
                Heard::Gone => {
                    listening = false;
                    input = None;
                    hang_up(control.as_mut()).await;
                }
            },
        }
    }
    let last = Kind::ExitCode(code.unwrap_or_default());
    line.send(last).await.map_or(Outcome::Gone, |()| Outcome::Served)
}

/// Room for one more piece of input; `None` when the process takes no more.
async fn room(input: Option<mpsc::Sender<Bytes>>) -> Option<mpsc::OwnedPermit<Bytes>> {
    input?.reserve_owned().await.ok()
}

async fn hang_up(control: &mut dyn ExecControl) {
    if let Err(error) = control.signal(SIGHUP).await {
        tracing::debug!(error = chain(&error), "hang up");
    }
}

async fn take(frame: Kind, input: &mut Option<mpsc::Sender<Bytes>>, control: &mut dyn ExecControl) {
    let result = match frame {
        Kind::StdinClosed(_) => {
            *input = None;
            Ok(())
        }
        Kind::Resize(size) => {
            let cells = |count: u32| u16::try_from(count).unwrap_or(u16::MAX);
            control.resize(cells(size.rows), cells(size.columns)).await
        }
        Kind::Signal(signal) => control.signal(signal).await,
        Kind::Open(_)
        | Kind::Stdin(_)
        | Kind::Stdout(_)
        | Kind::Stderr(_)
        | Kind::ExitCode(_)
        | Kind::Log(_)
        | Kind::Progress(_)
        | Kind::Images(_)
        | Kind::Volumes(_)
        | Kind::Error(_)
        | Kind::Checked(_)
        | Kind::Findings(_)
        | Kind::PolicyCounts(_)
        | Kind::KeyRotated(_)
        | Kind::ControlDone(_) => Ok(()),
    };
    if let Err(error) = result {
        // The process may just have ended.
        tracing::debug!(error = chain(&error), "control exec");
    }
}

async fn copy_in(
    stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut typed: mpsc::Receiver<Bytes>,
) {
    let Some(mut stdin) = stdin else { return };
    while let Some(bytes) = typed.recv().await {
        if stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err() {
            return;
        }
    }
    // End of input; a process that is gone does not need to be told.
    let _ = stdin.shutdown().await;
}

async fn copy_out(
    mut from: Box<dyn AsyncRead + Send + Unpin>,
    to: Outgoing,
    wrap: fn(Bytes) -> Kind,
) {
    let mut buffer = vec![0; CHUNK];
    // A terminal whose process ended reads as an error: the end all the same.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if to.send(wrap(Bytes::copy_from_slice(&buffer[..count]))).await.is_err() {
            return;
        }
    }
}
