//! Paths of nodes that containers may mount: the cluster's list, without which none may be.

use std::fmt;
use std::str::FromStr;

use crate::service::expand;
use crate::service::is_plain_path;

/// One folder or file that may be mounted, with all below it: `/srv`, `/etc/ssl:ro`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct BindRule {
    path: String,
    read_only: bool,
}

/// Why a text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an absolute path without . and .., such as /srv or /etc/ssl:ro")]
pub struct BindRuleError(String);

/// What rules say of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// But not to be written to.
    ReadOnly,
    Denied,
    /// It depends upon what is filled in.
    Unknown,
}

impl BindRule {
    /// Of one cluster: more are no list that people read.
    pub const RULES_MAX: usize = 64;

    pub fn path(&self) -> &str {
        &self.path
    }

    /// Writing is not allowed.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn covers(&self, path: &str) -> bool {
        is_below(path, &self.path)
    }
}

/// Whether `path` is `folder` or below it; both are plain.
pub fn is_below(path: &str, folder: &str) -> bool {
    let folder = folder.trim_end_matches('/');
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What rules say of a source as it is written, whatever its links lead to. The longest path
/// counts of those that a source is below.
pub fn verdict(rules: &[BindRule], source: &str) -> Verdict {
    if expand::is_template(source) {
        // Up to the last folder that is known.
        let known = source.split("{{").next().unwrap_or_default();
        let folder = known.rsplit_once('/').map_or("/", |(folder, _)| folder);
        let may = rules.iter().any(|rule| rule.covers(folder) || is_below(&rule.path, folder));
        return if may { Verdict::Unknown } else { Verdict::Denied };
    }
    let covering = rules.iter().filter(|rule| rule.covers(source));
    match covering.max_by_key(|rule| rule.path.len()) {
        None => Verdict::Denied,
        Some(rule) if rule.read_only => Verdict::ReadOnly,
        Some(_) => Verdict::Allowed,
    }
}

impl FromStr for BindRule {
    type Err = BindRuleError;

    fn from_str(text: &str) -> Result<Self, BindRuleError> {
        let (path, read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text.strip_suffix(":rw").unwrap_or(text), false),
        };
        if path != "/" && (!is_plain_path(path) || path.contains([':', '{'])) {
            return Err(BindRuleError(text.to_owned()));
        }
        Ok(Self { path: path.to_owned(), read_only })
    }
}

impl fmt::Display for BindRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.path, if self.read_only { ":ro" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(rules: &str, source: &str, expected: Verdict) {
        let rules: Vec<BindRule> = rules.split(' ').map(|rule| rule.parse().unwrap()).collect();
        assert_eq!(verdict(&rules, source), expected, "{source}");
    }

    #[test]
    fn sources() {
        use Verdict::{Allowed, Denied, ReadOnly, Unknown};
        check("/srv", "/srv", Allowed);
        check("/srv", "/srv/a/b", Allowed);
        check("/srv", "/srvx", Denied);
        check("/srv", "/", Denied);
        check("/", "/etc", Allowed);
        check("/ /etc:ro", "/etc/passwd", ReadOnly);
        check("/etc:ro /etc/app", "/etc/app/x", Allowed);
        check("/srv", "/srv/{{.Node.Hostname}}", Unknown);
        check("/srv/n1 /srv/n2", "/srv/{{.Node.Hostname}}", Unknown);
        check("/srv", "/etc/{{.Node.Hostname}}", Denied);
        check("/srv", "/srvx{{.Task.Slot}}", Unknown);
        assert_eq!(verdict(&[], "/srv"), Denied);
    }

    #[test]
    fn rules_as_text() {
        for text in ["/", "/srv", "/etc/ssl:ro", "/:ro"] {
            assert_eq!(text.parse::<BindRule>().unwrap().to_string(), text);
        }
        assert_eq!("/srv:rw".parse::<BindRule>().unwrap().to_string(), "/srv");
        for bad in ["", "srv", "/srv/", "/srv/../etc", "/srv:xx", "/{{.Task.Slot}}", ":ro"] {
            assert!(bad.parse::<BindRule>().is_err(), "{bad}");
        }
    }
}
