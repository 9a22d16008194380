//! Reading tar archives.

use super::*;
use crate::testing::Tar;

fn names(bytes: &[u8]) -> Result<Vec<String>, Error> {
    let mut reader = Reader::new(bytes);
    let mut names = Vec::new();
    while let Some(member) = reader.next()? {
        names.push(format!("{} {}", member.name(), member.size));
    }
    Ok(names)
}

#[test]
fn members_are_walked_without_reading_them() {
    let tar = Tar::default().file("a", &"x".repeat(1000)).dir("b/", 0o755).file("c", "").end();
    assert_eq!(names(&tar).unwrap(), ["a 1000", "b/ 0", "c 0"]);
    // Without the zero blocks at the end, as some writers leave it.
    assert_eq!(names(&tar[..tar.len() - 1024]).unwrap().len(), 3);
    // Without the padding of the last entry: umoci.
    let tar = Tar::default().file("a", "").file("b", "data").end();
    assert_eq!(names(&tar[..512 + 512 + 4]).unwrap(), ["a 0", "b 4"]);
    assert!(names(&tar[..512 + 512 + 3]).is_err());
    assert!(names(b"").unwrap().is_empty());
}

#[test]
fn the_size_of_pax_counts() {
    // Both readings must agree on where the next header is.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::file());
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_path("big").unwrap();
    header.set_cksum();
    let tar =
        Tar::default().pax(&[("size", b"600")]).raw(&header, &[b'x'; 600]).file("next", "").end();
    assert_eq!(names(&tar).unwrap(), ["big 600", "next 0"]);
    let huge = u64::MAX.to_string();
    let tar = Tar::default().pax(&[("size", huge.as_bytes())]).raw(&header, b"").end();
    assert!(names(&tar).is_err());
}

#[test]
fn only_files_have_data() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::hard_link());
    header.set_size(5000);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_path("link").unwrap();
    header.set_cksum();
    let tar = Tar::default().raw(&header, b"").file("next", "").end();
    assert_eq!(names(&tar).unwrap(), ["link 0", "next 0"]);
}

#[test]
fn offsets_lead_to_the_data() {
    let bytes = Tar::default().file("a", "first").long(b'L', "b").file("x", "second").end();
    let mut reader = Reader::new(&bytes[..]);
    for expected in ["first", "second"] {
        let member = reader.next().unwrap().unwrap();
        let at = usize::try_from(member.offset).unwrap();
        assert_eq!(&bytes[at..at + expected.len()], expected.as_bytes());
    }
}

#[test]
fn global_records_are_skipped_and_names_made_printable() {
    let tar = Tar::default()
        .entry(b'g', "pax_global_header", "", crate::testing::mode(0), b"18 comment=abcdef\n")
        .file("\u{1b}[31mred", "")
        .end();
    assert_eq!(names(&tar).unwrap(), ["\\u{1b}[31mred 0"]);
}
