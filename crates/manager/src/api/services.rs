//! Making, changing and removing services.

use warren_model::service::Service;
use warren_model::{ServiceId, ServiceSpec, TaskTemplate};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Outcome, Transaction};

use crate::api::authorize::Who;
use crate::api::check::{Checked, check_on_node};
use crate::api::mounts;
use crate::api::networks::resolve;
use crate::api::pin::{pin, remembered, wanted};
use crate::api::request::{Content, rehearse, repeated, request};
use crate::api::{propose, propose_soon};
use crate::core::Core;
use crate::refusal::Refusal;

pub(super) async fn create(
    core: &Core,
    who: &Who,
    wire: v1::CreateServiceRequest,
) -> Result<v1::Changed, Refusal> {
    let mut spec = parse(wire.spec)?;
    let content = Content::new("create").with_spec(&spec);
    resolve(&core.store.view(), &mut spec);
    // Two names of one network may have been given.
    spec.validate()?;
    mounts::check(&core.store.view(), &spec, None)?;
    allowed(&core.store.view(), &spec.task)?;
    let id = ServiceId::from_bytes(core.rng.id_bytes());
    // Only a node knows what the image says.
    spec.placement.platforms.clear();
    spec.task.health = spec.task.health.with_image(None);
    let mut transaction = Transaction {
        request: request(&who.principal, &wire.request_id, &content)?,
        principal: who.audit(),
        expects: Vec::new(),
        mutations: vec![Mutation::CreateService { id, spec: spec.clone() }],
    };
    let repeated = is_repeated(core, &transaction)?;
    let resolve = if wire.no_resolve { Vec::new() } else { wanted(None, &spec, true) };
    let ask = Ask { id, before: None, check: !wire.no_check, resolve };
    let looked = match repeated {
        true => Looked::NOT,
        false => looked(core, ask, &mut spec).await?,
    };
    transaction.mutations = vec![Mutation::CreateService { id, spec: spec.clone() }];
    let revision = match looked.in_touch {
        true => propose(core, transaction).await?,
        false => propose_soon(core, transaction).await?,
    };
    // A retry is answered with what its first try made.
    let view = core.store.view();
    let made = view.service_by_name(spec.name.as_str()).map_or(id, |service| service.id);
    let ids = vec![made.as_bytes().to_vec()];
    Ok(v1::Changed { ids, revision, number: 1, notes: looked.notes })
}

pub(super) async fn update(
    core: &Core,
    who: &Who,
    wire: v1::UpdateServiceRequest,
) -> Result<v1::Changed, Refusal> {
    let mut spec = parse(wire.spec)?;
    let view = core.store.view();
    let before = find(&view, &wire.service)?;
    if before.spec.name != spec.name {
        let (old, new) = (&before.spec.name, &spec.name);
        return Err(Refusal::bad_input(format!("name: service {old} cannot be renamed to {new}"))
            .hint("create a service of that name and remove the old one"));
    }
    let id = before.id;
    let content = Content::new("update")
        .with(id.as_bytes())
        .with(&wire.revision.to_le_bytes())
        .with_spec(&spec);
    resolve(&view, &mut spec);
    spec.validate()?;
    mounts::check(&view, &spec, Some(&before.spec.task))?;
    // What needs no new containers may be changed whatever is allowed by now.
    if before.spec.task != spec.task {
        allowed(&view, &spec.task)?;
    }
    let expects = match wire.revision {
        0 => Vec::new(),
        revision => vec![Expect { key: Key::Service(id), revision }],
    };
    if before.spec.task.image != spec.task.image {
        spec.task.health = spec.task.health.with_image(None);
        spec.placement.platforms.clear();
    } else {
        // As they were found; callers may have an older one.
        spec.placement.platforms.clone_from(&before.spec.placement.platforms);
    }
    let mut transaction = Transaction {
        request: request(&who.principal, &wire.request_id, &content)?,
        principal: who.audit(),
        expects,
        mutations: vec![Mutation::UpdateService { id, spec: spec.clone() }],
    };
    let resolve = match wire.no_resolve {
        true => Vec::new(),
        false => wanted(Some(&before.spec), &spec, wire.resolve_image),
    };
    let same_containers = before.spec.task == spec.task && before.spec.ports == spec.ports;
    let check = !wire.no_check && !(same_containers && resolve.is_empty());
    let repeated = is_repeated(core, &transaction)?;
    let ask = Ask { id, before: Some(&before.spec), check, resolve };
    let looked = match repeated {
        true => Looked::NOT,
        false => looked(core, ask, &mut spec).await?,
    };
    let unchanged = before.spec == spec;
    transaction.mutations = vec![Mutation::UpdateService { id, spec }];
    let revision = match looked.in_touch {
        true => propose(core, transaction).await?,
        false => propose_soon(core, transaction).await?,
    };
    let number = match repeated || wire.revision == 0 {
        true => core.store.view().service(id).map_or(0, |service| service.number),
        // It was written on top of the one that was read, or not at all.
        false => before.number.saturating_add(u32::from(!unchanged)),
    };
    let ids = vec![id.as_bytes().to_vec()];
    Ok(v1::Changed { ids, revision, number, notes: looked.notes })
}

