//! Containers in memory, for tests of the layers above.
//!
//! A [`Script`] decides what each start does; tests end containers, take them away and look at what
//! was asked. Time stands still until [`Fake::set_now`]. Containers belong to the `Fake`, so that an
//! agent that is dropped and made anew finds them, as it would real ones.
//!
//! Not here: processes, files, isolation; an exec gives its input back.

use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use tokio::sync::{broadcast, mpsc, watch};

use crate::{
    ContainerInfo, ContainerSpec, ContainerState, Error, Exec, ExecControl, ExecSpec, Exit,
    LogLine, LogQuery, Process, Runtime, Started, Usage,
};

/// Bytes of an exec's input on their way back; any program reads and writes in smaller pieces.
const EXEC_BUFFER: usize = 4096;
/// Lines that a follower may be behind; tests write far fewer.
const LINES: usize = 1024;

/// What a program does once it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// Runs until a signal ends it.
    Runs,
    /// Runs until SIGKILL.
    Deaf,
    /// Ends at once with this code.
    Ends(i32),
    /// Is never started: the specification is rejected with this text.
    Refused(String),
}

type Script = Box<dyn FnMut(&ContainerSpec) -> Program + Send>;

/// In-memory containers.
pub struct Fake {
    state: Mutex<State>,
    lines: broadcast::Sender<(PathBuf, LogLine)>,
}

struct State {
    now: SystemTime,
    script: Script,
    containers: BTreeMap<String, Container>,
    started: Vec<ContainerSpec>,
    signals: Vec<(String, i32)>,
    logs: BTreeMap<PathBuf, Vec<LogLine>>,
    pid: u32,
}

struct Container {
    spec: ContainerSpec,
    started: Started,
    deaf: bool,
    paused: bool,
    exit: watch::Sender<Option<Exit>>,
}

impl fmt::Debug for Fake {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Fake").field("running", &self.running()).finish_non_exhaustive()
    }
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    /// No containers, 1970, and programs that run until they are told to end.
    pub fn new() -> Self {
        let state = State {
            now: UNIX_EPOCH,
            script: Box::new(|_| Program::Runs),
            containers: BTreeMap::new(),
            started: Vec::new(),
            signals: Vec::new(),
            logs: BTreeMap::new(),
            pid: 1,
        };
        Self { state: Mutex::new(state), lines: broadcast::Sender::new(LINES) }
    }

    /// Decides what the next starts do.
    pub fn script(&self, script: impl FnMut(&ContainerSpec) -> Program + Send + 'static) {
        self.lock().script = Box::new(script);
    }

    /// The time of starts and ends from now on.
    pub fn set_now(&self, now: SystemTime) {
        self.lock().now = now;
    }

    /// A running program ends by itself. Does nothing when it has ended.
    pub fn end(&self, id: &str, code: i32) {
        self.end_with(id, |exit| exit.code = code);
    }

    /// As [`Fake::end`], with every detail of the exit open.
    pub fn end_with(&self, id: &str, change: impl FnOnce(&mut Exit)) {
        let state = self.lock();
        let mut exit = Exit {
            code: 0,
            signal: None,
            oom_killed: false,
            supervisor_lost: false,
            at: state.now,
        };
        change(&mut exit);
        if let Some(container) = state.containers.get(id) {
            container.end(exit);
        }
    }

    /// As a power cut: containers are gone, logs stay.
    pub fn lose_all(&self) {
        self.lock().containers.clear();
    }

    /// Every specification that was started, in order.
    pub fn started(&self) -> Vec<ContainerSpec> {
        self.lock().started.clone()
    }

    /// Signals that were sent, those of `stop` included.
    pub fn signals(&self) -> Vec<(String, i32)> {
        self.lock().signals.clone()
    }

    /// Ids of containers that run.
    pub fn running(&self) -> Vec<String> {
        let state = self.lock();
        let runs = state.containers.iter().filter(|(_, container)| container.exit().is_none());
        runs.map(|(id, _)| id.clone()).collect()
    }

    /// A line that a container prints.
    pub fn print(&self, dir: PathBuf, line: LogLine) {
        let mut state = self.lock();
        state.logs.entry(dir.clone()).or_default().push(line.clone());
        // Nobody follows: fine.
        let _ = self.lines.send((dir, line));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Container {
    fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let is_first = known.is_none();
            known.get_or_insert(exit);
            is_first
        });
    }
}

