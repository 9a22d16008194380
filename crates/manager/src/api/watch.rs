//! Events as they happen, from a revision on.
//!
//! The reader keeps its place: a slow one is read to later, one that fell out
//! of the store's ring is told to start anew. Never a silent gap.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use warren_proto::v1;

use crate::core::Core;
use crate::refusal::Refusal;

/// Events on their way to one reader; the rest waits in the store's ring.
const QUEUE_MAX: usize = 64;

/// Events after `after`; 0 is from now on.
pub(super) fn open(core: &Arc<Core>, after: u64) -> ReceiverStream<Result<v1::Event, Status>> {
    let (out, events) = mpsc::channel(QUEUE_MAX);
    let after = if after == 0 { core.store.view().revision() } else { after };
    core.tasks.spawn("watch", follow(Arc::clone(core), after, out));
    ReceiverStream::new(events)
}

async fn follow(core: Arc<Core>, mut after: u64, out: mpsc::Sender<Result<v1::Event, Status>>) {
    let mut moved = core.store.watch();
    loop {
        moved.mark_unchanged();
        let Ok(events) = core.store.events_after(after) else {
            let gap = Refusal::stale(format!("resync: events after revision {after} are gone"))
                .hint("list again and watch from the revision of the answer");
            // The reader may be gone, which is as good an end.
            let _ = out.send(Err(gap.into())).await;
            return;
        };
        for event in &events {
            after = after.max(event.revision);
            if out.send(Ok(v1::Event::from(event))).await.is_err() {
                return;
            }
        }
        tokio::select! {
            changed = moved.changed() => if changed.is_err() { return },
            () = out.closed() => return,
        }
    }
}
