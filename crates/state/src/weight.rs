//! How big things are: bounds on an object and on a transaction.
//!
//! Bytes are counted as the texts plus a flat rate per mutation, the same on
//! every version whatever the wire format does.

use std::collections::BTreeMap;

use warren_model::cluster::Cluster;
use warren_model::device::Devices;
use warren_model::network::NetworkSpec;
use warren_model::node::Description;
use warren_model::placement::{Placement, Taint};
use warren_model::policy::{PolicyPeer, PolicySpec};
use warren_model::resources::Resources;
use warren_model::service::{
    Attachment, Companion, Mount, ServiceSpec, SharedFolder, TaskTemplate,
};
use warren_model::task::TaskStatus;

use crate::change::{Mutation, Rejection, Transaction};

/// Of one object: keeps the log's records and the snapshot's chunks small.
pub(crate) const OBJECT_BYTES_MAX: usize = 512 << 10;
/// Of one transaction: one entry must not hold up heartbeats on a slow link.
pub(crate) const TRANSACTION_BYTES_MAX: usize = 1 << 20;
/// Ids, numbers and framing of a mutation; the largest (a task) takes about this.
const MUTATION_BYTES: usize = 96;
/// Of a SHA-256; a token's secret and the unlock key are no longer.
const HASH_BYTES: usize = 32;
/// A principal is `socket:0` or a certificate's name, never a text.
const PRINCIPAL_BYTES_MAX: usize = 256;

/// # Errors
/// [`Rejection::Invalid`] naming what is too large.
pub(crate) fn check(transaction: &Transaction) -> Result<(), Rejection> {
    let too_large = |what: &str, size: usize, unit: &str, max: usize| {
        Err(Rejection::Invalid(format!("{what} has {size} {unit}, at most {max} are allowed")))
    };
    let asked = transaction.request.as_ref().map(|request| &request.principal);
    for principal in asked.into_iter().chain(&transaction.principal) {
        if principal.len() > PRINCIPAL_BYTES_MAX {
            return too_large("principal", principal.len(), "bytes", PRINCIPAL_BYTES_MAX);
        }
    }
    let expects = transaction.expects.len();
    if expects > Transaction::MUTATIONS_MAX {
        return too_large("transaction", expects, "expectations", Transaction::MUTATIONS_MAX);
    }
    let mut total = 0;
    for mutation in &transaction.mutations {
        let bytes = MUTATION_BYTES + texts(mutation);
        if bytes > OBJECT_BYTES_MAX {
            return too_large("object", bytes, "bytes", OBJECT_BYTES_MAX);
        }
        total += bytes;
    }
    if total > TRANSACTION_BYTES_MAX {
        return too_large("transaction", total, "bytes", TRANSACTION_BYTES_MAX);
    }
    Ok(())
}

fn texts(mutation: &Mutation) -> usize {
    match mutation {
        Mutation::SetCluster(cluster) => of_cluster(cluster),
        Mutation::CreateNode(node) => {
            of_description(&node.description)
                + node.blocks.len() * 8
                + of_labels(&node.labels)
                + of_amounts(&node.generic)
                + of_resources(&node.system_reserved)
                + of_taints(&node.taints)
                + 2 * HASH_BYTES
        }
        Mutation::SetLabels { id: _, labels } => of_labels(labels),
        Mutation::SetResources { id: _, generic, system_reserved, defaults: _ } => {
            of_amounts(generic) + of_resources(system_reserved)
        }
        Mutation::SetTaints { id: _, taints } => of_taints(taints),
        Mutation::SetCertificate { .. } | Mutation::PutOperator(_) => 2 * HASH_BYTES,
        Mutation::DescribeNode { id: _, description } => of_description(description),
        Mutation::CreateService { id: _, spec } | Mutation::UpdateService { id: _, spec } => {
            of_spec(spec)
        }
        Mutation::RollBackService { id: _, to: _, why } => why.len(),
        Mutation::SetUpdate { id: _, phase: _, message }
        | Mutation::EndRun { message, .. }
        | Mutation::PassSchedule { message, .. } => message.len(),
        Mutation::BeginRun { given, .. } => given.text_len(),
        Mutation::CreateNetwork { id: _, spec } => of_network(spec),
        Mutation::CreatePolicy { id: _, spec } => of_policy(spec),
        Mutation::CreateTask(task) => of_status(&task.status) + of_devices(&task.devices),
        Mutation::PlaceTask { id: _, node: _, address: _, devices } => of_devices(devices),
        Mutation::ExplainTask { id: _, error } => error.len(),
        Mutation::ReportTask { id: _, node: _, status } => of_status(status),
        Mutation::Restored { .. }
        | Mutation::ControlTask { .. }
        | Mutation::PreemptTask { .. }
        | Mutation::SetNodeStatus { .. }
        | Mutation::SetAvailability { .. }
        | Mutation::SetRelays { .. }
        | Mutation::GrantBlock { .. }
        | Mutation::SetRole { .. }
        | Mutation::SetForgotten { .. }
        | Mutation::RemoveNode { .. }
        | Mutation::RemoveOperator { .. }
        | Mutation::SetHook { .. }
        | Mutation::Suspend { .. }
        | Mutation::RemoveService { .. }
        | Mutation::DropService { .. }
        | Mutation::RemoveNetwork { .. }
        | Mutation::RemovePolicy { .. }
        | Mutation::GrantVip { .. }
        | Mutation::ReleaseVip { .. }
        | Mutation::SetDesired { .. }
        | Mutation::DropTask { .. } => 0,
    }
}

