//! Which node a stream goes to.

use std::collections::{BTreeMap, BTreeSet};

use warren_model::node::NodeStatus;
use warren_model::task::Task;
use warren_model::{NodeId, TaskId};
use warren_proto::v1;
use warren_proto::v1::open_stream::Kind;

use crate::core::Core;
use crate::quorum;
use crate::refusal::Refusal;
use crate::stream::target;
use crate::stream::target::Target;

/// Where the frames come from.
pub(crate) enum Route {
    /// One node, with the request as it is to see it.
    Node(NodeId, Box<v1::OpenStream>),
    /// Log lines of a target, wherever its tasks are or were.
    Logs(Target, v1::Logs),
}

/// Decides where a request goes, and fills in what only a manager knows.
pub(crate) fn route(core: &Core, open: v1::OpenStream) -> Result<Route, Refusal> {
    let Some(kind) = open.kind else {
        return Err(Refusal::bad_input("open: says nothing that this version understands"));
    };
    match kind {
        Kind::Exec(mut exec) => {
            let view = core.store.view();
            let task = target::running(&view, &exec.target, !exec.container.is_empty())?;
            let node = task.node.ok_or_else(|| {
                Refusal::not_now(format!("{} is not placed on a node", exec.target))
            })?;
            exec.task = task.id.as_bytes().to_vec();
            Ok(Route::Node(node, Box::new(request(node, Kind::Exec(exec)))))
        }
        Kind::Logs(logs) => {
            let target = target::resolve_present(&core.store.view(), &logs.target)?;
            Ok(Route::Logs(target, logs))
        }
        kind @ (Kind::ImagePull(_)
        | Kind::ImageLoad(_)
        | Kind::ImageImport(_)
        | Kind::ImageList(_)
        | Kind::ImageRemove(_)
        | Kind::VolumeList(_)
        | Kind::VolumeRemove(_)
        | Kind::ImageSave(_)
        | Kind::ImagePush(_)
        | Kind::ImageFsck(_)
        | Kind::RegistryLogin(_)
        | Kind::Check(_)
        | Kind::Doctor(_)
        | Kind::CountPolicies(_)
        | Kind::RotateKey(_)
        | Kind::ControlTask(_)) => {
            let node = match open.node.as_slice() {
                [] => nearest(core).ok_or_else(|| {
                    Refusal::unavailable("no node is connected that could do this")
                        .hint("warren node ls shows which nodes are ready")
                })?,
                bytes => warren_proto::node_id("open.node", bytes)?,
            };
            Ok(Route::Node(node, Box::new(request(node, kind))))
        }
    }
}

/// The node that the call arrived at, a worker or not: people mean the machine that they are on. Its
/// agent may have its session with another manager. Alone and without it, whoever could do it.
fn nearest(core: &Core) -> Option<NodeId> {
    let here = core.sessions.nodes().contains(&core.node_id);
    if here || !quorum::others(core).is_empty() {
        return Some(core.node_id);
    }
    somewhere(core)
}

/// A worker to ask: this manager's own node if its agent is connected, else the first that is
/// connected here, else the first that any manager hears of.
pub(crate) fn somewhere(core: &Core) -> Option<NodeId> {
    let view = core.store.view();
    let works = |node: &NodeId| view.node(*node).is_some_and(|node| node.worker);
    let here: Vec<NodeId> = core.sessions.nodes().into_iter().filter(works).collect();
    let own = here.iter().find(|node| **node == core.node_id).or_else(|| here.first()).copied();
    own.or_else(|| {
        if quorum::others(core).is_empty() {
            return None;
        }
        let mut ready = view.nodes().filter(|n| n.worker && n.status == NodeStatus::Ready);
        ready.next().map(|node| node.id)
    })
}

pub(crate) fn request(node: NodeId, kind: Kind) -> v1::OpenStream {
    v1::OpenStream { node: node.as_bytes().to_vec(), kind: Some(kind) }
}

/// Placed tasks that are not in `known` yet, by node; they are in `known` then.
pub(crate) fn group_by_node(
    tasks: Vec<&Task>,
    known: &mut BTreeSet<TaskId>,
) -> BTreeMap<NodeId, Vec<TaskId>> {
    let mut groups: BTreeMap<NodeId, Vec<TaskId>> = BTreeMap::new();
    for task in tasks {
        if let Some(node) = task.node
            && known.insert(task.id)
        {
            groups.entry(node).or_default().push(task.id);
        }
    }
    groups
}
