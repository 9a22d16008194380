//! Where a task runs: filter, score, and an address of the chosen node.
//!
//! A node must be an active, ready worker and have what the service asks of it
//! (`ask`). Of those, in this order: taints to be avoided, recent failures of
//! the same template there, preferences, soft affinities; then the least loaded
//! branch of each level that is spread over; then, as the strategy says, where
//! the fewest tasks of the service are, then the emptiest or the fullest node;
//! at last the lowest id. Before all that comes the node of the slot's last task,
//! if the service keeps data in volumes there. What a slot has already counts as if it were not
//! there, since it is about to be replaced. What cannot be placed may have tasks
//! of lower priority ended for it (`preempt`), is created all the same and says
//! why.
//!
//! Deterministic and total: the same view gives the same places, in whatever
//! order its objects came to be.

mod ask;
mod board;
mod cause;
mod preempt;
mod reason;
mod tree;

use std::net::Ipv4Addr;

use warren_model::cluster::Subnet;
use warren_model::device::Devices;
use warren_model::id::NodeId;
use warren_model::moving::{Cause, Origin};
use warren_model::service::Service;
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_state::State;
use warren_state::change::{Key as ObjectKey, Mutation};

pub(crate) use self::ask::{Ask, Key as Rank, Obstacle, Share, is_closed, may_stay};
pub(crate) use self::board::{Board, PENALTY_MS};
pub(crate) use self::preempt::{Rivals, Search, waits};
pub(crate) use self::reason::{host_ports, reason};
use crate::nodes::Nodes;
use crate::service::Pass;
use crate::slot::{Key, Renewed, Wanted, is_live, wanted};

struct Place {
    node: NodeId,
    address: Ipv4Addr,
    devices: Devices,
}

