//! Who is asked, when, and what the agent's loop hears: with containers that answer as told; and
//! real servers for what goes over the network.

use std::sync::Arc;

use tokio::net::TcpListener;
use warren_model::ServiceId;
use warren_model::TaskTemplate;
use warren_model::health::{HealthSpec, Healthcheck};
use warren_proto::grpc_health::health_check_response::ServingStatus;
use warren_proto::grpc_health::health_server::{Health, HealthServer};
use warren_proto::grpc_health::{HealthCheckRequest, HealthCheckResponse};

use super::*;
use crate::core::TaskSpec;
use crate::task::Effect;

fn order(n: u8, health: Healthcheck, port: Option<u16>) -> Order {
    let template = TaskTemplate { image: "web:1".into(), health, ..TaskTemplate::default() };
    Order {
        spec: Arc::new(TaskSpec {
            id: TaskId::from_bytes([n; 10]),
            service: ServiceId::from_bytes([200; 10]),
            slot: 1,
            template_number: 1,
            template: Arc::new(template),
            address: Some(Ipv4Addr::LOCALHOST),
            address6: None,
            given: Default::default(),
            devices: Default::default(),
        }),
        service_name: "web".to_owned(),
        labels: BTreeMap::new(),
        claims: vec![],
        attempt: 1,
        restarts: 0,
        last_exit: None,
        asker: None,
        generation: 0,
        defaults: Default::default(),
        allow_bind: Vec::new(),
        refused: None,
        parted: None,
        port,
        effect: Effect::Wait,
    }
}

fn declared(probe: Probe) -> Healthcheck {
    Healthcheck::Explicit(Box::new(HealthSpec {
        interval_ms: 100,
        start_period_ms: 0,
        retries: 1,
        ..HealthSpec::new(probe)
    }))
}

fn tcp() -> Healthcheck {
    declared(Probe::Tcp { port: 80 })
}

fn exec() -> Healthcheck {
    declared(Probe::Exec(vec!["/ok".to_owned()]))
}

/// Numbers of the tasks whose turn it is, and when it is the next one's.
fn turns(prober: &Prober, now_ms: u64) -> (Vec<Turn>, u64) {
    prober.turns(now_ms, &Metrics::default())
}

#[test]
fn nobody_is_asked_twice_at_once() {
    let prober = Prober::default();
    prober.watch(&order(1, tcp(), None), HealthState::Starting, 0, 0, 0);
    let (first, next) = turns(&prober, 0);
    assert_eq!((first.len(), next), (1, u64::MAX));
    assert!(turns(&prober, 10_000).0.is_empty(), "it has not answered yet");
    let news = prober.hear(&first[0], &Ok(()), 5, 49).map(|news| news.state);
    assert_eq!(news, Some(HealthState::Healthy));
    prober.rest(&first[0]);
    assert_eq!(turns(&prober, 10).1, 50);
    let (second, _) = turns(&prober, 50);
    let news = prober.hear(&second[0], &Err("a\nb".into()), 60, 0).unwrap();
    assert_eq!((news.state, news.output.as_deref()), (HealthState::Unhealthy, Some("a b")));
}

#[test]
fn an_answer_about_an_earlier_attempt_is_nobodys() {
    let prober = Prober::default();
    prober.watch(&order(1, tcp(), None), HealthState::Starting, 0, 0, 0);
    let (old, _) = turns(&prober, 0);
    prober.watch(&Order { attempt: 2, ..order(1, tcp(), None) }, HealthState::Starting, 0, 5, 0);
    assert!(old[0].ask.gone.is_cancelled());
    assert!(prober.hear(&old[0], &Ok(()), 6, 0).is_none());
    prober.rest(&old[0]);
    let (new, _) = turns(&prober, 6);
    assert_eq!((new.len(), new[0].ask.attempt), (1, 2));
    prober.look_away(new[0].ask.task);
    assert!(new[0].ask.gone.is_cancelled());
    prober.rest(&new[0]);
    assert!(turns(&prober, u64::MAX).0.is_empty());
    assert_eq!(prober.lock().net.under_way, 0);
}

#[test]
fn programs_wait_for_each_other_and_hold_up_nobody_else() {
    let prober = Prober::default();
    let count = u8::try_from(EXEC_MAX).unwrap() + 3;
    for n in 0..count {
        prober.watch(&order(n, exec(), None), HealthState::Starting, 0, 0, 0);
    }
    prober.watch(&order(200, tcp(), None), HealthState::Starting, 0, 0, 0);
    let (first, _) = turns(&prober, 0);
    assert_eq!(first.len(), EXEC_MAX + 1);
    assert!(turns(&prober, 1).0.is_empty());
    let ended = first.iter().find(|turn| turn.ask.is_exec()).unwrap();
    prober.hear(ended, &Ok(()), 2, 0);
    prober.rest(ended);
    assert_eq!(turns(&prober, 2).0.len(), 1);
}

#[test]
fn what_is_asked_where_nobody_declared_it() {
    let asked = |health, port| what(&order(1, health, port)).map(|(probe, ..)| probe);
    assert_eq!(asked(Healthcheck::Implicit, Some(80)), Some(Probe::Tcp { port: 80 }));
    assert_eq!(asked(Healthcheck::Implicit, None), None);
    let own = Probe::Tcp { port: 81 };
    assert_eq!(asked(declared(own.clone()), Some(80)), Some(own));
}

