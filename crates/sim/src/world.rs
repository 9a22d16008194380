//! One manager, one worker, one person who keeps changing their mind.
//!
//! Everything between the rooms takes seeded time: the disk, the wire, effects
//! on containers. Messages of one session stay in order, as on a stream.

mod check;
mod user;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::Ipv4Addr;
use std::sync::Arc;

use warren_agent::assignments::Assignment;
use warren_agent::core::Input;
use warren_agent::task::Now;
use warren_base::clock::Steady;
use warren_base::rng::{Rng, SeededRng};
use warren_manager::dispatch::assign;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::id::{ClusterId, NodeId};
use warren_model::node::{Description, Node as NodeObject, NodeStatus};
use warren_model::task::TaskStatus;
use warren_model::{TaskId, Time};
use warren_planner::{Beats, IdSource, Index, Seen};
use warren_state::State;
use warren_state::change::{Mutation, Outcome, Transaction};

use crate::hooks::Deeds;
use crate::ledger::Ledger;
use crate::machine::{Machine, Need};
use crate::queue::Queue;
use crate::{Failure, Options, Report};

/// 2026-01-01: any day will do, but 1970 hides bugs.
const EPOCH_MS: u64 = 1_767_225_600_000;
/// Everything must be calm this long after the trouble ended: the longest back-off of the planner
/// and of a crash loop, with room.
const CALM_MS: u64 = 20 * 60_000;
/// Events of one run; more means that something spins.
const EVENTS_MAX: u64 = 400_000;

/// What can happen. `life` is the daemon's: what an earlier one began never arrives.
#[derive(Debug)]
enum Happening {
    /// The leader looks.
    Plan {
        life: u64,
    },
    /// A proposed transaction reaches the disk.
    Commit {
        life: u64,
        transaction: Transaction,
        planned: bool,
    },
    /// An assignment arrives at the agent.
    Assigned {
        life: u64,
        assignment: Box<Assignment>,
    },
    /// Reports arrive at the manager.
    Reported {
        life: u64,
        statuses: Vec<(TaskId, TaskStatus)>,
    },
    User,
    CrashContainer,
    KillDaemon {
        power: bool,
    },
    /// The wall clock is set, by minutes or hours.
    SetClock,
}

struct Session {
    /// What the agent was told last.
    told: State,
    revision: u64,
    last_delivery: u64,
    last_report: u64,
}

struct Ids<'a>(&'a SeededRng);

impl IdSource for Ids<'_> {
    fn id(&mut self) -> [u8; 10] {
        self.0.id_bytes()
    }
}

/// One run.
pub struct World {
    options: Options,
    rng: Arc<SeededRng>,
    now_ms: u64,
    queue: Queue<Happening>,
    trace: DefaultHasher,
    report: Report,
    life: u64,

    ledger: Option<Ledger>,
    state: State,
    index: Index,
    beats: Beats,
    /// A plan is due, or its transaction is on its way to the disk.
    planning: bool,
    /// When the planner is to be called again, by the life of the daemon.
    plan_wakes: std::collections::BTreeSet<(u64, u64)>,
    /// What moved while a plan was under way.
    moved: bool,
    last_commit: u64,

    node_id: NodeId,
    machine: Machine,
    session: Option<Session>,
    services_made: u32,
    deeds: Deeds,
    /// How far the wall clock is from the true time.
    ahead_ms: i64,
    /// Of the leader, and of what it writes.
    steady: [Steady; 2],
}

type Held = Result<(), String>;

impl World {
    pub fn new(options: Options) -> Self {
        let rng = Arc::new(SeededRng::new(options.seed));
        let node_id = NodeId::from_bytes(rng.id_bytes());
        Self {
            options,
            now_ms: 0,
            queue: Queue::new(),
            trace: DefaultHasher::new(),
            report: Report {
                trace: 0,
                events: 0,
                entries: 0,
                container_crashes: 0,
                daemon_kills: 0,
                power_failures: 0,
            },
            life: 0,
            ledger: None,
            state: State::default(),
            index: Index::default(),
            beats: Beats::default(),
            planning: false,
            plan_wakes: std::collections::BTreeSet::new(),
            moved: false,
            last_commit: 0,
            node_id,
            machine: Machine::new(node_id, Arc::clone(&rng)),
            session: None,
            services_made: 0,
            deeds: Deeds::default(),
            ahead_ms: 0,
            steady: Default::default(),
            rng,
        }
    }

    /// Trouble, then calm, then the checks.
    ///
    /// # Errors
    /// The first thing that did not hold.
    pub fn run(mut self) -> Result<Report, Failure> {
        let outcome = self.live();
        let (seed, at_ms) = (self.options.seed, self.now_ms);
        outcome.map_err(|what| Failure { seed, at_ms, what })?;
        self.report.trace = self.trace.finish();
        self.report.entries = self.ledger.as_ref().map_or(0, Ledger::entries);
        Ok(self.report)
    }

