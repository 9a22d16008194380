//! Effects on the network: addresses, rules, ports of the mesh, who asks for names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use warren_model::TaskId;
use warren_net::Sandbox;

use super::{chain, net_failure, transient};
use crate::core::{Input, Order};
use crate::mesh::Tenant;
use crate::names::Asker;
use crate::published::PortKey;
use crate::table::Applied;
use crate::task::Failure;
use crate::worker::{Message, Progressed, Tools};

/// Rules take milliseconds; a kernel that refuses them is told of as the reason after this.
const RULES_MAX_MS: u64 = 2_000;

/// Who was admitted and not dismissed. What changes of a container's networks must not admit it
/// again after its end: its address may be another's by then.
#[derive(Debug, Default)]
pub(crate) struct Roll {
    tasks: Mutex<BTreeSet<TaskId>>,
    /// Of changes and ends; a start needs it not, since an end waits for it.
    turn: tokio::sync::Mutex<()>,
}

impl Roll {
    fn tasks(&self) -> MutexGuard<'_, BTreeSet<TaskId>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These run since before this process.
    pub(crate) fn restore(&self, tasks: impl Iterator<Item = TaskId>) {
        self.tasks().extend(tasks);
    }
}

/// A network namespace of its own; on the node's network: none.
pub(crate) async fn attach(tools: &Tools, order: &Order) -> Result<Option<Sandbox>, Failure> {
    if order.spec.template.privileges.host_network {
        return Ok(None);
    }
    let Some(addresses) = order.spec.addresses() else {
        return Err(transient("no address was assigned".to_owned()));
    };
    let attached = tools.network.attach(&order.spec.id.to_string(), addresses).await;
    attached.map(Some).map_err(|error| net_failure(&error))
}

/// Before its first instruction a container can ask for names.
pub(super) async fn admit(tools: &Tools, order: &Order) -> Result<(), Failure> {
    let (Some(names), Some(asker)) = (&tools.names, &order.asker) else { return Ok(()) };
    tools.roll.tasks().insert(asker.task);
    let admitted = names.admit(asker.clone()).await;
    admitted.map_err(|error| transient(format!("names: {}", chain(&error))))
}

/// After its end it cannot.
pub(super) async fn dismiss(tools: &Tools, task: TaskId) {
    let Some(names) = &tools.names else { return };
    let _turn = tools.roll.turn.lock().await;
    if tools.roll.tasks().remove(&task) {
        names.dismiss(task).await;
    }
}

/// Waits until the kernel has the rules around a container: without them it could reach what it
/// must not. They were on their way before its image and address were asked for.
pub(crate) async fn rules_hold(tools: &Tools, generation: u64) -> Result<(), Failure> {
    let mut applied = tools.applied.subscribe();
    let holds = |applied: &Progressed| applied.generation >= generation;
    let wait = applied.wait_for(holds);
    tokio::select! {
        biased;
        // Its sender is in the tools themselves.
        _ = wait => Ok(()),
        () = tools.clock.sleep(RULES_MAX_MS) => {
            let problem = tools.applied.borrow().problem.clone();
            let why = problem.unwrap_or_else(|| "the kernel takes its time".to_owned());
            Err(transient(format!("the network's rules do not hold yet: {why}")))
        }
    }
}

/// Hands the kernel a table.
pub(crate) async fn apply(tools: &Tools, generation: u64, table: warren_net::Table) {
    let applied = match tools.network.apply(table).await {
        Ok(()) => Applied::All,
        Err(error @ warren_net::Error::Overlay(_)) => Applied::RulesAlone(chain(&error)),
        Err(error) => Applied::Nothing(chain(&error)),
    };
    tools.applied.send_modify(|progressed| match &applied {
        Applied::All | Applied::RulesAlone(_) => {
            *progressed = Progressed { generation, problem: None };
        }
        Applied::Nothing(why) => progressed.problem = Some(why.clone()),
    });
    tools.tell(Message::Input(Box::new(Input::Applied { generation, applied }))).await;
}

/// Holds ports of the routing mesh.
pub(crate) async fn hold(tools: &Tools, wanted: &BTreeMap<PortKey, Tenant>) {
    let (holding, freed) = tools.ports.hold(wanted).await;
    tools.tell(Message::Input(Box::new(Input::Held(holding)))).await;
    if freed {
        tools.tell(Message::Input(Box::new(Input::PortsFreed))).await;
    }
}

/// Looks up where a node is.
pub(crate) async fn resolve(tools: &Tools, name: String) {
    let addresses = tools.resolve.resolve(&name).await.unwrap_or_else(|error| {
        tracing::warn!(node = name, %error, "no address is found for a node");
        Vec::new()
    });
    tools.tell(Message::Input(Box::new(Input::Resolved { name, addresses }))).await;
}

/// Containers that run are on other networks than before.
pub(crate) async fn readmit(tools: &Tools, askers: Vec<Asker>) {
    let Some(names) = &tools.names else { return };
    for asker in askers {
        let task_id = asker.task;
        let _turn = tools.roll.turn.lock().await;
        if !tools.roll.tasks().contains(&task_id) {
            continue;
        }
        if let Err(error) = names.admit(asker).await {
            tracing::warn!(%task_id, error = chain(&error), "names of other networks");
        }
    }
}
