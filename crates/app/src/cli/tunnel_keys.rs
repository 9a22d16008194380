//! `warren network rotate-keys`: other keys for nodes' ends of the tunnel.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use futures::StreamExt;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::client::Client;
use super::context::Context;
use super::failure::{Exit, Failure};
use super::members;
use super::rows::service_id;

/// Nodes wait for 25 s until all others have taken a key.
const ANSWER_MAX: Duration = Duration::from_secs(40);
/// Each has the others' tables change three times.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct RotateKeysArgs {
    /// Ids, beginnings of ids, or host names; none: all nodes that are up
    #[arg(value_name = "NODE")]
    nodes: Vec<String>,
}

/// Prints the new public key of each node once no other is in use.
pub(crate) async fn run(context: &mut Context<'_>, args: &RotateKeysArgs) -> Result<(), Failure> {
    let listed = members::list(context, false).await?;
    let mut nodes: Vec<&v1::Node> = Vec::new();
    for name in &args.nodes {
        let found = members::find(&listed, name)?.ok_or_else(|| {
            Failure::new(Exit::NotFound, format!("no node {name}"))
                .hint("warren node ls shows them")
        })?;
        // By two of its names it is still one.
        if !nodes.iter().any(|node| node.id == found.id) {
            nodes.push(found);
        }
    }
    if args.nodes.is_empty() {
        nodes = listed.iter().filter(|node| node.status() == v1::NodeStatus::Ready).collect();
    }
    let client = &context.client;
    let asked = nodes.iter().map(|node| async move {
        let answer = tokio::time::timeout(ANSWER_MAX, rotate(client, node.id.clone())).await;
        let silent = || Err(Failure::new(Exit::Unreachable, "it does not answer"));
        (name(node), answer.unwrap_or_else(|_| silent()))
    });
    let answers: Vec<_> = futures::stream::iter(asked).buffered(AT_ONCE).collect().await;
    let mut failed = None;
    for (name, answer) in answers {
        match answer {
            Ok(rotated) if rotated.done => {
                context.printer.line(format!("{name} {}", STANDARD.encode(&rotated.key)))?;
            }
            Ok(_) => {
                let text = format!("node {name}: some nodes have not taken its new key yet");
                let hint =
                    "it goes on by itself, and ends within a day; warren node ls shows who is down";
                failed.get_or_insert_with(|| Failure::failed(text).hint(hint));
            }
            Err(failure) => {
                let text = format!("node {name}: {}", failure.message);
                failed.get_or_insert(Failure { message: text, ..failure });
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

fn name(node: &v1::Node) -> String {
    let name = node.description.as_ref().map(|about| about.hostname.clone());
    name.filter(|name| !name.is_empty()).unwrap_or_else(|| service_id(&node.id))
}

async fn rotate(client: &Client, node: Vec<u8>) -> Result<v1::KeyRotated, Failure> {
    let kind = open_stream::Kind::RotateKey(v1::RotateKey {});
    let mut frames = client.open_at(node, kind).await?;
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::KeyRotated(rotated)) => return Ok(rotated),
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    Err(Failure::failed("it said nothing"))
}
