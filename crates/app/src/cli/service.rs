//! `warren service …`: create, ls, ps, inspect, update, scale, restart, rm.
//!
//! What a service was before is in `revisions`.

use clap::{Args, Subcommand};
use serde_json::Value;
use warren_model::ServiceSpec;
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::edit::{EditFlags, scale};
use super::failure::{Exit, Failure};
use super::listing::{ListFlags, ReadFlags};
use super::rows::{ServiceRow, TaskRow, service_id, spec_of};
use super::spec::CreateFlags;
use super::template::Format;
use super::wait::{Goal, until};
use super::{env, inspect, job, logs, revisions};

/// Changes of one service by others between reading and writing it here, before giving up.
const EDIT_TRIES_MAX: u32 = 5;

#[derive(Debug, Subcommand)]
pub(crate) enum ServiceVerb {
    /// Run an image as a service
    Create(Box<CreateArgs>),
    /// List services
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    /// List the tasks of services, those that ended included
    Ps(PsArgs),
    /// Show everything about services as JSON
    Inspect(InspectArgs),
    /// Show the output of a service, a slot or a task
    Logs(logs::LogsArgs),
    /// Change a service
    Update(Box<UpdateArgs>),
    /// Set numbers of replicas
    Scale(ScaleArgs),
    /// Replace all containers, by the service's update policy
    Restart(NamesArgs),
    /// List what a service was, and what changed
    History(revisions::HistoryArgs),
    /// Go back to an earlier revision
    Rollback(revisions::RollbackArgs),
    /// Halt the update of services: replicas that are not replaced yet stay
    Pause(revisions::PauseArgs),
    /// Let an update that is paused go on
    Resume(revisions::ResumeArgs),
    /// Let the schedules of jobs begin nothing, until `unsuspend`
    Suspend(job::SuspendArgs),
    /// Let the schedules of jobs go on
    Unsuspend(job::SuspendArgs),
    /// Remove services and their containers
    #[command(visible_alias = "remove")]
    Rm(NamesArgs),
}

#[derive(Debug, Clone, Args)]
pub(crate) struct WaitFlags {
    /// Do not wait until the service has converged
    #[arg(short, long)]
    detach: bool,
}

impl WaitFlags {
    pub(crate) fn is_detached(&self) -> bool {
        self.detach
    }
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    wait: WaitFlags,
    /// Do not check image, command, user and ports on a node before accepting
    #[arg(long)]
    no_check: bool,
    /// Do not pin images to the digests that their registries have
    #[arg(long)]
    no_resolve_image: bool,
    #[command(flatten)]
    flags: CreateFlags,
}

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Name or id of the service
    #[arg(value_name = "SERVICE")]
    service: String,
    #[command(flatten)]
    wait: WaitFlags,
    /// Do not check image, command, user and ports on a node before accepting
    #[arg(long)]
    no_check: bool,
    /// Do not pin images that are given to the digests that their registries have
    #[arg(long)]
    no_resolve_image: bool,
    #[command(flatten)]
    flags: EditFlags,
}

#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    read: ReadFlags,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Names or ids of services
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
    #[command(flatten)]
    read: ReadFlags,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct AllPsArgs {
    /// Show tasks that ended, too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    read: ReadFlags,
    #[command(flatten)]
    list: ListFlags,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// Names or ids of services
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
    /// json, yaml or a template such as '{{.Spec.Image}}'
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct ScaleArgs {
    /// Services and their numbers of replicas
    #[arg(value_name = "SERVICE=N", required = true, value_parser = parse_scale)]
    services: Vec<(String, u32)>,
    #[command(flatten)]
    wait: WaitFlags,
}

#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// Names or ids of services
    #[arg(value_name = "SERVICE", required = true)]
    services: Vec<String>,
    #[command(flatten)]
    wait: WaitFlags,
}

fn parse_scale(text: &str) -> Result<(String, u32), String> {
    let (name, count) = text
        .split_once('=')
        .filter(|(name, _)| !name.is_empty())
        .ok_or_else(|| format!("{text:?} is not of the form SERVICE=N, e.g. web=3"))?;
    let max = ServiceSpec::REPLICAS_MAX;
    let count = count.parse().ok().filter(|n| *n <= max);
    let count = count
        .ok_or_else(|| format!("{text:?} does not end in a number of replicas from 0 to {max}"))?;
    Ok((name.to_owned(), count))
}

