//! The cluster's settings and its certificate authority.

use warren_model::cluster::BackupPolicy;
use warren_model::moving::Rebalance;
use warren_model::placement::Strategy;
use warren_model::{Allowed, Cluster};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Transaction};
use warren_trust::Authority;

use crate::api::authorize::Who;
use crate::api::change;
use crate::api::mounts;
use crate::api::request::{Content, request};
use crate::backup;
use crate::core::Core;
use crate::refusal::Refusal;

/// Ended tasks kept per slot: more is a log, not a history.
const HISTORY_MAX: u32 = 100;

/// The settings, which every running cluster has.
pub(crate) fn settings(view: &State) -> Result<&Cluster, Refusal> {
    view.cluster().ok_or_else(|| Refusal::unavailable("the cluster has no settings yet"))
}

/// Changes the settings; again when somebody else was faster.
pub(crate) async fn change_settings(
    core: &Core,
    who: Option<&Who>,
    request: Option<warren_state::change::Request>,
    mut edit: impl FnMut(&State, &mut Cluster) -> Result<(), Refusal>,
) -> Result<u64, Refusal> {
    change(core, |view| {
        let mut cluster = settings(view)?.clone();
        edit(view, &mut cluster)?;
        let revision = view.revision_of(Key::Cluster);
        Ok(Transaction {
            request: request.clone(),
            principal: who.and_then(Who::audit),
            expects: vec![Expect { key: Key::Cluster, revision }],
            mutations: vec![Mutation::SetCluster(cluster)],
        })
    })
    .await
}

fn changed(core: &Core, revision: u64) -> v1::Changed {
    v1::Changed {
        ids: vec![core.cluster_id.as_bytes().to_vec()],
        revision,
        ..v1::Changed::default()
    }
}

pub(super) fn get(view: &State) -> Result<v1::ClusterState, Refusal> {
    let cluster = settings(view)?;
    let authority = cluster.ca.as_ref().map(Authority::from_state).transpose();
    let authority = authority.map_err(|e| Refusal::failed(format!("read the authority: {e}")))?;
    let older = authority.as_ref().map_or(0, |authority| {
        let hash = authority.issuer_hash();
        view.nodes().filter(|node| node.issuer_hash != hash).count()
    });
    Ok(v1::ClusterState {
        id: cluster.id.as_bytes().to_vec(),
        history_limit: cluster.history_limit,
        pool: Some((&cluster.pool).into()),
        block_prefix: cluster.block_prefix.into(),
        certificate_lifetime_ms: cluster.certificate_lifetime_ms,
        epoch: cluster.epoch,
        locked: cluster.unlock_key.is_some(),
        authority: authority.map(|a| a.fingerprint().to_vec()).unwrap_or_default(),
        nodes_by_older_authority: u32::try_from(older).unwrap_or(u32::MAX),
        backup: cluster.backup.as_ref().map(Into::into),
        revision: view.revision(),
        vip_pool: Some((&cluster.vip_pool).into()),
        overlay: v1::OverlayKind::from(cluster.overlay).into(),
        prefix_v6: Some((&warren_model::ipv6::cluster_prefix(cluster.id)).into()),
        strategy: v1::Strategy::from(cluster.strategy).into(),
        rebalance: v1::Rebalance::from(cluster.rebalance).into(),
        defaults: (!cluster.defaults.is_empty()).then(|| (&cluster.defaults).into()),
        allow_bind: cluster.allow_bind.iter().map(ToString::to_string).collect(),
        allowed: cluster.allowed.iter().map(ToString::to_string).collect(),
    })
}

pub(super) async fn update(
    core: &Core,
    who: &Who,
    wire: v1::UpdateClusterRequest,
) -> Result<v1::Changed, Refusal> {
    let edits = Edits::parse(&wire)?;
    let content = Content::new("update-cluster")
        .with_message(&v1::UpdateClusterRequest { request_id: Vec::new(), ..wire.clone() });
    let request = request(&who.principal, &wire.request_id, &content)?;
    let revision = change_settings(core, Some(who), request, |_, cluster| {
        edits.apply(cluster);
        mounts::change(cluster, &wire)?;
        cluster.defaults.validate().map_err(|error| Refusal::bad_input(error.to_string()))
    });
    Ok(changed(core, revision.await?))
}

