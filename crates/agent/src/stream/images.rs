//! Images of this node on behalf of people: pull, load, import, list, remove, log in.
//! What goes out of the node is in [`out`].

pub(super) mod out;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use warren_image::{Error, Image, ImportOptions, Phase, Progress, Prune, Reference, Removed, Step};
use warren_model::Time;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use super::{Code, Failure, Gone, Heard, Line, Outcome, Outgoing};
use crate::effects::chain;
use crate::room;
use crate::seams::Archive;
use crate::worker::Tools;

/// Progress on its way out; what does not fit is dropped, the next report says more.
const PROGRESS_MAX: usize = 64;
/// Archive frames on their way to the store.
const ARCHIVE_MAX: usize = 16;

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::NotFound { .. } | Error::NoSuchImage { .. } | Error::NotLoggedIn { .. } => {
                Code::NotFound
            }
            Error::Reference(_)
            | Error::BadOption { .. }
            | Error::BadArchive { .. }
            | Error::BadLayer { .. }
            | Error::BadImage { .. }
            | Error::NoPlatform { .. } => Code::BadInput,
            Error::InUse { .. } | Error::Ambiguous { .. } | Error::ManyNames { .. } => {
                Code::Conflict
            }
            Error::Unauthorized { .. }
            | Error::RegistryError { .. }
            | Error::Unreachable { .. }
            | Error::TimedOut { .. }
            | Error::TooSlow { .. }
            | Error::DigestMismatch { .. }
            | Error::Truncated { .. }
            | Error::DamagedLayer { .. }
            | Error::DiskFull { .. }
            | Error::BadCredentials { .. }
            | Error::StoreInUse { .. }
            | Error::Io { .. }
            | Error::Interrupted { .. } => Code::Failed,
        };
        Self::new(code, chain(&error)).hint(error.hint().unwrap_or_default())
    }
}

pub(super) async fn pull(tools: &Arc<Tools>, reference: &str, line: &mut Line) -> Outcome {
    let (progress, steps) = watch();
    let name: Reference = match reference.parse() {
        Ok(name) => name,
        Err(error) => return Outcome::Failed(Error::from(error).into()),
    };
    let work = tools.images.pull(&name, progress);
    let outgoing = line.outgoing.clone();
    let done = tokio::select! {
        done = narrate(work, steps, &outgoing) => done,
        // The store finishes what others wait for, too.
        () = line.gone() => Err(Gone),
    };
    match done {
        Ok(Ok(image)) => {
            let images = vec![row(&name.to_string(), &image)];
            tools.image_came.notify_one();
            tell_of(&image, line).await;
            answer(line, v1::Images { images, removed: vec![], freed_bytes: 0 }).await
        }
        Ok(Err(error)) => Outcome::Failed(error.into()),
        Err(Gone) => Outcome::Gone,
    }
}

fn row(name: &str, image: &Image) -> v1::ImageRow {
    v1::ImageRow {
        name: name.to_owned(),
        id: image.id.clone(),
        size_bytes: image.size_bytes,
        created: 0,
        digest: image.digest.clone().unwrap_or_default(),
    }
}

/// What people should know of an image that came.
async fn tell_of(image: &Image, line: &Line) {
    let text = match image.devices_skipped {
        0 => return,
        1 => "1 device node of the image was left out".to_owned(),
        count => format!("{count} device nodes of the image were left out"),
    };
    // Who is gone does not want to know; the answer that follows finds out.
    let _ = line.send(Kind::Stderr(text.into())).await;
}

async fn answer(line: &Line, images: v1::Images) -> Outcome {
    line.send(Kind::Images(images)).await.map_or(Outcome::Gone, |()| Outcome::Served)
}

fn watch() -> (Progress, mpsc::Receiver<Step>) {
    let (sender, steps) = mpsc::channel(PROGRESS_MAX);
    let progress = Progress::new(move |step: &Step| {
        // Never blocks the download; a slow reader sees fewer steps.
        let _ = sender.try_send(step.clone());
    });
    (progress, steps)
}

/// Does the work while telling of its progress; gives it up when nobody listens any more.
async fn narrate<T>(
    work: impl Future<Output = T>,
    mut steps: mpsc::Receiver<Step>,
    outgoing: &Outgoing,
) -> Result<T, Gone> {
    tokio::pin!(work);
    let done = loop {
        tokio::select! {
            biased;
            done = &mut work => break done,
            Some(step) = steps.recv() => outgoing.send(frame(step)).await?,
            () = outgoing.closed() => return Err(Gone),
        }
    };
    while let Ok(step) = steps.try_recv() {
        outgoing.send(frame(step)).await?;
    }
    Ok(done)
}

