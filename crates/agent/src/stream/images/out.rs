//! Images on their way out of this node: into an archive, to a registry; and what is wrong
//! with those that are here.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use warren_image::{Checked, Error, Fault, Reference};
use warren_proto::v1;
use warren_proto::v1::frame::Kind;

use super::super::{Code, Failure, Line, Outcome};
use super::{Gone, answer, frame, narrate, watch};
use crate::room;
use crate::worker::Tools;

/// Pieces of an archive on their way: each is 64 KiB.
const PIECES_MAX: usize = 8;

pub(in super::super) async fn save(
    tools: &Arc<Tools>,
    request: v1::ImageSave,
    line: &mut Line,
) -> Outcome {
    let (progress, mut steps) = watch();
    let (sender, mut pieces) = mpsc::channel::<Bytes>(PIECES_MAX);
    let work = tools.images.save(&request.images, sender, progress);
    tokio::pin!(work);
    let outgoing = line.outgoing.clone();
    let done = loop {
        let kind = tokio::select! {
            biased;
            Some(piece) = pieces.recv() => Kind::Stdout(piece),
            Some(step) = steps.recv() => frame(step),
            done = &mut work => break done,
            // The store stops when nobody takes its pieces.
            () = line.gone() => return Outcome::Gone,
        };
        if outgoing.send(kind).await.is_err() {
            return Outcome::Gone;
        }
    };
    while let Some(piece) = pieces.recv().await {
        if outgoing.send(Kind::Stdout(piece)).await.is_err() {
            return Outcome::Gone;
        }
    }
    match done {
        // Says that it was all: an archive that breaks off is no archive.
        Ok(()) => answer(line, v1::Images::default()).await,
        Err(error) => Outcome::Failed(error.into()),
    }
}

pub(in super::super) async fn push(
    tools: &Arc<Tools>,
    request: v1::ImagePush,
    line: &mut Line,
) -> Outcome {
    let to = match request.reference.as_str() {
        "" => None,
        text => match text.parse::<Reference>() {
            Ok(to) => Some(to),
            Err(error) => return Outcome::Failed(Error::from(error).into()),
        },
    };
    let (progress, steps) = watch();
    let work = tools.images.push(&request.image, to.as_ref(), progress);
    let outgoing = line.outgoing.clone();
    let done = tokio::select! {
        done = narrate(work, steps, &outgoing) => done,
        () = line.gone() => Err(Gone),
    };
    match done {
        Ok(Ok(pushed)) => {
            let row = v1::ImageRow {
                name: pushed.reference.to_string(),
                id: pushed.id,
                size_bytes: pushed.size_bytes,
                created: 0,
                digest: pushed.digest,
            };
            let images = v1::Images { images: vec![row], removed: vec![], freed_bytes: 0 };
            answer(line, images).await
        }
        Ok(Err(error)) => Outcome::Failed(error.into()),
        Err(Gone) => Outcome::Gone,
    }
}

pub(in super::super) async fn fsck(tools: &Arc<Tools>, repair: bool, line: &mut Line) -> Outcome {
    let Some(in_use) = room::in_use(tools, false).await else {
        return Outcome::Failed(Failure::new(Code::Failed, "the agent is stopping"));
    };
    let checked = tokio::select! {
        checked = tools.images.fsck(repair, &in_use) => checked,
        () = line.gone() => return Outcome::Gone,
    };
    match checked {
        Ok(Checked { faults, images, layers, unverified }) => {
            let mut findings: Vec<v1::Finding> = faults.into_iter().map(finding).collect();
            findings.push(v1::Finding {
                name: "store".to_owned(),
                ok: true,
                detail: summary(images, layers, unverified),
                ..v1::Finding::default()
            });
            let answer = v1::Findings { findings, ..v1::Findings::default() };
            line.send(Kind::Findings(answer)).await.map_or(Outcome::Gone, |()| Outcome::Served)
        }
        Err(error) => Outcome::Failed(error.into()),
    }
}

/// `ok`: it was repaired.
fn finding(Fault { what, problem, repaired, hint }: Fault) -> v1::Finding {
    v1::Finding { name: what, ok: repaired, detail: problem, hint, ..v1::Finding::default() }
}

fn summary(images: usize, layers: usize, unverified: usize) -> String {
    let mut text = format!("images: {images}, layers compared: {layers}");
    if unverified > 0 {
        text.push_str(&format!(", layers without a recipe, only looked for: {unverified}"));
    }
    text
}
