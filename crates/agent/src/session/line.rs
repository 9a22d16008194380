//! An open session: both directions, and the pulse that tells whether anybody
//! is there.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;
use warren_model::node::Description;
use warren_proto::v1;
use warren_proto::v1::agent_message::Kind as Saying;
use warren_proto::v1::dispatch_client::DispatchClient;
use warren_proto::v1::manager_message::Kind;

use super::{BEAT_MS, End, Session, refusal};
use crate::assignments::Assignment;
use crate::cdi::Names;
use crate::core::Input;
use crate::cuts::Cuts;
use crate::disk::disk;
use crate::metrics::{count, gauge};
use crate::pulse::{Look, Pulse};
use crate::rotation::Said;
use crate::stream;
use crate::worker::{Holding, Message};

/// Messages towards the manager that wait in the line; reports coalesce behind them.
const REPORTS_MAX: usize = 4;
/// Beats that wait: a second one would say the same.
const BEATS_MAX: usize = 2;
/// A complete set of a node with a thousand tasks has about a megabyte.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

pub(super) struct Line {
    channel: Channel,
    incoming: Streaming<v1::ManagerMessage>,
    beats: mpsc::Sender<v1::AgentMessage>,
    pulse: Pulse,
    /// What hello said of the tunnel's keys, and what there is to say since.
    said: (Said, watch::Receiver<Said>),
    /// What was told of whom this node does not reach, and what there is to tell.
    cuts: (Cuts, watch::Receiver<Cuts>),
    /// Likewise of devices.
    devices: (Arc<Names>, watch::Receiver<Arc<Names>>),
    /// When hello was sent, until something came back.
    hello_ms: Option<u64>,
}

impl Line {
    /// Says hello and waits for the manager to take it.
    pub(super) async fn open(
        session: &Session,
        channel: Channel,
        held: Holding,
        patience_ms: u64,
    ) -> Result<Self, End> {
        let said = session.tools.said.subscribe();
        let mut devices = session.tools.devices.names();
        let named = Arc::clone(&devices.borrow_and_update());
        let description = described(session, &named).await;
        let keys = [description.overlay_key, description.overlay_key_other];
        let hello = v1::agent_message::Hello {
            node_id: session.tools.node.as_bytes().to_vec(),
            description: Some(v1::NodeDescription::from(&description)),
            assigned_revision: held.revision,
            epoch: held.epoch,
            instance: session.instance,
        };
        let hello_ms = session.now_ms();
        let hello = v1::AgentMessage { kind: Some(Saying::Hello(hello)) };
        let (reports, reported) = mpsc::channel(REPORTS_MAX);
        let (beats, beating) = mpsc::channel(BEATS_MAX);
        // Reports that fill their line must not hold up a beat.
        let more = ReceiverStream::new(reported).merge(ReceiverStream::new(beating));
        let outgoing = tokio_stream::once(hello).chain(more);
        let mut client =
            DispatchClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let answered = client.session(outgoing).await.map_err(refusal)?;
        let resumed = held.revision > 0;
        session.tools.channel.send_replace(Some(channel.clone()));
        session.tools.tell(Message::Session { reports, resumed }).await;
        let beat_ms = beat_ms(session);
        let pulse = Pulse::new(beat_ms, patience_ms, session.now_ms());
        let incoming = answered.into_inner();
        let hello_ms = Some(hello_ms);
        let cuts = (None, session.tools.cuts.subscribe());
        let (said, devices) = ((keys, said), (named, devices));
        Ok(Self { channel, incoming, beats, pulse, said, devices, cuts, hello_ms })
    }

    /// Runs until the session is over.
    pub(super) async fn run(&mut self, session: &mut Session) -> Result<Infallible, End> {
        let mut membership = session.membership.clone();
        let ended = loop {
            let wake = session.tools.clock.sleep_until(self.pulse.wake_ms());
            tokio::select! {
                biased;
                message = self.incoming.message() => match message {
                    Ok(Some(message)) => self.receive(session, message).await,
                    Ok(None) => break End::Closed,
                    Err(status) => break refusal(status),
                },
                () = differs(&mut self.said) => break End::Described,
                place = room(self.beats.clone(), &mut self.cuts) => {
                    let told = self.cuts.1.borrow().clone();
                    let cuts = told.as_deref().cloned().unwrap_or_default();
                    let report = v1::agent_message::Report {
                        cuts,
                        cuts_told: true,
                        ..v1::agent_message::Report::default()
                    };
                    place.send(v1::AgentMessage { kind: Some(Saying::Report(report)) });
                    self.cuts.0 = told;
                }
                () = differs(&mut self.devices) => break End::Described,
                gap = session.gaps.recv() => break gap.map_or(End::Stopping, End::Gap),
                () = changed(&mut membership) => {
                    self.pulse.set_beat_ms(beat_ms(session), session.now_ms());
                }
                () = wake => if let Some(end) = self.look(session) { break end },
            }
        };
        count(&session.metrics().beats_missed, self.pulse.unanswered());
        Err(ended)
    }

