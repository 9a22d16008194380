//! A machine that runs Docker as well: neither is in the other's way.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use warren_testbed::{Cluster, Host, Options};

use crate::pods::{Pod, SILENCE};
use crate::support::SOON;

/// Of Docker's container.
const THEIRS: u16 = 8081;
/// Of our service.
const OURS: u16 = 8080;
const WEB: u16 = 80;
/// What our rules in Docker's chain say of themselves.
const MARK: &str = "warren node";

/// dockerd on a machine, with folders of its own. It ends with the machine.
struct Docker {
    host: Arc<Host>,
    /// Short: the path of a socket has 107 characters.
    folder: PathBuf,
    cgroup: String,
}

impl Docker {
    fn start(cluster: &Cluster, host: &Arc<Host>) -> Result<Self> {
        let folder = host.folder().join("docker");
        let cgroup = format!("warren-testbed-docker-{}", std::process::id());
        let docker = Self { host: host.clone(), folder, cgroup };
        std::fs::create_dir_all(&docker.folder)?;
        let at = |name: &str| docker.folder.join(name);
        std::fs::write(at("config"), "{}")?;
        let log = std::fs::File::create(at("log"))?;
        let mut command = Command::new("dockerd");
        command
            .args(["--storage-driver", "vfs", "--iptables=true", "--cgroup-parent"])
            .arg(format!("/{}", docker.cgroup))
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "-H"])
            .arg(docker.socket())
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg("--config-file")
            .arg(at("config"));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        docker.host.spawn(&mut command).context("it needs dockerd, of docker.io")?;
        cluster.until("dockerd answers", SOON, || {
            docker
                .run(&["version"])
                .map(|_| Some(()))
                .with_context(|| std::fs::read_to_string(at("log")).unwrap_or_default())
        })?;
        Ok(docker)
    }

    fn socket(&self) -> String {
        format!("unix://{}", self.folder.join("sock").display())
    }

    fn run(&self, args: &[&str]) -> Result<String> {
        let socket = self.socket();
        let said = self.host.run("docker", &[&["-H", socket.as_str()], args].concat())?;
        if said.exit != 0 {
            bail!("docker {args:?}: {}", said.err);
        }
        Ok(said.out)
    }

    /// A web server of busybox on a published port.
    fn serve(&self) -> Result<()> {
        let script = "set -e; cd \"$1\"; mkdir -p root/www; cp \"$(command -v busybox)\" root/; \
                      echo docker >root/www/index.html; tar -C root -c . >root.tar";
        let folder = self.folder.display().to_string();
        let said = self.host.run("bash", &["-c", script, "bash", &folder])?;
        if said.exit != 0 {
            bail!("make an image: {}", said.err);
        }
        let tar = self.folder.join("root.tar").display().to_string();
        self.run(&["import", &tar, "busy"])?;
        let publish = format!("{THEIRS}:80");
        let command = ["/busybox", "httpd", "-f", "-p", "80", "-h", "/www"];
        let run = ["run", "-d", "--name", "theirs", "-p", &publish, "busy"];
        self.run(&[&run[..], &command].concat()).map(|_| ())
    }

    /// Its container, as a client.
    fn pod(&self) -> Result<Pod> {
        let text = self.run(&[
            "inspect",
            "-f",
            "{{.State.Pid}} {{.NetworkSettings.IPAddress}}",
            "theirs",
        ])?;
        let (pid, v4) = text.trim().split_once(' ').context("pid and address")?;
        let (pid, v4) = (Some(pid.parse()?), v4.parse()?);
        Ok(Pod { name: "theirs".to_owned(), host: self.host.clone(), pid, v4 })
    }

    /// The rules of iptables, ours and all else, each in order.
    fn rules(&self) -> Result<(Vec<String>, Vec<String>)> {
        let mut lines = Vec::new();
        for table in ["filter", "nat"] {
            let said = self.host.run("iptables", &["-w", "-t", table, "-S"])?;
            if said.exit != 0 {
                bail!("iptables: {}", said.err);
            }
            lines.extend(said.out.lines().map(str::to_owned));
        }
        Ok(lines.into_iter().partition(|line| line.contains(MARK)))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let _ = self.run(&["rm", "-f", "theirs"]);
        // It ends with the machine; its groups would stay.
        let _ = self.host.down();
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let Ok(folders) = std::fs::read_dir(root) else { continue };
            for folder in folders.flatten() {
                let _ = std::fs::remove_dir(folder.path().join(&self.cgroup));
            }
            let _ = std::fs::remove_dir(PathBuf::from(root).join(&self.cgroup));
        }
    }
}

