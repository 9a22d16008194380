//! Invariants of the whole state: for the simulator after every step, for tests, for `doctor`.
//!
//! Indices are compared with those of the same objects imported afresh; rules
//! between objects are checked one by one.

use std::collections::BTreeMap;

use warren_model::NetworkName;
use warren_model::job::JobStatus;
use warren_model::network::Vip;
use warren_model::policy::PolicyPeer;
use warren_model::task::TaskState;

use crate::State;
use crate::mutate::REVISIONS_MAX;
use crate::table::{ServiceRow, is_live};

impl State {
    /// Everything that is wrong, in words; empty when all is well. Costs a whole import.
    pub fn check(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        match Self::import(self.head(), self.export()) {
            Ok(fresh) => self.check_indices(&fresh, &mut wrong),
            Err(error) => wrong.push(error.to_string()),
        }
        self.check_templates(&mut wrong);
        self.check_tasks(&mut wrong);
        self.check_services(&mut wrong);
        self.check_jobs(&mut wrong);
        self.check_nodes(&mut wrong);
        self.check_members(&mut wrong);
        self.check_operators(&mut wrong);
        self.check_networks(&mut wrong);
        self.check_policies(&mut wrong);
        wrong
    }

    fn check_indices(&self, fresh: &Self, wrong: &mut Vec<String>) {
        // A fresh import does not know when a service was touched last.
        let activity = self.services.values().all(|row| row.activity <= self.revision);
        let same_service = |(ours, theirs): (&ServiceRow, &ServiceRow)| {
            ours.templates == theirs.templates
                && ours.tasks == theirs.tasks
                && ours.revisions == theirs.revisions
        };
        let same = [
            ("nodes", self.nodes == fresh.nodes),
            ("services", self.services.values().zip(fresh.services.values()).all(same_service)),
            ("names", self.names == fresh.names),
            ("ports", self.ports == fresh.ports),
            (
                "activity",
                activity && self.topology <= self.revision && self.roomier <= self.revision + 1,
            ),
            ("tombstones", self.ends == fresh.ends),
            ("network names", self.network_names == fresh.network_names),
            ("policy names", self.policy_names == fresh.policy_names),
            ("users of networks", self.users == fresh.users),
            ("virtual IPs", self.holders == fresh.holders && self.quarantine == fresh.quarantine),
            ("requests", self.requests.is_consistent()),
        ];
        let differing = same.into_iter().filter(|(_, same)| !same);
        wrong.extend(
            differing.map(|(index, _)| format!("index of {index} is not that of its rows")),
        );
    }

    fn check_templates(&self, wrong: &mut Vec<String>) {
        for (id, number, row) in self.templates() {
            match self.service(id) {
                None => wrong.push(format!("template {number} of {id} has no service")),
                Some(service) if service.template == number => {
                    if *row.template != service.spec.task {
                        wrong.push(format!("template {number} of {id} is not that of its spec"));
                    }
                }
                Some(_) if row.tasks == 0 => {
                    wrong.push(format!("template {number} of {id} is referred to by nothing"));
                }
                Some(_) => {}
            }
        }
    }

    fn check_tasks(&self, wrong: &mut Vec<String>) {
        let (mut holders, mut given) = (BTreeMap::new(), BTreeMap::new());
        for task in self.tasks() {
            let id = task.id;
            for device in task.devices.iter().filter(|_| is_live(task)) {
                if let Some(other) = given.insert((task.node, device), id) {
                    wrong.push(format!("device {device} is held by tasks {other} and {id}"));
                }
            }
            if let Some(address) = task.address
                && is_live(task)
                && let Some(other) = holders.insert(address, id)
            {
                wrong.push(format!("address {address} is held by tasks {other} and {id}"));
            }
            if (task.status.state == TaskState::Pending) != task.node.is_none() {
                wrong.push(format!(
                    "task {id} is {} on {:?}",
                    task.status.state.as_str(),
                    task.node
                ));
            }
            if task.address.is_some() && task.node.is_none() {
                wrong.push(format!("task {id} has an address but no node"));
            }
        }
    }

    fn check_jobs(&self, wrong: &mut Vec<String>) {
        for service in self.services() {
            let name = &service.spec.name;
            if service.job.is_some() != service.spec.mode.is_job() {
                wrong.push(format!("{name} is a job, or has runs, and not both"));
            }
            let Some(job) = &service.job else { continue };
            let numbers = job.runs.iter().map(|run| run.number);
            if !numbers.is_sorted_by(|a, b| a < b)
                || job.latest().is_some_and(|run| run.number != job.last)
            {
                wrong.push(format!("runs of {name} are not in order"));
            }
            let times = job.runs.iter().filter_map(|run| run.scheduled).chain([job.cursor]);
            let before_cursor = times.collect::<Vec<_>>();
            let (cursor, times) = before_cursor.split_last().expect("the cursor is there");
            if !times.is_sorted_by(|a, b| a < b) || times.iter().any(|time| time > cursor) {
                wrong.push(format!("a time of the schedule of {name} was begun twice"));
            }
            if job.active().count() > JobStatus::ACTIVE_MAX {
                wrong.push(format!("too many runs of {name} go on"));
            }
        }
        for task in self.tasks() {
            let job = self.service(task.service).is_some_and(|service| service.job.is_some());
            if job != (task.run != 0 && task.hook().is_none()) {
                wrong.push(format!("task {} is of run {}", task.id, task.run));
            }
        }
    }

