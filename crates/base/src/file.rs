//! Files that are whole or absent, whatever happens: tmp, fsync, rename, fsync folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Replaces `path` by `bytes` with permissions `mode`. After a crash the old or
/// the new content is there, never a mixture.
///
/// # Errors
/// Whatever the file system says; the old file is untouched then.
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path.file_name().ok_or_else(|| io::Error::other("path has no file name"))?;
    let folder = path.parent().ok_or_else(|| io::Error::other("path has no folder"))?;
    let mut tmp_name = name.to_owned();
    tmp_name.push(format!(".{}.tmp", std::process::id()));
    let tmp = folder.join(tmp_name);
    let written = write_new(&tmp, bytes, mode).and_then(|()| fs::rename(&tmp, path));
    if let Err(error) = written {
        // The first error is the one to tell; a left-over tmp file is swept by its owner.
        let _ = fs::remove_file(&tmp);
        return Err(error);
    }
    sync_folder(folder)
}

fn write_new(tmp: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut file =
        OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(tmp)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes renames and creations in `folder` durable.
///
/// # Errors
/// Whatever the file system says.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn replaces_whole_files() {
        let dir = std::env::temp_dir().join(format!("warren-file-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join("a");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic(&path, b"two", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert!(write_atomic(&dir.join("missing/a"), b"", 0o600).is_err());
        fs::remove_dir_all(&dir).unwrap();
    }
}