pub(super) async fn remove(
    core: &Core,
    who: &Who,
    wire: v1::RemoveServicesRequest,
) -> Result<v1::Changed, Refusal> {
    if wire.services.is_empty() {
        return Err(Refusal::bad_input("services: names none"));
    }
    let content = Content::new("remove");
    let content = wire.services.iter().fold(content, |c, name| c.with(name.as_bytes()));
    let request = request(&who.principal, &wire.request_id, &content)?;
    let view = core.store.view();
    if let Some(revision) = repeated(&view, request.as_ref())? {
        // What is left of what the first try removed.
        let left = wire.services.iter().filter_map(|name| view.resolve_service(name));
        let ids = left.filter(|s| s.removing).map(|s| s.id.as_bytes().to_vec()).collect();
        return Ok(v1::Changed { ids, revision, ..v1::Changed::default() });
    }
    let mut ids = Vec::with_capacity(wire.services.len());
    for name in &wire.services {
        let id = find(&view, name)?.id;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    let mutations = ids.iter().map(|id| Mutation::RemoveService { id: *id }).collect();
    let transaction =
        Transaction { request, principal: who.audit(), expects: Vec::new(), mutations };
    let revision = propose(core, transaction).await?;
    let ids = ids.iter().map(|id| id.as_bytes().to_vec()).collect();
    Ok(v1::Changed { ids, revision, ..v1::Changed::default() })
}

/// What a node is to look at.
struct Ask<'a> {
    id: ServiceId,
    before: Option<&'a ServiceSpec>,
    /// Whether it is asked at all.
    check: bool,
    /// Names of images that it is to tell the digests of.
    resolve: Vec<String>,
}

/// What came of it.
struct Looked {
    /// Managers are in touch.
    in_touch: bool,
    /// For people.
    notes: Vec<String>,
}

impl Looked {
    const NOT: Self = Self { in_touch: true, notes: Vec::new() };
}

/// Has a node look at what is to run, if that is wanted, takes up what the image says of its
/// health, and names images by their digests.
async fn looked(core: &Core, ask: Ask<'_>, spec: &mut ServiceSpec) -> Result<Looked, Refusal> {
    let Ask { id, before, check, resolve } = ask;
    let (checked, why_not) = match check {
        true => {
            let checked = check_on_node(core, id, spec, resolve.clone()).await?;
            (checked, "no node is there to ask its registry")
        }
        false => (Checked::NOT, "no node was to look"),
    };
    let Checked { in_touch, image } = checked;
    let found = image.as_ref().map(|found| &found.digests).ok_or(why_not);
    let notes = pin(before, spec, &resolve, found)?;
    if let Some(image) = image {
        let health = std::mem::take(&mut spec.task.health);
        spec.task.health = health.with_image(image.health);
        spec.placement.platforms = image.platforms;
    }
    if let Some(before) = before.filter(|_| !resolve.is_empty()) {
        remembered(before, spec);
    }
    Ok(Looked { in_touch, notes })
}

/// Refuses what endangers nodes and the cluster's settings do not allow.
pub(super) fn allowed(view: &State, template: &TaskTemplate) -> Result<(), Refusal> {
    let allowed = view.cluster().map(|cluster| cluster.allowed.clone()).unwrap_or_default();
    allowed.check(template).map_err(|error| {
        let hint = error.hint();
        Refusal::bad_input(error.to_string()).hint(hint)
    })
}

fn parse(wire: Option<v1::ServiceSpec>) -> Result<ServiceSpec, Refusal> {
    let wire = wire.ok_or_else(|| Refusal::bad_input("spec: is missing"))?;
    let spec = ServiceSpec::try_from(wire)?;
    spec.validate()?;
    Ok(spec)
}

/// A service by name, id or a beginning of its id.
pub(super) fn find<'a>(view: &'a State, text: &str) -> Result<&'a Service, Refusal> {
    view.resolve_service(text).ok_or_else(|| {
        Refusal::not_found(format!("no service {text}")).hint("warren service ls shows them")
    })
}

/// Refuses early what the state would refuse, before a node spends time on it; says whether the
/// transaction is the retry of one that was applied.
fn is_repeated(core: &Core, transaction: &Transaction) -> Result<bool, Refusal> {
    let outcome = rehearse(&core.store.view(), transaction)?;
    Ok(matches!(outcome, Outcome::Repeated { .. }))
}
