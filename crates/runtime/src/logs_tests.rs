//! Positions in files, by table: a file is a string of lines, one letter each.

use super::*;
use std::time::Duration;

/// Files by number; each letter is a line printed at that many seconds.
fn folder(files: &[(u64, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (number, letters) in files {
        let mut text = Vec::new();
        for letter in letters.chars() {
            text.extend(line::prefix(seconds(letter) * 1_000_000_000, line::Stream::Stdout));
            text.extend(
                letter
                    .to_string()
                    .repeat(usize::from(letter.is_uppercase()) * 9999 + 1)
                    .into_bytes(),
            );
            text.push(b'\n');
        }
        let name = file_name(*number);
        fs::write(dir.path().join(String::from_utf8_lossy(&name[..14]).as_ref()), text).unwrap();
    }
    dir
}

fn seconds(letter: char) -> u64 {
    u64::from(u32::from(letter.to_ascii_lowercase()) - u32::from('a'))
}

#[track_caller]
fn check(files: &[(u64, &str)], tail: Option<usize>, since: Option<char>, expected: &str) {
    let dir = folder(files);
    let since = since.map(|letter| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds(letter)));
    let query = LogQuery { tail, since, follow: false };
    let position = first_position(dir.path(), &query).unwrap();
    let mut reader =
        Reader { dir: dir.path().to_owned(), position, file: None, since_ns: since_ns(&query) };
    let mut seen = String::new();
    loop {
        let lines = reader.batch().unwrap();
        if lines.is_empty() {
            break;
        }
        seen.extend(lines.iter().map(|line| char::from(line.line[0])));
    }
    assert_eq!(seen, expected);
}

#[test]
fn tail_and_since() {
    let files = &[(3, "abc"), (4, "defg"), (7, "hi")];
    check(files, None, None, "abcdefghi");
    check(files, Some(0), None, "");
    check(files, Some(1), None, "i");
    check(files, Some(2), None, "hi");
    check(files, Some(3), None, "ghi");
    check(files, Some(7), None, "cdefghi");
    check(files, Some(9), None, "abcdefghi");
    check(files, Some(99), None, "abcdefghi");
    for (at, letter) in "abcdefghi".char_indices() {
        check(files, None, Some(letter), &"abcdefghi"[at..]);
    }
    check(files, None, Some('z'), "");
    check(files, Some(2), Some('b'), "hi");
    check(files, Some(8), Some('h'), "hi");
    check(&[], Some(2), Some('b'), "");
    check(&[(1, "")], Some(2), None, "");
    check(&[(1, "ab"), (2, "")], Some(1), None, "b");
    // Lines longer than others, and many of one moment.
    check(&[(1, "aBcDeF"), (2, "GhI")], Some(4), None, "FGhI");
    check(&[(1, "aBcDeF"), (2, "GhI")], None, Some('D'), "DeFGhI");
    check(&[(1, &"c".repeat(500)), (2, "d")], None, Some('d'), "d");
    check(&[(1, &"ABC".repeat(9))], Some(2), None, "BC");
    check(&[(1, &("a".repeat(2000) + &"b".repeat(2000)))], None, Some('b'), &"b".repeat(2000));
}

#[test]
fn foreign_and_unfinished_lines_are_passed_over() {
    let dir = folder(&[(1, "ab")]);
    let file = dir.path().join("0000000001.log");
    let mut text = fs::read(&file).unwrap();
    text.extend_from_slice(b"nonsense\n\n");
    text.extend(line::prefix(2_000_000_000, line::Stream::Stderr));
    text.extend_from_slice(b"unfinished");
    fs::write(&file, &text).unwrap();
    fs::write(dir.path().join("other.txt"), "x").unwrap();
    let query = LogQuery::default();
    let position = first_position(dir.path(), &query).unwrap();
    let mut reader = Reader { dir: dir.path().to_owned(), position, file: None, since_ns: 0 };
    assert_eq!(reader.batch().unwrap().len(), 2);
    assert!(reader.batch().unwrap().is_empty());
    text.push(b'\n');
    fs::write(&file, &text).unwrap();
    let lines = reader.batch().unwrap();
    assert_eq!((lines[0].stream, lines[0].line.as_slice()), (Stream::Stderr, &b"unfinished"[..]));
}

#[test]
fn removed_files_are_passed_over() {
    let dir = folder(&[(1, "ab"), (2, "cd"), (3, "ef")]);
    let position = first_position(dir.path(), &LogQuery::default()).unwrap();
    let mut reader = Reader { dir: dir.path().to_owned(), position, file: None, since_ns: 0 };
    assert_eq!(reader.batch().unwrap().len(), 2);
    fs::remove_file(dir.path().join("0000000002.log")).unwrap();
    assert_eq!(reader.batch().unwrap()[0].line, b"e");
}