impl<'a> Pass<'_, 'a> {
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
        let waits = self.waits.take();
        let (place, status) = match (placed, key, otherwise) {
            (Some(place), _, _) => {
                (Some(place), TaskStatus::new(TaskState::Assigned, self.draft.now))
            }
            (None, Key::Number(_) | Key::Run(..) | Key::Hook(_), Unplaceable::Pending) => {
                let mut status = TaskStatus::new(TaskState::Pending, self.draft.now);
                let why = waits.unwrap_or_else(|| self.reason(template));
                status.error = Some(why.into());
                (None, status)
            }
            // A global task without its node would be nobody's.
            (None, Key::On(_) | Key::RunOn(..), _) | (None, _, Unplaceable::Nothing) => {
                return false;
            }
        };
        let cause = cause::of(self, at, template);
        self.make(at, template, place, status, cause);
        true
    }

    /// Makes a task on a node that was found to fit, to take over from what the slot has; `false` if
    /// there is no address after all.
    pub(crate) fn create_on(&mut self, at: usize, template: u32, site: usize) -> bool {
        let (state, cluster) = (self.draft.state, self.draft.cluster);
        let own = self.hide_own(at, template);
        let place = match self.draft.nodes.take_address(state, cluster, site) {
            Some((address, block)) => Some(self.take(site, template, address, block)),
            None => {
                self.change(site, |_| {});
                None
            }
        };
        self.show_own(own);
        let Some(place) = place else { return false };
        let status = TaskStatus::new(TaskState::Assigned, self.draft.now);
        self.make(at, template, Some(place), status, Cause::Balance);
        true
    }

    /// Whether a node has room for a task of a slot, and is liked no less than the one it is on.
    pub(crate) fn likes(&mut self, at: usize, template: u32, from: usize, to: usize) -> bool {
        let own = self.hide_own(at, template);
        let (board, nodes) = self.board(template);
        let liked = board.class(template, to) <= board.class(template, from);
        let fits = liked && board.fits(template, to, nodes);
        self.show_own(own);
        fits
    }

    /// Whether what is placed of other services matters to tasks of a template.
    pub(crate) fn has_neighbours(&mut self, template: u32) -> bool {
        self.board(template).0.ask(template).is_some_and(Ask::has_neighbours)
    }

    fn make(
        &mut self,
        at: usize,
        template: u32,
        place: Option<Place>,
        status: TaskStatus,
        cause: Cause,
    ) {
        let key = self.slots[at].key;
        let renewed = if place.is_some() { Renewed::Placed } else { Renewed::Waiting };
        let own_address = self.has_address(template);
        let task = Task {
            id: self.new_id(),
            service: self.service.id,
            slot: key.slot(),
            template,
            run: key.run(),
            node: place.as_ref().map(|place| place.node),
            address: place.as_ref().map(|place| place.address).filter(|_| own_address),
            devices: place.map(|place| place.devices).unwrap_or_default(),
            desired: Desired::Running,
            status,
            created: self.draft.now,
            // The state knows the revision.
            origin: Some(Origin { cause, revision: 0 }),
            revision: 0,
        };
        self.draft.push(Mutation::CreateTask(task));
        self.slots[at].renewed = renewed;
    }

    /// Whether tasks of a template have an address of their own. On the node's own network they
    /// do not, and what was found for one is given back with the plan.
    fn has_address(&self, template: u32) -> bool {
        let known = self.draft.state.template(self.service.id, template);
        let template = known.map_or(&self.service.spec.task, |known| known);
        !template.privileges.host_network
    }

    /// A node and an address for a task of a slot.
    fn choose(&mut self, at: usize, template: u32) -> Option<Place> {
        // What holds for one task holds for all that are like it; on a node of its own it may not.
        let numbered = self.slots[at].key.node().is_none();
        self.waits = None;
        if numbered
            && self.reasons.contains_key(&template)
            && self.own_sites(at).is_empty()
            && !self.may_displace(at, template)
        {
            return None;
        }
        let own = self.hide_own(at, template);
        let place = loop {
            let Some(site) = self.best(at, template) else { break None };
            let (state, cluster) = (self.draft.state, self.draft.cluster);
            match self.draft.nodes.take_address(state, cluster, site) {
                Some((address, block)) => break Some(self.take(site, template, address, block)),
                // The node knows by now that it has none.
                None => self.change(site, |_| {}),
            }
        };
        if place.is_none() {
            self.waits = self.displace(at, template);
        }
        self.show_own(own);
        if place.is_none() {
            self.note_unplaced(template);
        }
        place
    }

    /// Notes a task on a node.
    fn take(
        &mut self,
        site: usize,
        template: u32,
        address: Ipv4Addr,
        block: Option<Subnet>,
    ) -> Place {
        let node = self.draft.nodes.site(site).node.id;
        if let Some(block) = block {
            self.draft.push(Mutation::GrantBlock { id: node, block });
        }
        self.draft.expect(ObjectKey::Node(node));
        let reserve = self.board(template).0.ask(template).map(|ask| ask.reserve.clone());
        let devices = reserve.as_deref().map(|all| self.draft.nodes.take_devices(site, all));
        self.draft.nodes.add_load(site, reserve.as_deref());
        self.draft.note_place(self.service, site);
        self.change(site, |share| (share.wanted, share.live) = (share.wanted + 1, share.live + 1));
        Place { node, address, devices: devices.unwrap_or_default() }
    }

    /// Whether some node could take a task of a slot now.
    pub(crate) fn has_place(&mut self, at: usize, template: u32) -> bool {
        let own = self.hide_own(at, template);
        let found = self.best(at, template).is_some();
        self.show_own(own);
        if !found {
            self.note_unplaced(template);
        }
        found
    }

    fn best(&mut self, at: usize, template: u32) -> Option<usize> {
        let key = self.slots[at].key;
        let home = self.home(at);
        let (board, nodes) = self.board(template);
        match key.node() {
            None => {
                let home = home.filter(|site| board.fits(template, *site, nodes));
                home.or_else(|| board.best(template, nodes))
            }
            Some(node) => nodes.position(node).filter(|site| board.fits(template, *site, nodes)),
        }
    }

    /// The service's tasks over nodes, with what a template asks of them.
    fn board(&mut self, template: u32) -> (&mut Board<'a>, &Nodes<'a>) {
        let Self { draft, board, slots, service, .. } = self;
        let (draft, nodes) = (&**draft, &draft.nodes);
        let board = board.get_or_insert_with(|| Board::new(slots.iter(), nodes, draft.now));
        board.prepare(template, nodes, || {
            Ask::new(draft.state, &draft.moves, nodes, service, template)
        });
        (board, nodes)
    }

    pub(crate) fn change(&mut self, site: usize, edit: impl FnOnce(&mut Share)) {
        if let Some(board) = &mut self.board {
            board.change(site, &self.draft.nodes, edit);
        }
    }

    /// Where the volumes are that a slot's last task used: elsewhere it would begin with others.
    fn home(&self, at: usize) -> Option<usize> {
        if !self.service.spec.task.keeps_data() {
            return None;
        }
        let placed = self.slots[at].tasks().filter(|task| task.node.is_some());
        let last = placed.max_by_key(|task| (task.created, task.id))?;
        self.draft.nodes.position(last.node?)
    }

    /// Where what a slot has is, which its new task is to stand in for.
    fn own_sites(&self, at: usize) -> Vec<usize> {
        let own = self.slots[at].wanted.iter().filter(|task| is_live(task));
        own.filter_map(|task| self.draft.nodes.position(task.node?)).collect()
    }

    fn hide_own(&mut self, at: usize, template: u32) -> Vec<usize> {
        self.board(template);
        let own = self.own_sites(at);
        for site in &own {
            self.change(*site, |share| share.wanted = share.wanted.saturating_sub(1));
        }
        own
    }

    fn show_own(&mut self, own: Vec<usize>) {
        for site in own {
            self.change(site, |share| share.wanted += 1);
        }
    }

    fn note_unplaced(&mut self, template: u32) {
        self.unplaced = true;
        if self.reasons.contains_key(&template) {
            return;
        }
        let cluster = self.draft.cluster;
        let (board, nodes) = self.board(template);
        let Some(ask) = board.ask(template) else { return };
        let text = reason(nodes, cluster, ask, |site| board.share(site));
        let [near, apart] = [false, true].map(|apart| ask.awaits(apart).collect::<Vec<_>>());
        let depends = ask.depends_on_others();
        self.depends_on_others |= depends;
        self.draft.wait_for(near);
        self.draft.mind(apart);
        self.reasons.insert(template, text);
    }

    /// Why a task of a template has no place, after it was found to have none.
    fn reason(&self, template: u32) -> String {
        self.reasons.get(&template).cloned().unwrap_or_default()
    }
}