impl State {
    fn find(&self, id: &str) -> Result<&Container, Error> {
        self.containers.get(id).ok_or_else(|| Error::NotFound(id.to_owned()))
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Error> {
        let container = self.find(id)?;
        if container.exit().is_some() {
            return Err(Error::NotRunning(id.to_owned()));
        }
        if signal == libc::SIGKILL || !container.deaf {
            container.end(Exit {
                code: 128 + signal,
                signal: Some(signal),
                oom_killed: false,
                supervisor_lost: false,
                at: self.now,
            });
        }
        self.signals.push((id.to_owned(), signal));
        Ok(())
    }
}

#[async_trait]
impl Runtime for Fake {
    async fn start(&self, spec: ContainerSpec) -> Result<Started, Error> {
        let mut state = self.lock();
        if let Some(container) = state.containers.get(&spec.id) {
            return Ok(container.started.clone());
        }
        let program = (state.script)(&spec);
        if let Program::Refused(why) = program {
            return Err(Error::Rejected(why));
        }
        state.pid += 1;
        let started = Started { pid: state.pid, at: state.now };
        let container = Container {
            spec: spec.clone(),
            started: started.clone(),
            deaf: program == Program::Deaf,
            paused: false,
            exit: watch::Sender::new(None),
        };
        if let Program::Ends(code) = program {
            let at = state.now;
            let exit = Exit { code, signal: None, oom_killed: false, supervisor_lost: false, at };
            container.end(exit);
        }
        state.containers.insert(spec.id.clone(), container);
        state.started.push(spec);
        Ok(started)
    }

    async fn wait(&self, id: &str) -> Result<Exit, Error> {
        let mut exit = self.lock().find(id)?.exit.subscribe();
        let gone = || Error::NotFound(id.to_owned());
        let known = exit.wait_for(Option::is_some).await.map_err(|_| gone())?;
        known.clone().ok_or_else(gone)
    }

    async fn signal(&self, id: &str, signal: i32) -> Result<(), Error> {
        self.lock().signal(id, signal)
    }

