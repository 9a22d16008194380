//! One number over the content of the state, to compare replicas and snapshots.
//!
//! Covers the head and every exported object, in order; no index. Written out
//! field by field, so that a new field does not compile until it is counted
//! here. 64 bits against accidents, not against enemies (those meet the
//! encryption).

mod companion;
mod health;
mod job;
mod mounts;
mod moving;
mod placement;
mod policy;
mod privileges;
mod update;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use warren_model::cluster::{Authority, BackupPolicy, Cluster, JoinToken, Subnet};
use warren_model::health::Healthcheck;
use warren_model::ipv6::Subnet6;
use warren_model::job::JobPolicy;
use warren_model::moving::{Moving, Rebalance};
use warren_model::network::{Network, NetworkSpec, Vip, VipHolder};
use warren_model::node::{
    Availability, Description, Forgotten, ForgottenChoice, Node, NodeStatus, Relay, Tombstone,
};
use warren_model::operator::{Operator, OperatorRole};
use warren_model::placement::{Placement, Strategy};
use warren_model::service::{
    Affinity, Attachment, Change, Endpoint, EndpointMode, Hooks, IoLimit, Limits, LogOptions, Mode,
    OnDisconnect, PortSpec, Protocol, PublishMode, RestartCondition, RestartPolicy, Service,
    ServiceSpec, TaskTemplate, Tuning,
};
use warren_model::task::{Desired, Task, TaskExit, TaskStatus};
use warren_model::{AuditRecord, OverlayKind, Time};

use self::placement::{
    DEFAULTS, add_amounts, add_defaults, add_placement, add_resources, add_taints, strategy_word,
};
use crate::State;

/// Folded multiplication (as wyhash): two instructions a word, every bit reaches every other.
struct Digest(u64);

/// An odd number with evenly spread bits: the golden ratio's fraction.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Before the number of an added field: no length or count looks like it.
const ADDED: u64 = 0xadde_d000_0000_0000;

impl Digest {
    fn word(&mut self, word: u64) {
        let [low, high] = {
            let wide = u128::from(self.0 ^ word ^ FACTOR) * u128::from(FACTOR.rotate_left(29));
            let bytes = wide.to_le_bytes();
            let half = |at: usize| {
                let mut half = [0; 8];
                half.copy_from_slice(&bytes[at..at + 8]);
                u64::from_le_bytes(half)
            };
            [half(0), half(8)]
        };
        self.0 = (low ^ high).wrapping_add(FACTOR);
    }

    /// Length first: `ab` + `c` is not `a` + `bc`.
    fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.word(u64::from_le_bytes(word));
        }
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn texts(&mut self, texts: &[String]) {
        self.word(texts.len() as u64);
        texts.iter().for_each(|text| self.text(text));
    }

    fn labels(&mut self, labels: &BTreeMap<String, String>) {
        self.word(labels.len() as u64);
        for (key, value) in labels {
            self.text(key);
            self.text(value);
        }
    }

    /// `None` is not `Some(0)`.
    fn option<T>(&mut self, value: Option<T>, add: impl FnOnce(&mut Self, T)) {
        self.word(u64::from(value.is_some()));
        if let Some(value) = value {
            add(self, value);
        }
    }

    fn address(&mut self, address: Ipv4Addr) {
        self.word(u64::from(u32::from(address)));
    }

    /// A field that later versions added: without a value it counts for nothing, so that what
    /// older versions wrote keeps its sum. Each has a number of its own.
    fn added<T>(&mut self, number: u64, value: Option<T>, add: impl FnOnce(&mut Self, T)) {
        if let Some(value) = value {
            self.word(ADDED | number);
            add(self, value);
        }
    }

    fn subnet(&mut self, subnet: Subnet) {
        self.address(subnet.address);
        self.word(u64::from(subnet.prefix));
    }
}

pub(crate) fn of_cluster(cluster: &Cluster) -> u64 {
    let mut digest = Digest(0);
    add_cluster(&mut digest, cluster);
    digest.0.max(1)
}

