//! Why a request is refused, and how that travels: a gRPC status, with what to
//! do about it in the metadata entry `warren-hint`.
//!
//! One kind for each exit code of the command line, so that nobody has to
//! guess: bad input 2, not found 3, conflict 4, unreachable 5, all else 1.

use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use warren_model::service::SpecError;
use warren_proto::v1;
use warren_state::State;
use warren_state::change::{Key, Rejection};
use warren_store::ProposeError;

/// Where the hint travels.
pub const HINT_KEY: &str = "warren-hint";
/// Told to a node that was removed: it is not to come again. The value is `1`.
pub const REMOVED_KEY: &str = "warren-removed";
/// Told to another manager: the node has no session here. The value is `1`.
pub(crate) const ELSEWHERE_KEY: &str = "warren-elsewhere";
/// Messages and hints travel in headers, of which peers take 16 KiB in all.
const TEXT_MAX: usize = 2048;

/// What is wrong with a request, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    pub code: Code,
    pub message: String,
    pub hint: Option<String>,
    pub mark: Option<Mark>,
}

/// What a program does about a refusal, whatever its words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// The node that calls was removed.
    Removed,
    /// The node that is called has no session with this manager.
    Elsewhere,
}

impl Mark {
    fn key(self) -> &'static str {
        match self {
            Self::Removed => REMOVED_KEY,
            Self::Elsewhere => ELSEWHERE_KEY,
        }
    }
}

impl Refusal {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, mark: None }
    }

    /// The request cannot be right, whatever the state of the cluster.
    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// Something else has the name, the port, the request id.
    pub(crate) fn taken(message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    /// Someone else was faster: read again, decide again.
    pub(crate) fn stale(message: impl Into<String>) -> Self {
        Self::new(Code::Aborted, message)
    }

    /// Not as things stand now.
    pub(crate) fn not_now(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// Nobody answers; the same request may work later.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// Tried, and it did not work.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Code::Unknown, message)
    }

    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, message)
    }

    /// It is not known who calls, or not any more.
    pub(crate) fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(Code::Unauthenticated, message)
    }

    /// A limit of this manager is reached.
    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, message)
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub(crate) fn mark(mut self, mark: Mark) -> Self {
        self.mark = Some(mark);
        self
    }

    /// The same refusal as seen from the message that holds `parent`.
    #[must_use]
    pub(crate) fn within(mut self, parent: &str) -> Self {
        self.message = format!("{parent}.{}", self.message);
        self
    }

    /// What another manager refused, as its own.
    pub(crate) fn of_status(status: &Status) -> Self {
        let text = |key| status.metadata().get(key).and_then(|value| value.to_str().ok());
        let mark = [Mark::Removed, Mark::Elsewhere].into_iter().find(|m| text(m.key()).is_some());
        Self {
            code: status.code(),
            message: status.message().to_owned(),
            hint: text(HINT_KEY).map(str::to_owned),
            mark,
        }
    }

    /// Why a transaction was not applied, with names instead of ids.
    pub(crate) fn of_rejection(view: &State, rejection: Rejection) -> Self {
        match rejection {
            Rejection::Stale { key, expected, found: 0 } if expected > 0 => {
                Self::not_found(format!("{} is gone", name_of(view, key)))
            }
            Rejection::Stale { key, expected, found } => Self::stale(format!(
                "{} was changed meanwhile: it is at revision {found}, not {expected}",
                name_of(view, key)
            ))
            .hint("read it again and repeat the change"),
            Rejection::NameTaken { ref name, .. } => {
                let hint =
                    format!("choose another name, or change it: warren service update {name}");
                Self::taken(rejection.to_string()).hint(hint)
            }
            taken @ Rejection::PortTaken { .. } => Self::taken(taken.to_string())
                .hint("publish another port, or remove the service that has it"),
            taken @ Rejection::NetworkTaken { .. } => Self::taken(taken.to_string())
                .hint("choose another name, or use the one that is there"),
            missing @ Rejection::NoNetwork { .. } => Self::not_found(missing.to_string())
                .hint("warren network ls shows them; warren network create makes one"),
            taken @ Rejection::PolicyTaken { .. } => Self::taken(taken.to_string())
                .hint("choose another name, or remove the one that is there: warren policy rm"),
            missing @ Rejection::NoService { .. } => Self::not_found(missing.to_string())
                .hint("warren service ls shows them; make the service first"),
            Rejection::NetworkInUse { ref name, .. } => {
                let hint = format!(
                    "remove these services, or take them off it: \
                     warren service update --network-rm {name} SERVICE; \
                     policies: warren policy rm POLICY"
                );
                Self::not_now(rejection.to_string()).hint(hint)
            }
            taken @ Rejection::AddressTaken { .. } => Self::taken(taken.to_string()).hint(
                "leave the choice to the cluster, or see who has which: \
                       warren network inspect NETWORK",
            ),
            Rejection::NotFound { key } => {
                Self::not_found(format!("{} does not exist", name_of(view, key)))
            }
            Rejection::Exists { key } => {
                Self::taken(format!("{} exists already", name_of(view, key)))
            }
            reused @ Rejection::RequestReused => Self::taken(reused.to_string()),
            many @ Rejection::TooMany { .. } => Self::bad_input(many.to_string()),
            Rejection::Invalid(why) => Self::not_now(why),
        }
    }

    /// Why the store did not take a transaction.
    pub(crate) fn of_propose(view: &State, error: ProposeError) -> Self {
        match error {
            ProposeError::Rejected(rejection) => Self::of_rejection(view, rejection),
            large @ ProposeError::TooLarge { .. } => Self::bad_input(large.to_string()),
            full @ ProposeError::DiskFull => Self::busy(full.to_string())
                .hint("make room on the disk of the managers; nothing is lost"),
            error @ ProposeError::NoQuorum => Self::unavailable(error.to_string())
                .hint("a majority of managers must reach each other: warren node ls; after a loss for good: warren cluster recover"),
            error @ (ProposeError::NotLeader { .. }
            | ProposeError::Unknown
            | ProposeError::Stopped { .. }) => {
                Self::unavailable(error.to_string()).hint("try again in a moment")
            }
        }
    }

    /// What a node said at the end of a stream.
    pub(crate) fn of_stream(error: v1::StreamError) -> Self {
        let refusal = match error.code {
            2 => Self::bad_input(error.message),
            3 => Self::not_found(error.message),
            4 => Self::taken(error.message),
            5 => Self::unavailable(error.message),
            _ => Self::failed(error.message),
        };
        if error.hint.is_empty() { refusal } else { refusal.hint(error.hint) }
    }

    /// As the last frame of a stream that is open already.
    pub(crate) fn into_frame(self) -> v1::Frame {
        let code = match self.code {
            Code::InvalidArgument => 2,
            Code::NotFound => 3,
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => 4,
            Code::Unavailable => 5,
            _ => 1,
        };
        let hint = self.hint.unwrap_or_default();
        let error = v1::StreamError { code, message: self.message, hint };
        v1::Frame { kind: Some(v1::frame::Kind::Error(error)) }
    }
}

