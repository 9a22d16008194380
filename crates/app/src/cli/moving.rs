//! How tasks are moved: flags of `service create|update`, and `warren node drain|activate`.
//!
//! A drain that is waited for ends when its node is empty. Whoever interrupts it
//! takes it back: the nodes are active again, and what moved by then stays where
//! it is. Without `--wait` it goes on by itself.

use clap::Args;
use serde_json::{Value, json};
use warren_model::ServiceSpec;
use warren_model::moving::{MinAvailable, MinAvailableError, Moving, Rebalance};
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::failure::Failure;
use super::members::{self, change};
use super::settle::{Goal, Patience, WaitFlags, settled_or};
use super::spec::duration;

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct MovingFlags {
    /// Replicas that must work while others are moved or renewed: a number, a part such as 80%, or
    /// none
    #[arg(long, value_name = "N|P%", allow_hyphen_values = true, value_parser = least)]
    min_available: Option<Least>,
    /// Whether replicas are moved to nodes that came later: auto (not those with volumes of a
    /// node), never or always
    #[arg(long, value_name = "auto|never|always")]
    rebalance: Option<Rebalance>,
}

/// A least number, or none any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Least(Option<MinAvailable>);

fn least(text: &str) -> Result<Least, String> {
    if text == "none" {
        return Ok(Least(None));
    }
    text.parse().map(|least| Least(Some(least))).map_err(|error| match error {
        MinAvailableError::Shape { .. } => format!("{error}, or none"),
        MinAvailableError::TooMuch { .. } => error.to_string(),
    })
}

impl MovingFlags {
    pub(crate) fn apply(&self, spec: &mut ServiceSpec) {
        let moving = &mut spec.moving;
        if let Some(Least(least)) = self.min_available {
            moving.min_available = least;
        }
        moving.rebalance = self.rebalance.unwrap_or(moving.rebalance);
    }
}

pub(crate) fn moving_json(moving: Moving) -> Value {
    let Moving { min_available, rebalance } = moving;
    json!({
        "min_available": min_available.map(|least| least.to_string()),
        "rebalance": rebalance.as_str(),
    })
}

#[derive(Debug, Args)]
pub(crate) struct NodeDrainArgs {
    /// Ids, beginnings of ids, or host names
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
    /// After this time whatever is left ends, even if that is more than a service can do without or
    /// there is no other place for it
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration)]
    deadline: Option<u64>,
    #[command(flatten)]
    wait: WaitFlags,
}

#[derive(Debug, Args)]
pub(crate) struct NodeActivateArgs {
    /// Ids, beginnings of ids, or host names
    #[arg(value_name = "NODE", required = true)]
    nodes: Vec<String>,
}

/// Moves everything off nodes, at the pace that services allow.
pub(crate) async fn drain(context: &mut Context<'_>, args: NodeDrainArgs) -> Result<(), Failure> {
    let mut ids = Vec::new();
    for node in &args.nodes {
        let request = v1::UpdateNodeRequest {
            node: node.clone(),
            availability: v1::Availability::Drain.into(),
            drain_deadline_ms: args.deadline,
            request_id: request_id(),
            ..v1::UpdateNodeRequest::default()
        };
        ids.extend(change(context, request).await?);
    }
    match settled_or(context, &ids, Goal::Empty, &args.wait).await? {
        Patience::Kept => Ok(()),
        Patience::Interrupted { last } => {
            activate_all(context, &args.nodes).await?;
            Err(Failure::failed(format!("stopped the drain: {last}"))
                .hint("the nodes are active again; what has moved stays where it is"))
        }
    }
}

pub(crate) async fn activate(
    context: &mut Context<'_>,
    args: NodeActivateArgs,
) -> Result<(), Failure> {
    let ids = activate_all(context, &args.nodes).await?;
    ids.iter().try_for_each(|id| context.printer.line(super::rows::service_id(id)))
}

/// Returns the ids of the nodes.
async fn activate_all(
    context: &mut Context<'_>,
    nodes: &[String],
) -> Result<Vec<Vec<u8>>, Failure> {
    let mut ids = Vec::new();
    for node in nodes {
        let request = v1::UpdateNodeRequest {
            node: node.clone(),
            availability: v1::Availability::Active.into(),
            request_id: request_id(),
            ..v1::UpdateNodeRequest::default()
        };
        ids.extend(members::change_quietly(context, request).await?);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_numbers() {
        let parse = |text: &str| least(text).map(|Least(least)| least.map(|l| l.to_string()));
        assert_eq!(parse("none"), Ok(None));
        assert_eq!(parse("80%"), Ok(Some("80%".into())));
        assert_eq!(
            parse("-1"),
            Err("\"-1\" is neither a number nor a part; write e.g. 2 or 80%, or none".into())
        );
    }
}
