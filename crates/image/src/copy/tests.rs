use std::fs;
use std::io::Cursor;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;

fn open(path: &Path) -> OwnedFd {
    fs::File::open(path).unwrap().into()
}

/// `path` of `from` goes to `to` of `into`, with what is said about it.
fn copy(from: &Path, path: &str, into: &Path, to: &str, links: Links) -> Result<Tally, String> {
    use std::os::fd::AsFd;
    let root = open(from);
    let mut archive = Vec::new();
    let asked = Pack {
        path: path.as_bytes(),
        follow: false,
        bytes_max: 1 << 20,
        counter: Counter::default(),
    };
    pack(root.as_fd(), &asked, &mut archive).map_err(|error| error.to_string())?;
    let root = open(into);
    let asked = Unpack {
        path: to.as_bytes(),
        plain: false,
        contents: Written::parse(path.as_bytes()).contents,
        archive: false,
        links,
        bytes_max: 1 << 20,
        counter: Counter::default(),
    };
    unpack(root.as_fd(), &asked, Cursor::new(archive)).map_err(|error| error.to_string())
}

/// What is in a folder, sorted: `a/`, `a/f=text`, `l->target`.
fn tree(folder: &Path) -> String {
    fn walk(folder: &Path, shown: &str, all: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = format!("{shown}{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_symlink() {
                all.push(format!("{name}->{}", fs::read_link(entry.path()).unwrap().display()));
            } else if kind.is_dir() {
                all.push(format!("{name}/"));
                walk(&entry.path(), &format!("{name}/"), all);
            } else {
                all.push(format!("{name}={}", fs::read_to_string(entry.path()).unwrap()));
            }
        }
    }
    let mut all = Vec::new();
    walk(folder, "", &mut all);
    all.sort();
    all.join(" ")
}

fn source() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("d/e")).unwrap();
    fs::write(folder.path().join("f"), "one").unwrap();
    fs::write(folder.path().join("d/g"), "two").unwrap();
    symlink("g", folder.path().join("d/l")).unwrap();
    symlink("d", folder.path().join("ld")).unwrap();
    folder
}

/// As the reference of `docker cp` has it.
#[test]
fn where_things_go() {
    let table = [
        ("f", "", "x", "x=one"),
        ("f", "", "x/", "x/: there is no folder of that name"),
        ("f", "", "no/x", "no: no such file or folder"),
        ("f", "x", "x", "x=one"),
        ("f", "x/", "x", "x/ x/f=one"),
        ("f", "x/", "/x/", "x/ x/f=one"),
        ("f", "", "/", "f=one"),
        ("d", "", "x", "x/ x/e/ x/g=two x/l->g"),
        ("d", "", "x/", "x/ x/e/ x/g=two x/l->g"),
        ("d", "x", "x", "x: a folder cannot take the place of a file"),
        ("d", "x/", "x", "x/ x/d/ x/d/e/ x/d/g=two x/d/l->g"),
        ("d/.", "x/", "x", "x/ x/e/ x/g=two x/l->g"),
        ("/d/.", "", "x", "x/ x/e/ x/g=two x/l->g"),
        ("d/", "x/", "x", "x/ x/d/ x/d/e/ x/d/g=two x/d/l->g"),
        ("ld", "", "x", "x->d"),
        ("ld/", "", "x", "x/ x/e/ x/g=two x/l->g"),
        ("f/", "", "x", "f/: is no folder"),
        ("none", "", "x", "none: no such file or folder"),
        ("../../f", "", "x", "x=one"),
    ];
    let both = [Links::InRoot, Links::Refused];
    let all = table.into_iter().flat_map(|row| both.map(|links| (row, links)));
    for ((path, before, to, expected), links) in all {
        let (from, into) = (source(), tempfile::tempdir().unwrap());
        match before.strip_suffix('/') {
            Some(name) => fs::create_dir(into.path().join(name)).unwrap(),
            None if before.is_empty() => {}
            None => fs::write(into.path().join(before), "old").unwrap(),
        }
        let copied = copy(from.path(), path, into.path(), to, links);
        let got = copied.map_or_else(|why| why, |_| tree(into.path()));
        assert_eq!(got, expected, "{path} to {to} {links:?}");
    }
}

#[test]
fn links_lead_nowhere_else() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    let from = source();
    symlink(outside.path(), from.path().join("out")).unwrap();
    symlink(outside.path().join("secret"), from.path().join("peek")).unwrap();
    let into = tempfile::tempdir().unwrap();
    // Links of a container lead to what is in it, which is nothing.
    for path in ["out/secret", "peek/.", "../out/secret"] {
        let got = copy(from.path(), path, into.path(), "x", Links::InRoot).unwrap_err();
        assert!(got.contains("no such file"), "{path}: {got}");
    }
    copy(from.path(), "peek", into.path(), "link", Links::InRoot).unwrap();
    assert!(fs::symlink_metadata(into.path().join("link")).unwrap().is_symlink());
    // Nor does a place to copy to.
    symlink(outside.path(), into.path().join("gone")).unwrap();
    let got = copy(from.path(), "f", into.path(), "gone/x", Links::InRoot).unwrap_err();
    assert!(got.contains("no such file"), "{got}");
    assert_eq!(tree(outside.path()), "secret=s");
}