fn frame(step: Step) -> Kind {
    let phase = match step.phase {
        Phase::Waiting => "waiting",
        Phase::Fetching => "fetching",
        Phase::Flushing => "flushing",
        Phase::Writing => "writing",
        Phase::Packing => "packing",
        Phase::Pushing => "pushing",
        Phase::Done => "done",
        Phase::Present => "present",
    };
    Kind::Progress(v1::PullProgress {
        layer: step.layer,
        done: step.done,
        total: step.total,
        phase: phase.to_owned(),
    })
}

/// The stdin frames of a stream, read as one archive.
struct ArchiveReader {
    frames: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
}

impl AsyncRead for ArchiveReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match self.frames.poll_recv(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Some(Ok(bytes))) => self.current = bytes,
            }
        }
        let count = buffer.remaining().min(self.current.len());
        buffer.put_slice(&self.current.split_to(count));
        Poll::Ready(Ok(()))
    }
}

/// Does work that reads the stream's input as an archive.
async fn with_archive<T, F: Future<Output = Result<T, Error>>>(
    line: &mut Line,
    steps: mpsc::Receiver<Step>,
    work: impl FnOnce(Archive) -> F,
) -> Result<Result<T, Error>, Gone> {
    let (sender, frames) = mpsc::channel(ARCHIVE_MAX);
    let work = work(Box::new(ArchiveReader { frames, current: Bytes::new() }));
    let outgoing = line.outgoing.clone();
    let feed = async move {
        loop {
            let piece = match line.receive().await {
                Heard::Frame(frame) => match *frame {
                    Kind::Stdin(bytes) => Ok(bytes),
                    Kind::StdinClosed(_) => break,
                    _ => continue,
                },
                // Without its end the archive is not whole: the store must not take it for that.
                Heard::End | Heard::Gone => Err(io::ErrorKind::UnexpectedEof.into()),
            };
            let ended = piece.is_err();
            if sender.send(piece).await.is_err() || ended {
                break;
            }
        }
        drop(sender);
        // The archive is in; what remains is the work, for as long as somebody waits for it.
        line.gone().await;
    };
    tokio::select! {
        done = narrate(work, steps, &outgoing) => done,
        () = feed => Err(Gone),
    }
}

pub(super) async fn load(tools: &Arc<Tools>, line: &mut Line) -> Outcome {
    let (progress, steps) = watch();
    let work = |archive| tools.images.load(archive, None, progress);
    match with_archive(line, steps, work).await {
        Ok(Ok(loaded)) => {
            tools.image_came.notify_one();
            for one in &loaded {
                tell_of(&one.image, line).await;
            }
            let rows = loaded.iter().flat_map(|one| {
                let names: Vec<String> = match one.names.as_slice() {
                    [] => vec![String::new()],
                    names => names.iter().map(ToString::to_string).collect(),
                };
                names.into_iter().map(|name| row(&name, &one.image))
            });
            let images = v1::Images { images: rows.collect(), removed: vec![], freed_bytes: 0 };
            answer(line, images).await
        }
        Ok(Err(error)) => Outcome::Failed(error.into()),
        Err(Gone) => Outcome::Gone,
    }
}

pub(super) async fn import(
    tools: &Arc<Tools>,
    request: v1::ImageImport,
    line: &mut Line,
) -> Outcome {
    let name: Reference = match request.reference.parse() {
        Ok(name) => name,
        Err(error) => return Outcome::Failed(Error::from(error).into()),
    };
    let options = ImportOptions {
        entrypoint: request.entrypoint,
        cmd: request.cmd,
        env: request.env,
        workdir: request.workdir,
        user: request.user,
        stop_signal: request.stop_signal,
        exposed_ports: request.exposed,
        created: Some(Time(tools.clock.now_ms()).to_string()),
        ..ImportOptions::default()
    };
    let (progress, steps) = watch();
    let work = |archive| tools.images.import(archive, &name, options, progress);
    match with_archive(line, steps, work).await {
        Ok(Ok(image)) => {
            tools.image_came.notify_one();
            tell_of(&image, line).await;
            let images = v1::Images {
                images: vec![row(&name.to_string(), &image)],
                removed: vec![],
                freed_bytes: 0,
            };
            answer(line, images).await
        }
        Ok(Err(error)) => Outcome::Failed(error.into()),
        Err(Gone) => Outcome::Gone,
    }
}

