//! Unpacking layers: files, links, whiteouts, hostile archives.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;
use crate::testing::{Owner, Tar, gzip, mode};

struct Out {
    dir: tempfile::TempDir,
    unpacked: Unpacked,
}

impl Out {
    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("outer/layer")
    }
}

fn try_unpack(bytes: &[u8], limits: &Limits) -> (tempfile::TempDir, Result<Unpacked, Error>) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("outer/layer");
    fs::create_dir_all(&root).unwrap();
    fs::write(dir.path().join("outer/secret"), "secret").unwrap();
    let result = unpack(bytes, &root, None, None, limits);
    // Whatever happens, nothing outside of the layer is touched.
    assert_eq!(fs::read_to_string(dir.path().join("outer/secret")).unwrap(), "secret");
    assert_eq!(fs::metadata(dir.path().join("outer/secret")).unwrap().nlink(), 1);
    assert_eq!(fs::read_dir(dir.path().join("outer")).unwrap().count(), 2);
    (dir, result)
}

#[track_caller]
fn run(tar: Tar) -> Out {
    let (dir, result) = try_unpack(&tar.end(), &Limits::default());
    Out { dir, unpacked: result.unwrap_or_else(|error| panic!("{error}")) }
}

/// One line a file: kind, mode, path and what is in it.
fn show(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, lines: &mut Vec<String>) {
        let metadata = path.symlink_metadata().unwrap();
        let name = path.strip_prefix(root).unwrap().display();
        let bits = metadata.permissions().mode() & 0o7777;
        let kind = metadata.file_type();
        if kind.is_dir() {
            let opaque = if is_opaque(path) { " opaque" } else { "" };
            lines.push(format!("d{bits:o} {name}{opaque}"));
            let mut inside: Vec<_> =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            inside.iter().for_each(|path| walk(root, path, lines));
        } else if kind.is_symlink() {
            lines.push(format!("l {name} -> {}", fs::read_link(path).unwrap().display()));
        } else if kind.is_char_device() && metadata.rdev() == 0 {
            lines.push(format!("w {name}"));
        } else if kind.is_fifo() {
            lines.push(format!("p{bits:o} {name}"));
        } else {
            lines.push(format!("f{bits:o} {name} = {}", fs::read_to_string(path).unwrap()));
        }
    }
    let mut lines = Vec::new();
    walk(root, root, &mut lines);
    lines
}

#[track_caller]
fn check(tar: Tar, expected: &[&str]) {
    let out = run(tar);
    let lines = show(&out.root());
    assert_eq!(lines[1..], *expected);
}

#[track_caller]
fn refuse(tar: Tar, expected: &str) {
    let (_dir, result) = try_unpack(&tar.end(), &Limits::default());
    match result {
        Err(Error::Bad(what)) => assert!(what.contains(expected), "{what}"),
        other => panic!("{expected}: {other:?}"),
    }
}

#[test]
fn kinds_and_modes_are_kept() {
    let tar = Tar::default()
        .dir("./", 0o711)
        .dir("./etc/", 0o750)
        .file("./etc/a", "text")
        .entry(b'0', "su", "", mode(0o4755), b"x")
        .link("l", "etc/a")
        .hard("h", "etc/a")
        .entry(b'6', "pipe", "", mode(0o620), b"")
        .entry(b'7', "contiguous", "", mode(0o600), b"")
        .entry(b'0', "old-folder/", "", mode(0o700), b"")
        .dir("tmp", 0o1777);
    let out = run(tar);
    assert_eq!(
        show(&out.root()),
        [
            "d711 ",
            "f600 contiguous = ",
            "d750 etc",
            "f644 etc/a = text",
            "f644 h = text",
            "l l -> etc/a",
            "d700 old-folder",
            "p620 pipe",
            "f4755 su = x",
            "d1777 tmp",
        ]
    );
    assert_eq!(out.unpacked.size, 5);
    assert!(out.unpacked.implied.is_empty());
    let inode = |name: &str| fs::metadata(out.root().join(name)).unwrap().ino();
    assert_eq!(inode("h"), inode("etc/a"));
}

