//! A machine of the bed: namespaces, a card on the switch, folders, processes.
//!
//! It can lose its power and come up again with the same address and folders,
//! as a real one would: everything that ran is gone, so is its run folder, and
//! the boot id is another. Commands, connections and exchanges happen inside.

use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use warren_base::rng::{Rng, SystemRng};

use crate::http::{self, Answer};
use crate::namespace::Space;
use crate::switch::{Port, Switch};
use crate::tap;
use crate::wait::ended_within;

/// A command that takes longer hangs; the test is to end, and to say where.
pub const COMMAND_LIMIT: Duration = Duration::from_secs(60);
/// One exchange on a network that a test may have cut.
pub const EXCHANGE_LIMIT: Duration = Duration::from_secs(3);

/// What a command said.
#[derive(Debug, Clone)]
pub struct Said {
    /// -1: ended by a signal.
    pub exit: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

/// A process on a machine that goes on by itself.
#[derive(Debug)]
pub struct Process {
    child: Mutex<Child>,
    handle: OwnedFd,
    pid: u32,
}

impl Process {
    fn new(child: Child) -> Result<Self> {
        let pid = child.id();
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).context("a pid")?;
        let handle = pidfd_open(number, PidfdFlags::empty()).context("hold a process")?;
        Ok(Self { child: Mutex::new(child), handle, pid })
    }

    /// As seen from outside the machine.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        !self.ended_within(Duration::ZERO)
    }

    /// Sends a signal; one that has ended already gets none.
    pub fn signal(&self, signal: Signal) {
        let _ = pidfd_send_signal(&self.handle, signal);
    }

    /// Whether it ends in time.
    pub fn ended_within(&self, limit: Duration) -> bool {
        ended_within(self.handle.as_fd(), limit).unwrap_or(false)
    }

    /// How it ended; nothing: not yet.
    pub fn status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner).try_wait().ok().flatten()
    }

    /// Waits for a process that was killed.
    fn bury(&self) {
        let _ = self.child.lock().unwrap_or_else(PoisonError::into_inner).wait();
    }
}

/// What a machine is as long as it has power.
#[derive(Debug)]
struct Power {
    space: Space,
    processes: Mutex<Vec<Arc<Process>>>,
}

impl Power {
    fn processes(&self) -> MutexGuard<'_, Vec<Arc<Process>>> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What tells one machine from the others.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) port: Port,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
    pub(crate) folder: PathBuf,
    /// The way to everywhere else; nobody answers there, but sockets find an address.
    pub(crate) gateway: Ipv4Addr,
}

/// One machine.
pub struct Host {
    place: Place,
    switch: Arc<Switch>,
    power: RwLock<Option<Power>>,
}

impl Host {
    /// A machine that is up.
    pub(crate) fn start(place: Place, switch: Arc<Switch>) -> Result<Self> {
        fs::create_dir_all(&place.folder)
            .with_context(|| format!("make {}", place.folder.display()))?;
        let host = Self { place, switch, power: RwLock::new(None) };
        host.up()?;
        Ok(host)
    }

    /// As it calls itself, e.g. `m1`.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Its address on the switch.
    pub fn address(&self) -> Ipv4Addr {
        self.place.v4
    }

    /// Its other address.
    pub fn address6(&self) -> Ipv6Addr {
        self.place.v6
    }

    /// Where its card is plugged in.
    pub fn port(&self) -> Port {
        self.place.port
    }

    /// Holds its data and run folders, and what a test puts beside them.
    pub fn folder(&self) -> &Path {
        &self.place.folder
    }

    /// What lasts over a reboot.
    pub fn data_dir(&self) -> PathBuf {
        self.place.folder.join("data")
    }

    /// What does not.
    pub fn run_dir(&self) -> PathBuf {
        self.place.folder.join("run")
    }

    /// Gives it power: namespaces, card, addresses.
    pub fn up(&self) -> Result<()> {
        let mut power = self.power.write().unwrap_or_else(PoisonError::into_inner);
        if power.is_some() {
            return Ok(());
        }
        let name = self.name();
        let boot_id = self.folder().join("boot_id");
        fs::write(&boot_id, uuid()).with_context(|| format!("write {}", boot_id.display()))?;
        let run = self.run_dir();
        if run.exists() {
            fs::remove_dir_all(&run).with_context(|| format!("clear {}", run.display()))?;
        }
        let space = Space::open(name, &boot_id)?;
        let card = space.within(tap::open)?.with_context(|| format!("make the card of {name}"))?;
        let new = Power { space, processes: Mutex::new(Vec::new()) };
        let mut ip = Command::new("ip");
        let said = complete(&new.space, ip.args(["-batch", "-"]), self.links().as_bytes())?;
        if said.exit != 0 {
            bail!("give {name} its addresses: {said:?}");
        }
        self.switch.plug(self.place.port, card).with_context(|| format!("plug {name} in"))?;
        *power = Some(new);
        Ok(())
    }

    /// What `ip` has to do.
    fn links(&self) -> String {
        let Place { port, v4, v6, gateway, .. } = &self.place;
        let mac = port.mac().map(|byte| format!("{byte:02x}")).join(":");
        let mut lines = format!(
            "link set {card} address {mac}\n\
             link set {card} up\n\
             address add {v4}/16 broadcast + dev {card}\n\
             address add {v6}/64 dev {card} nodad\n",
            card = tap::NAME
        );
        if gateway != v4 {
            lines.push_str(&format!("route add default via {gateway}\n"));
        }
        lines
    }

