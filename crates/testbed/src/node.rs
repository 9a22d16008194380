//! The program on a machine: started, killed, held still, asked.
//!
//! The daemon runs in the foreground as our child and writes into a file of the
//! machine. Who is asked is this node alone, over its own socket, as a person
//! logged in there would.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde_json::Value;

use crate::bed::Kind;
use crate::host::{Host, Process, Said};

/// Where nodes listen for each other and for clients.
pub const PORT: u16 = 2377;
/// Where they answer `/health`, `/ready` and `/metrics`.
pub const ADMIN_PORT: u16 = 9090;
/// A graceful stop hands things over; longer than the program's own limits.
pub const STOP_LIMIT: Duration = Duration::from_secs(20);
/// A killed process is gone at once; the kernel may be busy with its memory.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Of a log that is shown when something went wrong.
const TAIL_LINES: usize = 25;
const TAIL_BYTES: usize = 16 << 10;

/// What nodes are started with.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) binary: PathBuf,
    pub(crate) log_level: String,
    /// A registry without TLS.
    pub(crate) registry: Option<String>,
}

/// What a process takes of the machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct Usage {
    /// Proportional set size.
    pub memory_bytes: u64,
    /// Open files.
    pub files: usize,
    /// Of the processor, in the kernel's ticks.
    pub ticks: u64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("read {path}"))
        };
        let rollup = read("smaps_rollup")?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib: u64 = pss
            .and_then(|rest| rest.trim().strip_suffix("kB"))
            .and_then(|number| number.trim().parse().ok())
            .context("smaps_rollup tells no Pss")?;
        let folder = format!("/proc/{pid}/fd");
        let files = fs::read_dir(&folder).with_context(|| format!("read {folder}"))?.count();
        // Fields are counted from the end of the name, which may contain anything.
        let stat = read("stat")?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let field = |at: usize| fields.get(at).and_then(|word| word.parse::<u64>().ok());
        let ticks = field(11).zip(field(12)).context("stat tells no times")?;
        Ok(Self { memory_bytes: kib << 10, files, ticks: ticks.0 + ticks.1 })
    }
}

/// A node: its machine, and the daemon while it runs.
pub struct Node {
    host: Arc<Host>,
    kind: Kind,
    settings: Settings,
    daemon: Mutex<Option<Arc<Process>>>,
    paused: AtomicBool,
}

impl Node {
    pub(crate) fn new(host: Arc<Host>, kind: Kind, settings: Settings) -> Self {
        Self { host, kind, settings, daemon: Mutex::new(None), paused: AtomicBool::new(false) }
    }

    /// Its machine.
    pub fn host(&self) -> &Arc<Host> {
        &self.host
    }

    /// Of the machine and of the node.
    pub fn name(&self) -> &str {
        self.host.name()
    }

    /// What it was made to be.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// As others are told it.
    pub fn endpoint(&self) -> String {
        format!("{}:{PORT}", self.host.address())
    }

    /// Where its daemon answers commands.
    pub fn socket(&self) -> PathBuf {
        self.host.run_dir().join("warren.sock")
    }

    /// What its daemons have said, all of them.
    pub fn log_path(&self) -> PathBuf {
        self.host.folder().join("log")
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Arc<Process>>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon that was started last, unless it was ended by us.
    pub fn process(&self) -> Option<Arc<Process>> {
        self.daemon().clone()
    }

    /// Whether the daemon can answer: it runs, and is not held still.
    pub fn is_up(&self) -> bool {
        let alive = self.daemon().as_ref().is_some_and(|process| process.is_alive());
        alive && !self.paused.load(Ordering::SeqCst)
    }

    /// Starts the daemon with a verb that runs a node.
    pub fn start(&self, args: &[&str]) -> Result<()> {
        self.launch(self.command(args))
    }

    /// Starts the daemon as a new node of a cluster. The token is in the environment: arguments
    /// are for everybody to see.
    pub fn join(&self, token: &str, manager_only: bool, managers: &[String]) -> Result<()> {
        let mode: &[&str] = if manager_only { &["--manager-only"] } else { &[] };
        let managers = managers.join(",");
        let mut command = self.command(&[&["node", "join"], mode, &[managers.as_str()]].concat());
        command.env("WARREN_TOKEN", token);
        self.launch(command)
    }

    fn launch(&self, mut command: Command) -> Result<()> {
        let mut daemon = self.daemon();
        if daemon.as_ref().is_some_and(|process| process.is_alive()) {
            bail!("the daemon of {} runs already", self.name());
        }
        let path = self.log_path();
        let open = || File::options().create(true).append(true).open(&path);
        let log = open().with_context(|| format!("open {}", path.display()))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *daemon = Some(self.host.spawn(&mut command)?);
        self.paused.store(false, Ordering::SeqCst);
        Ok(())
    }

    /// Runs the node again that was made before.
    pub fn run(&self) -> Result<()> {
        self.start(&["node", "run"])
    }

    /// The program with the settings of this node, to be run on its machine.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.settings.binary);
        for (key, _) in std::env::vars_os() {
            if key.to_string_lossy().starts_with("WARREN") {
                command.env_remove(key);
            }
        }
        command
            .args(args)
            .env("WARREN_DATA_DIR", self.host.data_dir())
            .env("WARREN_RUN_DIR", self.host.run_dir())
            .env("WARREN_LISTEN", format!("0.0.0.0:{PORT}"))
            .env("WARREN_ADVERTISE", self.host.address().to_string())
            .env("WARREN_ADMIN", format!("0.0.0.0:{ADMIN_PORT}"))
            .env("WARREN_LOG_LEVEL", &self.settings.log_level)
            .env("RUST_BACKTRACE", "1");
        if let Some(registry) = &self.settings.registry {
            command.env("WARREN_INSECURE_REGISTRY", registry);
        }
        command
    }

