//! What follows from tasks, kept on the rows of their services and nodes.

use std::sync::Arc;

use warren_model::id::{NodeId, ServiceId, TaskId};
use warren_model::service::TaskTemplate;
use warren_model::task::Task;

use super::{NodeRow, is_live};
use crate::State;

impl State {
    /// A node may have more room than before the transaction under way.
    pub(super) fn note_room(&mut self) {
        // The number that it will have; after an undoing later than the truth, which does no harm.
        self.roomier = self.revision.saturating_add(1);
    }

    /// What a task reserves where it is; nothing once it has ended. Its template is there for as
    /// long as the task.
    fn reserved_by(&self, task: Option<&Task>) -> Option<(NodeId, Arc<TaskTemplate>)> {
        let task = task.filter(|task| is_live(task))?;
        let template = self.template(task.service, task.template)?;
        let node = task.node?;
        (!template.reserved().is_empty()).then(|| (node, template.clone()))
    }

    /// Where a task has devices; nothing once it has ended.
    fn holding<'t>(&mut self, task: Option<&'t Task>) -> Option<(&'t Task, &mut NodeRow)> {
        let task = task.filter(|task| !task.devices.is_empty() && is_live(task))?;
        Some((task, self.nodes.get_mut(&task.node?)?))
    }

    pub(super) fn index_task(
        &mut self,
        id: TaskId,
        old: Option<&Task>,
        new: Option<&Task>,
        unreferred: &mut Vec<(ServiceId, u32)>,
    ) {
        self.index_service(id, old, new, unreferred);
        self.index_node(id, old, new);
    }

    fn index_service(
        &mut self,
        id: TaskId,
        old: Option<&Task>,
        new: Option<&Task>,
        unreferred: &mut Vec<(ServiceId, u32)>,
    ) {
        let key = |task: &Task| (task.service, task.slot, task.template);
        let (old, new) = (old.map(key), new.map(key));
        if old == new {
            return;
        }
        if let Some((service, slot, number)) = old
            && let Some(row) = self.services.get_mut(&service)
        {
            row.tasks.remove(&(slot, id));
            if let Some(template) = row.templates.get_mut(&number) {
                template.tasks = template.tasks.saturating_sub(1);
                if template.tasks == 0 {
                    unreferred.push((service, number));
                }
            }
        }
        if let Some((service, slot, number)) = new
            && let Some(row) = self.services.get_mut(&service)
        {
            row.tasks.insert((slot, id));
            if let Some(template) = row.templates.get_mut(&number) {
                template.tasks = template.tasks.saturating_add(1);
            }
        }
    }

    fn index_node(&mut self, id: TaskId, was: Option<&Task>, is: Option<&Task>) {
        let place = |task: &Task| {
            task.node.map(|node| (node, task.address.map_or(0, u32::from), is_live(task)))
        };
        let (old, new) = (was.and_then(place), is.and_then(place));
        if old == new {
            return;
        }
        let (before, after) = (self.reserved_by(was), self.reserved_by(is));
        if let Some((node, template)) = before
            && let Some(row) = self.nodes.get_mut(&node)
        {
            row.reserved.subtract(&template.reserved());
            row.stated.change(&template.reserved(), u32::saturating_sub);
        }
        if let Some((node, template)) = after
            && let Some(row) = self.nodes.get_mut(&node)
        {
            row.reserved.add(&template.reserved());
            row.stated.change(&template.reserved(), u32::saturating_add);
        }
        if let Some((task, row)) = self.holding(was) {
            row.devices.retain(|_, holder| *holder != task.id);
        }
        if let Some((task, row)) = self.holding(is) {
            row.devices.extend(task.devices.iter().map(|device| (device.to_owned(), task.id)));
        }
        if old.is_some_and(|(_, _, live)| live) {
            self.note_room();
        }
        let moved = old.map(|(node, address, _)| (node, address))
            != new.map(|(node, address, _)| (node, address));
        if let Some((node, address, live)) = old
            && let Some(row) = self.nodes.get_mut(&node)
        {
            row.live = row.live.saturating_sub(u32::from(live));
            if moved {
                row.tasks.remove(&(address, id));
            }
        }
        if let Some((node, address, live)) = new
            && let Some(row) = self.nodes.get_mut(&node)
        {
            row.live = row.live.saturating_add(u32::from(live));
            if moved {
                row.tasks.insert((address, id));
            }
        }
    }

    pub(super) fn drop_unreferred(&mut self, unreferred: Vec<(ServiceId, u32)>) {
        for (service, number) in unreferred {
            let Some(row) = self.services.get_mut(&service) else { continue };
            let used = row.templates.get(&number).is_some_and(|template| template.tasks > 0);
            if !used && row.service.template != number {
                row.templates.remove(&number);
            }
        }
    }
}