    fn check_services(&self, wrong: &mut Vec<String>) {
        for row in self.services.values() {
            let (service, name) = (&row.service, &row.service.spec.name);
            let numbers = row.revisions.iter().map(|revision| revision.number);
            if !numbers.clone().chain([service.number]).is_sorted_by(|a, b| a < b) {
                wrong.push(format!("revisions of {name} are not in order"));
            }
            if row.revisions.len() > REVISIONS_MAX {
                wrong.push(format!("{} revisions of {name}", row.revisions.len()));
            }
            if row.templates.keys().any(|number| *number > service.template_last) {
                wrong.push(format!("a template of {name} is after {}", service.template_last));
            }
        }
        let mut published = BTreeMap::new();
        for service in self.services() {
            for port in &service.spec.ports {
                let holders: &mut Vec<_> =
                    published.entry((port.protocol, port.published)).or_default();
                let clash =
                    |(other, name): &&(_, _)| port.clashes(other) && *name != &service.spec.name;
                if let Some((_, other)) = holders.iter().find(clash) {
                    wrong.push(format!("port {port} of {} is that of {other}", service.spec.name));
                }
                holders.push((*port, &service.spec.name));
            }
        }
    }

    fn check_nodes(&self, wrong: &mut Vec<String>) {
        let blocks = self.nodes().flat_map(|node| node.blocks.iter().map(move |b| (b, node.id)));
        let mut blocks: Vec<_> = blocks.collect();
        blocks.sort_unstable();
        for pair in blocks.windows(2) {
            let [(first, holder), (second, other)] = pair else { continue };
            if first.contains(second.address) {
                wrong.push(format!("blocks {first} of {holder} and {second} of {other} overlap"));
            }
        }
    }

    fn check_members(&self, wrong: &mut Vec<String>) {
        let next = self.cluster().map_or(u64::MAX, |cluster| cluster.next_number);
        let mut numbers = BTreeMap::new();
        for node in self.nodes() {
            let Some(number) = node.number else { continue };
            if number >= next {
                wrong.push(format!("number {number} of {} is not given yet", node.id));
            }
            if let Some(other) = numbers.insert(number, node.id) {
                wrong.push(format!("number {number} is that of {other} and {}", node.id));
            }
        }
        let mut keys = BTreeMap::new();
        let known = self.nodes().map(|node| (node.key_hash, node.id));
        let removed = self.tombstones().map(|tombstone| (tombstone.key_hash, tombstone.node));
        for (hash, id) in known.chain(removed).filter(|(hash, _)| *hash != [0; 32]) {
            if let Some(other) = keys.insert(hash, id) {
                wrong.push(format!("nodes {other} and {id} have the same key"));
            }
        }
        for tombstone in self.tombstones() {
            if self.node(tombstone.node).is_some() {
                wrong.push(format!("node {} is removed and there", tombstone.node));
            }
            if tombstone.keep_until <= self.time() {
                wrong.push(format!("tombstone of {} has outlived its time", tombstone.node));
            }
        }
    }

    fn check_networks(&self, wrong: &mut Vec<String>) {
        for service in self.services() {
            for attachment in &service.spec.networks {
                let name = &attachment.network;
                if self.network_named(name).is_none() && name.as_str() != NetworkName::DEFAULT {
                    wrong.push(format!("{} is on {name}, which is gone", service.spec.name));
                }
            }
        }
        let pool = self.cluster().map(|cluster| cluster.vip_pool);
        for vip in self.vips() {
            let (address, holder) = (vip.address, vip.holder);
            if !pool.is_some_and(|pool| Vip::is_usable(pool, address)) {
                wrong.push(format!("virtual IP {address} is not of the pool"));
            }
            let there = self.service(holder.service).is_some();
            match vip.quarantined_until() {
                None if !there || self.network(holder.network).is_none() => {
                    wrong.push(format!("virtual IP {address} is held by {holder:?}, who is gone"));
                }
                Some(until) if until <= self.time() => {
                    wrong.push(format!("virtual IP {address} has outlived its quarantine"));
                }
                None | Some(_) => {}
            }
            let own = self.network(holder.network).and_then(|network| network.spec.subnet);
            let of_another = self.networks().find(|network| {
                network.spec.subnet.is_some_and(|subnet| subnet.contains(address))
                    && network.id != holder.network
            });
            if let Some(other) = of_another {
                let name = &other.spec.name;
                wrong.push(format!("virtual IP {address} is of the subnet of {name}"));
            }
            if vip.released.is_none() && own.is_some_and(|subnet| !subnet.contains(address)) {
                wrong.push(format!("virtual IP {address} is not of its network's subnet"));
            }
        }
    }

    fn check_policies(&self, wrong: &mut Vec<String>) {
        for policy in self.policies() {
            let name = &policy.spec.name;
            if let Err(error) = policy.spec.validate() {
                wrong.push(format!("policy {name}: {error}"));
            }
            for peer in policy.spec.peers() {
                if let PolicyPeer::Network(network) = peer
                    && self.network_named(network).is_none()
                {
                    wrong.push(format!("policy {name} names network {network}, which is gone"));
                }
            }
        }
    }

    fn check_operators(&self, wrong: &mut Vec<String>) {
        let mut tokens = BTreeMap::new();
        for operator in self.operators() {
            let hashes = [(true, operator.token_hash), (false, operator.key_hash)];
            for (token, hash) in hashes {
                if hash.is_some()
                    && let Some(other) = tokens.insert((token, hash), operator.name)
                {
                    let name = operator.name;
                    wrong.push(format!("operators {other} and {name} are let in alike"));
                }
            }
        }
        let records = self.audit.len();
        if records > crate::audit::KEPT_MAX {
            wrong.push(format!("{records} audit records"));
        }
        if !self.audit().is_sorted_by_key(|record| record.revision) {
            wrong.push("audit records are not in order".to_owned());
        }
    }
}
