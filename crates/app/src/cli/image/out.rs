//! `warren image save|push|fsck`.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use warren_proto::v1;
use warren_proto::v1::{frame, open_stream};

use super::super::client::Frames;
use super::super::context::Context;
use super::super::failure::{Failure, plain};
use super::super::listing::{ListFlags, Record, View};
use super::super::terminal;
use super::{Layers, watch};

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// File to write; nothing or - is standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Names or ids of images; names are kept in the archive
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Name or id of an image
    #[arg(value_name = "IMAGE")]
    image: String,
    /// Where to, e.g. registry.example.org/shop/web:2; nothing is the image's own name
    #[arg(value_name = "REF", default_value = "", hide_default_value = true)]
    reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct FsckArgs {
    /// Remove what is damaged or belongs to nothing, but nothing that is in use
    #[arg(long)]
    repair: bool,
    #[command(flatten)]
    flags: ListFlags,
}

pub(crate) async fn push(context: &mut Context<'_>, args: PushArgs) -> Result<(), Failure> {
    let request = v1::ImagePush { image: args.image, reference: args.reference };
    let frames = context.client.open(open_stream::Kind::ImagePush(request)).await?;
    let images = watch(context, frames).await?;
    images
        .images
        .iter()
        .try_for_each(|image| context.printer.line(format!("{}: {}", image.name, image.digest)))
}

pub(crate) async fn save(context: &mut Context<'_>, args: SaveArgs) -> Result<(), Failure> {
    let file = args.output.filter(|file| file != Path::new("-"));
    if file.is_none() && terminal::stdout_is_terminal() {
        return Err(Failure::input("standard output is a terminal, not a file")
            .hint("write to a file: warren image save -o FILE IMAGE"));
    }
    let mut target = file.map(Target::open).transpose()?;
    let request = v1::ImageSave { images: args.images };
    let frames = context.client.open(open_stream::Kind::ImageSave(request)).await?;
    receive(context, frames, target.as_mut()).await?;
    target.map_or(Ok(()), Target::finish)
}

/// Takes the archive down until the node says that it was all.
async fn receive(
    context: &mut Context<'_>,
    mut frames: Frames,
    mut target: Option<&mut Target>,
) -> Result<(), Failure> {
    let mut layers = Layers::default();
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Stdout(bytes)) => match target.as_deref_mut() {
                Some(target) => target.write(&bytes)?,
                None => context.printer.raw(&bytes)?,
            },
            Some(frame::Kind::Progress(progress)) if target.is_some() => {
                let board = layers.update(progress, context.printer.rewrites());
                context.printer.board(board);
            }
            Some(frame::Kind::Images(_)) => {
                context.printer.finish_board();
                return Ok(());
            }
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    Err(Failure::failed("the node ended the conversation before the archive was whole"))
}

/// A file that is there when it is whole: written beside, then renamed. What is no regular
/// file, a pipe or `/dev/null`, is written to as it is.
struct Target {
    path: PathBuf,
    beside: Option<PathBuf>,
    file: std::fs::File,
}

impl Target {
    fn open(path: PathBuf) -> Result<Self, Failure> {
        let special = path.metadata().is_ok_and(|about| !about.is_file());
        let beside = (!special).then(|| {
            let mut name = path.clone().into_os_string();
            name.push(format!(".{}.part", std::process::id()));
            PathBuf::from(name)
        });
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(beside.is_some());
        let file = options.open(beside.as_ref().unwrap_or(&path));
        let named =
            |e: &std::io::Error| Failure::input(format!("{}: {}", path.display(), plain(e)));
        let file = file.map_err(|error| named(&error))?;
        Ok(Self { path, beside, file })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file.write_all(bytes).map_err(|error| self.problem(&error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        let Some(beside) = self.beside.take() else { return Ok(()) };
        let done = self.file.sync_all().and_then(|()| std::fs::rename(&beside, &self.path));
        done.map_err(|error| {
            // Of no use, and the error says what counts.
            let _ = std::fs::remove_file(&beside);
            self.problem(&error)
        })
    }

    fn problem(&self, error: &std::io::Error) -> Failure {
        Failure::failed(format!("{}: {}", self.path.display(), plain(error)))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            // Half an archive is of no use.
            let _ = std::fs::remove_file(beside);
        }
    }
}

/// Something of the store that is not as it should be.
#[derive(Debug, Serialize)]
struct FaultRow {
    what: String,
    problem: String,
    repaired: bool,
    hint: String,
}

impl Record for FaultRow {
    const COLUMNS: &'static [&'static str] = &["WHAT", "PROBLEM", "REPAIRED", "HINT"];
    const KEYS: &'static [&'static str] = &["what", "problem", "repaired", "hint"];

    fn cells(&self, _: View) -> Vec<String> {
        let repaired = if self.repaired { "yes" } else { "no" }.to_owned();
        vec![self.what.clone(), self.problem.clone(), repaired, self.hint.clone()]
    }

    fn key(&self) -> &str {
        &self.what
    }
}

pub(crate) async fn fsck(context: &mut Context<'_>, args: &FsckArgs) -> Result<(), Failure> {
    let request = v1::ImageFsck { repair: args.repair };
    let mut frames = context.client.open(open_stream::Kind::ImageFsck(request)).await?;
    let mut found = None;
    while let Some(message) = frames.from.message().await? {
        match message.kind {
            Some(frame::Kind::Findings(findings)) => found = Some(findings.findings),
            Some(frame::Kind::Error(error)) => return Err(error.into()),
            _ => {}
        }
    }
    let mut found = found
        .ok_or_else(|| Failure::failed("the node ended the conversation before it answered"))?;
    // The last one says what was looked at.
    let summary = found.pop().map(|last| last.detail).unwrap_or_default();
    let rows: Vec<FaultRow> = found
        .into_iter()
        .map(|v1::Finding { name, detail, ok, hint, .. }| FaultRow {
            what: name,
            problem: detail,
            repaired: ok,
            hint,
        })
        .collect();
    let left = rows.iter().filter(|row| !row.repaired).count();
    let view = context.view();
    context.printer.list(&rows, &args.flags, view)?;
    context.printer.note(summary);
    match left {
        0 => Ok(()),
        count => {
            let are = if count == 1 {
                "thing of the image store is"
            } else {
                "things of the image store are"
            };
            let failure = Failure::failed(format!("{count} {are} not sound"));
            Err(match args.repair {
                true => failure,
                false => failure.hint("warren image fsck --repair removes what nothing uses"),
            })
        }
    }
}
