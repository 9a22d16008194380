//! Backups whole, cut, damaged, and opened by the wrong people.

use proptest::prelude::*;
use warren_base::rng::SystemRng;

use super::*;

fn phrase(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}

fn written(lock: &BackupLock, text: &[u8]) -> Vec<u8> {
    let mut out = encrypt(vec![], lock, &SystemRng).unwrap();
    out.write_all(text).unwrap();
    out.finish().unwrap()
}

/// The text, or the error's message, wherever it came from.
fn read(bytes: &[u8], unlock: &BackupUnlock) -> Result<Vec<u8>, String> {
    let mut input = decrypt(bytes, unlock).map_err(|error| error.to_string())?;
    let mut text = vec![];
    input.read_to_end(&mut text).map_err(|error| error.to_string())?;
    Ok(text)
}

#[track_caller]
fn check(got: Result<Vec<u8>, String>, expected: &str) {
    let error = got.map(|text| text.len()).unwrap_err();
    assert!(error.contains(expected), "{error:?} is not {expected:?}");
}

fn pair() -> (BackupLock, BackupUnlock) {
    let key = BackupKey::generate().unwrap();
    (BackupLock::Recipient(key.recipient().unwrap()), BackupUnlock::Key(key))
}

#[test]
fn a_passphrase_opens_what_it_closed() {
    let lock = BackupLock::Passphrase(phrase("correct horse"));
    let bytes = written(&lock, b"state");
    let right = BackupUnlock::Passphrase(phrase("correct horse"));
    assert_eq!(read(&bytes, &right), Ok(b"state".to_vec()));
    let wrong = BackupUnlock::Passphrase(phrase("correct house"));
    check(read(&bytes, &wrong), "the passphrase is not the one of this backup");
    check(read(&bytes, &pair().1), "encrypted by a passphrase, not for a key");
    check(read(&written(&pair().0, b"x"), &right), "encrypted for a key, not by a passphrase");
    let empty = encrypt(vec![], &BackupLock::Passphrase(phrase("")), &SystemRng);
    assert!(matches!(empty.err(), Some(BackupError::EmptyPassphrase)));
    // A head that would take all of the machine.
    for at in [43, 47, 51] {
        let mut greedy = bytes.clone();
        greedy[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        check(read(&greedy, &right), "more memory or time");
        greedy[at..at + 4].copy_from_slice(&0u32.to_le_bytes());
        check(read(&greedy, &right), "more memory or time");
    }
}

#[test]
fn any_length_survives() {
    let (lock, unlock) = pair();
    for len in [0, 1, CHUNK_LEN - 1, CHUNK_LEN, CHUNK_LEN + 1, 3 * CHUNK_LEN, 200_001] {
        let text: Vec<u8> = (0u32..).map(|n| n.to_le_bytes()[0]).take(len).collect();
        let bytes = written(&lock, &text);
        assert_eq!(read(&bytes, &unlock), Ok(text.clone()), "{len}");
        assert!(!bytes.windows(40).any(|part| text.len() > 40 && part == &text[..40]));
        // In small pieces, too.
        let mut input = decrypt(&bytes[..], &unlock).unwrap();
        let (mut got, mut piece) = (vec![], [0; 1000]);
        loop {
            match input.read(&mut piece).unwrap() {
                0 => break,
                n => got.extend_from_slice(&piece[..n]),
            }
        }
        assert_eq!(got, text);
        assert_eq!(input.read(&mut piece).unwrap(), 0);
    }
}

#[test]
fn what_is_cut_or_changed_is_told() {
    let (lock, unlock) = pair();
    let text = vec![7; 2 * CHUNK_LEN + 100];
    let bytes = written(&lock, &text);
    let head = 43 + 32 + 48 + 16;
    let chunk = 4 + ROOM;
    for len in 0..8 {
        check(read(&bytes[..len], &unlock), "not a backup");
    }
    let cuts = [8, 42, 60, head - 1, head, head + 3, head + 4, head + chunk, head + 2 * chunk];
    for len in cuts.into_iter().chain([bytes.len() - 1]) {
        check(read(&bytes[..len], &unlock), "cut off");
    }
    let flips = [
        (0, "not a backup"),
        (8, "version 0"),
        (10, "by a passphrase"),
        (20, "not the one that this backup is for"),
        (50, "not the one that this backup is for"),
        (100, "not the one that this backup is for"),
        (head - 1, "not the one that this backup is for"),
        (head, "damaged at chunk 1"),
        (head + 50, "damaged at chunk 1"),
        (head + chunk + 3, "damaged at chunk 2"),
        (bytes.len() - 1, "damaged at chunk 3"),
    ];
    for (at, expected) in flips {
        let mut bad = bytes.clone();
        bad[at] ^= 1;
        check(read(&bad, &unlock), expected);
    }
    check(read(&[&bytes[..], b"x"].concat(), &unlock), "damaged at chunk 4");
    // Chunks in another order.
    let swapped = [
        &bytes[..head],
        &bytes[head + chunk..head + 2 * chunk],
        &bytes[head..head + chunk],
        &bytes[head + 2 * chunk..],
    ];
    check(read(&swapped.concat(), &unlock), "damaged at chunk 1");
    check(read(&bytes, &pair().1), "not the one that this backup is for");
    check(read(b"", &unlock), "not a backup");
    check(read(&[b'x'; 4096], &unlock), "not a backup");
    // Never finished: what was written does not count as a backup.
    let mut out = vec![];
    encrypt(&mut out, &lock, &SystemRng).unwrap().write_all(&text).unwrap();
    check(read(&out, &unlock), "cut off");
}

/// Gives up after some bytes, as a full disk does.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_passed_on() {
    let (lock, _) = pair();
    assert!(matches!(encrypt(Full(10), &lock, &SystemRng).err(), Some(BackupError::Write(_))));
    let mut out = encrypt(Full(1000), &lock, &SystemRng).unwrap();
    let error = out.write_all(&[0; 2 * CHUNK_LEN]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    let mut out = encrypt(Full(1000), &lock, &SystemRng).unwrap();
    out.write_all(&[0; 2000]).unwrap();
    assert!(matches!(out.finish().err(), Some(BackupError::Write(_))));
}

proptest! {
    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 1..3u8) {
        let (_, unlock) = pair();
        prop_assert!(read(&bytes, &unlock).is_err());
        let head = [&b"WRNBKUP\0\x01\0"[..], &[kind], &bytes].concat();
        prop_assert!(read(&head, &unlock).is_err());
    }
}
