//! Devices of the machine that a container is given: which ones they are.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use warren_shim::message;

use super::cgroup::Rule;
use crate::{ContainerSpec, Device, Error};

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

/// Of one container: a node of hundreds of disks has some thousands.
const COUNT_MAX: usize = 8192;
/// Folders within /dev, one in another.
const DEPTH_MAX: usize = 8;

/// What containers have in their /dev whatever they are, or must have of their own.
const OWN: [&str; 13] = [
    "/dev/console",
    "/dev/fd",
    "/dev/full",
    "/dev/mqueue",
    "/dev/null",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/random",
    "/dev/shm",
    "/dev/stdin",
    "/dev/tty",
    "/dev/urandom",
    "/dev/zero",
];

/// Puts the devices that a folder has in its place, and all of the machine's into a privileged
/// container, beside those that are named.
///
/// # Errors
/// [`Error::Rejected`] when there are too many.
pub(crate) fn expand(spec: &mut ContainerSpec) -> Result<(), Error> {
    let mut devices = Vec::with_capacity(spec.devices.len());
    for device in std::mem::take(&mut spec.devices) {
        let folder = device.host_path.clone();
        match folder.is_dir() {
            true => within(&folder, &device, &mut devices, 0)?,
            false => devices.push(device),
        }
    }
    if spec.privileges.privileged {
        let all = Device {
            path: "/dev".to_owned(),
            host_path: "/dev".into(),
            read: true,
            write: true,
            mode: None,
            uid: None,
            gid: None,
        };
        let mut found = Vec::new();
        within(Path::new("/dev"), &all, &mut found, 0)?;
        let named: BTreeSet<String> = devices.iter().map(|device| device.path.clone()).collect();
        devices.extend(found.into_iter().filter(|device| !named.contains(&device.path)));
    }
    spec.devices = devices;
    Ok(())
}

/// All below a folder but links: of those one cannot tell where they lead.
fn within(folder: &Path, of: &Device, found: &mut Vec<Device>, depth: usize) -> Result<(), Error> {
    let shown = folder.display();
    let failed =
        |error: io::Error| Error::Rejected(format!("devices of this node in {shown}: {error}"));
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(failed)?);
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if OWN.iter().any(|own| path == Path::new(own)) {
            continue;
        }
        let inner = Device {
            path: format!("{}/{name}", of.path.trim_end_matches('/')),
            host_path: path.clone(),
            ..of.clone()
        };
        if kind.is_dir() && depth < DEPTH_MAX {
            within(&path, &inner, found, depth + 1)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            found.push(inner);
        }
        if found.len() > COUNT_MAX {
            return Err(Error::Rejected(format!("{shown} has more than {COUNT_MAX} devices")));
        }
    }
    Ok(())
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
