//! Output formats, among them the small part of Go templates that scripts use.
//!
//! `'{{.Name}}: {{.ID}}'` fills in fields by their JSON key (`.started_at`,
//! `.StartedAt`) or by the title of a column (`.CurrentState`); `{{json .}}`
//! and `{{json .Ports}}` write JSON; a leading `table ` aligns what stands
//! between `\t`. Loops and conditions are absent: `--format json` and a tool
//! for JSON do that better.

use std::str::FromStr;

use serde_json::Value;

use super::failure::{Failure, nearest};

/// How data is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Format {
    Table,
    Json,
    Yaml,
    Template(Template),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template {
    parts: Vec<Part>,
    table: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Vec<String>),
    Json(Vec<String>),
}

impl FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "table" => Ok(Self::Table),
            "json" => Ok(Self::Json),
            "yaml" => Ok(Self::Yaml),
            _ if text.contains("{{") => Template::parse(text).map(Self::Template),
            _ => Err(format!(
                "{text:?} is not a format; write table, json, yaml or a template such as '{{{{.Name}}}}'"
            )),
        }
    }
}

impl Template {
    fn parse(text: &str) -> Result<Self, String> {
        let (table, body) = match text.strip_prefix("table ") {
            Some(body) => (true, body),
            None => (false, text),
        };
        let body = body.replace("\\t", "\t").replace("\\n", "\n");
        let mut parts = Vec::new();
        let mut rest = body.as_str();
        while let Some((before, after)) = rest.split_once("{{") {
            let (inside, after) =
                after.split_once("}}").ok_or_else(|| format!("template {text:?} lacks }}}}"))?;
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Self::parse_part(inside.trim())?);
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Ok(Self { parts, table })
    }

    fn parse_part(inside: &str) -> Result<Part, String> {
        let (json, path) = match inside.strip_prefix("json") {
            Some(path) => (true, path.trim_start()),
            None => (false, inside),
        };
        let bad = || {
            format!(
                "{{{{{inside}}}}} is not understood; write {{{{.Field}}}} or {{{{json .Field}}}}"
            )
        };
        let fields: Vec<String> = match path.strip_prefix('.').ok_or_else(bad)? {
            "" => Vec::new(),
            path => path.split('.').map(str::to_owned).collect(),
        };
        let word = |f: &String| {
            !f.is_empty() && f.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        };
        if !fields.iter().all(word) {
            return Err(bad());
        }
        Ok(if json { Part::Json(fields) } else { Part::Field(fields) })
    }

    /// Titles of the columns when the template starts with `table `.
    pub(crate) fn titles(&self) -> Option<Vec<String>> {
        if !self.table {
            return None;
        }
        let mut titles = vec![String::new()];
        for part in &self.parts {
            match part {
                Part::Text(text) => {
                    titles.extend(text.matches('\t').map(|_| String::new()));
                }
                Part::Field(path) | Part::Json(path) => {
                    let word = path.last().map_or_else(String::new, |f| spaced(f));
                    if let Some(title) = titles.last_mut() {
                        if !title.is_empty() {
                            title.push(' ');
                        }
                        title.push_str(&word);
                    }
                }
            }
        }
        Some(titles)
    }

    /// The template with the fields of `object`, or cells of its table row, filled in.
    pub(crate) fn fill(
        &self,
        object: &Value,
        columns: &[&str],
        cells: &[String],
    ) -> Result<String, Failure> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Text(fixed) => text.push_str(fixed),
                Part::Json(path) => text.push_str(&resolve(object, path)?.to_string()),
                Part::Field(path) => match (resolve(object, path), path.as_slice()) {
                    (Ok(value), _) => text.push_str(&plain(&value)),
                    (Err(error), [name]) => {
                        let at = columns.iter().position(|c| fold(c) == fold(name));
                        text.push_str(at.and_then(|at| cells.get(at)).ok_or(error)?);
                    }
                    (Err(error), _) => return Err(error),
                },
            }
        }
        Ok(text)
    }
}

/// `started_at`, `StartedAt` and `STARTED AT` are one word.
fn fold(word: &str) -> String {
    word.chars().filter(|c| c.is_ascii_alphanumeric()).map(|c| c.to_ascii_lowercase()).collect()
}

/// `CurrentState` and `current_state` as a title: `CURRENT STATE`.
fn spaced(word: &str) -> String {
    let mut title = String::new();
    let mut small = false;
    for c in word.chars() {
        if c == '_' || c.is_ascii_uppercase() && small {
            title.push(' ');
        }
        small = c.is_ascii_lowercase();
        if c != '_' {
            title.push(c.to_ascii_uppercase());
        }
    }
    title
}

fn resolve(object: &Value, path: &[String]) -> Result<Value, Failure> {
    let mut value = object;
    for (depth, name) in path.iter().enumerate() {
        let fields = value.as_object();
        let found = fields.and_then(|o| o.iter().find(|(key, _)| fold(key) == fold(name)));
        value = match found {
            Some((_, value)) => value,
            None if value.is_null() && depth > 0 => return Ok(Value::Null),
            None => {
                return Err(unknown(name, fields.into_iter().flatten().map(|(k, _)| k.as_str())));
            }
        };
    }
    Ok(value.clone())
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Failure {
    let known: Vec<&str> = known.collect();
    let failure = Failure::input(format!("--format: there is no field .{name}"));
    match nearest(&name.to_ascii_lowercase(), known.iter().copied()) {
        Some(word) => failure.hint(format!("did you mean .{word}?")),
        None => failure.hint(format!("fields are {}", known.join(", "))),
    }
}

/// A value as people read it.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(template: &str, expected: &str) {
        let object = json!({
            "id": "0abc", "name": "web", "ports": ["80:80", "81:81"], "started_at": null,
            "spec": {"image": "nginx"}, "running": 3,
        });
        let got = match template.parse::<Format>() {
            Err(error) => format!("error: {error}"),
            Ok(Format::Template(t)) => {
                match t.fill(&object, &["CURRENT STATE"], &["running 3 minutes ago".to_owned()]) {
                    Ok(text) => text,
                    Err(f) => format!("error: {f} ({})", f.hint.as_deref().unwrap_or_default()),
                }
            }
            Ok(other) => format!("{other:?}"),
        };
        assert_eq!(got, expected, "{template}");
    }

    #[test]
    fn formats() {
        check("table", "Table");
        check("json", "Json");
        check("{{.Name}} {{.ID}}", "web 0abc");
        check("{{ .name }}\\t{{.Running}}", "web\t3");
        check("{{.StartedAt}}|{{.Ports}}", "|80:80, 81:81");
        check("{{.Spec.Image}}", "nginx");
        check("{{.CurrentState}}", "running 3 minutes ago");
        check("{{json .Ports}}", "[\"80:80\",\"81:81\"]");
        check("{{.Nmae}}", "error: --format: there is no field .Nmae (did you mean .name?)");
        check(
            "{{range .}}",
            "error: {{range .}} is not understood; write {{.Field}} or {{json .Field}}",
        );
        check("{{.Name", "error: template \"{{.Name\" lacks }}");
        check(
            "jsn",
            "error: \"jsn\" is not a format; write table, json, yaml or a template such as '{{.Name}}'",
        );
    }

    #[test]
    fn table_templates_have_titles() {
        let Ok(Format::Template(t)) = "table {{.Name}}\\t{{.CurrentState}}".parse() else {
            panic!("not a template");
        };
        assert_eq!(t.titles(), Some(vec!["NAME".to_owned(), "CURRENT STATE".to_owned()]));
    }
}
