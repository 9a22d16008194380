//! The tar of a layer from its folder alone, for layers without a recipe.
//!
//! The same folder always gives the same bytes: entries in the order of their names,
//! parents before children. Whiteouts and opaque folders become the image
//! specification's again; owners, modes, times, extended attributes that layers may
//! have, hard links and holes stay. PAX records (POSIX.1-2001) say what a header has no
//! room for; holes are GNU's format 1.0, which Go, GNU tar and libarchive read.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;

use crate::tarball::PATH_LEN_MAX;
use crate::unpack::{is_kept, is_opaque};

const BLOCK: usize = 512;
/// Of a name in a header.
const NAME_LEN: usize = 100;
/// Extended attributes of one file: as much as the kernel lists.
const XATTRS_LEN_MAX: usize = 64 * 1024;
const COPY_LEN: usize = 128 * 1024;

/// Something that no tar of a layer can hold.
#[derive(Debug, thiserror::Error)]
#[error("\"{name}\" {what}")]
pub(crate) struct Unfit {
    name: String,
    what: &'static str,
}

fn unfit<T>(path: &[u8], what: &'static str) -> io::Result<T> {
    Err(io::Error::other(Unfit { name: crate::tarball::printable(path), what }))
}

type Records = Vec<(Vec<u8>, Vec<u8>)>;

/// Writes the tar of a layer's folder. Blocking.
pub(crate) fn write(folder: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut writer = Writer { out, links: BTreeMap::new(), buffer: vec![0; COPY_LEN] };
    let about = folder.symlink_metadata()?;
    writer.dir(b"./", folder, &about)?;
    let mut todo = children(folder, b"")?;
    while let Some(path) = todo.pop() {
        if path.len() > PATH_LEN_MAX {
            return unfit(&path, "has too long a path");
        }
        let at = folder.join(std::ffi::OsStr::from_bytes(&path));
        let about = at.symlink_metadata()?;
        if about.is_dir() {
            writer.dir(&[&path[..], b"/"].concat(), &at, &about)?;
            todo.extend(children(&at, &path)?);
        } else {
            writer.other(&path, &at, &about)?;
        }
    }
    writer.out.write_all(&[0; 2 * BLOCK])
}

/// Paths in a folder, the last one first.
fn children(at: &Path, path: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut names: Vec<Vec<u8>> = fs::read_dir(at)?
        .map(|entry| Ok(entry?.file_name().into_vec()))
        .collect::<io::Result<_>>()?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    let join = |name: Vec<u8>| match path {
        b"" => name,
        path => [path, &name].join(&b'/'),
    };
    Ok(names.into_iter().map(join).collect())
}