impl State {
    /// Over the content; equal on every replica that applied the same entries.
    pub fn checksum(&self) -> u64 {
        let mut digest = Digest(0);
        digest.word(self.revision);
        digest.word(self.time.0);
        digest.option(self.cluster(), add_cluster);
        digest.word(self.object_count() as u64);
        self.nodes().for_each(|node| add_node(&mut digest, node));
        self.services().for_each(|service| add_service(&mut digest, service));
        for (service, number, row) in self.templates() {
            digest.bytes(service.as_bytes());
            digest.word(u64::from(number));
            add_template(&mut digest, &row.template);
        }
        self.tasks().for_each(|task| add_task(&mut digest, task));
        for (request, revision, time) in self.requests.iter() {
            digest.text(&request.principal);
            digest.bytes(&request.id.to_le_bytes());
            digest.word(request.hash);
            digest.word(revision);
            digest.word(time.0);
        }
        self.tombstones().for_each(|tombstone| add_tombstone(&mut digest, tombstone));
        self.operators().for_each(|operator| add_operator(&mut digest, operator));
        self.audit().for_each(|record| add_record(&mut digest, record));
        self.networks().for_each(|network| add_network(&mut digest, network));
        self.vips().for_each(|vip| add_vip(&mut digest, vip));
        self.policies().for_each(|policy| policy::add(&mut digest, policy));
        for (service, revision) in self.all_revisions() {
            digest.bytes(service.as_bytes());
            update::add_revision(&mut digest, revision);
        }
        for (node, address) in self.given() {
            digest.bytes(node.as_bytes());
            digest.address(address);
        }
        digest.0
    }
}

fn add_cluster(digest: &mut Digest, cluster: &Cluster) {
    let Cluster {
        id,
        history_limit,
        pool,
        block_prefix,
        vip_pool,
        overlay,
        ca,
        worker_token,
        manager_token,
        certificate_lifetime_ms,
        epoch,
        unlock_key,
        next_number,
        backup,
        strategy,
        rebalance,
        defaults,
        allow_bind,
        allowed,
    } = cluster;
    digest.bytes(id.as_bytes());
    digest.word(u64::from(*history_limit));
    digest.subnet(*pool);
    digest.word(u64::from(*block_prefix));
    digest.added(1, ca.as_ref(), |digest, Authority { certificates, key }| {
        digest.word(certificates.len() as u64);
        certificates.iter().for_each(|certificate| digest.bytes(certificate));
        digest.bytes(key.expose());
    });
    digest.added(2, worker_token.as_ref(), add_token);
    digest.added(3, manager_token.as_ref(), add_token);
    let lifetime = Some(*certificate_lifetime_ms);
    digest.added(4, lifetime.filter(|ms| *ms != Cluster::CERTIFICATE_LIFETIME_MS), Digest::word);
    digest.added(5, Some(*epoch).filter(|epoch| *epoch != 0), Digest::word);
    digest.added(6, unlock_key.as_ref(), |digest, key| digest.bytes(key.expose()));
    digest.added(7, Some(*next_number).filter(|n| *n != Cluster::FIRST_NUMBER), Digest::word);
    digest.added(8, backup.as_ref(), |digest, policy| {
        let BackupPolicy { folder, interval_ms, keep, recipient } = policy;
        digest.text(folder);
        digest.word(*interval_ms);
        digest.word(u64::from(*keep));
        digest.text(recipient);
    });
    let vip_pool = Some(*vip_pool).filter(|pool| *pool != Cluster::VIP_POOL);
    digest.added(24, vip_pool, Digest::subnet);
    let overlay = Some(*overlay).filter(|kind| *kind != OverlayKind::default());
    digest.added(26, overlay, |digest, kind| digest.text(kind.as_str()));
    let strategy = Some(*strategy).filter(|strategy| *strategy != Strategy::default());
    digest.added(40, strategy, |digest, strategy| digest.word(strategy_word(strategy)));
    let rebalance = Some(*rebalance).filter(|rebalance| *rebalance != Rebalance::default());
    digest
        .added(100, rebalance, |digest, rebalance| digest.word(moving::rebalance_word(rebalance)));
    digest.added(DEFAULTS, Some(defaults).filter(|all| !all.is_empty()), add_defaults);
    digest.added(149, Some(allow_bind).filter(|all| !all.is_empty()), |digest, all| {
        digest.word(all.len() as u64);
        all.iter().for_each(|rule| digest.text(&rule.to_string()));
    });
    let allowed = Some(allowed).filter(|all| !all.is_empty());
    digest.added(160, allowed, |digest, all| digest.text(&all.to_string()));
}

