//! A cluster in a few words: nodes, agents that do as they are told, and a leader that plans.
//!
//! Commands, one a line:
//! ```text
//! nodes a b          ready managers and workers with a block each
//! down|up|lose|drain|pause|active|rm a            role a worker|manager|both
//! drain a 10s        with a deadline              rebalance never    of the cluster
//! settle             plans, starts, obeys and waits as plans say, until nothing is left to do
//! service web n=2 …  create; `global` for one per node    update web n=3 image=b …   remove web
//! wait 5s            the clock goes on
//! start [web.1]      all (or that slot's) wanted tasks get to run
//! obey               what is not wanted ends and is cleaned up
//! has a mem=2048 gpu=2 zone:x    service web mem=512 gpu=1 where=disk==ssd spread=zone max=1 …
//! taint a gpu:no-execute         tolerate=gpu near=db apart=db:soft prefer=zone==x pack
//! network back [CIDR]            of services with `on=back`, who may be `dnsrr` or have `slots`
//! crash web.1        ended and restarted in place    hold|go web, back web 2: what people do with updates
//! fail|reject|complete|boot web.1    the newest wanted task of the slot changes so
//! ```
//! `service j job=3/2` has 3 completions, 2 at a time; `global-job`, `every=*/5_*_*_*_*`, `forbid`,
//! `limit=10s`; `at 10:05` sets the clock, `run j` begins a run, `suspend j`. Tasks of further runs
//! are `j#2.1`. Some lines have an answer, written `plan => …`: `plan` makes and applies one plan, `on web` tells
//! how many of it are wanted where, `cause web.1` why its newest task was made,
//! `progress web`, `state web`, `revision web`, `counts web`, `vips web` (`NETWORK[.SLOT] ADDRESS`). A plan is written as:
//! `+web.1@a` created on a (`+web.1` nowhere), `-web.1` shut down, `x web.1` removed,
//! `drop web.1`, `place web.1@a`, `why web.1: text`, `a is down`, `drop-service web`,
//! `pause web: why`, `done web`, `back web to 1: why` of its update, and `wake 5s`. Tasks of another template than the first are `web.1/2`.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::Time;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::health::{Health, HealthState};
use warren_model::id::{ClusterId, NetworkId, NodeId, ServiceId};
use warren_model::job::{Given, Missed, Run, Schedule};
use warren_model::network::NetworkSpec;
use warren_model::node::{Availability, Description, Node, NodeStatus};
use warren_model::placement::{Affinity, Constraint, Preempt, Strategy};
use warren_model::resources::Resources;
use warren_model::service::{
    Attachment, EndpointMode, FailureAction, Hook, Mode, Mount, MountKind, OnDisconnect, PortSpec,
    Protocol, PublishMode, RestartCondition, Service, ServiceSpec, TaskTemplate, UpdateOrder,
    UpdatePhase, Volume,
};
use warren_model::task::{Desired, Task, TaskExit, TaskState, TaskStatus};
use warren_planner::{
    Beats, Convergence, Explanation, IdSource, Index, Plan, SUSPICION_MS, Seen, completed_count,
    explain_service, explain_task, patience, plan, progress, standing, task_counts, update_state,
};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

/// Counts, scattered: ids are not in order of creation.
#[derive(Clone, Default)]
pub(crate) struct Ids(u64);

impl Ids {
    /// Ids that no other of these gives.
    pub(crate) fn apart() -> Self {
        Self(1 << 40)
    }
}

impl IdSource for Ids {
    fn id(&mut self) -> [u8; 10] {
        self.0 += 1;
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&self.0.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
        bytes
    }
}

/// When connected nodes are heard: they never fall silent, and no plan waits for that.
const ALWAYS: Time = Time(u64::MAX >> 1);

/// More than any script of some dozens of tasks takes.
const SETTLE_ROUNDS_MAX: usize = 1000;

pub(crate) struct World {
    pub(crate) state: State,
    pub(crate) now: Time,
    pub(crate) beats: Beats,
    pub(crate) connected: BTreeSet<NodeId>,
    index: Index,
    ids: Ids,
}

fn bytes(word: &str) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..word.len()].copy_from_slice(word.as_bytes());
    bytes
}

pub(crate) fn node_id(word: &str) -> NodeId {
    NodeId::from_bytes(bytes(word))
}

pub(crate) fn service_id(word: &str) -> ServiceId {
    ServiceId::from_bytes(bytes(word))
}

/// `5s`, `250ms`.
fn duration(word: &str) -> u64 {
    match word.strip_suffix("ms") {
        Some(ms) => ms.parse().unwrap(),
        None => word.strip_suffix('s').unwrap().parse::<u64>().unwrap() * 1000,
    }
}

/// `disk==ssd`: of the label; what begins with `node` is whole.
fn constraint(text: &str) -> Constraint {
    let label = if text.starts_with("node.") { "" } else { "node.labels." };
    format!("{label}{}", text.replace('_', " ")).parse().unwrap()
}

