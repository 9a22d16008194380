//! Making, removing and listing policies.

use warren_model::PolicyId;
use warren_model::policy::{Policy, PolicyPeer, PolicySpec};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Mutation, Transaction};

use crate::api::authorize::Who;
use crate::api::propose;
use crate::api::request::{Content, repeated, request};
use crate::core::Core;
use crate::quorum;
use crate::refusal::Refusal;

pub(super) async fn create(
    core: &Core,
    who: &Who,
    wire: v1::CreatePolicyRequest,
) -> Result<v1::Changed, Refusal> {
    let spec = wire.spec.ok_or_else(|| Refusal::bad_input("spec: is missing"))?;
    let mut spec = PolicySpec::try_from(spec)?;
    resolve(&core.store.view(), &mut spec);
    spec.validate()?;
    let content = content(&spec);
    let id = PolicyId::from_bytes(core.rng.id_bytes());
    let name = spec.name.clone();
    let transaction = Transaction {
        request: request(&who.principal, &wire.request_id, &content)?,
        principal: who.audit(),
        expects: Vec::new(),
        mutations: vec![Mutation::CreatePolicy { id, spec }],
    };
    let revision = propose(core, transaction).await?;
    // A retry is answered with what its first try made.
    let view = core.store.view();
    let made = view.policy_named(&name).map_or(id, |policy| policy.id);
    Ok(v1::Changed { ids: vec![made.as_bytes().to_vec()], revision, ..v1::Changed::default() })
}

/// Puts names in the place of ids, for services and networks that are called by those.
fn resolve(view: &State, spec: &mut PolicySpec) {
    for peer in spec.from.iter_mut().chain(&mut spec.to) {
        match peer {
            PolicyPeer::Service(name) => {
                if let Some(service) = view.resolve_service(name.as_str()) {
                    *name = service.spec.name.clone();
                }
            }
            PolicyPeer::Network(name) => {
                if let Some(network) = view.resolve_network(name.as_str()) {
                    *name = network.spec.name.clone();
                }
            }
            PolicyPeer::Range(_) | PolicyPeer::Outside => {}
        }
    }
}

fn content(spec: &PolicySpec) -> Content {
    // The wire's maps are in no order; the model's are.
    let wire = v1::PolicySpec { labels: Default::default(), ..spec.into() };
    let content = Content::new("create-policy").with_message(&wire);
    spec.labels
        .iter()
        .fold(content, |content, (key, value)| content.with(key.as_bytes()).with(value.as_bytes()))
}

pub(super) async fn remove(
    core: &Core,
    who: &Who,
    wire: v1::RemovePoliciesRequest,
) -> Result<v1::Changed, Refusal> {
    if wire.policies.is_empty() {
        return Err(Refusal::bad_input("policies: names none"));
    }
    let content = Content::new("remove-policies");
    let content = wire.policies.iter().fold(content, |c, name| c.with(name.as_bytes()));
    let request = request(&who.principal, &wire.request_id, &content)?;
    let view = core.store.view();
    if let Some(revision) = repeated(&view, request.as_ref())? {
        return Ok(v1::Changed { ids: Vec::new(), revision, ..v1::Changed::default() });
    }
    let mut ids = Vec::with_capacity(wire.policies.len());
    for name in &wire.policies {
        let id = find(&view, name)?.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let mutations = ids.iter().map(|id| Mutation::RemovePolicy { id: *id }).collect();
    let transaction =
        Transaction { request, principal: who.audit(), expects: Vec::new(), mutations };
    let revision = propose(core, transaction).await?;
    Ok(v1::Changed {
        ids: ids.iter().map(|id| id.as_bytes().to_vec()).collect(),
        revision,
        ..v1::Changed::default()
    })
}

/// A policy by name, id or a beginning of its id.
fn find<'a>(view: &'a State, text: &str) -> Result<&'a Policy, Refusal> {
    view.resolve_policy(text).ok_or_else(|| {
        Refusal::not_found(format!("no policy {text}")).hint("warren policy ls shows them")
    })
}

pub(super) fn list(
    core: &Core,
    view: &State,
    wire: &v1::ListPoliciesRequest,
) -> Result<v1::ListPoliciesResponse, Refusal> {
    let mut policies: Vec<&Policy> = Vec::new();
    for name in &wire.policies {
        let policy = find(view, name)?;
        if !policies.iter().any(|known| known.id == policy.id) {
            policies.push(policy);
        }
    }
    if wire.policies.is_empty() {
        policies.extend(view.policies());
        policies.sort_by(|a, b| a.spec.order().cmp(&b.spec.order()));
    }
    let row = |policy: &Policy| v1::Policy { missing: missing(view, policy), ..policy.into() };
    let (revision, stale_ms) = (view.revision(), quorum::stale_ms(core));
    let policies = policies.into_iter().map(row).collect();
    Ok(v1::ListPoliciesResponse { policies, revision, stale_ms })
}

/// Services that a policy names and that are not there.
fn missing(view: &State, policy: &Policy) -> Vec<String> {
    let mut missing: Vec<String> = Vec::new();
    for peer in policy.spec.peers() {
        if let PolicyPeer::Service(name) = peer
            && view.service_by_name(name.as_str()).is_none()
            && !missing.iter().any(|known| known == name.as_str())
        {
            missing.push(name.to_string());
        }
    }
    missing
}
