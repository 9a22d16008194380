//! What is mounted into containers: paths of the node, volumes, memory.
//!
//! Sources, targets, labels and subpaths may be templates ([`super::expand`]). What they come to is
//! known on the node alone, which asks the same rules again ([`Mount::check_filled`]).
//!
//! Not here: whether a path of the node may be mounted (`cluster::BindRule`, and the node that
//! knows where links lead), where volumes lie (`agent::volumes`).

use std::collections::BTreeMap;
use std::fmt;

use super::expand;
use super::rules::check_template;
use super::{SpecError, TaskTemplate, check_labels, wrong};

/// One mount of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the container.
    pub target: String,
    pub read_only: bool,
    pub kind: MountKind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    Bind(Bind),
    Volume(Volume),
    Tmpfs(Tmpfs),
}

/// A folder or file of the node, which must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    pub source: String,
    /// With what is mounted below it.
    pub recursive: bool,
    /// Mounts that the node makes below it later are seen, too (`rslave`).
    pub follows: bool,
}

/// A folder that the node keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// `None`: one of the task's own, which goes with it.
    pub name: Option<String>,
    /// A new one gets what the image has at its target.
    pub copy: bool,
    /// Of a new one.
    pub labels: BTreeMap<String, String>,
    /// What is mounted of it; it must be there.
    pub subpath: Option<String>,
}

/// Memory, which counts as the container's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tmpfs {
    /// `None`: half of the machine's memory, which is the kernel's default.
    pub size_bytes: Option<u64>,
    /// `None`: [`Tmpfs::MODE`].
    pub mode: Option<u32>,
    /// Programs in it may be executed.
    pub exec: bool,
}

impl Tmpfs {
    /// Docker's: as of /tmp.
    pub const MODE: u32 = 0o1777;
}

impl Default for Volume {
    fn default() -> Self {
        Self { name: None, copy: true, labels: BTreeMap::new(), subpath: None }
    }
}

impl Volume {
    /// A folder's name has 255 bytes; what is being made has a longer one.
    pub const NAME_MAX: usize = 200;
}

/// Whether a text can name a volume, as Docker has it.
pub fn is_volume_name(name: &str) -> bool {
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.len() <= Volume::NAME_MAX
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(rest)
}

/// Whether a path is absolute, below `/`, and has no part that means another folder.
pub fn is_plain_path(path: &str) -> bool {
    let mut parts = path.split('/').skip(1);
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.starts_with('/') && path.len() <= Mount::PATH_MAX && parts.all(plain) && no_zero(path)
}

fn no_zero(text: &str) -> bool {
    !text.contains('\0')
}

/// As a short form: `data:/srv:ro`, `tmpfs:/tmp`.
impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let only = if self.read_only { ":ro" } else { "" };
        match &self.kind {
            MountKind::Bind(bind) => write!(f, "{}:{}{only}", bind.source, self.target),
            MountKind::Volume(Volume { name: Some(name), .. }) => {
                write!(f, "{name}:{}{only}", self.target)
            }
            MountKind::Volume(_) => write!(f, "{}{only}", self.target),
            MountKind::Tmpfs(_) => write!(f, "tmpfs:{}{only}", self.target),
        }
    }
}

impl Mount {
    /// Of a path in the kernel.
    pub const PATH_MAX: usize = 4095;
    /// Labels of one volume.
    pub const LABELS_MAX: usize = 64;

    pub fn text_len(&self) -> usize {
        let kind = match &self.kind {
            MountKind::Bind(bind) => bind.source.len(),
            MountKind::Volume(Volume { name, labels, subpath, copy: _ }) => {
                let labels = labels.iter().map(|(key, value)| key.len() + value.len() + 6);
                name.as_ref().map_or(0, String::len)
                    + subpath.as_ref().map_or(0, String::len)
                    + labels.sum::<usize>()
            }
            MountKind::Tmpfs(_) => 0,
        };
        self.target.len() + kind
    }

    /// All texts that may be templates.
    fn texts(&self) -> impl Iterator<Item = &String> {
        let (name, volume) = match &self.kind {
            MountKind::Bind(bind) => (Some(&bind.source), None),
            MountKind::Volume(volume) => (volume.name.as_ref(), Some(volume)),
            MountKind::Tmpfs(_) => (None, None),
        };
        let more = volume.into_iter().flat_map(|v| v.labels.values().chain(&v.subpath));
        std::iter::once(&self.target).chain(name).chain(more)
    }

