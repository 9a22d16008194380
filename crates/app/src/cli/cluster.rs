//! `warren cluster update|lock|unlock|ca rotate|key rotate`: the cluster's
//! settings and secrets.

use clap::{Args, Subcommand};
use serde_json::json;
use warren_model::ipv6::Subnet6;
use warren_model::moving::Rebalance;
use warren_model::placement::Strategy;
use warren_model::quantity::format_duration_ms;
use warren_model::{Allowed, Defaults};
use warren_proto::v1;
use zeroize::Zeroizing;

use super::client::request_id;
use super::context::Context;
use super::defaults::{DefaultFlags, defaults_json};
use super::failure::Failure;
use super::rows::{cluster_id, hex};
use super::secret;
use super::spec::{count, duration};
use super::template::Format;

#[derive(Debug, Args)]
pub(crate) struct UpdateArgs {
    /// Ended tasks that are kept of each slot
    #[arg(long, value_name = "N", value_parser = count)]
    history_limit: Option<u32>,
    /// Which of the nodes that fit services take that do not say: spread (the emptiest) or
    /// bin-pack (the fullest)
    #[arg(long, value_name = "STRATEGY")]
    strategy: Option<Strategy>,
    /// Whether tasks of services are moved to nodes that came later: auto or never
    #[arg(long, value_name = "auto|never")]
    rebalance: Option<Rebalance>,
    #[command(flatten)]
    defaults: DefaultFlags,
    /// Let containers mount a path of nodes and all below it, or to read alone; repeat for more
    #[arg(long, value_name = "PATH[:ro]")]
    allow_bind: Vec<String>,
    /// Let containers mount a path no longer
    #[arg(long, value_name = "PATH")]
    allow_bind_rm: Vec<String>,
    /// What services may ask for that endangers nodes, in the place of what is allowed now:
    /// privileged, host-network, host-pid, host-ipc, seccomp-unconfined, cap:NAME,
    /// device:/dev/PATH, parted by commas; none for nothing
    #[arg(long, value_name = "LIST")]
    allow: Option<Allowed>,
    /// How long certificates of nodes are good, e.g. 90d
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    certificate_lifetime: Option<u64>,
    /// Write backups into this folder of whichever manager leads; off ends it
    #[arg(long, value_name = "FOLDER")]
    backup_folder: Option<String>,
    /// Between two backups
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "backup_folder")]
    backup_interval: Option<u64>,
    /// Backups that are kept, the newest
    #[arg(long, value_name = "N", value_parser = count, requires = "backup_folder")]
    backup_keep: Option<u32>,
    /// Public key that they are encrypted for: `warren cluster backup-key` makes one
    #[arg(long, value_name = "KEY", requires = "backup_folder")]
    backup_recipient: Option<String>,
}

/// A backup each day, a week of them.
const BACKUP_INTERVAL_MS: u64 = 86_400_000;
const BACKUP_KEEP: u32 = 7;

