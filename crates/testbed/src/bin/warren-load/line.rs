//! A client's connection to one of several servers, of either kind: the next
//! one when it does not answer, by the same rules for both.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use warren_proto::v1;
use warren_proto::v1::control_client::ControlClient;

use crate::etcd::Etcd;

/// An answer that takes longer is not waited for: the same write is tried elsewhere.
const ATTEMPT_LIMIT: Duration = Duration::from_millis(250);
/// Before another server is asked.
const PAUSE: Duration = Duration::from_millis(5);
/// Holds the value, in Warren.
const LABEL: &str = "value";

/// `unix:PATH` is a Warren node's socket, `http://HOST:PORT` an etcd member.
enum Server {
    Warren(ControlClient<Channel>),
    Etcd(Etcd),
}

impl Server {
    async fn dial(endpoint: &str) -> Result<Self> {
        let Some(path) = endpoint.strip_prefix("unix:") else {
            let channel = Endpoint::from_shared(endpoint.to_owned())?.tcp_nodelay(true);
            return Ok(Self::Etcd(Etcd::new(channel.connect().await?)));
        };
        let mut stream = Some(TokioIo::new(UnixStream::connect(path).await?));
        // The address is never looked at: the connector hands out the socket, once.
        let connector = tower::service_fn(move |_| {
            let taken = stream.take();
            async move { taken.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_static("http://warren.invalid");
        let channel = endpoint.connect_with_connector(connector).await?;
        Ok(Self::Warren(ControlClient::new(channel)))
    }

    async fn write(&mut self, write: &Write<'_>) -> Result<()> {
        let control = match self {
            Self::Etcd(etcd) => return Ok(etcd.put(write.key, write.value).await?),
            Self::Warren(control) => control,
        };
        let spec = Some(spec(write.key, write.value));
        let request_id = write.id.to_vec();
        if write.create {
            let request =
                v1::CreateServiceRequest { spec, request_id, no_check: true, ..Default::default() };
            control.create_service(request).await?;
        } else {
            let service = write.key.to_owned();
            let request = v1::UpdateServiceRequest {
                service,
                spec,
                revision: 0,
                request_id,
                no_check: true,
                ..Default::default()
            };
            control.update_service(request).await?;
        }
        Ok(())
    }

    async fn read(&mut self, key: &str) -> Result<u64> {
        let control = match self {
            Self::Etcd(etcd) => return etcd.get(key).await,
            Self::Warren(control) => control,
        };
        let services = vec![key.to_owned()];
        let request = v1::ListServicesRequest { services, min_revision: 0, linearizable: true };
        let answer = control.list_services(request).await?.into_inner();
        let spec = answer.services.into_iter().next().and_then(|service| service.spec);
        let value = spec.and_then(|spec| spec.labels.get(LABEL).cloned());
        value.with_context(|| format!("{key} is gone"))?.parse().context("a number")
    }
}

/// One write; a retry has the same id.
pub(crate) struct Write<'a> {
    pub(crate) key: &'a str,
    pub(crate) value: u64,
    pub(crate) id: [u8; 16],
    /// The key is new. etcd does not care.
    pub(crate) create: bool,
}

/// A client's line to whoever answers.
pub(crate) struct Line {
    endpoints: Vec<String>,
    next: usize,
    server: Option<Server>,
    /// Attempts that brought nothing.
    pub(crate) failed: u64,
    /// Why the last one did.
    pub(crate) trouble: String,
}

impl Line {
    pub(crate) fn new(endpoints: &[String], first: usize) -> Self {
        let (endpoints, trouble) = (endpoints.to_vec(), String::new());
        Self { endpoints, next: first, server: None, failed: 0, trouble }
    }

    /// Whether the write was acknowledged; if not, the next attempt is at another server.
    pub(crate) async fn write(&mut self, write: &Write<'_>) -> bool {
        // A service's specification is large: on the heap.
        let attempt = Box::pin(async {
            self.server().await?.write(write).await?;
            Ok(())
        });
        let outcome = within(attempt).await;
        self.judge(outcome).await.is_some()
    }

    /// The value, if somebody could say it.
    pub(crate) async fn read(&mut self, key: &str) -> Option<u64> {
        let outcome = within(async { self.server().await?.read(key).await }).await;
        self.judge(outcome).await
    }

    async fn server(&mut self) -> Result<&mut Server> {
        if self.server.is_none() {
            let endpoint = &self.endpoints[self.next % self.endpoints.len()];
            self.server = Some(Server::dial(endpoint).await?);
        }
        self.server.as_mut().context("just dialled")
    }

    async fn judge<T>(&mut self, outcome: Result<T>) -> Option<T> {
        match outcome {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.failed += 1;
                self.trouble = format!("{error:#}");
                self.server = None;
                self.next += 1;
                tokio::time::sleep(PAUSE).await;
                None
            }
        }
    }
}

async fn within<T>(attempt: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(ATTEMPT_LIMIT, attempt).await {
        Ok(outcome) => outcome,
        Err(_) => bail!("no answer within {ATTEMPT_LIMIT:?}"),
    }
}

/// A service that runs nothing and carries a value.
fn spec(key: &str, value: u64) -> v1::ServiceSpec {
    use v1::mode::{Kind, Replicated};
    v1::ServiceSpec {
        name: key.to_owned(),
        labels: [(LABEL.to_owned(), value.to_string())].into(),
        mode: Some(v1::Mode { kind: Some(Kind::Replicated(Replicated { replicas: 0 })) }),
        task: Some(v1::TaskTemplate { image: "bb:1".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}