fn add_token(digest: &mut Digest, token: &JoinToken) {
    let JoinToken { secret, expires } = token;
    digest.bytes(secret);
    digest.option(expires.map(|time| time.0), Digest::word);
}

fn add_node(digest: &mut Digest, node: &Node) {
    let Node {
        id,
        description,
        manager,
        worker,
        availability,
        status,
        blocks,
        number,
        labels: given,
        key_hash,
        certificate_not_after,
        issuer_hash,
        joined,
        forgotten,
        generic,
        system_reserved,
        taints,
        opened,
        drain_deadline,
        relays,
        defaults,
        revision,
    } = node;
    let Description {
        hostname,
        address,
        version,
        cpus,
        memory_bytes,
        architecture,
        kernel,
        labels,
        disk_bytes,
        disk_free_bytes,
        features,
        overlay_key,
        overlay_key_other,
        overlay_port,
        devices,
    } = description;
    digest.bytes(id.as_bytes());
    for text in [hostname, address, version, architecture, kernel] {
        digest.text(text);
    }
    digest.word(u64::from(*cpus));
    digest.word(*memory_bytes);
    digest.labels(labels);
    digest.word(u64::from(*manager) << 1 | u64::from(*worker));
    digest.word(match availability {
        Availability::Active => 1,
        Availability::Pause => 2,
        Availability::Drain => 3,
    });
    digest.word(match status {
        NodeStatus::Ready => 1,
        NodeStatus::Down => 2,
    });
    digest.word(blocks.len() as u64);
    blocks.iter().for_each(|block| digest.subnet(*block));
    digest.word(*revision);
    let hash = |hash: &[u8; 32]| Some(*hash).filter(|hash| *hash != [0; 32]);
    let time = |time: &Time| Some(time.0).filter(|time| *time != 0);
    digest.added(11, *number, Digest::word);
    digest.added(12, Some(given).filter(|labels| !labels.is_empty()), Digest::labels);
    digest.added(13, hash(key_hash), |digest, hash| digest.bytes(&hash));
    digest.added(14, time(certificate_not_after), Digest::word);
    digest.added(15, hash(issuer_hash), |digest, hash| digest.bytes(&hash));
    digest.added(16, time(joined), Digest::word);
    digest.added(17, forgotten.as_ref(), |digest, Forgotten { epoch, choice }| {
        digest.word(*epoch);
        digest.word(match choice {
            ForgottenChoice::Keep => 1,
            ForgottenChoice::Drop => 2,
        });
    });
    let number = |number: &u64| Some(*number).filter(|number| *number != 0);
    digest.added(18, number(disk_bytes), Digest::word);
    digest.added(19, number(disk_free_bytes), Digest::word);
    digest.added(20, Some(features).filter(|all| !all.is_empty()), |digest, all| {
        digest.word(all.len() as u64);
        all.iter().for_each(|feature| digest.text(feature));
    });
    digest.added(25, hash(overlay_key), |digest, key| digest.bytes(&key));
    digest.added(60, hash(overlay_key_other), |digest, key| digest.bytes(&key));
    digest.added(132, Some(devices).filter(|all| !all.is_empty()), |digest, all| {
        digest.word(all.len() as u64);
        for (kind, names) in all {
            digest.text(kind);
            digest.word(names.len() as u64);
            names.iter().for_each(|name| digest.text(name));
        }
    });
    digest.added(41, Some(generic).filter(|all| !all.is_empty()), add_amounts);
    digest.added(42, Some(system_reserved).filter(|all| !all.is_empty()), add_resources);
    digest.added(43, Some(taints).filter(|all| !all.is_empty()), |digest, taints| {
        add_taints(digest, taints);
    });
    digest.added(101, time(opened), Digest::word);
    digest.added(102, drain_deadline.map(|time| time.0), Digest::word);
    let port = Some(u64::from(*overlay_port)).filter(|port| *port != 0);
    digest.added(130, port, Digest::word);
    digest.added(131, Some(relays).filter(|all| !all.is_empty()), |digest, relays| {
        digest.word(relays.len() as u64);
        for Relay { peer, via, slot } in relays {
            digest.bytes(peer.as_bytes());
            digest.bytes(via.as_bytes());
            digest.word(u64::from(*slot));
        }
    });
    digest.added(DEFAULTS, Some(defaults).filter(|all| !all.is_empty()), add_defaults);
}

