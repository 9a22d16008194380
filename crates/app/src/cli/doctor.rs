//! `warren doctor`: what this machine and its node lack, and what to do about it.
//!
//! Works without a running node: then only the machine is looked at. Exit code
//! 1 when something that is needed is broken; warnings do not count.

use clap::Args;
use serde::Serialize;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::client::Target;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::listing::{ListFlags, Record, View};
use super::printer::Printer;
use super::template::Format;
use crate::settings::Place;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// table, json, yaml or a template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    Ok,
    /// Works, but not as well as it could.
    Warn,
    /// Needed and not there.
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    pub(crate) level: Level,
    pub(crate) name: String,
    pub(crate) detail: String,
    /// What to do about it; empty when there is nothing to do.
    pub(crate) hint: String,
}

impl Check {
    pub(crate) fn ok(name: &str, detail: impl Into<String>) -> Self {
        Self::new(Level::Ok, name, detail, "")
    }

    pub(crate) fn new(
        level: Level,
        name: &str,
        detail: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self { level, name: name.to_owned(), detail: detail.into(), hint: hint.into() }
    }
}

impl From<v1::Finding> for Check {
    fn from(finding: v1::Finding) -> Self {
        let level = if finding.ok { Level::Ok } else { Level::Bad };
        Self { level, name: finding.name, detail: finding.detail, hint: finding.hint }
    }
}

impl Record for Check {
    const COLUMNS: &'static [&'static str] = &["LEVEL", "CHECK", "FOUND", "HINT"];
    const KEYS: &'static [&'static str] = &["level", "name", "detail", "hint"];

    fn cells(&self, _: View) -> Vec<String> {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Bad => "bad",
        };
        vec![level.to_owned(), self.name.clone(), self.detail.clone(), self.hint.clone()]
    }

    fn key(&self) -> &str {
        &self.name
    }
}

pub(crate) async fn run(
    printer: &mut Printer,
    args: &DoctorArgs,
    place: &Place,
    mut checks: Vec<Check>,
) -> Result<(), Failure> {
    match ask(printer, place).await {
        Ok(found) => {
            checks.push(Check::ok("node", format!("answers at {}", place.socket.display())));
            // The node sees its own network, which may not be ours.
            checks.retain(|check| found.iter().all(|other| other.name != check.name));
            checks.extend(found);
        }
        Err(failure) if failure.exit == Exit::Unreachable => {
            let hint = failure.hint.unwrap_or_default();
            checks.push(Check::new(Level::Warn, "node", failure.message, hint));
        }
        Err(failure) => {
            let hint = failure.hint.unwrap_or_default();
            checks.push(Check::new(Level::Bad, "node", failure.message, hint));
        }
    }
    let flags = ListFlags { format: Some(args.format.clone()), ..ListFlags::default() };
    let view = View::at(super::context::now());
    printer.list(&checks, &flags, view)?;
    match checks.iter().filter(|check| check.level == Level::Bad).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("1 thing that is needed is broken")),
        n => Err(Failure::failed(format!("{n} things that are needed are broken"))),
    }
}

/// What the running node says of itself.
async fn ask(printer: &mut Printer, place: &Place) -> Result<Vec<Check>, Failure> {
    let mut context = Context::connect(Target::Socket(place.socket.clone()), printer).await?;
    let kind = open_stream::Kind::Doctor(v1::Doctor {});
    let mut frames = context.client.open(kind).await?;
    let mut checks = Vec::new();
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Findings(found)) => {
                checks.extend(found.findings.into_iter().map(Check::from));
            }
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(checks)
}
