//! Volumes of this node: folders that outlive the tasks which use them.
//!
//! `volumes/<name>/` holds `_data`, which containers see, and `volume.json`. A volume is made when a
//! task first needs it, aside and then renamed, so that it is whole or absent: with what the image
//! has at the mount's target, as Docker does. It is kept until somebody removes it. Volumes without
//! a name are the task's own and lie with its shared folders; they go with it.
//!
//! Blocks on the disk: callers are on threads that may wait, but for [`Volumes::turn`].
//!
//! Not here: how they are mounted (`effects::mounts`), who may ask (`stream::volumes`).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use warren_base::file::{sync_folder, write_atomic};
use warren_model::Time;
use warren_model::service::is_volume_name;
use warren_runtime::storage;

/// What containers see of a volume; Docker's name for it.
const DATA: &str = "_data";
const ABOUT: &str = "volume.json";
/// Volumes that are made or removed at the same time; others wait their turn.
const TURNS: usize = 32;
/// Of one node; a listing is one message.
pub(crate) const VOLUMES_MAX: usize = 10_000;

/// All volumes with a name.
#[derive(Debug)]
pub(crate) struct Volumes {
    folder: PathBuf,
    turns: [Mutex<()>; TURNS],
}

/// A volume as it is on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) created: Time,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) path: PathBuf,
}

/// What a new volume begins with.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    /// Of the image, topmost first; none: it is empty.
    pub(crate) layers: Vec<PathBuf>,
    /// What of it.
    pub(crate) path: String,
}

impl Volumes {
    /// Below `data_dir`; what an earlier process left half done goes.
    pub(crate) fn new(data_dir: &Path) -> Self {
        let folder = data_dir.join("volumes");
        sweep(&folder);
        Self { folder, turns: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Held while a volume is made or removed.
    pub(crate) async fn turn(&self, name: &str) -> MutexGuard<'_, ()> {
        let number = name.bytes().map(usize::from).sum::<usize>();
        self.turns[number % TURNS].lock().await
    }

    /// The folder that containers see, made if it is not there. The caller has its turn.
    pub(crate) fn take(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        content: &Content,
        now: Time,
    ) -> io::Result<PathBuf> {
        debug_assert!(is_volume_name(name));
        let (place, new) = (self.folder.join(name), self.folder.join(format!(".new.{name}")));
        let data = place.join(DATA);
        if data.is_dir() {
            return Ok(data);
        }
        private_folder(&self.folder)?;
        let about = json!({"created_ms": now.0, "labels": labels}).to_string();
        let made = fill(&new, content).and_then(|()| {
            write_atomic(&new.join(ABOUT), about.as_bytes(), 0o600)?;
            // Its name must not be on disk before its content.
            rustix::fs::syncfs(fs::File::open(&new)?)?;
            fs::rename(&new, &place)?;
            sync_folder(&self.folder)
        });
        match made {
            Ok(()) => Ok(data),
            Err(error) => {
                let _ = fs::remove_dir_all(&new);
                Err(error)
            }
        }
    }

    /// All, or those that are named, by name.
    pub(crate) fn list(&self, names: &[String]) -> io::Result<Vec<Volume>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries?,
        };
        for entry in entries {
            let name = entry?.file_name();
            let Some(name) = name.to_str().filter(|name| is_volume_name(name)) else { continue };
            if (names.is_empty() || names.iter().any(|wanted| wanted == name))
                && found.len() < VOLUMES_MAX
            {
                found.push(self.read(name));
            }
        }
        found.sort_by(|a: &Volume, b| a.name.cmp(&b.name));
        Ok(found)
    }

    fn read(&self, name: &str) -> Volume {
        let place = self.folder.join(name);
        // One that lost it, or never had it, is a volume still.
        let about = fs::read(place.join(ABOUT)).ok();
        let about = about.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let about = about.unwrap_or_default();
        let labels = about["labels"].as_object().into_iter().flatten();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Volume {
            name: name.to_owned(),
            created: Time(about["created_ms"].as_u64().unwrap_or(0)),
            labels: labels.map(|(key, value)| (key.clone(), text(value))).collect(),
            path: place.join(DATA),
        }
    }

    /// Removes one that no task uses. The caller has its turn.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        let gone = self.folder.join(format!(".gone.{name}"));
        match fs::remove_dir_all(&gone) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(self.folder.join(name), &gone)?;
        sync_folder(&self.folder)?;
        fs::remove_dir_all(&gone)
    }
}

/// The folder of a volume without a name, below `folder`, made if it is not there.
pub(crate) fn take_anonymous(folder: &Path, content: &Content) -> io::Result<PathBuf> {
    let (name, new) = (escaped(&content.path), folder.join(".new"));
    let place = folder.join(name);
    if place.is_dir() {
        return Ok(place.join(DATA));
    }
    private_folder(folder)?;
    fill(&new, content)?;
    fs::rename(&new, &place)?;
    Ok(place.join(DATA))
}

