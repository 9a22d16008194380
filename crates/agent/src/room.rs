//! Room for images: when one has come, or a pull found the disk full, those that nothing uses go
//! if there is too little left.
//!
//! Nobody looks in between: what else fills the disk is noticed with the next image.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::oneshot;
use warren_image::{Error, Reference, Removed};

use crate::worker::{Message, Pins, Tools};

/// Ids of images that must not go: of containers that run, and, unless `running_alone`, of tasks
/// that are to run. Nothing: the agent is stopping.
pub(crate) async fn in_use(tools: &Tools, running_alone: bool) -> Option<BTreeSet<String>> {
    let (reply, pins) = oneshot::channel();
    tools.tell(Message::Images(reply)).await;
    let Pins { running, beside, wanted } = pins.await.ok()?;
    let mut in_use = running;
    let named = if running_alone { beside } else { wanted };
    in_use.extend(named.iter().filter_map(|name| match name.parse::<Reference>() {
        Ok(name) => tools.images.get(&name).map(|image| image.id),
        // Ids of images are no names, but may be meant.
        Err(_) => tools.images.find(name).ok().map(|image| image.id),
    }));
    Some(in_use)
}

/// Looks whether the disk is too full, at first and whenever an image has come.
pub(crate) async fn run(tools: Arc<Tools>) {
    loop {
        make(&tools, false).await;
        tokio::select! {
            () = tools.image_came.notified() => {}
            () = tools.stopping.cancelled() => return,
        }
    }
}

/// Makes room for a pull that found none; says whether there is some now.
pub(crate) async fn make_now(tools: &Tools) -> bool {
    make(tools, true).await
}

async fn make(tools: &Tools, now: bool) -> bool {
    let Some(in_use) = in_use(tools, false).await else { return false };
    match tools.images.make_room(&in_use, now).await {
        Ok(Removed { deleted, freed_bytes, .. }) if !deleted.is_empty() => {
            let images = deleted.len();
            tracing::info!(
                images,
                freed_bytes,
                "removed images that nothing uses: the disk is full"
            );
            true
        }
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "make room for images");
            false
        }
    }
}

/// Whether more room may help.
pub(crate) fn is_full(error: &Error) -> bool {
    matches!(error, Error::DiskFull { .. })
}
