//! What a container mounts: folders of its task, paths of the node, volumes, memory.
//!
//! Templates are filled in here, and paths of the node judged by where they really are: the folder
//! that was judged is the one that is mounted, by its descriptor, whatever becomes of the path.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use warren_model::bind::BindRule;
use warren_model::service::{Bind, CompanionName, Mount, MountKind, Tmpfs, Volume, is_plain_path};
use warren_model::{TaskTemplate, Time};
use warren_runtime::{ContainerSpec, Opened, storage};

use super::{facts, permanent, transient};
use crate::core::Order;
use crate::task::Failure;
use crate::volumes::{Content, take_anonymous};
use crate::worker::Tools;

/// `VOLUME`s of one image; real ones have a few.
const OF_IMAGE_MAX: usize = 32;
/// Beside the task's shared folders, whose names begin with a letter.
const ANONYMOUS: &str = ".volumes";

/// Which container of a task it is about.
pub(crate) struct Container<'a> {
    /// `None`: the task's own.
    pub(crate) companion: Option<&'a CompanionName>,
    pub(crate) template: &'a TaskTemplate,
    /// `VOLUME`s of its image.
    pub(crate) volumes: &'a [String],
}

/// Finds or makes all that the container mounts, and adds it to `spec`.
pub(crate) async fn add(
    tools: &Tools,
    order: &Order,
    container: &Container<'_>,
    spec: &mut ContainerSpec,
) -> Result<(), Failure> {
    share(tools, order, container.template, spec).await?;
    let facts = facts(tools, order);
    let mut mounts = Vec::new();
    for mount in &container.template.mounts {
        let filled = mount.filled(&facts);
        filled.check_filled().map_err(|error| permanent(error.to_string()))?;
        mounts.push(filled);
    }
    let taken = spec.mounts.iter().map(|mount| mount.target.clone()).collect();
    let mounts = with_image(mounts, container.volumes, taken).map_err(permanent)?;
    for mount in mounts {
        let kind = match mount.kind {
            MountKind::Bind(bind) => open_bind(tools, order, bind, mount.read_only).await?,
            MountKind::Volume(volume) => {
                open_volume(tools, order, container, volume, &mount.target, &spec.layers).await?
            }
            MountKind::Tmpfs(Tmpfs { size_bytes, mode, exec }) => {
                let mode = mode.unwrap_or(Tmpfs::MODE);
                warren_runtime::MountKind::Tmpfs { size_bytes, mode, exec }
            }
        };
        let (target, read_only) = (mount.target, mount.read_only);
        spec.mounts.push(warren_runtime::Mount { kind, target, read_only });
    }
    Ok(())
}

/// With volumes for what the image declares and nothing else is mounted at.
fn with_image(
    mut mounts: Vec<Mount>,
    volumes: &[String],
    mut taken: BTreeSet<String>,
) -> Result<Vec<Mount>, String> {
    for mount in &mounts {
        if !taken.insert(mount.target.clone()) {
            return Err(format!("mount: {:?} has the target of another one", mount.to_string()));
        }
    }
    if volumes.len() > OF_IMAGE_MAX {
        let count = volumes.len();
        return Err(format!("the image has {count} volumes, at most {OF_IMAGE_MAX} are made"));
    }
    for volume in volumes {
        let target = volume.trim_end_matches('/');
        // As builders write them; what is no path under / cannot be mounted at.
        if !is_plain_path(target) || !taken.insert(target.to_owned()) {
            continue;
        }
        let kind = MountKind::Volume(Volume::default());
        mounts.push(Mount { target: target.to_owned(), read_only: false, kind });
    }
    Ok(mounts)
}

/// Makes the folders of a task that a container of it has in common with others, and mounts them.
async fn share(
    tools: &Tools,
    order: &Order,
    template: &TaskTemplate,
    spec: &mut ContainerSpec,
) -> Result<(), Failure> {
    for folder in &template.shared {
        let task = order.spec.id.to_string();
        let source = tools.shared_dir().join(task).join(folder.name.as_str());
        let failed = |error: io::Error| {
            transient(format!("make the folder {} of the task: {error}", folder.name))
        };
        tokio::fs::create_dir_all(&source).await.map_err(failed)?;
        // As of /tmp: whoever the programs of the task run as.
        let open = std::fs::Permissions::from_mode(0o1777);
        tokio::fs::set_permissions(&source, open).await.map_err(failed)?;
        spec.mounts.push(warren_runtime::Mount {
            kind: warren_runtime::MountKind::Bind { source },
            target: folder.target.clone(),
            read_only: folder.read_only,
        });
    }
    Ok(())
}