/// `service web` rather than `Service(0c4f…)`.
fn name_of(view: &State, key: Key) -> String {
    match key {
        Key::Cluster => "the cluster".to_owned(),
        Key::Node(id) => view.node(id).map_or_else(
            || format!("node {id}"),
            |node| format!("node {}", node.description.hostname),
        ),
        Key::Service(id) => view
            .service(id)
            .map_or_else(|| format!("service {id}"), |s| format!("service {}", s.spec.name)),
        Key::Task(id) => format!("task {id}"),
        Key::Operator(name) => format!("operator {name}"),
        Key::Policy(id) => view
            .policy(id)
            .map_or_else(|| format!("policy {id}"), |p| format!("policy {}", p.spec.name)),
        Key::Network(id) => view
            .network(id)
            .map_or_else(|| format!("network {id}"), |n| format!("network {}", n.spec.name)),
    }
}

impl From<SpecError> for Refusal {
    fn from(error: SpecError) -> Self {
        Self::bad_input(error.to_string())
    }
}

impl From<warren_proto::Error> for Refusal {
    fn from(error: warren_proto::Error) -> Self {
        Self::bad_input(error.to_string())
    }
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_MAX)]
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        let mut status = Self::new(refusal.code, cut(&refusal.message));
        // A header holds visible ASCII; anything else would lose the whole hint.
        let visible = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
        let hint = refusal.hint.map(|hint| cut(&hint).chars().map(visible).collect::<String>());
        if let Some(value) = hint.and_then(|hint| MetadataValue::try_from(hint).ok()) {
            status.metadata_mut().insert(HINT_KEY, value);
        }
        if let Some(mark) = refusal.mark {
            status.metadata_mut().insert(mark.key(), MetadataValue::from_static("1"));
        }
        status
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rejection: Rejection, expected: &str) {
        let status = Status::from(Refusal::of_rejection(&State::default(), rejection));
        let hint = status.metadata().get(HINT_KEY).map_or("", |h| h.to_str().unwrap());
        assert_eq!(format!("{:?}: {} ({hint})", status.code(), status.message()), expected);
    }

    #[test]
    fn rejections_in_words() {
        let key = Key::Service(warren_model::ServiceId::from_bytes([0; 10]));
        check(
            Rejection::Stale { key, expected: 3, found: 4 },
            "Aborted: service 0000000000000000 was changed meanwhile: it is at revision 4, not 3 \
             (read it again and repeat the change)",
        );
        check(
            Rejection::Stale { key, expected: 3, found: 0 },
            "NotFound: service 0000000000000000 is gone ()",
        );
        check(
            Rejection::PortTaken { port: "80:80".into(), holder: "web".parse().unwrap() },
            "AlreadyExists: port 80:80 is published by service web \
             (publish another port, or remove the service that has it)",
        );
        let name = "back".parse().unwrap();
        check(
            Rejection::NetworkInUse { name, users: "web, api".into() },
            "FailedPrecondition: network back is in use by web, api (remove these services, or take \
             them off it: warren service update --network-rm back SERVICE; policies: warren policy \
             rm POLICY)",
        );
        check(Rejection::NotFound { key }, "NotFound: service 0000000000000000 does not exist ()");
        check(Rejection::Invalid("no".into()), "FailedPrecondition: no ()");
    }

    #[test]
    fn hints_are_headers() {
        let long = Refusal::failed("é".repeat(5000)).hint("é\n\tok".repeat(1000));
        let status = Status::from(long);
        assert!(status.message().len() <= TEXT_MAX);
        let hint = status.metadata().get(HINT_KEY).unwrap().to_str().unwrap();
        assert!(hint.starts_with("???ok?") && hint.len() <= TEXT_MAX);
    }
}
