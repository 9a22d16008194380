//! What each mutation does, and when it is refused.

mod cluster;
mod jobs;
mod networks;
mod nodes;
mod operators;
mod policies;
mod services;

use std::fmt::Write;
use std::net::Ipv4Addr;

use warren_model::device::Devices;
use warren_model::event::{Action, Event, Kind};
use warren_model::health::HealthState;
use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::job::{JobStatus, Run};
use warren_model::node::Node;
use warren_model::service::{ServiceSpec, signal_name};
use warren_model::task::{Desired, Task, TaskControl, TaskState, TaskStatus};

use crate::State;
use crate::change::{Key, Mutation, Rejection};
use crate::table::Journal;
pub(crate) use services::REVISIONS_MAX;

/// Of a task's error, in bytes; longer ones are cut. A million tasks may carry one.
pub(crate) const ERROR_BYTES_MAX: usize = 1024;

/// Of `.4294967295`.
const SLOT_CHARS_MAX: usize = 11;

/// One transaction while it is being applied.
pub(crate) struct Step<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) journal: &'a mut Journal,
    pub(crate) events: &'a mut Vec<Event>,
    /// That the transaction will have.
    pub(crate) revision: u64,
    /// The person who asked for it.
    pub(crate) principal: Option<&'a str>,
}

