//! `warren doctor network`: the way from a node to each other one.
//!
//! The node that is asked looks by itself, so it works without managers. Where the way to another
//! is cut and that one can be asked as well, both look at the same time: who is heard by whom
//! tells which way it is.

use clap::Args;
use serde::Serialize;
use warren_proto::v1;
use warren_proto::v1::open_stream;

use super::{Level, ask, awake, within};
use crate::cli::client::{Client, Target};
use crate::cli::context::Context;
use crate::cli::failure::{Exit, Failure};
use crate::cli::listing::{ListFlags, Record, View};
use crate::cli::members;
use crate::cli::printer::Printer;
use crate::cli::template::Format;
use crate::settings::Place;

/// Other nodes that are asked for their view: with more, it is the node itself that is cut off.
const OTHERS_MAX: usize = 8;
/// What tells by itself whether anything comes through.
const CHECKS: [&str; 2] = ["underlay", "tunnel"];

#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    /// Look at the way to these alone: names, ids or addresses of nodes
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
    /// Look from this node; a manager has to be asked for that
    #[arg(long, value_name = "NODE")]
    from: Option<String>,
    /// table, json, yaml or a template such as '{{.To}} {{.Check}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// Which way nothing comes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    /// From the node that was asked.
    Out,
    /// To it.
    In,
    Both,
}

/// One thing about the way from one node to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Path {
    level: Level,
    from: String,
    /// Empty: of the first alone.
    to: String,
    /// Id of the other node.
    node: String,
    check: String,
    detail: String,
    hint: String,
    /// What is cut, if that is known.
    way: Option<Way>,
    #[serde(skip)]
    heard: bool,
}

impl Record for Path {
    const COLUMNS: &'static [&'static str] = &["LEVEL", "FROM", "TO", "CHECK", "FOUND", "HINT"];
    const KEYS: &'static [&'static str] =
        &["level", "from", "to", "node", "check", "detail", "hint", "way"];

    fn cells(&self, _: View) -> Vec<String> {
        let level = self.level.word().to_owned();
        let to = if self.to.is_empty() { "-" } else { &self.to };
        let texts = [&self.from, to, &self.check, &self.detail, &self.hint];
        std::iter::once(level).chain(texts.map(str::to_owned)).collect()
    }

    fn key(&self) -> &str {
        &self.node
    }
}

pub(crate) async fn run(
    printer: &mut Printer,
    args: &NetworkArgs,
    place: &Place,
) -> Result<(), Failure> {
    let target = || Target::Socket(place.socket.clone());
    let begin = async {
        let mut context = Context::connect(target(), printer).await?;
        let from = match &args.from {
            Some(text) => named(&mut context, text).await?,
            None => Vec::new(),
        };
        let found = look(&mut context.client, from.clone(), args.nodes.clone()).await?;
        Ok((from, found))
    };
    awake(place).await?;
    let (from, found) = within(begin).await?;
    let own = id(&found.node).unwrap_or_default();
    let mut paths = paths(&found);
    let pairs = suspects(&found).into_iter().filter_map(|node| Some((id(&node)?, node)));
    let views = pairs.map(|(other, node)| {
        // Both at the same time, on connections of their own.
        let mine = view(target(), from.clone(), other.clone());
        let theirs = view(target(), node, own.clone());
        async { (other, tokio::join!(mine, theirs)) }
    });
    for (other, (mine, theirs)) in futures::future::join_all(views).await {
        let of_pair = paths.iter_mut().filter(|path| path.node == other);
        of_pair.for_each(|path| path.compare(mine.as_ref(), theirs.as_ref()));
    }
    let flags = ListFlags { format: Some(args.format.clone()), ..ListFlags::default() };
    printer.list(&paths, &flags, View::at(crate::cli::context::now()))?;
    match paths.iter().filter(|path| path.level == Level::Bad).count() {
        0 => Ok(()),
        1 => Err(Failure::failed("1 thing of the network is broken")),
        n => Err(Failure::failed(format!("{n} things of the network are broken"))),
    }
}

/// The id of a node that a person names.
async fn named(context: &mut Context<'_>, text: &str) -> Result<Vec<u8>, Failure> {
    let nodes = members::list(context, false).await?;
    let found = members::find(&nodes, text)?;
    found.map(|node| node.id.clone()).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("no node {text}")).hint("warren node ls shows them")
    })
}

async fn look(
    client: &mut Client,
    node: Vec<u8>,
    nodes: Vec<String>,
) -> Result<v1::Findings, Failure> {
    ask(client, node, open_stream::Kind::Doctor(v1::Doctor { network: true, nodes })).await
}

/// What `node` finds of the way to `other`; nothing if it cannot be asked.
async fn view(target: Target, node: Vec<u8>, other: String) -> Option<v1::Findings> {
    let looked = within(async {
        let mut client = Client::connect(target).await?;
        look(&mut client, node, vec![other]).await
    });
    looked.await.ok()
}

fn id(node: &[u8]) -> Option<String> {
    warren_proto::node_id("node", node).ok().map(|id| id.to_string())
}