    async fn stop(&self, id: &str, grace: Duration) -> Result<Exit, Error> {
        let sent = {
            let mut state = self.lock();
            let signal = state.find(id)?.spec.stop_signal;
            state.signal(id, signal)
        };
        match sent {
            Ok(()) | Err(Error::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
        if let Ok(exit) = tokio::time::timeout(grace, self.wait(id)).await {
            return exit;
        }
        // It may have ended right now.
        let _ = self.lock().signal(id, libc::SIGKILL);
        self.wait(id).await
    }

    async fn remove(&self, id: &str) -> Result<(), Error> {
        let mut state = self.lock();
        // Who waits learns that it was killed.
        let _ = state.signal(id, libc::SIGKILL);
        state.containers.remove(id);
        Ok(())
    }

    async fn exec(&self, id: &str, exec: ExecSpec) -> Result<Exec, Error> {
        let mut ended = {
            let state = self.lock();
            let container = state.find(id)?;
            if container.exit().is_some() {
                return Err(Error::NotRunning(id.to_owned()));
            }
            container.exit.subscribe()
        };
        let (stdin, mut input) = tokio::io::duplex(EXEC_BUFFER);
        let (mut output, stdout) = tokio::io::duplex(EXEC_BUFFER);
        let (code, watched) = watch::channel(None);
        let has_stdin = exec.stdin;
        tokio::spawn(async move {
            let echo = async {
                if has_stdin {
                    // A reader that went away ends it like a program that gets SIGPIPE.
                    let _ = tokio::io::copy(&mut input, &mut output).await;
                }
                let _ = output.shutdown().await;
                0
            };
            let result = tokio::select! {
                result = echo => result,
                _ = ended.wait_for(Option::is_some) => 128 + libc::SIGKILL,
            };
            code.send_replace(Some(result));
        });
        Ok(Exec {
            stdin: has_stdin.then(|| Box::new(stdin) as _),
            stdout: Box::new(stdout),
            stderr: exec.tty.is_none().then(|| Box::new(tokio::io::empty()) as _),
            control: Box::new(Control { code: watched, signalled: None }),
        })
    }

    async fn attach(&self, id: &str) -> Result<Exec, Error> {
        let stdin = self.lock().find(id)?.spec.open_stdin;
        self.exec(id, ExecSpec { stdin, ..ExecSpec::default() }).await
    }

    async fn pause(&self, id: &str, paused: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let gone = || Error::NotFound(id.to_owned());
        let container = state.containers.get_mut(id).ok_or_else(gone)?;
        if container.exit().is_some() {
            return Err(Error::NotRunning(id.to_owned()));
        }
        container.paused = paused;
        Ok(())
    }

    async fn usage(&self, id: &str) -> Result<Usage, Error> {
        let paused = self.lock().find(id)?.paused;
        Ok(Usage { pids: 1, paused, ..Usage::default() })
    }

    async fn processes(&self, id: &str) -> Result<Vec<Process>, Error> {
        self.lock().find(id).map(|_| Vec::new())
    }

    async fn root(&self, id: &str) -> Result<OwnedFd, Error> {
        self.lock().find(id)?;
        Err(Error::Unsupported("containers in memory have no files".to_owned()))
    }

    async fn list(&self) -> Result<Vec<ContainerInfo>, Error> {
        let state = self.lock();
        let info = |container: &Container| ContainerInfo {
            id: container.spec.id.clone(),
            labels: container.spec.labels.clone(),
            paused: container.paused && container.exit().is_none(),
            state: match container.exit() {
                Some(exit) => ContainerState::Exited(exit),
                None => {
                    let Started { pid, at } = container.started;
                    ContainerState::Running { pid, started_at: at }
                }
            },
        };
        Ok(state.containers.values().map(info).collect())
    }

    async fn kept(&self, id: &str, label: &str) -> Result<Option<OwnedFd>, Error> {
        let state = self.lock();
        let container = state.find(id)?;
        let kept = container.spec.keep.iter().find(|(known, _)| known == label);
        let Some((_, fd)) = kept.filter(|_| container.exit().is_none()) else { return Ok(None) };
        let copy = fd.try_clone();
        let action = || format!("duplicate descriptor {label} of container {id}");
        copy.map(Some).map_err(|source| Error::Io { action: action(), source })
    }

    async fn logs(&self, dir: PathBuf, query: LogQuery) -> Result<mpsc::Receiver<LogLine>, Error> {
        let (known, mut more) = {
            let state = self.lock();
            let known = state.logs.get(&dir).cloned().unwrap_or_default();
            (known, self.lines.subscribe())
        };
        let known =
            known.into_iter().filter(|line| query.since.is_none_or(|since| line.at >= since));
        let known = known.collect::<Vec<_>>();
        let skipped = query.tail.map_or(0, |tail| known.len().saturating_sub(tail));
        let (sender, receiver) = mpsc::channel(LINES);
        tokio::spawn(async move {
            for line in known.into_iter().skip(skipped) {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
            if !query.follow {
                return;
            }
            loop {
                let next = tokio::select! {
                    () = sender.closed() => return,
                    next = more.recv() => next,
                };
                let Ok((at, line)) = next else { return };
                if at == dir && sender.send(line).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    }
}

struct Control {
    code: watch::Receiver<Option<i32>>,
    signalled: Option<i32>,
}

#[async_trait]
impl ExecControl for Control {
    async fn resize(&mut self, _rows: u16, _columns: u16) -> Result<(), Error> {
        Ok(())
    }

    async fn signal(&mut self, signal: i32) -> Result<(), Error> {
        self.signalled = Some(128 + signal);
        Ok(())
    }

    async fn wait(&mut self) -> Result<i32, Error> {
        if let Some(code) = self.signalled {
            return Ok(code);
        }
        let code = self.code.wait_for(Option::is_some).await.ok().and_then(|code| *code);
        Ok(code.unwrap_or(128 + libc::SIGKILL))
    }
}

#[cfg(test)]
#[path = "fake_tests.rs"]
mod tests;
