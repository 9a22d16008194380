//! The merged view of unpacked layers, read without mounting anything.
//!
//! Follows overlayfs' rules: the topmost layer wins, whiteouts hide, opaque
//! folders end the search, folders merge. Symbolic links are followed inside
//! the image, never out of it. Steps are bounded.
//!
//! Not here: changes made by a running container (its upper folder is not a layer).

use std::ffi::OsStr;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::unpack::is_opaque;

/// As the kernel.
const LINKS_MAX: usize = 40;
/// Parts looked up for one path, links included: far beyond any real one.
const STEPS_MAX: usize = 4096;

/// Something in the image.
#[derive(Debug)]
pub enum Node {
    /// The real folders that merge here, topmost first.
    Dir(Vec<PathBuf>),
    /// Anything else: where it really lies.
    File(PathBuf, Metadata),
}

/// Layers, topmost first.
#[derive(Debug, Clone, Copy)]
pub struct Tree<'a> {
    layers: &'a [PathBuf],
}

impl<'a> Tree<'a> {
    pub fn new(layers: &'a [PathBuf]) -> Self {
        Self { layers }
    }

    /// What a path of the image leads to, links followed.
    pub fn lookup(&self, path: impl AsRef<[u8]>) -> io::Result<Option<Node>> {
        let mut stack = vec![self.layers.to_vec()];
        let mut todo: Vec<Vec<u8>> = parts(path.as_ref());
        let (mut links, mut steps) = (0, 0);
        while let Some(part) = todo.pop() {
            steps += 1;
            if steps > STEPS_MAX {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::LOOP.raw_os_error()));
            }
            if part == b".." {
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            let here = stack.last().map_or(&[][..], Vec::as_slice);
            match child(here, &part)? {
                None => return Ok(None),
                Some(Node::Dir(folders)) => stack.push(folders),
                Some(Node::File(path, metadata)) if metadata.is_symlink() => {
                    links += 1;
                    if links > LINKS_MAX {
                        let looped = rustix::io::Errno::LOOP.raw_os_error();
                        return Err(io::Error::from_raw_os_error(looped));
                    }
                    let target = std::fs::read_link(path)?;
                    let target = target.as_os_str().as_bytes();
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    todo.extend(parts(target));
                }
                // A file in the middle of a path leads nowhere.
                Some(file) => return Ok(todo.is_empty().then_some(file)),
            }
        }
        Ok(Some(Node::Dir(stack.pop().unwrap_or_default())))
    }

    /// A regular file's content, or nothing if there is no such file.
    pub fn read(&self, path: &str, len_max: u64) -> io::Result<Option<Vec<u8>>> {
        use std::io::Read;
        match self.lookup(path)? {
            Some(Node::File(path, metadata)) if metadata.is_file() => {
                let mut bytes = Vec::new();
                std::fs::File::open(path)?.take(len_max).read_to_end(&mut bytes)?;
                Ok(Some(bytes))
            }
            Some(Node::File(..) | Node::Dir(_)) | None => Ok(None),
        }
    }
}

/// Parts of a path, the first one last.
fn parts(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .rev()
        .map(<[u8]>::to_vec)
        .collect()
}

/// One step down, through real folders only: nothing on the way is a link.
fn child(folders: &[PathBuf], name: &[u8]) -> io::Result<Option<Node>> {
    let mut merged = Vec::new();
    for folder in folders {
        let path = folder.join(OsStr::from_bytes(name));
        let metadata = match path.symlink_metadata() {
            Ok(metadata) => metadata,
            Err(error) if is_absence(&error) => continue,
            Err(error) => return Err(error),
        };
        if metadata.file_type().is_char_device() && metadata.rdev() == 0 {
            break;
        }
        if !metadata.is_dir() {
            if merged.is_empty() {
                return Ok(Some(Node::File(path, metadata)));
            }
            break;
        }
        let ends = is_opaque(Path::new(&path));
        merged.push(path);
        if ends {
            break;
        }
    }
    Ok(if merged.is_empty() { None } else { Some(Node::Dir(merged)) })
}

fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidFilename
            | io::ErrorKind::InvalidInput
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{FileType, Mode, XattrFlags};
    use std::fs;
    use std::os::unix::fs::symlink;

    /// Two layers: the upper one hides, replaces and merges.
    fn layers(dir: &Path) -> Vec<PathBuf> {
        let (top, base) = (dir.join("top"), dir.join("base"));
        fs::create_dir_all(base.join("etc/old")).unwrap();
        fs::create_dir_all(base.join("usr/bin")).unwrap();
        fs::create_dir_all(base.join("opq/inner")).unwrap();
        fs::write(base.join("etc/passwd"), "base").unwrap();
        fs::write(base.join("etc/gone"), "x").unwrap();
        fs::write(base.join("usr/bin/sh"), "sh").unwrap();
        symlink("usr/bin", base.join("bin")).unwrap();
        symlink("../../../../../../etc/passwd", base.join("escape")).unwrap();
        symlink("/etc/passwd", base.join("absolute")).unwrap();
        symlink("loop", base.join("loop")).unwrap();
        fs::create_dir_all(top.join("etc")).unwrap();
        fs::create_dir_all(top.join("opq")).unwrap();
        fs::write(top.join("etc/passwd"), "top").unwrap();
        let gone = top.join("etc/gone");
        rustix::fs::mknodat(rustix::fs::CWD, &gone, FileType::CharacterDevice, Mode::empty(), 0)
            .unwrap();
        rustix::fs::setxattr(top.join("opq"), "trusted.overlay.opaque", b"y", XattrFlags::empty())
            .unwrap();
        vec![top, base]
    }

    #[test]
    fn layers_merge_as_overlayfs_does() {
        let dir = tempfile::tempdir().unwrap();
        let layers = layers(dir.path());
        let tree = Tree::new(&layers);
        let read = |path: &str| {
            tree.read(path, 100).unwrap().map(|bytes| String::from_utf8(bytes).unwrap())
        };
        assert_eq!(read("/etc/passwd").as_deref(), Some("top"));
        assert_eq!(read("escape").as_deref(), Some("top"));
        assert_eq!(read("absolute").as_deref(), Some("top"));
        assert_eq!(read("/bin/sh").as_deref(), Some("sh"));
        assert_eq!(read("/bin/../bin/./sh").as_deref(), Some("sh"));
        assert_eq!(read("/../../usr/bin/sh").as_deref(), Some("sh"));
        assert_eq!(read("/etc/gone"), None);
        assert_eq!(read("/etc"), None);
        assert_eq!(read("/bin/sh/x"), None);
        assert_eq!(read(&format!("/{}", "n".repeat(300))), None);
        assert!(tree.lookup("/etc/old").unwrap().is_some());
        assert!(tree.lookup("/opq/inner").unwrap().is_none());
        assert!(tree.lookup("/loop").is_err());
        assert!(tree.lookup("/a/".repeat(5000)).unwrap().is_none());
        assert!(matches!(tree.lookup("/etc").unwrap(), Some(Node::Dir(both)) if both.len() == 2));
        assert!(matches!(tree.lookup("/").unwrap(), Some(Node::Dir(both)) if both.len() == 2));
    }
}
