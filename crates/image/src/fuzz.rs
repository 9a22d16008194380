//! Hostile bytes to what reads images: archives of layers, manifests, configurations.
//!
//! For a second with every test run; `FUZZ_SECONDS` and `FUZZ_SEED` for longer: `make fuzz`.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::manifest::{self, Config};
use crate::testing::{Sample, Tar, gzip, mode};
use crate::unpack::{Limits, unpack};

const LEN_MAX: usize = 60_000;
const BLOCK: usize = 512;

fn tars() -> Vec<Vec<u8>> {
    let plain = Tar::default()
        .dir("etc/", 0o755)
        .file("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        .link("etc/out", "../../../secret")
        .link("etc/abs", "/")
        .hard("etc/same", "etc/passwd")
        .file("etc/out/x", "through a link")
        .file("../up", "above")
        .file("/abs", "absolute");
    let marks = Tar::default()
        .dir("a", 0o700)
        .file("a/.wh.b", "")
        .file("a/.wh..wh..opq", "")
        .pax(&[("path", b"../../pax"), ("size", b"99999999999"), ("SCHILY.xattr.trusted.x", b"y")])
        .file("p", "x")
        .long(b'L', "../../long/name")
        .file("l", "x")
        .entry(b'3', "dev", "", mode(0o666), b"");
    [plain, marks].map(Tar::end).into()
}

/// Headers say the sum they have: most changes would end at that check.
fn with_sums(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum = block.iter().map(|byte| u32::from(*byte)).sum::<u32>();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

/// No devices, and nobody else's names.
fn check(folder: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let (path, about) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
        let kind = about.file_type();
        let is_whiteout = kind.is_char_device() && about.rdev() == 0;
        assert!(is_whiteout || !(kind.is_block_device() || kind.is_char_device()), "{path:?}");
        count += 1 + if kind.is_dir() { check(&path) } else { 0 };
    }
    count
}

/// Whether it is a layer; nothing outside of its folder is touched in any case.
fn try_layer(place: &Path, bytes: &[u8]) -> bool {
    let (outer, layer) = (place.join("outer"), place.join("outer/layer"));
    let _ = fs::remove_dir_all(&layer);
    fs::create_dir_all(&layer).unwrap();
    let limits = Limits { bytes_max: 1 << 20, entries_max: 1000, ..Limits::default() };
    let unpacked = unpack(bytes, &layer, None, None, &limits);
    check(&layer);
    let secret = outer.join("secret");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
    assert_eq!(fs::metadata(secret).unwrap().nlink(), 1);
    assert_eq!(fs::read_dir(outer).unwrap().count(), 2);
    assert_eq!(fs::read_dir(place).unwrap().count(), 1);
    unpacked.is_ok()
}

#[test]
fn hostile_bytes() {
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("outer")).unwrap();
    fs::write(place.path().join("outer/secret"), "secret").unwrap();
    let mut random = Random(from_environment("FUZZ_SEED", 0x5eed) | 1);
    let end = Instant::now() + Duration::from_secs(from_environment("FUZZ_SECONDS", 1));
    let tars = tars();
    let packed = tars.iter().map(|tar| gzip(tar)).collect::<Vec<_>>();
    let sample = Sample::new(&tars, gzip);
    let index = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json",
        "manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","size":7,
        "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "platform":{"architecture":"amd64","os":"linux"}}]}"#;
    let health = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},
        "config":{"Healthcheck":{"Test":["CMD","x"],"Interval":1000000000},"Volumes":{"/v":{}}}}"#;
    let documents = vec![sample.manifest, sample.config, index.to_vec(), health.to_vec()];
    let (mut rounds, mut layers, mut read) = (0_u64, 0_u64, 0_u64);
    while Instant::now() < end {
        for _ in 0..20 {
            rounds += 1;
            let bytes = with_sums(random.mutate(&tars));
            let bytes = if random.below(4) == 0 { gzip(&bytes) } else { bytes };
            layers += u64::from(try_layer(place.path(), &bytes));
            try_layer(place.path(), &random.mutate(&packed));
            for _ in 0..20 {
                let bytes = random.mutate(&documents);
                read += u64::from(manifest::parse(&bytes).is_ok());
                if let Ok(config) = Config::parse(&bytes) {
                    read += 1;
                    // What was understood once is understood as it is stored.
                    Config::parse(&config.to_json()).unwrap();
                }
            }
        }
    }
    println!("{rounds} rounds, {layers} layers, {read} documents");
    assert!(rounds > 10 && read > 0);
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    /// Flips, cuts, removes, repeats, grows and joins.
    fn mutate(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = corpus[self.below(corpus.len())].clone();
        for _ in 0..self.below(6) {
            let at = self.below(bytes.len());
            let other = &corpus[self.below(corpus.len())];
            match self.below(8) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_slice(other),
                2 => bytes.extend(std::iter::repeat_n(0, self.below(80))),
                3 if !bytes.is_empty() => drop(bytes.remove(at)),
                4 => {
                    let from = self.below(other.len());
                    let piece = &other[from..other.len().min(from + 64)];
                    bytes.splice(at..at, piece.iter().copied());
                }
                _ => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte =
                            [*byte ^ (1 << self.below(8)), 0, 0xff, self.next().to_le_bytes()[0]]
                                [self.below(4)];
                    }
                }
            }
        }
        bytes.truncate(LEN_MAX);
        bytes
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
