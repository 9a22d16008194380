//! People and programs that may call from afar.
//!
//! The state keeps hashes alone: a token or a certificate is shown once, in the
//! answer to the call that made it.

use std::time::Duration;

use warren_model::operator::{Operator, OperatorName, OperatorRole};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Transaction};
use warren_trust::{ApiToken, Subject};

use crate::api::authorize::Who;
use crate::api::cluster::{authority, settings};
use crate::api::propose;
use crate::api::request::{Content, request};
use crate::core::Core;
use crate::dispatch::membership;
use crate::refusal::Refusal;

/// Ten years: what is to last longer should not be forgotten.
const EXPIRES_MAX_MS: u64 = 3650 * 86_400_000;
/// Of a certificate that is made without an end; tokens may go without.
const CERTIFICATE_MS: u64 = 365 * 86_400_000;
/// As many as anybody looks through.
const OPERATORS_MAX: usize = 1000;

pub(super) async fn create(
    core: &Core,
    who: &Who,
    wire: v1::CreateOperatorRequest,
) -> Result<v1::CreatedOperator, Refusal> {
    let name = warren_proto::operator_name("name", &wire.name)?;
    let role = v1::OperatorRole::try_from(wire.role)
        .map_err(|_| Refusal::bad_input(format!("role: {} is not known", wire.role)))?;
    let role = OperatorRole::try_from(role)?;
    if let Some(ms) = wire.expires_in_ms.filter(|ms| *ms == 0 || *ms > EXPIRES_MAX_MS) {
        return Err(Refusal::bad_input(format!(
            "expires: {ms} ms is not within ten years from now"
        )));
    }
    let content = Content::new("create-operator")
        .with(wire.name.as_bytes())
        .with(&wire.role.to_le_bytes())
        .with(&wire.expires_in_ms.unwrap_or(0).to_le_bytes())
        .with(&wire.signing_request);
    let request = request(&who.principal, &wire.request_id, &content)?;
    let view = core.store.view();
    if view.operators().len() >= OPERATORS_MAX {
        return Err(Refusal::busy(format!(
            "there are {OPERATORS_MAX} operators, which is the limit"
        ))
        .hint("remove some: warren operator rm"));
    }
    let now = core.now();
    let access = Access::make(core, &view, &wire, Subject::Operator { name, role })?;
    let operator = Operator {
        name,
        role,
        token_hash: access.token_hash,
        key_hash: access.key_hash,
        expires: access.expires.or_else(|| wire.expires_in_ms.map(|ms| now.plus_ms(ms))),
        created: now,
        revision: 0,
    };
    let transaction = Transaction {
        request,
        principal: who.audit(),
        // Never over another one: its owner would be locked out unasked.
        expects: vec![Expect { key: Key::Operator(name), revision: 0 }],
        mutations: vec![Mutation::PutOperator(operator)],
    };
    let revision = propose(core, transaction).await.map_err(|refusal| exists(refusal, name))?;
    let view = core.store.view();
    let written = view.operator(name);
    let ours = written.is_some_and(|operator| {
        (operator.token_hash, operator.key_hash) == (access.token_hash, access.key_hash)
    });
    if !ours {
        // A retry: the first try's answer, with its token, was lost.
        return Err(Refusal::taken(format!("operator {name} was made, but its token was lost"))
            .hint(format!("remove it and make it again: warren operator rm {name}")));
    }
    let cluster = settings(&view)?;
    Ok(v1::CreatedOperator {
        token: access.token,
        certificates: access.certificates,
        authorities: cluster.ca.as_ref().map(|ca| ca.certificates.clone()).unwrap_or_default(),
        revision,
        managers: membership::managers(&view),
        cluster_id: core.cluster_id.as_bytes().to_vec(),
    })
}

fn exists(refusal: Refusal, name: OperatorName) -> Refusal {
    if refusal.code == tonic::Code::Aborted {
        return Refusal::taken(format!("operator {name} exists already"))
            .hint(format!("choose another name, or remove it first: warren operator rm {name}"));
    }
    refusal
}

/// What an operator shows to be let in.
struct Access {
    token: String,
    certificates: Vec<Vec<u8>>,
    token_hash: Option<[u8; 32]>,
    key_hash: Option<[u8; 32]>,
    /// Of the certificate.
    expires: Option<warren_model::Time>,
}

impl Access {
    fn make(
        core: &Core,
        view: &State,
        wire: &v1::CreateOperatorRequest,
        subject: Subject,
    ) -> Result<Self, Refusal> {
        if wire.signing_request.is_empty() {
            let token = ApiToken::generate(core.rng.as_ref());
            return Ok(Self {
                token: token.to_text().to_string(),
                certificates: Vec::new(),
                token_hash: Some(token.hash()),
                key_hash: None,
                expires: None,
            });
        }
        let lifetime = Duration::from_millis(wire.expires_in_ms.unwrap_or(CERTIFICATE_MS));
        let authority = authority(settings(view)?)?;
        let issued = authority.issue(&wire.signing_request, &subject, lifetime, core.now());
        let issued = issued.map_err(|e| Refusal::bad_input(format!("signing_request: {e}")))?;
        Ok(Self {
            token: String::new(),
            certificates: issued.chain,
            token_hash: None,
            key_hash: Some(issued.key_hash),
            expires: Some(issued.not_after),
        })
    }
}

pub(super) async fn remove(
    core: &Core,
    who: &Who,
    wire: v1::RemoveOperatorRequest,
) -> Result<v1::Changed, Refusal> {
    let name = warren_proto::operator_name("name", &wire.name)?;
    let content = Content::new("remove-operator").with(wire.name.as_bytes());
    let transaction = Transaction {
        request: request(&who.principal, &wire.request_id, &content)?,
        principal: who.audit(),
        expects: Vec::new(),
        mutations: vec![Mutation::RemoveOperator { name }],
    };
    let revision = propose(core, transaction).await?;
    Ok(v1::Changed { ids: Vec::new(), revision, ..v1::Changed::default() })
}

/// Without the hashes: nobody needs them to tell operators apart.
pub(super) fn list(view: &State) -> v1::ListOperatorsResponse {
    let row = |operator: &Operator| v1::Operator {
        token_hash: Vec::new(),
        key_hash: Vec::new(),
        ..operator.into()
    };
    v1::ListOperatorsResponse { operators: view.operators().map(row).collect() }
}
