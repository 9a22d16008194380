//! Nodes: how they come, what they are, how they go.

use std::collections::BTreeMap;

use warren_model::Time;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::defaults::Defaults;
use warren_model::event::{Action, Kind};
use warren_model::id::{NodeId, TaskId};
use warren_model::node::{
    Availability, Description, Forgotten, Node, NodeStatus, Relay, Tombstone,
};
use warren_model::placement::{Taint, check_taints};
use warren_model::resources::Resources;

use super::{Step, invalid};
use crate::change::{Key, Rejection};

impl Step<'_> {
    pub(super) fn create_node(&mut self, node: &Node) -> Result<(), Rejection> {
        let id = node.id;
        if self.state.node(id).is_some() {
            return Err(Rejection::Exists { key: Key::Node(id) });
        }
        if self.state.tombstone(id).is_some() {
            return invalid(format!("node {id} was removed"));
        }
        self.check_key(id, node.key_hash)?;
        for (at, block) in node.blocks.iter().enumerate() {
            if node.blocks[..at].iter().any(|other| overlap(*other, *block)) {
                return invalid(format!("block {block} overlaps another of the same node"));
            }
            self.check_block(*block)?;
        }
        let number = if node.manager { self.next_number() } else { None };
        let mut node = Node { revision: self.revision, number, ..node.clone() };
        node.opened = if node.is_open() { self.state.time } else { Time(0) };
        let name = node.description.hostname.clone();
        self.state.set_node(self.journal, node);
        self.emit(Kind::Node, Action::Create, id.to_string(), name, String::new());
        Ok(())
    }

    /// Takes the next number of a manager; `None` in a state that has no cluster yet.
    fn next_number(&mut self) -> Option<u64> {
        let before = self.state.cluster.clone()?;
        let number = before.next_number;
        let next_number = number.saturating_add(1);
        let cluster = Cluster { next_number, ..Cluster::clone(&before) };
        self.state.set_cluster(self.journal, cluster);
        Some(number)
    }

    pub(super) fn describe_node(
        &mut self,
        id: NodeId,
        description: &Description,
    ) -> Result<(), Rejection> {
        self.change_node(id, |node| {
            node.description.clone_from(description);
            format!("{} at {}", description.hostname, description.address)
        })
    }

    pub(super) fn set_node_status(
        &mut self,
        id: NodeId,
        status: NodeStatus,
    ) -> Result<(), Rejection> {
        self.change_node(id, |node| {
            node.status = status;
            match status {
                NodeStatus::Ready => "ready".to_owned(),
                NodeStatus::Down => "down".to_owned(),
            }
        })
    }

    pub(super) fn set_availability(
        &mut self,
        id: NodeId,
        availability: Availability,
        deadline_ms: Option<u64>,
    ) -> Result<(), Rejection> {
        let draining = availability == Availability::Drain;
        if let Some(ms) = deadline_ms
            && (!draining || ms > Node::DRAIN_MS_MAX)
        {
            let why = if draining { "is too long" } else { "is of a drain alone" };
            return invalid(format!("a deadline of {ms} ms {why}"));
        }
        let deadline = deadline_ms.map(|ms| self.state.time.plus_ms(ms));
        self.change_node(id, |node| {
            node.availability = availability;
            node.drain_deadline = deadline;
            match (availability, deadline) {
                (Availability::Active, _) => "active".to_owned(),
                (Availability::Pause, _) => "paused".to_owned(),
                (Availability::Drain, None) => "draining".to_owned(),
                (Availability::Drain, Some(end)) => format!("draining until {end} at the latest"),
            }
        })
    }

    pub(super) fn set_role(
        &mut self,
        id: NodeId,
        manager: bool,
        worker: bool,
    ) -> Result<(), Rejection> {
        let before = self.node(id)?;
        if before.manager && !manager {
            let mut others = self.state.nodes().filter(|node| node.id != id);
            if !others.any(|node| node.manager) {
                let host = &before.description.hostname;
                return invalid(format!("node {host} is the only manager"));
            }
        }
        // One of a version before numbers gets its number when it is made a manager again.
        let promoted = manager && (!before.manager || before.number.is_none());
        let kept = before.number;
        let number = if promoted { self.next_number().or(kept) } else { kept };
        self.change_node(id, |node| {
            (node.manager, node.worker, node.number) = (manager, worker, number);
            match (manager, worker) {
                (true, true) => "manager and worker".to_owned(),
                (true, false) => "manager".to_owned(),
                (false, true) => "worker".to_owned(),
                (false, false) => "neither manager nor worker".to_owned(),
            }
        })
    }

    pub(super) fn set_labels(
        &mut self,
        id: NodeId,
        labels: &BTreeMap<String, String>,
    ) -> Result<(), Rejection> {
        if labels.len() > Node::LABELS_MAX {
            let (found, max) = (labels.len(), Node::LABELS_MAX);
            return invalid(format!(
                "node {id} would have {found} labels, at most {max} are allowed"
            ));
        }
        let bad = |key: &&String| key.is_empty() || key.contains(char::is_whitespace);
        if let Some(key) = labels.keys().find(bad) {
            return invalid(format!("{key:?} is not a label key (not empty, no spaces)"));
        }
        self.change_node(id, |node| {
            node.labels.clone_from(labels);
            "labels".to_owned()
        })
    }

    pub(super) fn set_resources(
        &mut self,
        id: NodeId,
        generic: &BTreeMap<String, u64>,
        system_reserved: &Resources,
        defaults: Defaults,
    ) -> Result<(), Rejection> {
        let has = Resources { generic: generic.clone(), ..Resources::default() };
        if let Err(error) = has.validate_of_node().and_then(|()| system_reserved.validate_of_node())
        {
            return invalid(format!("resources: {error}"));
        }
        if let Err(error) = defaults.validate() {
            return invalid(error.to_string());
        }
        if let Some(name) = generic.iter().find(|(_, amount)| **amount == 0).map(|(name, _)| name) {
            return invalid(format!("resources: 0 {name} is none"));
        }
        self.change_node(id, |node| {
            node.generic.clone_from(generic);
            node.system_reserved.clone_from(system_reserved);
            node.defaults = defaults;
            "resources".to_owned()
        })
    }

    pub(super) fn set_taints(&mut self, id: NodeId, taints: &[Taint]) -> Result<(), Rejection> {
        if let Err(error) = check_taints(taints) {
            return invalid(format!("taints: {error}"));
        }
        self.change_node(id, |node| {
            node.taints = taints.to_vec();
            "taints".to_owned()
        })
    }

    pub(super) fn set_relays(&mut self, id: NodeId, relays: &[Relay]) -> Result<(), Rejection> {
        let known = self.node(id)?.relays.clone();
        if relays.len() > Relay::MAX {
            return invalid(format!("{} relays, at most {} are allowed", relays.len(), Relay::MAX));
        }
        for (at, relay) in relays.iter().enumerate() {
            let Relay { peer, via, slot } = *relay;
            self.node(peer)?;
            self.node(via)?;
            let ordered = id < peer && at.checked_sub(1).is_none_or(|at| relays[at].peer < peer);
            if !ordered || via == id || via == peer || slot >= Relay::SLOTS {
                return invalid(format!("a relay of node {id} with {peer} by {via}, slot {slot}"));
            }
        }
        let name = |id: NodeId| {
            let node = self.state.node(id);
            node.map_or_else(|| id.to_string(), |node| node.description.hostname.clone())
        };
        let of = |all: &[Relay], peer| all.iter().find(|relay| relay.peer == peer).copied();
        let begun = relays.iter().filter(|relay| of(&known, relay.peer) != Some(**relay));
        let begun = begun.map(|relay| {
            format!("does not reach {}: by way of {}", name(relay.peer), name(relay.via))
        });
        let ended = known.iter().filter(|relay| of(relays, relay.peer).is_none());
        let ended = ended.map(|relay| format!("reaches {} itself again", name(relay.peer)));
        let message = begun.chain(ended).collect::<Vec<_>>().join("; ");
        self.change_node(id, |node| {
            node.relays = relays.to_vec();
            message
        })
    }

    pub(super) fn set_forgotten(
        &mut self,
        id: NodeId,
        forgotten: Forgotten,
    ) -> Result<(), Rejection> {
        let epoch = self.state.cluster().map_or(0, |cluster| cluster.epoch);
        // Said of a recovery that was not, or of one before another.
        if forgotten.epoch != epoch || epoch == 0 {
            let said = forgotten.epoch;
            return invalid(format!("tasks forgotten by epoch {said}: the cluster's is {epoch}"));
        }
        self.change_node(id, |node| {
            node.forgotten = Some(forgotten);
            format!("forgotten tasks: {}", forgotten.choice.as_str())
        })
    }

    pub(super) fn set_certificate(
        &mut self,
        id: NodeId,
        key_hash: [u8; 32],
        not_after: Time,
        issuer_hash: [u8; 32],
    ) -> Result<(), Rejection> {
        self.check_key(id, key_hash)?;
        self.change_node(id, |node| {
            node.key_hash = key_hash;
            node.certificate_not_after = not_after;
            node.issuer_hash = issuer_hash;
            format!("certificate until {not_after}")
        })
    }

    /// A key is one node's, and that of a removed node nobody's.
    fn check_key(&self, id: NodeId, key_hash: [u8; 32]) -> Result<(), Rejection> {
        if key_hash == [0; 32] {
            return Ok(());
        }
        let mut others = self.state.nodes().filter(|node| node.id != id);
        if let Some(other) = others.find(|node| node.key_hash == key_hash) {
            return invalid(format!("key of node {id} is that of node {}", other.id));
        }
        if self.state.tombstones().any(|tombstone| tombstone.key_hash == key_hash) {
            return invalid(format!("key of node {id} is that of a removed node"));
        }
        Ok(())
    }

    pub(super) fn remove_node(
        &mut self,
        id: NodeId,
        keep_until: Time,
        force: bool,
    ) -> Result<(), Rejection> {
        let node = self.node(id)?;
        let (name, key_hash) = (node.description.hostname.clone(), node.key_hash);
        if node.manager {
            return invalid(format!("node {name} is a manager"));
        }
        let live = self.state.live_on(id);
        if live > 0 && node.status == NodeStatus::Ready && !force {
            return invalid(format!("node {name} is up and has {live} tasks"));
        }
        self.remember_done(id);
        let tasks: Vec<TaskId> = self.state.tasks_on(id).map(|task| task.id).collect();
        for task in tasks {
            self.drop_task(task)?;
        }
        self.state.remove_node(self.journal, id);
        if keep_until > self.state.time {
            let tombstone = Tombstone { node: id, key_hash, keep_until };
            self.state.set_tombstone(self.journal, tombstone);
        }
        self.emit(Kind::Node, Action::Remove, id.to_string(), name, String::new());
        Ok(())
    }

    fn node(&self, id: NodeId) -> Result<&Node, Rejection> {
        self.state.node(id).ok_or(Rejection::NotFound { key: Key::Node(id) })
    }

    /// Writes nothing if the change changes nothing: an idle cluster stays quiet.
    fn change_node(
        &mut self,
        id: NodeId,
        change: impl FnOnce(&mut Node) -> String,
    ) -> Result<(), Rejection> {
        let before = self.node(id)?;
        let mut node = before.clone();
        let message = change(&mut node);
        if node == *before {
            return Ok(());
        }
        if node.is_open() && !before.is_open() {
            node.opened = self.state.time;
        }
        node.revision = self.revision;
        let name = node.description.hostname.clone();
        self.state.set_node(self.journal, node);
        self.emit(Kind::Node, Action::Update, id.to_string(), name, message);
        Ok(())
    }

    pub(super) fn grant_block(&mut self, id: NodeId, block: Subnet) -> Result<(), Rejection> {
        self.check_block(block)?;
        self.change_node(id, |node| {
            node.blocks.push(block);
            format!("addresses {block}")
        })
    }

    fn check_block(&self, block: Subnet) -> Result<(), Rejection> {
        for node in self.state.nodes() {
            if node.blocks.iter().any(|other| overlap(*other, block)) {
                let holder = &node.description.hostname;
                return invalid(format!("block {block} overlaps one of node {holder}"));
            }
        }
        Ok(())
    }
}

fn overlap(a: Subnet, b: Subnet) -> bool {
    a.contains(b.address) || b.contains(a.address)
}
