//! `warren exec`: a command beside a container's own, its streams joined to ours.

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::client::{Frames, frame as wrap};
use super::context::Context;
use super::env;
use super::failure::{Exit, Failure};
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
    let request = v1::Exec {
        target: args.target,
        args: args.command,
        env: env::gather::<&str>(&[], &args.env, &env::of_caller)?,
        workdir: args.workdir,
        user: args.user,
        tty: args.tty,
        stdin: args.interactive,
        rows,
        columns,
        task: Vec::new(),
        container: args.container,
    };
    let frames = context.client.open(open_stream::Kind::Exec(request)).await?;
    let _raw = match args.tty && args.interactive {
        true => Some(terminal::Mode::raw()?),
        false => None,
    };
    match talk(context, frames, args.interactive, args.tty).await? {
        0 => Ok(()),
        code => Err(Failure::new(Exit::Silent(code), "")),
    }
}

fn listen(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::failed(format!("listen for signals: {e}")))
}

/// Passes everything through until the command ended; returns its exit code.
///
/// Sending never waits in the loop that receives: a command that writes while
/// it is written to would otherwise stop both.
async fn talk(
    context: &mut Context<'_>,
    mut frames: Frames,
    interactive: bool,
    tty: bool,
) -> Result<u8, Failure> {
    if interactive {
        tokio::spawn(pump(terminal::input(), frames.to.clone()));
    }
    let mut resized = listen(SignalKind::window_change())?;
    let mut interrupted = listen(SignalKind::interrupt())?;
    let mut terminated = listen(SignalKind::terminate())?;
    let mut hung_up = listen(SignalKind::hangup())?;
    loop {
        let send = tokio::select! {
            message = frames.from.message() => match message? {
                None => {
                    let message = "the node ended the conversation before the command ended";
                    return Err(Failure::new(Exit::Unreachable, message));
                }
                Some(message) => match receive(context, message)? {
                    Some(code) => return Ok(code),
                    None => continue,
                },
            },
            _ = resized.recv(), if tty => match terminal::size() {
                Some((rows, columns)) => frame::Kind::Resize(v1::Resize { rows, columns }),
                None => continue,
            },
            _ = interrupted.recv() => frame::Kind::Signal(2),
            _ = terminated.recv() => frame::Kind::Signal(15),
            _ = hung_up.recv() => frame::Kind::Signal(1),
        };
        let to = frames.to.clone();
        tokio::spawn(async move {
            // A node that takes no more still has its last words for us.
            let _ = to.send(wrap(send)).await;
        });
    }
}

async fn pump(mut input: mpsc::Receiver<std::io::Result<Vec<u8>>>, to: mpsc::Sender<v1::Frame>) {
    while let Some(Ok(bytes)) = input.recv().await {
        if to.send(wrap(frame::Kind::Stdin(bytes.into()))).await.is_err() {
            return;
        }
    }
    let _ = to.send(wrap(frame::Kind::StdinClosed(true))).await;
}

fn receive(context: &mut Context<'_>, message: v1::Frame) -> Result<Option<u8>, Failure> {
    match message.kind {
        Some(frame::Kind::Stdout(bytes)) => context.printer.raw(&bytes)?,
        Some(frame::Kind::Stderr(bytes)) => context.printer.raw_error(&bytes),
        Some(frame::Kind::ExitCode(code)) => {
            // Codes of processes fit a byte; anything else is a failure all the same.
            return Ok(Some(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        Some(frame::Kind::Error(error)) => return Err(error.into()),
        _ => {}
    }
    Ok(None)
}