fn action(word: &str) -> FailureAction {
    match word {
        "pause" => FailureAction::Pause,
        "continue" => FailureAction::Continue,
        _ => FailureAction::Rollback,
    }
}

fn schedule(spec: &mut ServiceSpec) -> &mut Schedule {
    spec.job.schedule.as_mut().unwrap()
}

fn edit(spec: &mut ServiceSpec, word: &str) {
    let (key, value) = word.split_once('=').unwrap_or((word, ""));
    match key {
        "n" => spec.mode = Mode::Replicated { replicas: value.parse().unwrap() },
        "global" => spec.mode = Mode::Global,
        "job" => {
            let (completions, max_concurrent) = value.split_once('/').unwrap_or((value, "100"));
            spec.mode = Mode::ReplicatedJob {
                completions: completions.parse().unwrap(),
                max_concurrent: max_concurrent.parse().unwrap(),
            };
            spec.task.restart.condition = RestartCondition::OnFailure;
        }
        "global-job" => {
            spec.mode = Mode::GlobalJob;
            spec.task.restart.condition = RestartCondition::OnFailure;
        }
        "limit" => spec.job.time_limit_ms = Some(duration(value)),
        "history" => spec.job.history = value.parse().unwrap(),
        // `*/5_*_*_*_*`.
        "every" => spec.job.schedule = Some(Schedule::new(value.replace('_', " "))),
        "allow" | "forbid" | "replace" => schedule(spec).concurrency = key.parse().unwrap(),
        "run-once" => schedule(spec).missed = Missed::RunOnce,
        "param" => {
            let (name, default) = value.split_once(':').unwrap_or((value, ""));
            let default = (!default.is_empty()).then(|| default.to_owned());
            spec.job.inputs.params.insert(name.to_owned(), default);
        }
        "rule" => spec.job.concurrency = Some(value.parse().unwrap()),
        "before" => spec.hooks.before = vec![value.to_owned()],
        "after" => spec.hooks.after = vec![value.to_owned()],
        "no-before" => spec.hooks.before.clear(),
        "no-after" => spec.hooks.after.clear(),
        "timeout" => spec.hooks.timeout_ms = duration(value),
        "late" => schedule(spec).deadline_ms = Some(duration(value)),
        "force" => spec.task.force += 1,
        "on" => spec.networks.push(Attachment::new(value.parse().unwrap())),
        "off" => spec.networks.retain(|on| on.network.as_str() != value),
        "ip" => {
            let last = spec.networks.last_mut();
            last.unwrap().address = Some(value.parse().unwrap());
        }
        "dnsrr" => spec.endpoint.mode = EndpointMode::Dnsrr,
        "vip" => spec.endpoint.mode = EndpointMode::Vip,
        "host-network" => spec.task.privileges.host_network = true,
        "own-network" => spec.task.privileges.host_network = false,
        "slots" => spec.endpoint.slot_addresses = true,
        "image" => spec.task.image = value.into(),
        "par" => spec.update.parallelism = value.parse().unwrap(),
        "delay" => spec.update.delay_ms = duration(value),
        "monitor" => spec.update.monitor_ms = duration(value),
        "ratio" => spec.update.max_failure_millis = value.parse().unwrap(),
        "surge" => spec.update.max_surge = value.parse().ok(),
        "unavailable" => spec.update.max_unavailable = value.parse().ok(),
        "deadline" => spec.update.deadline_ms = Some(duration(value)),
        "fail" => spec.update.failure_action = action(value),
        "back-fail" => spec.rollback.failure_action = Some(action(value)),
        "back-par" => spec.rollback.parallelism = value.parse().ok(),
        "keep" => spec.on_disconnect = OnDisconnect::Keep,
        "stop-after" => spec.on_disconnect = OnDisconnect::StopAfter { ms: duration(value) },
        "replace-after" => spec.on_disconnect = OnDisconnect::ReplaceAfter { ms: duration(value) },
        "grace" => spec.task.stop_grace_ms = Some(duration(value)),
        "mem" => spec.task.reserve.memory_bytes = value.parse::<u64>().unwrap() << 20,
        "cpu" => spec.task.reserve.cpu_millis = value.parse().unwrap(),
        "pids" => spec.task.reserve.pids = value.parse().unwrap(),
        "disk" => spec.task.reserve.disk_bytes = value.parse::<u64>().unwrap() << 20,
        "v/d" => {
            spec.task.reserve.generic.insert("v/d".into(), value.parse().unwrap());
        }
        "gpu" => {
            spec.task.reserve.generic.insert("gpu".into(), value.parse().unwrap());
        }
        "where" => spec.placement.constraints.push(constraint(value)),
        "anywhere" => spec.placement.constraints.clear(),
        "prefer" => spec.placement.preferences.push(constraint(value)),
        "spread" => spec.placement.spread.push(format!("node.labels.{value}").parse().unwrap()),
        "near" => spec.placement.affinities.push(Affinity::parse(value, false).unwrap()),
        "apart" => spec.placement.affinities.push(Affinity::parse(value, true).unwrap()),
        // linux/amd64,linux/arm64
        "for" => {
            spec.placement.platforms = value.split(',').map(str::to_owned).collect();
        }
        "least" => spec.moving.min_available = value.parse().ok(),
        "rebalance" => spec.moving.rebalance = value.parse().unwrap(),
        "volume" => spec.task.mounts.push(Mount {
            target: "/data".into(),
            read_only: false,
            kind: MountKind::Volume(Volume {
                name: Some(value.into()).filter(|name: &String| !name.is_empty()),
                ..Volume::default()
            }),
        }),
        "max" => spec.placement.max_per_node = value.parse().ok(),
        "tolerate" => spec.placement.tolerations.push(value.parse().unwrap()),
        "prio" => spec.placement.priority = value.parse().unwrap(),
        "preempt" => spec.placement.preempt = Preempt::Lower,
        "pack" => spec.placement.strategy = Some(Strategy::BinPack),
        "stop-first" => spec.update.order = UpdateOrder::StopFirst,
        "start-first" => spec.update.order = UpdateOrder::StartFirst,
        "cond" => {
            spec.task.restart.condition = match value {
                "none" => RestartCondition::None,
                "on-failure" => RestartCondition::OnFailure,
                _ => RestartCondition::Any,
            }
        }
        "no-ports" => spec.ports.clear(),
        "host" => spec.ports.push(PortSpec {
            protocol: Protocol::Tcp,
            bind: [0; 4].into(),
            published: value.parse().unwrap(),
            target: 80,
            mode: PublishMode::Host,
            name: None,
        }),
        other => panic!("unknown option {other:?}"),
    }
}

