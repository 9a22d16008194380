//! The cluster's settings, and what a restore does to them.

use warren_model::bind::BindRule;
use warren_model::cluster::{Authority, BackupPolicy, Cluster};
use warren_model::event::{Action, Kind};
use warren_model::network::NetworkSpec;

use super::{Step, invalid};
use crate::change::Rejection;

/// Of an unlock key.
const UNLOCK_KEY_BYTES: usize = 32;

impl Step<'_> {
    pub(super) fn set_cluster(&mut self, cluster: &Cluster) -> Result<(), Rejection> {
        let before = self.state.cluster.clone();
        let mut cluster = cluster.clone();
        if let Some(before) = &before {
            if before.id != cluster.id {
                return invalid("the cluster's id cannot change");
            }
            // A caller that read them before a promotion must not give a number twice.
            cluster.next_number = cluster.next_number.max(before.next_number);
            cluster.epoch = cluster.epoch.max(before.epoch);
            if **before == cluster {
                return Ok(());
            }
            if before.vip_pool != cluster.vip_pool && !self.state.vips.is_empty() {
                let pool = before.vip_pool;
                return invalid(format!("virtual IPs of the pool {pool} are in use"));
            }
        }
        check(&cluster)?;
        let id = cluster.id.to_string();
        self.state.set_cluster(self.journal, cluster);
        let action = if before.is_some() { Action::Update } else { Action::Create };
        self.emit(Kind::Cluster, action, id, String::new(), String::new());
        Ok(())
    }

    /// The revision has jumped before: see `apply`.
    pub(super) fn restored(&mut self, epoch: u64) -> Result<(), Rejection> {
        let Some(before) = self.state.cluster.clone() else {
            return invalid("there is no cluster to restore");
        };
        if epoch <= before.epoch {
            return invalid(format!("epoch {epoch} is not later than {}", before.epoch));
        }
        let id = before.id.to_string();
        let cluster = Cluster { epoch, ..Cluster::clone(&before) };
        self.state.set_cluster(self.journal, cluster);
        let message = format!("restored, epoch {epoch}");
        self.emit(Kind::Cluster, Action::Update, id, String::new(), message);
        Ok(())
    }
}

fn check(cluster: &Cluster) -> Result<(), Rejection> {
    // 30: a block needs a network, a gateway, a broadcast and at least one other address.
    if cluster.block_prefix < cluster.pool.prefix || cluster.block_prefix > 30 {
        let Cluster { pool, block_prefix, .. } = cluster;
        return invalid(format!(
            "block prefix {block_prefix} is not between that of the pool {pool} and 30"
        ));
    }
    if cluster.vip_pool.prefix > NetworkSpec::SUBNET_PREFIX_MAX {
        let (pool, max) = (cluster.vip_pool, NetworkSpec::SUBNET_PREFIX_MAX);
        return invalid(format!("pool {pool} has no virtual IP: at most /{max}"));
    }
    if cluster.pool.overlaps(&cluster.vip_pool) {
        let Cluster { pool, vip_pool, .. } = cluster;
        return invalid(format!("pool {pool} overlaps the pool {vip_pool} of virtual IPs"));
    }
    let lifetimes = Cluster::CERTIFICATE_LIFETIME_MIN_MS..=Cluster::CERTIFICATE_LIFETIME_MAX_MS;
    if !lifetimes.contains(&cluster.certificate_lifetime_ms) {
        return invalid(format!(
            "certificate lifetime {} ms is not between {} and {}",
            cluster.certificate_lifetime_ms,
            lifetimes.start(),
            lifetimes.end()
        ));
    }
    if let Some(authority) = &cluster.ca
        && !(1..=Authority::CERTIFICATES_MAX).contains(&authority.certificates.len())
    {
        let (found, max) = (authority.certificates.len(), Authority::CERTIFICATES_MAX);
        return invalid(format!("authority has {found} certificates, allowed are 1 to {max}"));
    }
    if let Some(key) = &cluster.unlock_key
        && key.expose().len() != UNLOCK_KEY_BYTES
    {
        let found = key.expose().len();
        return invalid(format!("unlock key has {found} bytes, not {UNLOCK_KEY_BYTES}"));
    }
    if cluster.allow_bind.len() > BindRule::RULES_MAX {
        let (found, max) = (cluster.allow_bind.len(), BindRule::RULES_MAX);
        return invalid(format!("{found} paths may be mounted, allowed are {max}"));
    }
    if let Err(error) = cluster.defaults.validate() {
        return invalid(error.to_string());
    }
    cluster.backup.as_ref().map_or(Ok(()), check_backup)
}

fn check_backup(policy: &BackupPolicy) -> Result<(), Rejection> {
    let BackupPolicy { folder, interval_ms, keep, recipient } = policy;
    if !folder.starts_with('/') {
        return invalid(format!("backup folder {folder:?} is not an absolute path"));
    }
    if *interval_ms < BackupPolicy::INTERVAL_MIN_MS {
        let min = BackupPolicy::INTERVAL_MIN_MS;
        return invalid(format!("backup interval {interval_ms} ms is less than {min}"));
    }
    if !(1..=BackupPolicy::KEEP_MAX).contains(keep) {
        let max = BackupPolicy::KEEP_MAX;
        return invalid(format!("backups kept are {keep}, allowed are 1 to {max}"));
    }
    if recipient.is_empty() {
        return invalid("backup recipient is empty");
    }
    Ok(())
}
