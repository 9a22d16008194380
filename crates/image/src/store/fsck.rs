//! Is the store what it should be? Everything is read and compared; repaired is only
//! what nothing uses.
//!
//! A layer with a recipe is compared with the tar it came from: every byte of content by
//! its digest, and kind, mode, owner and target of every entry. Of others the folder has
//! to be there. Nothing that is looked at is removed meanwhile by others, and nothing
//! that others work on is taken for a leftover.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::index::Index;
use super::layers::{Hold, wanted};
use super::{Inner, Store};
use crate::digest::{Digest, Hasher};
use crate::disk;
use crate::error::Error;
use crate::manifest::Config;
use crate::recipe::{Broken, Replay};
use crate::tarball::{self, Kind, Member};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What it is about: an image by its name, a path below the store's folder.
    pub what: String,
    pub problem: String,
    /// Is as it should be again.
    pub repaired: bool,
    /// What a person is to do; empty: nothing.
    pub hint: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Checked {
    pub faults: Vec<Fault>,
    pub images: usize,
    /// Compared to the last byte.
    pub layers: usize,
    /// Without a recipe: only their folders are known to be there.
    pub unverified: usize,
}

/// What is wrong with one image.
enum Damage {
    /// It cannot be used: it has to come anew.
    Image(String),
    /// What its manifest was is lost; it runs all the same.
    Manifest(String),
    /// A layer cannot be written out any more; it runs all the same.
    Recipe(Digest, String),
}

impl Store {
    /// Checks everything; with `repair` removes what is damaged or superfluous, but never an
    /// image of `in_use`, which are ids. Reads all layers: it takes as long as the disk does.
    pub async fn fsck(&self, repair: bool, in_use: &BTreeSet<String>) -> Result<Checked, Error> {
        let in_use = in_use.clone();
        self.blocking("checking the store", move |inner| {
            let mut checked = Checked::default();
            // First: what a damaged image leaves is no leftover of its own.
            inner.check_leftovers(repair, &mut checked)?;
            inner.check_images(repair, &in_use, &mut checked)?;
            Ok(checked)
        })
        .await
    }
}

impl Inner {
    fn check_images(
        self: &Arc<Self>,
        repair: bool,
        in_use: &BTreeSet<String>,
        checked: &mut Checked,
    ) -> Result<(), Error> {
        // A layer of several images is read once.
        let mut known = BTreeMap::new();
        let ids = self.index().ids();
        for id in &ids {
            checked.images += 1;
            let Some((hold, damages)) = self.check_image(id, &mut known, checked) else {
                // Removed meanwhile.
                checked.images -= 1;
                continue;
            };
            // What is damaged may go now.
            drop(hold);
            for damage in damages {
                let fault = self.fault(id, damage, repair, in_use)?;
                checked.faults.push(fault);
            }
        }
        self.collect_gone(ids.iter().map(String::as_str))
    }

    /// What is wrong with an image, whose layers stay for as long as the hold does.
    fn check_image(
        self: &Arc<Self>,
        id: &str,
        known: &mut BTreeMap<Digest, Option<LayerFault>>,
        checked: &mut Checked,
    ) -> Option<(Option<Hold>, Vec<Damage>)> {
        let mut damages = Vec::new();
        let digest: Digest = id.parse().ok()?;
        let config = self.blob(&digest).and_then(|bytes| Config::parse(&bytes).ok());
        let Some(config) = config else {
            // Still there: its config is not.
            self.index().image(id)?;
            return Some((
                None,
                vec![Damage::Image("its config is missing or altered".to_owned())],
            ));
        };
        let wanted = wanted(&config.diff_ids);
        let hold = Hold::new(self, &wanted);
        let manifest = self.index().manifest(id)?;
        if let Some(manifest) = manifest.filter(|manifest| self.blob(manifest).is_none()) {
            let problem = format!("its manifest {} is missing or altered", manifest.short());
            damages.push(Damage::Manifest(problem));
        }
        for layer in &wanted {
            let fault = known.entry(layer.chain.clone()).or_insert_with(|| {
                let (fault, verified) = self.check_layer(&layer.chain, &layer.diff);
                *(if verified { &mut checked.layers } else { &mut checked.unverified }) += 1;
                fault
            });
            let short = layer.chain.short();
            match fault {
                None => {}
                Some(LayerFault::Folder(problem)) => {
                    damages.push(Damage::Image(format!("layer {short}: {problem}")));
                }
                Some(LayerFault::Recipe(problem)) => {
                    damages.push(Damage::Recipe(layer.chain.clone(), problem.clone()));
                }
            }
        }
        Some((Some(hold), damages))
    }

