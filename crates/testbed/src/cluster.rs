//! A cluster of nodes on machines of the bed, formed from nothing, and the
//! questions that tests ask of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bed::{Kind, Testbed};
use crate::host::Host;
use crate::node::{Node, Settings};
use crate::{binary, registry, wait};

/// Forming takes seconds; on a machine that does other things as well, some more.
pub const FORM_LIMIT: Duration = Duration::from_secs(60);

/// How a cluster is made.
#[derive(Debug, Clone)]
pub struct Options {
    /// Managers run containers too.
    pub hybrid: bool,
    /// A registry on the hub with the image that [`Cluster::image`] names.
    pub registry: bool,
    /// For what happens by chance on the lines.
    pub seed: u64,
    /// Of the daemons.
    pub log_level: String,
    /// How containers' packets travel; nothing: as by default.
    pub overlay: Option<String>,
    /// The program; nothing: the one that was built along.
    pub binary: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hybrid: false,
            registry: true,
            seed: 1,
            log_level: "info".into(),
            overlay: None,
            binary: None,
        }
    }
}

/// Nodes and the hub. Dropping it ends everything.
pub struct Cluster {
    nodes: Vec<Arc<Node>>,
    hub: Arc<Host>,
    bed: Testbed,
    settings: Settings,
    formed_in: Duration,
}

impl Cluster {
    /// Machines and a hub; no daemon runs.
    pub fn bare(managers: usize, workers: usize, options: &Options) -> Result<Self> {
        let binary = match &options.binary {
            Some(binary) => binary.clone(),
            None => binary::find()?,
        };
        let bed = Testbed::start(options.seed)?;
        let hub = bed.add(Kind::Hub)?;
        let registry = options.registry.then(|| registry::name(&hub));
        let settings = Settings { binary, log_level: options.log_level.clone(), registry };
        let kinds = [Kind::Manager].repeat(managers).into_iter();
        let kinds = kinds.chain([Kind::Worker].repeat(workers));
        let nodes =
            kinds.map(|kind| Ok(Arc::new(Node::new(bed.add(kind)?, kind, settings.clone()))));
        let nodes = nodes.collect::<Result<Vec<_>>>()?;
        if options.registry {
            registry::serve(&bed, &hub)?;
        }
        Ok(Self { nodes, hub, bed, settings, formed_in: Duration::ZERO })
    }

    /// A running cluster: the first manager makes it, all others join at once.
    pub fn form(managers: usize, workers: usize, options: &Options) -> Result<Self> {
        let mut cluster = Self::bare(managers, workers, options)?;
        let start = Instant::now();
        let mode: &[&str] = if options.hybrid { &[] } else { &["--manager-only"] };
        let first = cluster.nodes.first().context("a cluster needs a manager")?.clone();
        let overlay: Vec<&str> =
            options.overlay.iter().flat_map(|kind| ["--overlay", kind.as_str()]).collect();
        first.start(&[&["cluster", "init"], mode, &overlay].concat())?;
        cluster.until("the first manager answers", FORM_LIMIT, || {
            first.ok(&["node", "ls"]).map(Some)
        })?;
        for node in &cluster.nodes[1..] {
            cluster.join(node, options.hybrid)?;
        }
        cluster.wait_ready(cluster.nodes.len(), FORM_LIMIT)?;
        cluster.formed_in = start.elapsed();
        Ok(cluster)
    }

    /// One more machine; its daemon is the caller's, and not among [`Cluster::nodes`].
    pub fn add(&self, kind: Kind) -> Result<Arc<Node>> {
        Ok(Arc::new(Node::new(self.bed.add(kind)?, kind, self.settings.clone())))
    }

    /// Starts a node that was not in the cluster before, with a token of the cluster.
    pub fn join(&self, node: &Node, hybrid: bool) -> Result<()> {
        let role = match node.kind() {
            Kind::Manager => "manager",
            Kind::Worker => "worker",
            Kind::Hub => bail!("no node runs on the hub"),
        };
        let manager_only = node.kind() == Kind::Manager && !hybrid;
        node.join(&self.token(role)?, manager_only, &[self.asked()?.endpoint()])
    }

    /// What lets a machine join as `manager` or `worker`.
    pub fn token(&self, role: &str) -> Result<String> {
        Ok(self.asked()?.ok(&["cluster", "token", role, "-q"])?.trim().to_owned())
    }

    /// Waits until `count` nodes are listed, all ready, one of them leading.
    pub fn wait_ready(&self, count: usize, limit: Duration) -> Result<Vec<Value>> {
        self.until(&format!("{count} nodes are ready"), limit, || {
            let listed = self.listed()?;
            let ready = listed.iter().filter(|node| node["status"] == "ready").count();
            let leaders = listed.iter().filter(|node| node["leader"] == true).count();
            if ready == count && listed.len() == count && leaders == 1 {
                return Ok(Some(listed));
            }
            bail!("{} nodes, {ready} ready, {leaders} leading", listed.len())
        })
    }

