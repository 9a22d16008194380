//! gzip, zstd and plain streams, told apart by their first bytes.
//!
//! Media types are not trusted: archives and registries mislabel layers, and
//! Docker looks at the bytes too. Memory is bounded by named windows.

use std::io::{self, BufRead, BufReader, Cursor, Read};

/// Input buffer: one read of the source at a time.
const BUFFER_LEN: usize = 64 * 1024;
/// 32 MiB. Frames may ask for up to 2 GiB; zstd's levels up to 19 use at most
/// 8 MiB, and the largest window of the encoders in BuildKit is 32 MiB.
const ZSTD_WINDOW_LOG_MAX: u32 = 25;
const MAGIC_LEN: usize = 6;

#[derive(Debug, thiserror::Error)]
#[error("compressed with {0}, only gzip, zstd and plain tar are supported")]
pub(crate) struct Unsupported(&'static str);

/// The stream's content, decompressed if it needs to be.
pub(crate) fn decode<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut magic = Vec::with_capacity(MAGIC_LEN);
    source.by_ref().take(MAGIC_LEN as u64).read_to_end(&mut magic)?;
    let kind = sniff(&magic);
    let whole = BufReader::with_capacity(BUFFER_LEN, Cursor::new(magic).chain(source));
    decode_as(kind, whole)
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Gzip,
    Zstd,
    Other(&'static str),
}

fn sniff(magic: &[u8]) -> Kind {
    match magic {
        [0x1f, 0x8b, ..] => Kind::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Kind::Zstd,
        // A skippable frame: zstd:chunked and seekable files may start with one.
        [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Kind::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Kind::Other("xz"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Kind::Other("bzip2"),
        _ => Kind::Plain,
    }
}

fn decode_as<'a>(kind: Kind, whole: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    match kind {
        Kind::Plain => Ok(Box::new(whole)),
        Kind::Gzip => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        Kind::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Ok(Box::new(decoder))
        }
        Kind::Other(name) => Err(io::Error::other(Unsupported(name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// One byte at a time, as a slow network.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = buffer.len().min(1);
            self.0.read(&mut buffer[..count])
        }
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    fn text_of(bytes: &[u8]) -> io::Result<String> {
        let mut text = String::new();
        decode(Slow(bytes))?.read_to_string(&mut text)?;
        Ok(text)
    }

    #[test]
    fn formats_are_recognised() {
        assert_eq!(text_of(b"plain").unwrap(), "plain");
        assert_eq!(text_of(b"").unwrap(), "");
        assert_eq!(text_of(&gzip(b"zip")).unwrap(), "zip");
        assert_eq!(text_of(&[gzip(b"two "), gzip(b"members")].concat()).unwrap(), "two members");
        let frame = zstd::encode_all(&b"std"[..], 3).unwrap();
        assert_eq!(text_of(&frame).unwrap(), "std");
        assert_eq!(text_of(&[frame.clone(), frame].concat()).unwrap(), "stdstd");
        assert!(text_of(b"\xfd7zXZ\0").unwrap_err().to_string().contains("xz"));
        assert!(text_of(b"BZh91AY").unwrap_err().to_string().contains("bzip2"));
    }

    #[test]
    fn damage_is_an_error() {
        let whole = gzip(&[7; 100_000]);
        assert!(text_of(&whole[..whole.len() / 2]).is_err());
        let frame = zstd::encode_all(&[7u8; 100_000][..], 3).unwrap();
        assert!(text_of(&frame[..frame.len() / 2]).is_err());
    }

    #[test]
    fn huge_zstd_windows_are_refused() {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.set_parameter(zstd::zstd_safe::CParameter::WindowLog(27)).unwrap();
        encoder.write_all(&vec![1; 1 << 20]).unwrap();
        let frame = encoder.finish().unwrap();
        assert!(text_of(&frame).is_err());
    }
}
