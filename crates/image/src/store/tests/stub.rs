//! A registry that does what a test wants, over real TCP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::digest::Digest;
use crate::testing::Sample;

/// Between two bytes: well within any patience.
const TRICKLE: std::time::Duration = std::time::Duration::from_millis(50);

#[derive(Debug, Clone)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) authorization: Option<String>,
    pub(super) range: Option<String>,
    pub(super) body: Vec<u8>,
}

#[derive(Clone)]
pub(super) enum Answer {
    Send {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
    },
    /// The headers promise all of it, this many bytes come. Ranges are honoured.
    Truncate {
        body: Vec<u8>,
        after: usize,
    },
    /// Headers and half of the body, then nothing.
    Stall {
        body: Vec<u8>,
    },
    /// Headers, then a byte now and then.
    Trickle {
        body: Vec<u8>,
    },
    /// Nothing at all.
    Hang,
    /// The connection is closed instead.
    Drop,
    /// Spaces without end and without a length, up to this many.
    Endless {
        len: usize,
    },
}

impl Answer {
    pub(super) fn ok(body: &[u8]) -> Self {
        Self::Send { status: 200, headers: Vec::new(), body: body.to_vec() }
    }

    pub(super) fn status(status: u16, headers: &[(&'static str, String)], body: &str) -> Self {
        Self::Send { status, headers: headers.to_vec(), body: body.as_bytes().to_vec() }
    }
}

type Rule = Arc<dyn Fn(&Request) -> Option<Answer> + Send + Sync>;

#[derive(Default)]
struct State {
    answers: BTreeMap<String, Answer>,
    /// Asked first.
    rules: Vec<Rule>,
    gates: BTreeMap<String, Gate>,
    requests: Vec<Request>,
}

/// Holds back one answer.
#[derive(Clone)]
pub(super) struct Gate {
    open: Arc<watch::Sender<bool>>,
    reached: Arc<Notify>,
}

impl Gate {
    pub(super) async fn reached(&self) {
        self.reached.notified().await;
    }

    pub(super) fn open(&self) {
        self.open.send_replace(true);
    }

    async fn pass(&self) {
        self.reached.notify_one();
        let _ = self.open.subscribe().wait_for(|open| *open).await;
    }
}

pub(super) struct Stub {
    pub(super) address: String,
    state: Arc<Mutex<State>>,
    server: tokio::task::JoinHandle<()>,
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Stub {
    pub(super) async fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(socket, Arc::clone(&shared)));
            }
        });
        let stub = Self { address, state, server };
        stub.answer("/v2/", Answer::ok(b"{}"));
        stub
    }

    pub(super) async fn serving(sample: &Sample) -> Self {
        let stub = Self::new().await;
        stub.serve(sample);
        stub
    }

    /// The sample under every repository and tag that the tests use.
    pub(super) fn serve(&self, sample: &Sample) {
        for repository in ["x", "shop/web"] {
            for tag in ["latest", "1", "2"] {
                self.manifest(&format!("/v2/{repository}/manifests/{tag}"), &sample.manifest);
            }
            let digest = Digest::of(&sample.manifest);
            self.manifest(&format!("/v2/{repository}/manifests/{digest}"), &sample.manifest);
            for bytes in sample.layers.iter().chain([&sample.config]) {
                let path = format!("/v2/{repository}/blobs/{}", Digest::of(bytes));
                self.answer(&path, Answer::ok(bytes));
            }
        }
    }

    pub(super) fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }

    pub(super) fn manifest(&self, path: &str, bytes: &[u8]) {
        self.answer(path, Answer::ok(bytes));
    }

    pub(super) fn answer(&self, path: &str, answer: Answer) {
        self.state.lock().unwrap().answers.insert(path.to_owned(), answer);
    }

    pub(super) fn rule(&self, rule: impl Fn(&Request) -> Option<Answer> + Send + Sync + 'static) {
        self.state.lock().unwrap().rules.push(Arc::new(rule));
    }

    pub(super) fn gate(&self, path: &str) -> Gate {
        let gate = Gate { open: Arc::new(watch::channel(false).0), reached: Arc::default() };
        self.state.lock().unwrap().gates.insert(path.to_owned(), gate.clone());
        gate
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().requests.clone()
    }
}

async fn serve(socket: TcpStream, state: Arc<Mutex<State>>) {
    let mut socket = BufReader::new(socket);
    let Some(request) = read_request(&mut socket).await else {
        return;
    };
    let (answer, gate) = {
        let mut state = state.lock().unwrap();
        state.requests.push(request.clone());
        let ruled = state.rules.iter().find_map(|rule| rule(&request));
        let path = request.path.split('?').next().unwrap_or_default();
        let answer = ruled.or_else(|| state.answers.get(path).cloned());
        (answer, state.gates.get(path).cloned())
    };
    if let Some(gate) = gate {
        gate.pass().await;
    }
    if matches!(answer, Some(Answer::Drop)) {
        return;
    }
    let missing = Answer::status(404, &[], "{\"errors\":[{\"code\":\"MANIFEST_UNKNOWN\"}]}");
    let socket = socket.get_mut();
    let _ = write_answer(socket, &request, answer.unwrap_or(missing)).await;
}

async fn read_request(socket: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    socket.read_line(&mut line).await.ok()?;
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut request = Request { method, path, authorization: None, range: None, body: Vec::new() };
    let mut length = 0;
    loop {
        line.clear();
        socket.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            request.body.resize(length, 0);
            socket.read_exact(&mut request.body).await.ok()?;
            return Some(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = Some(value.to_owned()),
            "range" => request.range = Some(value.to_owned()),
            "content-length" => length = value.parse().ok()?,
            _ => {}
        }
    }
}

async fn write_answer(
    socket: &mut TcpStream,
    request: &Request,
    answer: Answer,
) -> std::io::Result<()> {
    let head = |status: u16, length: usize| {
        format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n")
    };
    match answer {
        Answer::Send { status, headers, body } => {
            let mut text = head(status, body.len());
            for (name, value) in headers {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
            socket.write_all(format!("{text}\r\n").as_bytes()).await?;
            if request.method != "HEAD" {
                socket.write_all(&body).await?;
            }
            socket.shutdown().await
        }
        Answer::Truncate { body, after } => {
            let start = request
                .range
                .as_deref()
                .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
                .unwrap_or(0);
            let rest: &[u8] = &body[start..];
            let status = if start > 0 { 206 } else { 200 };
            let range = format!("Content-Range: bytes {start}-{}/{}\r\n", body.len(), body.len());
            socket.write_all(format!("{}{range}\r\n", head(status, rest.len())).as_bytes()).await?;
            socket.write_all(&rest[..after.min(rest.len())]).await?;
            socket.shutdown().await
        }
        Answer::Trickle { body } => {
            socket.write_all(format!("{}\r\n", head(200, body.len())).as_bytes()).await?;
            socket.set_nodelay(true)?;
            for byte in body {
                socket.write_all(&[byte]).await?;
                tokio::time::sleep(TRICKLE).await;
            }
            socket.shutdown().await
        }
        Answer::Stall { body } => {
            socket.write_all(format!("{}\r\n", head(200, body.len())).as_bytes()).await?;
            socket.write_all(&body[..body.len() / 2]).await?;
            std::future::pending().await
        }
        Answer::Hang => std::future::pending().await,
        Answer::Drop => Ok(()),
        Answer::Endless { len } => {
            socket.write_all(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n").await?;
            let piece = vec![b' '; 1 << 16];
            for _ in 0..len / piece.len() {
                socket.write_all(&piece).await?;
            }
            socket.shutdown().await
        }
    }
}
