//! Mounts: flags of `service create` and `service update`, and how they are shown.
//!
//! Docker's words: `--mount` in pairs of key and value, `-v` and `--tmpfs` in short. Beside Docker's
//! kinds there is `type=task`: a folder that the containers of a task have in common.

use clap::Args;
use serde_json::{Value, json};
use warren_model::TaskTemplate;
use warren_model::service::{Bind, Mount, MountKind, SharedFolder, Tmpfs, Volume};

use super::companion::{bare, split};
use super::failure::nearest;
use super::spec::{bytes, label};

/// A mount as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Given {
    Task(SharedFolder),
    Other(Mount),
}

/// Flags of `create`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct MountFlags {
    /// Mount something: type=bind|volume|tmpfs|task,source=,target=[,readonly,…]; repeat for more
    #[arg(long, value_name = "MOUNT", value_parser = long)]
    mount: Vec<Given>,
    /// Mount a path of the node or a volume: SOURCE:TARGET[:ro,…], or TARGET alone for a volume of
    /// the task's own
    #[arg(short, long, value_name = "VOLUME", value_parser = short)]
    volume: Vec<Mount>,
    /// Mount memory: TARGET[:size=64m,mode=1777,…]
    #[arg(long, value_name = "TMPFS", value_parser = tmpfs)]
    tmpfs: Vec<Mount>,
}

/// Flags of `update`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct MountEdits {
    /// Mount something, in place of what has its target: as --mount of create
    #[arg(long, value_name = "MOUNT", value_parser = long)]
    mount_add: Vec<Given>,
    /// Mount nothing any more at a target
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
}

impl MountFlags {
    pub(crate) fn apply(self, task: &mut TaskTemplate) {
        let long = self.mount.into_iter();
        let short = self.volume.into_iter().chain(self.tmpfs).map(Given::Other);
        long.chain(short).for_each(|given| put(task, given));
    }
}

impl MountEdits {
    pub(crate) fn apply(&self, task: &mut TaskTemplate, remarks: &mut Vec<String>) {
        for target in &self.mount_rm {
            let before = task.shared.len() + task.mounts.len();
            clear(task, target);
            if task.shared.len() + task.mounts.len() == before {
                remarks.push(format!("--mount-rm: the service has nothing mounted at {target}"));
            }
        }
        for given in &self.mount_add {
            match given {
                Given::Task(folder) => clear(task, &folder.target),
                Given::Other(mount) => clear(task, &mount.target),
            }
            put(task, given.clone());
        }
    }
}

fn clear(task: &mut TaskTemplate, target: &str) {
    task.shared.retain(|known| known.target != target);
    task.mounts.retain(|known| known.target != target);
}

pub(crate) fn put(task: &mut TaskTemplate, given: Given) {
    match given {
        Given::Task(folder) => task.shared.push(folder),
        Given::Other(mount) => task.mounts.push(mount),
    }
}

/// Keys of all kinds, then those of one.
const COMMON: [&str; 4] = ["type", "source", "target", "readonly"];
const OF_BIND: [&str; 3] = ["bind-propagation", "bind-nonrecursive", "bind-recursive"];
const OF_VOLUME: [&str; 4] = ["volume-nocopy", "volume-label", "volume-subpath", "volume-driver"];
const OF_TMPFS: [&str; 2] = ["tmpfs-size", "tmpfs-mode"];

/// One mount while its keys are read.
#[derive(Default)]
struct Reading<'t> {
    kind: &'t str,
    source: &'t str,
    target: &'t str,
    read_only: bool,
    bind: Bind0,
    volume: Volume,
    tmpfs: Tmpfs,
    /// Keys of one kind that were given.
    special: Vec<&'t str>,
}

#[derive(Default)]
struct Bind0 {
    flat: bool,
    follows: bool,
}

/// Docker's long form.
pub(crate) fn long(text: &str) -> Result<Given, String> {
    let mut read = Reading::default();
    for pair in split(text)? {
        let (key, value) = bare(pair).split_once('=').unwrap_or((bare(pair), ""));
        read.take(key, bare(value))?;
    }
    read.finish()
}