pub(crate) async fn run(context: &mut Context<'_>, verb: ServiceVerb) -> Result<(), Failure> {
    match verb {
        ServiceVerb::Create(args) => create(context, *args).await,
        ServiceVerb::Ls(flags) => ls(context, &flags).await,
        ServiceVerb::Ps(args) => tasks(context, args.services, true, args.read, &args.list).await,
        ServiceVerb::Inspect(args) => show(context, args).await,
        ServiceVerb::Logs(args) => logs::run(context, args).await,
        ServiceVerb::Update(args) => Box::pin(update(context, *args)).await,
        ServiceVerb::Scale(args) => scale_all(context, args).await,
        ServiceVerb::Restart(args) => restart(context, args).await,
        ServiceVerb::History(args) => revisions::history(context, args).await,
        ServiceVerb::Rollback(args) => revisions::rollback(context, args).await,
        ServiceVerb::Pause(args) => revisions::pause(context, args).await,
        ServiceVerb::Resume(args) => revisions::resume(context, args).await,
        ServiceVerb::Suspend(args) => job::suspend(context, args, true).await,
        ServiceVerb::Unsuspend(args) => job::suspend(context, args, false).await,
        ServiceVerb::Rm(args) => remove(context, args).await,
    }
}

/// `warren ps`.
pub(crate) async fn ps(context: &mut Context<'_>, args: AllPsArgs) -> Result<(), Failure> {
    tasks(context, Vec::new(), args.all, args.read, &args.list).await
}

/// A change that is waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target {
    /// Of the state, after it.
    pub(crate) revision: u64,
    /// Of the specification; 0: whichever is wanted.
    pub(crate) number: u32,
}

pub(crate) async fn converge(
    context: &mut Context<'_>,
    flags: &WaitFlags,
    service: &str,
    target: Target,
) -> Result<(), Failure> {
    if flags.detach {
        return Ok(());
    }
    let Target { revision, number } = target;
    let goal =
        Goal { service, name: service, revision, number, run: 0, removed: false, timeout: None };
    until(&mut context.client, context.printer, &goal).await
}

async fn create(context: &mut Context<'_>, args: CreateArgs) -> Result<(), Failure> {
    let spec = args.flags.spec(&env::of_caller)?;
    let name = spec.name.to_string();
    let request = v1::CreateServiceRequest {
        spec: Some(v1::ServiceSpec::from(&spec)),
        request_id: request_id(),
        no_check: args.no_check,
        no_resolve: args.no_resolve_image,
    };
    let changed = context
        .client
        .call(async |mut control| control.create_service(request.clone()).await)
        .await?;
    for note in &changed.notes {
        context.printer.note(note);
    }
    for id in &changed.ids {
        context.printer.line(service_id(id))?;
    }
    let target = Target { revision: changed.revision, number: 0 };
    converge(context, &args.wait, &name, target).await
}

pub(crate) async fn list(
    context: &mut Context<'_>,
    services: Vec<String>,
    read: ReadFlags,
) -> Result<Vec<v1::Service>, Failure> {
    let linearizable = read.linearizable;
    let request = v1::ListServicesRequest { services, min_revision: 0, linearizable };
    let answer = context
        .client
        .call(async |mut control| control.list_services(request.clone()).await)
        .await?;
    context.stale(answer.stale_ms);
    Ok(answer.services)
}

async fn ls(context: &mut Context<'_>, args: &LsArgs) -> Result<(), Failure> {
    let services = list(context, Vec::new(), args.read).await?;
    let rows: Vec<ServiceRow> =
        services.iter().map(ServiceRow::try_from).collect::<Result<_, _>>()?;
    let view = context.view();
    context.printer.list(&rows, &args.list, view)
}

async fn tasks(
    context: &mut Context<'_>,
    services: Vec<String>,
    all: bool,
    read: ReadFlags,
    flags: &ListFlags,
) -> Result<(), Failure> {
    let linearizable = read.linearizable;
    let request =
        v1::ListTasksRequest { services, all, linearizable, ..v1::ListTasksRequest::default() };
    let answer =
        context.client.call(async |mut control| control.list_tasks(request.clone()).await).await?;
    context.stale(answer.stale_ms);
    let mut rows: Vec<TaskRow> = answer.tasks.iter().map(TaskRow::from).collect();
    TaskRow::sort(&mut rows);
    let view = context.view();
    context.printer.list(&rows, flags, view)
}

async fn show(context: &mut Context<'_>, args: InspectArgs) -> Result<(), Failure> {
    let services = list(context, args.services, ReadFlags::default()).await?;
    let objects: Vec<Value> = services.iter().map(inspect::whole).collect::<Result<_, _>>()?;
    context.printer.inspected(objects, &args.format)
}

async fn update(context: &mut Context<'_>, args: UpdateArgs) -> Result<(), Failure> {
    let looks = Looks {
        no_check: args.no_check,
        no_resolve: args.no_resolve_image,
        resolve_image: args.flags.image.is_some() && !args.no_resolve_image,
    };
    let change = |spec: &ServiceSpec| args.flags.apply(spec, &env::of_caller);
    let (name, target) = edit(context, &args.service, looks, change).await?;
    context.printer.line(&name)?;
    converge(context, &args.wait, &name, target).await
}