#[test]
fn owners_and_times_are_kept() {
    let owner = Owner { uid: 1234, gid: 4321, mode: 0o6755, mtime: 12_345 };
    let tar = Tar::default()
        .entry(b'5', "d", "", owner, b"")
        .entry(b'0', "d/f", "", owner, b"x")
        .entry(b'2', "d/l", "f", owner, b"")
        .pax(&[("uid", b"70000"), ("mtime", b"-1.5")])
        .entry(b'0', "d/p", "", owner, b"");
    let out = run(tar);
    for name in ["d", "d/f", "d/l"] {
        let metadata = out.root().join(name).symlink_metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1234, 4321), "{name}");
        assert_eq!(metadata.mtime(), 12_345, "{name}");
    }
    let metadata = out.root().join("d/f").metadata().unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o6755);
    let metadata = out.root().join("d/p").metadata().unwrap();
    assert_eq!(
        (metadata.uid(), metadata.mtime(), metadata.mtime_nsec()),
        (70_000, -2, 500_000_000)
    );
}

#[test]
fn paths_out_of_the_layer_are_refused() {
    refuse(Tar::default().file("../secret", "x"), "entry \"../secret\": path with \"..\"");
    refuse(Tar::default().file("a/../../secret", "x"), "path with \"..\"");
    refuse(Tar::default().file("a/..", "x"), "path with \"..\"");
    refuse(Tar::default().file("/../secret", "x"), "path with \"..\"");
    refuse(Tar::default().dir("../", 0o755), "path with \"..\"");
    refuse(Tar::default().link("../l", "x"), "path with \"..\"");
    refuse(Tar::default().pax(&[("path", b"../secret")]).file("ok", "x"), "path with \"..\"");
    refuse(Tar::default().long(b'L', "/../abs").file("ok", "x"), "path with \"..\"");
    refuse(Tar::default().link(".", "x"), "root must be a folder");
}

#[test]
fn links_never_lead_out() {
    // Absolute and climbing links end inside of the layer.
    check(
        Tar::default()
            .dir("inside", 0o755)
            .link("abs", "/inside")
            .link("up", "../../../inside")
            .file("abs/one", "1")
            .file("up/two", "2"),
        &[
            "l abs -> /inside",
            "d755 inside",
            "f644 inside/one = 1",
            "f644 inside/two = 2",
            "l up -> ../../../inside",
        ],
    );
    refuse(
        Tar::default().link("l", "../../outer").file("l/secret", "x"),
        "a symbolic link to nothing",
    );
    refuse(
        Tar::default().link("l", "/proc/self/root").file("l/x", "x"),
        "a symbolic link to nothing",
    );
    refuse(Tar::default().link("a", "b").link("b", "a").file("a/x", "x"), "a loop of links");
    // A file written through a link replaces the link, not its target.
    check(Tar::default().link("l", "../secret").file("l", "mine"), &["f644 l = mine"]);
    check(
        Tar::default().file("f", "old").link("l", "f").file("l", "new"),
        &["f644 f = old", "f644 l = new"],
    );
    refuse(Tar::default().link("l", ""), "symbolic link to nothing");
}

#[test]
fn hard_links_stay_inside() {
    refuse(
        Tar::default().hard("h", "../secret"),
        "hard link to \"../secret\" outside of the layer",
    );
    refuse(Tar::default().hard("h", "/etc/passwd"), "which is not in the layer");
    refuse(Tar::default().link("up", "..").hard("h", "up/secret"), "which is not in the layer");
    refuse(Tar::default().link("up", "../../..").hard("h", "up/outer/secret"), "not in the layer");
    refuse(Tar::default().hard("h", "missing"), "not in the layer");
    refuse(Tar::default().dir("d", 0o755).hard("h", "d"), "which is no file");
    refuse(Tar::default().file(".wh.w", "").hard("h", "w"), "which is no file");
    refuse(Tar::default().hard("h", ""), "not in the layer");
    check(
        Tar::default().file("a", "1").hard("b", "/a").hard("b", "a").hard("a", "a"),
        &["f644 a = 1", "f644 b = 1"],
    );
    // A link to a link is a link, it is not followed.
    check(
        Tar::default().link("l", "../secret").hard("h", "l"),
        &["l h -> ../secret", "l l -> ../secret"],
    );
}

#[test]
fn later_entries_replace_earlier_ones() {
    check(
        Tar::default()
            .file("f", "old and long")
            .file("f", "new")
            .dir("d", 0o755)
            .file("d/inner/deep", "x")
            .file("d", "now a file")
            .file("g", "x")
            .dir("g", 0o700)
            .file("g/h", "inside"),
        &["f644 d = now a file", "f644 f = new", "d700 g", "f644 g/h = inside"],
    );
    // Folders merge, the last attributes count.
    check(
        Tar::default().dir("d", 0o700).file("d/a", "1").dir("d", 0o711),
        &["d711 d", "f644 d/a = 1"],
    );
    // Not through a link that stands where the folder goes.
    check(
        Tar::default().dir("t", 0o755).link("d", "t").dir("d", 0o700).file("d/a", "1"),
        &["d700 d", "f644 d/a = 1", "d755 t"],
    );
    // A hard link's partner is not written through.
    check(
        Tar::default().file("a", "1").hard("b", "a").file("b", "2"),
        &["f644 a = 1", "f644 b = 2"],
    );
    refuse(Tar::default().file("f", "x").file("f/below", "y"), "lies in \"f\", which is no folder");
}

