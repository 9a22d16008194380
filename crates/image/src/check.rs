//! Whether an image can run what a service asks for, before the service is accepted.
//!
//! Looks through the unpacked layers as a container would: whiteouts hide, links
//! stay inside, steps are bounded. Reads a few files: not for the event loop.
//!
//! Not here: what mounts bring. Whoever mounts a volume over a path knows that
//! this says nothing about it.

use crate::Image;
use crate::tree::{Node, Tree};

/// Of passwd and group files; more is not read.
const ACCOUNTS_LEN_MAX: u64 = 4 << 20;
/// As Docker: ids are signed 32-bit numbers.
const ID_MAX: u32 = i32::MAX as u32;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no command: neither the service nor the image names one")]
    NoCommand,
    #[error("command {program:?} is not in the image")]
    NoProgram { program: String },
    #[error("command {program:?} is in none of the folders of PATH ({path})")]
    NotInPath { program: String, path: String },
    #[error("command {program:?} is a folder")]
    IsFolder { program: String },
    #[error("command {program:?} is not executable")]
    NotExecutable { program: String },
    #[error("user {user:?} is not in the image's /etc/passwd")]
    NoUser { user: String },
    #[error("group {group:?} is not in the image's /etc/group")]
    NoGroup { group: String },
    #[error("user or group {id:?} is not in the range 0-{ID_MAX}")]
    IdRange { id: String },
    #[error("working directory {workdir:?} is a file in the image")]
    WorkdirIsFile { workdir: String },
    #[error("working directory {workdir:?} is not absolute")]
    WorkdirRelative { workdir: String },
    #[error("{path:?} in the image cannot be read: {problem}")]
    Unreadable { path: String, problem: String },
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoCommand => "write the command after the image's name",
            Self::NoProgram { .. } | Self::NotInPath { .. } => {
                "check the spelling; the program must be in the image, or write its full path"
            }
            Self::IsFolder { .. } | Self::NotExecutable { .. } => {
                "name a program: a regular file with an x bit"
            }
            Self::NoUser { .. } | Self::NoGroup { .. } => {
                "use a name that the image knows, or a number, as in 1000:1000"
            }
            Self::IdRange { .. } => "use a smaller number",
            Self::WorkdirIsFile { .. } | Self::WorkdirRelative { .. } => {
                "name a folder, from / on; it is made if it is missing"
            }
            Self::Unreadable { .. } => "pull the image again",
        }
    }
}

/// Checks the program `args[0]`, the user and the working directory; empty user and
/// workdir mean the image's defaults of root and `/`. `path_env` is the value of PATH.
pub fn check(
    image: &Image,
    user: &str,
    workdir: &str,
    args: &[String],
    path_env: &str,
) -> Result<(), Error> {
    let tree = Tree::new(&image.layers);
    check_workdir(tree, workdir)?;
    check_user(tree, user)?;
    match args.first().map(String::as_str) {
        None | Some("") => Err(Error::NoCommand),
        Some(program) => check_program(tree, workdir, program, path_env),
    }
}

fn lookup(tree: Tree<'_>, path: &str) -> Result<Option<Node>, Error> {
    tree.lookup(path)
        .map_err(|error| Error::Unreadable { path: path.to_owned(), problem: error.to_string() })
}

fn check_workdir(tree: Tree<'_>, workdir: &str) -> Result<(), Error> {
    if workdir.is_empty() {
        return Ok(());
    }
    if !workdir.starts_with('/') {
        return Err(Error::WorkdirRelative { workdir: workdir.to_owned() });
    }
    // A file anywhere on the way is as bad as one at its end.
    let mut end = 0;
    while end < workdir.len() {
        end = workdir[end + 1..].find('/').map_or(workdir.len(), |next| end + 1 + next);
        match lookup(tree, &workdir[..end])? {
            Some(Node::Dir(_)) => {}
            Some(Node::File(..)) => {
                return Err(Error::WorkdirIsFile { workdir: workdir.to_owned() });
            }
            None => return Ok(()),
        }
    }
    Ok(())
}

fn check_program(
    tree: Tree<'_>,
    workdir: &str,
    program: &str,
    path_env: &str,
) -> Result<(), Error> {
    let named = || program.to_owned();
    if program.contains('/') {
        return match lookup(tree, &from(workdir, program))? {
            None => Err(Error::NoProgram { program: named() }),
            Some(Node::Dir(_)) => Err(Error::IsFolder { program: named() }),
            Some(file) if is_executable(&file) => Ok(()),
            Some(_) => Err(Error::NotExecutable { program: named() }),
        };
    }
    let mut found = None;
    for folder in path_env.split(':') {
        let candidate = from(workdir, &format!("{folder}/{program}"));
        match lookup(tree, &candidate)? {
            Some(file) if is_executable(&file) => return Ok(()),
            Some(Node::Dir(_)) | None => {}
            Some(Node::File(..)) => {
                found.get_or_insert(candidate);
            }
        }
    }
    match found {
        Some(program) => Err(Error::NotExecutable { program }),
        None => Err(Error::NotInPath { program: named(), path: path_env.to_owned() }),
    }
}

/// A path as seen from the working directory.
fn from(workdir: &str, path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("{workdir}/{path}") }
}

fn is_executable(node: &Node) -> bool {
    use std::os::unix::fs::PermissionsExt;
    match node {
        Node::File(_, metadata) => metadata.is_file() && metadata.permissions().mode() & 0o111 != 0,
        Node::Dir(_) => false,
    }
}