async fn scale_all(context: &mut Context<'_>, args: ScaleArgs) -> Result<(), Failure> {
    let mut changed = Vec::new();
    for (service, replicas) in &args.services {
        let edited = edit(context, service, Looks::NOT, |old| {
            let mut spec = old.clone();
            scale(&mut spec, *replicas)?;
            Ok((spec, Vec::new()))
        });
        changed.push(edited.await?);
    }
    for (name, target) in changed {
        converge(context, &args.wait, &name, target).await?;
    }
    Ok(())
}

async fn restart(context: &mut Context<'_>, args: NamesArgs) -> Result<(), Failure> {
    let mut changed = Vec::new();
    for service in &args.services {
        let edited = edit(context, service, Looks::NOT, |old| {
            let mut spec = old.clone();
            spec.task.force = spec.task.force.wrapping_add(1);
            Ok((spec, Vec::new()))
        });
        changed.push(edited.await?);
    }
    for (name, target) in changed {
        context.printer.line(&name)?;
        converge(context, &args.wait, &name, target).await?;
    }
    Ok(())
}

/// What a node looks at before a change is accepted.
#[derive(Debug, Clone, Copy)]
struct Looks {
    no_check: bool,
    no_resolve: bool,
    /// The image was named, perhaps as it was before.
    resolve_image: bool,
}

impl Looks {
    const NOT: Self = Self { no_check: true, no_resolve: true, resolve_image: false };
}

/// Reads a service, changes its specification, writes it; once more when
/// somebody else wrote in between. Returns its name and what was written.
async fn edit(
    context: &mut Context<'_>,
    service: &str,
    looks: Looks,
    change: impl Fn(&ServiceSpec) -> Result<(ServiceSpec, Vec<String>), Failure>,
) -> Result<(String, Target), Failure> {
    let mut tries = 1;
    loop {
        let read = list(context, vec![service.to_owned()], ReadFlags::default()).await?;
        let old = read.first().ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("there is no service {service}"))
        })?;
        let before = spec_of(old)?;
        let (spec, remarks) = change(&before)?;
        let request = v1::UpdateServiceRequest {
            service: service_id(&old.id),
            spec: Some(v1::ServiceSpec::from(&spec)),
            revision: old.revision,
            request_id: request_id(),
            no_check: looks.no_check,
            no_resolve: looks.no_resolve,
            resolve_image: looks.resolve_image,
        };
        let answer = context
            .client
            .call(async |mut control| control.update_service(request.clone()).await)
            .await;
        match answer {
            Ok(changed) => {
                for remark in remarks {
                    context.printer.warning(remark);
                }
                for note in &changed.notes {
                    context.printer.note(note);
                }
                // It was written on top of the one that was read, or not at all. Managers know the
                // digest of an image that is named by its tag again.
                let ours = old.number.max(1).saturating_add(u32::from(spec != before));
                let number = if changed.number == 0 { ours } else { changed.number };
                if number == old.number.max(1) {
                    let name = &spec.name;
                    context.printer.note(format!(
                        "nothing to change: service {name} stays at revision {number}"
                    ));
                }
                let target = Target { revision: changed.revision, number };
                return Ok((spec.name.to_string(), target));
            }
            Err(failure) if failure.exit == Exit::Conflict && tries < EDIT_TRIES_MAX => {
                // A conflict that is not about the revision shows again and ends the loop.
                let now = list(context, vec![service.to_owned()], ReadFlags::default()).await?;
                if now.first().is_none_or(|s| s.revision == old.revision) {
                    return Err(failure);
                }
            }
            Err(failure) => return Err(failure),
        }
        tries += 1;
    }
}

async fn remove(context: &mut Context<'_>, args: NamesArgs) -> Result<(), Failure> {
    let request =
        v1::RemoveServicesRequest { services: args.services.clone(), request_id: request_id() };
    let changed = context
        .client
        .call(async |mut control| control.remove_services(request.clone()).await)
        .await?;
    for (at, service) in args.services.iter().enumerate() {
        context.printer.line(service)?;
        if !args.wait.detach {
            // By id: a new service of the same name is another one.
            let id = changed.ids.get(at).map(|id| service_id(id));
            let goal = Goal {
                service: id.as_deref().unwrap_or(service),
                name: service,
                revision: changed.revision,
                number: 0,
                run: 0,
                removed: true,
                timeout: None,
            };
            until(&mut context.client, context.printer, &goal).await?;
        }
    }
    Ok(())
}
