//! Reading the counters of groups.

use std::io;
use std::path::Path;

use super::{is_gone, read};
use crate::{Pressure, Traffic};

/// v1 says "no limit" with the largest number of pages.
const UNLIMITED_V1: u64 = 1 << 62;

/// The number in a file; none when there is no such file, or it says `max`.
pub(super) fn number(file: &Path) -> io::Result<Option<u64>> {
    match read(file) {
        Ok(text) => Ok(text.trim().parse().ok()),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn limit(file: &Path) -> io::Result<Option<u64>> {
    Ok(number(file)?.filter(|limit| *limit < UNLIMITED_V1))
}

/// A file of lines `name number`; empty when it is missing.
pub(super) struct Lines(String);

impl Lines {
    pub(super) fn of(file: &Path) -> io::Result<Self> {
        match read(file) {
            Ok(text) => Ok(Self(text)),
            Err(error) if is_gone(&error) => Ok(Self(String::new())),
            Err(error) => Err(error),
        }
    }

    pub(super) fn get(&self, name: &str) -> u64 {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(known, _)| *known == name);
        found.and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
    }
}

/// `blkio.throttle.io_service_bytes`: `8:0 Read 4096`, summed over disks.
pub(super) fn disks_v1(text: &str) -> Traffic {
    let mut traffic = Traffic::default();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (Some(kind), Some(bytes)) = (words.next(), words.next()) else { continue };
        let bytes = bytes.parse().unwrap_or(0);
        match kind {
            "Read" => traffic.taken += bytes,
            "Write" => traffic.given += bytes,
            _ => {}
        }
    }
    traffic
}

/// `io.stat`: `8:0 rbytes=4096 wbytes=0 …`, summed over disks.
pub(super) fn disks_v2(text: &str) -> Traffic {
    let mut traffic = Traffic::default();
    for word in text.split_ascii_whitespace() {
        match word.split_once('=') {
            Some(("rbytes", bytes)) => traffic.taken += bytes.parse().unwrap_or(0),
            Some(("wbytes", bytes)) => traffic.given += bytes.parse().unwrap_or(0),
            _ => {}
        }
    }
    traffic
}

/// Pressure of a v2 group; none when the kernel does not measure it.
pub(super) fn pressure(folder: &Path) -> Option<Pressure> {
    let of = |name: &str| read(&folder.join(name)).ok().and_then(|text| some_avg10(&text));
    Some(Pressure {
        cpu: of("cpu.pressure")?,
        memory: of("memory.pressure")?,
        io: of("io.pressure")?,
    })
}

/// `some avg10=1.25 avg60=…` in hundredths.
fn some_avg10(text: &str) -> Option<u32> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let value = line.split(' ').find_map(|word| word.strip_prefix("avg10="))?;
    let (whole, part) = value.split_once('.').unwrap_or((value, "0"));
    let part: u32 = part.get(..2).unwrap_or("0").parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines() {
        let text = "some avg10=12.34 avg60=0.00 avg300=0.00 total=77\nfull avg10=1.00 x\n";
        assert_eq!(some_avg10(text), Some(1234));
        assert_eq!(some_avg10("some avg10=0.05 avg60=0"), Some(5));
        for wrong in ["", "full avg10=1.00", "some avg10=x", "some avg60=1.00"] {
            assert_eq!(some_avg10(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn disks() {
        let v1 = "8:0 Read 4096\n8:0 Write 10\n8:0 Sync 99\n8:16 Read 4\nTotal 4110\n";
        assert_eq!(disks_v1(v1), Traffic { taken: 4100, given: 10 });
        let v2 = "8:0 rbytes=4096 wbytes=10 rios=1\n8:16 rbytes=4 wbytes=x\n";
        assert_eq!(disks_v2(v2), Traffic { taken: 4100, given: 10 });
        assert_eq!((disks_v1(""), disks_v2("")), (Traffic::default(), Traffic::default()));
    }

    #[test]
    fn lines() {
        let lines = Lines("usage_usec 12\nnr_periods 3\ntotal_inactive_file 7\n".to_owned());
        assert_eq!((lines.get("usage_usec"), lines.get("nr_periods")), (12, 3));
        assert_eq!((lines.get("inactive_file"), lines.get("nr")), (0, 0));
    }

    #[test]
    fn limits() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("limit");
        for (text, expected) in
            [("9223372036854771712\n", None), ("max\n", None), ("1048576\n", Some(1_048_576))]
        {
            std::fs::write(&file, text).unwrap();
            assert_eq!(limit(&file).unwrap(), expected, "{text}");
        }
        assert_eq!(limit(&folder.path().join("none")).unwrap(), None);
    }
}