pub(crate) fn is_live(task: &Task) -> bool {
    !task.status.state.is_terminal()
}

impl World {
    pub(crate) fn new() -> Self {
        let mut world = Self {
            state: State::default(),
            now: Time(100_000),
            beats: Beats::default(),
            connected: BTreeSet::new(),
            index: Index::default(),
            ids: Ids::default(),
        };
        world.cluster(|cluster| cluster.history_limit = 2);
        world.network("default", None);
        world
    }

    pub(crate) fn cluster(&mut self, change: impl FnOnce(&mut Cluster)) {
        let mut cluster = match self.state.cluster() {
            Some(cluster) => cluster.clone(),
            None => Cluster::new(ClusterId::from_bytes([1; 10])),
        };
        change(&mut cluster);
        self.write(Mutation::SetCluster(cluster));
    }

    pub(crate) fn network(&mut self, name: &str, subnet: Option<Subnet>) {
        let id = NetworkId::from_bytes(bytes(name));
        let spec = NetworkSpec { subnet, ..NetworkSpec::new(name.parse().unwrap()) };
        self.write(Mutation::CreateNetwork { id, spec });
    }

    /// `1 complete 2/2, 2 running 0/2`.
    fn runs(&self, name: &str) -> String {
        let id = service_id(name);
        let job = self.state.service(id).unwrap().job.as_ref().unwrap();
        let run = |run: &Run| {
            let standing = standing(&self.state, id, run.number).unwrap();
            let (done, total) = (standing.completed, standing.total);
            format!("{} {} {done}/{total}", run.number, run.state.as_str())
        };
        job.runs.iter().map(run).collect::<Vec<_>>().join(", ")
    }

    /// What a service has, in order.
    fn vips(&self, name: &str) -> String {
        let all = self.state.vips_of(service_id(name)).map(|(holder, address)| {
            let network = &self.state.network(holder.network).unwrap().spec.name;
            match holder.slot {
                0 => format!("{network} {address}"),
                slot => format!("{network}.{slot} {address}"),
            }
        });
        all.collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn add_node(&mut self, name: &str, blocks: Vec<Subnet>) {
        let id = node_id(name);
        self.hear(id);
        self.write(Mutation::CreateNode(Node {
            manager: true,
            status: NodeStatus::Ready,
            blocks,
            ..Node::new(id, Description { hostname: name.into(), ..Description::default() })
        }));
    }

    /// A session is open: beats come, and will.
    pub(crate) fn hear(&mut self, id: NodeId) {
        self.connected.insert(id);
        self.beats.seen.insert(id, Seen { at: ALWAYS, rtt_ms: 0 });
    }

    /// That was the last of it.
    pub(crate) fn lose(&mut self, id: NodeId) {
        if self.connected.remove(&id) {
            self.beats.seen.insert(id, Seen { at: self.now, rtt_ms: 0 });
        }
    }

    #[track_caller]
    pub(crate) fn write(&mut self, mutation: Mutation) {
        let outcome = self.try_write(mutation);
        assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}");
    }