#[test]
fn deep_nesting_through_links_is_replaced_and_removed() {
    // Each link starts where the one before ended. The kernel follows 40 in all, and
    // counts those of a walk that it had to begin anew.
    let step = vec!["d"; 45].join("/");
    let mut tar = Tar::default().dir(&step, 0o755).link("l00", &step);
    let mut expected = vec!["f644 d = flat".to_owned(), "f644 l00 = ".to_owned()];
    for number in 1..18 {
        let (link, below) = (format!("l{number:02}"), format!("l{:02}/{step}", number - 1));
        tar = tar.dir(&below, 0o755).link(&link, &below);
        expected.push(format!("f644 {link} = "));
    }
    let (dir, result) = try_unpack(&tar.clone().end(), &Limits::default());
    result.unwrap();
    crate::disk::remove(&dir.path().join("outer/layer")).unwrap();
    let tar = (0..18).fold(tar, |tar, number| tar.file(&format!("l{number:02}"), ""));
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    check(tar.file("d", "flat"), &expected);
}

#[test]
fn whiteouts_become_overlays() {
    check(
        Tar::default()
            .dir("etc", 0o755)
            .file("etc/.wh.gone", "")
            .dir("var", 0o755)
            .file("var/.wh..wh..opq", "")
            .file("var/new", "x")
            .file("implied/.wh.x", "")
            .file(".wh..wh.plnk", "")
            .dir(".wh..wh.aufs", 0o755),
        &[
            "d755 etc",
            "w etc/gone",
            "d755 implied",
            "w implied/x",
            "d755 var opaque",
            "f644 var/new = x",
        ],
    );
    // What the layer itself brings stays, but nothing below shows through.
    check(
        Tar::default()
            .dir("a", 0o755)
            .file("a/new", "x")
            .file(".wh.a", "")
            .file("f", "new")
            .file(".wh.f", ""),
        &["d755 a opaque", "f644 a/new = x", "f644 f = new"],
    );
    check(
        Tar::default().file(".wh.a", "").dir("a", 0o700).file(".wh.b", "").file("b/c", "x"),
        &["d700 a opaque", "d755 b opaque", "f644 b/c = x"],
    );
    check(Tar::default().file(".wh.f", "").file("f", "new"), &["f644 f = new"]);
    // A file took the place of a folder, whose content is gone all the same.
    check(
        Tar::default().file("f", "new").file("f/.wh.x", "").file(".wh.g", "").file("g/.wh.y", ""),
        &["f644 f = new", "w g"],
    );
    let root = run(Tar::default().file(".wh..wh..opq", ""));
    assert!(is_opaque(&root.root()));
    refuse(Tar::default().file(".wh.", ""), "whiteout of nothing");
    refuse(Tar::default().file(".wh..", ""), "whiteout of nothing");
    refuse(Tar::default().file("a/.wh...", ""), "whiteout of nothing");
}

#[test]
fn device_nodes_are_skipped_and_counted() {
    let tar = Tar::default()
        .entry(b'3', "dev/null", "", mode(0o666), b"")
        .entry(b'4', "dev/sda", "", mode(0o660), b"")
        .file("f", "x");
    let out = run(tar);
    assert_eq!(show(&out.root())[1..], ["f644 f = x"]);
    assert_eq!(out.unpacked.devices_skipped, 2);
    refuse(
        Tar::default().entry(b'Z', "odd", "", mode(0o644), b""),
        "odd: unknown kind of entry 'Z'",
    );
}

