//! A command beside a running container, or the container itself, its streams carried both ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use warren_model::service::{CompanionName, TaskTemplate};
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
/// A command that cannot be executed ends at once: well within this, it is told of one that nobody
/// waits for.
const EARLY_MS: u64 = 200;
/// Codes of a shell for what cannot be executed, and what is not there.
const NOT_EXECUTED: [i32; 2] = [126, 127];
/// The terminal is gone: what a closed SSH session sends.
const SIGHUP: i32 = 1;

/// What becomes of a process when nobody listens any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    /// It is told that its terminal is gone.
    HangUp,
    /// It is the container's own: nothing.
    Stay,
}

pub(super) async fn serve(tools: &Arc<Tools>, request: v1::Exec, line: &mut Line) -> Outcome {
    let (attach, detach) = (request.attach, request.detach);
    let started = match start(tools, request).await {
        Ok(started) => started,
        Err(failure) => return Outcome::Failed(failure),
    };
    if detach {
        return leave(tools, started, line).await;
    }
    if attach && started.stderr.is_none() {
        // So that the caller knows what its own terminal is to be like.
        let told = line.send(Kind::Resize(v1::Resize::default())).await;
        if told.is_err() {
            return Outcome::Gone;
        }
    }
    let alone = if attach { Alone::Stay } else { Alone::HangUp };
    // Frames of every kind pass through it: it is on the heap.
    Box::pin(carry(tools, started, alone, line)).await
}

/// A command that nobody waits for goes on by itself, unless it cannot even begin.
async fn leave(tools: &Tools, mut exec: Exec, line: &Line) -> Outcome {
    let early = tokio::select! {
        early = exec.control.wait() => early.ok(),
        () = tools.clock.sleep(EARLY_MS) => None,
    };
    if let Some(code) = early.filter(|code| NOT_EXECUTED.contains(code)) {
        let why = if code == 127 { "not found" } else { "cannot be executed" };
        let code_text = format!("the command is {why} in the container (exit code {code})");
        return Outcome::Failed(Failure::new(Code::Failed, code_text));
    }
    line.send(Kind::ExitCode(0)).await.map_or(Outcome::Gone, |()| Outcome::Served)
}

async fn start(tools: &Tools, request: v1::Exec) -> Result<Exec, Failure> {
    let task = find_task(tools, warren_proto::task_id("exec.task", &request.task)?).await?;
    let id = container(&task, &request.container)?;
    if request.attach {
        let exec = tools.runtime.attach(&id).await?;
        let stdin = exec.stdin.filter(|_| request.stdin);
        return Ok(Exec { stdin, ..exec });
    }
    must_go_on(&task)?;
    if request.privileged && !is_privileged(&task.spec.template, &request.container) {
        let text = format!("the container of task {} is not privileged", task.spec.id);
        return Err(Failure::new(Code::Conflict, text)
            .hint("what is executed in a container may do no more than the container"));
    }
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
        // Nobody looks at the terminal of what nobody waits for.
        tty: (request.tty && !request.detach)
            .then(|| (cells(request.rows), cells(request.columns))),
        stdin: request.stdin && !request.detach,
        detached: request.detach,
    };
    tools.runtime.exec(&id, spec).await.map_err(Failure::from)
}

/// Whether the container that is meant may do everything already.
fn is_privileged(template: &TaskTemplate, container: &str) -> bool {
    let companion = template.companions.iter().find(|known| known.name.as_str() == container);
    companion.map_or(template, |known| &known.task).privileges.privileged
}

/// A process that is started in a container that stands still would stand still as well.
fn must_go_on(task: &TaskView) -> Result<(), Failure> {
    if !task.status.paused {
        return Ok(());
    }
    let text = format!("task {} is paused", task.spec.id);
    Err(Failure::new(Code::Conflict, text).hint("warren task unpause lets it go on"))
}

/// The id of the container that is meant.
pub(super) fn container(task: &TaskView, wanted: &str) -> Result<String, Failure> {
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

async fn carry(tools: &Tools, exec: Exec, alone: Alone, line: &mut Line) -> Outcome {
    let Exec { stdin, stdout, stderr, mut control } = exec;
    let (input, typed) = mpsc::channel(INPUT_MAX);
    let mut input = Some(input);
    // Input that waits for room; nothing more is read meanwhile.
    let mut held = None;
    let outgoing = line.outgoing.clone();
    // The caller went, and wants it to go on.
    let left = AtomicBool::new(false);
    let out = copy_out(stdout, outgoing.clone(), Kind::Stdout, &left);
    let errors = outgoing.clone();
    let err = async {
        if let Some(stderr) = stderr {
            copy_out(stderr, errors, Kind::Stderr, &left).await;
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
            () = outgoing.closed(), if listening => match alone {
                Alone::Stay => return Outcome::Gone,
                Alone::HangUp => {
                    listening = false;
                    hang_up(control.as_mut()).await;
                }
            },
            heard = line.receive(), if listening && held.is_none() => match heard {
                Heard::Frame(frame) => match *frame {
                    Kind::Stdin(bytes) => held = Some(bytes),
                    Kind::Detach(_) => {
                        left.store(true, Ordering::Relaxed);
                        // So that the caller knows that it may go.
                        let told = line.send(Kind::Detach(true)).await;
                        if alone == Alone::Stay {
                            return told.map_or(Outcome::Gone, |()| Outcome::Served);
                        }
                        listening = false;
                    }
                    other => take(other, &mut input, control.as_mut()).await,
                },
                Heard::End => input = None,
                Heard::Gone if alone == Alone::Stay => return Outcome::Gone,
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
        | Kind::Detach(_)
        | Kind::Usage(_)
        | Kind::Processes(_)
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
    left: &AtomicBool,
) {
    let mut buffer = vec![0; CHUNK];
    // A terminal whose process ended reads as an error: the end all the same.
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let sent = to.send(wrap(Bytes::copy_from_slice(&buffer[..count]))).await;
        // What was left alone must not wait for somebody to read.
        if sent.is_err() && !left.load(Ordering::Relaxed) {
            return;
        }
    }
}