fn add_tombstone(digest: &mut Digest, tombstone: &Tombstone) {
    let Tombstone { node, key_hash, keep_until } = tombstone;
    digest.bytes(node.as_bytes());
    digest.bytes(key_hash);
    digest.word(keep_until.0);
}

fn add_operator(digest: &mut Digest, operator: &Operator) {
    let Operator { name, role, token_hash, key_hash, expires, created, revision } = operator;
    digest.text(name.as_str());
    digest.word(match role {
        OperatorRole::Read => 1,
        OperatorRole::Deploy => 2,
        OperatorRole::Admin => 3,
    });
    for hash in [token_hash, key_hash] {
        digest.option(hash.as_ref(), |digest, hash| digest.bytes(hash));
    }
    digest.option(expires.map(|time| time.0), Digest::word);
    digest.word(created.0);
    digest.word(*revision);
}

fn add_record(digest: &mut Digest, record: &AuditRecord) {
    let AuditRecord { revision, time, principal, action, object, detail } = record;
    digest.word(*revision);
    digest.word(time.0);
    for text in [principal, action, object, detail] {
        digest.text(text);
    }
}

fn add_service(digest: &mut Digest, service: &Service) {
    let Service {
        id,
        spec,
        number,
        template,
        template_last,
        change,
        update,
        job,
        removing,
        created,
        updated,
        revision,
    } = service;
    digest.bytes(id.as_bytes());
    add_spec(digest, spec);
    digest.word(u64::from(*template) << 1 | u64::from(*removing));
    digest.word(created.0);
    digest.word(updated.0);
    digest.word(*revision);
    add_spec_added(digest, spec);
    let number = Some(u64::from(*number)).filter(|number| *number != 1);
    digest.added(80, number, Digest::word);
    let last = Some(*template_last).filter(|last| last != template);
    digest.added(81, last.map(u64::from), Digest::word);
    digest.added(82, Some(change).filter(|c| **c != Change::default()), update::add_change);
    digest.added(83, update.as_ref(), update::add_status);
    digest.added(101, job.as_ref(), job::add_status);
}

fn add_spec(digest: &mut Digest, spec: &ServiceSpec) {
    let ServiceSpec { name, labels, mode, ports, update, task, .. } = spec;
    digest.text(name.as_str());
    digest.labels(labels);
    match mode {
        Mode::Replicated { replicas } => digest.word(u64::from(*replicas) << 1),
        Mode::Global => digest.word(1),
        Mode::ReplicatedJob { completions, max_concurrent } => {
            digest.word(3);
            digest.word(u64::from(*completions) << 32 | u64::from(*max_concurrent));
        }
        Mode::GlobalJob => digest.word(5),
    }
    digest.word(ports.len() as u64);
    ports.iter().for_each(|port| add_port(digest, port));
    digest.word(u64::from(update.parallelism));
    digest.word(update.delay_ms);
    digest.word(update::order_word(update.order));
    add_template(digest, task);
}