#[derive(Debug, Args)]
pub(crate) struct SettingsArgs {
    /// table, json, yaml or a template such as '{{.HistoryLimit}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Args)]
pub(crate) struct LockArgs {
    /// Take the lock off
    #[arg(long, conflicts_with = "rotate")]
    off: bool,
    /// Make another unlock key
    #[arg(long)]
    rotate: bool,
    /// Print the key alone
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CaVerb {
    /// Make another certificate authority; nodes change to it by themselves
    Rotate,
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyVerb {
    /// Seal what the managers write to their disks with other keys from now on
    Rotate,
}

pub(crate) async fn update(context: &mut Context<'_>, args: UpdateArgs) -> Result<(), Failure> {
    let backup_off = args.backup_folder.as_deref() == Some("off");
    let backup = match args.backup_folder.filter(|_| !backup_off) {
        None => None,
        Some(folder) => {
            let recipient = args.backup_recipient.ok_or_else(|| {
                Failure::input("--backup-folder: backups need a --backup-recipient")
                    .hint("`warren cluster backup-key FILE` makes a key pair")
            })?;
            Some(v1::BackupPolicy {
                folder,
                interval_ms: args.backup_interval.unwrap_or(BACKUP_INTERVAL_MS),
                keep: args.backup_keep.unwrap_or(BACKUP_KEEP),
                recipient,
            })
        }
    };
    let request = v1::UpdateClusterRequest {
        history_limit: args.history_limit,
        certificate_lifetime_ms: args.certificate_lifetime,
        backup,
        backup_off,
        request_id: request_id(),
        strategy: args.strategy.map_or(v1::Strategy::Unspecified, v1::Strategy::from).into(),
        rebalance: args.rebalance.map_or(v1::Rebalance::Unspecified, v1::Rebalance::from).into(),
        defaults: args.defaults.wire(),
        allow_bind: args.allow_bind,
        allow_bind_rm: args.allow_bind_rm,
        allowed: args
            .allow
            .map(|all| v1::Strings { values: all.iter().map(ToString::to_string).collect() }),
    };
    let nothing = request.history_limit.is_none()
        && request.certificate_lifetime_ms.is_none()
        && request.backup.is_none()
        && args.strategy.is_none()
        && args.rebalance.is_none()
        && request.defaults.is_none()
        && request.allow_bind.is_empty()
        && request.allow_bind_rm.is_empty()
        && request.allowed.is_none()
        && !backup_off;
    if nothing {
        return Err(Failure::input("cluster update: nothing is to be changed")
            .hint("give --history-limit, --strategy, --rebalance, --default-reserve-memory (and the like), --allow, --allow-bind, --certificate-lifetime or --backup-folder"));
    }
    context.client.call(async |mut control| control.update_cluster(request.clone()).await).await?;
    Ok(())
}

pub(crate) async fn settings(
    context: &mut Context<'_>,
    args: &SettingsArgs,
) -> Result<(), Failure> {
    let state = context
        .client
        .call(async |mut control| control.get_cluster(v1::GetClusterRequest {}).await)
        .await?;
    let strategy = Strategy::try_from(state.strategy()).unwrap_or_default();
    let rebalance = Rebalance::try_from(state.rebalance()).unwrap_or_default();
    let backup = state.backup.map(|policy| {
        json!({
            "folder": policy.folder,
            "interval_ms": policy.interval_ms,
            "keep": policy.keep,
            "recipient": policy.recipient,
        })
    });
    let mut object = json!({
        "id": cluster_id(&state.id),
        "history_limit": state.history_limit,
        "pool": subnet(state.pool.unwrap_or_default()),
        "block_prefix": state.block_prefix,
        "vip_pool": state.vip_pool.map(subnet),
        "overlay": overlay(state.overlay),
        "prefix_v6": state.prefix_v6.and_then(prefix_v6),
        "certificate_lifetime_ms": state.certificate_lifetime_ms,
        "epoch": state.epoch,
        "locked": state.locked,
        "authority": hex(&state.authority),
        "nodes_by_older_authority": state.nodes_by_older_authority,
        "backup": backup,
        "strategy": strategy.as_str(),
        "rebalance": rebalance.as_str(),
        "defaults": defaults_json(state.defaults),
        "allow_bind": state.allow_bind,
        "allowed": state.allowed,
        "revision": state.revision,
    });
    if matches!(args.format, Format::Table) {
        let defaults = state.defaults.map(Defaults::from).unwrap_or_default();
        for_people(&mut object, defaults);
    }
    context.printer.object(&object, &args.format)
}

fn subnet(subnet: v1::Subnet) -> String {
    format!("{}/{}", std::net::Ipv4Addr::from(subnet.address), subnet.prefix)
}

fn prefix_v6(subnet: v1::Subnet6) -> Option<String> {
    Subnet6::try_from(subnet).ok().map(|subnet| subnet.to_string())
}

/// A name that a newer manager knows and this program does not is none.
fn overlay(wire: i32) -> Option<&'static str> {
    match v1::OverlayKind::try_from(wire).ok()? {
        v1::OverlayKind::Wireguard => Some("wireguard"),
        v1::OverlayKind::Vxlan => Some("vxlan"),
        v1::OverlayKind::None => Some("none"),
        v1::OverlayKind::Unspecified => None,
    }
}

/// Times and amounts in words instead of numbers.
fn for_people(object: &mut serde_json::Value, defaults: Defaults) {
    let Some(settings) = object.as_object_mut() else { return };
    let text = Some(defaults.to_string()).filter(|text| !text.is_empty());
    settings.insert("defaults".to_owned(), text.into());
    let words = settings.get("allowed").and_then(|all| all.as_array());
    let words: Vec<&str> = words.into_iter().flatten().filter_map(|word| word.as_str()).collect();
    let allowed = if words.is_empty() { "none".to_owned() } else { words.join(",") };
    settings.insert("allowed".to_owned(), allowed.into());
    let ms = settings.remove("certificate_lifetime_ms").and_then(|ms| ms.as_u64());
    let lifetime = ms.map(format_duration_ms);
    settings.insert("certificate_lifetime".to_owned(), lifetime.into());
    if let Some(backup) = settings.get("backup").and_then(|backup| backup.as_object()) {
        let word = |key: &str| backup[key].as_str().unwrap_or_default().to_owned();
        let every = backup["interval_ms"].as_u64().map(format_duration_ms).unwrap_or_default();
        let text = format!(
            "into {} every {every}, {} kept, for {}",
            word("folder"),
            backup["keep"],
            word("recipient")
        );
        settings.insert("backup".to_owned(), text.into());
    }
}

pub(crate) async fn lock(context: &mut Context<'_>, args: &LockArgs) -> Result<(), Failure> {
    let request =
        v1::SetLockRequest { off: args.off, rotate: args.rotate, request_id: request_id() };
    let answer =
        context.client.call(async |mut control| control.set_lock(request.clone()).await).await?;
    let key = Zeroizing::new(answer.key);
    if args.off {
        return Ok(());
    }
    if !args.quiet {
        context
            .printer
            .note("managers are locked after a restart from now on; keep this key, it opens them:");
    }
    context.printer.line(key.as_str())
}

pub(crate) async fn unlock(context: &mut Context<'_>) -> Result<(), Failure> {
    let key = secret::read(context.printer, "unlock key: ")?;
    let request = v1::UnlockRequest { key: key.to_string() };
    context.client.call(async |mut control| control.unlock(request.clone()).await).await?;
    Ok(())
}

pub(crate) async fn ca(context: &mut Context<'_>, verb: &CaVerb) -> Result<(), Failure> {
    let CaVerb::Rotate = verb;
    let request = v1::RotateAuthorityRequest { request_id: request_id() };
    context
        .client
        .call(async |mut control| control.rotate_authority(request.clone()).await)
        .await?;
    context.printer.note("nodes change to the new authority now; `warren cluster settings` shows");
    context.printer.note("how many have not yet. Join tokens are others from now on");
    Ok(())
}

pub(crate) async fn key(context: &mut Context<'_>, verb: &KeyVerb) -> Result<(), Failure> {
    let KeyVerb::Rotate = verb;
    // Those that took part have new keys: once more would make others.
    let asked = context
        .client
        .once(async |mut control| control.rotate_data_key(v1::RotateDataKeyRequest {}).await);
    asked.await.map(drop)
}