struct Writer<'a, W> {
    out: &'a mut W,
    /// First name of each file that has several.
    links: BTreeMap<u64, Vec<u8>>,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<'_, W> {
    fn dir(&mut self, path: &[u8], at: &Path, about: &Metadata) -> io::Result<()> {
        self.entry(path, b"", b'5', about, 0, xattrs(at)?)?;
        match is_opaque(at) {
            true => self.marker(&[path, b".wh..wh..opq"].concat()),
            false => Ok(()),
        }
    }

    fn other(&mut self, path: &[u8], at: &Path, about: &Metadata) -> io::Result<()> {
        let kind = about.file_type();
        if kind.is_char_device() && about.rdev() == 0 {
            let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
                Some(slash) => path.split_at(slash + 1),
                None => (&b""[..], path),
            };
            return self.marker(&[parent, b".wh.", name].concat());
        }
        if about.nlink() > 1 {
            if let Some(first) = self.links.get(&about.ino()).cloned() {
                return self.entry(path, &first, b'1', about, 0, Records::new());
            }
            self.links.insert(about.ino(), path.to_vec());
        }
        if kind.is_symlink() {
            let target = fs::read_link(at)?;
            self.entry(path, target.as_os_str().as_bytes(), b'2', about, 0, Records::new())
        } else if kind.is_fifo() {
            self.entry(path, b"", b'6', about, 0, Records::new())
        } else if kind.is_file() {
            self.file(path, at, about)
        } else {
            unfit(path, "is neither file, folder, link nor fifo")
        }
    }

    /// Whiteouts and the like: what they are is in the name.
    fn marker(&mut self, path: &[u8]) -> io::Result<()> {
        self.header(path, b"", blank(b'0', 0), Records::new())
    }

    fn file(&mut self, path: &[u8], at: &Path, about: &Metadata) -> io::Result<()> {
        let mut file = File::open(at)?;
        let size = about.len();
        let mut records = xattrs(at)?;
        let pieces = match about.blocks().saturating_mul(BLOCK as u64) < size {
            true => pieces(&file, size)?,
            false => None,
        };
        let Some(pieces) = pieces else {
            self.entry(path, b"", b'0', about, size, records)?;
            self.copy(&mut file, size)?;
            return self.pad(size);
        };
        let mut map = format!("{}\n", pieces.len());
        for (offset, length) in &pieces {
            map.push_str(&format!("{offset}\n{length}\n"));
        }
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let stored = map.len() as u64 + pieces.iter().map(|(_, length)| length).sum::<u64>();
        let mut put = |key: &str, value: Vec<u8>| records.push((key.as_bytes().to_vec(), value));
        put("GNU.sparse.major", b"1".to_vec());
        put("GNU.sparse.minor", b"0".to_vec());
        put("GNU.sparse.name", path.to_vec());
        put("GNU.sparse.realsize", size.to_string().into_bytes());
        self.entry(path, b"", b'0', about, stored, records)?;
        self.out.write_all(&map)?;
        for (offset, length) in pieces {
            file.seek(SeekFrom::Start(offset))?;
            self.copy(&mut file, length)?;
        }
        self.pad(stored)
    }

    fn copy(&mut self, file: &mut File, mut left: u64) -> io::Result<()> {
        while left > 0 {
            let want = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            match file.read(&mut self.buffer[..want])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => {
                    self.out.write_all(&self.buffer[..count])?;
                    left -= count as u64;
                }
            }
        }
        Ok(())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = usize::try_from(size.wrapping_neg() % BLOCK as u64).unwrap_or(0);
        self.out.write_all(&[0; BLOCK][..padding])
    }

    fn entry(
        &mut self,
        path: &[u8],
        link: &[u8],
        kind: u8,
        about: &Metadata,
        size: u64,
        mut records: Records,
    ) -> io::Result<()> {
        let mut header = blank(kind, size);
        header.set_mode(about.mode() & 0o7777);
        header.set_uid(about.uid().into());
        header.set_gid(about.gid().into());
        let (seconds, nanos) = (about.mtime(), about.mtime_nsec());
        header.set_mtime(u64::try_from(seconds).unwrap_or(0));
        if nanos != 0 || seconds < 0 {
            // Before the epoch the fraction counts the other way.
            let text = match (seconds < 0, nanos) {
                (true, 1..) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
                _ => format!("{seconds}.{nanos:09}"),
            };
            records.push((b"mtime".to_vec(), text.into_bytes()));
        }
        self.header(path, link, header, records)
    }

    fn header(
        &mut self,
        path: &[u8],
        link: &[u8],
        mut header: tar::Header,
        mut records: Records,
    ) -> io::Result<()> {
        let is_sparse = records.iter().any(|(key, _)| key == b"GNU.sparse.name");
        for (key, value) in [(&b"path"[..], path), (b"linkpath", link)] {
            if value.len() > NAME_LEN && !(is_sparse && key == b"path") {
                records.push((key.to_vec(), value.to_vec()));
            }
        }
        if !records.is_empty() {
            let data = packed(&mut records);
            let mut extended = blank(b'x', data.len() as u64);
            name(&mut extended, b"PaxHeader", b"");
            self.out.write_all(extended.as_bytes())?;
            self.out.write_all(&data)?;
            self.pad(data.len() as u64)?;
        }
        name(&mut header, path, link);
        self.out.write_all(header.as_bytes())
    }
}

/// Of root, from the epoch: fields that are left out are no numbers.
fn blank(kind: u8, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::new(kind));
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Names as far as there is room, and the checksum.
fn name(header: &mut tar::Header, path: &[u8], link: &[u8]) {
    let old = header.as_old_mut();
    let (path, link) = (&path[..path.len().min(NAME_LEN)], &link[..link.len().min(NAME_LEN)]);
    old.name[..path.len()].copy_from_slice(path);
    old.linkname[..link.len()].copy_from_slice(link);
    header.set_cksum();
}

/// `LENGTH KEY=VALUE\n`, in the order of their keys; the length counts itself.
fn packed(records: &mut Records) -> Vec<u8> {
    records.sort();
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length += 1;
        }
        data.extend_from_slice(format!("{length} ").as_bytes());
        data.extend_from_slice(key);
        data.push(b'=');
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