#[test]
fn host_docker_on_the_same_machine() -> Result<()> {
    if Command::new("dockerd").arg("--version").output().is_err() {
        bail!("it needs dockerd, of docker.io: make deps");
    }
    let cluster = Cluster::form(1, 1, &Options { hybrid: true, ..Options::default() })?;
    let ports = ["--mode", "global", "--stop-signal", "KILL", "-p", "8080:80"];
    cluster.create("web", &ports, &["sleep", "100000"])?;
    let tasks = cluster.wait_running("web", 2, SOON)?;
    let mut web = tasks.iter().map(|task| Pod::of(&cluster, task)).collect::<Result<Vec<_>>>()?;
    for pod in &mut web {
        pod.name = format!("web-{}", pod.host.name());
        pod.serve(WEB)?;
    }
    let worker = cluster.node("w1")?;
    let docker = Docker::start(&cluster, worker.host())?;
    docker.serve()?;
    // As it does itself when it finds that the machine forwards nothing: here our node was first.
    let said = worker.host().run("iptables", &["-w", "-P", "FORWARD", "DROP"])?;
    assert_eq!(said.exit, 0, "{}", said.err);
    let outside = Pod::machine(cluster.hub());
    outside.serve(9000)?;

    let both = || -> Result<()> {
        let theirs = worker.host().socket(THEIRS);
        cluster.until("Docker's port answers", SOON, || {
            let answer = cluster.hub().get(theirs, "/")?;
            Ok((answer.status == 200).then_some(()))
        })?;
        // By each node both containers, so across the machine with Docker in both directions.
        for node in cluster.nodes() {
            let address = node.host().address();
            cluster.until(&format!("both answer by {}", node.name()), SOON, || {
                let names = (0..24)
                    .map(|_| outside.tcp(address, OURS))
                    .collect::<Result<std::collections::BTreeSet<_>>>()?;
                let all =
                    web.iter().all(|pod| names.contains(&format!("{} {}", pod.name, outside.v4)));
                if all && names.len() == 2 { Ok(Some(())) } else { bail!("{names:?}") }
            })?;
        }
        // Containers of both get out, and those of ours to each other.
        for client in &web {
            let by = format!("hub {}", client.host.address());
            assert_eq!(client.tcp(outside.v4, 9000)?, by);
            for server in &web {
                let said = client.tcp(server.v4, WEB)?;
                assert!(
                    said.starts_with(&server.name),
                    "{} to {}: {said}",
                    client.name,
                    server.name
                );
            }
        }
        let theirs = docker.pod()?;
        assert_eq!(theirs.tcp(outside.v4, 9000)?, format!("hub {}", worker.host().address()));
        // Docker's containers are clients like others: of what is published.
        for node in cluster.nodes() {
            let said = theirs.tcp(node.host().address(), OURS)?;
            assert!(said.starts_with("web-"), "by {}: {said}", node.name());
        }
        for pod in &web {
            assert_ne!(theirs.tcp_within(pod.v4, WEB, SILENCE)?, pod.name);
        }
        Ok(())
    };
    both()?;
    let (ours, theirs) = docker.rules()?;
    assert!(
        ours.len() == 6 && theirs.contains(&"-P FORWARD DROP".to_owned()),
        "{ours:?} {theirs:?}"
    );
    let said = worker.warren(&["doctor"])?;
    assert!(!said.out.contains("iptables"), "{}", said.out);

    // Docker starts again, as it does when it is upgraded.
    docker.run(&["network", "create", "more"])?;
    docker.run(&["network", "rm", "more"])?;
    both()?;
    // Our daemon does, too.
    worker.stop()?;
    both()?;
    worker.run()?;
    cluster.wait_ready(2, SOON)?;
    both()?;
    assert_eq!(docker.rules()?, (ours, theirs.clone()));

    // With the node its rules go, and no other.
    worker.ok(&["node", "leave"])?;
    warren_testbed::wait::until("our rules are gone", SOON, || {
        let (ours, _) = docker.rules()?;
        if ours.is_empty() { Ok(Some(())) } else { bail!("{ours:?}") }
    })?;
    assert_eq!(docker.rules()?.1, theirs);
    let answer = cluster.hub().get(worker.host().socket(THEIRS), "/")?;
    assert_eq!(answer.status, 200);
    Ok(())
}