fn of_cluster(cluster: &Cluster) -> usize {
    let authority = cluster.ca.as_ref().map_or(0, |authority| {
        authority.certificates.iter().map(Vec::len).sum::<usize>() + authority.key.expose().len()
    });
    let backup = cluster.backup.as_ref();
    let backup = backup.map_or(0, |policy| policy.folder.len() + policy.recipient.len());
    let binds = cluster.allow_bind.iter().map(|rule| rule.path().len() + 4);
    authority + backup + binds.sum::<usize>() + 3 * HASH_BYTES
}

fn of_devices(devices: &Devices) -> usize {
    devices.iter().map(|device| device.len() + 2).sum()
}

fn of_description(description: &Description) -> usize {
    let Description { hostname, address, version, architecture, kernel, labels, .. } = description;
    let Description { features, devices, .. } = description;
    let names = devices.iter().flat_map(|(kind, names)| names.iter().chain([kind]));
    let devices = names.map(|name| name.len() + 2).sum::<usize>();
    let texts = [hostname, address, version, architecture, kernel];
    let features = features.iter().map(|feature| feature.len() + 2).sum::<usize>();
    texts.into_iter().map(String::len).sum::<usize>() + of_labels(labels) + features + devices
}

pub(crate) fn of_spec(spec: &ServiceSpec) -> usize {
    of_template(&spec.task)
        + of_labels(&spec.labels)
        + spec.ports.len() * 16
        + spec.networks.iter().map(of_attachment).sum::<usize>()
        + spec.name.as_str().len()
        + of_placement(&spec.placement)
        + spec.job.schedule.as_ref().map_or(0, |s| s.cron.len() + s.timezone.len() + 16)
        + spec.job.inputs.params.iter().map(of_param).sum::<usize>()
        + spec.hooks.before.iter().chain(&spec.hooks.after).map(|w| w.len() + 2).sum::<usize>()
}

fn of_template(task: &TaskTemplate) -> usize {
    let options = [&task.workdir, &task.user, &task.hostname, &task.stop_signal];
    let lists = [&task.command, &task.env, &task.cap_add, &task.cap_drop];
    let texts = options
        .into_iter()
        .flatten()
        .chain(lists.into_iter().flatten())
        .chain(task.entrypoint.iter().flatten())
        .chain([&task.image]);
    // Two bytes of framing each: a million empty strings are not free.
    texts.map(|text| text.len() + 2).sum::<usize>()
        + of_labels(&task.container_labels)
        + of_resources(&task.reserve)
        + task.shared.iter().map(SharedFolder::text_len).sum::<usize>()
        + task.shared.len() * 8
        + task.mounts.iter().map(|mount| Mount::text_len(mount) + 32).sum::<usize>()
        + task.companions.iter().map(of_companion).sum::<usize>()
        + if task.privileges.is_empty() { 0 } else { 64 + task.privileges.text_len() }
}

fn of_status(status: &TaskStatus) -> usize {
    let companions = status.companions().iter();
    let companions = companions.map(|companion| companion.name.as_str().len() + 48);
    status.error.as_ref().map_or(0, |error| error.len()) + companions.sum::<usize>()
}

/// Numbers of limits and checks among them: few, but not nothing.
fn of_companion(companion: &Companion) -> usize {
    companion.name.as_str().len() + of_template(&companion.task) + 64
}

fn of_param((name, value): (&String, &Option<String>)) -> usize {
    name.len() + value.as_ref().map_or(0, String::len) + 6
}

fn of_placement(placement: &Placement) -> usize {
    let Placement { constraints, preferences, spread, affinities, tolerations, .. } = placement;
    let lists =
        [constraints.len(), preferences.len(), spread.len(), affinities.len(), tolerations.len()];
    placement.text_len() + lists.iter().sum::<usize>() * 8
}

fn of_resources(resources: &Resources) -> usize {
    if resources.is_empty() { 0 } else { 32 + of_amounts(&resources.generic) }
}

fn of_amounts(amounts: &BTreeMap<String, u64>) -> usize {
    amounts.keys().map(|name| name.len() + 12).sum()
}

fn of_taints(taints: &[Taint]) -> usize {
    taints.iter().map(|taint| taint.text_len() + 24).sum()
}

fn of_attachment(attachment: &Attachment) -> usize {
    attachment.text_len() + attachment.aliases.len() * 2 + 8
}

fn of_network(spec: &NetworkSpec) -> usize {
    // A subnet of each family.
    spec.name.as_str().len() + of_labels(&spec.labels) + 32
}

fn of_policy(spec: &PolicySpec) -> usize {
    let peer = |peer: &PolicyPeer| match peer {
        PolicyPeer::Service(name) => name.as_str().len() + 6,
        PolicyPeer::Network(name) => name.as_str().len() + 6,
        PolicyPeer::Range(_) | PolicyPeer::Outside => 24,
    };
    spec.name.as_str().len()
        + of_labels(&spec.labels)
        + spec.peers().map(peer).sum::<usize>()
        + spec.ports.len() * 12
}

fn of_labels(labels: &BTreeMap<String, String>) -> usize {
    labels.iter().map(|(key, value)| key.len() + value.len() + 6).sum()
}
