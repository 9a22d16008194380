//! `service update`: flags as changes to a specification.
//!
//! Pure: the current specification goes in, the new one and remarks come out.
//! Taking away what is not there is a remark, not an error, so that scripts
//! may repeat themselves.

use clap::Args;
use warren_model::service::{Attachment, Mode};
use warren_model::{NetworkName, ServiceSpec};

use super::attach;
use super::companion::CompanionEdits;
use super::env;
use super::failure::{Failure, nearest};
use super::mounts::MountEdits;
use super::placing::PlacingEdits;
use super::ports::{self, Publish, Unpublish};
use super::privileges::{PrivilegeEdits, take_host};
use super::spec::{CommonFlags, Words, count, flag_error, label, set_text, words};

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct EditFlags {
    /// Another image
    #[arg(long, value_name = "REF")]
    pub(crate) image: Option<String>,
    /// Another command, split like a shell does; '' takes the image's
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    pub(crate) args: Option<Words>,
    /// Number of replicas
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = count)]
    pub(crate) replicas: Option<u32>,
    /// Add or change a variable; KEY alone takes the caller's value
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) env_add: Vec<String>,
    /// Remove a variable
    #[arg(long, value_name = "KEY")]
    pub(crate) env_rm: Vec<String>,
    /// Publish a port, or publish its target differently
    #[arg(long, value_name = "PORT", value_parser = ports::parse)]
    pub(crate) publish_add: Vec<Publish>,
    /// Remove a published port by its target port
    #[arg(long, value_name = "TARGET", value_parser = ports::parse_removal)]
    pub(crate) publish_rm: Vec<Unpublish>,
    /// Add or change a label of the service
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) label_add: Vec<(String, String)>,
    /// Remove a label of the service
    #[arg(long, value_name = "KEY")]
    pub(crate) label_rm: Vec<String>,
    /// Add or change a label of its containers
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    pub(crate) container_label_add: Vec<(String, String)>,
    /// Remove a label of its containers
    #[arg(long, value_name = "KEY")]
    pub(crate) container_label_rm: Vec<String>,
    /// Put it on a network, or on one differently: NAME[,alias=A][,ip=ADDRESS]
    #[arg(long, visible_alias = "network-add", value_name = "NETWORK", value_parser = attach::parse)]
    pub(crate) network: Vec<Attachment>,
    /// Take it off a network
    #[arg(long, value_name = "NETWORK")]
    pub(crate) network_rm: Vec<String>,
    /// Host name of its containers
    #[arg(long, value_name = "HOST", allow_hyphen_values = true)]
    pub(crate) hostname: Option<String>,
    /// Add a capability, or drop it no longer
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_add: Vec<String>,
    /// Drop a capability, or add it no longer
    #[arg(long, value_name = "CAP")]
    pub(crate) cap_drop: Vec<String>,
    /// Whether the root file system cannot be written to
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(crate) read_only: Option<bool>,
    /// Replace the containers even if nothing else changes
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) privileges: PrivilegeEdits,
    #[command(flatten)]
    pub(crate) companions: CompanionEdits,
    #[command(flatten)]
    pub(crate) mounts: MountEdits,
    #[command(flatten)]
    pub(crate) placing: PlacingEdits,
    #[command(flatten)]
    pub(crate) common: CommonFlags,
}

impl EditFlags {
    /// The changed specification, and remarks about what had no effect.
    pub(crate) fn apply(
        &self,
        old: &ServiceSpec,
        lookup: env::Lookup<'_>,
    ) -> Result<(ServiceSpec, Vec<String>), Failure> {
        let mut spec = old.clone();
        let mut remarks = Vec::new();
        if let Some(replicas) = self.replicas {
            resize(&mut spec, replicas)?;
        }
        let task = &mut spec.task;
        if let Some(image) = &self.image {
            task.image.clone_from(image);
        }
        if let Some(Words(words)) = &self.args {
            task.command.clone_from(words);
        }
        set_text(&mut task.hostname, self.hostname.as_ref());
        if let Some(read_only) = self.read_only {
            task.read_only = read_only;
        }
        if self.force {
            task.force = task.force.wrapping_add(1);
        }
        swap_capabilities(&self.cap_add, &mut task.cap_add, &mut task.cap_drop);
        swap_capabilities(&self.cap_drop, &mut task.cap_drop, &mut task.cap_add);
        self.apply_env(&mut task.env, lookup, &mut remarks)?;
        self.privileges.apply(&mut task.privileges, &mut remarks);
        self.companions.apply(task, lookup, &mut remarks)?;
        self.mounts.apply(task, &mut remarks);
        let labels = [
            ("--label-rm", &mut spec.labels, &self.label_add, &self.label_rm),
            (
                "--container-label-rm",
                &mut spec.task.container_labels,
                &self.container_label_add,
                &self.container_label_rm,
            ),
        ];
        for (flag, labels, add, remove) in labels {
            for key in remove {
                if labels.remove(key).is_none() {
                    remarks.push(absent(flag, key, "label", labels.keys().map(String::as_str)));
                }
            }
            labels.extend(add.iter().cloned());
        }
        self.apply_ports(&mut spec, &mut remarks);
        self.apply_networks(&mut spec, &mut remarks)?;
        self.placing.apply(&mut spec.placement, &mut remarks);
        self.common.apply(&mut spec)?;
        spec.validate().map_err(|e| flag_error(&e))?;
        Ok((spec, remarks))
    }