impl<'t> Reading<'t> {
    fn take(&mut self, key: &'t str, value: &'t str) -> Result<(), String> {
        match key {
            "type" => self.kind = value,
            "source" | "src" | "name" => self.source = value,
            "target" | "destination" | "dst" => self.target = value,
            "readonly" | "ro" => self.read_only = switch(key, value)?,
            _ => {
                self.special.push(key);
                self.take_special(key, value)?;
            }
        }
        Ok(())
    }

    fn take_special(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "bind-propagation" => self.bind.follows = propagation(value)?,
            "bind-nonrecursive" => self.bind.flat = switch(key, value)?,
            "bind-recursive" => {
                self.bind.flat = match value {
                    // What is mounted below a read-only bind is read-only, too, in any case.
                    "enabled" | "readonly" => false,
                    "disabled" => true,
                    _ => {
                        return Err(format!(
                            "bind-recursive: {value:?} is not one of enabled, disabled, readonly"
                        ));
                    }
                }
            }
            "volume-nocopy" => self.volume.copy = !switch(key, value)?,
            "volume-label" => {
                let (key, value) = label(value)?;
                self.volume.labels.insert(key, value);
            }
            "volume-subpath" => self.volume.subpath = Some(value.to_owned()),
            "volume-driver" if value == "local" => {}
            "volume-driver" => {
                return Err(format!("volume-driver: there is no driver {value:?}, only local"));
            }
            "volume-opt" => {
                return Err("volume-opt: volumes are folders of their node and take no options; \
                            write type=bind,source=/PATH for a path, type=tmpfs for memory"
                    .to_owned());
            }
            "tmpfs-size" => self.tmpfs.size_bytes = Some(bytes(value)?),
            "tmpfs-mode" => self.tmpfs.mode = Some(mode(value)?),
            "consistency" => return Err(without_meaning(key)),
            _ => return Err(unknown(key)),
        }
        Ok(())
    }

    fn finish(self) -> Result<Given, String> {
        let (kind, own): (&str, &[&str]) = match self.kind {
            "bind" => ("bind", &OF_BIND),
            "" | "volume" => ("volume", &OF_VOLUME),
            "tmpfs" => ("tmpfs", &OF_TMPFS),
            "task" => ("task", &[]),
            other => {
                return Err(format!(
                    "type: {other:?} is not a kind of mount; there are bind, volume, tmpfs, task"
                ));
            }
        };
        if let Some(key) = self.special.iter().find(|key| !own.contains(key)) {
            return Err(format!("{key}: is no key of a mount with type={kind}"));
        }
        if self.target.is_empty() {
            return Err("lacks target=/PATH".to_owned());
        }
        let source = self.source.to_owned();
        let kind = match kind {
            "task" => {
                return folder(self.source, self.target, self.read_only).map(Given::Task);
            }
            "bind" if source.is_empty() => return Err("lacks source=/PATH".to_owned()),
            "bind" => {
                let Bind0 { flat, follows } = self.bind;
                MountKind::Bind(Bind { source, recursive: !flat, follows })
            }
            "tmpfs" if !source.is_empty() => {
                return Err(format!("source: {source:?} is given to memory, which has none"));
            }
            "tmpfs" => MountKind::Tmpfs(self.tmpfs),
            _ => {
                let name = Some(source).filter(|name| !name.is_empty());
                MountKind::Volume(Volume { name, ..self.volume })
            }
        };
        let target = clean(self.target);
        Ok(Given::Other(Mount { target, read_only: self.read_only, kind }))
    }
}

/// Docker takes `/data/` for `/data`.
fn clean(path: &str) -> String {
    let cut = path.trim_end_matches('/');
    if cut.is_empty() { path.to_owned() } else { cut.to_owned() }
}

fn unknown(key: &str) -> String {
    let all = COMMON.iter().chain(&OF_BIND).chain(&OF_VOLUME).chain(&OF_TMPFS).copied();
    let meant = nearest(key, all.clone()).map(|k| format!("did you mean {k}?"));
    let known = || format!("keys are {}", all.collect::<Vec<_>>().join(", "));
    format!("there is no key {key:?}; {}", meant.unwrap_or_else(known))
}

fn without_meaning(key: &str) -> String {
    format!("{key}: has no meaning on Linux; leave it out")
}

