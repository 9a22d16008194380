//! Everything about a service as JSON, for `service inspect`.
//!
//! Words are those of the flags, in snake_case.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};
use warren_model::ServiceSpec;
use warren_model::quantity::format_duration_ms;
use warren_model::service::{
    Companion, CompanionKind, Mode, PublishMode, RestartCondition, Service, TaskTemplate,
};
use warren_proto::v1;

use super::failure::Failure;
use super::health::{check_json, health_json};
use super::hooks::hooks_json;
use super::job::{job_json, policy_json};
use super::mounts::mounts_json;
use super::moving::moving_json;
use super::pace::{policies_json, status_json};
use super::placing::{placement_json, resources_json};
use super::privileges::privileges_json;
use super::tuning::tuning_json;

/// A service as `inspect` shows it.
pub(crate) fn whole(message: &v1::Service) -> Result<Value, Failure> {
    let service = Service::try_from(message.clone())
        .map_err(|e| Failure::failed(format!("read the answer about a service: {e}")))?;
    Ok(json!({
        "id": service.id.to_string(),
        "name": service.spec.name.to_string(),
        "revision": service.number,
        "state_revision": service.revision,
        "template": service.template,
        "removing": service.removing,
        "created_at": service.created.to_string(),
        "updated_at": service.updated.to_string(),
        "running": message.running,
        "desired": message.desired,
        "completed": message.completed,
        "changed_by": service.change.by,
        "update_state": message.update_state,
        "update_message": Some(&message.update_message).filter(|text| !text.is_empty()),
        "update": status_json(
            &message.update_state,
            &message.update_message,
            service.update.as_ref(),
        ),
        "addresses": addresses(message),
        "job": job_json(service.job.as_ref(), message),
        "spec": spec_json(&service.spec),
    }))
}

/// Virtual IPs; `slot` is null for the service's own.
fn addresses(message: &v1::Service) -> Vec<Value> {
    let row = |at: &v1::ServiceAddress| {
        let v6 = <[u8; 16]>::try_from(at.address_v6.as_slice()).ok();
        json!({
            "network": at.network,
            "slot": Some(at.slot).filter(|slot| *slot > 0),
            "address": Ipv4Addr::from(at.address).to_string(),
            "address_v6": v6.map(|bytes| Ipv6Addr::from(bytes).to_string()),
        })
    };
    message.addresses.iter().map(row).collect()
}

/// A specification in the words of the flags.
pub(crate) fn spec_json(spec: &ServiceSpec) -> Value {
    let mode = spec.mode.as_str();
    let replicas = match spec.mode {
        Mode::Replicated { replicas } => Some(replicas),
        Mode::ReplicatedJob { completions, .. } => Some(completions),
        Mode::Global | Mode::GlobalJob => None,
    };
    let ports: Vec<Value> = spec
        .ports
        .iter()
        .map(|port| {
            json!({
                "published": port.published,
                "target": port.target,
                "protocol": port.protocol.as_str(),
                "mode": match port.mode {
                    PublishMode::Ingress => "ingress",
                    PublishMode::Host => "host",
                },
                "host_ip": port.bind.to_string(),
            })
        })
        .collect();
    let host = json!({"name": "host", "aliases": [], "ip": null});
    let host = spec.task.privileges.host_network.then_some(host);
    let networks: Vec<Value> = spec
        .attachments()
        .iter()
        .map(|on| {
            json!({
                "name": on.network.to_string(),
                "aliases": on.aliases.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "ip": on.address.map(|address| address.to_string()),
            })
        })
        .chain(host)
        .collect();
    let (update, rollback) = policies_json(spec);
    let mut value = template_json(&spec.task);
    let companions = |kind| spec.task.of_kind(kind).map(companion_json).collect::<Vec<_>>();
    let more = json!({
        "name": spec.name.to_string(),
        "labels": spec.labels,
        "mode": mode,
        "replicas": replicas,
        "on_disconnect": spec.on_disconnect.to_string(),
        "init_containers": companions(CompanionKind::Init),
        "sidecars": companions(CompanionKind::Sidecar),
        "ports": ports,
        "networks": networks,
        "placement": placement_json(&spec.placement),
        "moving": moving_json(spec.moving),
        "health": health_json(spec),
        "endpoint": {
            "mode": spec.endpoint.mode.as_str(),
            "affinity": spec.endpoint.affinity.as_str(),
            "prefer_local": spec.endpoint.prefer_local,
            "slot_addresses": spec.endpoint.slot_addresses,
        },
        "update": update,
        "rollback": rollback,
        "job": policy_json(spec),
        "hooks": hooks_json(&spec.hooks),
    });
    if let (Value::Object(all), Value::Object(more)) = (&mut value, more) {
        all.extend(more);
    }
    value
}

fn companion_json(companion: &Companion) -> Value {
    let mut value = template_json(&companion.task);
    if let Value::Object(all) = &mut value {
        // Those of the task.
        for shared in ["hostname", "container_labels", "restart", "log", "force"] {
            all.remove(shared);
        }
        all.insert("name".to_owned(), json!(companion.name.as_str()));
        if companion.kind == CompanionKind::Sidecar {
            all.insert("health".to_owned(), check_json(&companion.task.health, &[]));
        }
    }
    value
}

fn template_json(task: &TaskTemplate) -> Value {
    let grace = task.stop_grace_ms.unwrap_or(TaskTemplate::STOP_GRACE_MS);
    json!({
        "image": task.image,
        "entrypoint": task.entrypoint,
        "command": task.command,
        "env": task.env,
        "workdir": task.workdir,
        "user": task.user,
        "hostname": task.hostname,
        "container_labels": task.container_labels,
        "stop_signal": task.stop_signal,
        "stop_grace_period": format_duration_ms(grace),
        "read_only": task.read_only,
        "mounts": mounts_json(task),
        "shm_bytes": task.shm_bytes.unwrap_or(TaskTemplate::SHM_BYTES),
        "cap_add": task.cap_add,
        "cap_drop": task.cap_drop,
        "privileges": privileges_json(&task.privileges),
        "limit": {
            "memory_bytes": task.limits.memory_bytes,
            "cpus": task.limits.cpu_millis.map(|m| f64::from(m) / 1000.0),
            "pids": task.limits.pids,
        },
        "reserve": resources_json(&task.reserve),
        "tuning": tuning_json(&task.tuning),
        "restart": {
            "condition": match task.restart.condition {
                RestartCondition::None => "none",
                RestartCondition::OnFailure => "on-failure",
                RestartCondition::Any => "any",
            },
            "delay": format_duration_ms(task.restart.delay_ms),
            "max_attempts": task.restart.max_attempts,
            "window": format_duration_ms(task.restart.window_ms),
        },
        "log": {"max_bytes": task.log.max_bytes, "max_files": task.log.max_files},
        "force": task.force,
    })
}
