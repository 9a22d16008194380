//! The agent with its real tools: containers, links, rules, images.
//!
//! Needs root and a static `/bin/busybox`; says so and passes without them. The
//! node lives in a network namespace and folders of its own, all gone at the end.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::UnshareFlags;
use tokio::sync::watch;
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;
use warren_image::{ImportOptions, Progress, Store, StoreOptions};
use warren_model::NodeId;
use warren_model::node::Description;
use warren_model::service::PublishMode;
use warren_model::task::{Desired, TaskState};
use warren_net::{Net, NetConfig};
use warren_runtime::Runtime;
use warren_runtime::native::{self, Native};
use warren_trust::KeyFile;

use super::manager::{Manager, Managers};
use super::{ONE, Wish, at, port, task_id};
use crate::{Agent, LocalManager, Options};

const POOL: (Ipv4Addr, u8) = (Ipv4Addr::new(10, 128, 0, 0), 10);
/// Attempts in each measurement.
const SAMPLES: u8 = 15;

struct Host {
    dir: tempfile::TempDir,
    key: String,
    manager: Manager,
    store: Store,
    native: Option<Arc<Native>>,
    agent: Option<Agent>,
}

impl Host {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(StoreOptions {
            dir: dir.path().join("images"),
            docker_config: dir.path().join("docker.json"),
            insecure: vec![],
            mirrors: vec![],
            watermarks: None,
        });
        let mut host = Self {
            key: format!("a{:07}", std::process::id() % 10_000_000),
            dir,
            manager: Manager::default(),
            store: store.unwrap(),
            native: None,
            agent: None,
        };
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_path_with_name("/bin/busybox", "bin/busybox").unwrap();
        let options = ImportOptions {
            cmd: ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/"].map(str::to_owned).to_vec(),
            ..ImportOptions::default()
        };
        let archive = std::io::Cursor::new(tar.into_inner().unwrap());
        let name = "web:1".parse().unwrap();
        host.store.import(archive, &name, options, Progress::none()).await.unwrap();
        host.start().await;
        host
    }

    async fn start(&mut self) {
        let options = native::Options {
            run_dir: self.dir.path().join("run"),
            data_dir: self.dir.path().join("data"),
            node_key: self.key.clone(),
        };
        let native = Arc::new(Native::open(options).unwrap());
        let config = NetConfig { node_key: self.key.clone(), pool: POOL, prepared: 4 };
        self.native = Some(native.clone());
        let managers = Managers::default();
        managers.add(at(ONE), self.manager.clone());
        let options = Options {
            node_id: NodeId::from_bytes([9; 10]),
            description: Description::default(),
            runtime: native,
            images: Arc::new(self.store.clone()),
            network: Arc::new(Net::open(config).await.unwrap()),
            net_table: Arc::new(crate::HeldTable::default()),
            names: None,
            tunnel: None,
            name_server: None,
            resolve: Arc::new(crate::fake::FakeHosts::default()),
            probes: Arc::new(crate::NetProbes::default()),
            overlay_device: String::new(),
            ipv6: warren_net::ipv6_enabled(),
            device_folders: Vec::new(),
            data_dir: self.dir.path().join("data"),
            own_folders: Vec::new(),
            key: Arc::new(KeyFile::in_memory([3; 32])),
            pool: POOL,
            clock: Arc::new(RealClock::new()),
            rng: Arc::new(SystemRng),
            connect: Arc::new(managers),
            managers: vec![ONE.to_owned()],
            local: watch::Sender::new(LocalManager::Absent).subscribe(),
        };
        self.agent = Some(Agent::start(options).await.unwrap());
    }

    fn native(&self) -> &Native {
        self.native.as_ref().unwrap()
    }

    /// Containers, folders, control groups and mounts that are left.
    fn remains(&self) -> Vec<PathBuf> {
        let mut remains = Vec::new();
        for folder in ["run/c", "data/containers", "data/logs"] {
            let Ok(entries) = fs::read_dir(self.dir.path().join(folder)) else { continue };
            remains.extend(entries.map(|entry| entry.unwrap().path()));
        }
        remains
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.agent = None;
        let Some(native) = self.native.take() else { return };
        let failed = std::thread::panicking();
        // On a thread of its own: a test that failed is still inside its runtime.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                for info in native.list().await.unwrap() {
                    let _ = native.remove(&info.id).await;
                }
            });
            // The agent's tasks hold it until they have noticed that they are cancelled.
            let begin = Instant::now();
            while Arc::strong_count(&native) > 1 && begin.elapsed() < Duration::from_secs(10) {
                std::thread::yield_now();
            }
            let disposed = Arc::into_inner(native).map(|native| native.dispose());
            if !failed {
                disposed.expect("nobody holds the runtime").unwrap();
            }
        })
        .join()
        .unwrap();
    }
}

