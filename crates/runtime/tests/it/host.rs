//! One node for one test.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use warren_runtime::native::{Native, Options};
use warren_runtime::{
    ContainerSpec, ContainerState, Exit, Limits, LogLine, LogPolicy, LogQuery, Privileges, Runtime,
    Seccomp,
};

/// No event of these tests takes longer, on a machine that is busy with builds.
pub(crate) const LONGEST: Duration = Duration::from_secs(60);

const APPLETS: [&str; 31] = [
    "[", "cat", "chmod", "dd", "df", "echo", "env", "false", "grep", "head", "hostname", "id",
    "kill", "ln", "ls", "mkdir", "mount", "ps", "pwd", "readlink", "rm", "seq", "sh", "sleep",
    "stat", "stty", "tail", "touch", "true", "tty", "umount",
];

pub(crate) struct Host {
    pub(crate) base: TempDir,
    key: String,
    native: Option<Native>,
}

impl Host {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = tempfile::tempdir().unwrap();
        make_image(&base.path().join("image"));
        let key = format!("t{}x{number}", std::process::id());
        let mut host = Self { base, key, native: None };
        host.reopen();
        host
    }

    /// A new runtime over the same folders, as after a restart of the daemon.
    pub(crate) fn reopen(&mut self) {
        self.native = None;
        self.native = Some(
            Native::open(Options {
                run_dir: self.base.path().join("run"),
                data_dir: self.base.path().join("data"),
                node_key: self.key.clone(),
            })
            .unwrap(),
        );
    }

    /// No daemon at all, until [`Self::reopen`].
    pub(crate) fn close(&mut self) {
        self.native = None;
    }

    pub(crate) fn native(&self) -> &Native {
        self.native.as_ref().unwrap()
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.base.path().join("image")
    }

    pub(crate) fn log_dir(&self) -> PathBuf {
        self.base.path().join("logs")
    }

    pub(crate) fn state_dir(&self, id: &str) -> PathBuf {
        self.base.path().join("run/c").join(id)
    }

    pub(crate) fn spec(&self, id: &str, args: &[&str]) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            layers: vec![self.image()],
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            hostname: "box".to_owned(),
            read_only: false,
            limits: Limits::default(),
            mounts: Vec::new(),
            shm_bytes: None,
            devices: Vec::new(),
            files: Vec::new(),
            cap_add: Vec::new(),
            cap_drop: Vec::new(),
            no_new_privileges: true,
            seccomp: Seccomp::Default,
            privileges: Privileges::default(),
            stop_signal: 15,
            netns: None,
            keep: Vec::new(),
            log: LogPolicy { dir: self.log_dir(), max_bytes: 1 << 20, max_files: 3 },
            labels: BTreeMap::from([("task".to_owned(), id.to_owned())]),
        }
    }

    pub(crate) fn shell(&self, id: &str, script: &str) -> ContainerSpec {
        self.spec(id, &["/bin/sh", "-c", script])
    }

    /// Starts, waits for the end, removes; the exit and all that was printed by it.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> (Exit, String) {
        let id = spec.id.clone();
        let dir = spec.log.dir.clone();
        self.native().start(spec).await.unwrap();
        let exit = self.wait(&id).await;
        self.native().remove(&id).await.unwrap();
        let text = self.text(&dir).await;
        fs::remove_dir_all(dir).unwrap();
        (exit, text)
    }

    /// What a script prints, with exit code 0.
    #[track_caller]
    pub(crate) fn prints(
        &self,
        spec: ContainerSpec,
        expected: &str,
    ) -> impl Future<Output = ()> + use<'_> {
        let (place, expected) = (std::panic::Location::caller(), expected.to_owned());
        async move {
            let (exit, text) = self.run(spec).await;
            assert_eq!((exit.code, text.as_str()), (0, expected.as_str()), "at {place}");
        }
    }

    pub(crate) async fn wait(&self, id: &str) -> Exit {
        bounded(self.native().wait(id)).await.unwrap()
    }

    pub(crate) async fn lines(&self, dir: &Path, query: LogQuery) -> Vec<LogLine> {
        let mut receiver = self.native().logs(dir.to_owned(), query).await.unwrap();
        let mut lines = Vec::new();
        while let Some(line) = bounded(receiver.recv()).await {
            lines.push(line);
        }
        lines
    }

    pub(crate) async fn text(&self, dir: &Path) -> String {
        let lines = self.lines(dir, LogQuery::default()).await;
        lines.iter().map(|line| String::from_utf8_lossy(&line.line) + "\n").collect()
    }

    /// Waits until a container of the default log folder has printed a line.
    pub(crate) async fn printed(&self, text: &str) {
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut receiver = self.native().logs(self.log_dir(), query).await.unwrap();
        loop {
            let line = bounded(receiver.recv()).await.expect("the log goes on");
            if line.line == text.as_bytes() {
                return;
            }
        }
    }

    pub(crate) async fn pid(&self, id: &str) -> u32 {
        let containers = self.native().list().await.unwrap();
        let container = containers.iter().find(|container| container.id == id).unwrap();
        match container.state {
            ContainerState::Running { pid, .. } => pid,
            ContainerState::Exited(ref exit) => panic!("{id} has ended: {exit:?}"),
        }
    }

    /// The shim is the parent of a container's first process.
    pub(crate) async fn shim_pid(&self, id: &str) -> u32 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid(id).await)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
        line.trim().parse().unwrap()
    }

    /// Control groups of this node's containers.
    fn groups(&self) -> Vec<PathBuf> {
        let mut groups = Vec::new();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let parent = hierarchy.unwrap().path().join(format!("warren-{}", self.key));
            let Ok(entries) = fs::read_dir(parent) else { continue };
            let entries = entries.map(|entry| entry.unwrap().path());
            // The shims' own group stays for the next container.
            let of_containers = |path: &PathBuf| path.is_dir() && !path.ends_with("_shims");
            groups.extend(entries.filter(of_containers));
        }
        groups
    }

    /// All processes of this node's containers.
    pub(crate) fn processes(&self) -> String {
        let read = |group: PathBuf| fs::read_to_string(group.join("cgroup.procs"));
        self.groups().into_iter().filter_map(|group| read(group).ok()).collect()
    }

    /// Everything that containers leave while they exist.
    pub(crate) fn remains(&self) -> Vec<String> {
        let mut remains = self.groups();
        for folder in ["run/c", "data/containers"] {
            let entries = fs::read_dir(self.base.path().join(folder)).unwrap();
            remains.extend(entries.map(|entry| entry.unwrap().path()));
        }
        let mut remains = remains.iter().map(|path| path.display().to_string()).collect::<Vec<_>>();
        let base = self.base.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        remains.extend(mounts.lines().filter(|line| line.contains(base)).map(str::to_owned));
        remains
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let remains = self.remains();
        for group in self.groups() {
            let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines() {
                let _ = std::process::Command::new("kill").args(["-9", pid]).status();
            }
        }
        for group in self.groups() {
            for _ in 0..1000 {
                if fs::remove_dir(&group).is_ok() || !group.exists() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for folder in ["run/c", "data/containers"] {
            let _ = fs::remove_dir_all(self.base.path().join(folder));
            let _ = fs::create_dir_all(self.base.path().join(folder));
        }
        let disposed = self.native.take().unwrap().dispose();
        if !std::thread::panicking() {
            assert!(remains.is_empty(), "left behind: {remains:#?}");
            disposed.unwrap();
        }
    }
}

pub(crate) async fn bounded<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONGEST, work).await.expect("an event that did not come")
}

/// Waits for something that only the file system shows.
pub(crate) async fn until(mut is_true: impl FnMut() -> bool) {
    let begin = SystemTime::now();
    while !is_true() {
        assert!(begin.elapsed().unwrap_or_default() < LONGEST, "a state that did not come");
        tokio::task::yield_now().await;
    }
}

fn make_image(image: &Path) {
    for folder in ["bin", "etc", "tmp", "root", "home/bob", "proc", "sys", "dev"] {
        fs::create_dir_all(image.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", image.join("bin/busybox")).unwrap();
    for applet in APPLETS {
        symlink("busybox", image.join("bin").join(applet)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nbob:x:1000:1000:Bob:/home/bob:/bin/sh\n";
    fs::write(image.join("etc/passwd"), passwd).unwrap();
    let group = "root:x:0:\nbob:x:1000:\nstaff:x:50:bob,eve\naudio:x:29:bob\n";
    fs::write(image.join("etc/group"), group).unwrap();
}

/// Whether something that only the file system shows comes within a time.
pub(crate) async fn within(limit: Duration, mut is_true: impl FnMut() -> bool) -> bool {
    let begin = SystemTime::now();
    while !is_true() {
        if begin.elapsed().unwrap_or_default() > limit {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    true
}
