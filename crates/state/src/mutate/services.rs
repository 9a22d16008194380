//! Services: their specifications, the revisions before, and how far an update of them is.

use std::sync::Arc;

use warren_model::Time;
use warren_model::event::Action;
use warren_model::id::ServiceId;
use warren_model::service::{
    Change, ChangeKind, Hook, HookStatus, Revision, Service, ServiceSpec, TaskTemplate, UpdateKind,
    UpdatePhase, UpdateStatus,
};

use super::{Step, invalid};
use crate::change::{Key, Rejection};
use crate::table::ServiceRow;
use crate::weight;

/// Kept of a service beside the one that is wanted: ten ways back.
pub(crate) const REVISIONS_MAX: usize = 10;
/// Of all of them together, by [`weight::of_spec`]; the newest one is kept whatever it weighs.
pub(crate) const REVISIONS_BYTES_MAX: usize = 512 << 10;

impl Step<'_> {
    pub(super) fn create_service(
        &mut self,
        id: ServiceId,
        spec: &ServiceSpec,
    ) -> Result<(), Rejection> {
        if self.state.service(id).is_some() {
            return Err(Rejection::Exists { key: Key::Service(id) });
        }
        if let Some(holder) = self.state.names.get(&spec.name) {
            return Err(Rejection::NameTaken { name: spec.name.clone(), holder: *holder });
        }
        self.check_ports(id, spec)?;
        self.check_attachments(spec)?;
        let time = self.state.time;
        let service = Service {
            id,
            spec: spec.clone(),
            number: 1,
            template: 1,
            template_last: 1,
            change: self.change(ChangeKind::Create),
            // Nobody watches over what is new, unless something is to be done before or after.
            update: spec.hooks.is_any().then(|| self.update_to(spec)),
            job: self.new_job(spec),
            removing: false,
            created: time,
            updated: time,
            revision: self.revision,
        };
        self.state.set_service(self.journal, id, Some(service));
        self.emit_service(Action::Create, id, spec, String::new());
        self.grant_asked(id, spec)
    }

    pub(super) fn update_service(
        &mut self,
        id: ServiceId,
        spec: &ServiceSpec,
    ) -> Result<(), Rejection> {
        let before = self.there(id)?;
        if before.spec.name != spec.name {
            return invalid(format!("service {} cannot be renamed", before.spec.name));
        }
        if before.spec == *spec {
            return Ok(());
        }
        let status = self.update_to(spec);
        let (renewed, template) = self.respecify(id, spec, ChangeKind::Update, status)?;
        let message = if renewed { format!("template {template}") } else { String::new() };
        self.emit_service(Action::Update, id, spec, message);
        Ok(())
    }

    /// By a person, or, with a reason, by itself.
    pub(super) fn roll_back(&mut self, id: ServiceId, to: u32, why: &str) -> Result<(), Rejection> {
        let before = self.there(id)?;
        let name = before.spec.name.clone();
        let revisions = self.state.revisions(id);
        let Some(revision) = revisions.iter().find(|revision| revision.number == to).cloned()
        else {
            let known = match revisions {
                [] => "it has none to go back to".to_owned(),
                [first, ..] => format!("it has {} to {}", first.number, before.number),
            };
            return invalid(format!("service {name} has no revision {to}: {known}"));
        };
        if revision.spec == before.spec {
            let number = before.number;
            return invalid(format!(
                "revision {to} of service {name} is what is wanted already, as revision {number}"
            ));
        }
        let (kind, change) = match why {
            "" => (UpdateKind::Rollback, ChangeKind::Rollback { to }),
            _ => (UpdateKind::AutomaticRollback, ChangeKind::AutomaticRollback { to }),
        };
        let status = UpdateStatus {
            kind,
            phase: UpdatePhase::Moving,
            started: self.state.time,
            message: cut(why),
            // What was there before worked without.
            hook: None,
        };
        self.respecify(id, &revision.spec, change, status)?;
        let mut message = format!("back to revision {to}");
        if !why.is_empty() {
            message.push_str(": ");
            message.push_str(&cut(why));
        }
        self.emit_service(Action::Update, id, &revision.spec, message);
        Ok(())
    }

    pub(super) fn set_update(
        &mut self,
        id: ServiceId,
        phase: UpdatePhase,
        message: &str,
    ) -> Result<(), Rejection> {
        let before = self.there(id)?;
        let (name, now) = (&before.spec.name, self.state.time);
        // One that was begun by a version that did not remember can be paused.
        let known = before.update.clone().unwrap_or(UpdateStatus {
            kind: UpdateKind::Update,
            phase: UpdatePhase::Moving,
            started: Time(0),
            message: String::new(),
            hook: None,
        });
        let update = match (known.phase, phase) {
            (UpdatePhase::Done, _) => {
                return invalid(format!("no update of service {name} is under way"));
            }
            (UpdatePhase::Moving, UpdatePhase::Moving) => {
                return invalid(format!("the update of service {name} is not paused"));
            }
            (UpdatePhase::Paused, UpdatePhase::Paused) => {
                return invalid(format!("the update of service {name} is paused already"));
            }
            (UpdatePhase::Paused, UpdatePhase::Moving) => {
                let hook = known.hook.map(|due| HookStatus { since: now, ..due });
                UpdateStatus { phase, started: now, message: String::new(), hook, ..known }
            }
            (UpdatePhase::Moving, UpdatePhase::Paused) => {
                UpdateStatus { phase, message: cut(message), ..known }
            }
            (UpdatePhase::Moving | UpdatePhase::Paused, UpdatePhase::Done) => {
                let told = known.kind == UpdateKind::AutomaticRollback
                    && known.phase == UpdatePhase::Moving;
                let message = if told { known.message.clone() } else { cut(message) };
                UpdateStatus { phase, message, hook: None, ..known }
            }
        };
        let text = match phase {
            UpdatePhase::Moving => "update goes on".to_owned(),
            UpdatePhase::Paused => format!("update paused: {}", update.message),
            UpdatePhase::Done if message.is_empty() => "update completed".to_owned(),
            UpdatePhase::Done => format!("update completed: {}", update.message),
        };
        let text = match update.kind {
            UpdateKind::Update => text,
            UpdateKind::Rollback | UpdateKind::AutomaticRollback => {
                text.replacen("update", "rollback", 1)
            }
        };
        let service = Service { update: Some(update), revision: self.revision, ..before.clone() };
        let spec = service.spec.clone();
        self.state.set_service(self.journal, id, Some(service));
        self.emit_service(Action::Update, id, &spec, text);
        Ok(())
    }

    /// Of an update that begins now.
    fn update_to(&self, spec: &ServiceSpec) -> UpdateStatus {
        let since = self.state.time;
        let before = !spec.hooks.before.is_empty();
        UpdateStatus {
            kind: UpdateKind::Update,
            phase: UpdatePhase::Moving,
            started: since,
            message: String::new(),
            hook: before.then_some(HookStatus { hook: Hook::Before, since }),
        }
    }

    pub(super) fn set_hook(&mut self, id: ServiceId, hook: Option<Hook>) -> Result<(), Rejection> {
        let before = self.there(id)?;
        let (name, now) = (&before.spec.name, self.state.time);
        let Some(known) = before.update.clone().filter(|known| known.phase != UpdatePhase::Done)
        else {
            return invalid(format!("no update of service {name} is under way"));
        };
        if known.hook.map(|due| due.hook) == hook {
            return invalid(format!("the hook of service {name} is as it is to be already"));
        }
        let text = match (hook, known.hook) {
            (Some(hook), _) => format!("{} command is due", hook.as_str()),
            (None, Some(due)) => format!("{} command is over", due.hook.as_str()),
            (None, None) => String::new(),
        };
        let hook = hook.map(|hook| HookStatus { hook, since: now });
        // What comes next has its time from now on.
        let update = UpdateStatus { hook, started: now, ..known };
        let service = Service { update: Some(update), revision: self.revision, ..before.clone() };
        let spec = service.spec.clone();
        self.state.set_service(self.journal, id, Some(service));
        self.emit_service(Action::Update, id, &spec, text);
        Ok(())
    }

    /// Another specification, as a revision of its own; says whether it needs another template,
    /// and which it has.
    fn respecify(
        &mut self,
        id: ServiceId,
        spec: &ServiceSpec,
        kind: ChangeKind,
        status: UpdateStatus,
    ) -> Result<(bool, u32), Rejection> {
        let row = self.state.services.get(&id);
        let row = row.ok_or(Rejection::NotFound { key: Key::Service(id) })?;
        let before = &row.service;
        let renewed = before.spec.task != spec.task;
        let template = match renewed {
            false => Some(before.template),
            true => same_template(row, &spec.task).or_else(|| before.template_last.checked_add(1)),
        };
        let (Some(template), Some(number)) = (template, before.number.checked_add(1)) else {
            return invalid(format!("service {} was updated too often", before.spec.name));
        };
        check_mode(&before.spec, spec)?;
        let job = self.changed_job(before, spec, template, renewed)?;
        self.check_ports(id, spec)?;
        self.check_attachments(spec)?;
        let good = before.update.as_ref().is_none_or(|update| update.phase == UpdatePhase::Done);
        let mut revisions = row.revisions.clone();
        revisions.push(Arc::new(Revision {
            number: before.number,
            spec: before.spec.clone(),
            time: before.updated,
            change: before.change.clone(),
            good,
        }));
        trim(&mut revisions);
        let service = Service {
            spec: spec.clone(),
            number,
            template,
            template_last: before.template_last.max(template),
            change: self.change(kind),
            // A job begins a new run instead.
            update: if renewed && job.is_none() { Some(status) } else { before.update.clone() },
            job,
            updated: self.state.time,
            revision: self.revision,
            ..Service::clone(before)
        };
        self.state.set_revisions(self.journal, id, service, revisions);
        self.grant_asked(id, spec)?;
        Ok((renewed, template))
    }

    fn change(&self, kind: ChangeKind) -> Change {
        Change { by: self.principal.map(str::to_owned), kind }
    }

    /// A service that is not being removed.
    pub(super) fn there(&self, id: ServiceId) -> Result<&Service, Rejection> {
        let service = self.service(id)?;
        match service.removing {
            true => invalid(format!("service {} is being removed", service.spec.name)),
            false => Ok(service),
        }
    }

    pub(super) fn remove_service(&mut self, id: ServiceId) -> Result<(), Rejection> {
        let before = self.service(id)?;
        if before.removing {
            return Ok(());
        }
        let time = self.state.time;
        let service =
            Service { removing: true, updated: time, revision: self.revision, ..before.clone() };
        let spec = service.spec.clone();
        self.state.set_service(self.journal, id, Some(service));
        self.emit_service(Action::Update, id, &spec, "removing".to_owned());
        Ok(())
    }

    pub(super) fn drop_service(&mut self, id: ServiceId) -> Result<(), Rejection> {
        let before = self.service(id)?;
        let name = &before.spec.name;
        if !before.removing {
            return invalid(format!("service {name} is not being removed"));
        }
        if self.state.tasks_of(id).next().is_some() {
            return invalid(format!("service {name} still has tasks"));
        }
        let spec = before.spec.clone();
        self.release_all(id);
        self.state.set_service(self.journal, id, None);
        self.emit_service(Action::Remove, id, &spec, String::new());
        Ok(())
    }

    pub(super) fn service(&self, id: ServiceId) -> Result<&Service, Rejection> {
        self.state.service(id).ok_or(Rejection::NotFound { key: Key::Service(id) })
    }

    /// Ports are unique in the cluster, whatever their mode, until their service is dropped.
    fn check_ports(&self, id: ServiceId, spec: &ServiceSpec) -> Result<(), Rejection> {
        for port in &spec.ports {
            let (protocol, number) = (port.protocol, port.published);
            let range = (protocol, number, ServiceId::MIN)..=(protocol, number, ServiceId::MAX);
            let others = self.state.ports.range(range).filter(|(_, _, holder)| *holder != id);
            for holder in others.filter_map(|(_, _, holder)| self.state.service(*holder)) {
                if holder.spec.ports.iter().any(|other| other.clashes(port)) {
                    let holder = holder.spec.name.clone();
                    return Err(Rejection::PortTaken { port: port.to_string(), holder });
                }
            }
        }
        Ok(())
    }
}

