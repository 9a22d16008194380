//! What every listing has in common: format, filters, quiet, ages.

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use warren_model::Time;

use super::failure::{Failure, nearest};
use super::template::{Format, plain};

/// Flags of commands that list things.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ListFlags {
    /// table, json, yaml or a template such as '{{.Name}} {{.ID}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<Format>,
    /// Print ids alone
    #[arg(short, long, conflicts_with = "format")]
    pub(crate) quiet: bool,
    /// Keep rows whose KEY has this value (as in the JSON); repeat for more
    #[arg(short, long = "filter", value_name = "KEY=VALUE", value_parser = parse_filter)]
    pub(crate) filters: Vec<(String, String)>,
    /// Do not shorten long values
    #[arg(long)]
    pub(crate) no_trunc: bool,
}

/// Flags of commands that read what the cluster agreed on.
#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct ReadFlags {
    /// See everything that anybody was told to be done before; asks a majority of the managers
    #[arg(long)]
    pub(crate) linearizable: bool,
}

fn parse_filter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        // Docker's keys have dashes, ours are those of the JSON.
        Some((key, value)) if !key.is_empty() => Ok((key.replace('-', "_"), value.to_owned())),
        _ => Err(format!("{text:?} is not a filter; write KEY=VALUE, e.g. name=web")),
    }
}

impl ListFlags {
    pub(crate) fn format(&self) -> Format {
        self.format.clone().unwrap_or(Format::Table)
    }

    /// Whether the filters keep `object`: values of one key are alternatives,
    /// different keys must all match. Names and ids match by their beginning, as in Docker.
    ///
    /// # Errors
    /// A filter names a key that is not one of `keys`.
    pub(crate) fn keeps(&self, object: &Value, keys: &Keys) -> Result<bool, Failure> {
        for (key, value) in &self.filters {
            keys.check(key, value)?;
        }
        let matches = |(key, wanted): &(String, String)| {
            let value = object.get(key).unwrap_or(&Value::Null);
            let by_prefix = matches!(key.as_str(), "name" | "id");
            let same = |value: &Value| {
                let text = plain(value);
                text == *wanted || by_prefix && text.starts_with(wanted.as_str())
            };
            let by_id = keys.ids.iter().filter(|(of, _)| of == key);
            if by_id.filter_map(|(_, id)| object.get(id)?.as_str()).any(|id| id.starts_with(wanted))
            {
                return true;
            }
            value.as_array().map_or_else(|| same(value), |items| items.iter().any(same))
        };
        let satisfied = |key: &str| self.filters.iter().filter(|(k, _)| k == key).any(matches);
        Ok(self.filters.iter().all(|(key, _)| satisfied(key)))
    }
}

/// What filters of a listing may say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keys {
    /// Of the JSON object.
    pub(crate) names: &'static [&'static str],
    /// Keys of names, with those of the ids beside them: beginnings of either are meant.
    pub(crate) ids: &'static [(&'static str, &'static str)],
    /// Which values a key may have.
    pub(crate) allowed: fn(&str) -> Allowed,
}

/// Values that a filter may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Allowed {
    Any,
    Number,
    Words(Vec<&'static str>),
}

impl Keys {
    fn check(&self, key: &str, value: &str) -> Result<(), Failure> {
        if !self.names.contains(&key) {
            let failure = Failure::input(format!("--filter: there is no key {key:?}"));
            return Err(match nearest(key, self.names.iter().copied()) {
                Some(word) => failure.hint(format!("did you mean {word}?")),
                None => failure.hint(format!("keys are {}", self.names.join(", "))),
            });
        }
        match (self.allowed)(key) {
            Allowed::Any => Ok(()),
            Allowed::Number if value.parse::<u64>().is_ok() => Ok(()),
            Allowed::Number => {
                Err(Failure::input(format!("--filter: {key}: {value:?} is not a number")))
            }
            Allowed::Words(words) if words.contains(&value) => Ok(()),
            Allowed::Words(words) => {
                let allowed = words.join(", ");
                let text = format!("--filter: {key}: {value:?} is not one of {allowed}");
                let failure = Failure::input(text);
                Err(match nearest(value, words.iter().copied()) {
                    Some(word) => failure.hint(format!("did you mean {word}?")),
                    None => failure,
                })
            }
        }
    }
}

/// From where rows are looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    pub(crate) now: Time,
    /// Do not shorten.
    pub(crate) whole: bool,
}

impl View {
    pub(crate) fn at(now: Time) -> Self {
        Self { now, whole: false }
    }

    /// `text`, cut to `max` characters unless whole values are wanted.
    pub(crate) fn cut(self, text: &str, max: usize) -> String {
        if self.whole || text.chars().count() <= max {
            return text.to_owned();
        }
        text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
    }

    /// `3 minutes ago`.
    pub(crate) fn ago(self, since: Time) -> String {
        format!("{} ago", span(self.now.since_ms(since)))
    }
}

