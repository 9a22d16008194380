//! Containers that only exist on paper, and outlive the agent.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::io::AsyncReadExt;
use tokio::sync::{mpsc, oneshot, watch};
use warren_base::clock::Clock;
use warren_runtime::{
    ContainerInfo, ContainerSpec, ContainerState, Error, Exec, ExecControl, ExecSpec, Exit,
    LogLine, LogQuery, Process, Runtime, Started, Usage,
};

pub(super) struct Pretend {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    containers: BTreeMap<String, Container>,
    /// Every container ever started, in order.
    started: Vec<String>,
    removed: Vec<String>,
    paused: BTreeSet<String>,
    refusal: Option<String>,
    logs: BTreeMap<PathBuf, Vec<LogLine>>,
    pid: u32,
}

struct Container {
    spec: ContainerSpec,
    pid: u32,
    at: SystemTime,
    exit: watch::Sender<Option<Exit>>,
}

impl Pretend {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.clock.now_ms())
    }

    /// The program ends by itself.
    pub(super) fn end(&self, id: &str, code: i32) {
        let at = self.now();
        let exit = Exit { code, signal: None, oom_killed: false, supervisor_lost: false, at };
        let state = self.lock();
        let container = state.containers.get(id).unwrap_or_else(|| panic!("no container {id}"));
        container.exit.send_if_modified(|slot| {
            let ends = slot.is_none();
            if ends {
                *slot = Some(exit);
            }
            ends
        });
    }

    /// As after a power failure: nothing is left.
    pub(super) fn power_off(&self) {
        self.lock().containers.clear();
    }

    pub(super) fn refuse(&self, why: Option<&str>) {
        self.lock().refusal = why.map(str::to_owned);
    }

    pub(super) fn started(&self) -> Vec<String> {
        self.lock().started.clone()
    }

    pub(super) fn running(&self) -> Vec<String> {
        let state = self.lock();
        let runs = state.containers.iter().filter(|(_, c)| c.exit.borrow().is_none());
        runs.map(|(id, _)| id.clone()).collect()
    }

    pub(super) fn known(&self) -> Vec<String> {
        self.lock().containers.keys().cloned().collect()
    }

    pub(super) fn spec(&self, id: &str) -> ContainerSpec {
        self.lock().containers[id].spec.clone()
    }

    /// A container that is in nobody's name.
    pub(super) async fn plant(&self, id: &str, like: &str) {
        let mut spec = self.spec(like);
        spec.id = id.to_owned();
        spec.labels.clear();
        self.start(spec).await.unwrap();
    }

    pub(super) fn log(&self, dir: PathBuf, at_ms: u64, line: &str) {
        let line = LogLine {
            at: UNIX_EPOCH + Duration::from_millis(at_ms),
            stream: warren_runtime::Stream::Stdout,
            line: line.as_bytes().to_vec(),
        };
        self.lock().logs.entry(dir).or_default().push(line);
    }
}

fn not_found(id: &str) -> Error {
    Error::NotFound(id.to_owned())
}

#[async_trait]
impl Runtime for Pretend {
    async fn start(&self, spec: ContainerSpec) -> Result<Started, Error> {
        let at = self.now();
        let mut state = self.lock();
        if let Some(why) = &state.refusal {
            return Err(Error::Rejected(why.clone()));
        }
        state.pid += 1;
        let (id, pid) = (spec.id.clone(), state.pid);
        let container = Container { spec, pid, at, exit: watch::Sender::new(None) };
        let twice = state.containers.insert(id.clone(), container);
        assert!(twice.is_none(), "container {id} was started twice");
        state.started.push(id);
        Ok(Started { pid, at })
    }

    async fn wait(&self, id: &str) -> Result<Exit, Error> {
        let mut exit = {
            let state = self.lock();
            state.containers.get(id).ok_or_else(|| not_found(id))?.exit.subscribe()
        };
        let ended = exit.wait_for(Option::is_some).await.map_err(|_| not_found(id))?;
        Ok(ended.clone().unwrap())
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        self.end(id, 128 + signal);
        Ok(())
    }

    async fn stop(&self, id: &str, _: Duration) -> Result<Exit, Error> {
        if !self.lock().containers.contains_key(id) {
            return Err(not_found(id));
        }
        self.end(id, 143);
        self.wait(id).await
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        let mut state = self.lock();
        if state.containers.remove(id).is_some() {
            state.removed.push(id.to_owned());
        }
        Ok(())
    }