#[test]
fn attributes_that_steer_the_host_are_dropped() {
    let tar = Tar::default()
        .pax(&[
            ("SCHILY.xattr.user.note", b"line\nline"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.security.selinux", b"x"),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            ),
        ])
        .program("ping", b"x");
    let out = run(tar);
    assert_eq!(out.unpacked.xattrs_dropped, 3);
    let mut names = vec![0; 1024];
    let length = rustix::fs::listxattr(out.root().join("ping"), &mut names[..]).unwrap();
    let names = String::from_utf8_lossy(&names[..length]).into_owned();
    let mut names: Vec<&str> = names.trim_end_matches('\0').split('\0').collect();
    names.sort_unstable();
    assert_eq!(names, ["security.capability", "user.note"]);
}

#[test]
fn missing_parents_are_told() {
    let out = run(Tar::default().file("a/b/c", "x").dir("a", 0o700).file("d/e", "y"));
    let implied: Vec<String> =
        out.unpacked.implied.iter().map(|path| String::from_utf8_lossy(path).into()).collect();
    assert_eq!(implied, ["", "a/b", "d"]);

    let below = tempfile::tempdir().unwrap();
    fs::create_dir_all(below.path().join("a/b")).unwrap();
    fs::set_permissions(below.path().join("a/b"), fs::Permissions::from_mode(0o1751)).unwrap();
    std::os::unix::fs::chown(below.path().join("a/b"), Some(7), Some(8)).unwrap();
    inherit(&out.root(), &out.unpacked.implied, &[below.path().to_owned()]).unwrap();
    let metadata = fs::metadata(out.root().join("a/b")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o1751, 7, 8));
    assert_eq!(fs::metadata(out.root().join("d")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn long_names_are_read() {
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(250));
    check(
        Tar::default().long(b'L', &long).file("short", "gnu"),
        &[&format!("d755 {}", "d".repeat(200)), &format!("f644 {long} = gnu")],
    );
    let target = "t".repeat(300);
    check(
        Tar::default().pax(&[("path", b"p"), ("linkpath", target.as_bytes())]).link("x", "y"),
        &[&format!("l p -> {target}")],
    );
    check(Tar::default().long(b'K', &target).link("x", "y"), &[&format!("l x -> {target}")]);
    refuse(Tar::default().long(b'L', &"x".repeat(5000)).file("y", ""), "name of 5001 bytes");
    refuse(
        Tar::default().pax(&[("path", "x".repeat(5000).as_bytes())]).file("y", ""),
        "name of 5000 bytes",
    );
    refuse(Tar::default().long(b'L', &"x".repeat(256)).file("y", ""), "part of 256 bytes");
    refuse(Tar::default().pax(&[("path", b"a\0b")]).file("y", ""), "zero byte");
}

#[test]
fn owners_out_of_range_are_refused() {
    refuse(Tar::default().pax(&[("uid", b"4294967295")]).file("y", ""), "out of range");
    refuse(Tar::default().pax(&[("gid", b"99999999999")]).file("y", ""), "out of range");
}

#[test]
fn sparse_files_keep_their_holes() {
    const LEN: u64 = 10 << 20;
    let at = LEN - 512;
    let block = "x".repeat(512);
    // PAX 0.1, 1.0 and the old GNU header.
    let map = format!("{at},512");
    let size = LEN.to_string();
    let front = format!("1\n{at}\n512\n");
    let mut data = front.into_bytes();
    data.resize(512, 0);
    data.extend_from_slice(block.as_bytes());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::new(b'S'));
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(512);
    header.set_path("old").unwrap();
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(LEN);
    gnu.sparse[0].set_offset(at);
    gnu.sparse[0].set_length(512);
    header.set_cksum();
    let tar = Tar::default()
        .pax(&[
            ("GNU.sparse.map", map.as_bytes()),
            ("GNU.sparse.size", size.as_bytes()),
            ("GNU.sparse.name", b"map"),
        ])
        .file("GNUSparseFile.0/map", &block)
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"one"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ])
        .entry(b'0', "GNUSparseFile.0/one", "", mode(0o644), &data)
        .raw(&header, block.as_bytes());
    let out = run(tar);
    for name in ["map", "one", "old"] {
        let path = out.root().join(name);
        let metadata = fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), LEN, "{name}");
        assert!(metadata.blocks() * 512 < LEN / 2, "{name}");
        let content = fs::read(&path).unwrap();
        let (zeros, tail) = content.split_at(usize::try_from(at).unwrap());
        assert!(zeros.iter().all(|byte| *byte == 0) && tail == block.as_bytes(), "{name}");
    }
    let bad = |map: &[u8]| {
        Tar::default()
            .pax(&[("GNU.sparse.map", map), ("GNU.sparse.size", b"600")])
            .file("f", &block)
    };
    refuse(bad(b"100,512"), "out of order");
    refuse(bad(b"18446744073709551615,512"), "out of order");
    refuse(bad(b"256,256,0,256"), "out of order");
    refuse(bad(b"0,100"), "100 bytes, 512 are stored");
    refuse(bad(b"0"), "sparse map is damaged");
}