/// Services that go on may become global and back; a job is what it was made.
fn check_mode(before: &ServiceSpec, after: &ServiceSpec) -> Result<(), Rejection> {
    let (was, is) = (before.mode, after.mode);
    let other = std::mem::discriminant(&was) != std::mem::discriminant(&is);
    if other && (was.is_job() || is.is_job()) {
        let (name, was, is) = (&before.name, was.as_str(), is.as_str());
        return invalid(format!(
            "service {name} is {was} and cannot become {is}: remove it and create another"
        ));
    }
    Ok(())
}

/// A template that tasks have, and that is just as wanted: they are then as the spec says.
fn same_template(row: &ServiceRow, task: &TaskTemplate) -> Option<u32> {
    let mut known = row.templates.iter().rev();
    known.find(|(_, template)| *template.template == *task).map(|(number, _)| *number)
}

/// Forgets the oldest beyond the limits.
fn trim(revisions: &mut Vec<Arc<Revision>>) {
    let weight = |revision: &Arc<Revision>| weight::of_spec(&revision.spec);
    let mut bytes: usize = revisions.iter().map(weight).sum();
    let mut over = 0;
    while revisions.len() - over > 1
        && (revisions.len() - over > REVISIONS_MAX || bytes > REVISIONS_BYTES_MAX)
    {
        bytes -= weight(&revisions[over]);
        over += 1;
    }
    revisions.drain(..over);
}

fn cut(message: &str) -> String {
    message[..message.floor_char_boundary(UpdateStatus::MESSAGE_MAX)].to_owned()
}
