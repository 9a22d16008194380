//! `warren cluster token`: what lets machines join.

use clap::{Args, ValueEnum};
use serde_json::json;
use warren_model::Time;
use warren_proto::v1;

use super::client::request_id;
use super::context::Context;
use super::failure::Failure;
use super::spec::duration;
use super::template::Format;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RoleFlag {
    Worker,
    Manager,
}

#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    /// What the machine becomes
    #[arg(value_enum, value_name = "ROLE", default_value_t = RoleFlag::Worker)]
    role: RoleFlag,
    /// Make a new token; the old one lets nobody in any more
    #[arg(long)]
    rotate: bool,
    /// Time after which the new token lets nobody in, e.g. 1h; with --rotate
    #[arg(long, value_name = "DURATION", value_parser = duration, requires = "rotate")]
    expires: Option<u64>,
    /// Print the token alone
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
    /// table, json, yaml or a template such as '{{.Token}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

pub(crate) async fn run(context: &mut Context<'_>, args: &TokenArgs) -> Result<(), Failure> {
    let request = v1::GetJoinTokenRequest {
        manager: args.role == RoleFlag::Manager,
        rotate: args.rotate,
        expires_in_ms: args.expires,
        request_id: request_id(),
    };
    let answer = context
        .client
        .call(async |mut control| control.get_join_token(request.clone()).await)
        .await?;
    if args.quiet {
        return context.printer.line(&answer.token);
    }
    let role = if args.role == RoleFlag::Manager { "manager" } else { "worker" };
    let expires = answer.expires.map(|at| Time(at).to_string());
    let command =
        format!("warren node join --token {} {}", answer.token, answer.managers.join(","));
    let object = json!({
        "role": role,
        "token": answer.token,
        "expires_at": expires,
        "managers": answer.managers,
        "command": command,
    });
    match &args.format {
        Format::Table => {
            context.printer.note(format!("a machine becomes a {role} of this cluster by"));
            context.printer.line(&command)?;
            if let Some(at) = expires {
                context.printer.note(format!("the token is good until {at}"));
            }
            Ok(())
        }
        format => context.printer.object(&object, format),
    }
}