pub(super) async fn list(tools: &Arc<Tools>, line: &mut Line) -> Outcome {
    let rows = tools.images.list().into_iter().flat_map(|image| {
        let names: Vec<String> = match image.names.as_slice() {
            [] => vec![String::new()],
            names => names.iter().map(ToString::to_string).collect(),
        };
        let created = image.created_at.as_deref().and_then(parse_time).unwrap_or(0);
        names.into_iter().map(move |name| v1::ImageRow {
            name,
            id: image.id.clone(),
            size_bytes: image.size_bytes,
            created,
            digest: image.digest.clone().unwrap_or_default(),
        })
    });
    let images = v1::Images { images: rows.collect(), removed: vec![], freed_bytes: 0 };
    answer(line, images).await
}

/// RFC 3339 in UTC, as builders write it (`2024-05-01T10:00:00.123456789Z`), in ms since the epoch.
fn parse_time(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(str::parse::<u64>);
    let (year, month, day) = (date.next()?.ok()?, date.next()?.ok()?, date.next()?.ok()?);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut clock = clock.split(':').map(str::parse::<u64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let sane = (1970..10_000).contains(&year) && (1..=12).contains(&month) && day <= 31;
    if !sane || hour > 24 || minute > 60 || second > 60 {
        return None;
    }
    // A civil date to days: Howard Hinnant, "chrono-compatible low-level date algorithms".
    let year = if month <= 2 { year - 1 } else { year };
    let of_era = year % 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day.checked_sub(1)?;
    let days = (year / 400) * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year;
    let days = days.checked_sub(719_468)?;
    let millis: u64 = format!("{fraction:0<3}").get(..3)?.parse().ok()?;
    Some((((days * 24 + hour) * 60 + minute) * 60 + second) * 1000 + millis)
}

pub(super) async fn remove(
    tools: &Arc<Tools>,
    request: v1::ImageRemove,
    line: &mut Line,
) -> Outcome {
    // What containers run on cannot go at all: their files would.
    let Some(in_use) = room::in_use(tools, request.force).await else {
        return Outcome::Failed(Failure::new(Code::Failed, "the agent is stopping"));
    };
    if let Some(v1::ImagePrune { all, unused_for_ms, dry_run }) = request.prune {
        let which = Prune { all, unused_for: Duration::from_millis(unused_for_ms), dry_run };
        return match tools.images.prune(which, &in_use).await {
            Ok(Removed { untagged, deleted, freed_bytes }) => {
                let removed = [untagged, deleted].concat();
                answer(line, v1::Images { images: vec![], removed, freed_bytes }).await
            }
            Err(error) => Outcome::Failed(error.into()),
        };
    }
    let mut freed_bytes = 0;
    let mut removed = Vec::new();
    for text in &request.references {
        match tools.images.remove(text, &in_use).await {
            Ok(Removed { untagged, deleted, freed_bytes: freed }) => {
                removed.extend(untagged);
                removed.extend(deleted);
                freed_bytes += freed;
            }
            Err(error) => return Outcome::Failed(error.into()),
        }
    }
    answer(line, v1::Images { images: vec![], removed, freed_bytes }).await
}

const DENIED: &str = "check user and password; many registries want an access token as password";

pub(super) async fn login(tools: &Arc<Tools>, request: v1::RegistryLogin) -> Outcome {
    let done = match request.logout {
        true => tools.images.logout(&request.registry).await,
        false => tools.images.login(&request.registry, &request.user, &request.password).await,
    };
    let Err(error) = done else { return Outcome::Served };
    // What helps with a pull is the very command that was just tried.
    let denied = matches!(error, Error::Unauthorized { .. });
    let failure = Failure::from(error);
    Outcome::Failed(if denied { failure.hint(DENIED) } else { failure })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_builders() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2024-02-29T12:34:56.789123456Z", Some(1_709_210_096_789)),
            ("2024-02-29T12:34:56.7Z", Some(1_709_210_096_700)),
            ("0001-01-01T00:00:00Z", None),
            ("2024-13-01T00:00:00Z", None),
            ("yesterday", None),
        ] {
            assert_eq!(parse_time(text), ms, "{text}");
        }
    }
}
