//! `warren doctor`: what this machine and its node lack, and what to do about it.
//!
//! Works without a running node: then only the machine is looked at. Exit code
//! 1 when something that is needed is broken; warnings do not count.

mod network;

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::client::{Client, Target};
use super::context::Context;
use super::failure::{Exit, Failure};
use super::listing::{ListFlags, Record, View};
use super::printer::Printer;
use super::template::Format;
use crate::settings::Place;

/// For a node to look around; longer than its own limit.
const LOOK_MAX: Duration = Duration::from_secs(15);
/// For a daemon to say anything at all: it does so before it is asked.
const AWAKE_MAX: Duration = Duration::from_secs(3);
/// How a connection begins (RFC 9113 section 3.4): the preface, and settings without any.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct DoctorArgs {
    #[command(subcommand)]
    verb: Option<DoctorVerb>,
    /// table, json, yaml or a template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum DoctorVerb {
    /// Look at the way to each other node: links, tunnel, packet sizes, ports, clocks, names
    Network(network::NetworkArgs),
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

impl Level {
    fn of(finding: &v1::Finding) -> Self {
        match (finding.ok, finding.minor) {
            (true, _) => Self::Ok,
            (false, true) => Self::Warn,
            (false, false) => Self::Bad,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Bad => "bad",
        }
    }
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
        Self {
            level: Level::of(&finding),
            name: finding.name,
            detail: finding.detail,
            hint: finding.hint,
        }
    }
}

impl Record for Check {
    const COLUMNS: &'static [&'static str] = &["LEVEL", "CHECK", "FOUND", "HINT"];
    const KEYS: &'static [&'static str] = &["level", "name", "detail", "hint"];

    fn cells(&self, _: View) -> Vec<String> {
        let level = self.level.word().to_owned();
        vec![level, self.name.clone(), self.detail.clone(), self.hint.clone()]
    }

    fn key(&self) -> &str {
        &self.name
    }
}

pub(crate) async fn run(
    printer: &mut Printer,
    args: &DoctorArgs,
    place: &Place,
    local: impl FnOnce() -> Vec<Check>,
) -> Result<(), Failure> {
    if let Some(DoctorVerb::Network(args)) = &args.verb {
        // Two nodes are asked at once in there: that takes room which others need not have.
        return Box::pin(network::run(printer, args, place)).await;
    }
    let mut checks = local();
    let asked = async {
        awake(place).await?;
        let managers = within(async { Ok(managers(printer, place).await) }).await;
        let found = within(of_node(printer, place)).await?;
        Ok::<_, Failure>((managers.ok().flatten(), found))
    };
    match asked.await {
        Ok((managers, found)) => {
            checks.extend(managers);
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

/// Whether the managers can decide, as the one that runs here sees it. A node that is none has its
/// own word on them, and one that cannot be asked is told of elsewhere.
async fn managers(printer: &mut Printer, place: &Place) -> Option<Check> {
    let mut context = Context::connect(Target::Socket(place.socket.clone()), printer).await.ok()?;
    let asked = context.client.call(async |mut c| c.get_info(v1::GetInfoRequest {}).await);
    of_managers(&asked.await.ok()?)
}

fn of_managers(info: &v1::Info) -> Option<Check> {
    let (all, there) = (info.managers, info.managers_reachable);
    if info.stale_ms > 0 {
        let seconds = info.stale_ms / 1000;
        let found = format!(
            "no leader for {seconds} s, {there} of {} managers can be reached: nothing can be decided",
            all.max(there)
        );
        let hint = "bring a majority back; if it is lost for good: warren cluster recover";
        return Some(Check::new(Level::Bad, "managers", found, hint));
    }
    match (info.nodes, there < all) {
        // No manager.
        (0, _) => None,
        (_, false) => Some(Check::ok("managers", format!("{there} of {all} can be reached"))),
        (_, true) => {
            let hint = "warren node ls shows which; start them, or demote those that are lost";
            let found = format!("{there} of {all} can be reached");
            Some(Check::new(Level::Warn, "managers", found, hint))
        }
    }
}

/// What the running node says of itself.
async fn of_node(printer: &mut Printer, place: &Place) -> Result<Vec<Check>, Failure> {
    let mut context = Context::connect(Target::Socket(place.socket.clone()), printer).await?;
    let kind = open_stream::Kind::Doctor(v1::Doctor::default());
    let found = ask(&mut context.client, Vec::new(), kind).await?;
    Ok(found.findings.into_iter().map(Check::from).collect())
}

/// Whether the daemon does anything; one that does not even run is told of by whoever calls it.
async fn awake(place: &Place) -> Result<(), Failure> {
    let greeted = async {
        let mut stream = tokio::net::UnixStream::connect(&place.socket).await?;
        stream.write_all(HELLO).await?;
        stream.read_exact(&mut [0; 9]).await
    };
    match tokio::time::timeout(AWAKE_MAX, greeted).await {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(silent(AWAKE_MAX).hint("it hangs, or is stopped: see its log and its state in ps"))
        }
    }
}

fn silent(waited: Duration) -> Failure {
    Failure::failed(format!("the node did not answer within {} s", waited.as_secs()))
}

/// A daemon that hangs is not waited for. Calls of a node are large: each is on the heap.
async fn within<T>(asked: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(LOOK_MAX, Box::pin(asked))
        .await
        .unwrap_or_else(|_| Err(silent(LOOK_MAX).hint("its log says what it is busy with")))
}

/// What a node found; an empty id is the node that the call arrives at.
async fn ask(
    client: &mut Client,
    node: Vec<u8>,
    kind: open_stream::Kind,
) -> Result<v1::Findings, Failure> {
    let mut frames = client.open_at(node, kind).await?;
    let mut all = v1::Findings::default();
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Findings(found)) => {
                all.findings.extend(found.findings);
                (all.node, all.name) = (found.node, found.name);
            }
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(nodes: u32, managers: u32, reachable: u32, stale_ms: u64, expected: &str) {
        let managers_reachable = reachable;
        let info =
            v1::Info { nodes, managers, managers_reachable, stale_ms, ..v1::Info::default() };
        let found = of_managers(&info);
        let got = found.map(|check| format!("{:?} {}", check.level, check.detail));
        assert_eq!(got.unwrap_or_default(), expected);
    }

    #[test]
    fn managers_that_cannot_decide_are_told() {
        check(3, 3, 3, 0, "Ok 3 of 3 can be reached");
        check(5, 3, 2, 0, "Warn 2 of 3 can be reached");
        let alone = "no leader for 4 s, 1 of 3 managers can be reached: nothing can be decided";
        check(5, 3, 1, 4200, &format!("Bad {alone}"));
        // Restarted without others: it does not even know how many there are.
        check(
            0,
            0,
            1,
            1000,
            "Bad no leader for 1 s, 1 of 1 managers can be reached: nothing can be decided",
        );
        // A worker's node knows addresses alone.
        check(0, 3, 0, 0, "");
    }
}
