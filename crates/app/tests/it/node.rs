//! A node to test with, and what it leaves in the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;

pub(crate) const WARREN: &str = env!("CARGO_BIN_EXE_warren");
/// A test that waits longer than this has failed; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// One HTTP exchange on loopback.
const EXCHANGE: Duration = Duration::from_secs(5);

/// A network namespace, alive while its holder is.
struct Namespace {
    holder: Child,
}

impl Namespace {
    fn new() -> Self {
        let holder = Command::new("unshare")
            .args(["--net", "--", "sh", "-c", "ip link set lo up && echo up && exec sleep 3600"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux and iproute2 are installed");
        let mut namespace = Self { holder };
        let mut up = [0; 3];
        let out = namespace.holder.stdout.as_mut().unwrap();
        out.read_exact(&mut up).expect("a namespace can be made: the tests need root");
        namespace
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// Runs `work` on a thread inside the namespace.
    fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let file = fs::File::open(self.path()).unwrap();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
                use std::os::fd::AsFd;
                let kind = Some(LinkNameSpaceType::Network);
                move_into_link_name_space(file.as_fd(), kind).unwrap();
                work()
            });
            inside.join().unwrap()
        })
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What a command said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) exit: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// One node. Dropping it stops the daemon with its containers.
pub(crate) struct Node {
    dir: tempfile::TempDir,
    namespace: Arc<Namespace>,
    /// 127.0.0.x.
    address: String,
    mounts_before: usize,
}

impl Node {
    /// Initialised and running.
    pub(crate) fn start() -> Self {
        let node = Self::bare();
        let said = node.warren(&["cluster", "init", "--detach"]);
        assert_eq!(said.exit, 0, "{said:?}\n{}", node.log());
        node
    }

    /// Folders and namespace only.
    pub(crate) fn bare() -> Self {
        // Short: socket paths have 108 bytes.
        let dir = tempfile::Builder::new().prefix("wit").tempdir_in("/var/tmp").unwrap();
        let address = "127.0.0.1".to_owned();
        Self { dir, namespace: Arc::new(Namespace::new()), address, mounts_before: mounts() }
    }

    /// Another one on the same network, at 127.0.0.`last`.
    pub(crate) fn beside(&self, last: u8) -> Self {
        let dir = tempfile::Builder::new().prefix("wit").tempdir_in("/var/tmp").unwrap();
        let namespace = Arc::clone(&self.namespace);
        Self { dir, namespace, address: format!("127.0.0.{last}"), mounts_before: mounts() }
    }

    /// Where others reach it.
    pub(crate) fn address(&self) -> String {
        format!("{}:2377", self.address)
    }

    /// Joins the cluster of `other` as `role` and waits until it is ready.
    #[track_caller]
    pub(crate) fn join(&self, other: &Self, role: &str) -> Said {
        let token = other.ok(&["cluster", "token", role, "-q"]);
        let said = self.join_with(token.trim(), &other.address());
        assert_eq!(said.exit, 0, "{said:?}\n{}", self.log());
        said
    }

    pub(crate) fn join_with(&self, token: &str, addresses: &str) -> Said {
        self.warren(&["node", "join", "--detach", "--token", token, addresses])
    }

    /// Its id.
    pub(crate) fn id(&self) -> String {
        self.ok(&["cluster", "info", "--format", "{{.NodeID}}"]).trim().to_owned()
    }