    fn look(&mut self, session: &Session) -> Option<End> {
        match self.pulse.look(session.now_ms()) {
            Look::Wait => None,
            Look::Silent { for_ms } => Some(End::Silent { for_ms }),
            Look::Beat { number, rtt_ms } => {
                let kind = Some(Saying::Beat(v1::agent_message::Beat { number, rtt_ms }));
                // Full: two wait already, and the line will be found silent.
                let _ = self.beats.try_send(v1::AgentMessage { kind });
                None
            }
        }
    }

    async fn receive(&mut self, session: &Session, message: v1::ManagerMessage) {
        let now_ms = session.now_ms();
        self.pulse.heard(now_ms);
        if let Some(sent_ms) = self.hello_ms.take() {
            let input = Input::Heard { sent_ms };
            session.tools.tell(Message::Input(Box::new(input))).await;
        }
        match message.kind {
            Some(Kind::Assignment(message)) => {
                let assignment = Assignment::from(message);
                for problem in &assignment.problems {
                    tracing::error!(problem, "assignment is not understood in full");
                }
                let input = Input::Assigned(Box::new(assignment));
                session.tools.tell(Message::Input(Box::new(input))).await;
            }
            Some(Kind::Stream(request)) => {
                let (tools, channel) = (Arc::clone(&session.tools), self.channel.clone());
                session.tasks.spawn("stream", async move {
                    stream::serve(&tools, channel, request).await;
                });
            }
            Some(Kind::Beat(beat)) => {
                let Some(answer) = self.pulse.answered(beat.number, now_ms) else { return };
                let metrics = session.metrics();
                count(&metrics.beats_missed, answer.missed);
                gauge(&metrics.rtt_ms, self.pulse.rtt_ms().into());
                let input = Input::Heard { sent_ms: answer.sent_ms };
                session.tools.tell(Message::Input(Box::new(input))).await;
            }
            // A newer manager says something we do not know: not for us.
            None => tracing::debug!("message of an unknown kind"),
        }
    }
}

/// As it is now: disks fill.
async fn described(session: &Session, devices: &Names) -> Description {
    let folder = session.tools.data_dir.clone();
    let looked = tokio::task::spawn_blocking(move || disk(&folder)).await.ok().flatten();
    let mut description = session.description.clone();
    description.devices.clone_from(devices);
    if session.tools.tunnel.is_some() {
        [description.overlay_key, description.overlay_key_other] = *session.tools.said.borrow();
    }
    if let Some(disk) = looked {
        description.disk_bytes = disk.bytes;
        description.disk_free_bytes = disk.free_bytes;
    }
    description
}

fn beat_ms(session: &Session) -> u64 {
    let told = session.membership.borrow().as_ref().map_or(0, |view| view.beat_ms);
    if told == 0 { BEAT_MS } else { told }
}

/// Resolves when there is something else to tell of whom this node does not reach, and room for it.
async fn room(
    beats: mpsc::Sender<v1::AgentMessage>,
    (told, now): &mut (Cuts, watch::Receiver<Cuts>),
) -> mpsc::OwnedPermit<v1::AgentMessage> {
    let differs = now.wait_for(|now| now.is_some() && now != told).await.is_ok();
    match beats.reserve_owned().await {
        Ok(place) if differs => place,
        // Senders and receivers are the agent's own, and the session ends with either.
        Ok(_) | Err(_) => std::future::pending().await,
    }
}

/// Resolves when there is something else to say than was said.
async fn differs<T: PartialEq>((said, now): &mut (T, watch::Receiver<T>)) {
    // The sender is the agent's own and lives as long as this.
    if now.wait_for(|now| now != said).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves at the next change; never when there will be none.
async fn changed<T>(watched: &mut watch::Receiver<T>) {
    if watched.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