#[test]
fn people_are_told_why_a_start_takes_long_and_not_each_time() {
    let prober = Prober::default();
    prober.watch(&order(1, Healthcheck::Implicit, Some(80)), HealthState::Starting, 0, 0, 0);
    let mut told = Vec::new();
    let mut now_ms = 0;
    for n in 0..200 {
        let (turns, next) = turns(&prober, now_ms);
        let why = if n < 100 { "refused" } else { "silent" };
        for turn in &turns {
            let news = prober.hear(turn, &Err(why.to_owned()), now_ms + 1, 0);
            told.extend(news.map(|news| (now_ms >= 1_000, news.state, news.output.unwrap())));
            prober.rest(turn);
        }
        now_ms = next.min(now_ms + 60_000).max(now_ms + 1);
    }
    let starting = HealthState::Starting;
    let said = ["refused", "silent"].map(|why| (true, starting, why.into()));
    assert_eq!(told, said);
}

#[test]
fn output_is_one_short_line() {
    assert_eq!(cut("  a\r\n\tb \u{1b}[31mc "), "a b \u{fffd}[31mc");
    let long = cut(&"ä".repeat(1000));
    assert!(long.len() <= OUTPUT_BYTES && long.ends_with('…'), "{}", long.len());
}

async fn ask(probe: Probe) -> Result<(), String> {
    NetProbes::default().ask(Ipv4Addr::LOCALHOST, &probe).await
}

#[tokio::test]
async fn connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(ask(Probe::Tcp { port }).await, Ok(()));
    drop(listener);
    let refused = format!("connect to 127.0.0.1:{port}: connection refused");
    assert_eq!(ask(Probe::Tcp { port }).await, Err(refused));
}

/// Serves `shop` and nothing else.
struct Shop;

#[tonic::async_trait]
impl Health for Shop {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
        let status = match request.into_inner().service.as_str() {
            "" | "shop" => ServingStatus::Serving,
            "closed" => ServingStatus::NotServing,
            _ => return Err(tonic::Status::not_found("unknown service")),
        };
        Ok(tonic::Response::new(HealthCheckResponse { status: status.into() }))
    }
}

#[tokio::test]
async fn grpc_says_who_serves() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(HealthServer::new(Shop));
    let serving = tokio::spawn(server.serve_with_incoming(incoming));
    let asked = |service: &str| ask(Probe::Grpc { port, service: service.to_owned() });
    assert_eq!(asked("").await, Ok(()));
    assert_eq!(asked("shop").await, Ok(()));
    assert_eq!(asked("closed").await, Err("gRPC health of closed: NOT_SERVING".to_owned()));
    let unknown = "gRPC health of x: NotFound unknown service".to_owned();
    assert_eq!(asked("x").await, Err(unknown));
    serving.abort();
    let _ = serving.await;
    assert!(asked("").await.unwrap_err().starts_with("connect to"));
}

#[tokio::test]
async fn a_server_that_is_none_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let rude = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt;
            // Who asks may be gone already.
            let _ = stream.write_all(b"go away\r\n").await;
        }
    });
    let http = warren_model::health::HttpProbe::new(port, "/");
    let tls = warren_model::health::HttpProbe { tls: true, ..http.clone() };
    let said = ask(Probe::Http(tls)).await.unwrap_err();
    assert!(said.starts_with(&format!("TLS to 127.0.0.1:{port}: ")), "{said}");
    assert!(ask(Probe::Http(http)).await.unwrap_err().contains("is not HTTP"));
    let grpc = ask(Probe::Grpc { port, service: String::new() }).await;
    assert!(grpc.is_err(), "{grpc:?}");
    rude.abort();
}

/// A TLS server of another make, with a certificate that it signed itself; answers with files.
struct Foreign {
    child: std::process::Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Foreign {
    fn start() -> Self {
        use std::io::BufRead;
        use std::process::{Command, Stdio};
        let folder = tempfile::tempdir().unwrap();
        let openssl = |args: &str| {
            let mut command = Command::new("openssl");
            command.args(args.split_whitespace()).current_dir(folder.path());
            command.stdin(Stdio::null()).stderr(Stdio::null());
            command
        };
        let made = openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 \
             -subj /CN=nobody -keyout key.pem -out cert.pem",
        );
        assert!({ made }.status().unwrap().success());
        let mut server = openssl("s_server -accept 127.0.0.1:0 -cert cert.pem -key key.pem -HTTP");
        let mut child = server.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
        let port =
            lines.find_map(|line| line.unwrap().strip_prefix("ACCEPT 127.0.0.1:")?.parse().ok());
        Self { child, folder, port: port.unwrap() }
    }

    async fn ask(&self, file: &str) -> Result<(), String> {
        let asked = warren_model::health::HttpProbe::new(self.port, format!("/{file}"));
        ask(Probe::Http(warren_model::health::HttpProbe { tls: true, ..asked })).await
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[tokio::test]
async fn https_is_asked_whoever_the_certificate_is_for() {
    let server = Foreign::start();
    let file = |name: &str, text: &str| std::fs::write(server.folder.path().join(name), text);
    file("good", "HTTP/1.0 200 OK\r\n\r\nfine\n").unwrap();
    file("bad", "HTTP/1.0 503 Busy\r\n\r\nno\n").unwrap();
    assert_eq!(server.ask("good").await, Ok(()));
    let said = server.ask("bad").await.unwrap_err();
    assert!(said.contains("503"), "{said}");
    assert_eq!(server.ask("good").await, Ok(()));
}