#[derive(Clone, Copy)]
enum Unplaceable {
    /// Make the task and let it wait.
    Pending,
    Nothing,
}

/// Tries again for tasks that wait for a place.
pub(crate) fn place_pending(pass: &mut Pass<'_, '_>) {
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
            if let Some(Place { node, address, devices }) = pass.choose(at, task.template) {
                let own_address = pass.has_address(task.template);
                let (id, address) = (task.id, Some(address).filter(|_| own_address));
                pass.draft.push(Mutation::PlaceTask { id, node, address, devices });
                continue;
            }
            if let Some(error) = pass.waits.take() {
                if task.status.error.as_deref() != Some(error.as_str()) {
                    pass.draft.push(Mutation::ExplainTask { id: task.id, error });
                }
                continue;
            }
            // Nothing has more room than when the reason was found, so it still holds, whatever else
            // may stand in the way by now.
            let since = room_since(pass.draft.state, pass.service);
            if task.revision >= since && !pass.draft.nodes_changed {
                continue;
            }
            let error = pass.reason(task.template);
            if task.status.error.as_deref() != Some(error.as_str()) {
                pass.draft.push(Mutation::ExplainTask { id: task.id, error });
            }
        }
    }
}

/// Revision since when there may be room for a service that there was not before: what is found
/// to stand in the way later stands there still.
fn room_since(state: &State, service: &Service) -> u64 {
    let affinities = service.spec.placement.affinities.iter();
    let near = affinities.filter(|affinity| !affinity.apart && !affinity.soft);
    let near = near.filter_map(|affinity| state.service_by_name(affinity.service.as_str()));
    let appeared = near.map(|other| state.activity(other.id)).max().unwrap_or_default();
    state.roomier().max(service.revision).max(appeared)
}
