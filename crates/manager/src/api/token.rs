//! Join tokens: shown, made when there is none, rotated, given an end.

use warren_model::cluster::JoinToken;
use warren_proto::v1;
use warren_trust::{JoinRole, JoinToken as TokenText};

use crate::api::authorize::Who;
use crate::api::cluster::{authority, change_settings, settings};
use crate::api::request::{Content, request};
use crate::core::Core;
use crate::dispatch::membership;
use crate::refusal::Refusal;

/// Longer, and it is forgotten that it ends.
const EXPIRES_MAX_MS: u64 = 365 * 86_400_000;

pub(super) async fn get(
    core: &Core,
    who: &Who,
    wire: v1::GetJoinTokenRequest,
) -> Result<v1::JoinTokenText, Refusal> {
    if let Some(ms) = wire.expires_in_ms.filter(|ms| *ms == 0 || *ms > EXPIRES_MAX_MS) {
        return Err(Refusal::bad_input(format!("expires: {ms} ms is not within a year from now")));
    }
    let role = if wire.manager { JoinRole::Manager } else { JoinRole::Worker };
    let view = core.store.view();
    let kept = of(settings(&view)?, role);
    let asks_nothing = !wire.rotate && wire.expires_in_ms.is_none();
    if !(asks_nothing && kept.is_some()) {
        renew(core, who, role, &wire).await?;
    }
    // What was written, be it by an earlier try of the same request.
    let view = core.store.view();
    let cluster = settings(&view)?;
    let kept = of(cluster, role).ok_or_else(|| Refusal::failed("the token was taken back"))?;
    let token = TokenText::new(role, authority(cluster)?.fingerprint(), &kept.secret);
    Ok(v1::JoinTokenText {
        token: token.to_text().to_string(),
        expires: kept.expires.map(|time| time.0),
        managers: membership::managers(&view),
    })
}

fn of(cluster: &warren_model::Cluster, role: JoinRole) -> Option<&JoinToken> {
    match role {
        JoinRole::Worker => cluster.worker_token.as_ref(),
        JoinRole::Manager => cluster.manager_token.as_ref(),
    }
}

async fn renew(
    core: &Core,
    who: &Who,
    role: JoinRole,
    wire: &v1::GetJoinTokenRequest,
) -> Result<(), Refusal> {
    let content = Content::new("join-token")
        .with(&[u8::from(wire.manager), u8::from(wire.rotate)])
        .with(&wire.expires_in_ms.unwrap_or(0).to_le_bytes());
    let request = request(&who.principal, &wire.request_id, &content)?;
    let expires = wire.expires_in_ms.map(|ms| core.now().plus_ms(ms));
    let fresh = TokenText::new_secret(core.rng.as_ref());
    let write = change_settings(core, Some(who), request, |_, cluster| {
        let slot = match role {
            JoinRole::Worker => &mut cluster.worker_token,
            JoinRole::Manager => &mut cluster.manager_token,
        };
        *slot = Some(match slot.take() {
            Some(kept) if !wire.rotate => JoinToken { secret: kept.secret, expires },
            _ => JoinToken { secret: *fresh, expires },
        });
        Ok(())
    });
    write.await.map(drop)
}