/// Where a file has data; nothing if it has no holes or its file system does not say.
fn pieces(file: &File, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    use rustix::fs::SeekFrom as Seek;
    let mut pieces = Vec::new();
    let mut end = 0;
    while end < size {
        let data = match rustix::fs::seek(file, Seek::Data(end)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            Err(Errno::INVAL | Errno::NOTSUP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        end = rustix::fs::seek(file, Seek::Hole(data))?.min(size);
        pieces.push((data, end - data));
    }
    rustix::fs::seek(file, Seek::Start(0))?;
    Ok((pieces != [(0, size)]).then_some(pieces))
}

/// As PAX records, only those that a layer may have.
fn xattrs(at: &Path) -> io::Result<Records> {
    let mut names = vec![0; XATTRS_LEN_MAX];
    let count = match rustix::fs::llistxattr(at, &mut names) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(Records::new()),
        Ok(count) => count,
        Err(error) => return Err(error.into()),
    };
    let mut records = Records::new();
    for name in names[..count].split(|byte| *byte == 0).filter(|name| is_kept(name)) {
        let mut value = vec![0; XATTRS_LEN_MAX];
        let len = rustix::fs::lgetxattr(at, name, &mut value)?;
        value.truncate(len);
        records.push(([b"SCHILY.xattr.", name].concat(), value));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Owner, Tar, mode};
    use crate::unpack::{self, Limits};

    fn unpacked(bytes: &[u8], at: &Path) {
        fs::create_dir_all(at).unwrap();
        unpack::unpack(bytes, at, None, None, &Limits::default()).unwrap();
    }

    /// Everything of a folder that a layer can say.
    fn show(root: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        let mut todo = vec![root.to_owned()];
        while let Some(at) = todo.pop() {
            let about = at.symlink_metadata().unwrap();
            let attributes: Vec<String> = xattrs(&at)
                .unwrap()
                .iter()
                .map(|(key, value)| format!("{}={value:?}", String::from_utf8_lossy(key)))
                .collect();
            let content = match about.file_type() {
                kind if kind.is_file() => crate::Digest::of(&fs::read(&at).unwrap()).to_string(),
                kind if kind.is_symlink() => fs::read_link(&at).unwrap().display().to_string(),
                _ => String::new(),
            };
            let links = if about.is_dir() { 0 } else { about.nlink() };
            // Of whiteouts nobody sets a time.
            let is_whiteout = about.file_type().is_char_device();
            let time = if is_whiteout { (0, 0) } else { (about.mtime(), about.mtime_nsec()) };
            lines.push(format!(
                "{} {:o} {}:{} {time:?} {} {links} {} {attributes:?} {content} {}",
                at.strip_prefix(root).unwrap().display(),
                about.mode(),
                about.uid(),
                about.gid(),
                about.rdev(),
                if about.is_dir() { 0 } else { about.len() },
                is_opaque(&at),
            ));
            if about.is_dir() {
                todo.extend(fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        lines.sort();
        lines
    }

    #[test]
    fn everything_survives_and_the_bytes_are_always_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let long = format!("{}/{}", "d".repeat(120), "n".repeat(200));
        let tar = Tar::default()
            .dir("./", 0o755)
            .dir("etc", 0o751)
            .pax(&[("SCHILY.xattr.user.note", b"a\nb\0c"), ("mtime", b"-3.25")])
            .file("etc/conf", "text")
            .pax(&[(
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            )])
            .program("etc/tool", b"#!")
            .entry(b'0', "suid", "", Owner { uid: 3_000_000, gid: 7, ..mode(0o4755) }, b"x")
            .link("link", &"t".repeat(90))
            .hard("hard", "etc/conf")
            .hard("hard2", "etc/conf")
            .file("gone/.wh.file", "")
            .dir("opaque", 0o700)
            .file("opaque/.wh..wh..opq", "")
            .file("opaque/kept", "x")
            .entry(b'6', "fifo", "", Owner::default(), b"")
            .long(b'L', &long)
            .file("short", "long name")
            .end();
        let first = dir.path().join("first");
        unpacked(&tar, &first);
        let sparse = File::create(first.join("sparse")).unwrap();
        std::os::unix::fs::FileExt::write_at(&sparse, &[7; 5000], 9 << 20).unwrap();
        sparse.set_len(64 << 20).unwrap();
        let empty = File::create(first.join("hole")).unwrap();
        empty.set_len(1 << 20).unwrap();
        drop((sparse, empty));

        let mut bytes = Vec::new();
        write(&first, &mut bytes).unwrap();
        assert!(bytes.len() < 1 << 20, "holes are not written: {}", bytes.len());
        let second = dir.path().join("second");
        unpacked(&bytes, &second);
        assert_eq!(show(&second), show(&first));
        assert!(fs::metadata(second.join("sparse")).unwrap().blocks() < 1000);
        let mut again = Vec::new();
        write(&second, &mut again).unwrap();
        assert_eq!(again, bytes);
    }
}