    /// What the program says to a command, asked of this node.
    pub fn warren(&self, args: &[&str]) -> Result<Said> {
        self.warren_with_input(args, b"")
    }

    /// The same, with something to read.
    pub fn warren_with_input(&self, args: &[&str], input: &[u8]) -> Result<Said> {
        self.host.output(&mut self.command(args), input)
    }

    /// Standard output of a command that must succeed.
    pub fn ok(&self, args: &[&str]) -> Result<String> {
        let said = self.warren(args)?;
        if said.exit == 0 {
            return Ok(said.out);
        }
        let (exit, err) = (said.exit, said.err.trim());
        bail!("`warren {}` on {} ended with {exit}: {err}", args.join(" "), self.name());
    }

    /// A listing.
    pub fn json(&self, args: &[&str]) -> Result<Vec<Value>> {
        let text = self.ok(&[args, &["--format", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{args:?} said {text:?}"))
    }

    /// kill -9 of the daemon; what it had started goes on. Returns when it is gone.
    pub fn kill(&self) -> Result<()> {
        self.end(Signal::KILL, KILL_LIMIT)
    }

    /// Asks the daemon to stop and waits until it has; its containers go on.
    pub fn stop(&self) -> Result<()> {
        self.end(Signal::TERM, STOP_LIMIT)
    }

    fn end(&self, signal: Signal, limit: Duration) -> Result<()> {
        let mut daemon = self.daemon();
        let Some(process) = daemon.as_ref() else { return Ok(()) };
        process.signal(signal);
        if !process.ended_within(limit) {
            bail!("the daemon of {} does not end by {signal:?} in {limit:?}", self.name());
        }
        process.status();
        *daemon = None;
        Ok(())
    }

    /// SIGSTOP of the daemon alone.
    pub fn pause(&self) {
        self.paused.store(true, Ordering::SeqCst);
        if let Some(process) = self.daemon().as_ref() {
            process.signal(Signal::STOP);
        }
    }

    /// SIGCONT.
    pub fn resume(&self) {
        if let Some(process) = self.daemon().as_ref() {
            process.signal(Signal::CONT);
        }
        self.paused.store(false, Ordering::SeqCst);
    }

    /// The machine loses its power and comes up again; then the daemon is started.
    pub fn reboot(&self) -> Result<()> {
        self.power_off()?;
        self.host.up()?;
        self.run()
    }

    /// The machine loses its power.
    pub fn power_off(&self) -> Result<()> {
        *self.daemon() = None;
        self.host.down()
    }

    /// How the daemon ended, if nobody told it to.
    pub(crate) fn unexpected_end(&self) -> Option<String> {
        let daemon = self.daemon();
        let process = daemon.as_ref().filter(|process| !process.is_alive())?;
        let how = process.status().map_or_else(|| "gone".to_owned(), |status| status.to_string());
        Some(format!("the daemon of {} ended by itself: {how}", self.name()))
    }

    /// What the daemon takes now.
    pub fn usage(&self) -> Result<Usage> {
        let process = self.process().with_context(|| format!("{} runs no daemon", self.name()))?;
        Usage::of(process.pid())
    }

    /// The last lines that its daemons said.
    pub fn log_tail(&self) -> String {
        let text = fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL_BYTES)..]);
        let mut lines: Vec<&str> = text.lines().rev().take(TAIL_LINES).collect();
        lines.reverse();
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_takes() {
        let usage = Usage::of(std::process::id()).unwrap();
        assert!(usage.memory_bytes > 100 << 10 && usage.files > 2, "{usage:?}");
    }
}