    fn check_layer(&self, chain: &Digest, diff: &Digest) -> (Option<LayerFault>, bool) {
        let (folder, recipe) = (self.layer_path(chain), self.recipe_path(chain));
        if !folder.symlink_metadata().is_ok_and(|about| about.is_dir()) {
            return (Some(LayerFault::Folder("its folder is missing".to_owned())), false);
        }
        if !recipe.exists() {
            return (None, false);
        }
        (compare(&recipe, &folder, diff).err(), true)
    }

    /// Tells of a damage, and repairs it if that is wanted and possible.
    fn fault(
        &self,
        id: &str,
        damage: Damage,
        repair: bool,
        in_use: &BTreeSet<String>,
    ) -> Result<Fault, Error> {
        let names: Vec<String> = self.index().names_of(id);
        let names: Vec<String> = names.iter().map(|name| super::remove::familiar(name)).collect();
        let what = format!("image {}", names.first().map_or(id, String::as_str));
        let fault = |problem: String, hint: &str| Fault {
            what: what.clone(),
            problem,
            repaired: false,
            hint: hint.to_owned(),
        };
        let mut fault = match &damage {
            Damage::Image(problem) if in_use.contains(id) => {
                let hint = "it is in use: remove what uses it, then repair, then pull it again";
                return Ok(fault(problem.clone(), hint));
            }
            Damage::Image(problem) => fault(problem.clone(), "pull or load it again"),
            Damage::Manifest(problem) => {
                fault(problem.clone(), "it runs; pushed, it gets another digest")
            }
            Damage::Recipe(chain, problem) => fault(
                format!("layer {}: {problem}", chain.short()),
                "it runs; saved or pushed, it gets another id",
            ),
        };
        if !repair {
            return Ok(fault);
        }
        let writer = self.writer();
        let mut index = Index::clone(&self.index());
        match damage {
            Damage::Image(_) => index.remove_image(id),
            Damage::Manifest(_) => index.forget_manifest(id),
            Damage::Recipe(chain, _) => {
                let path = self.recipe_path(&chain);
                match fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::at("remove", &path, error));
                    }
                    Ok(()) | Err(_) => {}
                }
            }
        }
        self.replace_index(index)?;
        let rubbish = self.set_aside()?;
        drop(writer);
        self.discard(rubbish)?;
        fault.repaired = true;
        Ok(fault)
    }

    /// What nothing refers to.
    fn check_leftovers(&self, repair: bool, checked: &mut Checked) -> Result<(), Error> {
        let writer = self.writer();
        let index = self.index();
        let (layers, blobs) = (index.layers(), index.blobs());
        let pulling: BTreeSet<String> =
            self.held().counts.keys().map(|chain| chain.hex().to_owned()).collect();
        let mut extra: Vec<PathBuf> = Vec::new();
        for (folder, kept) in [("layers", &layers), ("recipes", &layers), ("blobs/sha256", &blobs)]
        {
            let path = self.dir.join(folder);
            let listed = || -> io::Result<Vec<PathBuf>> {
                fs::read_dir(&path)?.map(|entry| Ok(entry?.path())).collect()
            };
            let listed = listed().map_err(|error| Error::at("read", &path, error))?;
            extra.extend(listed.into_iter().filter(|path| {
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let is_coming = folder != "blobs/sha256" && pulling.contains(name);
                !kept.contains(name) && !is_coming
            }));
        }
        let tmp = self.dir.join("tmp");
        let left = self.scratch.leftovers().map_err(|error| Error::at("read", &tmp, error))?;
        let rubbish = if repair { self.set_aside()? } else { Vec::new() };
        drop(writer);
        self.discard(rubbish)?;
        for path in &left {
            if repair {
                disk::remove(path).map_err(|error| Error::at("remove", path, error))?;
            }
        }
        extra.extend(left);
        checked.faults.extend(extra.iter().map(|path| Fault {
            what: path.strip_prefix(&self.dir).unwrap_or(path).display().to_string(),
            problem: "belongs to no image".to_owned(),
            repaired: repair,
            hint: String::new(),
        }));
        Ok(())
    }
}