    /// One request to the admin endpoint; status and body.
    pub(crate) fn admin(&self, path: &str) -> Option<(u16, String)> {
        let address: SocketAddr = format!("{}:9090", self.address).parse().unwrap();
        self.namespace.within(|| {
            let mut stream = TcpStream::connect_timeout(&address, EXCHANGE).ok()?;
            stream.set_read_timeout(Some(EXCHANGE)).ok()?;
            write!(stream, "GET {path} HTTP/1.0\r\nHost: test\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
        })
    }

    /// A connection to the port that other nodes reach it at.
    pub(crate) fn connect(&self) -> TcpStream {
        let address: SocketAddr = self.address().parse().unwrap();
        let stream = self.namespace.within(|| TcpStream::connect_timeout(&address, EXCHANGE));
        let stream = stream.unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// A running node with an image `bb:1` of busybox.
    pub(crate) fn with_image() -> Self {
        let node = Self::start();
        let tar = node.dir.path().join("rootfs.tar");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/rootfs");
        let made = Command::new(script).arg(&tar).status().unwrap();
        assert!(made.success());
        let said = node.ok(&["image", "import", tar.to_str().unwrap(), "bb:1"]);
        assert!(said.contains("bb:1"), "{said}");
        node
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.program(&[&[WARREN], args].concat())
    }

    /// Any program, on the node's network and with its environment.
    pub(crate) fn program(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        // A command that never ends must end the test, or nobody would clean up.
        let limit = PATIENCE.as_secs().to_string();
        command.arg(format!("--net={}", self.namespace.path().display()));
        command.args(["timeout", "--foreground", "-s", "KILL", &limit]).args(words);
        for key in ["WARREN_SOCKET", "WARREN_CONFIG"] {
            command.env_remove(key);
        }
        command.env("WARREN_DATA_DIR", self.data_dir()).env("WARREN_RUN_DIR", self.run_dir());
        command.env("WARREN_LISTEN", self.address());
        // What this machine has is no business of tests.
        command.env("WARREN_CDI_SPEC_DIR", self.dir.path().join("cdi"));
        command.env("WARREN_ADMIN", format!("{}:9090", self.address));
        command.env_remove("WARREN_TOKEN").env_remove("WARREN_CONTEXT");
        command.stdin(Stdio::null());
        command
    }

    /// The node's folder: for what a test puts beside data and run folder.
    pub(crate) fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn warren(&self, args: &[&str]) -> Said {
        said(self.command(args).output().unwrap())
    }

    pub(crate) fn warren_with_input(&self, args: &[&str], input: &[u8]) -> Said {
        let mut command = self.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that fails early does not read it all.
                let _ = stdin.write_all(input);
            });
            said(child.wait_with_output().unwrap())
        })
    }

    /// Standard output of a command that must succeed.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let said = self.warren(args);
        assert_eq!(said.exit, 0, "{args:?}: {said:?}\n{}", self.log());
        said.out
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Vec<Value> {
        let mut args = args.to_vec();
        args.extend(["--format", "json"]);
        serde_json::from_str(&self.ok(&args)).unwrap()
    }

    /// Tasks of a service that are wanted, by slot.
    #[track_caller]
    pub(crate) fn tasks(&self, service: &str) -> Vec<Value> {
        let mut tasks = self.json(&["service", "ps", service]);
        tasks.retain(|task| task["desired_state"] == "running");
        tasks
    }

    pub(crate) fn pid(&self) -> Option<Pid> {
        let text = fs::read_to_string(self.run_dir().join("warren.pid")).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    }

    /// kill -9 of the daemon; returns when it is gone.
    pub(crate) fn kill_daemon(&self) {
        kill_and_wait(self.pid().expect("the daemon runs"));
    }

    /// The daemon's log, for failures.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.data_dir().join("daemon.log")).unwrap_or_default()
    }

    /// The body of `GET /` at a port of the node.
    pub(crate) fn get(&self, address: &str) -> Option<String> {
        let address: SocketAddr = address.parse().unwrap();
        self.namespace.within(|| {
            let mut stream = TcpStream::connect_timeout(&address, EXCHANGE).ok()?;
            stream.set_read_timeout(Some(EXCHANGE)).ok()?;
            stream.write_all(b"GET / HTTP/1.0\r\nHost: test\r\n\r\n").ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            let (head, body) = answer.split_once("\r\n\r\n")?;
            head.contains(" 200 ").then(|| body.trim().to_owned())
        })
    }

    /// Does something inside the node's network.
    pub(crate) fn within<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.namespace.within(work)
    }

    /// A listener of a foreign process on the node's network.
    pub(crate) fn occupy(&self, port: u16) -> std::net::TcpListener {
        self.namespace.within(|| std::net::TcpListener::bind(("0.0.0.0", port)).unwrap())
    }

    /// What the node has in the kernel, by kind.
    pub(crate) fn footprint(&self) -> BTreeMap<&'static str, usize> {
        let inside = |args: &[&str]| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", self.namespace.path().display())).args(args);
            String::from_utf8(command.output().unwrap().stdout).unwrap()
        };
        let links = inside(&["ip", "-o", "link"]).lines().count() - 1;
        let addresses = inside(&["nft", "list", "ruleset"]);
        // Those of containers: the pool itself is named as long as the node runs.
        let of_containers = |line: &&str| line.replace("10.128.0.0/10", "").contains("10.128.");
        let elements = addresses.lines().filter(of_containers).count();
        let containers = self.run_dir().join("c");
        let [groups, own_groups] = cgroups(&self.key());
        let (planes, processes): (Vec<_>, Vec<_>) =
            self.processes().into_iter().partition(|pid| Some(*pid) == self.data_plane());
        let folders = fs::read_dir(containers).map_or(0, Iterator::count);
        [
            ("mounts", mounts() - self.mounts_before.min(mounts())),
            ("links", links),
            ("rules with addresses", elements),
            ("run folders", folders),
            ("processes", processes.len()),
            ("data planes", planes.len()),
            ("cgroups", groups),
            ("cgroups of the node", own_groups),
        ]
        .into()
    }

    /// The process that its data plane says it is.
    pub(crate) fn data_plane(&self) -> Option<i32> {
        let mark = fs::read_to_string(self.run_dir().join("data.pid")).ok()?;
        mark.split(' ').next()?.parse().ok()
    }

    /// First characters of the node's id: part of every name it gives.
    fn key(&self) -> String {
        let text = fs::read_to_string(self.data_dir().join("node.json")).unwrap_or_default();
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        value["node_id"].as_str().unwrap_or("none").chars().take(8).collect()
    }

    /// Processes of containers and their shims: children of nobody we know, so told by where
    /// they write and what their network is.
    fn processes(&self) -> Vec<i32> {
        let daemon = self.pid().map(|pid| pid.as_raw_nonzero().get());
        let run = self.run_dir().display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
                continue;
            };
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).into_owned();
            let groups = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let ours = command.contains(&run) || groups.contains(&self.key());
            if ours && Some(pid) != daemon {
                found.push(pid);
            }
        }
        found
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("daemon's log:\n{}", self.log());
        }
        let stopped = self.warren(&["node", "stop", "--with-containers"]);
        if stopped.exit != 0 {
            // It does not answer: at least nothing of it must stay.
            if let Some(pid) = self.pid() {
                let _ = kill_process(pid, Signal::KILL);
            }
            for pid in self.processes() {
                let _ = Pid::from_raw(pid).map(|pid| kill_process(pid, Signal::KILL));
            }
        }
    }
}