    pub(crate) fn try_write(&mut self, mutation: Mutation) -> Outcome {
        let transaction = Transaction { mutations: vec![mutation], ..Transaction::default() };
        self.state.apply(self.now, &[transaction], &mut vec![]).remove(0)
    }

    /// Plans with the index and with a fresh one, which must agree.
    #[track_caller]
    pub(crate) fn look(&mut self) -> Plan {
        let mut ids = self.ids.clone();
        let fresh = plan(&self.state, &mut Index::default(), &self.beats, &mut ids, self.now);
        let plan = plan(&self.state, &mut self.index, &self.beats, &mut self.ids, self.now);
        assert_eq!(plan, fresh, "an index changes no plan");
        assert!(plan.transaction.mutations.len() <= warren_planner::MUTATIONS_MAX);
        plan
    }

    /// Makes one plan and applies it; whatever follows must be nothing, if there is no more, but
    /// reasons to wait, which may tell of what the plan itself changed.
    #[track_caller]
    pub(crate) fn plan(&mut self) -> Plan {
        let plan = self.look();
        let before = self.state.clone();
        if !plan.transaction.mutations.is_empty() {
            let transactions = [plan.transaction.clone()];
            let outcome = self.state.apply(self.now, &transactions, &mut vec![]).remove(0);
            assert!(matches!(outcome, Outcome::Applied { .. }), "{outcome:?}: {plan:?}");
        }
        if !plan.more {
            let mut again = self.look();
            let tells = |mutation: &Mutation| matches!(mutation, Mutation::ExplainTask { .. });
            let mutations = &again.transaction.mutations;
            if !mutations.is_empty() && mutations.iter().all(tells) {
                self.state.apply(self.now, &[again.transaction], &mut vec![]);
                again = self.look();
            }
            let settled = again.transaction.mutations.is_empty();
            assert!(settled, "not stable:\n{}", self.explain(&before, &plan, &again));
        }
        plan
    }

    pub(crate) fn report(&mut self, task: &Task, state: TaskState) {
        let Some(node) = task.node else { return };
        let mut status = TaskStatus { state, since: self.now, ..task.status.clone() };
        status.attempt = status.attempt.max(1);
        if state == TaskState::Running {
            status.started = Some(self.now);
        }
        if state == TaskState::Failed {
            status.exit = Some(TaskExit { code: 3, oom_killed: false });
        }
        if state == TaskState::Rejected {
            status.error = Some("no such image".into());
        }
        self.write(Mutation::ReportTask { id: task.id, node, status });
    }

    /// A restart in place.
    pub(crate) fn crash(&mut self, task: &Task) {
        let Some(node) = task.node else { return };
        let status = TaskStatus {
            state: TaskState::Preparing,
            since: self.now,
            attempt: task.status.attempt.max(1) + 1,
            exit: Some(TaskExit { code: 3, oom_killed: false }),
            ..task.status.clone()
        };
        self.write(Mutation::ReportTask { id: task.id, node, status });
    }

    /// It runs, and this is known of its health.
    fn find_out(&mut self, task: &Task, state: HealthState) {
        let Some(node) = task.node else { return };
        let mut status = task.status.clone();
        if status.state != TaskState::Running {
            (status.state, status.since) = (TaskState::Running, self.now);
        }
        status.attempt = status.attempt.max(1);
        status.health = Some(Health { state, since: self.now });
        self.write(Mutation::ReportTask { id: task.id, node, status });
    }

    pub(crate) fn hears(&self, task: &Task) -> bool {
        task.node.is_some_and(|node| self.connected.contains(&node))
    }

    /// Wanted tasks get to run, of all slots or of one (`web.1`).
    fn start(&mut self, slot: Option<&str>) {
        let tasks: Vec<Task> = self.state.tasks().cloned().collect();
        for task in tasks {
            let wanted = task.desired == Desired::Running && self.hears(&task);
            let named =
                slot.is_none_or(|slot| name(&self.state, &task).split('/').next() == Some(slot));
            if wanted && named && is_live(&task) && task.status.state != TaskState::Running {
                self.report(&task, TaskState::Running);
            }
        }
    }

    /// Agents end and clean up what is not wanted.
    pub(crate) fn obey(&mut self) {
        let heard = self.state.tasks().filter(|task| self.hears(task));
        let tasks: Vec<Task> = heard.cloned().collect();
        for task in &tasks {
            match task.desired {
                Desired::Running => {}
                Desired::Shutdown if is_live(task) => self.report(task, TaskState::Complete),
                Desired::Shutdown => {}
                Desired::Remove => self.report(task, TaskState::Removed),
            }
        }
    }

