//! What tasks use, asked of every node that has some, once: who wants to see it change asks again.
//!
//! Nodes are asked at the same time. One that cannot be asked does not hide the others: that is
//! told at the end.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tonic::Streaming;
use warren_model::task::{Task, TaskState};
use warren_model::{NodeId, TaskId};
use warren_proto::v1;
use warren_proto::v1::open_stream::Kind;
use warren_state::State;

use crate::core::Core;
use crate::refusal::Refusal;
use crate::stream::pipe::relay;
use crate::stream::route::{group_by_node, request};
use crate::stream::target::{resolve_present, tasks};
use crate::stream::{Frames, node_name};

/// Names in one question.
const TARGETS_MAX: usize = 1000;

pub(super) struct Job {
    core: Arc<Core>,
    asked: Vec<(NodeId, Vec<TaskId>)>,
}

/// # Errors
/// When a name means nothing.
pub(super) fn start(core: &Arc<Core>, asked: v1::Usage) -> Result<Job, Refusal> {
    let view = core.store.view();
    let meant = meant(&view, &asked.targets)?;
    let asked = group_by_node(meant, &mut BTreeSet::new()).into_iter().collect();
    Ok(Job { core: Arc::clone(core), asked })
}

/// Tasks that may have containers, of the names that were given, or all.
fn meant<'a>(view: &'a State, targets: &[String]) -> Result<Vec<&'a Task>, Refusal> {
    if targets.len() > TARGETS_MAX {
        let count = targets.len();
        return Err(Refusal::bad_input(format!("{count} names, at most {TARGETS_MAX}")));
    }
    let runs = |task: &&Task| {
        let state = task.status.state;
        (TaskState::Starting..=TaskState::Stopping).contains(&state)
    };
    if targets.is_empty() {
        return Ok(view.tasks().filter(runs).collect());
    }
    let mut all = Vec::new();
    for text in targets {
        all.extend(tasks(view, resolve_present(view, text)?).into_iter().filter(runs));
    }
    Ok(all)
}

impl Job {
    pub(super) async fn run(self, from_tool: Streaming<v1::Frame>, to_tool: Frames) {
        // Nothing more is to come from the tool; kept so that its half stays open.
        let _from_tool = from_tool;
        let mut nodes: FuturesUnordered<_> =
            self.asked.iter().map(|(node, ids)| self.ask(*node, ids, &to_tool)).collect();
        let mut trouble = None;
        loop {
            tokio::select! {
                ended = nodes.next() => match ended {
                    Some(ended) => trouble = trouble.or(ended),
                    None => break,
                },
                () = to_tool.closed() => return,
            }
        }
        if let Some(trouble) = trouble {
            // The tool may be gone, which is as good an end.
            let _ = to_tool.send(Ok(trouble.into_frame())).await;
        }
    }

    /// What went wrong, if anything did.
    async fn ask(&self, node: NodeId, ids: &[TaskId], to_tool: &Frames) -> Option<Refusal> {
        let tasks = ids.iter().map(|id| id.as_bytes().to_vec()).collect();
        let open = request(node, Kind::Usage(v1::Usage { targets: Vec::new(), tasks }));
        match self.core.broker.open(&self.core, node, open).await {
            Ok(mut tunnel) => {
                relay(&mut tunnel.from_node, to_tool, &node_name(&self.core, node)).await
            }
            Err(refusal) => Some(refusal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::world;

    #[track_caller]
    fn check(targets: &str, expected: &str) {
        let view =
            world("web: 1 running a, 2 failed a, 3 running b\ndb: 1 pending\nx: 1 running b");
        let targets: Vec<String> = targets.split_whitespace().map(str::to_owned).collect();
        let got = match meant(&view, &targets) {
            Ok(tasks) => {
                let label = |task: &&Task| {
                    let service = view.service(task.service).unwrap();
                    format!("{}.{}", service.spec.name, task.slot)
                };
                let mut names: Vec<String> = tasks.iter().map(label).collect();
                names.sort();
                names.join(" ")
            }
            Err(refusal) => refusal.to_string(),
        };
        assert_eq!(got, expected, "{targets:?}");
    }

    #[test]
    fn whose_figures() {
        check("", "web.1 web.3 x.1");
        check("web", "web.1 web.3");
        check("web.3 x", "web.3 x.1");
        check("web.2 db", "");
        check("web shop", "no service or task shop");
    }
}