    fn live(&mut self) -> Held {
        self.begin()?;
        let end = self.options.trouble_ms + CALM_MS;
        loop {
            let (ours, machines) = (self.queue.next_at(), self.machine.next_at());
            let Some(at) = ours.into_iter().chain(machines).min().filter(|at| *at <= end) else {
                break;
            };
            self.now_ms = at;
            self.report.events += 1;
            if self.report.events > EVENTS_MAX {
                return Err(format!("more than {EVENTS_MAX} events: something spins"));
            }
            let before = self.state.revision();
            if ours == Some(at) {
                let Some((_, happening)) = self.queue.pop() else { break };
                (at, format!("{happening:?}")).hash(&mut self.trace);
                self.happen(happening)?;
            } else if let Some((name, needs)) = self.machine.run_due(self.now()) {
                (at, name).hash(&mut self.trace);
                self.serve(needs);
            }
            if self.state.revision() != before {
                self.check_step()?;
            }
        }
        self.check_calm()
    }

    fn begin(&mut self) -> Held {
        self.ledger = Some(Ledger::create(self.rng.next_u64())?);
        let cluster = Cluster::new(ClusterId::from_bytes(self.rng.id_bytes()));
        let node = NodeObject {
            manager: true,
            status: NodeStatus::Ready,
            blocks: vec![Subnet { address: Ipv4Addr::new(10, 128, 0, 0), prefix: 24 }],
            ..NodeObject::new(
                self.node_id,
                Description { hostname: "one".into(), cpus: 2, ..Description::default() },
            )
        };
        let mutations = vec![Mutation::SetCluster(cluster), Mutation::CreateNode(node)];
        self.commit(Transaction { mutations, ..Transaction::default() })?;
        self.start_daemon();
        let trouble = self.options.trouble_ms;
        self.queue.at(1, Happening::User);
        for _ in 0..12 {
            let at = self.rng.below(trouble);
            self.queue.at(at, Happening::CrashContainer);
        }
        if self.rng.below(3) == 0 {
            for _ in 0..4 {
                let at = self.rng.below(trouble);
                self.queue.at(at, Happening::SetClock);
            }
        }
        for _ in 0..5 {
            let (at, power) = (self.rng.below(trouble), self.rng.below(3) == 0);
            self.queue.at(at, Happening::KillDaemon { power });
        }
        Ok(())
    }

    fn happen(&mut self, happening: Happening) -> Held {
        match happening {
            Happening::Plan { life } if life == self.life => self.plan(),
            Happening::Commit { life, transaction, planned } if life == self.life => {
                if planned {
                    self.planning = false;
                }
                self.commit(transaction)
            }
            Happening::Assigned { life, assignment } if life == self.life => {
                let needs = self.machine.handle(Input::Assigned(assignment), self.now());
                self.serve(needs);
                Ok(())
            }
            Happening::Reported { life, statuses } if life == self.life => self.reported(statuses),
            // Of a daemon that is dead.
            Happening::Plan { .. }
            | Happening::Commit { .. }
            | Happening::Assigned { .. }
            | Happening::Reported { .. } => Ok(()),
            Happening::User => self.user(),
            Happening::CrashContainer => {
                if self.machine.crash_one(self.now()) {
                    self.report.container_crashes += 1;
                }
                Ok(())
            }
            Happening::KillDaemon { power } => self.kill_daemon(power),
            Happening::SetClock => {
                self.set_clock();
                Ok(())
            }
        }
    }

    fn wall(&self) -> Time {
        Time((EPOCH_MS + self.now_ms).saturating_add_signed(self.ahead_ms))
    }

    fn set_clock(&mut self) {
        const MINUTE_MS: u64 = 60_000;
        let most_ms = if self.rng.below(2) == 0 { 10 * MINUTE_MS } else { 300 * MINUTE_MS };
        let by_ms = i64::try_from(self.rng.below(most_ms)).unwrap_or(0);
        self.ahead_ms += if self.rng.below(2) == 0 { by_ms } else { -by_ms };
    }

    fn now(&self) -> Now {
        Now { wall: self.wall(), mono_ms: self.now_ms }
    }

    /// A moment up to `most_ms` from now.
    fn soon(&self, most_ms: u64) -> u64 {
        self.now_ms + self.rng.below(most_ms + 1)
    }

    // ---- the manager ----

    /// Makes a transaction durable, applies it and tells whom it concerns.
    fn commit(&mut self, transaction: Transaction) -> Held {
        let (wall, floor) = (self.wall().0, self.state.time().0);
        let time = Time(self.steady[1].now_ms(wall, floor, self.now_ms));
        let ledger = self.ledger.as_mut().ok_or("no ledger")?;
        ledger.append(time, std::slice::from_ref(&transaction))?;
        let before = self.state.revision();
        let mut events = Vec::new();
        let outcomes = self.state.apply(time, std::slice::from_ref(&transaction), &mut events);
        for outcome in &outcomes {
            format!("{outcome:?}").hash(&mut self.trace);
        }
        let stale = matches!(outcomes.first(), Some(Outcome::Rejected(_)));
        if self.state.revision() != before || stale {
            self.wake_planner();
            self.dispatch();
        }
        Ok(())
    }