    /// `a 2 b 1`: wanted tasks that have not ended, by node; `-` for those that wait.
    fn on(&self, name: &str) -> String {
        let mut on: BTreeMap<String, u32> = BTreeMap::new();
        let tasks = self.state.tasks_of(service_id(name));
        for task in tasks.filter(|t| t.desired == Desired::Running && is_live(t)) {
            let host = task.node.map_or("-".into(), |node| self.host(node));
            *on.entry(host).or_default() += 1;
        }
        on.iter().map(|(host, count)| format!("{host} {count}")).collect::<Vec<_>>().join(" ")
    }

    /// Goes on until nothing is to be done and no time is waited for.
    #[track_caller]
    pub(crate) fn settle(&mut self) {
        for _ in 0..SETTLE_ROUNDS_MAX {
            let before = self.state.revision();
            let plan = self.plan();
            self.start(None);
            self.obey();
            if self.state.revision() > before {
                continue;
            }
            match plan.wake_at.filter(|at| *at < ALWAYS) {
                Some(at) => self.now = at,
                None => return,
            }
        }
        panic!("does not end: {}", self.on("web"));
    }

    fn equip(&mut self, id: NodeId, words: &[&str]) {
        let node = self.state.node(id).unwrap();
        let (mut description, mut labels) = (node.description.clone(), node.labels.clone());
        let (mut generic, mut system_reserved) = (node.generic.clone(), Resources::default());
        let mut defaults = node.defaults;
        for word in words {
            if let Some((key, value)) = word.split_once(':') {
                labels.insert(key.into(), value.into());
                continue;
            }
            let (key, value) = word.split_once('=').unwrap();
            if key == "arch" {
                description.architecture = value.to_owned();
                continue;
            }
            if key == "dev" {
                let names: BTreeSet<String> = value.chars().map(String::from).collect();
                description.devices = [("v/d".to_owned(), names)].into();
                continue;
            }
            let amount: u64 = value.parse().unwrap();
            match key {
                "mem" => description.memory_bytes = amount << 20,
                "cpu" => description.cpus = u32::try_from(amount).unwrap(),
                "disk" => description.disk_bytes = amount << 20,
                "system" => system_reserved.memory_bytes = amount << 20,
                "default" => defaults.reserve_memory_bytes = amount << 20,
                _ if amount == 0 => drop(generic.remove(key)),
                _ => drop(generic.insert(key.into(), amount)),
            }
        }
        self.write(Mutation::DescribeNode { id, description });
        self.write(Mutation::SetLabels { id, labels });
        self.write(Mutation::SetResources { id, generic, system_reserved, defaults });
    }

    fn explanation(&self, what: &str) -> Explanation {
        let found = match what.contains('.') {
            true => explain_task(&self.state, self.newest(what).id),
            false => explain_service(&self.state, service_id(what)),
        };
        found.unwrap()
    }

    /// `REASON | a next | b: TEXT; TEXT | near b`.
    fn tell(&self, what: &str) -> String {
        let explanation = self.explanation(what);
        let nearest = explanation.nearest().map(|verdict| verdict.node);
        let mut parts = vec![match explanation.reason.as_str() {
            "" => "fits".to_owned(),
            reason => reason.to_owned(),
        }];
        for verdict in &explanation.verdicts {
            let texts: Vec<&str> = verdict.findings.iter().map(|f| f.text.as_str()).collect();
            let mut part = self.host(verdict.node);
            for (mark, word) in [(verdict.here, " here"), (verdict.next, " next")] {
                part.push_str(if mark { word } else { "" });
            }
            if !texts.is_empty() {
                part = format!("{part}: {}", texts.join("; "));
            }
            parts.push(part);
        }
        parts.extend(nearest.map(|node| format!("near {}", self.host(node))));
        parts.join(" | ")
    }

    fn newest(&self, slot: &str) -> Task {
        let named = |task: &&Task| name(&self.state, task).split('/').next() == Some(slot);
        let wanted = |task: &&Task| task.desired == Desired::Running;
        let tasks = self.state.tasks().filter(named).filter(wanted);
        tasks.max_by_key(|task| (task.created, task.template)).cloned().unwrap()
    }

    fn host(&self, id: NodeId) -> String {
        host(&self.state, id)
    }

