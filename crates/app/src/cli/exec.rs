//! `warren exec`: a command beside a container's own, its streams joined to ours; and `warren
//! attach`: those of the container itself.

use std::path::PathBuf;

use clap::Args;
use warren_proto::v1;
use warren_proto::v1::open_stream;

use super::context::Context;
use super::detach_keys::DetachKeys;
use super::env;
use super::failure::Failure;
use super::talk::{Manner, talk};
use super::terminal;

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// Pass standard input on
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Set a variable; KEY alone takes the caller's value
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Read variables from a file of KEY=VALUE lines
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Let it run by itself: nobody waits for it, nor hears it
    #[arg(short, long, conflicts_with_all = ["interactive", "tty", "detach_keys"])]
    detach: bool,
    /// With everything that the container may do; refused unless it is privileged
    #[arg(long)]
    privileged: bool,
    /// Keys that leave the command running, with a terminal
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: DetachKeys,
    /// User: name, uid, user:group or uid:gid
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// An init container or a sidecar of the task, instead of its own
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    container: String,
    /// Task id, SERVICE.SLOT, or SERVICE for any of its running tasks
    #[arg(value_name = "TARGET")]
    target: String,
    /// Command and its arguments
    #[arg(value_name = "CMD", required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

pub(crate) async fn run(context: &mut Context<'_>, args: ExecArgs) -> Result<(), Failure> {
    if args.tty && args.interactive && !terminal::stdin_is_terminal() {
        return Err(Failure::input("--tty: standard input is not a terminal")
            .hint("leave out -t to pipe data through"));
    }
    let (rows, columns) = terminal::size().unwrap_or((24, 80));
    let (input, tty) = (args.interactive, args.tty);
    let request = v1::Exec {
        target: args.target,
        args: args.command,
        env: env::gather(&args.env_file, &args.env, &env::of_caller)?,
        workdir: args.workdir,
        user: args.user,
        tty,
        stdin: input,
        rows,
        columns,
        container: args.container,
        detach: args.detach,
        privileged: args.privileged,
        ..v1::Exec::default()
    };
    let frames = context.client.open(open_stream::Kind::Exec(request)).await?;
    let keys = Some(args.detach_keys).filter(|_| tty && input);
    talk(context, frames, Manner { input, tty, keys, signals: true }).await?.finish(context)
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Keys that leave the container running
    #[arg(long, value_name = "KEYS", default_value = DetachKeys::DEFAULT)]
    detach_keys: DetachKeys,
    /// Only look and listen
    #[arg(long)]
    no_stdin: bool,
    /// Whether signals to this command go to the container instead
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// An init container or a sidecar of the task, instead of its own
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    container: String,
    /// Task id, SERVICE.SLOT, or SERVICE for any of its running tasks
    #[arg(value_name = "TARGET")]
    target: String,
}

pub(crate) async fn attach(context: &mut Context<'_>, args: AttachArgs) -> Result<(), Failure> {
    let input = !args.no_stdin;
    let request = v1::Exec {
        target: args.target,
        container: args.container,
        stdin: input,
        attach: true,
        ..v1::Exec::default()
    };
    let frames = context.client.open(open_stream::Kind::Exec(request)).await?;
    let keys = Some(args.detach_keys);
    // Whether it has a terminal, its node says.
    let manner = Manner { input, tty: false, keys, signals: args.sig_proxy };
    talk(context, frames, manner).await?.finish(context)
}
