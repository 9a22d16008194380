//! `warren image …` and `warren registry …`: images of the node the call arrives at.
//! What goes out of it is in [`out`].

mod out;

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use warren_model::service::{is_user, parse_signal};
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::client::{Frames, frame as wrap};
use super::context::Context;
use super::failure::{Exit, Failure, plain};
use super::listing::{ListFlags, size};
use super::rows::ImageRow;
use super::spec::{Words, duration, words};
use super::terminal;

/// Archive bytes per frame: few calls, little memory.
const CHUNK_BYTES: usize = 128 * 1024;

#[derive(Debug, Subcommand)]
pub(crate) enum ImageVerb {
    /// Fetch an image from a registry
    Pull(PullArgs),
    /// Load images from a docker or OCI archive
    Load(LoadArgs),
    /// Make an image of a root file system
    Import(Box<ImportArgs>),
    /// Write images into an archive that docker load, skopeo and image load read
    Save(out::SaveArgs),
    /// Send an image to a registry
    Push(out::PushArgs),
    /// Check the images of the node to the last byte, and repair what nothing uses
    Fsck(out::FsckArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ListFlags),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
    /// Remove images that nothing uses: those without a name, or all
    Prune(PruneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Image, e.g. nginx:1.27
    #[arg(value_name = "REF")]
    reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// Archive; - or nothing is standard input
    #[arg(value_name = "FILE", default_value = "-")]
    file: PathBuf,
    /// The same, as Docker's flag
    #[arg(short, long, value_name = "FILE", conflicts_with = "file")]
    input: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// Tar of a root file system, plain or compressed; - is standard input
    #[arg(value_name = "ROOTFS.tar")]
    file: PathBuf,
    /// Name of the image to make
    #[arg(value_name = "NAME:TAG")]
    reference: String,
    /// Command, split like a shell does
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    cmd: Option<Words>,
    /// Entrypoint, split like a shell does
    #[arg(long, value_name = "COMMAND", value_parser = words)]
    entrypoint: Option<Words>,
    /// Set a variable
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// Working directory
    #[arg(short, long, value_name = "DIR", default_value = "")]
    workdir: String,
    /// User: name, uid, user:group or uid:gid
    #[arg(short, long, value_name = "USER", default_value = "", value_parser = user)]
    user: String,
    /// Port that its program listens on, e.g. 80/tcp
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Signal that asks a container to end
    #[arg(long, value_name = "SIGNAL", default_value = "", value_parser = stop_signal)]
    stop_signal: String,
}

/// Empty is nobody in particular.
fn user(text: &str) -> Result<String, String> {
    match text.is_empty() || is_user(text) {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not of the form user, uid, user:group or uid:gid")),
    }
}

/// Empty is the usual one.
fn stop_signal(text: &str) -> Result<String, String> {
    match text.is_empty() || parse_signal(text).is_some() {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a signal; write e.g. SIGTERM, INT or 15")),
    }
}

#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// Names or ids of images
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Remove names of an image that is in use, too
    #[arg(short, long)]
    force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Images with a name too
    #[arg(short, long)]
    all: bool,
    /// Only what was not fetched or used for so long, e.g. 24h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    unused_for: Option<u64>,
    /// Only say which
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryVerb {
    /// Keep a user's password for a registry on this node
    Login(LoginArgs),
    /// Forget it
    Logout(LogoutArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// Host of the registry, with its port
    #[arg(value_name = "HOST", default_value = "docker.io")]
    host: String,
    /// User name
    #[arg(short, long, value_name = "USER")]
    user: String,
    /// Read the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// Host of the registry, with its port
    #[arg(value_name = "HOST", default_value = "docker.io")]
    host: String,
}

pub(crate) async fn run(context: &mut Context<'_>, verb: ImageVerb) -> Result<(), Failure> {
    match verb {
        ImageVerb::Pull(args) => {
            let request = v1::ImagePull { reference: args.reference };
            let frames = context.client.open(open_stream::Kind::ImagePull(request)).await?;
            let images = watch(context, frames).await?;
            names(context, &images)
        }
        ImageVerb::Load(args) => {
            let file = args.input.unwrap_or(args.file);
            let kind = open_stream::Kind::ImageLoad(v1::ImageLoad {});
            let images = upload(context, &file, kind).await?;
            names(context, &images)
        }
        ImageVerb::Import(args) => {
            let file = args.file.clone();
            let images =
                upload(context, &file, open_stream::Kind::ImageImport(import(*args))).await?;
            names(context, &images)
        }
        ImageVerb::Save(args) => out::save(context, args).await,
        ImageVerb::Push(args) => out::push(context, args).await,
        ImageVerb::Fsck(args) => out::fsck(context, &args).await,
        ImageVerb::Ls(flags) => {
            let kind = open_stream::Kind::ImageList(v1::ImageList {});
            let frames = context.client.open(kind).await?;
            let images = watch(context, frames).await?;
            let rows: Vec<ImageRow> = images.images.iter().map(ImageRow::from).collect();
            let view = context.view();
            context.printer.list(&rows, &flags, view)
        }
        ImageVerb::Rm(args) => {
            let (references, force) = (args.images, args.force);
            let request = v1::ImageRemove { references, force, prune: None };
            let frames = context.client.open(open_stream::Kind::ImageRemove(request)).await?;
            let images = watch(context, frames).await?;
            images.removed.iter().try_for_each(|name| context.printer.line(name))
        }
        ImageVerb::Prune(args) => prune(context, &args).await,
    }
}

async fn prune(context: &mut Context<'_>, args: &PruneArgs) -> Result<(), Failure> {
    let prune = v1::ImagePrune {
        all: args.all,
        unused_for_ms: args.unused_for.unwrap_or(0),
        dry_run: args.dry_run,
    };
    let request = v1::ImageRemove { references: vec![], force: false, prune: Some(prune) };
    let frames = context.client.open(open_stream::Kind::ImageRemove(request)).await?;
    let images = watch(context, frames).await?;
    images.removed.iter().try_for_each(|name| context.printer.line(name))?;
    let bytes = size(images.freed_bytes);
    context.printer.note(match args.dry_run {
        true => format!("{bytes} would be freed"),
        false => format!("{bytes} freed"),
    });
    Ok(())
}

fn import(args: ImportArgs) -> v1::ImageImport {
    let list = |words: Option<Words>| words.map(|Words(words)| words).unwrap_or_default();
    v1::ImageImport {
        reference: args.reference,
        cmd: list(args.cmd),
        entrypoint: list(args.entrypoint),
        env: args.env,
        workdir: args.workdir,
        user: args.user,
        exposed: args.expose,
        stop_signal: args.stop_signal,
    }
}

fn names(context: &mut Context<'_>, images: &v1::Images) -> Result<(), Failure> {
    images.images.iter().try_for_each(|image| {
        context.printer.line(if image.name.is_empty() { &image.id } else { &image.name })
    })
}

/// Shows progress until the stream ends; returns what it said about images.
async fn watch(context: &mut Context<'_>, mut frames: Frames) -> Result<v1::Images, Failure> {
    let mut layers = Layers::default();
    let mut images = v1::Images::default();
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Progress(progress)) => {
                let board = layers.update(progress, context.printer.rewrites());
                context.printer.board(board);
            }
            Some(frame::Kind::Images(last)) => images = last,
            Some(frame::Kind::Stderr(note)) => {
                context.printer.finish_board();
                context.printer.note(String::from_utf8_lossy(&note));
            }
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    context.printer.finish_board();
    Ok(images)
}

/// Progress of the layers, in the order in which they were first heard of.
#[derive(Default)]
struct Layers(Vec<v1::PullProgress>);

impl Layers {
    /// The board after one more report. Without a terminal only phases are
    /// shown: bytes would be a line each time.
    fn update(&mut self, progress: v1::PullProgress, bytes: bool) -> Vec<String> {
        match self.0.iter_mut().find(|known| known.layer == progress.layer) {
            Some(known) => *known = progress,
            None => self.0.push(progress),
        }
        self.0.iter().map(|layer| describe(layer, bytes)).collect()
    }
}

fn describe(layer: &v1::PullProgress, bytes: bool) -> String {
    let digits = layer.layer.strip_prefix("sha256:").unwrap_or(&layer.layer);
    let short: String = digits.chars().take(12).collect();
    let mut text = format!("{short}: {}", layer.phase);
    if bytes && layer.total > 0 && layer.done < layer.total {
        text.push_str(&format!(" {} of {}", size(layer.done), size(layer.total)));
    }
    text
}

/// Sends a file behind `kind` and waits for the outcome.
async fn upload(
    context: &mut Context<'_>,
    file: &Path,
    kind: open_stream::Kind,
) -> Result<v1::Images, Failure> {
    let stdin = file == Path::new("-");
    if stdin && terminal::stdin_is_terminal() {
        return Err(Failure::input("standard input is a terminal, not an archive")
            .hint("name a file, or redirect one: warren image load < FILE"));
    }
    let named = |e: &std::io::Error| Failure::input(format!("{}: {}", file.display(), plain(e)));
    let opened = match stdin {
        true => None,
        false => {
            let opened = tokio::fs::File::open(file).await.map_err(|e| named(&e))?;
            let about = opened.metadata().await.map_err(|e| named(&e))?;
            if about.is_dir() {
                return Err(Failure::input(format!(
                    "{}: is a folder, not an archive",
                    file.display()
                )));
            }
            Some(opened)
        }
    };
    let frames = context.client.open(kind).await?;
    let to = frames.to.clone();
    let mut sending = tokio::spawn(async move {
        match opened {
            Some(file) => send_file(file, to).await,
            None => send_input(to).await,
        }
    });
    let watching = watch(context, frames);
    tokio::pin!(watching);
    tokio::select! {
        outcome = &mut watching => outcome,
        sent = &mut sending => match sent {
            Ok(Ok(())) => watching.await,
            Ok(Err(error)) => Err(named(&error)),
            Err(_) => Err(Failure::new(Exit::Failed, "sending the archive was interrupted")),
        },
    }
}

/// Errors are those of reading; a node that takes no more says why by itself.
async fn send_file(mut file: tokio::fs::File, to: mpsc::Sender<v1::Frame>) -> std::io::Result<()> {
    loop {
        let mut chunk = bytes::BytesMut::with_capacity(CHUNK_BYTES);
        if file.read_buf(&mut chunk).await? == 0 {
            break;
        }
        if to.send(wrap(frame::Kind::Stdin(chunk.freeze()))).await.is_err() {
            return Ok(());
        }
    }
    let _ = to.send(wrap(frame::Kind::StdinClosed(true))).await;
    Ok(())
}

async fn send_input(to: mpsc::Sender<v1::Frame>) -> std::io::Result<()> {
    let mut input = terminal::input();
    while let Some(chunk) = input.recv().await {
        if to.send(wrap(frame::Kind::Stdin(chunk?.into()))).await.is_err() {
            return Ok(());
        }
    }
    let _ = to.send(wrap(frame::Kind::StdinClosed(true))).await;
    Ok(())
}

pub(crate) async fn registry(context: &mut Context<'_>, verb: RegistryVerb) -> Result<(), Failure> {
    let (host, request) = match verb {
        RegistryVerb::Login(args) => {
            let password = password(context, args.password_stdin)?;
            let (registry, user) = (args.host.clone(), args.user);
            (args.host, v1::RegistryLogin { registry, user, password, logout: false })
        }
        RegistryVerb::Logout(args) => {
            let registry = args.host.clone();
            (args.host, v1::RegistryLogin { registry, logout: true, ..Default::default() })
        }
    };
    let logout = request.logout;
    let frames = context.client.open(open_stream::Kind::RegistryLogin(request)).await?;
    watch(context, frames).await?;
    context.printer.note(match logout {
        true => format!("logged out of {host}"),
        false => format!("logged in to {host}"),
    });
    Ok(())
}

/// From standard input or typed without being shown; never an argument, which
/// every user of the machine could read.
fn password(context: &mut Context<'_>, stdin: bool) -> Result<String, Failure> {
    let terminal = terminal::stdin_is_terminal();
    if !stdin && !terminal {
        return Err(Failure::input("there is no terminal to type the password at")
            .hint("pipe it in with --password-stdin"));
    }
    let silent = match terminal {
        true => {
            context.printer.prompt("Password: ");
            Some(terminal::Mode::silent()?)
        }
        false => None,
    };
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    if silent.is_some() {
        drop(silent);
        context.printer.note("");
    }
    read.map_err(|e| Failure::failed(format!("read the password: {e}")))?;
    let password = line.trim_end_matches(['\n', '\r']);
    if password.is_empty() {
        return Err(Failure::input("the password is empty"));
    }
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_of_layers() {
        let report = |layer: &str, done, total, phase: &str| v1::PullProgress {
            layer: format!("sha256:{layer}"),
            done,
            total,
            phase: phase.to_owned(),
        };
        let mut layers = Layers::default();
        layers.update(report("aaaaaaaaaaaaaaaa", 1_000_000, 7_000_000, "downloading"), true);
        let board = layers.update(report("bb", 0, 0, "waiting"), true);
        assert_eq!(board, ["aaaaaaaaaaaa: downloading 1.0MB of 7.0MB", "bb: waiting"]);
        let board = layers.update(report("aaaaaaaaaaaaaaaa", 7, 7, "done"), false);
        assert_eq!(board, ["aaaaaaaaaaaa: done", "bb: waiting"]);
    }
}
