//! Volumes of this node on behalf of people: list, remove, prune.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use tokio::sync::oneshot;
use warren_model::service::expand::Facts;
use warren_model::service::{MountKind, is_volume_name};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use super::{Code, Failure, Line, Outcome};
use crate::core::VolumeUser;
use crate::volumes::{Volume, size_of};
use crate::worker::{Message, Tools};

/// Tasks by the volumes that they use, as people call them.
type Users = BTreeMap<String, BTreeSet<String>>;

pub(super) async fn list(tools: &Arc<Tools>, asked: v1::VolumeList, line: &Line) -> Outcome {
    match listed(tools, asked).await {
        Ok(volumes) => answer(line, v1::Volumes { volumes, ..v1::Volumes::default() }).await,
        Err(failure) => Outcome::Failed(failure),
    }
}

async fn listed(tools: &Arc<Tools>, asked: v1::VolumeList) -> Result<Vec<v1::VolumeRow>, Failure> {
    let mut users = users(tools).await?;
    let (volumes, sizes) = (Arc::clone(&tools.volumes), asked.sizes);
    let found = on_disk(move || {
        let found = volumes.list(&asked.names)?;
        let sized = |volume: Volume| {
            let bytes = sizes.then(|| size_of(&volume.path));
            (volume, bytes)
        };
        Ok(found.into_iter().map(sized).collect::<Vec<_>>())
    });
    let row = |(volume, size_bytes): (Volume, Option<u64>)| v1::VolumeRow {
        users: users.remove(&volume.name).unwrap_or_default().into_iter().collect(),
        name: volume.name,
        created: volume.created.0,
        labels: volume.labels.into_iter().collect(),
        path: volume.path.display().to_string(),
        size_bytes,
    };
    Ok(found.await?.into_iter().map(row).collect())
}

pub(super) async fn remove(tools: &Arc<Tools>, asked: v1::VolumeRemove, line: &Line) -> Outcome {
    let done = match asked.prune {
        true => prune(tools, &asked).await,
        false => remove_named(tools, &asked.names).await,
    };
    match done {
        Ok((removed, freed_bytes)) => {
            answer(line, v1::Volumes { volumes: vec![], removed, freed_bytes }).await
        }
        Err(failure) => Outcome::Failed(failure),
    }
}

/// All of them or none, if one is in use or not there.
async fn remove_named(tools: &Arc<Tools>, names: &[String]) -> Result<(Vec<String>, u64), Failure> {
    let users = users(tools).await?;
    let known = find(tools, names).await?;
    for name in names {
        if let Some(users) = users.get(name) {
            return Err(in_use(name, users));
        }
        if !known.iter().any(|volume| volume.name == *name) {
            let message = format!("no volume {name} on this node");
            return Err(Failure::new(Code::NotFound, message).hint("warren volume ls shows them"));
        }
    }
    let mut freed = 0;
    let names: BTreeSet<&String> = names.iter().collect();
    for name in &names {
        freed += remove_one(tools, name).await?;
    }
    Ok((names.into_iter().cloned().collect(), freed))
}

async fn prune(
    tools: &Arc<Tools>,
    asked: &v1::VolumeRemove,
) -> Result<(Vec<String>, u64), Failure> {
    let users = users(tools).await?;
    let (mut removed, mut freed) = (Vec::new(), 0);
    for volume in find(tools, &[]).await? {
        let unused = !users.contains_key(&volume.name);
        if !unused || !asked.labels.iter().all(|label| has_label(&volume, label)) {
            continue;
        }
        if asked.dry_run {
            freed += on_disk(move || Ok(size_of(&volume.path))).await?;
            removed.push(volume.name);
            continue;
        }
        match remove_one(tools, &volume.name).await {
            Ok(bytes) => {
                freed += bytes;
                removed.push(volume.name);
            }
            // A task took it meanwhile.
            Err(failure) if matches!(failure.code, Code::Conflict | Code::NotFound) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok((removed, freed))
}

/// `KEY` or `KEY=VALUE`.
fn has_label(volume: &Volume, label: &str) -> bool {
    match label.split_once('=') {
        None => volume.labels.contains_key(label),
        Some((key, value)) => volume.labels.get(key).is_some_and(|own| own == value),
    }
}

/// Who uses it is asked while nobody can begin to.
async fn remove_one(tools: &Arc<Tools>, name: &str) -> Result<u64, Failure> {
    let _turn = tools.volumes.turn(name).await;
    if let Some(users) = users(tools).await?.get(name) {
        return Err(in_use(name, users));
    }
    let (volumes, name) = (Arc::clone(&tools.volumes), name.to_owned());
    on_disk(move || {
        let found = volumes.list(std::slice::from_ref(&name))?;
        let bytes = found.iter().map(|volume| size_of(&volume.path)).sum();
        volumes.remove(&name).map(|()| bytes)
    })
    .await
}

async fn find(tools: &Arc<Tools>, names: &[String]) -> Result<Vec<Volume>, Failure> {
    let (volumes, names) = (Arc::clone(&tools.volumes), names.to_vec());
    on_disk(move || volumes.list(&names)).await
}

async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, Failure> {
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::NotFound => Code::NotFound,
            _ => Code::Failed,
        };
        Failure::new(code, format!("volumes of this node: {error}"))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(io::Error::other("the agent is stopping"))).map_err(failed)
}

fn in_use(name: &str, users: &BTreeSet<String>) -> Failure {
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let message = format!("volume {name} is in use by {}", users.join(", "));
    Failure::new(Code::Conflict, message)
        .hint("it can be removed once no service has tasks here that mount it")
}

/// Of every task that this node has, running or not.
async fn users(tools: &Tools) -> Result<Users, Failure> {
    let (reply, told) = oneshot::channel();
    tools.tell(Message::VolumeUsers(reply)).await;
    let told = told.await.map_err(|_| Failure::new(Code::Failed, "the agent is stopping"))?;
    let mut users = Users::new();
    for user in &told {
        let VolumeUser { spec, service_name, labels } = user;
        let facts = Facts {
            service: spec.service,
            service_name,
            labels,
            node: tools.node,
            hostname: &tools.hostname,
            architecture: &tools.architecture,
            task: spec.id,
            slot: spec.slot,
            params: &spec.given.params,
        };
        let companions = spec.template.companions.iter().map(|companion| &companion.task);
        for mount in companions.chain([&*spec.template]).flat_map(|template| &template.mounts) {
            if let MountKind::Volume(volume) = mount.filled(&facts).kind
                && let Some(name) = volume.name.filter(|name| is_volume_name(name))
            {
                users.entry(name).or_default().insert(format!("{service_name}.{}", spec.slot));
            }
        }
    }
    Ok(users)
}

async fn answer(line: &Line, volumes: v1::Volumes) -> Outcome {
    line.send(Kind::Volumes(volumes)).await.map_or(Outcome::Gone, |()| Outcome::Served)
}