#[allow(unsafe_code)]
fn on_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send + 'static) {
    let tools =
        Command::new("ip").arg("-V").output().is_ok() && fs::exists("/bin/busybox").unwrap();
    if !rustix::process::geteuid().is_root() || !tools {
        eprintln!("skipped: needs root, ip and /bin/busybox");
        return;
    }
    let host = std::thread::spawn(|| {
        // SAFETY: only CLONE_FILES would be unsafe: it parts this thread's descriptors from the others'.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async { test(Host::new().await).await });
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A published web server that does not wait to be killed.
fn wish() -> Wish {
    let wish = Wish::new().ports(&[port(8080, PublishMode::Ingress)]);
    wish.template(|template| template.stop_signal = Some("KILL".to_owned()))
}

/// The status line that 127.0.0.1:8080 answers with, or the error.
async fn http() -> String {
    let ask = || -> std::io::Result<String> {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /bin/busybox HTTP/1.0\r\n\r\n")?;
        let mut answer = [0; 15];
        stream.read_exact(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answered = tokio::task::spawn_blocking(ask).await.unwrap();
    answered.unwrap_or_else(|error| error.to_string())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

const OK: &str = "HTTP/1.1 200 OK";

#[test]
fn host_a_service_lives_and_leaves_nothing() {
    on_host(|mut host| async move {
        let mut session = host.manager.session().await;
        let wish = wish().task(1, Desired::Running);
        session.send(wish.complete()).await;
        let first = session.until(task_id(1), TaskState::Running, 1).await;
        assert_eq!(http_ready().await, OK);

        let pid = Pid::from_raw(i32::try_from(first.pid).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
        let second = session.until(task_id(1), TaskState::Running, 2).await;
        assert_eq!(second.exit.unwrap().code, 137);
        assert_eq!(http_ready().await, OK);

        // The daemon dies without a word; another one finds everything as it was.
        host.agent = None;
        assert_eq!(http().await, OK);
        host.start().await;
        let mut session = host.manager.session().await;
        assert_eq!(http().await, OK);
        let mut wish = wish.known(1, &second).task(2, Desired::Running);
        session.send(wish.complete()).await;
        session.until(task_id(2), TaskState::Running, 1).await;
        let listed = host.native().list().await.unwrap();
        assert_eq!(listed.len(), 2, "{listed:?}");
        assert_eq!(http_ready().await, OK);

        wish = wish.task(1, Desired::Remove).task(2, Desired::Remove);
        wish.revision = 2;
        session.send(wish.next(1)).await;
        let (mut one, mut two) = (false, false);
        while !(one && two) {
            for (id, status) in session.report().await {
                let removed = status.state == TaskState::Removed;
                one |= removed && id == task_id(1);
                two |= removed && id == task_id(2);
            }
        }
        assert_eq!(host.remains(), Vec::<PathBuf>::new());
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
        let links = String::from_utf8(links).unwrap();
        assert!(!links.contains(&task_id(1).to_string()), "{links}");
        assert_eq!(http().await, "Connection refused (os error 111)");
    });
}

/// The program needs a moment to listen after it was started.
async fn http_ready() -> String {
    let begin = Instant::now();
    loop {
        let answer = http().await;
        if answer == OK || begin.elapsed() > Duration::from_secs(10) {
            return answer;
        }
        tokio::task::yield_now().await;
    }
}

#[test]
fn host_figures_of_start_and_restart() {
    on_host(|host| async move {
        let mut session = host.manager.session().await;
        let mut wish = wish();
        session.send(wish.complete()).await;
        let (mut starts, mut restarts, mut stops) = (vec![], vec![], vec![]);
        for n in 1..=SAMPLES {
            let id = task_id(n);
            let (before, revision) = (wish.revision, wish.revision + 1);
            wish = wish.task(n, Desired::Running);
            wish.revision = revision;
            let begin = Instant::now();
            session.send(wish.next(before)).await;
            let status = session.until(id, TaskState::Running, 1).await;
            starts.push(begin.elapsed());

            let pid = Pid::from_raw(i32::try_from(status.pid).unwrap()).unwrap();
            let begin = Instant::now();
            kill_process(pid, Signal::KILL).unwrap();
            session.until(id, TaskState::Running, 2).await;
            restarts.push(begin.elapsed());

            wish = wish.task(n, Desired::Remove);
            wish.revision = revision + 1;
            let begin = Instant::now();
            session.send(wish.next(revision)).await;
            session.until(id, TaskState::Removed, 2).await;
            stops.push(begin.elapsed());
        }
        eprintln!(
            "assignment to running {:?}, kill -9 to running {:?}, remove {:?} (medians of {SAMPLES})",
            median(starts),
            median(restarts),
            median(stops),
        );
    });
}
