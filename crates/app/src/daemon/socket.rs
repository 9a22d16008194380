//! The unix socket that commands talk to.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::cli::failure::Failure;

/// Members may use the socket: that is as good as being root.
const GROUP: &str = "warren";
/// `sun_path` holds 108 bytes, one of them the end.
const PATH_MAX: usize = 107;

/// Listens at `path`. The caller holds the lock of the folder, so whatever is
/// there is left over. Nobody sees the socket before its permissions are right.
pub(crate) fn bind(path: &Path) -> Result<UnixListener, Failure> {
    check(path)?;
    let fresh = fresh(path);
    listen(path, &fresh).map_err(|e| Failure::failed(format!("listen at {}: {e}", path.display())))
}

/// Whether a socket can be at `path` at all: asked before anything is made that would then be
/// of no use.
pub(crate) fn check(path: &Path) -> Result<(), Failure> {
    let excess = fresh(path).as_os_str().len().saturating_sub(PATH_MAX);
    if excess == 0 {
        return Ok(());
    }
    let (shown, most) = (path.display(), path.as_os_str().len() - excess);
    Err(Failure::input(format!("--run-dir: the socket's path {shown} is longer than {most} bytes"))
        .hint("choose a shorter folder, such as /run/warren"))
}

/// Where the socket is until its permissions are right.
fn fresh(path: &Path) -> PathBuf {
    path.with_extension("new")
}

fn listen(path: &Path, fresh: &Path) -> std::io::Result<UnixListener> {
    if fresh.exists() {
        fs::remove_file(fresh)?;
    }
    let listener = UnixListener::bind(fresh)?;
    fs::set_permissions(fresh, Permissions::from_mode(0o660))?;
    if let Some(group) = group_id(&fs::read_to_string("/etc/group").unwrap_or_default(), GROUP) {
        std::os::unix::fs::chown(fresh, None, Some(group))?;
    }
    fs::rename(fresh, path)?;
    Ok(listener)
}

/// The number of a group. The file is read here because libc's lookup loads
/// shared objects, which a static program must not.
fn group_id(file: &str, name: &str) -> Option<u32> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups() {
        let file = "root:x:0:\nwarrens:x:7:\nwarren:x:990:a,b\n";
        assert_eq!(group_id(file, "warren"), Some(990));
        assert_eq!(group_id(file, "docker"), None);
        assert_eq!(group_id("warren:x\n", "warren"), None);
    }

    #[tokio::test]
    async fn replaces_what_is_left_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("warren.sock");
        drop(bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let (connected, accepted) =
            tokio::join!(tokio::net::UnixStream::connect(&path), listener.accept());
        assert!(connected.is_ok() && accepted.is_ok());
        let long = dir.path().join("x".repeat(120));
        assert_eq!(bind(&long).err().unwrap().exit.code(), 2);
    }
}
