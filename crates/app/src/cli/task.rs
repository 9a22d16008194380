//! `warren task …`: list, inspect, stop, restart, signal, pause single tasks.

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use tonic::Code;
use warren_model::task::TaskState;
use warren_proto::v1;
use warren_proto::v1::control_task_request::What;

use super::client::{is_lost, request_id};
use super::companion::statuses_json;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::listing::Record;
use super::rows::{TaskRow, service_id, state_of};
use super::service::{self, AllPsArgs};
use super::template::Format;

#[derive(Debug, Subcommand)]
pub(crate) enum TaskVerb {
    /// List tasks, as `warren ps`
    #[command(visible_alias = "list")]
    Ls(AllPsArgs),
    /// Show everything about tasks as JSON
    Inspect(InspectArgs),
    /// End containers in good order; their services put others in their place
    Stop(NamesArgs),
    /// Restart containers in place: the same tasks, addresses and nodes
    Restart(NamesArgs),
    /// Send a signal to the first process of a container
    Signal(SignalArgs),
    /// Let all processes of tasks stand still; nothing leads to them meanwhile
    Pause(TasksArgs),
    /// Let paused tasks go on
    Unpause(TasksArgs),
}

#[derive(Debug, Args)]
pub(crate) struct TasksArgs {
    /// Ids, beginnings of ids, or SERVICE.SLOT
    #[arg(value_name = "TASK", required = true)]
    tasks: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Ids, beginnings of ids, or SERVICE.SLOT
    #[arg(value_name = "TASK", required = true)]
    tasks: Vec<String>,
    /// json, yaml or a template such as '{{.State}}'
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Ids, beginnings of ids, or SERVICE.SLOT
    #[arg(value_name = "TASK", required = true)]
    tasks: Vec<String>,
    /// Do not wait until it is done
    #[arg(short, long)]
    detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SignalArgs {
    /// Id, beginning of an id, or SERVICE.SLOT
    #[arg(value_name = "TASK")]
    task: String,
    /// Name or number, e.g. HUP, SIGUSR1 or 10
    #[arg(value_name = "SIGNAL")]
    signal: String,
}

pub(crate) async fn run(context: &mut Context<'_>, verb: TaskVerb) -> Result<(), Failure> {
    match verb {
        TaskVerb::Ls(args) => service::ps(context, args).await,
        TaskVerb::Inspect(args) => inspect(context, args).await,
        TaskVerb::Stop(args) => stop(context, args).await,
        TaskVerb::Restart(args) => restart(context, args).await,
        TaskVerb::Signal(args) => {
            let done = control(context, &args.task, What::Signal(args.signal)).await?;
            context.printer.line(&done.name)
        }
        TaskVerb::Pause(args) => pause(context, args, true).await,
        TaskVerb::Unpause(args) => pause(context, args, false).await,
    }
}

async fn pause(context: &mut Context<'_>, args: TasksArgs, paused: bool) -> Result<(), Failure> {
    for task in &args.tasks {
        let done = control(context, task, What::Pause(paused)).await?;
        context.printer.line(&done.name)?;
        // So that what is asked next finds it so.
        until(context, &done, |status| {
            let runs = state_of(status.state) == Some(TaskState::Running);
            (!runs || status.paused == paused).then_some(Ok(()))
        })
        .await?;
    }
    Ok(())
}

/// The tasks that are meant, in the order in which they were named.
async fn list(
    context: &mut Context<'_>,
    ids: Vec<String>,
    min_revision: u64,
) -> Result<v1::ListTasksResponse, Failure> {
    let request = v1::ListTasksRequest { ids, min_revision, ..v1::ListTasksRequest::default() };
    context.client.call(async |mut control| control.list_tasks(request.clone()).await).await
}

async fn inspect(context: &mut Context<'_>, args: InspectArgs) -> Result<(), Failure> {
    let mut objects = Vec::new();
    for task in args.tasks {
        let answer = list(context, vec![task], 0).await?;
        context.stale(answer.stale_ms);
        objects.extend(answer.tasks.iter().map(whole));
    }
    context.printer.inspected(objects, &args.format)
}

/// What listings say of it, and what only who looks closely wants to know.
fn whole(task: &v1::Task) -> Value {
    let mut value = TaskRow::from(task).object();
    let more = json!({
        "service_id": service_id(&task.service),
        "template": task.template,
        "state_revision": task.revision,
        "containers": statuses_json(task.status.as_ref()),
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    value
}

/// Asks for something of one task. By its whole id, so that a call that is repeated is not about
/// whatever took its place.
async fn control(
    context: &mut Context<'_>,
    task: &str,
    what: What,
) -> Result<v1::TaskControlled, Failure> {
    let found = list(context, vec![task.to_owned()], 0).await?;
    let none = || Failure::new(Exit::NotFound, format!("no task {task}"));
    let id = service_id(&found.tasks.first().ok_or_else(none)?.id);
    let request = v1::ControlTaskRequest { task: id, what: Some(what), request_id: request_id() };
    context.client.call(async |mut control| control.control_task(request.clone()).await).await
}

async fn stop(context: &mut Context<'_>, args: NamesArgs) -> Result<(), Failure> {
    let mut asked = Vec::new();
    for task in &args.tasks {
        let done = control(context, task, What::Stop(v1::control_task_request::Stop {})).await?;
        context.printer.line(&done.name)?;
        if !done.remark.is_empty() {
            context.printer.note(format!("{}: {}", done.name, done.remark));
        }
        asked.push(done);
    }
    for done in asked.iter().filter(|_| !args.detach) {
        let ended = |status: &v1::TaskStatus| {
            let state = state_of(status.state);
            state.is_none_or(TaskState::is_terminal).then_some(Ok(()))
        };
        until(context, done, ended).await?;
    }
    Ok(())
}

async fn restart(context: &mut Context<'_>, args: NamesArgs) -> Result<(), Failure> {
    let mut asked = Vec::new();
    for task in &args.tasks {
        let what = What::Restart(v1::control_task_request::Restart {});
        let done = control(context, task, what).await?;
        context.printer.line(&done.name)?;
        asked.push(done);
    }
    for done in asked.iter().filter(|_| !args.detach) {
        until(context, done, |status| restarted(done, status)).await?;
    }
    Ok(())
}

/// Whether it runs again, and is healthy where that is asked for; or why it never will.
fn restarted(done: &v1::TaskControlled, status: &v1::TaskStatus) -> Option<Result<(), Failure>> {
    let state = state_of(status.state)?;
    if state.is_terminal() {
        let why = status.error.clone().unwrap_or_default();
        let text = format!("{} is {}: {why}", done.name, state.as_str());
        let text = text.trim_end_matches([':', ' ']).to_owned();
        return Some(Err(Failure::failed(text).hint("warren service ps shows what follows")));
    }
    let health = status.health.as_ref().map(v1::Health::state);
    let well = health.is_none_or(|health| health == v1::HealthState::Healthy);
    (status.attempt > done.attempt && state == TaskState::Running && well).then_some(Ok(()))
}

/// Looks at a task whenever something of it changed, until `look` says what came of it. One that
/// is forgotten has ended.
async fn until(
    context: &mut Context<'_>,
    done: &v1::TaskControlled,
    look: impl Fn(&v1::TaskStatus) -> Option<Result<(), Failure>>,
) -> Result<(), Failure> {
    let followed = async {
        let id = service_id(&done.id);
        let mut revision = done.revision;
        loop {
            let seen = match list(context, vec![id.clone()], revision).await {
                Err(failure) if failure.exit == Exit::NotFound => return Ok(()),
                seen => seen?,
            };
            let status = seen.tasks.first().and_then(|task| task.status.as_ref());
            if let Some(outcome) = status.and_then(&look) {
                return outcome;
            }
            revision = seen.revision.max(1);
            moved(context, &id, revision).await?;
        }
    };
    tokio::select! {
        outcome = followed => outcome,
        _ = tokio::signal::ctrl_c() => {
            let text = format!("stopped waiting; what was asked of {} goes on", done.name);
            Err(Failure::failed(text).hint("warren ps shows it"))
        }
    }
}

/// Resolves when there is an event of the task after `revision`, or one may have been missed.
async fn moved(context: &mut Context<'_>, id: &str, revision: u64) -> Result<(), Failure> {
    let request = v1::WatchRequest { after: revision };
    let mut events =
        context.client.subscribe(async |mut control| control.watch(request).await).await?;
    loop {
        match events.message().await {
            Ok(Some(event)) if event.id == id => return Ok(()),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(()),
            Err(status) if status.code() == Code::Aborted || is_lost(&status) => return Ok(()),
            Err(status) => return Err(status.into()),
        }
    }
}