fn archive(entries: &[(&str, tar::EntryType, &str, u32)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, what, mode) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_size(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        if kind.is_file() {
            header.set_size(what.len() as u64);
        } else if !what.is_empty() {
            header.as_mut_bytes()[157..157 + what.len()].copy_from_slice(what.as_bytes());
        }
        header.set_cksum();
        let data = if kind.is_file() { what.as_bytes() } else { b"" };
        builder.append(&header, data).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An archive that a container made up, on this machine.
#[test]
fn hostile_archives() {
    use std::os::fd::AsFd;
    use tar::EntryType as T;
    let outside = tempfile::tempdir().unwrap();
    let away = outside.path().to_str().unwrap();
    fs::write(outside.path().join("kept"), "kept").unwrap();
    for (entries, expected) in [
        (
            vec![
                ("d/", T::Directory, "", 0o755),
                ("d/l", T::Symlink, away, 0o777),
                ("d/l/x", T::Regular, "bad", 0o644),
            ],
            "x/l: a link is in the way that may not be followed",
        ),
        (
            vec![("d/", T::Directory, "", 0o755), ("d/../../x", T::Regular, "bad", 0o644)],
            "leads out of the folder",
        ),
        (
            vec![("d/", T::Directory, "", 0o755), ("other/x", T::Regular, "bad", 0o644)],
            "archive: other/x is not below d",
        ),
        (vec![("../x", T::Regular, "bad", 0o644)], "leads out of the folder"),
        (
            vec![
                ("d/", T::Directory, "", 0o755),
                ("d/l", T::Symlink, away, 0o777),
                ("d/h", T::Link, "d/l/kept", 0o644),
            ],
            "may not be followed",
        ),
        (
            vec![("d/", T::Directory, "", 0o755), ("d/h", T::Link, "/etc/passwd", 0o644)],
            "is not below d",
        ),
        (vec![], "the archive is empty"),
        (
            vec![
                ("d/", T::Directory, "", 0o755),
                ("d/f", T::Regular, "f", 0o4755),
                ("d/c", T::Char, "", 0o666),
                ("d/p", T::Fifo, "", 0o666),
            ],
            "fine",
        ),
        // What a link led to is not written through, the link is replaced.
        (
            vec![
                ("d/", T::Directory, "", 0o755),
                ("d/f", T::Symlink, "/etc/passwd", 0o777),
                ("d/f", T::Regular, "own", 0o644),
            ],
            "fine",
        ),
    ] {
        let into = tempfile::tempdir().unwrap();
        let root = open(into.path());
        let asked = Unpack {
            path: b"x",
            plain: false,
            contents: false,
            archive: false,
            links: Links::Refused,
            bytes_max: 100,
            counter: Counter::default(),
        };
        let bytes = archive(&entries);
        let got = unpack(root.as_fd(), &asked, Cursor::new(bytes));
        let got = got.map_or_else(|error| error.to_string(), |_| "fine".to_owned());
        assert!(got.contains(expected), "{entries:?}: {got}");
        if let Ok(found) = fs::metadata(into.path().join("x/f")) {
            // Nobody's rights are lent.
            assert_eq!(found.permissions().mode() & 0o6000, 0);
            assert!(!found.file_type().is_symlink());
        }
    }
    assert_eq!(tree(outside.path()), "kept=kept");
}

#[test]
fn limits() {
    use std::os::fd::AsFd;
    let from = tempfile::tempdir().unwrap();
    let big = fs::File::create(from.path().join("big")).unwrap();
    big.set_len(1 << 40).unwrap();
    let root = open(from.path());
    let asked = Pack { path: b"big", follow: false, bytes_max: 1000, counter: Counter::default() };
    let error = pack(root.as_fd(), &asked, io::sink()).unwrap_err();
    assert_eq!(error.to_string(), "more than 1000 bytes, which is the limit of one copy");
    let mut deep = from.path().to_owned();
    for _ in 0..DEPTH_MAX + 2 {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    let asked = Pack { path: b"d", ..asked };
    let error = pack(root.as_fd(), &asked, io::sink()).unwrap_err();
    assert!(error.to_string().ends_with("more than 128 folders below each other"), "{error}");
    let host = open(Path::new("/"));
    for (path, expected) in [
        (&b"/proc/meminfo"[..], "made up by the kernel"),
        (b"/dev/null", "is a device, a socket or a pipe"),
    ] {
        let asked = Pack { path, ..asked.clone() };
        let error = pack(host.as_fd(), &asked, io::sink()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn owners_and_modes() {
    use std::os::fd::AsFd;
    let (from, into) = (source(), tempfile::tempdir().unwrap());
    fs::set_permissions(from.path().join("f"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(from.path().join("d"), fs::Permissions::from_mode(0o500)).unwrap();
    let tally = copy(from.path(), ".", into.path(), "x", Links::Refused).unwrap();
    assert_eq!((tally.files, tally.folders, tally.links, tally.bytes), (2, 3, 2, 6));
    let found = |name: &str| fs::metadata(into.path().join("x").join(name)).unwrap();
    assert_eq!(found("f").mode() & 0o7777, 0o640);
    assert_eq!(found("d").mode() & 0o7777, 0o500);
    assert_eq!(found("f").mtime(), fs::metadata(from.path().join("f")).unwrap().mtime());
    let root = open(into.path());
    let bytes = archive(&[("y/", tar::EntryType::Directory, "", 0o755)]);
    let asked = Unpack {
        path: b"/",
        plain: true,
        contents: false,
        archive: false,
        links: Links::InRoot,
        bytes_max: 100,
        counter: Counter::default(),
    };
    unpack(root.as_fd(), &asked, Cursor::new(bytes)).unwrap();
    assert!(into.path().join("y").is_dir());
}