impl Step<'_> {
    pub(crate) fn mutate(&mut self, mutation: &Mutation) -> Result<(), Rejection> {
        match mutation {
            Mutation::SetCluster(cluster) => self.set_cluster(cluster),
            Mutation::Restored { epoch, revision_at_least: _ } => self.restored(*epoch),
            Mutation::CreateNode(node) => self.create_node(node),
            Mutation::DescribeNode { id, description } => self.describe_node(*id, description),
            Mutation::SetNodeStatus { id, status } => self.set_node_status(*id, *status),
            Mutation::SetAvailability { id, availability, deadline_ms } => {
                self.set_availability(*id, *availability, *deadline_ms)
            }
            Mutation::SetRelays { id, relays } => self.set_relays(*id, relays),
            Mutation::GrantBlock { id, block } => self.grant_block(*id, *block),
            Mutation::SetRole { id, manager, worker } => self.set_role(*id, *manager, *worker),
            Mutation::SetLabels { id, labels } => self.set_labels(*id, labels),
            Mutation::SetCertificate { id, key_hash, not_after, issuer_hash } => {
                self.set_certificate(*id, *key_hash, *not_after, *issuer_hash)
            }
            Mutation::SetResources { id, generic, system_reserved, defaults } => {
                self.set_resources(*id, generic, system_reserved, *defaults)
            }
            Mutation::SetTaints { id, taints } => self.set_taints(*id, taints),
            Mutation::SetForgotten { id, forgotten } => self.set_forgotten(*id, *forgotten),
            Mutation::RemoveNode { id, keep_until, force } => {
                self.remove_node(*id, *keep_until, *force)
            }
            Mutation::PutOperator(operator) => self.put_operator(operator),
            Mutation::RemoveOperator { name } => self.remove_operator(*name),
            Mutation::CreateNetwork { id, spec } => self.create_network(*id, spec),
            Mutation::RemoveNetwork { id } => self.remove_network(*id),
            Mutation::CreatePolicy { id, spec } => self.create_policy(*id, spec),
            Mutation::RemovePolicy { id } => self.remove_policy(*id),
            Mutation::GrantVip { holder, address } => self.grant_vip(*holder, *address),
            Mutation::ReleaseVip { address } => self.release_vip(*address),
            Mutation::CreateService { id, spec } => self.create_service(*id, spec),
            Mutation::UpdateService { id, spec } => self.update_service(*id, spec),
            Mutation::RollBackService { id, to, why } => self.roll_back(*id, *to, why),
            Mutation::SetUpdate { id, phase, message } => self.set_update(*id, *phase, message),
            Mutation::SetHook { id, hook } => self.set_hook(*id, *hook),
            Mutation::BeginRun { id, scheduled, given } => self.begin_run(*id, *scheduled, given),
            Mutation::EndRun { id, run, state, message, completed, total } => {
                let end =
                    jobs::End { state: *state, message, completed: *completed, total: *total };
                self.end_run(*id, *run, end)
            }
            Mutation::PassSchedule { id, until, missed, message } => {
                self.pass_schedule(*id, *until, *missed, message)
            }
            Mutation::Suspend { id, suspended } => self.suspend(*id, *suspended),
            Mutation::RemoveService { id } => self.remove_service(*id),
            Mutation::DropService { id } => self.drop_service(*id),
            Mutation::CreateTask(task) => self.create_task(task),
            Mutation::PlaceTask { id, node, address, devices } => {
                self.place_task(*id, *node, *address, devices)
            }
            Mutation::SetDesired { id, desired } => self.set_desired(*id, *desired),
            Mutation::ExplainTask { id, error } => self.explain_task(*id, error),
            Mutation::ReportTask { id, node, status } => {
                self.report_task(*id, *node, status);
                Ok(())
            }
            Mutation::DropTask { id } => self.drop_task(*id),
            Mutation::PreemptTask { id, by, slot } => self.preempt_task(*id, *by, *slot),
            Mutation::ControlTask { id, control } => self.control_task(*id, *control),
        }
    }

    // ---- tasks ----

    fn create_task(&mut self, task: &Task) -> Result<(), Rejection> {
        let row = self.state.services.get(&task.service);
        let row = row.ok_or(Rejection::NotFound { key: Key::Service(task.service) })?;
        if row.service.removing {
            return invalid(format!("service {} is being removed", row.service.spec.name));
        }
        if !row.templates.contains_key(&task.template) {
            let (name, number) = (&row.service.spec.name, task.template);
            return invalid(format!("service {name} has no template {number}"));
        }
        let of_job = |job: &JobStatus| job.run(task.run).is_some_and(Run::is_active);
        let of_none = task.run == 0 || task.hook().is_some();
        if !row.service.job.as_ref().map_or(of_none, of_job) {
            let (name, run) = (&row.service.spec.name, task.run);
            return invalid(format!("run {run} of service {name} does not go on"));
        }
        match (task.status.state, task.node) {
            (TaskState::Pending, None) if task.address.is_none() && task.devices.is_empty() => {}
            (TaskState::Assigned, Some(node)) => {
                self.check_place(node, task.address, &task.devices)?;
            }
            (state, _) => {
                let state = state.as_str();
                return invalid(format!(
                    "a new task is pending without a place or assigned with one, not {state}"
                ));
            }
        }
        let mut task = Task { revision: self.revision, ..task.clone() };
        task.created = self.state.time;
        task.status.since = self.state.time;
        if let Some(origin) = &mut task.origin {
            origin.revision = self.revision;
        }
        cut_error(&mut task.status);
        let (id, service, slot) = (task.id, task.service, task.slot);
        let message = describe(&task.status);
        if !self.state.insert_task(self.journal, task) {
            return Err(Rejection::Exists { key: Key::Task(id) });
        }
        self.emit_task(Action::Create, id, service, slot, message);
        Ok(())
    }

    fn place_task(
        &mut self,
        id: TaskId,
        node: NodeId,
        address: Option<Ipv4Addr>,
        devices: &Devices,
    ) -> Result<(), Rejection> {
        let host = self.check_place(node, address, devices)?.description.hostname.clone();
        let since = self.state.time;
        self.edit_task(id, |task| {
            if task.status.state != TaskState::Pending || task.node.is_some() {
                return invalid(format!("task {id} is placed already"));
            }
            let status = TaskStatus::new(TaskState::Assigned, since);
            let devices = devices.clone();
            let placed = Task { node: Some(node), address, devices, status, ..task.clone() };
            Ok(Some((placed, format!("assigned to {host}"))))
        })
    }

    /// An address is of a block of its node, and no other live task has it, nor its devices.
    fn check_place(
        &self,
        id: NodeId,
        address: Option<Ipv4Addr>,
        devices: &Devices,
    ) -> Result<&Node, Rejection> {
        let node = self.state.node(id).ok_or(Rejection::NotFound { key: Key::Node(id) })?;
        let held = self.state.devices_on(id);
        for device in devices.iter() {
            if let Some(holder) = held.and_then(|held| held.get(device)) {
                return invalid(format!("device {device} is in use by task {holder}"));
            }
        }
        let Some(address) = address else { return Ok(node) };
        if !node.blocks.iter().any(|block| block.contains(address)) {
            let host = &node.description.hostname;
            return invalid(format!("address {address} is not of a block of node {host}"));
        }
        match self.state.address_holder(id, address) {
            Some(holder) => invalid(format!("address {address} is in use by task {holder}")),
            None => Ok(node),
        }
    }

    fn set_desired(&mut self, id: TaskId, desired: Desired) -> Result<(), Rejection> {
        self.edit_task(id, |task| {
            if desired < task.desired {
                return invalid(format!("task {id} cannot be wanted again"));
            }
            if desired == task.desired {
                return Ok(None);
            }
            let message = match desired {
                Desired::Running => "to run",
                Desired::Shutdown => "to shut down",
                Desired::Remove => "to remove",
            };
            Ok(Some((Task { desired, ..task.clone() }, message.to_owned())))
        })
    }

    fn explain_task(&mut self, id: TaskId, error: &str) -> Result<(), Rejection> {
        self.edit_task(id, |task| {
            let error = (!error.is_empty()).then(|| error.into());
            let mut status = TaskStatus { error, ..task.status.clone() };
            cut_error(&mut status);
            Ok((status != task.status).then(|| with_status(task, status)))
        })
    }

    /// Takes what an agent saw, or nothing if it is not for this agent to say, is old news, or
    /// would bring an ended task back.
    fn report_task(&mut self, id: TaskId, node: NodeId, status: &TaskStatus) {
        let now = self.state.time;
        let taken = self.edit_task(id, |task| {
            if task.node != Some(node) || !is_news(&task.status, status) {
                return Ok(None);
            }
            let mut status = status.clone();
            // An agent's clock may be ahead; what waits for "10 s after" must not wait for years.
            status.since = status.since.min(now);
            status.started = status.started.map(|started| started.min(now));
            if let Some(health) = &mut status.health {
                health.since = health.since.min(now);
            }
            cut_error(&mut status);
            Ok((status != task.status).then(|| with_status(task, status)))
        });
        match taken {
            // The only way to fail is a task that is unknown, which reports may name.
            Ok(()) | Err(_) => {}
        }
    }

    fn drop_task(&mut self, id: TaskId) -> Result<(), Rejection> {
        let task = self.state.remove_task(self.journal, id);
        let task = task.ok_or(Rejection::NotFound { key: Key::Task(id) })?;
        self.emit_task(Action::Remove, id, task.service, task.slot, String::new());
        Ok(())
    }

    fn preempt_task(&mut self, id: TaskId, by: ServiceId, slot: u32) -> Result<(), Rejection> {
        let other = self.state.service(by).ok_or(Rejection::NotFound { key: Key::Service(by) })?;
        let (name, priority) = (other.spec.name.clone(), other.spec.placement.priority);
        let revision = self.revision;
        let written = self.state.edit_task(self.journal, id, |task| {
            let desired = Desired::Shutdown;
            let wanted = task.desired == Desired::Running;
            Ok(wanted.then(|| Task { desired, revision, ..task.clone() }))
        })?;
        if let Some(task) = written {
            let message = format!("ended for {name}.{slot} of priority {priority}");
            self.emit_task(Action::Preempt, id, task.service, task.slot, message);
        }
        Ok(())
    }

    fn control_task(&mut self, id: TaskId, control: TaskControl) -> Result<(), Rejection> {
        let task = self.state.task(id).ok_or(Rejection::NotFound { key: Key::Task(id) })?;
        let (service, slot) = (task.service, task.slot);
        let message = match control {
            TaskControl::Restart => "a restart was asked for".to_owned(),
            TaskControl::Signal(number) => format!("{} was asked for", signal_name(number)),
            TaskControl::Pause => "a pause was asked for".to_owned(),
            TaskControl::Unpause => "the end of its pause was asked for".to_owned(),
        };
        self.emit_task(Action::Update, id, service, slot, message);
        Ok(())
    }

    /// Writes what `edit` makes of a task and says so in an event, unless it makes nothing.
    fn edit_task(
        &mut self,
        id: TaskId,
        edit: impl FnOnce(&Task) -> Result<Option<(Task, String)>, Rejection>,
    ) -> Result<(), Rejection> {
        let revision = self.revision;
        let mut said = String::new();
        let mut action = Action::Update;
        let written = self.state.edit_task(self.journal, id, |task| {
            Ok(edit(task)?.map(|(edited, message)| {
                said = message;
                if is_of_health(&task.status, &edited.status) {
                    action = Action::Health;
                }
                Task { revision, ..edited }
            }))
        })?;
        if let Some(task) = written {
            self.emit_task(action, id, task.service, task.slot, said);
        }
        Ok(())
    }

    // ---- events ----

    fn emit_task(
        &mut self,
        action: Action,
        id: TaskId,
        service: ServiceId,
        slot: u32,
        message: String,
    ) {
        let mut name = String::new();
        if let Some(service) = self.state.service(service) {
            let text = service.spec.name.as_str();
            // One allocation, not three: this runs for every mutation of a task.
            name.reserve_exact(text.len() + SLOT_CHARS_MAX);
            name.push_str(text);
            let hook = self.state.task(id).and_then(Task::hook);
            match hook {
                Some(hook) => write!(name, ".{}", hook.as_str()),
                None => write!(name, ".{slot}"),
            }
            .expect("a string takes any text");
        }
        self.emit(Kind::Task, action, id.to_string(), name, message);
    }

    fn emit_service(&mut self, action: Action, id: ServiceId, spec: &ServiceSpec, message: String) {
        self.emit(Kind::Service, action, id.to_string(), spec.name.to_string(), message);
    }

    fn emit(&mut self, kind: Kind, action: Action, id: String, name: String, message: String) {
        let (revision, time) = (self.revision, self.state.time);
        self.events.push(Event { revision, time, kind, action, id, name, message });
    }
}

