//! Templates in a specification: `{{.Task.Slot}}` and the like, as Docker Swarm has them.
//!
//! A small part of Go's `text/template`: fields, `{{index .Service.Labels "a"}}`
//! and quoted texts (`{{"{{"}}` writes two braces). Checked when a service is
//! made, filled in on the node when a container starts.

use std::collections::BTreeMap;

use crate::id::{NodeId, ServiceId, TaskId};

/// What a template may name, in the words of Docker Swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    ServiceId,
    ServiceName,
    ServiceLabels,
    NodeId,
    NodeHostname,
    NodeOs,
    NodeArchitecture,
    TaskId,
    TaskName,
    TaskSlot,
}

impl Field {
    const ALL: [(&'static str, Self); 10] = [
        (".Service.ID", Self::ServiceId),
        (".Service.Name", Self::ServiceName),
        (".Service.Labels", Self::ServiceLabels),
        (".Node.ID", Self::NodeId),
        (".Node.Hostname", Self::NodeHostname),
        (".Node.Platform.OS", Self::NodeOs),
        (".Node.Platform.Architecture", Self::NodeArchitecture),
        (".Task.ID", Self::TaskId),
        (".Task.Name", Self::TaskName),
        (".Task.Slot", Self::TaskSlot),
    ];
}

/// What templates are filled with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts<'a> {
    pub service: ServiceId,
    pub service_name: &'a str,
    pub labels: &'a BTreeMap<String, String>,
    pub node: NodeId,
    pub hostname: &'a str,
    pub architecture: &'a str,
    pub task: TaskId,
    pub slot: u32,
    /// Of the run of a job that it is of.
    pub params: &'a BTreeMap<String, String>,
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at {at}: {what}")]
pub struct ExpandError {
    /// Of the first brace, in characters from 1.
    pub at: usize,
    pub what: String,
}

enum Part<'t> {
    Text(&'t str),
    Owned(String),
    Field(Field),
    Label(String),
    Param(String),
}

/// Whether there is anything to fill in.
pub fn is_template(text: &str) -> bool {
    text.contains("{{")
}

/// # Errors
/// [`ExpandError`] with the first thing that is not understood, and what is.
pub fn check(text: &str) -> Result<(), ExpandError> {
    parse(text).map(drop)
}

/// The text with everything filled in; as it is, if it is no template after all.
pub fn expand(text: &str, facts: &Facts<'_>) -> String {
    let Ok(parts) = parse(text) else { return text.to_owned() };
    let mut out = String::new();
    for part in parts {
        match part {
            Part::Text(text) => out.push_str(text),
            Part::Owned(text) => out.push_str(&text),
            Part::Field(field) => out.push_str(&value(field, facts)),
            Part::Param(name) => {
                out.push_str(facts.params.get(&name).map_or("", String::as_str));
            }
            Part::Label(key) => {
                out.push_str(facts.labels.get(&key).map_or("", String::as_str));
            }
        }
    }
    out
}

fn value(field: Field, facts: &Facts<'_>) -> String {
    match field {
        Field::ServiceId => facts.service.to_string(),
        Field::ServiceName => facts.service_name.to_owned(),
        // As Go prints a map.
        Field::ServiceLabels => {
            let labels = facts.labels.iter().map(|(key, value)| format!("{key}:{value}"));
            format!("map[{}]", labels.collect::<Vec<_>>().join(" "))
        }
        Field::NodeId => facts.node.to_string(),
        Field::NodeHostname => facts.hostname.to_owned(),
        Field::NodeOs => "linux".to_owned(),
        Field::NodeArchitecture => facts.architecture.to_owned(),
        Field::TaskId => facts.task.to_string(),
        Field::TaskName => format!("{}.{}.{}", facts.service_name, facts.slot, facts.task),
        Field::TaskSlot => facts.slot.to_string(),
    }
}

fn parse(text: &str) -> Result<Vec<Part<'_>>, ExpandError> {
    let (mut parts, mut from) = (Vec::new(), 0);
    while let Some(begin) = text[from..].find("{{").map(|at| from + at) {
        let wrong = |what: String| ExpandError { at: text[..begin].chars().count() + 1, what };
        let inside = begin + 2;
        let end = end_of(&text[inside..]).ok_or_else(|| wrong("}} is missing".to_owned()))?;
        parts.push(Part::Text(&text[from..begin]));
        parts.push(action(text[inside..inside + end].trim()).map_err(wrong)?);
        from = inside + end + 2;
    }
    parts.push(Part::Text(&text[from..]));
    Ok(parts)
}