    /// With everything filled in.
    #[must_use]
    pub fn filled(&self, facts: &expand::Facts<'_>) -> Self {
        let fill = |text: &String| expand::expand(text, facts);
        let kind = match &self.kind {
            MountKind::Bind(bind) => {
                MountKind::Bind(Bind { source: fill(&bind.source), ..bind.clone() })
            }
            MountKind::Volume(volume) => MountKind::Volume(Volume {
                name: volume.name.as_ref().map(fill),
                labels: volume.labels.iter().map(|(k, v)| (k.clone(), fill(v))).collect(),
                subpath: volume.subpath.as_ref().map(fill),
                copy: volume.copy,
            }),
            MountKind::Tmpfs(tmpfs) => MountKind::Tmpfs(tmpfs.clone()),
        };
        Self { target: fill(&self.target), kind, read_only: self.read_only }
    }

    /// Of one that has nothing to fill in any more.
    ///
    /// # Errors
    /// [`SpecError`] with what a path or a name came to.
    pub fn check_filled(&self) -> Result<(), SpecError> {
        self.check_where(&|_| true)
    }

    fn check(&self) -> Result<(), SpecError> {
        for text in self.texts() {
            check_template("mount", text)?;
        }
        self.check_where(&|text| !expand::is_template(text))?;
        match &self.kind {
            MountKind::Volume(volume) => {
                if volume.labels.len() > Self::LABELS_MAX {
                    let problem = format!("are more labels than {}", Self::LABELS_MAX);
                    return Err(wrong("mount", volume.labels.len(), problem));
                }
                check_labels("mount", &volume.labels)
            }
            MountKind::Tmpfs(Tmpfs { size_bytes: Some(0), .. }) => {
                Err(wrong("mount", self, "has room for nothing; leave its size out"))
            }
            MountKind::Tmpfs(Tmpfs { mode: Some(mode), .. }) if *mode > 0o7777 => {
                Err(wrong("mount", self, format!("has the mode {mode:o}, at most 7777 is one")))
            }
            MountKind::Bind(_) | MountKind::Tmpfs(_) => Ok(()),
        }
    }

    /// The rules of paths and names, for those that `is_known` says so of.
    fn check_where(&self, is_known: &dyn Fn(&str) -> bool) -> Result<(), SpecError> {
        let problem = "has no absolute path below /, without . and .., for its";
        if is_known(&self.target) && !is_plain_path(&self.target) {
            return Err(wrong("mount", self, format!("{problem} target")));
        }
        match &self.kind {
            MountKind::Bind(Bind { source, .. }) if is_known(source) => {
                // The whole file system may be meant; whether it may be mounted is another matter.
                if source != "/" && !is_plain_path(source) {
                    return Err(wrong("mount", self, format!("{problem} source")));
                }
            }
            MountKind::Volume(Volume { name, subpath, .. }) => {
                if let Some(name) = name.as_ref().filter(|name| is_known(name))
                    && !is_volume_name(name)
                {
                    let problem = "is not a name of a volume: a-z, A-Z, 0-9, '_', '.' and '-', a \
                                   letter or digit first, at most 200 characters";
                    return Err(wrong("mount", name, problem));
                }
                if let Some(path) = subpath.as_ref().filter(|path| is_known(path))
                    && !is_plain_path(&format!("/{path}"))
                {
                    let problem = "is not a path below the volume, without . and ..";
                    return Err(wrong("mount", path, problem));
                }
            }
            MountKind::Bind(_) | MountKind::Tmpfs(_) => {}
        }
        Ok(())
    }
}

impl TaskTemplate {
    /// Mounts of one container; as many descriptors go with its start.
    pub const MOUNTS_MAX: usize = 48;
    /// Docker's size of /dev/shm.
    pub const SHM_BYTES: u64 = 64 << 20;

    /// Whether it, or one of its companions, uses a volume that stays on its node.
    pub fn keeps_data(&self) -> bool {
        let is_named =
            |mount: &Mount| matches!(&mount.kind, MountKind::Volume(Volume { name: Some(_), .. }));
        self.mounts.iter().any(is_named)
            || self.companions.iter().any(|companion| companion.task.keeps_data())
    }

