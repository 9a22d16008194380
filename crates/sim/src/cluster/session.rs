//! A session between an agent and a manager: the manager's real service, called
//! without a socket in between, over two pipes.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body, Frame};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tonic::codec::Codec;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use warren_proto::v1;
use warren_proto::v1::dispatch_server::Dispatch;

use super::host::{Host, Life};
use super::net::{Entry, Kind, pipe};
use super::wire::caller;
use super::world::World;

/// What a manager says, or how the session ended.
pub(crate) type Told = Result<v1::ManagerMessage, Status>;

/// An open session, at the agent's end.
pub(crate) struct Session {
    pub(crate) said: Entry<v1::AgentMessage>,
    pub(crate) told: mpsc::UnboundedReceiver<Told>,
    pub(crate) with: Arc<Host>,
}

/// Messages as they come in over HTTP/2.
struct Messages(mpsc::UnboundedReceiver<v1::AgentMessage>);

impl Body for Messages {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|message| {
            let bytes = message?.encode_to_vec();
            let mut framed = BytesMut::with_capacity(bytes.len() + 5);
            framed.put_u8(0);
            framed.put_u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
            framed.put_slice(&bytes);
            Some(Ok(Frame::data(framed.freeze())))
        })
    }
}

fn gone() -> Status {
    Status::unavailable("nobody listens")
}

/// Opens a session of `host` with the manager on `with`.
pub(crate) async fn open(
    world: Arc<World>,
    host: Arc<Host>,
    with: Arc<Host>,
    hello: v1::agent_message::Hello,
) -> Result<Session, Status> {
    let silence = futures::future::pending::<()>;
    if !world.net.pass(host.place, with.place).await {
        silence().await;
    }
    let Some((life, running)) = with.running() else {
        if !world.net.pass(with.place, host.place).await {
            silence().await;
        }
        return Err(gone());
    };
    let (said, mut heard) = pipe(&world.net, host.place, with.place, Kind::Stream);
    let (into, messages) = mpsc::unbounded_channel();
    let kind = Some(v1::agent_message::Kind::Hello(hello));
    // The other end is in the next line.
    let _ = into.send(v1::AgentMessage { kind });
    let (watched, from, to) = (Arc::clone(&world), host.node, with.place);
    tokio::spawn(async move {
        while let Some(message) = heard.recv().await {
            watched.heard(to, from, &message);
            if into.send(message).is_err() {
                return;
            }
        }
    });
    let decoder = ProstCodec::<v1::ManagerMessage, v1::AgentMessage>::default().decoder();
    let mut request = Request::new(Streaming::new_request(decoder, Messages(messages), None, None));
    request.extensions_mut().insert(caller(&world, &host, host.number().is_some()));
    let dispatch = running.manager.dispatch();
    drop(running);
    let answered = tokio::select! {
        answered = dispatch.session(request) => answered,
        () = life.ended() => Err(gone()),
    };
    drop(dispatch);
    if with.is_off() || !world.net.pass(with.place, host.place).await {
        silence().await;
    }
    let mut stream = answered?.into_inner();
    let (tell, told) = pipe(&world.net, with.place, host.place, Kind::Stream);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                message = stream.next() => match message {
                    Some(message) => tell.send(message),
                    None => return,
                },
                () = life.ended() => return ended(&life, tell).await,
            }
        }
    });
    Ok(Session { said, told, with })
}

/// A process that dies closes its connections; a machine without power does not.
async fn ended(life: &Life, tell: Entry<Told>) {
    if life.silent.load(Ordering::Relaxed) {
        tell.silent().await;
    }
}
