//! Bytes from the event loop to a thread that reads them.
//!
//! Bounded: a slow reader stops the network. If the sender goes away without
//! [`Sender::end`], reads fail with [`Aborted`], so that a thread never takes half a
//! stream for a whole one.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use tokio::sync::mpsc;

use crate::unpack::Aborted;

/// Pieces on their way. The HTTP client's are up to 400 KiB: 2 MiB a layer at most.
const PIECES_MAX: usize = 4;

enum Piece {
    Data(Bytes),
    End,
}

pub(super) struct Sender(mpsc::Sender<Piece>);

pub(super) struct Source {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// The reader went away: its own result says why.
pub(super) struct ReaderGone;

pub(super) fn channel() -> (Sender, Source) {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    (Sender(sender), Source { pieces, current: Bytes::new(), ended: false })
}

impl Sender {
    pub(super) async fn send(&self, bytes: Bytes) -> Result<(), ReaderGone> {
        self.0.send(Piece::Data(bytes)).await.map_err(|_| ReaderGone)
    }

    /// The stream is complete.
    pub(super) async fn end(self) {
        // A reader that is gone needs no end.
        let _ = self.0.send(Piece::End).await;
    }
}

/// Blocking: for threads outside of the event loop.
impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                None => return Err(Aborted::error()),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut source: Source) -> std::thread::JoinHandle<io::Result<String>> {
        std::thread::spawn(move || {
            let mut text = String::new();
            source.read_to_string(&mut text).map(|_| text)
        })
    }

    #[tokio::test]
    async fn only_an_ended_stream_is_whole() {
        let (sender, source) = channel();
        let reader = read(source);
        for _ in 0..100 {
            sender.send(Bytes::from_static(b"piece")).await.ok().unwrap();
        }
        sender.end().await;
        assert_eq!(reader.join().unwrap().unwrap(), "piece".repeat(100));

        let (sender, source) = channel();
        let reader = read(source);
        sender.send(Bytes::from_static(b"half")).await.ok().unwrap();
        drop(sender);
        assert!(reader.join().unwrap().is_err());

        let (sender, source) = channel();
        drop(source);
        assert!(sender.send(Bytes::new()).await.is_err());
    }
}