fn said(output: Output) -> Said {
    Said {
        exit: output.status.code().unwrap_or(-1),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn mounts() -> usize {
    fs::read_to_string("/proc/self/mounts").unwrap().lines().count()
}

/// Groups of containers and, apart, those of the node: above them, and of all supervisors.
fn cgroups(key: &str) -> [usize; 2] {
    fn count(folder: &Path, key: &str, depth: u32, counts: &mut [usize; 2]) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            let below = folder.to_string_lossy().contains(key);
            let name = entry.file_name().to_string_lossy().into_owned();
            let own = name.contains(key) || below && name == "_shims";
            let below = below && !own;
            counts[0] += usize::from(below);
            counts[1] += usize::from(own && !below);
            if depth > 0 {
                count(&entry.path(), key, depth - 1, counts);
            }
        }
    }
    let mut counts = [0; 2];
    count(Path::new("/sys/fs/cgroup"), key, 6, &mut counts);
    counts
}

/// SIGKILL, then the end of the process.
pub(crate) fn kill_and_wait(pid: Pid) {
    let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    let limit = rustix::event::Timespec::try_from(PATIENCE).unwrap();
    let mut wanted = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut wanted, Some(&limit)), Ok(1), "{pid:?} does not end");
}

/// Asks until the answer is there; level-triggered and bounded.
#[track_caller]
pub(crate) fn until<R>(what: &str, mut ask: impl FnMut() -> Option<R>) -> R {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::yield_now();
    }
}