fn invalid<T>(why: impl Into<String>) -> Result<T, Rejection> {
    Err(Rejection::Invalid(why.into()))
}

/// Whether a report of a task, `after`, tells something later than what is known of it.
///
/// Attempts only go up; within one, states only go forward. What has ended stays so, but is
/// cleaned up in time. An agent whose machine lost power may not know its last attempts any more
/// and counts them anew: then the time tells what came later.
pub fn is_news(before: &TaskStatus, after: &TaskStatus) -> bool {
    let anew = after.attempt < before.attempt && after.since > before.since;
    if (after.attempt < before.attempt && !anew) || after.state == TaskState::Pending {
        return false;
    }
    if before.state.is_terminal() {
        let same = after.state == before.state && after.attempt == before.attempt;
        return same || after.state == TaskState::Removed;
    }
    if anew || after.attempt > before.attempt {
        return true;
    }
    after.state > before.state || after.state == before.state && !is_overtaken(before, after)
}

/// Health goes to and fro within one state: a manager that was cut off may hold an earlier report
/// for as long as it likes, and must not have it written over a later one. Where the task began to
/// run at another time, the agent's clock was set, or is ahead and was cut to the entry's: its times
/// tell nothing then. But no process goes back to where it was not healthy yet.
fn is_overtaken(before: &TaskStatus, after: &TaskStatus) -> bool {
    // So does a pause: its beginning and its end each have a time of their own.
    if after.paused != before.paused && after.since < before.since {
        return true;
    }
    // Restarts of sidecars only go up.
    if after.companion_restarts() < before.companion_restarts() {
        return true;
    }
    match (before.health, after.health) {
        (Some(known), Some(told)) if known.state != told.state => {
            let begins = told.state == HealthState::Starting && before.pid == after.pid;
            begins || before.since == after.since && told.since < known.since
        }
        _ => false,
    }
}

fn with_status(task: &Task, status: TaskStatus) -> (Task, String) {
    let message = describe(&status);
    (Task { status, ..task.clone() }, message)
}

/// Whether what is new of a task is its health: that it is unhealthy, or that it is healthy though
/// it ran before.
fn is_of_health(before: &TaskStatus, after: &TaskStatus) -> bool {
    let state = |status: &TaskStatus| status.health.map(|health| health.state);
    match state(after) {
        None | Some(HealthState::Starting) => false,
        now if now == state(before) => false,
        Some(HealthState::Healthy) => before.state == after.state,
        Some(HealthState::Unhealthy) => true,
    }
}

/// `failed: exit code 1`, for people.
fn describe(status: &TaskStatus) -> String {
    let state = status.describe();
    match &status.error {
        Some(error) => format!("{state}: {error}"),
        None => state,
    }
}

fn cut_error(status: &mut TaskStatus) {
    if let Some(error) = &status.error
        && error.len() > ERROR_BYTES_MAX
    {
        status.error = Some(error[..error.floor_char_boundary(ERROR_BYTES_MAX)].into());
    }
}
