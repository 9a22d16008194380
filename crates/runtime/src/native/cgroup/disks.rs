//! The pace of disks and the weights of both versions: whose they are, and how they are written.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::{fs, io};

use super::{is_gone, set};
use crate::{Error, IoKind, IoLimit, Limits};

/// A limit with its device as the kernel numbers it.
pub(super) struct Paced {
    pub(super) kind: IoKind,
    /// `8:0`.
    pub(super) device: String,
    pub(super) rate: u64,
}

/// Looks the devices up.
///
/// # Errors
/// [`Error::Rejected`] for a path that is none of a block device.
pub(super) fn paced(limits: &[IoLimit]) -> Result<Vec<Paced>, Error> {
    limits
        .iter()
        .map(|limit| {
            let device = number(&limit.device)?;
            Ok(Paced { kind: limit.kind, device, rate: limit.rate })
        })
        .collect()
}

fn number(path: &Path) -> Result<String, Error> {
    let shown = path.display();
    match fs::metadata(path) {
        Ok(about) if about.file_type().is_block_device() => {
            let device = about.rdev();
            Ok(format!("{}:{}", libc::major(device), libc::minor(device)))
        }
        Ok(_) => Err(Error::Rejected(format!("{shown} is not a block device of this node"))),
        Err(error) => Err(Error::Rejected(format!("device {shown} of this node: {error}"))),
    }
}

/// Writes a setting into the first of some files that there is: kernels and schedulers differ.
pub(super) fn set_one(files: &[(&Path, String)], what: &str) -> Result<(), Error> {
    for (file, value) in files {
        match set(file, value, what) {
            Err(Error::Io { source, .. }) if is_gone(&source) => {}
            other => return other,
        }
    }
    Err(Error::Unsupported(format!("this kernel has no {what}: neither its scheduler nor iocost")))
}

/// Whether a container needs more than what all have.
pub(super) fn needs_cpuset(limits: &Limits) -> bool {
    limits.cpuset_cpus.is_some() || limits.cpuset_mems.is_some()
}

pub(super) fn needs_io(limits: &Limits) -> bool {
    limits.io_weight.is_some() || !limits.io.is_empty()
}

/// A wrong list of processors is the specification's fault, not the machine's.
pub(super) fn set_list(file: &Path, value: &str, what: &str) -> Result<(), Error> {
    match set(file, value, what) {
        Err(Error::Io { source, .. }) if is_refused(&source) => {
            Err(Error::Rejected(format!("{what} {value}: this node has no such ones")))
        }
        other => other,
    }
}

fn is_refused(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ERANGE | libc::EACCES | libc::ENOSPC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices() {
        let limit = |path: &str| IoLimit { kind: IoKind::ReadBps, device: path.into(), rate: 1 };
        for (path, expected) in [
            ("/dev/null", "/dev/null is not a block device of this node"),
            ("/dev/warren-none", "device /dev/warren-none of this node: No such file"),
        ] {
            let error = paced(&[limit(path)]).err().unwrap().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_first_file_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let files = ["a", "b"].map(|name| folder.path().join(name));
        set_one(&[(&files[0], "1".into()), (&files[1], "2".into())], "weight").unwrap();
        assert_eq!(fs::read_to_string(&files[0]).unwrap(), "1");
        let gone = folder.path().join("none/a");
        let error = set_one(&[(&gone, "1".into())], "weight of disks").unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }
}