enum LayerFault {
    /// It is not what was unpacked.
    Folder(String),
    /// It is not known what was unpacked.
    Recipe(String),
}

/// Reads the tar that the folder came from and compares both.
fn compare(recipe: &Path, folder: &Path, diff: &Digest) -> Result<(), LayerFault> {
    let broken = |error: io::Error| match error.get_ref().and_then(|e| e.downcast_ref()) {
        Some(Broken::Recipe) => LayerFault::Recipe("its recipe is damaged".to_owned()),
        _ => LayerFault::Folder(error.to_string()),
    };
    let replay = Replay::open(recipe, folder).map_err(broken)?;
    let mut hashed = Hashed { inner: replay, hasher: Hasher::default() };
    let mut reader = tarball::Reader::new(&mut hashed);
    let root = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
        .map_err(|error| broken(error.into()))?;
    // The first is told: a folder that is wholly wrong has as many as it has entries.
    let mut wrong = None;
    loop {
        match reader.next() {
            Ok(None) => break,
            Ok(Some(member)) if wrong.is_none() => {
                wrong = differs(&root, &member).map(|how| format!("\"{}\" {how}", member.name()));
            }
            Ok(Some(_)) => {}
            Err(tarball::Error::Read(error)) => return Err(broken(error)),
            Err(tarball::Error::Bad(_)) => {
                return Err(LayerFault::Recipe("its recipe is no tar".to_owned()));
            }
        }
    }
    io::copy(&mut reader.into_inner(), &mut io::sink()).map_err(broken)?;
    if let Some(first) = wrong {
        return Err(LayerFault::Folder(first));
    }
    match hashed.hasher.finish() == *diff {
        true => Ok(()),
        false => Err(LayerFault::Folder("content is altered".to_owned())),
    }
}

/// How what is in the folder differs from an entry of the tar. Folders may have an entry
/// several times, so their mode says nothing; whiteouts may hide what the same layer holds.
fn differs(root: impl std::os::fd::AsFd, member: &Member) -> Option<&'static str> {
    let name = member.path.rsplit(|byte| *byte == b'/').find(|part| !part.is_empty())?;
    if member.kind == Kind::Device || name.starts_with(b".wh.") || name == b"." {
        return None;
    }
    // As at unpacking: parents through links, the last part is no link that is followed.
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path: &[u8] = match member.path.iter().rposition(|byte| *byte != b'/') {
        Some(last) => &member.path[..=last],
        None => return None,
    };
    let Ok(fd) = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) else {
        return Some("is missing");
    };
    let file = fs::File::from(fd);
    let Ok(about) = file.metadata() else { return Some("cannot be looked at") };
    let kind = about.file_type();
    let same = match member.kind {
        Kind::File => kind.is_file() && about.len() == member.size,
        Kind::Dir => return (!kind.is_dir()).then_some("is no folder"),
        Kind::Symlink => kind.is_symlink() && target(&file).as_deref() == Some(&member.link[..]),
        // Its own attributes are those of what it links to.
        Kind::HardLink => return (about.nlink() < 2).then_some("is no hard link any more"),
        Kind::Fifo => kind.is_fifo(),
        Kind::Device => true,
    };
    if !same {
        return Some("is something else than it was");
    }
    let (uid, gid) = (u64::from(about.uid()), u64::from(about.gid()));
    if (uid, gid) != (member.uid, member.gid) {
        return Some("has another owner");
    }
    let mode = about.mode() & 0o7777;
    (!kind.is_symlink() && mode != member.mode).then_some("has another mode")
}

fn target(link: &fs::File) -> Option<Vec<u8>> {
    let target = rustix::fs::readlinkat(link, "", Vec::new()).ok()?;
    Some(target.to_bytes().to_vec())
}

struct Hashed<R> {
    inner: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}
