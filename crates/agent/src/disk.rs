//! The file system that a node keeps its data on: how large, how much is free.
//!
//! Looked at when a node connects, never in between. What is free is rounded, so
//! that a node that connects again has seldom something new to say.

use std::path::Path;

/// Steps in which free space is told.
const STEPS: u64 = 128;

/// Size and free space, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    pub bytes: u64,
    /// For others than root; rounded down.
    pub free_bytes: u64,
}

/// The file system of `folder`, or of what it will be made in. Blocks as long as the file system
/// does.
pub fn disk(folder: &Path) -> Option<Disk> {
    let stat = folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok())?;
    let bytes = stat.f_blocks.saturating_mul(stat.f_frsize);
    Some(Disk { bytes, free_bytes: rounded(bytes, stat.f_bavail.saturating_mul(stat.f_frsize)) })
}

fn rounded(bytes: u64, free_bytes: u64) -> u64 {
    let step = (bytes / STEPS).max(1);
    free_bytes - free_bytes % step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_space_comes_in_steps() {
        for (bytes, free, told) in [
            (0, 0, 0),
            (100, 37, 37),
            (128 << 30, (5 << 30) + 77, 5 << 30),
            (128 << 30, (5 << 30) - 1, 4 << 30),
            (u64::MAX, u64::MAX, u64::MAX - u64::MAX % (u64::MAX / STEPS)),
        ] {
            assert_eq!(rounded(bytes, free), told);
        }
    }

    #[test]
    fn a_folder_that_is_not_there_yet_has_a_disk() {
        let folder = tempfile::tempdir().unwrap();
        let here = disk(folder.path()).unwrap();
        assert!(here.bytes > 0 && here.free_bytes <= here.bytes);
        let later = disk(&folder.path().join("a/b")).unwrap();
        assert_eq!(later.bytes, here.bytes);
    }
}