    /// From the first daemon's start to all nodes being ready.
    pub fn formed_in(&self) -> Duration {
        self.formed_in
    }

    /// The machines, to do things to their lines.
    pub fn bed(&self) -> &Testbed {
        &self.bed
    }

    /// Where clients are.
    pub fn hub(&self) -> &Arc<Host> {
        &self.hub
    }

    /// All nodes: managers first, in order of their names.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// A node by its name.
    pub fn node(&self, name: &str) -> Result<&Arc<Node>> {
        let found = self.nodes.iter().find(|node| node.name() == name);
        found.with_context(|| format!("there is no node {name}"))
    }

    /// Those made as managers.
    pub fn managers(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.iter().filter(|node| node.kind() == Kind::Manager)
    }

    /// Those made as workers.
    pub fn workers(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.iter().filter(|node| node.kind() == Kind::Worker)
    }

    /// Reference of an image that every node can pull: a busybox with `sh` and `httpd`.
    pub fn image(&self) -> String {
        registry::image(&self.hub)
    }

    /// A manager that answers, to be asked.
    pub fn asked(&self) -> Result<&Arc<Node>> {
        self.managers().find(|node| node.is_up()).context("no manager runs")
    }

    /// The nodes as the cluster lists them.
    pub fn listed(&self) -> Result<Vec<Value>> {
        self.asked()?.json(&["node", "ls"])
    }

    /// The node that leads, as told by one that can know.
    pub fn leader(&self) -> Result<&Arc<Node>> {
        let listed = self.listed()?;
        let leader = listed.iter().find(|node| node["leader"] == true);
        let leader = leader.context("no node leads")?;
        self.node(leader["hostname"].as_str().unwrap_or_default())
    }

    /// Waits until another node than `old` leads.
    pub fn wait_new_leader(&self, old: &str, limit: Duration) -> Result<&Arc<Node>> {
        self.until(&format!("another than {old} leads"), limit, || {
            let leader = self.leader()?;
            Ok((leader.name() != old).then_some(leader))
        })
    }

    /// The services.
    pub fn services(&self) -> Result<Vec<Value>> {
        self.asked()?.json(&["service", "ls"])
    }

    /// Tasks of a service that are wanted.
    pub fn tasks(&self, service: &str) -> Result<Vec<Value>> {
        let mut tasks = self.asked()?.json(&["service", "ps", service])?;
        tasks.retain(|task| task["desired_state"] == "running");
        Ok(tasks)
    }

    /// Creates a service of the image and does not wait for it.
    pub fn create(&self, name: &str, flags: &[&str], command: &[&str]) -> Result<String> {
        let image = self.image();
        let fixed = ["service", "create", name, "--image", image.as_str(), "--detach"];
        self.asked()?.ok(&[&fixed, flags, command].concat())
    }

    /// Waits until a service has `count` running tasks; says them.
    pub fn wait_running(&self, service: &str, count: usize, limit: Duration) -> Result<Vec<Value>> {
        self.until(&format!("{service} has {count} running tasks"), limit, || {
            let tasks = self.tasks(service)?;
            let running = tasks.iter().filter(|task| task["state"] == "running").count();
            if running == count && tasks.len() == count {
                return Ok(Some(tasks));
            }
            let states: Vec<String> = tasks
                .iter()
                .map(|t| format!("{} on {}: {}", t["state"], t["node"], t["error"]))
                .collect();
            bail!("{states:?}")
        })
    }

    /// Looks until the answer is there. In vain, the error tells the last words of all nodes; a
    /// daemon that ends by itself ends the waiting.
    pub fn until<R>(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut() -> Result<Option<R>>,
    ) -> Result<R> {
        let mut dead = None;
        let outcome = wait::until(what, limit, || match look() {
            Ok(Some(answer)) => Ok(Some(Some(answer))),
            other => {
                dead = self.nodes.iter().find_map(|node| node.unexpected_end());
                if dead.is_some() { Ok(Some(None)) } else { other.map(|_| None) }
            }
        });
        let failure = match (outcome, dead) {
            (Ok(Some(answer)), _) => return Ok(answer),
            (Err(error), _) => format!("{error:#}"),
            (Ok(None), why) => format!("waiting until {what}: {}", why.unwrap_or_default()),
        };
        bail!("{failure}\n{}", self.last_words())
    }

    /// The ends of all logs.
    pub fn last_words(&self) -> String {
        let words = |node: &Arc<Node>| format!("---- {}\n{}\n", node.name(), node.log_tail());
        self.nodes.iter().map(words).collect()
    }

    /// Lines are healed, paused daemons go on, machines have power, daemons run.
    pub fn heal(&self) -> Result<()> {
        self.bed.heal();
        for node in &self.nodes {
            node.host().up()?;
            node.host().thaw()?;
            node.resume();
            if node.process().is_none() {
                node.run()?;
            }
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            #[expect(clippy::print_stderr, reason = "a failed test shows it")]
            {
                eprintln!("{}", self.last_words());
            }
        }
    }
}
