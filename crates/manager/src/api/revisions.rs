//! What services were before: shown, gone back to; and updates that are paused.

use warren_model::ServiceId;
use warren_model::service::{Revision, Service, UpdatePhase};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::propose;
use crate::api::request::{Content, rehearse, repeated, request};
use crate::api::services::{allowed, find};
use crate::core::Core;
use crate::quorum;
use crate::refusal::Refusal;

pub(super) fn list(
    core: &Core,
    view: &State,
    wire: &v1::ListRevisionsRequest,
) -> Result<v1::ListRevisionsResponse, Refusal> {
    let service = find(view, &wire.service)?;
    let mut revisions: Vec<v1::ServiceRevision> =
        view.revisions(service.id).iter().map(|revision| revision.as_ref().into()).collect();
    revisions.push(current(service));
    Ok(v1::ListRevisionsResponse {
        revisions,
        revision: view.revision(),
        stale_ms: quorum::stale_ms(core),
        name: service.spec.name.to_string(),
    })
}

fn current(service: &Service) -> v1::ServiceRevision {
    let under_way = service.update.as_ref().is_some_and(|u| u.phase != UpdatePhase::Done);
    let revision = Revision {
        number: service.number,
        spec: service.spec.clone(),
        time: service.updated,
        change: service.change.clone(),
        good: !under_way,
    };
    v1::ServiceRevision { current: true, ..(&revision).into() }
}

pub(super) async fn roll_back(
    core: &Core,
    who: &Who,
    wire: v1::RollBackServiceRequest,
) -> Result<v1::ServiceChanged, Refusal> {
    let view = core.store.view();
    let service = find(&view, &wire.service)?;
    let content = Content::new("rollback").with(service.id.as_bytes()).with(&wire.to.to_le_bytes());
    let request = request(&who.principal, &wire.request_id, &content)?;
    let id = service.id;
    if let Some(revision) = repeated(&view, request.as_ref())? {
        return Ok(changed(&view, id, revision));
    }
    let name = &service.spec.name;
    let last = view.revisions(id).last().map(|revision| revision.number);
    let to = match (wire.to, last) {
        (0, None) => {
            return Err(Refusal::not_now(format!(
                "service {name} has no revision to go back to: it is as it was created"
            ))
            .hint(format!("warren service history {name}")));
        }
        (0, Some(last)) => last,
        (to, _) => to,
    };
    if let Some(revision) = view.revisions(id).iter().find(|revision| revision.number == to) {
        allowed(&view, &revision.spec.task)?;
    }
    let transaction = Transaction {
        request,
        principal: who.audit(),
        // "The one before" is a matter of what is wanted now.
        expects: vec![Expect { key: Key::Service(id), revision: service.revision }],
        mutations: vec![Mutation::RollBackService { id, to, why: String::new() }],
    };
    let history = format!("warren service history {name}");
    rehearse(&view, &transaction).map_err(|refusal| refusal.hint(history))?;
    let revision = propose(core, transaction).await?;
    Ok(changed(&core.store.view(), id, revision))
}

pub(super) async fn hold(
    core: &Core,
    who: &Who,
    wire: v1::HoldUpdateRequest,
) -> Result<v1::ServiceChanged, Refusal> {
    let view = core.store.view();
    let service = find(&view, &wire.service)?;
    let id = service.id;
    let content = Content::new("hold").with(id.as_bytes()).with(&[u8::from(wire.paused)]);
    let request = request(&who.principal, &wire.request_id, &content)?;
    if let Some(revision) = repeated(&view, request.as_ref())? {
        return Ok(changed(&view, id, revision));
    }
    let name = &service.spec.name;
    if service.update.is_none() {
        return Err(Refusal::not_now(format!("no update of service {name} is under way"))
            .hint(format!("warren service inspect {name} shows its update_state")));
    }
    let (phase, message) = match wire.paused {
        true => (UpdatePhase::Paused, format!("by {}", who.principal.as_str())),
        false => (UpdatePhase::Moving, String::new()),
    };
    let transaction = Transaction {
        request,
        principal: who.audit(),
        expects: Vec::new(),
        mutations: vec![Mutation::SetUpdate { id, phase, message }],
    };
    rehearse(&view, &transaction).map_err(|refusal| {
        refusal.hint(format!("warren service inspect {name} shows its update_state"))
    })?;
    let revision = propose(core, transaction).await?;
    Ok(changed(&core.store.view(), id, revision))
}

/// What is wanted now.
pub(super) fn changed(view: &State, id: ServiceId, revision: u64) -> v1::ServiceChanged {
    let service = view.service(id);
    v1::ServiceChanged {
        id: id.as_bytes().to_vec(),
        revision,
        number: service.map_or(0, |service| service.number),
        name: service.map(|service| service.spec.name.to_string()).unwrap_or_default(),
    }
}
