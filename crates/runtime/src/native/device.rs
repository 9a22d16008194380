//! Devices of the machine that a container is given: which ones they are.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use warren_shim::message;

use super::cgroup::Rule;
use crate::{Device, Error};

/// Permissions of a file, without its kind.
const MODE: u32 = 0o777;

/// A device file to be made, and what is allowed.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) rule: Rule,
    path: CString,
    mode: u32,
    owner: (u32, u32),
}

/// Looks them up on the machine.
///
/// # Errors
/// [`Error::Rejected`] naming the first that is none.
pub(crate) fn find(devices: &[Device]) -> Result<Vec<Node>, Error> {
    devices.iter().map(node).collect()
}

fn node(device: &Device) -> Result<Node, Error> {
    let shown = device.host_path.display();
    let about = fs::metadata(&device.host_path)
        .map_err(|error| Error::Rejected(format!("device {shown} of this node: {error}")))?;
    let kind = about.file_type();
    if !kind.is_block_device() && !kind.is_char_device() {
        return Err(Error::Rejected(format!("{shown} is not a device of this node")));
    }
    let path = CString::new(device.path.as_str());
    let path = path.map_err(|_| Error::Rejected("a device's path holds a NUL byte".to_owned()))?;
    Ok(Node {
        rule: Rule {
            is_block: kind.is_block_device(),
            major: libc::major(about.rdev()),
            minor: Some(libc::minor(about.rdev())),
            read: device.read,
            write: device.write,
        },
        path,
        mode: device.mode.unwrap_or_else(|| about.mode()) & MODE,
        owner: (
            device.uid.unwrap_or_else(|| about.uid()),
            device.gid.unwrap_or_else(|| about.gid()),
        ),
    })
}

impl Node {
    pub(crate) fn message(&self) -> message::Device<'_> {
        message::Device {
            is_block: self.rule.is_block,
            major: self.rule.major,
            minor: self.rule.minor.unwrap_or_default(),
            mode: self.mode,
            user: self.owner.0,
            group: self.owner.1,
            path: &self.path,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(host_path: &str, expected: &str) {
        let device = Device {
            path: "/dev/x".into(),
            host_path: host_path.into(),
            read: true,
            write: false,
            mode: None,
            uid: None,
            gid: Some(7),
        };
        let got = match find(&[device]) {
            Ok(found) => format!("{:?}", found[0].message()),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expected);
    }

    #[test]
    fn which_ones() {
        check(
            "/dev/zero",
            "Device { is_block: false, major: 1, minor: 5, mode: 438, user: 0, group: 7, path: \
             \"/dev/x\" }",
        );
        check("/dev", "/dev is not a device of this node");
        check("/dev/none", "device /dev/none of this node: No such file or directory (os error 2)");
    }
}