/// Runs what waits for the disk.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let stopped = |_| transient("the agent is stopping".to_owned());
    tokio::task::spawn_blocking(work).await.map_err(stopped)?
}

async fn open_bind(
    tools: &Tools,
    order: &Order,
    bind: Bind,
    read_only: bool,
) -> Result<warren_runtime::MountKind, Failure> {
    let Bind { source, recursive, follows } = bind;
    let (name, rules, own) = (source.clone(), order.allow_bind.clone(), tools.own_folders.clone());
    let file = on_disk(move || find_bind(Path::new(&source), &rules, &own, read_only)).await?;
    Ok(warren_runtime::MountKind::Open(Arc::new(Opened { file, name, recursive, follows })))
}

fn find_bind(
    source: &Path,
    rules: &[BindRule],
    own: &[PathBuf],
    read_only: bool,
) -> Result<OwnedFd, Failure> {
    let name = source.display();
    let (file, real) = storage::open_real(source).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => permanent(format!(
            "mount: {name} is not on this node; paths of nodes must be there beforehand"
        )),
        _ => permanent(format!("mount: {name}: {error}")),
    })?;
    // Also the node's own list may lead through links.
    let real_of = |path: &Path| storage::open_real(path).ok().map(|(_, real)| real);
    let rules = rules
        .iter()
        .filter_map(|rule| real_of(Path::new(rule.path())).map(|path| (path, rule.is_read_only())));
    let own = own.iter().filter_map(|path| real_of(path));
    judge(&real, &rules.collect::<Vec<_>>(), &own.collect::<Vec<_>>(), read_only)
        .map_err(|why| permanent(format!("mount: {name} {why}")))?;
    Ok(file)
}

/// By where everything really is.
fn judge(
    real: &Path,
    rules: &[(PathBuf, bool)],
    own: &[PathBuf],
    read_only: bool,
) -> Result<(), String> {
    if own.iter().any(|own| real.starts_with(own) || own.starts_with(real)) {
        return Err("holds, or is part of, what Warren keeps; that is never mounted".to_owned());
    }
    let covering = rules.iter().filter(|(path, _)| real.starts_with(path));
    match covering.max_by_key(|(path, _)| path.as_os_str().len()) {
        None => Err(format!(
            "is {} on this node, no path that this cluster lets containers mount; an administrator \
             allows it with `warren cluster update --allow-bind`",
            real.display()
        )),
        Some((_, true)) if !read_only => {
            Err("may be mounted in this cluster to be read alone; add readonly".to_owned())
        }
        Some(_) => Ok(()),
    }
}

async fn open_volume(
    tools: &Tools,
    order: &Order,
    container: &Container<'_>,
    volume: Volume,
    target: &str,
    layers: &[PathBuf],
) -> Result<warren_runtime::MountKind, Failure> {
    let Volume { name, copy, labels, subpath } = volume;
    // Of a part that must be there already the image has nothing.
    let copy = copy && subpath.is_none();
    let layers = if copy { layers.to_vec() } else { Vec::new() };
    let content = Content { layers, path: target.to_owned() };
    let volumes = Arc::clone(&tools.volumes);
    let title = name.clone().unwrap_or_else(|| format!("of the task at {target}"));
    let (shown, below) = (title.clone(), subpath.clone().unwrap_or_default());
    let failed = move |error: io::Error| transient(format!("make volume {shown}: {error}"));
    let task = tools.shared_dir().join(order.spec.id.to_string()).join(ANONYMOUS);
    let own = task.join(container.companion.map_or(CompanionName::MAIN, CompanionName::as_str));
    let now = Time(tools.clock.now_ms());
    let turn = match &name {
        Some(name) => Some(tools.volumes.turn(name).await),
        None => None,
    };
    let file = on_disk(move || {
        let data = match &name {
            Some(name) => volumes.take(name, &labels, &content, now),
            None => take_anonymous(&own, &content),
        };
        open_data(&data.map_err(failed)?, &below)
    })
    .await;
    drop(turn);
    let file = file?;
    let name = match subpath {
        None => format!("volume {title}"),
        Some(path) => format!("{path} of volume {title}"),
    };
    Ok(warren_runtime::MountKind::Open(Arc::new(Opened {
        file,
        name,
        recursive: true,
        follows: false,
    })))
}

