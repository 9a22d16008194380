//! Folders that the containers of one task have in common.
//!
//! Such a folder is empty when the task begins, is on the task's node, survives restarts of its
//! containers, and goes with the task. Whoever mounts the same name sees the same folder.

use std::fmt;

use super::{CompanionName, SpecError, TaskTemplate, wrong};

/// A folder of the task as one of its containers sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFolder {
    /// Within the task; formed as names of containers are.
    pub name: CompanionName,
    /// Where it is in the container: an absolute path.
    pub target: String,
    pub read_only: bool,
}

/// `scratch:/work`, `scratch:/work:ro`.
impl fmt::Display for SharedFolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let only = if self.read_only { ":ro" } else { "" };
        write!(f, "{}:{}{only}", self.name, self.target)
    }
}

impl SharedFolder {
    /// Of a path in the kernel.
    pub const TARGET_MAX: usize = 4095;

    pub fn text_len(&self) -> usize {
        self.name.as_str().len() + self.target.len()
    }
}

impl TaskTemplate {
    /// Folders of one container.
    pub const SHARED_MAX: usize = 16;

    pub(super) fn check_shared(&self) -> Result<(), SpecError> {
        let count = self.shared.len();
        if count > Self::SHARED_MAX {
            return Err(wrong("mount", count, format!("is more than {}", Self::SHARED_MAX)));
        }
        for (at, folder) in self.shared.iter().enumerate() {
            let target = &folder.target;
            let mut parts = target.split('/').skip(1);
            let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
            let good = target.starts_with('/') && parts.all(plain) && !target.contains('\0');
            if !good || target.len() > SharedFolder::TARGET_MAX {
                let problem = "has no absolute path below /, without . and .., for its target";
                return Err(wrong("mount", folder, problem));
            }
            if self.shared[..at].iter().any(|other| other.target == *target) {
                return Err(wrong("mount", folder, "has the target of another one"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let check = |targets: &[&str]| {
            let shared = targets.iter().map(|target| SharedFolder {
                name: "scratch".parse().unwrap(),
                target: (*target).to_owned(),
                read_only: false,
            });
            TaskTemplate { shared: shared.collect(), ..TaskTemplate::default() }.check_shared()
        };
        assert_eq!(check(&["/a", "/b/c"]), Ok(()));
        for bad in ["", "/", "a", "/a/", "/a//b", "/a/../b", "/./a"] {
            assert!(check(&[bad]).is_err(), "{bad}");
        }
        let error = check(&["/a", "/a"]).unwrap_err().to_string();
        assert_eq!(error, "mount: \"scratch:/a\" has the target of another one");
        assert!(check(&["/a"; 17]).is_err());
    }
}
