//! What answers on the node's own socket: the manager here, or what stands in
//! for it while there is none.
//!
//! A node may become a manager and cease to be one while it runs, and start
//! locked; the socket stays the same. A call is served by whoever is behind the
//! door when it comes.
//!
//! Not here: who may use the socket, which is its file mode's to say.

mod local;

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use arc_swap::ArcSwap;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;
use warren_manager::Control;
use warren_proto::v1::control_server::ControlServer;

use crate::cli::FORGET_KEY;
pub(crate) use local::{Local, Unlocking};

pub(crate) type Request = http::Request<Body>;
pub(crate) type Response = http::Response<Body>;
type Answer = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

/// Full names of calls begin with it.
const PREFIX: &str = "/warren.v1.Control/";

/// Who answers.
#[derive(Clone)]
pub(crate) enum Behind {
    /// The node is starting or stopping.
    Nobody,
    /// Nothing but the unlock key is of use.
    Locked(Arc<Unlocking>),
    /// A node that is no manager.
    Local(Arc<Local>),
    Manager(ControlServer<Control>),
}

#[derive(Clone)]
pub(crate) struct Door(Arc<Shared>);

struct Shared {
    behind: ArcSwap<Behind>,
    /// The last thing that was asked of the whole node was to leave the cluster.
    leaving: AtomicBool,
}

impl Door {
    pub(crate) fn new(behind: Behind) -> Self {
        let behind = ArcSwap::from_pointee(behind);
        Self(Arc::new(Shared { behind, leaving: AtomicBool::new(false) }))
    }

    pub(crate) fn set(&self, behind: Behind) {
        self.0.behind.store(Arc::new(behind));
    }

    /// Whether a stop that comes now is the end of a leave.
    pub(crate) fn is_leaving(&self) -> bool {
        self.0.leaving.load(Ordering::Acquire)
    }
}

impl NamedService for Door {
    const NAME: &'static str = "warren.v1.Control";
}

impl Service<Request> for Door {
    type Response = Response;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Answer {
        match method(&request) {
            "LeaveCluster" => self.0.leaving.store(true, Ordering::Release),
            "StopNode" => {
                let leaving = request.headers().contains_key(FORGET_KEY);
                self.0.leaving.store(leaving, Ordering::Release);
            }
            _ => {}
        }
        match self.0.behind.load().as_ref() {
            Behind::Nobody => {
                refuse(Status::unavailable("the node is starting or stopping; try again"))
            }
            Behind::Locked(locked) => {
                let locked = Arc::clone(locked);
                Box::pin(async move { Ok(locked.serve(request).await) })
            }
            Behind::Local(local) => {
                let local = Arc::clone(local);
                Box::pin(async move { Ok(local.serve(request).await) })
            }
            Behind::Manager(control) => control.clone().call(request),
        }
    }
}

/// The call's own name.
fn method(request: &Request) -> &str {
    request.uri().path().strip_prefix(PREFIX).unwrap_or_default()
}

fn refuse(status: Status) -> Answer {
    Box::pin(async move { Ok(status.into_http()) })
}

/// A refusal with a hint, as managers give them.
pub(crate) fn refusal(code: tonic::Code, message: &str, hint: &str) -> Status {
    let mut status = Status::new(code, message);
    if let Ok(hint) = hint.parse() {
        status.metadata_mut().insert(warren_manager::HINT_KEY, hint);
    }
    status
}
