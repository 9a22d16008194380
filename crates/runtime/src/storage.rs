//! Folders of the node for mounts: found so that no link leads astray, filled from images.
//!
//! What is found is a descriptor ([`crate::Opened`]): whatever becomes of its path afterwards, it is
//! this folder or file that is mounted.
//!
//! Not here: which paths may be mounted and where volumes lie (the caller decides).
#![allow(unsafe_code)]

mod copy;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Opens a path of the host, links followed, and says where it really is.
///
/// # Errors
/// Of the system, `NotFound` when nothing is there; links of /proc to what processes have open are
/// not followed.
pub fn open_real(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    let real = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    Ok((file, real))
}

/// Opens what is at a path below a folder; links and `..` never lead out of it.
///
/// # Errors
/// Of the system, `NotFound` when nothing is there.
pub fn open_below(folder: &Path, path: &str) -> io::Result<OwnedFd> {
    let folder = File::open(folder)?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(&folder, path, flags, Mode::empty(), resolve)?)
}

/// Gives the empty folder `into` what an image has at `path`: content, owner and mode, as Docker
/// does for a new volume. Without such a folder in the image nothing is done.
///
/// Waits for the disk: call it where that is no harm.
///
/// # Errors
/// Of the system; `into` may hold a part by then.
pub fn populate(layers: &[PathBuf], path: &str, into: &Path) -> io::Result<()> {
    let into = File::open(into)?;
    let (layers, path) = (layers.to_vec(), path.to_owned());
    // Its mounts are this thread's alone, and vanish with it.
    let thread = std::thread::Builder::new().name("populate".to_owned());
    let work = thread.spawn(move || populate_here(&layers, &path, &into))?;
    work.join().unwrap_or_else(|_| Err(io::Error::other("the copying thread panicked")))
}

fn populate_here(layers: &[PathBuf], path: &str, into: &File) -> io::Result<()> {
    let root = merged(layers)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match openat2(&root, path, flags, Mode::empty(), resolve) {
        // Nothing there, or no folder: then it is the mount that fails, and says why.
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(folder) => copy::folder(&folder, into.as_fd(), 0),
    }
}

/// All layers as one folder, in a mount namespace of this thread's own.
fn merged(layers: &[PathBuf]) -> io::Result<OwnedFd> {
    let [first, _, ..] = layers else {
        let only = layers.first().ok_or(io::ErrorKind::InvalidInput)?;
        return Ok(File::open(only)?.into());
    };
    // SAFETY: this thread was made for it, ends soon and holds no path that is relative; the table
    // of descriptors stays shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    // Opened in the new namespace: the kernel takes no layer from another one's mounts.
    let place = std::fs::canonicalize(first)?;
    let layers: Vec<File> = layers.iter().map(File::open).collect::<io::Result<_>>()?;
    let lower = layers.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd()));
    let lower = lower.collect::<Vec<_>>().join(":");
    let options = format!("redirect_dir=nofollow,metacopy=off,index=off,lowerdir={lower}");
    let options = CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
    // Over the first layer: any folder will do, and nobody else sees it.
    mount("overlay", &place, "overlay", MountFlags::RDONLY, options.as_c_str())?;
    Ok(File::open(&place)?.into())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn links_stay_within_a_folder() {
        let host = tempfile::tempdir().unwrap();
        let volume = host.path().join("volume");
        fs::create_dir_all(volume.join("sub")).unwrap();
        fs::write(host.path().join("secret"), "outside").unwrap();
        symlink("../secret", volume.join("up")).unwrap();
        symlink(host.path().join("secret"), volume.join("far")).unwrap();
        symlink("/sub", volume.join("home")).unwrap();
        assert!(open_below(&volume, "sub").is_ok());
        assert!(open_below(&volume, "home").is_ok(), "its root is the volume's");
        for out in ["up", "far", "../secret", "none"] {
            let error = open_below(&volume, out).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{out}");
        }
    }

    #[test]
    fn where_a_path_really_is() {
        let host = tempfile::tempdir().unwrap();
        let real = host.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        symlink(&real, host.path().join("link")).unwrap();
        assert_eq!(open_real(&host.path().join("link")).unwrap().1, real);
        let missing = open_real(&host.path().join("none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        let magic = format!("/proc/self/fd/{}", File::open(&real).unwrap().as_raw_fd());
        assert!(open_real(Path::new(&magic)).is_err());
    }

    #[test]
    fn one_layer_is_copied_whole() {
        let host = tempfile::tempdir().unwrap();
        let (layer, into) = (host.path().join("layer"), host.path().join("into"));
        fs::create_dir_all(layer.join("data/deep")).unwrap();
        fs::create_dir(&into).unwrap();
        fs::write(layer.join("data/deep/file"), "content").unwrap();
        fs::set_permissions(layer.join("data"), fs::Permissions::from_mode(0o2750)).unwrap();
        fs::set_permissions(layer.join("data/deep/file"), fs::Permissions::from_mode(0o640))
            .unwrap();
        symlink("/etc/passwd", layer.join("data/link")).unwrap();
        symlink("data", layer.join("home")).unwrap();
        let layers = [layer.clone()];
        populate(&layers, "/home", &into).unwrap();
        assert_eq!(fs::read_to_string(into.join("deep/file")).unwrap(), "content");
        assert_eq!(fs::read_link(into.join("link")).unwrap(), Path::new("/etc/passwd"));
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(&into), mode(&into.join("deep/file"))), (0o2750, 0o640));
        let before = fs::metadata(layer.join("data/deep/file")).unwrap().mtime();
        assert_eq!(fs::metadata(into.join("deep/file")).unwrap().mtime(), before);
        // Nothing there: nothing is done.
        let empty = host.path().join("empty");
        fs::create_dir(&empty).unwrap();
        populate(&layers, "/none", &empty).unwrap();
        populate(&layers, "/data/deep/file", &empty).unwrap();
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    }
}