    pub(super) fn check_mounts(&self) -> Result<(), SpecError> {
        let count = self.mounts.len();
        if count > Self::MOUNTS_MAX {
            return Err(wrong("mount", count, format!("is more than {}", Self::MOUNTS_MAX)));
        }
        for (at, mount) in self.mounts.iter().enumerate() {
            mount.check()?;
            let others = self.mounts[..at].iter().map(|other| &other.target);
            let mut taken = others.chain(self.shared.iter().map(|folder| &folder.target));
            if taken.any(|target| *target == mount.target) {
                return Err(wrong("mount", mount, "has the target of another one"));
            }
        }
        if self.shm_bytes == Some(0) {
            return Err(wrong("shm_size", 0, "leaves no shared memory; leave it out for 64MiB"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{NodeId, ServiceId, TaskId};

    fn bind(source: &str) -> MountKind {
        MountKind::Bind(Bind { source: source.to_owned(), recursive: true, follows: false })
    }

    fn volume(name: &str) -> MountKind {
        let name = Some(name.to_owned()).filter(|name| !name.is_empty());
        MountKind::Volume(Volume { name, ..Volume::default() })
    }

    fn at(target: &str, kind: MountKind) -> Mount {
        Mount { target: target.to_owned(), read_only: false, kind }
    }

    #[track_caller]
    fn check(mounts: Vec<Mount>, expected: &str) {
        let template = TaskTemplate { mounts, ..TaskTemplate::default() };
        let got = template.check_mounts().map_err(|error| error.to_string());
        let got = got.err().unwrap_or_default();
        assert!(got.contains(expected) && got.is_empty() == expected.is_empty(), "{got}");
    }

    #[test]
    fn paths_and_names() {
        check(vec![at("/a", bind("/srv")), at("/b/c", volume("data")), at("/d", volume(""))], "");
        check(vec![at("/a", bind("/"))], "");
        for target in ["", "/", "a", "/a/", "/a//b", "/a/../b", "/./a", "/a\0"] {
            check(vec![at(target, volume("x"))], "for its target");
        }
        for source in ["", "srv", "./srv", "/srv/..", "/srv/", "//srv"] {
            check(vec![at("/a", bind(source))], "for its source");
        }
        for name in ["-a", ".a", "a/b", "a b", "ä", &"a".repeat(201)] {
            check(vec![at("/a", volume(name))], "is not a name of a volume");
        }
        check(vec![at("/a", volume("x")), at("/a", bind("/y"))], "has the target of another one");
        check(vec![at("/a", volume("x")); 49], "is more than 48");
        let below = |path: &str| {
            MountKind::Volume(Volume { subpath: Some(path.to_owned()), ..Volume::default() })
        };
        check(vec![at("/a", below("x/y"))], "");
        for path in ["", "/x", "x/", "../x", "x/../../y"] {
            check(vec![at("/a", below(path))], "is not a path below the volume");
        }
        let memory =
            |size_bytes, mode| at("/a", MountKind::Tmpfs(Tmpfs { size_bytes, mode, exec: false }));
        check(vec![memory(None, Some(0o1777))], "");
        check(vec![memory(Some(0), None)], "has room for nothing");
        check(vec![memory(None, Some(0o10000))], "has the mode 10000");
    }

    #[test]
    fn templates() {
        check(vec![at("/a", bind("/srv/{{.Node.Hostname}}"))], "");
        check(vec![at("/a", volume("{{.Service.Name}}-{{.Task.Slot}}"))], "");
        check(vec![at("/a", volume("{{.Task.Slt}}"))], "is not a template that can be filled in");
        let labels = BTreeMap::from([("path".to_owned(), "../etc".to_owned())]);
        let params = BTreeMap::new();
        let facts = expand::Facts {
            service: ServiceId::from_bytes([1; 10]),
            service_name: "web",
            labels: &labels,
            node: NodeId::from_bytes([2; 10]),
            hostname: "alpha",
            architecture: "x86_64",
            task: TaskId::from_bytes([3; 10]),
            slot: 4,
            params: &params,
        };
        let filled = |mount: Mount| {
            let filled = mount.filled(&facts);
            filled.check_filled().map(|()| filled.to_string()).map_err(|error| error.to_string())
        };
        assert_eq!(filled(at("/a", bind("/srv/{{.Node.Hostname}}"))).unwrap(), "/srv/alpha:/a");
        assert_eq!(
            filled(at("/a", volume("{{.Service.Name}}-{{.Task.Slot}}"))).unwrap(),
            "web-4:/a"
        );
        let out = "/srv/{{index .Service.Labels \"path\"}}";
        assert!(filled(at("/a", bind(out))).unwrap_err().contains("for its source"));
        let name = "{{index .Service.Labels \"path\"}}";
        assert!(filled(at("/a", volume(name))).unwrap_err().contains("is not a name"));
    }

    #[test]
    fn what_keeps_data() {
        let of = |kind| TaskTemplate { mounts: vec![at("/a", kind)], ..TaskTemplate::default() };
        assert!(of(volume("data")).keeps_data());
        assert!(!of(volume("")).keeps_data());
        assert!(!of(bind("/srv")).keeps_data());
    }
}