/// `name`, `1000`, `name:group`, `1000:1000`. Numbers need no account.
fn check_user(tree: Tree<'_>, user: &str) -> Result<(), Error> {
    if user.is_empty() {
        return Ok(());
    }
    let (name, group) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user, None),
    };
    if !is_number(name)? && !has_account(tree, "/etc/passwd", name)? {
        return Err(Error::NoUser { user: name.to_owned() });
    }
    match group {
        None => Ok(()),
        Some(group) if is_number(group)? || has_account(tree, "/etc/group", group)? => Ok(()),
        Some(group) => Err(Error::NoGroup { group: group.to_owned() }),
    }
}

fn is_number(text: &str) -> Result<bool, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(false);
    }
    match text.parse::<u32>() {
        Ok(id) if id <= ID_MAX => Ok(true),
        Ok(_) | Err(_) => Err(Error::IdRange { id: text.to_owned() }),
    }
}

/// Whether a line of that file starts with the name and a colon.
fn has_account(tree: Tree<'_>, path: &str, name: &str) -> Result<bool, Error> {
    let accounts = tree
        .read(path, ACCOUNTS_LEN_MAX)
        .map_err(|error| Error::Unreadable { path: path.to_owned(), problem: error.to_string() })?;
    let accounts = accounts.unwrap_or_default();
    Ok(!name.is_empty()
        && accounts.split(|byte| *byte == b'\n').any(|line| {
            line.split(|byte| *byte == b':').next() == Some(name.as_bytes()) && line.contains(&b':')
        }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ImageConfig;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

    struct Rig {
        _dir: tempfile::TempDir,
        image: Image,
    }

    fn rig() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        for folder in ["usr/bin", "etc", "data", "usr/bin/folder"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        symlink("usr/bin", root.join("bin")).unwrap();
        symlink("/usr/bin/sh", root.join("usr/bin/bash")).unwrap();
        symlink("../../../../../bin/cat", root.join("usr/bin/escape")).unwrap();
        for (name, mode) in [("sh", 0o755), ("plain", 0o644)] {
            let path = root.join("usr/bin").join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:33::/:\n").unwrap();
        fs::write(root.join("etc/group"), "root:x:0:\nstaff:x:50:\nbroken\n").unwrap();
        let image = Image {
            id: "sha256:0".into(),
            digest: None,
            layers: vec![root],
            config: ImageConfig::default(),
            platforms: std::collections::BTreeSet::new(),
            size_bytes: 0,
            devices_skipped: 0,
        };
        Rig { _dir: dir, image }
    }

    #[track_caller]
    fn run(rig: &Rig, user: &str, workdir: &str, program: &str, expected: &str) {
        let args = [program.to_owned()];
        let result = check(&rig.image, user, workdir, &args, PATH);
        let text = result.as_ref().map_or_else(Error::to_string, |()| "ok".to_owned());
        assert!(text.contains(expected), "{user} {workdir} {program}: {text}");
        if let Err(error) = result {
            assert!(!error.hint().is_empty());
        }
    }

    #[test]
    fn programs_are_found_as_the_kernel_would() {
        let rig = rig();
        run(&rig, "", "", "sh", "ok");
        run(&rig, "", "", "/bin/sh", "ok");
        run(&rig, "", "", "bash", "ok");
        run(&rig, "", "/usr", "bin/sh", "ok");
        run(&rig, "", "/usr/bin", "./sh", "ok");
        run(&rig, "", "", "nginx", "none of the folders of PATH");
        run(&rig, "", "", "/bin/nginx", "is not in the image");
        run(&rig, "", "", "escape", "none of the folders");
        run(&rig, "", "", "plain", "\"/usr/bin/plain\" is not executable");
        run(&rig, "", "", "/bin/plain", "not executable");
        run(&rig, "", "", "/usr/bin/folder", "is a folder");
        run(&rig, "", "", "folder", "none of the folders");
        run(&rig, "", "", "", "no command");
        assert_eq!(check(&rig.image, "", "", &[], PATH), Err(Error::NoCommand));
    }

    #[test]
    fn users_are_looked_up_in_the_image() {
        let rig = rig();
        for good in ["", "root", "web", "0", "12345", "web:staff", "web:77", "1:staff"] {
            run(&rig, good, "", "sh", "ok");
        }
        run(&rig, "nobody", "", "sh", "user \"nobody\" is not in");
        run(&rig, "web:nobody", "", "sh", "group \"nobody\" is not in");
        run(&rig, "web:", "", "sh", "group \"\"");
        run(&rig, ":staff", "", "sh", "user \"\"");
        run(&rig, "web:broken", "", "sh", "group \"broken\"");
        run(&rig, "2147483648", "", "sh", "range");
        run(&rig, "99999999999", "", "sh", "range");
    }

    #[test]
    fn workdirs_may_be_missing_but_no_files() {
        let rig = rig();
        for good in ["", "/", "/data", "/data/", "/new/deep", "/bin", "/bin//folder"] {
            run(&rig, "", good, "/bin/sh", "ok");
        }
        run(&rig, "", "/etc/passwd", "/bin/sh", "is a file");
        run(&rig, "", "/etc/passwd/sub", "/bin/sh", "is a file");
        run(&rig, "", "data", "/bin/sh", "not absolute");
    }
}
