//! Retries: the number that a caller gives a request, and what the request says.

use prost::Message;
use warren_model::{Event, ServiceSpec};
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Outcome, Request, Transaction};

use crate::api::authorize::Principal;
use crate::refusal::Refusal;

/// Bytes of a request id.
const ID_BYTES: usize = 16;

/// The request's entry for the table of answered ones; none if the caller gave no number.
pub(super) fn request(
    principal: &Principal,
    id: &[u8],
    content: &Content,
) -> Result<Option<Request>, Refusal> {
    if id.is_empty() {
        return Ok(None);
    }
    let id: [u8; ID_BYTES] = id.try_into().map_err(|_| {
        Refusal::bad_input(format!("request_id: has {} bytes, not {ID_BYTES}", id.len()))
    })?;
    Ok(Some(Request {
        principal: principal.as_str().to_owned(),
        id: u128::from_be_bytes(id),
        hash: content.0,
    }))
}

/// What would become of a transaction now, on a copy of the view: the rules are the state's own.
pub(super) fn rehearse(view: &State, transaction: &Transaction) -> Result<Outcome, Refusal> {
    let mut events: Vec<Event> = Vec::new();
    let mut copy = view.clone();
    let mut outcomes = copy.apply(view.time(), std::slice::from_ref(transaction), &mut events);
    match outcomes.pop() {
        Some(Outcome::Rejected(rejection)) => Err(Refusal::of_rejection(view, rejection)),
        Some(outcome) => Ok(outcome),
        None => Err(Refusal::failed("the state gave no answer")),
    }
}

/// The revision at which a request was answered before. Asked with an empty transaction: what
/// the request named may be gone by now.
pub(super) fn repeated(view: &State, request: Option<&Request>) -> Result<Option<u64>, Refusal> {
    let Some(request) = request else { return Ok(None) };
    let probe = Transaction { request: Some(request.clone()), ..Transaction::default() };
    match rehearse(view, &probe)? {
        Outcome::Repeated { revision } => Ok(Some(revision)),
        Outcome::Applied { .. } | Outcome::Rejected(_) => Ok(None),
    }
}

/// Hash of what a request asks for, ids that we stamp excepted: the same on every manager.
///
/// FNV-1a, 64 bits: it tells a mistake from a retry, it does not keep anyone out.
pub(super) struct Content(u64);

impl Content {
    pub(super) fn new(operation: &str) -> Self {
        Self(0xcbf2_9ce4_8422_2325).with(operation.as_bytes())
    }

    /// Adds a part; parts cannot run into each other.
    pub(super) fn with(self, part: &[u8]) -> Self {
        let length = part.len().to_le_bytes();
        let bytes = length.iter().chain(part);
        Self(
            bytes.fold(self.0, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            }),
        )
    }

    /// Adds a whole message; one without maps, which are in no order.
    pub(super) fn with_message(self, message: &impl Message) -> Self {
        self.with(&message.encode_to_vec())
    }

    pub(super) fn with_spec(self, spec: &ServiceSpec) -> Self {
        let mut wire = v1::ServiceSpec::from(spec);
        // The wire's maps are in no order; the model's are.
        wire.labels.clear();
        if let Some(task) = &mut wire.task {
            task.container_labels.clear();
        }
        let labels = spec.labels.iter().map(|label| (0, label));
        let labels = labels.chain(spec.task.container_labels.iter().map(|label| (1, label)));
        labels.fold(self.with(&wire.encode_to_vec()), |content, (which, (key, value))| {
            content.with(&[which]).with(key.as_bytes()).with(value.as_bytes())
        })
    }
}

#[cfg(test)]
mod tests {
    use warren_model::service::Mode;
    use warren_model::{ServiceSpec, TaskTemplate};

    use super::*;

    fn spec(labels: &[(&str, &str)]) -> ServiceSpec {
        ServiceSpec {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            mode: Mode::Global,
            ..ServiceSpec::new(
                "web".parse().unwrap(),
                TaskTemplate { image: "a".into(), ..TaskTemplate::default() },
            )
        }
    }

    #[test]
    fn content_decides() {
        let hash = |labels: &[(&str, &str)]| Content::new("create").with_spec(&spec(labels)).0;
        let many: Vec<(String, String)> =
            (0..50).map(|n| (format!("k{n}"), format!("v{n}"))).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(hash(&many), hash(&many));
        assert_ne!(hash(&[("a", "bc")]), hash(&[("ab", "c")]));
        let mut moved = spec(&[]);
        moved.task.container_labels.insert("a".into(), "b".into());
        assert_ne!(Content::new("create").with_spec(&moved).0, hash(&[("a", "b")]));
        assert_ne!(Content::new("update").with_spec(&spec(&[])).0, hash(&[]));
    }

    #[test]
    fn ids_have_sixteen_bytes_or_none() {
        let who = Principal::named("socket:0");
        let ask = |id: &[u8]| request(&who, id, &Content::new("x"));
        assert_eq!(ask(&[]), Ok(None));
        assert_eq!(ask(&[1; 16]).unwrap().unwrap().id, u128::from_be_bytes([1; 16]));
        assert_eq!(ask(&[1; 3]).unwrap_err().to_string(), "request_id: has 3 bytes, not 16");
    }
}