    fn apply_env(
        &self,
        pairs: &mut Vec<String>,
        lookup: env::Lookup<'_>,
        remarks: &mut Vec<String>,
    ) -> Result<(), Failure> {
        for key in &self.env_rm {
            let before = pairs.len();
            pairs.retain(|pair| env::key(pair) != key);
            if pairs.len() == before {
                let known = pairs.iter().map(|p| env::key(p));
                remarks.push(absent("--env-rm", key, "variable", known));
            }
        }
        for pair in env::gather::<&str>(&[], &self.env_add, lookup)? {
            match pairs.iter_mut().find(|known| env::key(known) == env::key(&pair)) {
                Some(known) => *known = pair,
                None => pairs.push(pair),
            }
        }
        Ok(())
    }

    fn apply_networks(
        &self,
        spec: &mut ServiceSpec,
        remarks: &mut Vec<String>,
    ) -> Result<(), Failure> {
        if self.network.is_empty() && self.network_rm.is_empty() {
            return Ok(());
        }
        let mut added = self.network.clone();
        let is_host = |name: &String| name == NetworkName::HOST;
        let host_network = &mut spec.task.privileges.host_network;
        // Taken off it, it is on the default network, unless another is named.
        let left = self.network_rm.iter().any(is_host) && std::mem::take(host_network);
        if take_host(&mut added)? {
            *host_network = true;
            spec.networks = added;
            return Ok(());
        }
        if left {
            spec.networks = added;
            return Ok(());
        }
        // One that named none is on the default network until it says otherwise.
        spec.networks = spec.attachments().to_vec();
        for name in &self.network_rm {
            let before = spec.networks.len();
            spec.networks.retain(|on| on.network.as_str() != name);
            if spec.networks.len() == before {
                let known = spec.networks.iter().map(|on| on.network.as_str());
                remarks.push(absent("--network-rm", name, "network", known));
            }
        }
        for given in &added {
            match spec.networks.iter_mut().find(|on| on.network == given.network) {
                Some(known) => known.clone_from(given),
                None => spec.networks.push(given.clone()),
            }
        }
        if spec.networks.is_empty() {
            let default = NetworkName::DEFAULT;
            remarks.push(format!("--network-rm: no network is left: it is on {default} now"));
        }
        // As one says it who names none.
        let plain = |on: &Attachment| *on == Attachment::new(on.network.clone());
        if let [only] = &spec.networks[..]
            && only.network.as_str() == NetworkName::DEFAULT
            && plain(only)
        {
            spec.networks.clear();
        }
        Ok(())
    }

    fn apply_ports(&self, spec: &mut ServiceSpec, remarks: &mut Vec<String>) {
        for removal in &self.publish_rm {
            let before = spec.ports.len();
            spec.ports.retain(|port| !removal.names(port));
            if spec.ports.len() == before {
                let known: Vec<String> = spec.ports.iter().map(ToString::to_string).collect();
                remarks.push(format!(
                    "--publish-rm: no published port matches; the service publishes {}",
                    if known.is_empty() { "none".to_owned() } else { known.join(", ") }
                ));
            }
        }
        for port in self.publish_add.iter().flat_map(|Publish(ports)| ports) {
            // As Docker: another published port for the same target replaces it only when it is
            // the same publication; two publications of one target stand side by side.
            if !spec.ports.contains(port) {
                spec.ports.push(*port);
            }
        }
    }
}

/// `--replicas` of an update: of a job, how many tasks are to come to their end.
fn resize(spec: &mut ServiceSpec, wanted: u32) -> Result<(), Failure> {
    match &mut spec.mode {
        Mode::ReplicatedJob { completions, max_concurrent } => {
            // All at once, as long as nobody said otherwise.
            if *max_concurrent == *completions {
                *max_concurrent = wanted;
            }
            *completions = wanted;
            Ok(())
        }
        Mode::Replicated { .. } | Mode::Global | Mode::GlobalJob => scale(spec, wanted),
    }
}

/// Sets the number of replicas.
pub(crate) fn scale(spec: &mut ServiceSpec, wanted: u32) -> Result<(), Failure> {
    match &mut spec.mode {
        Mode::Replicated { replicas } => {
            *replicas = wanted;
            Ok(())
        }
        Mode::Global => Err(Failure::input(format!(
            "--replicas: service {} is global, which has one replica on every node",
            spec.name
        ))),
        Mode::GlobalJob => Err(Failure::input(format!(
            "--replicas: service {} is a global job, which has one task on every node",
            spec.name
        ))),
        Mode::ReplicatedJob { .. } => {
            Err(Failure::input(format!("service {} is a job, and is not scaled", spec.name))
                .hint(format!("warren service update {} --replicas {wanted}", spec.name)))
        }
    }
}

/// Puts `given` into `into` and takes it out of the opposite list.
fn swap_capabilities(given: &[String], into: &mut Vec<String>, opposite: &mut Vec<String>) {
    let plain = |cap: &str| {
        let upper = cap.to_ascii_uppercase();
        upper.strip_prefix("CAP_").unwrap_or(&upper).to_owned()
    };
    for cap in given {
        let before = opposite.len();
        opposite.retain(|other| plain(other) != plain(cap));
        let undone = opposite.len() != before;
        if !undone && !into.iter().any(|other| plain(other) == plain(cap)) {
            into.push(cap.clone());
        }
    }
}

fn absent<'a>(flag: &str, key: &str, what: &str, known: impl Iterator<Item = &'a str>) -> String {
    let meant = nearest(key, known).map(|k| format!("; did you mean {k}?")).unwrap_or_default();
    format!("{flag}: the service has no {what} {key}{meant}")
}