    /// Cuts its power: everything that runs is killed; returns when it is gone.
    pub fn down(&self) -> Result<()> {
        // Commands under way hold the lock for reading: they end by this.
        let read = self.power.read().unwrap_or_else(PoisonError::into_inner);
        let Some(power) = read.as_ref() else { return Ok(()) };
        power.space.pull_plug();
        drop(read);
        let taken = self.power.write().unwrap_or_else(PoisonError::into_inner).take();
        self.switch.unplug(self.place.port);
        let Some(Power { space, processes }) = taken else { return Ok(()) };
        for process in processes.into_inner().unwrap_or_else(PoisonError::into_inner) {
            process.bury();
        }
        space.gone().with_context(|| format!("end {}", self.name()))
    }

    /// Down and up again.
    pub fn reboot(&self) -> Result<()> {
        self.down()?;
        self.up()
    }

    /// Its first process, as seen from outside, while it is up.
    pub fn pid(&self) -> Option<i32> {
        let power = self.power.read().unwrap_or_else(PoisonError::into_inner);
        power.as_ref().map(|power| power.space.pid())
    }

    /// Works inside.
    pub fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> Result<R> {
        self.powered(|power| power.space.within(work))
    }

    fn powered<R>(&self, work: impl FnOnce(&Power) -> Result<R>) -> Result<R> {
        let power = self.power.read().unwrap_or_else(PoisonError::into_inner);
        match power.as_ref() {
            Some(power) => work(power).with_context(|| format!("on {}", self.name())),
            None => bail!("{} is down", self.name()),
        }
    }

    /// Starts what goes on until it ends, is killed, or the machine goes down.
    pub fn spawn(&self, command: &mut Command) -> Result<Arc<Process>> {
        // Of its own: what is typed at our terminal is not for it.
        command.process_group(0);
        self.powered(|power| {
            let child = power.space.within(|| command.spawn())?;
            let program = command.get_program();
            let child = child.with_context(|| format!("run {}", program.display()))?;
            let process = Arc::new(Process::new(child)?);
            let mut processes = power.processes();
            // Those that ended and were asked about need no burial any more.
            processes.retain(|process| process.status().is_none());
            processes.push(process.clone());
            Ok(process)
        })
    }

    /// Runs a program to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<Said> {
        self.output(Command::new(program).args(args), b"")
    }

    /// Runs a command to its end, with something to read.
    pub fn output(&self, command: &mut Command, input: &[u8]) -> Result<Said> {
        self.powered(|power| complete(&power.space, command, input))
    }

    /// `GET path` at an address, seen from this machine.
    pub fn get(&self, to: SocketAddr, path: &str) -> Result<Answer> {
        self.request(to, "GET", path, &[], b"")
    }

    /// Any exchange.
    pub fn request(
        &self,
        to: SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer> {
        let request = http::Request { method, path, headers, body, limit: EXCHANGE_LIMIT };
        let answer = self.within(|| http::exchange(to, &request))?;
        answer.with_context(|| format!("{method} http://{to}{path} from {}", self.name()))
    }

    /// A connection from this machine.
    pub fn connect(&self, to: SocketAddr) -> Result<TcpStream> {
        let stream = self.within(|| TcpStream::connect_timeout(&to, EXCHANGE_LIMIT))?;
        stream.with_context(|| format!("connect to {to} from {}", self.name()))
    }

    /// A port of this machine.
    pub fn socket(&self, port: u16) -> SocketAddr {
        SocketAddr::new(IpAddr::V4(self.place.v4), port)
    }

    /// Everything but the first process stands still, containers too, until [`Host::thaw`].
    pub fn freeze(&self) -> Result<()> {
        self.signal_all("-STOP")
    }

    /// Everything goes on.
    pub fn thaw(&self) -> Result<()> {
        self.signal_all("-CONT")
    }

    fn signal_all(&self, signal: &str) -> Result<()> {
        // Run outside of bash's own `kill`, which would not spare the shell.
        let said = self.run("/bin/kill", &[signal, "--", "-1"])?;
        // 1: there is nobody to signal.
        if said.exit > 1 { bail!("kill {signal} on {}: {said:?}", self.name()) } else { Ok(()) }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What does not go now goes with us; the sweeper sees to the rest.
        let _ = self.down();
    }
}

/// Runs a command to its end, killed when it takes too long.
///
/// Started inside, read from outside: a thread that starts children in another process namespace
/// can start no threads.
fn complete(space: &Space, command: &mut Command, input: &[u8]) -> Result<Said> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = space.within(|| command.spawn())?;
    let program = command.get_program().display();
    let mut child = child.with_context(|| format!("run {program}"))?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("a pid")?;
    let handle = pidfd_open(pid, PidfdFlags::empty()).context("hold a process")?;
    let stdin = child.stdin.take();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A command that fails early does not read it all.
            stdin.map(|mut stdin| stdin.write_all(input))
        });
        scope.spawn(|| {
            if !ended_within(handle.as_fd(), COMMAND_LIMIT).unwrap_or(false) {
                let _ = pidfd_send_signal(&handle, Signal::KILL);
            }
        });
        child.wait_with_output()
    });
    let output = output.with_context(|| format!("wait for {program}"))?;
    Ok(said(&output))
}

fn said(output: &Output) -> Said {
    Said {
        exit: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// As the kernel writes a boot id.
fn uuid() -> String {
    let hex = |n: usize| {
        let mut bytes = vec![0; n];
        SystemRng.fill(&mut bytes);
        bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
    };
    format!("{}-{}-4{}-8{}-{}\n", hex(4), hex(2), &hex(2)[1..], &hex(2)[1..], hex(6))
}