/// A duration as people say it, in Docker's words.
fn span(ms: u64) -> String {
    let seconds = ms / 1000;
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    match seconds {
        0 => "less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "about a minute".to_owned(),
        120..3600 => format!("{minutes} minutes"),
        3600..7200 => "about an hour".to_owned(),
        7200..172_800 => format!("{hours} hours"),
        172_800..1_209_600 => format!("{} days", hours / 24),
        1_209_600..5_184_000 => format!("{} weeks", hours / 24 / 7),
        5_184_000..63_072_000 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// Bytes as people read them, decimal as Docker shows images.
pub(crate) fn size(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut scaled = bytes;
    let mut rest = 0;
    let mut unit = 0;
    while scaled >= 1000 && unit + 1 < units.len() {
        rest = scaled % 1000 / 100;
        scaled /= 1000;
        unit += 1;
    }
    let unit_name = units[unit];
    if unit == 0 || scaled >= 100 {
        format!("{scaled}{unit_name}")
    } else {
        format!("{scaled}.{rest}{unit_name}")
    }
}

/// One row of a listing.
pub(crate) trait Record: Serialize {
    /// Titles of the table.
    const COLUMNS: &'static [&'static str];
    /// Keys of the JSON object: what filters may name.
    const KEYS: &'static [&'static str];
    /// Names whose ids are other keys: filters by the name take beginnings of the id as well.
    const IDS: &'static [(&'static str, &'static str)] = &[];

    /// What filters may ask of a key.
    fn allowed(_key: &str) -> Allowed {
        Allowed::Any
    }

    fn filters() -> Keys {
        Keys { names: Self::KEYS, ids: Self::IDS, allowed: Self::allowed }
    }

    fn cells(&self, view: View) -> Vec<String>;
    /// What `-q` prints.
    fn key(&self) -> &str;

    fn object(&self) -> Value {
        serde_json::to_value(self).unwrap_or(Value::Null)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(filters: &[&str], expected: &str) {
        let flags = ListFlags {
            filters: filters.iter().map(|f| parse_filter(f).unwrap()).collect(),
            ..ListFlags::default()
        };
        let object = json!({
            "name": "web", "replicas": 3, "ports": ["80:80", "81:81"],
            "node": "alpha", "node_id": "0c1g", "mode": "global",
        });
        let allowed = |key: &str| match key {
            "replicas" => Allowed::Number,
            "mode" => Allowed::Words(vec!["global", "replicated"]),
            _ => Allowed::Any,
        };
        let names = &["name", "replicas", "ports", "node", "mode"];
        let keys = Keys { names, ids: &[("node", "node_id")], allowed };
        let got = match flags.keeps(&object, &keys) {
            Ok(kept) => kept.to_string(),
            Err(f) => format!("{f}; {}", f.hint.as_deref().unwrap_or_default()),
        };
        assert_eq!(got, expected, "{filters:?}");
    }

    #[test]
    fn filters() {
        check(&[], "true");
        check(&["name=web"], "true");
        check(&["name=we"], "true");
        check(&["name=db"], "false");
        check(&["name=db", "name=web"], "true");
        check(&["name=web", "replicas=2"], "false");
        check(&["replicas=3"], "true");
        check(&["ports=81:81"], "true");
        check(&["nmae=web"], "--filter: there is no key \"nmae\"; did you mean name?");
        check(
            &["x=1"],
            "--filter: there is no key \"x\"; keys are name, replicas, ports, node, mode",
        );
        check(&["node=alpha"], "true");
        check(&["node=alp"], "false");
        check(&["node=0c"], "true");
        check(&["replicas=x"], "--filter: replicas: \"x\" is not a number; ");
        check(
            &["mode=globl"],
            "--filter: mode: \"globl\" is not one of global, replicated; did you mean global?",
        );
        assert!(parse_filter("name").is_err());
    }

    #[test]
    fn spans_and_sizes() {
        for (seconds, text) in [
            (0, "less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "about a minute"),
            (180, "3 minutes"),
            (3700, "about an hour"),
            (86_400, "24 hours"),
            (5 * 86_400, "5 days"),
            (30 * 86_400, "4 weeks"),
            (100 * 86_400, "3 months"),
            (900 * 86_400, "2 years"),
        ] {
            assert_eq!(span(seconds * 1000), text);
        }
        for (bytes, text) in [
            (0, "0B"),
            (999, "999B"),
            (1500, "1.5kB"),
            (1_990_000, "1.9MB"),
            (187_000_000, "187MB"),
            (u64::MAX, "18446744TB"),
        ] {
            assert_eq!(size(bytes), text);
        }
        let view = View { now: Time(200_000), whole: false };
        assert_eq!(view.ago(Time(20_000)), "3 minutes ago");
        assert_eq!(view.cut("0123456789", 5), "0123…");
    }
}