    fn write_plan(&self, before: &State, plan: &Plan) -> String {
        // What is dropped has its name in the state before, what is new in the one after.
        let named = |id| before.task(id).map_or("?".to_owned(), |task| name(before, task));
        let of_vips = |mutation: &&Mutation| {
            matches!(mutation, Mutation::GrantVip { .. } | Mutation::ReleaseVip { .. })
        };
        // Of those `vips` tells.
        let mutations = plan.transaction.mutations.iter().filter(|mutation| !of_vips(mutation));
        let words = mutations.map(|mutation| match mutation {
            Mutation::CreateTask(task) => match task.node {
                Some(node) => format!("+{}@{}", name(&self.state, task), self.host(node)),
                None => format!("+{}", name(&self.state, task)),
            },
            Mutation::PlaceTask { id, node, .. } => {
                format!("place {}@{}", named(*id), self.host(*node))
            }
            Mutation::SetDesired { id, desired: Desired::Remove } => format!("x {}", named(*id)),
            Mutation::SetDesired { id, .. } => format!("-{}", named(*id)),
            Mutation::ExplainTask { id, error } => format!("why {}: {error}", named(*id)),
            Mutation::DropTask { id } => format!("drop {}", named(*id)),
            Mutation::DropService { id } => {
                let name = before.service(*id).map(|service| service.spec.name.to_string());
                format!("drop-service {}", name.unwrap())
            }
            Mutation::SetNodeStatus { id, status } => match status {
                NodeStatus::Ready => format!("{} is ready", self.host(*id)),
                NodeStatus::Down => format!("{} is down", self.host(*id)),
            },
            Mutation::SetUpdate { id, phase, message } => {
                let name = &before.service(*id).unwrap().spec.name;
                match phase {
                    UpdatePhase::Done => format!("done {name}"),
                    UpdatePhase::Paused => format!("pause {name}: {message}"),
                    UpdatePhase::Moving => panic!("only people let an update go on"),
                }
            }
            Mutation::RollBackService { id, to, why } => {
                format!("back {} to {to}: {why}", before.service(*id).unwrap().spec.name)
            }
            Mutation::SetHook { id, hook } => {
                let word = hook.map_or("over", Hook::as_str);
                format!("hook {} {word}", before.service(*id).unwrap().spec.name)
            }
            Mutation::BeginRun { id, scheduled, given: _ } => {
                let at = scheduled.map_or("?".to_owned(), |at| at.to_string());
                format!("run {} {}", before.service(*id).unwrap().spec.name, clock(&at))
            }
            Mutation::EndRun { id, run, state, message, completed, total } => {
                let name = &before.service(*id).unwrap().spec.name;
                let text = match message.as_str() {
                    "" => String::new(),
                    message => format!(": {message}"),
                };
                format!("{} {name}#{run} {completed}/{total}{text}", state.as_str())
            }
            Mutation::PassSchedule { missed, message, .. } => {
                let words = message.split(' ').map(clock).collect::<Vec<_>>().join(" ");
                format!("pass {missed} ({words})")
            }
            Mutation::PreemptTask { id, by, slot } => {
                let by = &before.service(*by).unwrap().spec.name;
                format!("!{} for {by}.{slot}", named(*id))
            }
            Mutation::GrantBlock { id, block } => format!("grant {} {block}", self.host(*id)),
            Mutation::CreateNetwork { spec, .. } => format!("network {}", spec.name),
            other => panic!("planned {other:?}"),
        });
        let mut words: Vec<String> = words.collect();
        if let Some(at) = plan.wake_at.filter(|at| *at < ALWAYS) {
            words.push(match at.since_ms(self.now) {
                ms if ms % 1000 == 0 => format!("wake {}s", ms / 1000),
                ms => format!("wake {ms}ms"),
            });
        }
        // While an update is watched there may always be a word about it.
        let watched = |state: &State| {
            let update = |s: &Service| s.update.as_ref().map(|update| update.phase);
            state.services().any(|s| update(s).is_some_and(|phase| phase != UpdatePhase::Done))
        };
        if plan.more && !watched(before) && !watched(&self.state) {
            words.push("more".into());
        }
        words.join(" ")
    }

    fn explain(&self, before: &State, plan: &Plan, again: &Plan) -> String {
        let tasks = before.tasks().map(|task| {
            let host = task.node.map_or("nowhere".to_owned(), |node| self.host(node));
            let state = task.status.state.as_str();
            format!("{} on {host}: {:?}, {state}\n", name(before, task), task.desired)
        });
        let nodes = before.nodes().map(|node| {
            format!("{} {:?} {:?}\n", node.description.hostname, node.status, node.availability)
        });
        let specs = before.services().map(|service| {
            let spec = &service.spec;
            let condition = spec.task.restart.condition;
            format!(
                "{} {:?} {:?} {:?} {condition:?}\n",
                spec.name, spec.mode, spec.update, spec.ports
            )
        });
        let facts: String = nodes.chain(specs).chain(tasks).collect();
        let plans = [self.write_plan(before, plan), self.write_plan(&self.state, again)];
        format!("{facts}{}\n{}", plans[0], plans[1])
    }

