//! Frames on a stream between two managers.
//!
//! ```text
//! greeting  "WRNP" | version u8 | lane u8 | 0 u16 | from u64 | to u64      (caller, once)
//! frame     len u32 | call id u64 | kind u8 | payload                     (both ways)
//! ```
//!
//! Little endian; `len` counts what follows it. A caller's kind is that of
//! [`super::Call`], or [`PING`]; an answer has the id of its call and kind
//! [`OK`] or [`ERROR`] (payload: text). Ids start at 1; an answer with id 0
//! refuses the whole connection.
//!
//! Pure: bytes in, frames out. Whatever comes in, memory is bounded by
//! [`FRAME_MAX`] and what the caller reads at once.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::Lane;

/// Of a whole frame. An append has at most about 2 MiB, a part of a snapshot as much.
pub const FRAME_MAX: usize = 4 << 20;
/// Length, id and kind.
pub const HEAD_LEN: usize = 13;
/// What `len` counts beside the payload.
const COUNTED: usize = 9;

pub const OK: u8 = 0;
pub const ERROR: u8 = 1;
/// Is answered at once, whatever else is under way.
pub const PING: u8 = 2;

const MAGIC: &[u8; 4] = b"WRNP";
const VERSION: u8 = 1;
pub const GREETING_LEN: usize = 24;

/// Why bytes are no frames.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {len} bytes, at most {FRAME_MAX} are allowed")]
    TooLong { len: usize },
    #[error("a frame of {len} bytes is too short")]
    TooShort { len: usize },
    #[error("this is not a connection of a manager")]
    Magic,
    #[error("the peer speaks version {found}, this manager version {VERSION}")]
    Version { found: u8 },
    #[error("unknown lane {found}")]
    Lane { found: u8 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub id: u64,
    pub kind: u8,
    pub payload: Bytes,
}

/// Appends a frame.
///
/// # Errors
/// [`FrameError::TooLong`]; nothing is appended then.
pub fn encode(out: &mut BytesMut, id: u64, kind: u8, payload: &[u8]) -> Result<(), FrameError> {
    let len = HEAD_LEN + payload.len();
    let counted = u32::try_from(COUNTED + payload.len()).ok().filter(|_| len <= FRAME_MAX);
    let counted = counted.ok_or(FrameError::TooLong { len })?;
    out.reserve(len);
    out.put_u32_le(counted);
    out.put_u64_le(id);
    out.put_u8(kind);
    out.put_slice(payload);
    Ok(())
}

/// Takes a whole frame from the front, if there is one.
///
/// # Errors
/// [`FrameError`]; the stream cannot be read on then.
pub fn decode(input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
    let Some(head) = input.get(..4) else { return Ok(None) };
    let counted = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
    let counted = usize::try_from(counted).unwrap_or(usize::MAX);
    if counted < COUNTED {
        return Err(FrameError::TooShort { len: counted });
    }
    if counted > FRAME_MAX - 4 {
        return Err(FrameError::TooLong { len: counted });
    }
    if input.len() < 4 + counted {
        return Ok(None);
    }
    let mut frame = input.split_to(4 + counted).freeze();
    frame.advance(4);
    let (id, kind) = (frame.get_u64_le(), frame.get_u8());
    Ok(Some(Frame { id, kind, payload: frame }))
}

/// Says who calls whom, and what for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    pub lane: Lane,
    pub from: u64,
    pub to: u64,
}

impl Greeting {
    pub fn encode(&self) -> [u8; GREETING_LEN] {
        let mut out = [0; GREETING_LEN];
        out[..4].copy_from_slice(MAGIC);
        out[4] = VERSION;
        out[5] = self.lane as u8;
        out[8..16].copy_from_slice(&self.from.to_le_bytes());
        out[16..].copy_from_slice(&self.to.to_le_bytes());
        out
    }

    /// # Errors
    /// [`FrameError`] when it is none.
    pub fn decode(bytes: &[u8; GREETING_LEN]) -> Result<Self, FrameError> {
        if &bytes[..4] != MAGIC {
            return Err(FrameError::Magic);
        }
        if bytes[4] != VERSION {
            return Err(FrameError::Version { found: bytes[4] });
        }
        let lane = Lane::from_byte(bytes[5]).ok_or(FrameError::Lane { found: bytes[5] })?;
        let mut numbers = &bytes[8..];
        let (from, to) = (numbers.get_u64_le(), numbers.get_u64_le());
        Ok(Self { lane, from, to })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_in_pieces() {
        let mut wire = BytesMut::new();
        encode(&mut wire, 7, 16, b"one").unwrap();
        encode(&mut wire, 8, OK, b"").unwrap();
        let mut input = BytesMut::new();
        let mut found = Vec::new();
        for byte in wire {
            input.put_u8(byte);
            found.extend(decode(&mut input).unwrap());
        }
        let frame = |id, kind, text: &'static str| Frame { id, kind, payload: text.into() };
        assert_eq!(found, [frame(7, 16, "one"), frame(8, OK, "")]);
        assert!(input.is_empty());
    }

    #[test]
    fn lengths_are_checked_before_anything_is_kept() {
        let check = |bytes: &[u8], expected: FrameError| {
            assert_eq!(decode(&mut BytesMut::from(bytes)), Err(expected));
        };
        check(&[8, 0, 0, 0], FrameError::TooShort { len: 8 });
        check(&[0xff, 0xff, 0xff, 0xff, 1], FrameError::TooLong { len: 0xffff_ffff });
        assert_eq!(decode(&mut BytesMut::from(&[9, 0, 0][..])), Ok(None));
        let mut out = BytesMut::new();
        let most = vec![0; FRAME_MAX - HEAD_LEN];
        encode(&mut out, 1, 1, &most).unwrap();
        assert_eq!(decode(&mut out).unwrap().unwrap().payload.len(), most.len());
        assert!(encode(&mut out, 1, 1, &vec![0; most.len() + 1]).is_err());
        assert!(out.is_empty());
    }

    #[test]
    fn greetings() {
        let greeting = Greeting { lane: Lane::Rest, from: 3, to: u64::MAX };
        let bytes = greeting.encode();
        assert_eq!(Greeting::decode(&bytes), Ok(greeting));
        let bad = |at: usize, byte: u8| {
            let mut bytes = bytes;
            bytes[at] = byte;
            Greeting::decode(&bytes).unwrap_err()
        };
        assert_eq!(bad(0, b'X'), FrameError::Magic);
        assert_eq!(bad(4, 2), FrameError::Version { found: 2 });
        assert_eq!(bad(5, 0), FrameError::Lane { found: 0 });
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_frames_an_error_or_waiting(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..20),
        ) {
            let mut input = BytesMut::new();
            for piece in pieces {
                input.extend_from_slice(&piece);
                loop {
                    match decode(&mut input) {
                        Ok(Some(frame)) => prop_assert!(frame.payload.len() < FRAME_MAX),
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
            }
        }
    }
}
