//! Images of services by digest: which names a registry is asked for when a service is made or
//! changed, and how the specification names them then.
//!
//! Pure. What is named by a digest once runs as it is until somebody names another image: scaling,
//! restarts, other nodes and rollbacks do not ask again.

use std::collections::{BTreeMap, HashMap};

use warren_model::ServiceSpec;
use warren_model::health::Healthcheck;
use warren_model::image;
use warren_proto::v1;

use crate::refusal::Refusal;

/// Of a reason that a node gave, as it is shown.
const REASON_MAX: usize = 300;

/// What a node found out about names of images.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Digests {
    /// As an image is to be named, by its name.
    pinned: HashMap<String, String>,
    /// Why its registry did not tell, by its name.
    unresolved: HashMap<String, String>,
    local: Vec<String>,
}

impl Digests {
    pub(super) fn of(found: &mut v1::CheckResult) -> Self {
        Self {
            pinned: std::mem::take(&mut found.pinned),
            unresolved: std::mem::take(&mut found.unresolved),
            local: std::mem::take(&mut found.local),
        }
    }
}

/// Who has an image: the service's own container, or one beside it, by name.
const OWN: &str = "";

fn images(spec: &ServiceSpec) -> impl Iterator<Item = (&str, &String)> {
    let beside = spec.task.companions.iter();
    std::iter::once((OWN, &spec.task.image)).chain(beside.map(|c| (c.name.as_str(), &c.task.image)))
}

fn images_mut(spec: &mut ServiceSpec) -> impl Iterator<Item = (String, &mut String)> {
    let beside = spec.task.companions.iter_mut();
    let own = std::iter::once((OWN.to_owned(), &mut spec.task.image));
    own.chain(beside.map(|c| (c.name.as_str().to_owned(), &mut c.task.image)))
}

/// Names of images that are to be resolved: those without a digest that were not there before, and
/// with `again` that of the service's own container.
pub(super) fn wanted(before: Option<&ServiceSpec>, spec: &ServiceSpec, again: bool) -> Vec<String> {
    let old: BTreeMap<&str, &String> = before.into_iter().flat_map(images).collect();
    let new = images(spec).filter(|(whose, name)| {
        let asked = again && *whose == OWN || old.get(whose) != Some(name);
        asked && image::digest(name).is_none()
    });
    let mut names: Vec<String> = new.map(|(_, name)| name.clone()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Names images by the digests that were found, and says what people should know of those that are
/// not. `found` is nothing where nobody has looked, for the reason `why_not`.
///
/// An image that nobody could be asked for stays what it was before, if it was of that name.
///
/// # Errors
/// The node's answer is none.
pub(super) fn pin(
    before: Option<&ServiceSpec>,
    spec: &mut ServiceSpec,
    wanted: &[String],
    found: Result<&Digests, &str>,
) -> Result<Vec<String>, Refusal> {
    let old: BTreeMap<&str, &String> = before.into_iter().flat_map(images).collect();
    let mut notes = Vec::new();
    for (whose, name) in images_mut(spec) {
        if !wanted.contains(name) {
            continue;
        }
        let why = match found {
            Err(why) => why.to_owned(),
            Ok(found) => match (found.pinned.get(name), found.unresolved.get(name)) {
                (Some(pinned), _) if image::is_pin_of(pinned, name) => {
                    name.clone_from(pinned);
                    continue;
                }
                (Some(_), _) => {
                    return Err(Refusal::failed(format!(
                        "the node that looked named image {name} by what is no digest of it"
                    )));
                }
                (None, Some(why)) => cut(why),
                (None, None) => {
                    // Others are named by their id, for one, which never changes.
                    if found.local.contains(name) {
                        let why = "it was loaded or imported, and is not from a registry";
                        say(&mut notes, loose(name, why));
                    }
                    continue;
                }
            },
        };
        let kept = old.get(&*whose).filter(|old| image::is_pin_of(old, name));
        match kept.and_then(|kept| Some((*kept, image::digest(kept)?))) {
            Some((kept, digest)) => {
                say(&mut notes, format!("image {name} stays at {digest}: {why}"));
                name.clone_from(kept);
            }
            None => say(&mut notes, loose(name, &why)),
        }
    }
    Ok(notes)
}

/// Once, of an image that several containers have.
fn say(notes: &mut Vec<String>, note: String) {
    if !notes.contains(&note) {
        notes.push(note);
    }
}

/// What was found of an image before, where it is the same again.
pub(super) fn remembered(before: &ServiceSpec, spec: &mut ServiceSpec) {
    if before.task.image == spec.task.image {
        spec.placement.platforms.clone_from(&before.placement.platforms);
        if let (Healthcheck::Image(found), Healthcheck::Implicit | Healthcheck::Image(_)) =
            (&before.task.health, &spec.task.health)
        {
            spec.task.health = Healthcheck::Image(found.clone());
        }
    }
}

fn loose(name: &str, why: &str) -> String {
    format!("image {name} is not pinned to a digest: {why}")
}

fn cut(why: &str) -> String {
    why.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect()
}

#[cfg(test)]
mod tests;
