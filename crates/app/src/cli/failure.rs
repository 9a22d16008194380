//! What a command says when it cannot do what was asked: exit code, message, hint.
//!
//! The one place that turns answers of the cluster into exit codes. Messages
//! are lower case and name the operation's object; the hint says what to do.

use std::fmt;

use tonic::{Code, Status};
use warren_proto::v1;

/// Metadata key under which managers send a hint.
const HINT_KEY: &str = "warren-hint";

/// Exit codes that scripts may count on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Nothing to say: the reader of our output went away, or the command has spoken.
    Silent(u8),
    /// The operation failed or did not converge.
    Failed,
    /// The input was wrong.
    Input,
    NotFound,
    Conflict,
    /// Cluster unreachable or without quorum.
    Unreachable,
}

impl Exit {
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Silent(code) => code,
            Self::Failed => 1,
            Self::Input => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
        }
    }

    /// The exit with this code; anything unknown is a plain failure.
    pub(crate) fn from_code(code: u32) -> Self {
        match code {
            2 => Self::Input,
            3 => Self::NotFound,
            4 => Self::Conflict,
            5 => Self::Unreachable,
            _ => Self::Failed,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Exit::Input, message)
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Standard output cannot be written to. A reader that has seen enough is no error.
    pub(crate) fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::new(Exit::Silent(0), "");
        }
        Self::failed(format!("write to standard output: {}", plain(error)))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        // Words of the transport's, which mean nothing to people.
        if std::error::Error::source(&status).is_some() {
            return Self::new(
                Exit::Unreachable,
                "the node ended the conversation before it was over",
            )
            .hint("try again; if it stays so, look into the log of the node");
        }
        let exit = match status.code() {
            Code::InvalidArgument | Code::OutOfRange => Exit::Input,
            Code::NotFound => Exit::NotFound,
            Code::AlreadyExists | Code::Aborted | Code::FailedPrecondition => Exit::Conflict,
            Code::Unavailable | Code::DeadlineExceeded => Exit::Unreachable,
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::PermissionDenied
            | Code::ResourceExhausted
            | Code::Unimplemented
            | Code::Internal
            | Code::DataLoss
            | Code::Unauthenticated => Exit::Failed,
        };
        let message = match status.message() {
            "" => format!("the node answered {}", status.code()),
            text => text.to_owned(),
        };
        let hint = status.metadata().get(HINT_KEY);
        let hint = hint.and_then(|h| h.to_str().ok()).map(str::to_owned);
        Self { exit, message, hint }
    }
}

impl From<v1::StreamError> for Failure {
    fn from(error: v1::StreamError) -> Self {
        let hint = Some(error.hint).filter(|h| !h.is_empty());
        Self { exit: Exit::from_code(error.code), message: error.message, hint }
    }
}

/// An error of the system without its number, which tells people nothing.
pub(crate) fn plain(error: &std::io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rsplit_once(" (os error ")) {
        (Some(_), Some((words, _))) => words.to_owned(),
        _ => text,
    }
}

/// The known word that `typed` most likely meant.
pub(crate) fn nearest<'a>(
    typed: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    // Three wrong letters of ten are a typo, more are another word.
    let far = typed.chars().count() / 3 + 1;
    known
        .into_iter()
        .map(|word| (strsim::damerau_levenshtein(typed, word), word))
        .filter(|(distance, _)| *distance <= far)
        .min()
        .map(|(_, word)| word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_map_to_exits() {
        for (code, exit) in [
            (Code::InvalidArgument, 2),
            (Code::NotFound, 3),
            (Code::AlreadyExists, 4),
            (Code::FailedPrecondition, 4),
            (Code::Aborted, 4),
            (Code::Unavailable, 5),
            (Code::Internal, 1),
        ] {
            assert_eq!(Failure::from(Status::new(code, "x")).exit.code(), exit, "{code:?}");
        }
        let mut status = Status::not_found("no service web");
        status.metadata_mut().insert(HINT_KEY, "warren service ls".parse().unwrap());
        assert_eq!(Failure::from(status).hint.as_deref(), Some("warren service ls"));
        assert_eq!(Failure::from(Status::internal("")).message, "the node answered Internal error");
    }

    #[test]
    fn typos_find_their_word() {
        let known = ["data_dir", "run_dir", "log_level", "log_format"];
        assert_eq!(nearest("data-dir", known), Some("data_dir"));
        assert_eq!(nearest("loglevel", known), Some("log_level"));
        assert_eq!(nearest("replicas", known), None);
    }
}
