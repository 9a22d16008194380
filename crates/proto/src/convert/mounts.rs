//! Mounts of containers.

use warren_model::service::{Bind, Mount, MountKind, Tmpfs, Volume};

use super::Error;
use crate::v1;

impl From<&Mount> for v1::Mount {
    fn from(mount: &Mount) -> Self {
        let Mount { target, read_only, kind } = mount;
        let mut wire = Self { target: target.clone(), read_only: *read_only, ..Self::default() };
        match kind {
            MountKind::Bind(Bind { source, recursive, follows }) => {
                wire.set_kind(v1::MountKind::Bind);
                wire.source.clone_from(source);
                (wire.flat, wire.follows) = (!recursive, *follows);
            }
            MountKind::Volume(Volume { name, copy, labels, subpath }) => {
                wire.set_kind(v1::MountKind::Volume);
                wire.source = name.clone().unwrap_or_default();
                wire.no_copy = !copy;
                wire.labels = labels.clone().into_iter().collect();
                wire.subpath = subpath.clone().unwrap_or_default();
            }
            MountKind::Tmpfs(Tmpfs { size_bytes, mode, exec }) => {
                wire.set_kind(v1::MountKind::Tmpfs);
                (wire.size_bytes, wire.mode, wire.exec) = (*size_bytes, *mode, *exec);
            }
        }
        wire
    }
}

impl TryFrom<v1::Mount> for Mount {
    type Error = Error;

    fn try_from(wire: v1::Mount) -> Result<Self, Error> {
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        let kind = match v1::MountKind::try_from(wire.kind) {
            Ok(v1::MountKind::Bind) => MountKind::Bind(Bind {
                source: wire.source,
                recursive: !wire.flat,
                follows: wire.follows,
            }),
            Ok(v1::MountKind::Volume) => MountKind::Volume(Volume {
                name: some(wire.source),
                copy: !wire.no_copy,
                labels: wire.labels.into_iter().collect(),
                subpath: some(wire.subpath),
            }),
            Ok(v1::MountKind::Tmpfs) => MountKind::Tmpfs(Tmpfs {
                size_bytes: wire.size_bytes,
                mode: wire.mode,
                exec: wire.exec,
            }),
            Ok(v1::MountKind::Unspecified) | Err(_) => {
                return Err(Error::new("kind", format!("{} is no kind of mount", wire.kind)));
            }
        };
        Ok(Self { target: wire.target, read_only: wire.read_only, kind })
    }
}