fn paths(found: &v1::Findings) -> Vec<Path> {
    let path = |finding: &v1::Finding| Path {
        level: Level::of(finding),
        from: found.name.clone(),
        to: finding.peer.clone(),
        node: id(&finding.node).unwrap_or_default(),
        check: finding.name.clone(),
        detail: finding.detail.clone(),
        hint: finding.hint.clone(),
        way: (finding.heard && !finding.ok).then_some(Way::Out),
        heard: finding.heard,
    };
    found.findings.iter().map(path).collect()
}

fn is_cut(finding: &v1::Finding) -> bool {
    Level::of(finding) == Level::Bad && CHECKS.contains(&finding.name.as_str())
}

/// Nodes to which the way is cut, each once.
fn suspects(found: &v1::Findings) -> Vec<Vec<u8>> {
    let cut = found.findings.iter().filter(|finding| is_cut(finding));
    let mut nodes: Vec<Vec<u8>> = cut.map(|finding| finding.node.clone()).collect();
    nodes.dedup();
    nodes.truncate(OTHERS_MAX);
    nodes
}

impl Path {
    /// Says which way is cut, by what both nodes found when they looked at the same time.
    fn compare(&mut self, mine: Option<&v1::Findings>, theirs: Option<&v1::Findings>) {
        if self.level != Level::Bad || !CHECKS.contains(&self.check.as_str()) {
            return;
        }
        let of = |found: &v1::Findings| {
            let mut findings = found.findings.iter();
            findings.find(|finding| finding.name == self.check).map(|f| (f.ok, f.heard))
        };
        let (mine, theirs) = (mine.and_then(of), theirs.and_then(of));
        if mine.is_some_and(|(ok, _)| ok) || theirs.is_some_and(|(ok, _)| ok) {
            self.detail.push_str("; it worked a moment later");
            return;
        }
        let heard = self.heard || mine.is_some_and(|(_, heard)| heard);
        let (from, to) = (&self.from, &self.to);
        let (way, text) = match (heard, theirs.map(|(_, heard)| heard)) {
            (true, Some(false)) => {
                (Some(Way::Out), format!("{to} does not hear {from}: the way there is cut"))
            }
            (false, Some(true)) => {
                (Some(Way::In), format!("{to} hears {from}: the way back is cut"))
            }
            (false, Some(false)) => {
                (Some(Way::Both), "neither hears the other: both ways are cut".to_owned())
            }
            // Each hears the other: what was lost came through now.
            (true, Some(true)) => (None, format!("{to} hears {from}, which hears {to}")),
            (true, None) => (Some(Way::Out), format!("{to} cannot be asked")),
            (false, None) => (None, format!("{to} cannot be asked what it hears")),
        };
        self.way = way;
        self.detail = format!("{}; {text}", self.detail);
        if let Some(way) = way.filter(|_| theirs.is_some()) {
            let (first, last) = if way == Way::In { (to, from) } else { (from, to) };
            let both = if way == Way::Both { ", and back" } else { "" };
            self.hint = format!(
                "look at links, routes and firewalls on the way from {first} to {last}{both}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a node says of the other: `ok`, `cut`, `cut*` (it hears it), `-`: it cannot be asked.
    fn said(word: &str) -> Option<v1::Findings> {
        let finding = v1::Finding {
            name: "underlay".into(),
            ok: word == "ok",
            detail: "no answer".into(),
            hint: "look".into(),
            minor: false,
            node: vec![2; 10],
            peer: "w2".into(),
            heard: word == "cut*",
        };
        let name = "w1".to_owned();
        (word != "-").then(|| v1::Findings { findings: vec![finding], node: vec![1; 10], name })
    }

    #[track_caller]
    fn check(first: &str, mine: &str, theirs: &str, way: Option<Way>, detail: &str) {
        let found = said(first).unwrap();
        assert_eq!(suspects(&found), if first == "ok" { vec![] } else { vec![vec![2; 10]] });
        let mut path = paths(&found).remove(0);
        path.compare(said(mine).as_ref(), said(theirs).as_ref());
        assert_eq!((path.way, path.detail.as_str()), (way, detail));
    }

    #[test]
    fn two_views_tell_which_way_is_cut() {
        let both = "no answer; neither hears the other: both ways are cut";
        check("cut", "cut", "cut", Some(Way::Both), both);
        let out = "no answer; w2 does not hear w1: the way there is cut";
        check("cut", "cut*", "cut", Some(Way::Out), out);
        check("cut*", "-", "cut", Some(Way::Out), out);
        let back = "no answer; w2 hears w1: the way back is cut";
        check("cut", "cut", "cut*", Some(Way::In), back);
        check("cut", "-", "-", None, "no answer; w2 cannot be asked what it hears");
        check("cut*", "-", "-", Some(Way::Out), "no answer; w2 cannot be asked");
        check("cut", "ok", "cut", None, "no answer; it worked a moment later");
        check("ok", "-", "-", None, "no answer");
    }
}