/// What later versions added to specs.
fn add_spec_added(digest: &mut Digest, spec: &ServiceSpec) {
    let ServiceSpec {
        name: _,
        labels: _,
        mode: _,
        ports: _,
        update,
        rollback,
        task: _,
        on_disconnect,
        networks,
        endpoint,
        placement,
        job,
        moving,
        hooks,
    } = spec;
    let disconnect = Some(*on_disconnect).filter(|policy| *policy != OnDisconnect::default());
    digest.added(21, disconnect, |digest, policy| match policy {
        OnDisconnect::Keep => digest.word(1),
        OnDisconnect::StopAfter { ms } => digest.bytes(&(ms << 2 | 2).to_le_bytes()),
        OnDisconnect::ReplaceAfter { ms } => digest.bytes(&(ms << 2 | 3).to_le_bytes()),
    });
    digest.added(22, Some(networks).filter(|all| !all.is_empty()), |digest, all| {
        digest.word(all.len() as u64);
        all.iter().for_each(|attachment| add_attachment(digest, attachment));
    });
    let endpoint = Some(*endpoint).filter(|endpoint| *endpoint != Endpoint::default());
    digest.added(23, endpoint, |digest, endpoint| {
        let Endpoint { mode, affinity, prefer_local, slot_addresses } = endpoint;
        digest.word(match mode {
            EndpointMode::Vip => 1,
            EndpointMode::Dnsrr => 2,
        });
        digest.word(match affinity {
            Affinity::None => 1,
            Affinity::ClientAddress => 2,
        });
        digest.word(u64::from(prefer_local) << 1 | u64::from(slot_addresses));
    });
    let placement = Some(placement).filter(|placement| **placement != Placement::default());
    digest.added(44, placement, add_placement);
    digest.added(103, Some(*moving).filter(|m| *m != Moving::default()), moving::add);
    update::add_policies(digest, update, rollback);
    digest.added(102, Some(job).filter(|job| **job != JobPolicy::default()), job::add_policy);
    digest.added(141, Some(hooks).filter(|h| **h != Hooks::default()), update::add_hooks);
}

fn add_attachment(digest: &mut Digest, attachment: &Attachment) {
    let Attachment { network, aliases, address } = attachment;
    digest.text(network.as_str());
    digest.word(aliases.len() as u64);
    aliases.iter().for_each(|alias| digest.text(alias.as_str()));
    digest.option(*address, Digest::address);
}

fn add_network(digest: &mut Digest, network: &Network) {
    let Network { id, spec, created, revision } = network;
    let NetworkSpec { name, labels, internal, attachable, encrypted, subnet, subnet_v6 } = spec;
    digest.bytes(id.as_bytes());
    digest.text(name.as_str());
    digest.labels(labels);
    digest.word(u64::from(*internal) << 2 | u64::from(*attachable) << 1 | u64::from(*encrypted));
    digest.option(*subnet, Digest::subnet);
    digest.option(subnet_v6.as_ref(), |digest, Subnet6 { address, prefix }| {
        digest.bytes(&address.octets());
        digest.word(u64::from(*prefix));
    });
    digest.word(created.0);
    digest.word(*revision);
}

fn add_vip(digest: &mut Digest, vip: &Vip) {
    let Vip { address, holder: VipHolder { service, network, slot }, released } = vip;
    digest.address(*address);
    digest.bytes(service.as_bytes());
    digest.bytes(network.as_bytes());
    digest.word(u64::from(*slot));
    digest.option(released.map(|time| time.0), Digest::word);
}

fn add_port(digest: &mut Digest, port: &PortSpec) {
    let PortSpec { protocol, bind, published, target, mode, name } = port;
    digest.word(match protocol {
        Protocol::Tcp => 1,
        Protocol::Udp => 2,
    });
    digest.address(*bind);
    digest.word(u64::from(*published) << 16 | u64::from(*target));
    let mode = match mode {
        PublishMode::Ingress => 1,
        PublishMode::Host => 2,
    };
    // Without a name as before there were any.
    match name {
        None => digest.word(mode),
        Some(name) => {
            digest.word(mode | 4);
            digest.text(name.as_str());
        }
    }
}

