//! Where a task runs: filter, score, and an address of the chosen node.
//!
//! A node must be an active, ready worker, and free of the service's host-mode
//! ports. Of those: where the slot failed least, then with the fewest tasks of
//! the service, then with the fewest tasks, then the lowest id. What cannot be
//! placed is created all the same and says why.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use warren_model::cluster::Cluster;
use warren_model::id::NodeId;
use warren_model::node::{Availability, NodeStatus};
use warren_model::service::{PublishMode, Service};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_state::change::{Key as ObjectKey, Mutation};

use crate::draft::Draft;
use crate::nodes::Nodes;
use crate::service::Pass;
use crate::slot::{Key, Renewed, Wanted, has_host_ports, is_failed, is_live, wanted};

/// Tasks of one service on one node.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Share {
    /// Live and wanted: what is to be spread.
    pub(crate) wanted: u32,
    /// Live: what holds ports.
    pub(crate) live: u32,
}

struct Place {
    node: NodeId,
    address: Ipv4Addr,
}

impl Pass<'_, '_> {
    /// Makes a task in a slot, placed if that is possible; `false` if nothing was made, for want of
    /// room in the plan or, in a global service, on the node.
    pub(crate) fn create(&mut self, at: usize, template: u32) -> bool {
        self.create_or(at, template, Unplaceable::Pending)
    }

    /// As [`Pass::create`], but only if there is a place.
    pub(crate) fn create_if_placed(&mut self, at: usize, template: u32) -> bool {
        self.create_or(at, template, Unplaceable::Nothing)
    }

    fn create_or(&mut self, at: usize, template: u32, otherwise: Unplaceable) -> bool {
        // One to grant a block, one to create.
        if !self.draft.room(2) {
            return false;
        }
        let key = self.slots[at].key;
        let placed = self.choose(at, template);
        let (place, status) = match (placed, key, otherwise) {
            (Ok(place), _, _) => {
                (Some(place), TaskStatus::new(TaskState::Assigned, self.draft.now))
            }
            (Err(reason), Key::Number(_), Unplaceable::Pending) => {
                let mut status = TaskStatus::new(TaskState::Pending, self.draft.now);
                status.error = Some(reason.into());
                (None, status)
            }
            // A global task without its node would be nobody's.
            (Err(_), Key::On(_), _) | (Err(_), _, Unplaceable::Nothing) => return false,
        };
        let renewed = if place.is_some() { Renewed::Placed } else { Renewed::Waiting };
        let task = Task {
            id: self.new_id(),
            service: self.service.id,
            slot: match key {
                Key::Number(number) => number,
                Key::On(_) => 1,
            },
            template,
            node: place.as_ref().map(|place| place.node),
            address: place.map(|place| place.address),
            desired: Desired::Running,
            status,
            created: self.draft.now,
            revision: 0,
        };
        self.draft.push(Mutation::CreateTask(task));
        self.slots[at].renewed = renewed;
        true
    }

    /// A node and an address for a task of a slot, or why there is none.
    fn choose(&mut self, at: usize, template: u32) -> Result<Place, String> {
        let mut full = BTreeSet::new();
        loop {
            let Some(site) = self.best(at, template, &full) else {
                self.unplaced = true;
                let Draft { nodes, cluster, .. } = &*self.draft;
                return Err(explain(nodes, self.service, cluster, !full.is_empty()));
            };
            let (state, cluster) = (self.draft.state, self.draft.cluster);
            let Some((address, block)) = self.draft.nodes.take_address(state, cluster, site) else {
                full.insert(site);
                continue;
            };
            let node = self.draft.nodes.site(site).node.id;
            if let Some(block) = block {
                self.draft.push(Mutation::GrantBlock { id: node, block });
            }
            self.draft.expect(ObjectKey::Node(node));
            self.draft.nodes.add_load(site);
            let share = &mut self.spread()[site];
            (share.wanted, share.live) = (share.wanted + 1, share.live + 1);
            return Ok(Place { node, address });
        }
    }

    /// Whether some node could take a task of a slot now.
    pub(crate) fn has_place(&mut self, at: usize, template: u32) -> bool {
        self.best(at, template, &BTreeSet::new()).is_some()
    }