fn switch(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "" | "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err(format!("{key}: {value:?} is neither true nor false")),
    }
}

/// Whether the container sees what its node mounts later.
fn propagation(value: &str) -> Result<bool, String> {
    match value {
        "private" | "rprivate" => Ok(false),
        "slave" | "rslave" => Ok(true),
        "shared" | "rshared" => Err(format!(
            "bind-propagation: {value}: mounts of a container are never those of its node; there \
             are rprivate and rslave"
        )),
        _ => Err(format!("bind-propagation: {value:?} is not one of rprivate, rslave")),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
    mode.ok_or_else(|| format!("{text:?} is not a mode such as 1777 or 0700"))
}

/// At colons that are not within braces of a template.
fn fields(text: &str) -> Vec<&str> {
    let (mut fields, mut from, mut depth) = (Vec::new(), 0, 0_usize);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ':' if depth == 0 => {
                fields.push(&text[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    fields.push(&text[from..]);
    fields
}

/// Docker's short form: `SOURCE:TARGET[:ro,…]`, or `TARGET`.
pub(crate) fn short(text: &str) -> Result<Mount, String> {
    let shape = || format!("{text:?} is not of the form SOURCE:TARGET[:ro,…]");
    let (source, target, options) = match fields(text).as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, options] => (*source, *target, *options),
        _ => return Err(shape()),
    };
    if target.is_empty() || (source.is_empty() && !text.starts_with('/')) {
        return Err(shape());
    }
    let mut kind = match source.chars().next() {
        Some('/') => {
            MountKind::Bind(Bind { source: clean(source), recursive: true, follows: false })
        }
        Some('.' | '~') => {
            return Err(format!(
                "{source:?} is not an absolute path; nodes have no folder of yours"
            ));
        }
        Some(_) => MountKind::Volume(Volume { name: Some(source.to_owned()), ..Volume::default() }),
        None => MountKind::Volume(Volume::default()),
    };
    let mut read_only = false;
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match (option, &mut kind) {
            ("ro" | "readonly", _) => read_only = true,
            ("rw", _) => read_only = false,
            ("nocopy", MountKind::Volume(volume)) => volume.copy = false,
            ("z" | "Z", _) => {
                return Err(format!("{option}: there are no SELinux labels here; leave it out"));
            }
            ("cached" | "delegated" | "consistent", _) => return Err(without_meaning(option)),
            (
                "private" | "rprivate" | "slave" | "rslave" | "shared" | "rshared",
                MountKind::Bind(bind),
            ) => {
                bind.follows = propagation(option)?;
            }
            _ => {
                return Err(format!("{option:?} is not an option of a mount such as ro or nocopy"));
            }
        }
    }
    Ok(Mount { target: clean(target), read_only, kind })
}

/// `TARGET[:size=64m,mode=1777,exec,ro]`.
pub(crate) fn tmpfs(text: &str) -> Result<Mount, String> {
    let (target, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut tmpfs, mut read_only) = (Tmpfs::default(), false);
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=').unwrap_or((option, "")) {
            ("size", value) => tmpfs.size_bytes = Some(bytes(value)?),
            ("mode", value) => tmpfs.mode = Some(mode(value)?),
            ("exec", "") => tmpfs.exec = true,
            ("noexec", "") => tmpfs.exec = false,
            ("ro", "") => read_only = true,
            // As it is in any case.
            ("rw" | "nosuid" | "nodev", "") => {}
            _ => {
                return Err(format!(
                    "{option:?} is not one of size=, mode=, exec, noexec, ro, rw, nosuid, nodev"
                ));
            }
        }
    }
    Ok(Mount { target: clean(target), read_only, kind: MountKind::Tmpfs(tmpfs) })
}

/// `NAME:TARGET[:ro]` of a task's folder.
pub(crate) fn shared(text: &str) -> Result<SharedFolder, String> {
    let (name, rest) = text
        .split_once(':')
        .ok_or_else(|| format!("{text:?} is not of the form NAME:/TARGET[:ro]"))?;
    let (target, read_only) = match rest.strip_suffix(":ro") {
        Some(target) => (target, true),
        None => (rest, false),
    };
    folder(name, target, read_only)
}

