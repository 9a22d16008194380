//! A backup for whoever asks, as it is written: encrypted, in chunks.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::{Response, Status};
use warren_proto::v1;
use warren_trust::backup::BackupLock;
use zeroize::Zeroizing;

use crate::api::authorize::Who;
use crate::api::nodes::WARNING_KEY;
use crate::backup;
use crate::core::Core;
use crate::quorum;
use crate::refusal::Refusal;

/// Of one message.
const CHUNK_BYTES: usize = 64 << 10;
/// On their way: who reads slowly holds up this backup alone.
const QUEUE_MAX: usize = 4;

type Chunk = Result<v1::BackupChunk, Status>;

pub(super) async fn open(
    core: &Arc<Core>,
    who: &Who,
    wire: v1::BackupRequest,
) -> Result<Response<ReceiverStream<Chunk>>, Refusal> {
    let v1::BackupRequest { recipient, passphrase } = wire;
    let passphrase = Zeroizing::new(passphrase);
    let lock = match (recipient.is_empty(), passphrase.is_empty()) {
        (false, true) => {
            let key = recipient.parse();
            let key = key.map_err(|error| Refusal::bad_input(format!("recipient: {error}")))?;
            BackupLock::Recipient(key)
        }
        (true, false) => BackupLock::Passphrase(passphrase),
        (true, true) | (false, false) => {
            return Err(Refusal::bad_input("a backup is encrypted for a key or by a passphrase")
                .hint("give one of the two"));
        }
    };
    // Everything that was acknowledged is in it, whichever manager writes it. Without a quorum it
    // is what this manager has, which is when a backup may be needed most.
    let outcome = quorum::barrier(core).await;
    let view = core.store.view();
    if view.cluster().is_none() {
        return Err(Refusal::unavailable("this manager knows nothing of the cluster yet")
            .hint("bring a majority of managers back, or take the backup of another one"));
    }
    let warning = outcome.err().map(|refusal| {
        tracing::warn!(%refusal, "backup of what this manager has");
        let (time, revision) = (view.time(), view.revision());
        format!(
            "no majority of managers answers: this is what this manager knew at {time}, revision \
             {revision}; what was decided since is not in it"
        )
    });
    tracing::info!(principal = who.principal.as_str(), "asked for a backup");
    let (out, chunks) = mpsc::channel(QUEUE_MAX);
    let task_core = Arc::clone(core);
    core.tasks.spawn("backup", async move {
        let last = out.clone();
        let work = tokio::task::spawn_blocking(move || {
            let pipe = Pipe { out, buffer: Vec::with_capacity(CHUNK_BYTES) };
            backup::write(&task_core, &lock, pipe).map(drop)
        });
        let outcome = work.await.unwrap_or(Err(backup::Error::Thread));
        if let Err(error) = outcome {
            let refusal = Refusal::failed(format!("backup: {}", error.in_words()));
            // The reader may be gone, which may be the reason.
            let _ = last.send(Err(refusal.into())).await;
        }
    });
    let mut answer = Response::new(ReceiverStream::new(chunks));
    if let Some(value) = warning.and_then(|text| MetadataValue::try_from(text).ok()) {
        answer.metadata_mut().insert(WARNING_KEY, value);
    }
    Ok(answer)
}

/// Bytes on their way into messages. Blocks while the queue is full.
struct Pipe {
    out: mpsc::Sender<Chunk>,
    buffer: Vec<u8>,
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() >= CHUNK_BYTES {
            self.flush()?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK_BYTES));
        let sent = self.out.blocking_send(Ok(v1::BackupChunk { data }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the caller went away"))
    }
}
