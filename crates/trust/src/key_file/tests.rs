//! Every way in which a key file can be wrong, and locking.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use warren_base::rng::SystemRng;

use super::*;

fn written(bytes: &[u8], mode: u32) -> Result<KeyFile, KeyFileError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    KeyFile::read(&path)
}

fn name(result: Result<KeyFile, KeyFileError>) -> &'static str {
    match result {
        Ok(_) => "ok",
        Err(KeyFileError::Missing { .. }) => "missing",
        Err(KeyFileError::Exists { .. }) => "exists",
        Err(KeyFileError::Read { .. }) => "read",
        Err(KeyFileError::Write { .. }) => "write",
        Err(KeyFileError::TooOpen { .. }) => "open",
        Err(KeyFileError::Shape { .. }) => "shape",
        Err(KeyFileError::Version { .. }) => "version",
        Err(KeyFileError::Damaged { .. }) => "damaged",
        Err(KeyFileError::Locked { .. }) => "locked",
        Err(KeyFileError::Changed { .. }) => "changed",
        Err(KeyFileError::WrongUnlockKey { .. }) => "wrong key",
    }
}

#[test]
fn a_new_key_is_read_back_and_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/keys/node.key");
    assert_eq!(name(KeyFile::read(&path)), "missing");
    let made = KeyFile::create(&path, &SystemRng).unwrap();
    let read = KeyFile::read(&path).unwrap();
    assert_eq!(made.secret(), read.secret());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(name(KeyFile::create(&path, &SystemRng)), "exists");
    assert_eq!(KeyFile::read_or_create(&path, &SystemRng).unwrap().secret(), made.secret());
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused() {
    let good = to_text(&[7; 32]);
    let good = good.as_bytes();
    assert_eq!(name(written(good, 0o600)), "ok");
    assert_eq!(name(written(good, 0o400)), "ok");
    assert_eq!(name(written(good, 0o640)), "open");
    // Without its line end it is still whole.
    for len in 0..good.len() - 1 {
        assert_eq!(name(written(&good[..len], 0o600)), "shape", "cut at {len}");
    }
    for bit in 0..(good.len() - 1) * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        let got = name(written(&bad, 0o600));
        // Hex digits have two cases: such a flip changes nothing.
        let same = good.eq_ignore_ascii_case(&bad) && bit / 8 > TAG.len();
        assert_eq!(got == "ok", same, "bit {bit}: {got}");
    }
    assert_eq!(name(written(&[b'a'; 4096], 0o600)), "shape");
    assert_eq!(name(written(b"warren-key-2 00 00\n", 0o600)), "version");
}

#[test]
fn locked_files_are_checked_as_well() {
    let unlock = UnlockKey::from_bytes([9; 32]);
    let good = to_locked_text(&[7; 32], &unlock, &SystemRng);
    let good = good.as_bytes();
    assert_eq!(good.len(), 187);
    assert_eq!(name(written(good, 0o600)), "locked");
    assert_eq!(name(written(good, 0o644)), "open");
    for len in 0..good.len() - 1 {
        assert_eq!(name(written(&good[..len], 0o600)), "shape", "cut at {len}");
    }
    for bit in 0..(good.len() - 1) * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        let got = name(written(&bad, 0o600));
        let same = good.eq_ignore_ascii_case(&bad) && bit / 8 > LOCKED_TAG.len();
        assert_eq!(got == "locked", same, "bit {bit}: {got}");
    }
    assert_eq!(name(written(b"warren-locked-2 00 00\n", 0o600)), "version");
    let two = [good, good].concat();
    assert_eq!(name(written(&two[..LEN_MAX], 0o600)), "shape");
}

#[test]
fn locking_changes_the_file_and_not_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("node.key");
    let key = KeyFile::create(&path, &SystemRng).unwrap();
    let plain = fs::read(&path).unwrap();
    let hex = plain[TAG.len() + 1..][..64].to_vec();
    let (one, two) = (UnlockKey::from_bytes([1; 32]), UnlockKey::from_bytes([2; 32]));
    // What a crash left, and what is not ours.
    fs::write(dir.path().join("node.key.77.tmp"), &plain).unwrap();
    fs::write(dir.path().join("node.key.md"), b"notes").unwrap();
    assert!(!key.set_lock(None, &SystemRng).unwrap());
    assert!(key.set_lock(Some(&one), &SystemRng).unwrap());
    assert!(!key.set_lock(Some(&one), &SystemRng).unwrap());
    for entry in fs::read_dir(dir.path()).unwrap() {
        let text = fs::read(entry.unwrap().path()).unwrap();
        assert!(!text.windows(64).any(|window| window == hex), "the key is in the clear");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(name(KeyFile::read(&path)), "locked");
    assert_eq!(name(KeyFile::read_or_create(&path, &SystemRng)), "locked");
    assert_eq!(name(KeyFile::unlock(&path, &two)), "wrong key");
    let opened = KeyFile::unlock(&path, &one).unwrap();
    assert_eq!(opened.secret(), key.secret());
    // Another unlock key, by who holds the key in memory.
    assert!(opened.set_lock(Some(&two), &SystemRng).unwrap());
    assert_eq!(name(KeyFile::unlock(&path, &one)), "wrong key");
    assert!(key.set_lock(None, &SystemRng).unwrap());
    assert_eq!(fs::read(&path).unwrap(), plain);
    assert_eq!(KeyFile::unlock(&path, &one).unwrap().secret(), key.secret());
    // Somebody put another key there: it is not thrown away.
    let other = KeyFile { key: Zeroizing::new([5; 32]), path: path.clone() };
    let changed = |lock| other.set_lock(lock, &SystemRng).unwrap_err();
    assert!(matches!(changed(Some(&one)), KeyFileError::Changed { .. }));
    assert!(matches!(changed(None), KeyFileError::Changed { .. }));
    key.set_lock(Some(&one), &SystemRng).unwrap();
    assert!(matches!(changed(Some(&one)), KeyFileError::Changed { .. }));
    assert!(!KeyFile::in_memory([1; 32]).set_lock(Some(&one), &SystemRng).unwrap());
    fs::remove_file(&path).unwrap();
    assert!(matches!(changed(None), KeyFileError::Missing { .. }));
}

#[test]
fn a_key_behind_a_link_stays_where_it_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (vault, link) = (dir.path().join("vault.key"), dir.path().join("node.key"));
    KeyFile::create(&vault, &SystemRng).unwrap();
    std::os::unix::fs::symlink(&vault, &link).unwrap();
    let unlock = UnlockKey::from_bytes([1; 32]);
    KeyFile::read(&link).unwrap().set_lock(Some(&unlock), &SystemRng).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(name(KeyFile::read(&vault)), "locked");
}