fn add_template(digest: &mut Digest, template: &TaskTemplate) {
    let TaskTemplate {
        image,
        entrypoint,
        command,
        env,
        workdir,
        user,
        hostname,
        container_labels,
        stop_signal,
        stop_grace_ms,
        read_only,
        cap_add,
        cap_drop,
        privileges,
        limits,
        tuning,
        reserve,
        restart,
        log,
        health,
        force,
        companions,
        shared,
        mounts,
        shm_bytes,
    } = template;
    digest.text(image);
    digest.option(entrypoint.as_deref(), Digest::texts);
    for texts in [command, env, cap_add, cap_drop] {
        digest.texts(texts);
    }
    for text in [workdir, user, hostname, stop_signal] {
        digest.option(text.as_deref(), Digest::text);
    }
    digest.labels(container_labels);
    digest.option(*stop_grace_ms, Digest::word);
    digest.word(u64::from(*force) << 1 | u64::from(*read_only));
    let Limits { memory_bytes, cpu_millis, pids } = limits;
    digest.option(*memory_bytes, Digest::word);
    digest.option(cpu_millis.map(u64::from), Digest::word);
    digest.option(pids.map(u64::from), Digest::word);
    let RestartPolicy { condition, delay_ms, max_attempts, window_ms } = restart;
    digest.word(match condition {
        RestartCondition::None => 1,
        RestartCondition::OnFailure => 2,
        RestartCondition::Any => 3,
    });
    digest.word(*delay_ms);
    digest.option(max_attempts.map(u64::from), Digest::word);
    digest.word(*window_ms);
    let LogOptions { max_bytes, max_files } = log;
    digest.word(*max_bytes);
    digest.word(u64::from(*max_files));
    digest.added(45, Some(reserve).filter(|all| !all.is_empty()), add_resources);
    let declared = Some(health).filter(|health| **health != Healthcheck::Implicit);
    digest.added(60, declared, health::add_check);
    digest.added(121, Some(tuning).filter(|tuning| !tuning.is_empty()), add_tuning);
    let companions = Some(companions).filter(|all| !all.is_empty());
    digest.added(140, companions, |digest, all| companion::add_all(digest, all));
    let shared = Some(shared).filter(|all| !all.is_empty());
    digest.added(142, shared, |digest, all| companion::add_shared(digest, all));
    let mounts = Some(mounts).filter(|all| !all.is_empty());
    digest.added(147, mounts, |digest, all| mounts::add(digest, all));
    digest.added(148, *shm_bytes, Digest::word);
    let privileges = Some(privileges).filter(|all| !all.is_empty());
    digest.added(161, privileges, privileges::add);
}

fn add_task(digest: &mut Digest, task: &Task) {
    let Task {
        id,
        service,
        slot,
        template,
        run,
        node,
        address,
        devices,
        desired,
        status,
        created,
        origin,
        revision,
    } = task;
    digest.bytes(id.as_bytes());
    digest.bytes(service.as_bytes());
    digest.word(u64::from(*slot) << 32 | u64::from(*template));
    digest.option(node.as_ref(), |digest, node| digest.bytes(node.as_bytes()));
    digest.option(*address, Digest::address);
    let TaskStatus { state, since, attempt, pid, started, exit, error, health, companions } =
        status;
    let desired = match desired {
        Desired::Running => 1,
        Desired::Shutdown => 2,
        Desired::Remove => 3,
    };
    digest.word(desired << 8 | *state as u64);
    digest.word(since.0);
    digest.word(u64::from(*attempt) << 32 | u64::from(*pid));
    digest.option(started.map(|time| time.0), Digest::word);
    digest.option(*exit, add_exit);
    digest.option(error.as_deref(), Digest::text);
    digest.added(61, *health, health::add_health);
    digest.added(141, companions.as_deref(), |digest, all| companion::add_statuses(digest, all));
    digest.added(100, Some(*run).filter(|run| *run != 0).map(u64::from), Digest::word);
    digest.word(created.0);
    digest.word(*revision);
    digest.added(104, *origin, moving::add_origin);
    digest.added(133, Some(devices).filter(|all| !all.is_empty()), |digest, all| {
        all.iter().for_each(|device| digest.text(device));
    });
}

fn add_exit(digest: &mut Digest, exit: TaskExit) {
    let TaskExit { code, oom_killed } = exit;
    digest.word(u64::from(code.cast_unsigned()) << 1 | u64::from(oom_killed));
}

fn add_tuning(digest: &mut Digest, tuning: &Tuning) {
    let Tuning { cpuset_cpus, cpuset_mems, cpu_shares, swap_bytes, io_weight, io_limits } = tuning;
    digest.option(cpuset_cpus.as_deref(), Digest::text);
    digest.option(cpuset_mems.as_deref(), Digest::text);
    digest.option(cpu_shares.map(u64::from), Digest::word);
    digest.option(*swap_bytes, Digest::word);
    digest.option(io_weight.map(u64::from), Digest::word);
    digest.word(io_limits.len() as u64);
    for IoLimit { kind, device, rate } in io_limits {
        digest.text(kind.as_str());
        digest.text(device);
        digest.word(*rate);
    }
}
