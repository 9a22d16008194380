//! What machines ask a node: `/health`, `/ready`, `/metrics`, over plain HTTP/1
//! at an address that only the machine itself should reach.
//!
//! `/health` answers as long as the process does. `/ready` looks at each part
//! and says 503 when one does not work. Requests are read only as far as their
//! heads, and both they and connections are bounded.
//!
//! Not here: anything that changes something, anything secret.

mod network;
mod plane;
mod ready;
mod scrape;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use warren_agent::ManagerAddress;
use warren_net::Net;
use warren_runtime::Runtime;

use super::node::Shared;
use super::plane::DataPlane;
use crate::cli::failure::{Exit, Failure};
use ready::Checks;

/// A few that look after the machine, and one who is curious.
const CONNECTIONS_MAX: usize = 32;
/// Of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEAD_MAX: Duration = Duration::from_secs(5);
/// A connection that is kept open for the next question is so for this long.
const CONNECTION_MAX: Duration = Duration::from_secs(300);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const OPEN_METRICS: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

type Answer = http::Response<Full<Bytes>>;

/// Parts of a node that can be asked once they are there.
pub(super) struct Rooms {
    pub(super) shared: Arc<Shared>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) net: Arc<Net>,
    pub(super) agent: Arc<warren_agent::Metrics>,
    pub(super) manager: watch::Receiver<Option<ManagerAddress>>,
    pub(super) pool: (std::net::Ipv4Addr, u8),
    pub(super) plane: Arc<DataPlane>,
}

/// The endpoint, from the beginning of the process to its end.
#[derive(Clone)]
pub(super) struct Admin {
    rooms: Arc<OnceLock<Rooms>>,
    checks: Arc<Checks>,
}

/// # Errors
/// [`Exit::Conflict`] when somebody else listens there.
pub(super) async fn bind(address: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            Failure::new(Exit::Conflict, format!("--admin: {address} is in use"))
                .hint("another node or program listens there; choose another, or off")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            Failure::input(format!("--admin: {address} is no address of this machine"))
        }
        _ => Failure::failed(format!("listen at {address}: {error}")),
    })
}

impl Admin {
    pub(super) fn new() -> Self {
        Self { rooms: Arc::default(), checks: Arc::default() }
    }

    /// From now on there is something to ask.
    pub(super) fn open(&self, rooms: Rooms) {
        // Only the first node of a process is asked; there is no second.
        let _ = self.rooms.set(rooms);
    }

    /// Answers until told to stop.
    pub(super) async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = stop.cancelled() => return,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Closed at once: whoever asks for health again and again must not pile up.
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let (admin, stop) = (self.clone(), stop.clone());
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(&request).await) }
                });
                let mut server = http1::Builder::new();
                server.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX);
                server.max_buf_size(HEAD_BYTES_MAX);
                let serving = server.serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    // Whoever sent what is no HTTP knows by the answer.
                    _ = tokio::time::timeout(CONNECTION_MAX, serving) => {}
                    () = stop.cancelled() => {}
                }
                drop(place);
            });
        }
    }

    async fn answer(&self, request: &http::Request<Incoming>) -> Answer {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut answer = say(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET alone\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/health" => say(StatusCode::OK, TEXT, "ok\n"),
            "/ready" => self.ready().await,
            "/metrics" => self.metrics().await,
            _ => say(StatusCode::NOT_FOUND, TEXT, "there are /health, /ready and /metrics\n"),
        }
    }

    async fn metrics(&self) -> Answer {
        let rooms = self.rooms.get();
        let plane = match rooms {
            Some(rooms) => rooms.plane.status().await,
            None => None,
        };
        let network = match rooms {
            Some(rooms) => Some(network::Figures::ask(&rooms.net).await),
            None => None,
        };
        match scrape::text(rooms, plane.as_ref(), network.as_ref()) {
            Ok(text) => say(StatusCode::OK, OPEN_METRICS, text),
            Err(error) => {
                tracing::error!(%error, "metrics could not be written");
                say(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "metrics cannot be written\n")
            }
        }
    }

    async fn ready(&self) -> Answer {
        let Some(rooms) = self.rooms.get() else {
            let text = json!({"ready": false, "why": "the node is starting"}).to_string();
            return say(StatusCode::SERVICE_UNAVAILABLE, JSON, text + "\n");
        };
        let (ready, object) = self.checks.look(rooms).await;
        let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        say(status, JSON, object.to_string() + "\n")
    }
}

fn say(status: StatusCode, kind: HeaderValue, text: impl Into<Bytes>) -> Answer {
    let mut answer = http::Response::new(Full::new(text.into()));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        let read = stream.read_to_string(&mut answer);
        tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn a_node_that_starts_is_healthy_and_not_ready() {
        let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let taken = bind(address).await.err().unwrap();
        assert_eq!(taken.exit, Exit::Conflict);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(Admin::new().serve(listener, stop.clone()));
        let get =
            |path: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        assert!(ask(address, &get("/health")).await.starts_with("HTTP/1.1 200"));
        let ready = ask(address, &get("/ready")).await;
        assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("starting"), "{ready}");
        let metrics = ask(address, &get("/metrics")).await;
        assert!(metrics.contains("warren_process_open_fds"), "{metrics}");
        assert!(ask(address, &get("/x")).await.starts_with("HTTP/1.1 404"));
        let post = "POST /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert!(ask(address, post).await.starts_with("HTTP/1.1 405"));
        assert!(ask(address, "hello\r\n\r\n").await.starts_with("HTTP/1.1 400"));
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_BYTES_MAX));
        let long = ask(address, &long).await;
        assert!(long.starts_with("HTTP/1.1 4"), "{long}");
        stop.cancel();
        serving.await.unwrap();
    }
}
