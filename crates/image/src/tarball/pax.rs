//! PAX records: `LENGTH KEY=VALUE\n`, values may hold any byte.

use super::{Error, PATH_LEN_MAX, Pieces, SPARSE_PIECES_MAX, bad};

/// Extended attributes of one member: the kernel lists at most 64 KiB of names.
const XATTRS_MAX: usize = 256;
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// What the records of one member say.
#[derive(Debug, Default)]
pub(super) struct Pax {
    path: Option<Vec<u8>>,
    sparse_name: Option<Vec<u8>>,
    pub(super) linkpath: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<(i64, u32)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse_major: Option<u64>,
    pub(super) sparse_size: Option<u64>,
    pub(super) sparse_map: Option<Pieces>,
    /// Offset whose length has not come yet (format 0.0).
    pending: Option<u64>,
}

impl Pax {
    pub(super) fn parse(mut records: &[u8]) -> Result<Self, Error> {
        let mut pax = Self::default();
        // Some writers pad with zero bytes.
        while !records.is_empty() && records[0] != 0 {
            let (key, value, rest) = split_record(records)
                .ok_or_else(|| Error::Bad("extended header is damaged".to_owned()))?;
            pax.set(key, value)?;
            records = rest;
        }
        Ok(pax)
    }

    /// The name: that of a sparse file is not the one in `path`.
    pub(super) fn take_path(&mut self) -> Option<Vec<u8>> {
        self.sparse_name.take().or_else(|| self.path.take())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        match key {
            b"path" => self.path = Some(name(value)?),
            b"linkpath" => self.linkpath = Some(name(value)?),
            b"size" => self.size = Some(number(key, value)?),
            b"uid" => self.uid = Some(number(key, value)?),
            b"gid" => self.gid = Some(number(key, value)?),
            b"mtime" => self.mtime = time(value),
            b"GNU.sparse.name" => self.sparse_name = Some(name(value)?),
            b"GNU.sparse.major" => self.sparse_major = Some(number(key, value)?),
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse_size = Some(number(key, value)?);
            }
            b"GNU.sparse.map" => self.sparse_map = Some(map(value)?),
            b"GNU.sparse.offset" => self.pending = Some(number(key, value)?),
            b"GNU.sparse.numbytes" => {
                let Some(offset) = self.pending.take() else {
                    return bad("sparse map without an offset");
                };
                let pieces = self.sparse_map.get_or_insert_default();
                if pieces.len() == SPARSE_PIECES_MAX {
                    return bad(format!("sparse file of more than {SPARSE_PIECES_MAX} pieces"));
                }
                pieces.push((offset, number(key, value)?));
            }
            _ => {
                if let Some(attribute) = key.strip_prefix(XATTR_PREFIX) {
                    if self.xattrs.len() == XATTRS_MAX {
                        return bad(format!("more than {XATTRS_MAX} extended attributes"));
                    }
                    self.xattrs.push((attribute.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Key, value and what follows.
fn split_record(records: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = records.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&records[..space]).ok()?.parse().ok()?;
    let record = records.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &records[length..]))
}

fn name(value: &[u8]) -> Result<Vec<u8>, Error> {
    if value.len() > PATH_LEN_MAX {
        return bad(format!("name of {} bytes, {PATH_LEN_MAX} are allowed", value.len()));
    }
    Ok(value.to_vec())
}

fn number(key: &[u8], value: &[u8]) -> Result<u64, Error> {
    std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(|| {
        Error::Bad(format!("{} in an extended header is no number", super::printable(key)))
    })
}

/// `1700000000.123456789`, maybe negative. An unreadable time is no reason to refuse a layer.
fn time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    let whole: i64 = seconds.parse().ok()?;
    if text.starts_with('-') && nanos > 0 {
        return Some((whole.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((whole, nanos))
}

fn map(value: &[u8]) -> Result<Pieces, Error> {
    let numbers: Result<Vec<u64>, Error> =
        value.split(|byte| *byte == b',').map(|part| number(b"GNU.sparse.map", part)).collect();
    let numbers = numbers?;
    if numbers.len() % 2 != 0 || numbers.len() / 2 > SPARSE_PIECES_MAX {
        return bad("sparse map is damaged");
    }
    Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_may_hold_line_feeds() {
        let mut records = b"13 path=a\nb\n\n".to_vec();
        let attribute = b"SCHILY.xattr.security.capability=\x01\n\x00\n";
        let length = attribute.len() + 4;
        records.extend(format!("{length} ").as_bytes());
        records.extend(attribute);
        records.push(b'\n');
        let mut pax = Pax::parse(&records).unwrap();
        assert_eq!(pax.take_path().unwrap(), b"a\nb\n");
        assert_eq!(pax.xattrs, [(b"security.capability".to_vec(), b"\x01\n\x00\n".to_vec())]);
    }

    #[test]
    fn damaged_records_are_refused() {
        for bad in
            ["x", "5 a=b", "99999999999999999999 a=b\n", "3 a\n", "0 a=b\n", "12 size=many\n"]
        {
            assert!(Pax::parse(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        assert_eq!(time(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(time(b"12"), Some((12, 0)));
        assert_eq!(time(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(time(b"-0.5"), Some((-1, 500_000_000)));
        assert_eq!(time(b"soon"), None);
    }
}
