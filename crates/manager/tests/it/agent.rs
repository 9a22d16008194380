//! An agent that does what the test says.

use std::collections::BTreeMap;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use warren_manager::STREAM_ID_KEY;
use warren_model::NodeTable;
use warren_proto::v1;
use warren_proto::v1::agent_message::{Hello, Kind, Report};
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::manager_message::Kind as Said;

use crate::house::{House, description, node_id, peer, remote, soon};

pub(crate) struct Agent {
    client: DispatchClient<Channel>,
    to: mpsc::Sender<v1::AgentMessage>,
    from: Streaming<v1::ManagerMessage>,
    /// Stream requests that came while something else was awaited.
    streams: Vec<v1::StreamRequest>,
    pub(crate) tasks: BTreeMap<Vec<u8>, v1::AssignedTask>,
    pub(crate) services: BTreeMap<Vec<u8>, v1::AssignedService>,
    pub(crate) revision: u64,
    pub(crate) membership: v1::Membership,
    /// What it must know of the network.
    pub(crate) table: NodeTable,
}

pub(crate) fn hello(letter: char) -> v1::AgentMessage {
    let hello = Hello {
        node_id: node_id(letter).as_bytes().to_vec(),
        description: Some((&description(letter)).into()),
        assigned_revision: 0,
        epoch: 0,
        instance: 1,
    };
    v1::AgentMessage { kind: Some(Kind::Hello(hello)) }
}

pub(crate) type Ends = (mpsc::Sender<v1::Frame>, Streaming<v1::Frame>);

/// Says the last frames of a stream and waits until the manager has read them: whoever drops a
/// call takes back what is still on its way.
pub(crate) async fn finish((to, mut from): Ends, last: Vec<v1::frame::Kind>) {
    for kind in last {
        to.send(v1::Frame { kind: Some(kind) }).await.unwrap();
    }
    drop(to);
    while let Ok(Some(_)) = soon(from.message()).await {}
}

impl Agent {
    /// Says hello and takes the complete set.
    pub(crate) async fn join(house: &House, letter: char) -> Self {
        Self::connect(house.dispatch(remote(Some(peer(letter)))).await, letter).await
    }

    /// The same over a connection that is there.
    pub(crate) async fn connect(mut client: DispatchClient<Channel>, letter: char) -> Self {
        let (to, messages) = mpsc::channel(8);
        to.send(hello(letter)).await.unwrap();
        let from = soon(client.session(ReceiverStream::new(messages))).await.unwrap().into_inner();
        let mut agent = Self {
            client,
            to,
            from,
            streams: Vec::new(),
            tasks: BTreeMap::new(),
            services: BTreeMap::new(),
            revision: 0,
            membership: v1::Membership::default(),
            table: NodeTable::default(),
        };
        let first = agent.assignment().await;
        assert!(first.complete);
        agent
    }

    pub(crate) async fn message(&mut self) -> Result<Option<v1::ManagerMessage>, Status> {
        soon(self.from.message()).await
    }

    /// The next assignment, applied.
    pub(crate) async fn assignment(&mut self) -> v1::Assignment {
        loop {
            match self.message().await.unwrap().unwrap().kind.unwrap() {
                Said::Assignment(assignment) => {
                    self.hold(&assignment);
                    return assignment;
                }
                Said::Stream(request) => self.streams.push(request),
                Said::Beat(_) => {}
            }
        }
    }

    /// Says that it is there and takes the answer's number.
    pub(crate) async fn beat(&mut self, number: u64, rtt_ms: u32) -> u64 {
        let beat = v1::agent_message::Beat { number, rtt_ms };
        self.to.send(v1::AgentMessage { kind: Some(Kind::Beat(beat)) }).await.unwrap();
        loop {
            match self.message().await.unwrap().unwrap().kind.unwrap() {
                Said::Assignment(assignment) => self.hold(&assignment),
                Said::Stream(request) => self.streams.push(request),
                Said::Beat(beat) => return beat.number,
            }
        }
    }

    fn hold(&mut self, assignment: &v1::Assignment) {
        if assignment.complete {
            self.tasks.clear();
            self.services.clear();
        } else {
            assert_eq!(assignment.applies_to, self.revision, "a gap");
        }
        self.revision = assignment.revision;
        if let Some(membership) = &assignment.membership {
            self.membership = membership.clone();
        }
        if let Some(update) = assignment.network.clone() {
            let (change, wrong) = warren_proto::table_change(update);
            assert_eq!(wrong, []);
            self.table.apply(change);
        }
        for id in &assignment.removed_tasks {
            assert!(self.tasks.remove(id).is_some());
        }
        for id in &assignment.removed_services {
            assert!(self.services.remove(id).is_some());
        }
        self.tasks.extend(assignment.tasks.iter().map(|t| (t.id.clone(), t.clone())));
        self.services.extend(assignment.services.iter().map(|s| (s.id.clone(), s.clone())));
    }

    /// Takes assignments until `held` says that they are all there.
    pub(crate) async fn hold_until(&mut self, held: impl Fn(&Self) -> bool) {
        while !held(self) {
            self.assignment().await;
        }
    }

    /// Tasks held that are to run.
    pub(crate) fn running(&self) -> Vec<Vec<u8>> {
        let wanted = i32::from(v1::Desired::Running);
        self.tasks.values().filter(|t| t.desired == wanted).map(|t| t.id.clone()).collect()
    }

    pub(crate) async fn report(&self, tasks: &[Vec<u8>], state: v1::TaskState) {
        let status = |task: &Vec<u8>| v1::agent_message::Status {
            task: task.clone(),
            status: Some(v1::TaskStatus {
                state: state.into(),
                since: 1,
                attempt: 1,
                pid: 42,
                ..Default::default()
            }),
        };
        let report = Report { statuses: tasks.iter().map(status).collect(), ..Report::default() };
        self.to.send(v1::AgentMessage { kind: Some(Kind::Report(report)) }).await.unwrap();
    }

    /// The next request for a stream.
    pub(crate) async fn stream(&mut self) -> v1::StreamRequest {
        loop {
            if !self.streams.is_empty() {
                return self.streams.remove(0);
            }
            match self.message().await.unwrap().unwrap().kind.unwrap() {
                Said::Assignment(assignment) => self.hold(&assignment),
                Said::Stream(request) => return request,
                Said::Beat(_) => {}
            }
        }
    }

    /// Opens the agent's side of a stream.
    pub(crate) async fn tunnel(&mut self, stream_id: u64) -> Result<Ends, Status> {
        let (to, frames) = mpsc::channel(8);
        let mut request = Request::new(ReceiverStream::new(frames));
        let id = stream_id.to_string().parse().unwrap();
        request.metadata_mut().insert(STREAM_ID_KEY, id);
        let from = soon(self.client.tunnel(request)).await?.into_inner();
        Ok((to, from))
    }
}