/// A target as a folder's name.
fn escaped(path: &str) -> String {
    const NAME_MAX: usize = 200;
    let mut name = path.replace('%', "%25").replace('/', "%2F");
    if name.len() > NAME_MAX {
        // FNV-1a, 64 bits: tells targets of one container apart.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        name.truncate(name.floor_char_boundary(NAME_MAX));
        name.push_str(&format!("-{hash:016x}"));
    }
    name
}

/// Makes `new/_data` with its content, in place of what a crash may have left.
fn fill(new: &Path, content: &Content) -> io::Result<()> {
    match fs::remove_dir_all(new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let data = new.join(DATA);
    fs::create_dir(new)?;
    fs::create_dir(&data)?;
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755))?;
    match content.layers.is_empty() {
        true => Ok(()),
        false => storage::populate(&content.layers, &content.path, &data),
    }
}

fn private_folder(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700))
}

/// Removes what begins with a dot: it was being made, or removed. Renamed first, since volumes of
/// these names may be made at once; the rest takes its time.
fn sweep(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    let mut left = Vec::new();
    for (number, entry) in entries.flatten().enumerate() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            let swept = folder.join(format!(".swept.{number}.{}", std::process::id()));
            if fs::rename(entry.path(), &swept).is_ok() {
                left.push(swept);
            }
        }
    }
    if left.is_empty() {
        return;
    }
    let work = move || {
        for folder in left {
            if let Err(error) = fs::remove_dir_all(&folder) {
                tracing::warn!(folder = %folder.display(), %error, "remove what is left of a volume");
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("sweep volumes".to_owned()).spawn(work) {
        tracing::warn!(%error, "remove what is left of volumes");
    }
}

/// Bytes on disk of all that is below a folder, as `du` counts; what goes away meanwhile is not.
pub(crate) fn size_of(folder: &Path) -> u64 {
    let (mut bytes, mut folders) = (0, vec![folder.to_owned()]);
    while let Some(next) = folders.pop() {
        let Ok(entries) = fs::read_dir(next) else { continue };
        for entry in entries.flatten() {
            // Not followed.
            let Ok(about) = entry.metadata() else { continue };
            bytes += about.blocks() * 512;
            if about.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Content = Content { layers: Vec::new(), path: String::new() };

    #[test]
    fn made_kept_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(dir.path());
        assert_eq!(volumes.list(&[]).unwrap(), []);
        let labels = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        let data = volumes.take("data", &labels, &EMPTY, Time(7)).unwrap();
        fs::write(data.join("file"), "kept").unwrap();
        assert_eq!(volumes.take("data", &BTreeMap::new(), &EMPTY, Time(9)).unwrap(), data);
        assert_eq!(fs::read_to_string(data.join("file")).unwrap(), "kept");
        let listed = volumes.list(&[]).unwrap();
        let expected = Volume { name: "data".into(), created: Time(7), labels, path: data.clone() };
        assert_eq!(listed, [expected]);
        assert!(size_of(&data) > 0);
        assert_eq!(volumes.list(&["other".to_owned()]).unwrap(), []);
        volumes.remove("data").unwrap();
        assert!(!data.exists());
        assert_eq!(volumes.remove("data").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn what_a_crash_left_is_no_volume() {
        let dir = tempfile::tempdir().unwrap();
        for name in [".new.data", ".gone.old"] {
            fs::create_dir_all(dir.path().join("volumes").join(name).join(DATA)).unwrap();
        }
        let volumes = Volumes::new(dir.path());
        assert_eq!(volumes.list(&[]).unwrap(), []);
        let data = volumes.take("data", &BTreeMap::new(), &EMPTY, Time(1)).unwrap();
        assert!(data.is_dir());
        assert!(!dir.path().join("volumes/.gone.old").exists());
    }

    #[test]
    fn content_of_an_image() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("layer");
        fs::create_dir_all(layer.join("srv/www")).unwrap();
        fs::write(layer.join("srv/www/index"), "hello").unwrap();
        let content = Content { layers: vec![layer], path: "/srv/www".to_owned() };
        let volumes = Volumes::new(dir.path());
        let data = volumes.take("www", &BTreeMap::new(), &content, Time(1)).unwrap();
        assert_eq!(fs::read_to_string(data.join("index")).unwrap(), "hello");
        let own = take_anonymous(&dir.path().join("task"), &content).unwrap();
        fs::write(own.join("index"), "changed").unwrap();
        let again = take_anonymous(&dir.path().join("task"), &content).unwrap();
        assert_eq!(fs::read_to_string(again.join("index")).unwrap(), "changed", "kept");
    }

    #[test]
    fn names_of_folders() {
        assert_eq!(escaped("/var/lib"), "%2Fvar%2Flib");
        assert_ne!(escaped("/a%2Fb"), escaped("/a/b"));
        let long = format!("/{}", "x/".repeat(300));
        assert!(escaped(&long).len() < 255);
        assert_ne!(escaped(&long), escaped(&format!("{long}y")));
    }
}
