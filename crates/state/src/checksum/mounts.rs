//! Mounts of containers.

use warren_model::service::{Bind, Mount, MountKind, Tmpfs, Volume};

use super::Digest;

pub(super) fn add(digest: &mut Digest, all: &[Mount]) {
    digest.word(all.len() as u64);
    for Mount { target, read_only, kind } in all {
        digest.text(target);
        digest.word(u64::from(*read_only));
        match kind {
            MountKind::Bind(Bind { source, recursive, follows }) => {
                digest.word(1);
                digest.text(source);
                digest.word(u64::from(*recursive) << 1 | u64::from(*follows));
            }
            MountKind::Volume(Volume { name, copy, labels, subpath }) => {
                digest.word(2);
                digest.option(name.as_deref(), Digest::text);
                digest.word(u64::from(*copy));
                digest.labels(labels);
                digest.option(subpath.as_deref(), Digest::text);
            }
            MountKind::Tmpfs(Tmpfs { size_bytes, mode, exec }) => {
                digest.word(3);
                digest.option(*size_bytes, Digest::word);
                digest.option(mode.map(u64::from), Digest::word);
                digest.word(u64::from(*exec));
            }
        }
    }
}