    fn best(&mut self, at: usize, template: u32, full: &BTreeSet<usize>) -> Option<usize> {
        let exclusive = has_host_ports(self.service);
        self.spread();
        let (slot, nodes) = (&self.slots[at], &self.draft.nodes);
        let share = |site: usize| {
            let share = self.spread.as_ref().and_then(|spread| spread.get(site));
            share.copied().unwrap_or_default()
        };
        let failed = slot.tasks().filter(|task| is_failed(task) && task.template == template);
        let failed: Vec<NodeId> = failed.filter_map(|task| task.node).collect();
        let fits = |site: &usize| {
            nodes.site(*site).is_eligible()
                && !full.contains(site)
                && !(exclusive && share(*site).live > 0)
        };
        let score = |site: &usize| {
            let place = nodes.site(*site);
            let failures = failed.iter().filter(|node| **node == place.node.id).count();
            (failures, share(*site).wanted, place.load)
        };
        // `min_by_key` gives the first of equals, which has the lowest id.
        match slot.key {
            Key::Number(_) => (0..nodes.len()).filter(fits).min_by_key(score),
            Key::On(node) => nodes.position(node).filter(fits),
        }
    }

    fn spread(&mut self) -> &mut [Share] {
        let (slots, nodes) = (&self.slots, &self.draft.nodes);
        self.spread.get_or_insert_with(|| {
            let mut spread = vec![Share::default(); nodes.len()];
            for slot in slots {
                let wanted = slot.wanted.iter().map(|task| (task, 1));
                let rest = slot.past.iter().chain(&slot.leaving).map(|task| (task, 0));
                for (task, wanted) in wanted.chain(rest).filter(|(task, _)| is_live(task)) {
                    let Some(site) = task.node.and_then(|node| nodes.position(node)) else {
                        continue;
                    };
                    spread[site].wanted += wanted;
                    spread[site].live += 1;
                }
            }
            spread
        })
    }
}

/// Why no node fits, for people; `full`: there are some, but no address is left on them.
pub(crate) fn explain(
    nodes: &Nodes<'_>,
    service: &Service,
    cluster: &Cluster,
    full: bool,
) -> String {
    let (mut counts, mut eligible) = ([0; 4], 0);
    for site in nodes.sites() {
        match (site.node.availability, site.status) {
            _ if !site.node.worker => counts[3] += 1,
            (_, NodeStatus::Down) => counts[0] += 1,
            (Availability::Pause, NodeStatus::Ready) => counts[1] += 1,
            (Availability::Drain, NodeStatus::Ready) => counts[2] += 1,
            (Availability::Active, NodeStatus::Ready) => eligible += 1,
        }
    }
    if eligible > 0 && full {
        let pool = cluster.pool;
        return format!("no free address: the pool {pool} is used up");
    }
    if eligible > 0 && has_host_ports(service) {
        let ports = service.spec.ports.iter();
        let ports = ports.filter(|port| port.mode == PublishMode::Host);
        let ports: Vec<_> = ports.map(|port| port.published.to_string()).collect();
        let ports = ports.join(", ");
        return format!("host port {ports} is in use on every ready node ({eligible})");
    }
    if nodes.len() == 0 {
        return "the cluster has no node".to_owned();
    }
    let words = ["down", "paused", "draining", "not a worker"];
    let counted = counts.iter().zip(words).filter(|(count, _)| **count > 0);
    let counted: Vec<_> = counted.map(|(count, word)| format!("{count} {word}")).collect();
    format!("no node is ready for tasks: {}", counted.join(", "))
}

#[derive(Clone, Copy)]
enum Unplaceable {
    /// Make the task and let it wait.
    Pending,
    Nothing,
}

/// Tries again for tasks that wait for a place.
pub(crate) fn place_pending(pass: &mut Pass<'_, '_>) {
    // Nodes are judged alike for all tasks of a service: the first that fails speaks for the rest.
    let mut reason: Option<String> = None;
    for at in 0..pass.slots.len() {
        let slot = &pass.slots[at];
        let Wanted::Yes = wanted(pass.service, slot.key, &pass.draft.nodes) else { continue };
        for task in slot.wanted.clone() {
            if task.node.is_some() || task.status.state != TaskState::Pending {
                continue;
            }
            // One to grant a block, one to place.
            if !pass.draft.room(2) {
                return;
            }
            let placed = match &reason {
                Some(reason) => Err(reason.clone()),
                None => pass.choose(at, task.template),
            };
            match placed {
                Ok(Place { node, address }) => {
                    let address = Some(address);
                    pass.draft.push(Mutation::PlaceTask { id: task.id, node, address });
                }
                Err(error) => {
                    pass.unplaced = true;
                    if task.status.error.as_deref() != Some(error.as_str()) {
                        let mutation = Mutation::ExplainTask { id: task.id, error: error.clone() };
                        pass.draft.push(mutation);
                    }
                    reason = Some(error);
                }
            }
        }
    }
}