fn open_data(data: &Path, below: &str) -> Result<OwnedFd, Failure> {
    storage::open_below(data, &format!("/{below}")).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => permanent(format!("mount: there is no {below} in the volume")),
        _ => transient(format!("open the volume: {error}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_paths_really_are() {
        let rules: Vec<(PathBuf, bool)> =
            vec![("/srv".into(), false), ("/srv/ro".into(), true), ("/etc".into(), true)];
        let own: Vec<PathBuf> = vec!["/srv/warren".into(), "/run/warren".into()];
        let check = |real: &str, read_only| {
            judge(Path::new(real), &rules, &own, read_only).err().unwrap_or_default()
        };
        assert_eq!(check("/srv/a", false), "");
        assert_eq!(check("/srv/ro/x", true), "");
        assert!(check("/srv/ro/x", false).contains("read alone"));
        assert!(check("/etc/passwd", false).contains("read alone"));
        assert!(check("/srvx", true).contains("no path that this cluster lets"));
        for own in ["/srv", "/", "/srv/warren", "/srv/warren/logs", "/run/warren/warren.sock"] {
            assert!(check(own, true).contains("what Warren keeps"), "{own}");
        }
    }

    #[test]
    fn links_lead_to_where_they_lead() {
        let dir = tempfile::tempdir().unwrap();
        let (open, closed) = (dir.path().join("open"), dir.path().join("closed"));
        std::fs::create_dir_all(&open).unwrap();
        std::fs::create_dir_all(closed.join("x")).unwrap();
        std::os::unix::fs::symlink(&closed, open.join("out")).unwrap();
        std::os::unix::fs::symlink(&open, dir.path().join("alias")).unwrap();
        let rule = |path: &Path| -> BindRule { path.display().to_string().parse().unwrap() };
        let check = |source: &Path, rules: &[BindRule]| {
            let found = find_bind(source, rules, &[], false);
            found.map(|_| ()).map_err(|failure| failure.message).err().unwrap_or_default()
        };
        let rules = [rule(&open)];
        assert_eq!(check(&open, &rules), "");
        assert!(check(&open.join("out/x"), &rules).contains("no path that this cluster lets"));
        assert_eq!(check(&dir.path().join("alias"), &rules), "");
        assert_eq!(check(&open, &[rule(&dir.path().join("alias"))]), "");
        assert!(check(&open.join("none"), &rules).contains("is not on this node"));
        assert!(find_bind(&open, &rules, &[dir.path().to_owned()], true).is_err());
    }

    #[test]
    fn volumes_of_images() {
        let given = |target: &str| Mount {
            target: target.to_owned(),
            read_only: true,
            kind: MountKind::Tmpfs(Tmpfs::default()),
        };
        let check = |mounts: Vec<Mount>, volumes: &[&str]| {
            let volumes: Vec<String> = volumes.iter().map(|path| (*path).to_owned()).collect();
            let taken = BTreeSet::from(["/shared".to_owned()]);
            let all = with_image(mounts, &volumes, taken)?;
            Ok::<_, String>(all.iter().map(|m| m.to_string()).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(
            check(vec![given("/a")], &["/data/", "/a", "/b", "/b/"]).unwrap(),
            "tmpfs:/a:ro /data /b"
        );
        assert_eq!(check(vec![], &["/", "data", "/x/../y", "/shared"]).unwrap(), "");
        assert!(check(vec![given("/a"), given("/a")], &[]).is_err());
        assert!(check(vec![], &["/x"; 33]).is_err());
    }
}