/// What is to become different.
#[derive(Debug)]
struct Edits {
    history_limit: Option<u32>,
    certificate_lifetime_ms: Option<u64>,
    /// `Some(None)` takes it off.
    backup: Option<Option<BackupPolicy>>,
    strategy: Option<Strategy>,
    rebalance: Option<Rebalance>,
    defaults: Option<v1::Defaults>,
    allowed: Option<Allowed>,
}

impl Edits {
    fn parse(wire: &v1::UpdateClusterRequest) -> Result<Self, Refusal> {
        if let Some(limit) = wire.history_limit.filter(|limit| *limit > HISTORY_MAX) {
            return Err(Refusal::bad_input(format!(
                "history_limit: {limit} is more than {HISTORY_MAX}"
            )));
        }
        let range = Cluster::CERTIFICATE_LIFETIME_MIN_MS..=Cluster::CERTIFICATE_LIFETIME_MAX_MS;
        if let Some(ms) = wire.certificate_lifetime_ms.filter(|ms| !range.contains(ms)) {
            return Err(Refusal::bad_input(format!(
                "certificate_lifetime: {} s is not between {} s and {} days",
                ms / 1000,
                range.start() / 1000,
                range.end() / 86_400_000
            )));
        }
        let backup = match (&wire.backup, wire.backup_off) {
            (Some(_), true) => {
                return Err(Refusal::bad_input("backup: is set and taken off at once"));
            }
            (Some(policy), false) => {
                let policy = BackupPolicy::try_from(policy.clone())?;
                backup::check_policy(&policy)?;
                Some(Some(policy))
            }
            (None, true) => Some(None),
            (None, false) => None,
        };
        let strategy = match wire.strategy() {
            v1::Strategy::Unspecified if wire.strategy != 0 => {
                let number = wire.strategy;
                return Err(Refusal::bad_input(format!("strategy: {number} is not known"))
                    .hint("spread is 1, bin-pack is 2"));
            }
            v1::Strategy::Unspecified => None,
            strategy => Some(Strategy::try_from(strategy)?),
        };
        let rebalance = match wire.rebalance() {
            v1::Rebalance::Unspecified if wire.rebalance != 0 => {
                let number = wire.rebalance;
                return Err(Refusal::bad_input(format!("rebalance: {number} is not known"))
                    .hint("auto is 1, never is 2"));
            }
            v1::Rebalance::Unspecified => None,
            v1::Rebalance::Always => {
                return Err(Refusal::bad_input("rebalance: always is said of a service")
                    .hint("warren service update --rebalance always NAME"));
            }
            rebalance => Some(Rebalance::try_from(rebalance)?),
        };
        let texts = |wire: &v1::Strings| {
            Allowed::from_texts(wire.values.iter().map(String::as_str))
                .map_err(|error| Refusal::bad_input(format!("allow: {error}")))
        };
        let edits = Self {
            history_limit: wire.history_limit,
            certificate_lifetime_ms: wire.certificate_lifetime_ms,
            backup,
            strategy,
            rebalance,
            defaults: wire.defaults,
            allowed: wire.allowed.as_ref().map(texts).transpose()?,
        };
        let nothing = edits.history_limit.is_none()
            && edits.certificate_lifetime_ms.is_none()
            && edits.backup.is_none()
            && edits.strategy.is_none()
            && edits.rebalance.is_none()
            && wire.allow_bind.is_empty()
            && wire.allow_bind_rm.is_empty()
            && edits.allowed.is_none()
            && edits.defaults.is_none_or(|change| change == v1::Defaults::default());
        if nothing { Err(Refusal::bad_input("nothing is to be changed")) } else { Ok(edits) }
    }