fn folder(name: &str, target: &str, read_only: bool) -> Result<SharedFolder, String> {
    let name = name.parse().map_err(|problem| format!("name: {name:?} {problem}"))?;
    Ok(SharedFolder { name, target: target.to_owned(), read_only })
}

/// All mounts of a container, those of the task's folders first.
pub(crate) fn mounts_json(task: &TaskTemplate) -> Vec<Value> {
    let folder = |folder: &SharedFolder| {
        let SharedFolder { name, target, read_only } = folder;
        json!({"type": "task", "name": name.as_str(), "target": target, "read_only": read_only})
    };
    task.shared.iter().map(folder).chain(task.mounts.iter().map(mount_json)).collect()
}

fn mount_json(mount: &Mount) -> Value {
    let Mount { target, read_only, kind } = mount;
    match kind {
        MountKind::Bind(Bind { source, recursive, follows }) => json!({
            "type": "bind",
            "source": source,
            "target": target,
            "read_only": read_only,
            "recursive": recursive,
            "propagation": if *follows { "rslave" } else { "rprivate" },
        }),
        MountKind::Volume(Volume { name, copy, labels, subpath }) => json!({
            "type": "volume",
            "name": name,
            "target": target,
            "read_only": read_only,
            "copy": copy,
            "labels": labels,
            "subpath": subpath,
        }),
        MountKind::Tmpfs(Tmpfs { size_bytes, mode, exec }) => json!({
            "type": "tmpfs",
            "target": target,
            "read_only": read_only,
            "size_bytes": size_bytes,
            "mode": format!("{:04o}", mode.unwrap_or(Tmpfs::MODE)),
            "exec": exec,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of it, as `inspect` shows it, without what is as by default.
    fn show(given: Given) -> String {
        let mut task = TaskTemplate::default();
        put(&mut task, given);
        let mut value = mounts_json(&task).remove(0);
        let plain = [
            ("read_only", json!(false)),
            ("recursive", json!(true)),
            ("propagation", json!("rprivate")),
            ("copy", json!(true)),
            ("labels", json!({})),
            ("subpath", json!(null)),
            ("name", json!(null)),
            ("size_bytes", json!(null)),
            ("mode", json!("1777")),
            ("exec", json!(false)),
        ];
        let all = value.as_object_mut().unwrap();
        for (key, default) in plain {
            if all.get(key) == Some(&default) {
                all.remove(key);
            }
        }
        let words = all.iter().map(|(key, value)| match value {
            Value::String(text) => format!("{key}={text}"),
            other => format!("{key}={other}"),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[track_caller]
    fn reads(text: &str, expected: &str) {
        assert_eq!(long(text).map(show).unwrap_or_else(|error| error), expected, "{text}");
    }

    #[test]
    fn long_form() {
        reads("type=bind,source=/srv,target=/data", "source=/srv target=/data type=bind");
        reads(
            "type=bind,src=/srv,dst=/data/,ro,bind-propagation=rslave,bind-nonrecursive",
            "propagation=rslave read_only=true recursive=false source=/srv target=/data type=bind",
        );
        reads("source=data,target=/x", "name=data target=/x type=volume");
        reads("type=volume,target=/x,readonly=false", "target=/x type=volume");
        reads(
            "type=volume,source=data,target=/x,volume-nocopy,volume-label=a=b,volume-label=c,\
             volume-driver=local,volume-subpath=one/two",
            "copy=false labels={\"a\":\"b\",\"c\":\"\"} name=data subpath=one/two target=/x \
             type=volume",
        );
        reads(
            "type=tmpfs,target=/run,tmpfs-size=64m,tmpfs-mode=0700",
            "mode=0700 size_bytes=67108864 target=/run type=tmpfs",
        );
        reads(
            "type=task,name=scratch,target=/x,readonly",
            "name=scratch read_only=true target=/x type=task",
        );
        reads(
            "type=volume,source={{.Service.Name}}-{{.Task.Slot}},target=/x",
            "name={{.Service.Name}}-{{.Task.Slot}} target=/x type=volume",
        );
        reads("type=bind,source=\"/srv/a,b\",target=/x", "source=/srv/a,b target=/x type=bind");
    }

    #[test]
    fn long_form_refused() {
        reads(
            "type=cluster,target=/x",
            "type: \"cluster\" is not a kind of mount; there are bind, volume, tmpfs, task",
        );
        reads("type=bind,source=/srv", "lacks target=/PATH");
        reads("type=bind,target=/srv", "lacks source=/PATH");
        reads("type=bind,sorce=/srv", "there is no key \"sorce\"; did you mean source?");
        reads(
            "type=bind,source=/a,target=/b,tmpfs-size=1m",
            "tmpfs-size: is no key of a mount with type=bind",
        );
        reads(
            "type=tmpfs,source=/a,target=/b",
            "source: \"/a\" is given to memory, which has none",
        );
        reads("target=/b,readonly=yes", "readonly: \"yes\" is neither true nor false");
        reads("type=tmpfs,target=/b,tmpfs-mode=9", "\"9\" is not a mode such as 1777 or 0700");
        reads(
            "target=/b,volume-driver=nfs",
            "volume-driver: there is no driver \"nfs\", only local",
        );
        reads("target=/b,consistency=cached", "consistency: has no meaning on Linux; leave it out");
        for (text, part) in [
            ("target=/b,volume-opt=type=nfs", "take no options"),
            ("type=bind,source=/a,target=/b,bind-propagation=rshared", "never those of its node"),
            ("target=/b,xyz=1", "keys are type, source"),
        ] {
            assert!(long(text).unwrap_err().contains(part), "{text}");
        }
    }

    #[test]
    fn short_forms() {
        let volume = |text: &str| short(text).map(Given::Other).map(show).unwrap_or_else(|e| e);
        assert_eq!(volume("/srv:/data"), "source=/srv target=/data type=bind");
        assert_eq!(
            volume("/srv:/data:ro,rslave"),
            "propagation=rslave read_only=true source=/srv target=/data type=bind"
        );
        assert_eq!(volume("data:/x:nocopy"), "copy=false name=data target=/x type=volume");
        assert_eq!(volume("/cache"), "target=/cache type=volume");
        assert_eq!(
            volume("{{index .Service.Labels \"a:b\"}}:/x"),
            "name={{index .Service.Labels \"a:b\"}} target=/x type=volume"
        );
        for (text, part) in [
            ("", "is not of the form SOURCE:TARGET"),
            ("data", "is not of the form"),
            (":/x", "is not of the form"),
            ("a:/b:ro:x", "is not of the form"),
            ("./x:/y", "is not an absolute path"),
            ("a:/b:z", "no SELinux labels"),
            ("a:/b:cached", "has no meaning on Linux"),
            ("/a:/b:nocopy", "is not an option"),
            ("a:/b:rshared", "is not an option"),
            ("/a:/b:rshared", "never those of its node"),
        ] {
            assert!(volume(text).contains(part), "{text}: {}", volume(text));
        }
        let memory = |text: &str| tmpfs(text).map(Given::Other).map(show).unwrap_or_else(|e| e);
        assert_eq!(memory("/run"), "target=/run type=tmpfs");
        assert_eq!(
            memory("/run:rw,size=1m,mode=755,exec,nosuid"),
            "exec=true mode=0755 size_bytes=1048576 target=/run type=tmpfs"
        );
        assert!(memory("/run:suid").contains("is not one of"));
    }

    #[test]
    fn edits() {
        let mut task = TaskTemplate::default();
        let edits = |add: &[&str], remove: &[&str]| MountEdits {
            mount_add: add.iter().map(|text| long(text).unwrap()).collect(),
            mount_rm: remove.iter().map(|text| (*text).to_owned()).collect(),
        };
        let mut remarks = Vec::new();
        edits(&["source=a,target=/a", "type=task,name=b,target=/b"], &[])
            .apply(&mut task, &mut remarks);
        edits(&["type=tmpfs,target=/b"], &["/a", "/c"]).apply(&mut task, &mut remarks);
        assert_eq!((task.shared.len(), task.mounts.len()), (0, 1));
        assert_eq!(task.mounts[0].target, "/b");
        assert_eq!(remarks, ["--mount-rm: the service has nothing mounted at /c"]);
    }
}