    async fn exec(&self, id: &str, exec: ExecSpec) -> Result<Exec, Error> {
        if !self.lock().containers.contains_key(id) {
            return Err(not_found(id));
        }
        if exec.args[0] == "missing" {
            return Err(Error::Rejected("missing: not found".to_owned()));
        }
        let (stdin, mut typed) = tokio::io::duplex(1024);
        let (mut echo, stdout) = tokio::io::duplex(1024);
        let (done, code) = oneshot::channel();
        // As `cat`: what comes in goes out, and at the end of input it ends.
        tokio::spawn(async move {
            let copied = tokio::io::copy(&mut typed, &mut echo).await;
            let _ = done.send(if copied.is_ok() { 7 } else { 1 });
        });
        Ok(Exec {
            stdin: exec.stdin.then(|| Box::new(stdin) as _),
            stdout: Box::new(stdout),
            stderr: Some(Box::new(Cursor::new(exec.args.join(" ").into_bytes()).take(99))),
            control: Box::new(Control { code: Some(code), ended: None }),
        })
    }

    async fn attach(&self, id: &str) -> Result<Exec, Error> {
        let args = vec!["attached".to_owned()];
        self.exec(id, ExecSpec { args, stdin: true, ..ExecSpec::default() }).await
    }

    async fn pause(&self, id: &str, paused: bool) -> Result<(), Error> {
        let mut state = self.lock();
        if !state.containers.contains_key(id) {
            return Err(not_found(id));
        }
        match paused {
            true => state.paused.insert(id.to_owned()),
            false => state.paused.remove(id),
        };
        Ok(())
    }

    async fn usage(&self, id: &str) -> Result<Usage, Error> {
        let known = self.lock().containers.contains_key(id);
        let usage = Usage { cpu_ns: 7, memory_limit: Some(9), ..Usage::default() };
        known.then_some(usage).ok_or_else(|| not_found(id))
    }

    async fn processes(&self, id: &str) -> Result<Vec<Process>, Error> {
        let known = self.lock().containers.contains_key(id);
        known.then(Vec::new).ok_or_else(|| not_found(id))
    }

    async fn root(&self, id: &str) -> Result<OwnedFd, Error> {
        match self.lock().containers.contains_key(id) {
            true => Err(Error::Unsupported("no files".to_owned())),
            false => Err(not_found(id)),
        }
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        let state = self.lock();
        let info = |(id, container): (&String, &Container)| ContainerInfo {
            id: id.clone(),
            labels: container.spec.labels.clone(),
            paused: state.paused.contains(id),
            state: match container.exit.borrow().clone() {
                None => ContainerState::Running { pid: container.pid, started_at: container.at },
                Some(exit) => ContainerState::Exited(exit),
            },
        };
        Ok(state.containers.iter().map(info).collect())
    }

    async fn kept(&self, id: &str, label: &str) -> Result<Option<OwnedFd>, Error> {
        let state = self.lock();
        let container = state.containers.get(id).ok_or_else(|| not_found(id))?;
        let kept = container.spec.keep.iter().find(|(name, _)| name == label);
        Ok(kept.map(|(_, fd)| fd.try_clone().unwrap()))
    }

    async fn logs(&self, dir: PathBuf, query: LogQuery) -> Result<mpsc::Receiver<LogLine>, Error> {
        let mut lines = self.lock().logs.get(&dir).cloned().unwrap_or_default();
        lines.retain(|line| query.since.is_none_or(|since| line.at >= since));
        let skip = lines.len() - query.tail.unwrap_or(lines.len()).min(lines.len());
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            for line in lines.into_iter().skip(skip) {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
            if query.follow {
                sender.closed().await;
            }
        });
        Ok(receiver)
    }
}

struct Control {
    code: Option<oneshot::Receiver<i32>>,
    ended: Option<i32>,
}

#[async_trait]
impl ExecControl for Control {
    async fn resize(&mut self, _: u16, _: u16) -> Result<(), Error> {
        Ok(())
    }

    async fn signal(&mut self, signal: i32) -> Result<(), Error> {
        self.ended = Some(128 + signal);
        Ok(())
    }

    async fn wait(&mut self) -> Result<i32, Error> {
        match (self.ended, &mut self.code) {
            (Some(code), _) => Ok(code),
            (None, Some(code)) => Ok(code.await.unwrap_or(1)),
            (None, None) => Ok(1),
        }
    }
}