    fn apply(&self, cluster: &mut Cluster) {
        if let Some(limit) = self.history_limit {
            cluster.history_limit = limit;
        }
        if let Some(ms) = self.certificate_lifetime_ms {
            cluster.certificate_lifetime_ms = ms;
        }
        if let Some(backup) = &self.backup {
            cluster.backup.clone_from(backup);
        }
        cluster.strategy = self.strategy.unwrap_or(cluster.strategy);
        cluster.rebalance = self.rebalance.unwrap_or(cluster.rebalance);
        let defaults = self.defaults.map(|change| change.change(cluster.defaults));
        cluster.defaults = defaults.unwrap_or(cluster.defaults);
        if let Some(allowed) = &self.allowed {
            cluster.allowed.clone_from(allowed);
        }
    }
}

/// A new key issues from now on; the old one is trusted until every node has a certificate by the
/// new one, which the leader watches (`authority`).
pub(super) async fn rotate_authority(
    core: &Core,
    who: &Who,
    wire: v1::RotateAuthorityRequest,
) -> Result<v1::Changed, Refusal> {
    let request = request(&who.principal, &wire.request_id, &Content::new("rotate-authority"))?;
    let view = core.store.view();
    if let Some(revision) = super::request::repeated(&view, request.as_ref())? {
        return Ok(changed(core, revision));
    }
    let now = core.now();
    let revision = change_settings(core, Some(who), request, |view, cluster| {
        let authority = authority(cluster)?;
        if authority.is_rotating() {
            let hash = authority.issuer_hash();
            let left = view.nodes().filter(|node| node.issuer_hash != hash).count();
            return Err(Refusal::not_now(format!(
                "the authority is being rotated already: {left} nodes have certificates by the \
                 older one"
            ))
            .hint("nodes renew by themselves; remove those that are gone: warren node ls"));
        }
        let next = authority.rotate(now);
        let next = next.map_err(|e| Refusal::failed(format!("rotate the authority: {e}")))?;
        cluster.ca = Some(next.to_state());
        Ok(())
    });
    Ok(changed(core, revision.await?))
}

/// The authority that issues certificates.
pub(crate) fn authority(cluster: &Cluster) -> Result<Authority, Refusal> {
    let kept = cluster.ca.as_ref().ok_or_else(|| {
        Refusal::not_now("the cluster has no certificate authority")
            .hint("it was made by a version that could not take in other nodes")
    })?;
    Authority::from_state(kept).map_err(|e| Refusal::failed(format!("read the authority: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wire: v1::UpdateClusterRequest, expected: &str) {
        let got = match Edits::parse(&wire) {
            Ok(_) => "ok".to_owned(),
            Err(refusal) => refusal.to_string(),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn updates() {
        let wire = v1::UpdateClusterRequest::default;
        check(wire(), "nothing is to be changed");
        check(v1::UpdateClusterRequest { history_limit: Some(0), ..wire() }, "ok");
        check(
            v1::UpdateClusterRequest { history_limit: Some(101), ..wire() },
            "history_limit: 101 is more than 100",
        );
        check(
            v1::UpdateClusterRequest { certificate_lifetime_ms: Some(1000), ..wire() },
            "certificate_lifetime: 1 s is not between 10 s and 3650 days",
        );
        check(v1::UpdateClusterRequest { backup_off: true, ..wire() }, "ok");
        let allowed = |text: &str| {
            let values = text.split_whitespace().map(str::to_owned).collect();
            v1::UpdateClusterRequest { allowed: Some(v1::Strings { values }), ..wire() }
        };
        check(allowed(""), "ok");
        check(allowed("host-pid cap:net_admin"), "ok");
        check(
            allowed("cap:FLY"),
            "allow: \"FLY\" is not a capability; write e.g. cap:NET_ADMIN or cap:ALL",
        );
        check(v1::UpdateClusterRequest { strategy: 2, ..wire() }, "ok");
        check(v1::UpdateClusterRequest { strategy: 3, ..wire() }, "strategy: 3 is not known");
        check(v1::UpdateClusterRequest { rebalance: 2, ..wire() }, "ok");
        check(
            v1::UpdateClusterRequest { rebalance: 3, ..wire() },
            "rebalance: always is said of a service",
        );
        check(v1::UpdateClusterRequest { rebalance: 4, ..wire() }, "rebalance: 4 is not known");
        check(
            v1::UpdateClusterRequest {
                backup: Some(v1::BackupPolicy::default()),
                backup_off: true,
                ..wire()
            },
            "backup: is set and taken off at once",
        );
    }
}