    /// Runs one command; gives its answer.
    #[track_caller]
    pub(crate) fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        match words[..] {
            ["plan"] => {
                let before = self.state.clone();
                let plan = self.plan();
                return self.write_plan(&before, &plan);
            }
            ["progress", name] => {
                return match progress(&self.state, service_id(name)) {
                    Convergence::Converged => "converged".into(),
                    Convergence::Waiting { message } => message,
                    Convergence::Failed { reason } => format!("failed: {reason}"),
                };
            }
            // What who waits for it is told if nothing else happens.
            ["patience", name] => {
                return match patience(&self.state, service_id(name), self.now) {
                    Ok(None) => "for ever".into(),
                    Ok(Some(at)) => format!("ask in {}s", at.since_ms(self.now) / 1000),
                    Err(reason) => format!("none: {reason}"),
                };
            }
            ["counts", name] => {
                let (running, desired) = task_counts(&self.state, service_id(name));
                return match completed_count(&self.state, service_id(name)) {
                    0 => format!("{running}/{desired}"),
                    completed => format!("{running}/{desired}, {completed} completed"),
                };
            }
            ["vips", name] => return self.vips(name),
            ["addresses", name] => {
                let live = self.state.tasks_of(service_id(name)).filter(|task| is_live(task));
                let word = |task: &Task| match task.address {
                    Some(address) => address.to_string(),
                    None => "none".to_owned(),
                };
                return live.map(word).collect::<Vec<_>>().join(" ");
            }
            ["runs", name] => return self.runs(name),
            // A moment of the day, by 24 hours.
            ["at", time] => self.now = moment(self.now, time),
            // As a person does.
            ["run", name] => {
                let (id, given) = (service_id(name), Given::default());
                let run = Mutation::BeginRun { id, scheduled: None, given };
                let outcome = self.try_write(run);
                return match outcome {
                    Outcome::Rejected(why) => why.to_string(),
                    Outcome::Applied { .. } | Outcome::Repeated { .. } => String::new(),
                };
            }
            ["suspend", name] => {
                self.write(Mutation::Suspend { id: service_id(name), suspended: true });
            }
            ["unsuspend", name] => {
                self.write(Mutation::Suspend { id: service_id(name), suspended: false });
            }
            ["network", name] => self.network(name, None),
            ["network", name, subnet] => self.network(name, Some(subnet.parse().unwrap())),
            ["nodes", ref names @ ..] => {
                for name in names {
                    let n = u8::try_from(self.state.nodes().len()).unwrap();
                    let block = Subnet { address: [10, 128, n, 0].into(), prefix: 24 };
                    self.add_node(name, vec![block]);
                }
            }
            ["service", name, ref rest @ ..] => {
                let mut spec = ServiceSpec::new(
                    name.parse().unwrap(),
                    TaskTemplate { image: "a".into(), ..TaskTemplate::default() },
                );
                // Most scripts are not about that.
                spec.update.monitor_ms = 0;
                rest.iter().for_each(|word| edit(&mut spec, word));
                self.write(Mutation::CreateService { id: service_id(name), spec });
            }
            ["update", name, ref rest @ ..] => {
                let id = service_id(name);
                let mut spec = self.state.service(id).unwrap().spec.clone();
                rest.iter().for_each(|word| edit(&mut spec, word));
                self.write(Mutation::UpdateService { id, spec });
            }
            ["remove", name] => self.write(Mutation::RemoveService { id: service_id(name) }),
            ["wait", time] => self.now = self.now.plus_ms(duration(time)),
            // Ended with code 3, and begins anew on its node.
            ["crash", slot] => self.crash(&self.newest(slot)),
            ["hold", name] | ["go", name] => {
                let phase =
                    if words[0] == "hold" { UpdatePhase::Paused } else { UpdatePhase::Moving };
                let message = "by anna".to_owned();
                self.write(Mutation::SetUpdate { id: service_id(name), phase, message });
            }
            ["back", name, to] => self.write(Mutation::RollBackService {
                id: service_id(name),
                to: to.parse().unwrap(),
                why: String::new(),
            }),
            ["state", name] => {
                let service = self.state.service(service_id(name)).unwrap();
                let (state, message) = update_state(&self.state, service);
                let text = if message.is_empty() { String::new() } else { format!(": {message}") };
                return format!("{}{text}", state.as_str());
            }
            ["revision", name] => {
                return self.state.service(service_id(name)).unwrap().number.to_string();
            }
            ["start"] => self.start(None),
            ["start", slot] => self.start(Some(slot)),
            ["obey"] => self.obey(),
            ["fail", slot] => self.report(&self.newest(slot), TaskState::Failed),
            ["healthy", slot] => self.find_out(&self.newest(slot), HealthState::Healthy),
            ["unhealthy", slot] => self.find_out(&self.newest(slot), HealthState::Unhealthy),
            ["why", slot] => {
                return self.newest(slot).status.error.unwrap_or_default().into();
            }
            ["ends", slot] => {
                let going = |task: &&Task| is_live(task) && task.desired != Desired::Running;
                let named = |task: &&Task| name(&self.state, task).split('/').next() == Some(slot);
                let task = self.state.tasks().filter(going).find(named).cloned().unwrap();
                self.report(&task, TaskState::Complete);
            }
            ["begins", slot] => self.find_out(&self.newest(slot), HealthState::Starting),
            ["reject", slot] => self.report(&self.newest(slot), TaskState::Rejected),
            ["complete", slot] => self.report(&self.newest(slot), TaskState::Complete),
            // Lost contact just now; `down` after the window has passed.
            ["lose", node] | ["down", node] => {
                self.lose(node_id(node));
                if words[0] == "down" {
                    self.now = self.now.plus_ms(SUSPICION_MS + 1);
                }
            }
            // `has a mem=2048 cpu=4 gpu=2 system=512 zone:x`: MiB, cores, pieces, labels.
            ["has", node, ref rest @ ..] => self.equip(node_id(node), rest),
            ["taint", node, ref taints @ ..] => self.write(Mutation::SetTaints {
                id: node_id(node),
                taints: taints.iter().map(|taint| taint.parse().unwrap()).collect(),
            }),
            // MiB that the cluster reserves for tasks that say nothing.
            ["default", mib] => self.cluster(|cluster| {
                cluster.defaults.reserve_memory_bytes = mib.parse::<u64>().unwrap() << 20;
            }),
            ["strategy", "pack"] => self.cluster(|cluster| cluster.strategy = Strategy::BinPack),
            // `explain web` or `explain web.2`: reason, then each node's findings.
            ["explain", what] => return self.tell(what),
            ["fix", what] => return self.explanation(what).fixes.join("; "),
            ["up", node] => self.hear(node_id(node)),
            ["rm", node] => {
                self.connected.remove(&node_id(node));
                let (id, keep_until) = (node_id(node), self.now.plus_ms(1_000_000));
                self.write(Mutation::SetRole { id, manager: false, worker: true });
                self.write(Mutation::RemoveNode { id, keep_until, force: true });
            }
            ["role", node, role] => self.write(Mutation::SetRole {
                id: node_id(node),
                manager: role != "worker",
                worker: role != "manager",
            }),
            ["rebalance", word] => {
                self.cluster(|cluster| cluster.rebalance = word.parse().unwrap())
            }
            ["on", name] => return self.on(name),
            ["cause", slot] => return self.newest(slot).origin.unwrap().cause.as_str().into(),
            ["settle"] => self.settle(),
            ["drain", node, within] => self.write(Mutation::SetAvailability {
                id: node_id(node),
                availability: Availability::Drain,
                deadline_ms: Some(duration(within)),
            }),
            [word @ ("drain" | "pause" | "active"), node] => {
                let availability = match word {
                    "drain" => Availability::Drain,
                    "pause" => Availability::Pause,
                    _ => Availability::Active,
                };
                let id = node_id(node);
                self.write(Mutation::SetAvailability { id, availability, deadline_ms: None });
            }
            ref other => panic!("unknown command {other:?}"),
        }
        String::new()
    }
}

