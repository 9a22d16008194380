//! The text of a snapshot: messages, put together to chunks, packed.
//!
//! The first text holds the position in the log and the head of the state, the
//! others objects, kind by kind, each after its length. Memory is bounded by a
//! chunk, whatever the size of the state. What becomes of the chunks, sealed in
//! a file, sent to another manager or written to a backup, is the caller's.

use std::cell::RefCell;
use std::io;

use prost::Message;
use warren_proto::v1;
use warren_state::{Object, State};

use super::SnapshotError;
use crate::codec::{self, CodecError, WirePosition};

/// Text of a chunk: large enough to compress well, small enough to hold a few of.
const CHUNK_TEXT: usize = 256 << 10;
/// A chunk's text and one object of 512 KiB on top, with room.
const CHUNK_TEXT_MAX: usize = 2 << 20;
/// Of a packed chunk: packing what cannot be packed adds less than that.
pub(crate) const PACKED_MAX: usize = CHUNK_TEXT_MAX + (CHUNK_TEXT_MAX >> 7);
/// Level 1: a snapshot must not take a core for long; higher levels save a tenth.
const LEVEL: i32 = 1;

/// Takes packed chunks.
pub(crate) trait ChunkSink {
    fn chunk(&mut self, packed: &[u8], last: bool) -> io::Result<()>;
}

/// Gives packed chunks back, the last one marked; nothing after it.
pub(crate) trait ChunkSource {
    /// For messages.
    fn name(&self) -> &str;

    fn chunks_read(&self) -> u64;

    fn chunk(&mut self) -> Result<Option<(Vec<u8>, bool)>, SnapshotError>;

    fn damaged(&self) -> SnapshotError {
        SnapshotError::Damaged { name: self.name().to_owned(), chunk: self.chunks_read() }
    }
}

/// Writes a whole state; the sink has its last chunk then.
pub(crate) fn write<S: ChunkSink>(
    sink: &mut S,
    state: &State,
    position: &WirePosition,
) -> io::Result<()> {
    let mut packer = Packer::new(sink)?;
    let objects = state.object_count() as u64;
    packer.message(position)?;
    packer.message(&codec::head(&state.head(), objects, state.checksum()))?;
    packer.flush(false)?;
    for object in state.export() {
        packer.message(&codec::object(&object))?;
    }
    packer.flush(true)
}

/// Reads a whole state and checks it against the checksum in it.
pub(crate) fn read<S: ChunkSource>(source: &mut S) -> Result<(State, WirePosition), SnapshotError> {
    let name = source.name().to_owned();
    let mut unpacker = Unpacker::new(source)?;
    let position: WirePosition = unpacker.expect_message()?;
    let head: v1::SnapshotHead = unpacker.expect_message()?;
    let expected = head.checksum;
    let codec_error = |source| SnapshotError::Codec { name: name.clone(), source };
    let head = codec::head_from(head).map_err(codec_error)?;
    // An iterator cannot fail, so it ends early and leaves its error here.
    let failed = RefCell::new(None);
    let objects = std::iter::from_fn(|| match unpacker.object() {
        Ok(object) => object,
        Err(error) => {
            *failed.borrow_mut() = Some(error);
            None
        }
    });
    let imported = State::import(head, objects);
    if let Some(error) = failed.into_inner() {
        return Err(error);
    }
    let state = imported.map_err(|source| SnapshotError::Import { name: name.clone(), source })?;
    let found = state.checksum();
    if found != expected {
        return Err(SnapshotError::Checksum { name, expected, found });
    }
    Ok((state, position))
}

struct Packer<'a, S> {
    sink: &'a mut S,
    compressor: zstd::bulk::Compressor<'static>,
    text: Vec<u8>,
    packed: Vec<u8>,
}

impl<'a, S: ChunkSink> Packer<'a, S> {
    fn new(sink: &'a mut S) -> io::Result<Self> {
        let compressor = zstd::bulk::Compressor::new(LEVEL)?;
        Ok(Self { sink, compressor, text: Vec::with_capacity(CHUNK_TEXT), packed: Vec::new() })
    }

    fn message(&mut self, message: &impl Message) -> io::Result<()> {
        let len = message.encoded_len();
        if self.text.len() + len > CHUNK_TEXT && !self.text.is_empty() {
            self.flush(false)?;
        }
        message.encode_length_delimited(&mut self.text).map_err(io::Error::other)
    }

    fn flush(&mut self, last: bool) -> io::Result<()> {
        self.packed.clear();
        self.packed.reserve(zstd::zstd_safe::compress_bound(self.text.len()));
        let len = self.compressor.compress_to_buffer(&self.text, &mut self.packed)?;
        self.text.clear();
        self.sink.chunk(&self.packed[..len], last)
    }
}

struct Unpacker<'a, S> {
    source: &'a mut S,
    decompressor: zstd::bulk::Decompressor<'static>,
    text: Vec<u8>,
    at: usize,
}

impl<'a, S: ChunkSource> Unpacker<'a, S> {
    fn new(source: &'a mut S) -> Result<Self, SnapshotError> {
        let decompressor = zstd::bulk::Decompressor::new().map_err(|error| {
            SnapshotError::Disk { action: "unpack", name: source.name().to_owned(), source: error }
        })?;
        Ok(Self { source, decompressor, text: Vec::new(), at: 0 })
    }

    /// Takes the next chunk's text; false at the end.
    fn fill(&mut self) -> Result<bool, SnapshotError> {
        self.text.clear();
        self.at = 0;
        let Some((packed, _)) = self.source.chunk()? else { return Ok(false) };
        self.text.reserve(CHUNK_TEXT_MAX);
        let unpacked = self.decompressor.decompress_to_buffer(&packed, &mut self.text);
        if unpacked.is_err() {
            return Err(self.source.damaged());
        }
        Ok(true)
    }

    /// The next message; `None` at the end.
    fn message<M: Message + Default>(&mut self) -> Result<Option<M>, SnapshotError> {
        while self.at == self.text.len() {
            if !self.fill()? {
                return Ok(None);
            }
        }
        let mut rest = &self.text[self.at..];
        let before = rest.len();
        let message = M::decode_length_delimited(&mut rest).map_err(|source| {
            let source = CodecError::Bytes { what: "snapshot", source };
            SnapshotError::Codec { name: self.source.name().to_owned(), source }
        })?;
        self.at += before - rest.len();
        Ok(Some(message))
    }

    fn expect_message<M: Message + Default>(&mut self) -> Result<M, SnapshotError> {
        let message = self.message()?;
        message.ok_or_else(|| SnapshotError::Shape { name: self.source.name().to_owned() })
    }

    fn object(&mut self) -> Result<Option<Object>, SnapshotError> {
        let Some(wire) = self.message::<v1::SnapshotObject>()? else { return Ok(None) };
        let object = codec::object_from(wire);
        let name = || self.source.name().to_owned();
        object.map(Some).map_err(|source| SnapshotError::Codec { name: name(), source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_chunks_have_a_bound() {
        assert!(zstd::zstd_safe::compress_bound(CHUNK_TEXT_MAX) <= PACKED_MAX);
    }
}