/// Where the braces close that are not within quotes.
fn end_of(text: &str) -> Option<usize> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            '}' if !quoted && text[at..].starts_with("}}") => return Some(at),
            _ => {}
        }
    }
    None
}

fn action<'t>(inside: &str) -> Result<Part<'t>, String> {
    if let Some(rest) = inside.strip_prefix("index") {
        let rest = rest.trim_start();
        let key = rest.strip_prefix(".Service.Labels").map(str::trim_start);
        let key = key.and_then(quoted).ok_or_else(|| {
            format!("{inside:?} is not of the form index .Service.Labels \"KEY\"")
        })?;
        return Ok(Part::Label(key));
    }
    if inside.starts_with('"') {
        return quoted(inside)
            .map(Part::Owned)
            .ok_or_else(|| format!("{inside:?} is not one quoted text"));
    }
    let is_name = |name: &&str| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    if let Some(name) = inside.strip_prefix(".Param.").filter(is_name) {
        return Ok(Part::Param(name.to_owned()));
    }
    match Field::ALL.iter().find(|(name, _)| *name == inside) {
        Some((_, field)) => Ok(Part::Field(*field)),
        None => {
            let known: Vec<&str> = Field::ALL.iter().map(|(name, _)| *name).collect();
            Err(format!(
                "{inside:?} is not known; there are {}, .Param.NAME and index .Service.Labels \
                 \"KEY\"",
                known.join(", ")
            ))
        }
    }
}

/// The text between quotes, with `\"` and `\\` as what they stand for.
fn quoted(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let (mut out, mut escaped) = (String::new(), false);
    for c in inner.chars() {
        match c {
            '"' | '\\' if escaped => {
                out.push(c);
                escaped = false;
            }
            _ if escaped => return None,
            '\\' => escaped = true,
            '"' => return None,
            _ => out.push(c),
        }
    }
    (!escaped).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn expands(text: &str, expected: &str) {
        let labels = [("a", "1"), ("b c", "2")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let labels = BTreeMap::from(labels);
        let params = BTreeMap::from([("DAY".to_owned(), "monday".to_owned())]);
        let facts = Facts {
            service: ServiceId::from_bytes([1; 10]),
            service_name: "web",
            labels: &labels,
            node: NodeId::from_bytes([2; 10]),
            hostname: "alpha",
            architecture: "x86_64",
            task: TaskId::from_bytes([3; 10]),
            slot: 4,
            params: &params,
        };
        assert_eq!(check(text), Ok(()));
        assert_eq!(expand(text, &facts), expected);
    }

    #[test]
    fn fields() {
        expands("plain } { }}", "plain } { }}");
        expands("{{.Service.Name}}-{{ .Task.Slot }}", "web-4");
        let (service, node) = (ServiceId::from_bytes([1; 10]), NodeId::from_bytes([2; 10]));
        expands("{{.Service.ID}} {{.Node.ID}}", &format!("{service} {node}"));
        expands(
            "{{.Node.Hostname}}.{{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}",
            "alpha.linux/x86_64",
        );
        expands("{{.Task.Name}}", &format!("web.4.{}", TaskId::from_bytes([3; 10])));
        expands("{{.Param.DAY}}{{.Param.none}}", "monday");
        expands("{{.Service.Labels}}", "map[a:1 b c:2]");
        expands("{{index .Service.Labels \"b c\"}}{{index .Service.Labels \"none\"}}", "2");
        expands("{{\"{{\"}}x{{\"}}\"}}", "{{x}}");
        expands("{{\"\\\"\\\\\"}}", "\"\\");
    }

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        let error = check(text).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn what_is_wrong_and_where() {
        refused("ä{{.Task.Slot", "at 2: }} is missing");
        refused("{{.Service.Nam}}", "at 1: \".Service.Nam\" is not known; there are .Service.ID, ");
        refused("{{.Param.}}", "at 1: \".Param.\" is not known");
        refused("{{.Param.a b}}", "at 1: \".Param.a b\" is not known");
        refused("a{{}}", "at 2: \"\" is not known");
        refused(
            "{{index .Service.Labels a}}",
            "at 1: \"index .Service.Labels a\" is not of the form",
        );
        refused("{{\"a\" \"b\"}}", "at 1: \"\\\"a\\\" \\\"b\\\"\" is not one quoted text");
        refused("{{range .Service.Labels}}", "at 1: \"range .Service.Labels\" is not known");
    }
}