/// `web.1`, `web.1/2`; of a global service `web.a`.
fn name(state: &State, task: &Task) -> String {
    let service = state.service(task.service);
    let name = service.map_or("?", |service| service.spec.name.as_str());
    let slot = match (service.map(|service| service.spec.mode), task.node) {
        (Some(Mode::Global | Mode::GlobalJob), Some(node)) => host(state, node),
        _ => task.slot.to_string(),
    };
    if let Some(hook) = task.hook() {
        return match task.template {
            1 => format!("{name}.{}", hook.as_str()),
            template => format!("{name}.{}/{template}", hook.as_str()),
        };
    }
    let run = if task.run > 1 { format!("#{}", task.run) } else { String::new() };
    match task.template {
        1 => format!("{name}{run}.{slot}"),
        template => format!("{name}{run}.{slot}/{template}"),
    }
}

/// `10:05` of `1970-01-02T10:05:00.000Z`; what is no time stays as it is.
fn clock(text: &str) -> String {
    let text = text.trim_end_matches(':');
    match text.split_once('T') {
        Some((_, time)) if text.ends_with('Z') => time[..5].to_owned(),
        _ => text.to_owned(),
    }
}

/// The next `10:05:30` after `from`.
fn moment(from: Time, text: &str) -> Time {
    let parts: Vec<u64> = text.split(':').map(|part| part.parse().unwrap()).collect();
    let seconds = parts[0] * 3600 + parts[1] * 60 + parts.get(2).unwrap_or(&0);
    let (day, ms) = (86_400_000, seconds * 1000);
    let today = Time(from.0 / day * day + ms);
    if today > from { today } else { today.plus_ms(day) }
}

fn host(state: &State, id: NodeId) -> String {
    state.node(id).map_or("?".into(), |node| node.description.hostname.clone())
}

/// Runs a script; a line `COMMAND => ANSWER` compares, other commands say nothing.
#[track_caller]
pub(crate) fn check(script: &str) {
    let mut world = World::new();
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (command, expected) = line.split_once("=>").unwrap_or((line, ""));
        let answer = world.run(command);
        assert_eq!(answer, expected.trim(), "in `{line}` of\n{script}");
        assert_eq!(world.state.check(), Vec::<String>::new());
    }
}