#[test]
fn limits_hold() {
    let limits =
        Limits { bytes_max: 1 << 20, entries_max: 3, ratio_max: 10, ratio_free_bytes: 1 << 18 };
    let small = |bytes: &[u8]| {
        let (_dir, result) = try_unpack(bytes, &limits);
        match result {
            Ok(_) => "ok".to_owned(),
            Err(Error::Bad(what)) => what,
            Err(other) => panic!("{other}"),
        }
    };
    let many = |count: usize| {
        (0..count).fold(Tar::default(), |tar, index| tar.file(&format!("f{index}"), "")).end()
    };
    assert_eq!(small(&many(3)), "ok");
    assert!(small(&many(4)).contains("more than 3 entries"));
    let zeros = |len: usize| Tar::default().file("z", &"\0".repeat(len)).end();
    assert_eq!(small(&zeros(900_000)), "ok");
    assert!(small(&zeros(1 << 20)).contains("more than 1048576 bytes"));
    assert_eq!(small(&gzip(&zeros(200_000))), "ok");
    assert!(small(&gzip(&zeros(900_000))).contains("at most 10 times"));
    // The same after the end of the tar, where nobody looks.
    let hidden = [Tar::default().end(), vec![0; 900_000]].concat();
    assert!(small(&gzip(&hidden)).contains("at most 10 times"));
}

#[test]
fn extension_bombs_are_refused() {
    for kind in *b"xLK" {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(1 << 40);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_cksum();
        refuse(Tar::default().raw(&header, b""), "are allowed");
    }
}

#[test]
fn damaged_archives_are_refused() {
    refuse(Tar::default().bytes(&[b'x'; 512]), "this is no tar archive");
    let whole = Tar::default().file("f", &"x".repeat(5000)).end();
    for cut in [100, 512, 600, 3000] {
        let (_dir, result) = try_unpack(&whole[..cut], &Limits::default());
        match result {
            Err(Error::Bad(_)) => {}
            other => panic!("{cut}: {other:?}"),
        }
    }
    let packed = gzip(&whole);
    let (_dir, result) = try_unpack(&packed[..packed.len() - 5], &Limits::default());
    assert!(matches!(result, Err(Error::Bad(what)) if what.contains("damaged")));
}

#[test]
fn digests_cover_everything() {
    let tar = Tar::default().file("f", "x").end();
    // Padding that tools append after the end.
    let padded = [tar.clone(), vec![0; 9000]].concat();
    for bytes in [padded.clone(), gzip(&padded), zstd::encode_all(&padded[..], 3).unwrap()] {
        let dir = tempfile::tempdir().unwrap();
        let expected = Digest::of(&bytes);
        let unpacked =
            unpack(&bytes[..], dir.path(), Some(&expected), None, &Limits::default()).unwrap();
        assert_eq!(unpacked.diff, Digest::of(&padded));
    }
    // Wrong bytes are told as such, also when they are no layer at all.
    for bytes in [tar, b"<html>".repeat(200)] {
        let dir = tempfile::tempdir().unwrap();
        let result =
            unpack(&bytes[..], dir.path(), Some(&Digest::of(b"")), None, &Limits::default());
        assert!(matches!(result, Err(Error::Digest { .. })));
    }
}

/// A tar of so many empty files in folders of a thousand, made while it is read.
struct Many {
    left: u32,
    block: io::Cursor<Vec<u8>>,
}

impl Read for Many {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.block.read(buffer)?;
        if count > 0 || self.left == 0 {
            return Ok(count);
        }
        self.left -= 1;
        let (folder, n) = (self.left / 1000, self.left % 1000);
        let tar = Tar::default().file(&format!("d{folder}/f{n}"), "");
        let bytes = if self.left == 0 { tar.end() } else { tar.raw_bytes() };
        self.block = io::Cursor::new(bytes);
        self.block.read(buffer)
    }
}

/// A million files need little memory, and can be put together again.
#[test]
fn soak_a_million_files() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (root, recipe) = (dir.path().join("layer"), dir.path().join("recipe"));
    fs::create_dir(&root).unwrap();
    let file = File::create(&recipe).unwrap();
    let many = Many { left: 1_000_000, block: io::Cursor::default() };
    let unpacked = unpack(many, &root, None, Some(file), &Limits::default()).unwrap();
    assert!(unpacked.has_recipe);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    let len = fs::metadata(&recipe).unwrap().len();
    println!("{kib} KiB of memory at most, {len} bytes of recipe");
    assert!(kib < 64 << 10, "{kib} KiB");
    let mut replay = HashRead::new(crate::recipe::Replay::open(&recipe, &root).unwrap());
    io::copy(&mut replay, &mut io::sink()).unwrap();
    assert_eq!(replay.finish(), unpacked.diff);
}