    fn propose(&mut self, transaction: Transaction, planned: bool) {
        // One disk, in order.
        self.last_commit = self.soon(4).max(self.last_commit);
        let life = self.life;
        self.queue.at(self.last_commit, Happening::Commit { life, transaction, planned });
    }

    fn wake_planner(&mut self) {
        if self.planning {
            self.moved = true;
            return;
        }
        self.planning = true;
        self.moved = false;
        let at = self.soon(1);
        self.queue.at(at, Happening::Plan { life: self.life });
    }

    fn plan(&mut self) -> Held {
        let (wall, floor) = (self.wall(), self.state.time().0);
        let now = Time(self.steady[0].now_ms(wall.0, floor, self.now_ms));
        self.beats.wall = Some(wall);
        // Its one node is in the same process: always heard.
        self.beats.seen.insert(self.node_id, Seen { at: now, rtt_ms: 0 });
        let mut ids = Ids(&self.rng);
        let plan = warren_planner::plan(&self.state, &mut self.index, &self.beats, &mut ids, now);
        self.planning = false;
        self.plan_wakes.retain(|(_, at)| *at > self.now_ms);
        if plan.transaction.mutations.is_empty() {
            if let Some(at) = plan.wake_at {
                let at = self.now_ms + at.since_ms(now).max(1);
                // One clock: who asks twice for a time is called once.
                if self.plan_wakes.insert((self.life, at)) {
                    self.queue.at(at, Happening::Plan { life: self.life });
                }
            }
            if self.moved {
                self.wake_planner();
            }
            return Ok(());
        }
        self.planning = true;
        self.propose(plan.transaction, true);
        Ok(())
    }

    fn dispatch(&mut self) {
        let Some(session) = &mut self.session else { return };
        let message =
            assign::incremental(&session.told, &self.state, self.node_id, session.revision);
        session.told = self.state.clone();
        let Some(message) = message else { return };
        session.revision = message.revision;
        let at = (self.now_ms + self.rng.below(4)).max(session.last_delivery);
        session.last_delivery = at;
        let assignment = Box::new(Assignment::from(message));
        self.queue.at(at, Happening::Assigned { life: self.life, assignment });
    }

    /// What the agent wants of its session, and what it has to tell.
    fn serve(&mut self, needs: Vec<Need>) {
        if needs.iter().any(|need| matches!(need, Need::Reconnect(_))) {
            self.connect();
        }
        let outbox = self.machine.core.outbox();
        let statuses = outbox.take(self.now_ms);
        // Nobody here waits for other nodes.
        outbox.take_through();
        let Some(session) = &mut self.session else { return };
        if statuses.is_empty() {
            return;
        }
        let at = (self.now_ms + self.rng.below(4)).max(session.last_report);
        session.last_report = at;
        self.queue.at(at, Happening::Reported { life: self.life, statuses });
    }

    fn reported(&mut self, statuses: Vec<(TaskId, TaskStatus)>) -> Held {
        let node = self.node_id;
        let mutations = statuses
            .into_iter()
            .map(|(id, status)| Mutation::ReportTask { id, node, status })
            .collect();
        self.propose(Transaction { mutations, ..Transaction::default() }, false);
        Ok(())
    }

    // ---- lives ----

    fn start_daemon(&mut self) {
        self.life += 1;
        self.planning = false;
        self.moved = false;
        self.last_commit = self.now_ms;
        self.index = Index::default();
        self.steady = Default::default();
        self.beats = Beats { since: self.wall(), ..Beats::default() };
        let needs = self.machine.restart(None, self.now());
        self.serve(needs);
        self.connect();
        self.wake_planner();
    }

    /// A session opens and brings everything.
    fn connect(&mut self) {
        let message = assign::complete(&self.state, self.node_id);
        let at = self.soon(5);
        self.session = Some(Session {
            told: self.state.clone(),
            revision: message.revision,
            last_delivery: at,
            last_report: at,
        });
        let assignment = Box::new(Assignment::from(message));
        self.queue.at(at, Happening::Assigned { life: self.life, assignment });
    }

    fn kill_daemon(&mut self, power: bool) -> Held {
        if power {
            self.report.power_failures += 1;
            self.machine.power_off();
        } else {
            self.report.daemon_kills += 1;
        }
        let ledger = self.ledger.as_mut().ok_or("no ledger")?;
        ledger.crash(power, self.rng.as_ref())?;
        let replayed = ledger.replay()?;
        if replayed.checksum() != self.state.checksum() {
            return Err(format!("replay gives {replayed:?}, lost was {:?}", self.state));
        }
        self.state = replayed;
        self.start_daemon();
        Ok(())
    }
}
