//! Archives of images: `docker save`, skopeo's docker-archive, OCI layouts in a tar.
//!
//! Members come in any order, so the archive is written to a nameless file first
//! and indexed on the way; layers are then read from where they lie. Contract:
//! documents are bounded and blobs named by digest are checked against it, layers
//! by whoever unpacks them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;

use crate::decode;
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::{self, CONFIG_LEN_MAX, Document, LAYERS_MAX, MANIFEST_LEN_MAX};
use crate::reference::Reference;
use crate::tarball::{self, Kind};
use crate::unpack::{Aborted, is_full};

/// Three per layer in old archives, and a few hundred images at most.
const MEMBERS_MAX: usize = 100_000;
/// Old archives replace repeated layers by links.
const LINKS_MAX: usize = 8;
const BUFFER_LEN: usize = 128 * 1024;

/// Where a member lies.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    len: u64,
}

/// An archive on disk.
pub(crate) struct Archive {
    file: File,
    members: BTreeMap<String, Extent>,
    /// Symbolic and hard links between members.
    links: BTreeMap<String, String>,
}

/// One image of an archive.
#[derive(Debug)]
pub(crate) struct Packed {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) names: Vec<Reference>,
    /// The lowest first.
    pub(crate) layers: Vec<PackedLayer>,
}

#[derive(Debug)]
pub(crate) struct PackedLayer {
    member: String,
    /// Of the bytes in the archive, if it says so.
    pub(crate) blob: Option<Digest>,
    pub(crate) len: u64,
}

fn bad<T>(problem: impl Into<String>) -> Result<T, Error> {
    Err(Error::BadArchive { problem: problem.into() })
}

impl Archive {
    /// Takes an archive from a stream, compressed or not, into `file`. Blocking.
    pub(crate) fn spool(source: impl Read, file: File) -> Result<Self, Error> {
        let mut archive = Self { file, members: BTreeMap::new(), links: BTreeMap::new() };
        let writer = archive.file.try_clone().map_err(|error| Error::io("open archive", error))?;
        let source = decode::decode(source).map_err(explain)?;
        let tee = Tee { source, file: writer };
        let mut reader = tarball::Reader::new(io::BufReader::with_capacity(BUFFER_LEN, tee));
        loop {
            let member = match reader.next() {
                Ok(Some(member)) => member,
                Ok(None) => break,
                Err(tarball::Error::Bad(problem)) => return bad(problem),
                Err(tarball::Error::Read(error)) => return Err(explain(error)),
            };
            let Ok(path) = std::str::from_utf8(&member.path) else {
                return bad(format!("name \"{}\" is no text", member.name()));
            };
            let name = normal(path);
            if archive.members.len() + archive.links.len() >= MEMBERS_MAX {
                return bad(format!("more than {MEMBERS_MAX} members"));
            }
            match member.kind {
                Kind::File if member.sparse.is_none() => {
                    let extent = Extent { offset: member.offset, len: member.size };
                    archive.members.insert(name, extent);
                }
                Kind::Symlink | Kind::HardLink => {
                    let target = String::from_utf8_lossy(&member.link);
                    let folder = match (member.kind, name.rsplit_once('/')) {
                        (Kind::Symlink, Some((folder, _))) => folder,
                        _ => "",
                    };
                    archive.links.insert(name.clone(), normal(&format!("{folder}/{target}")));
                }
                Kind::File | Kind::Dir | Kind::Fifo | Kind::Device => {}
            }
        }
        Ok(archive)
    }

    /// What is in it, for this node's platform.
    pub(crate) fn images(&self, base: Option<&Reference>) -> Result<Vec<Packed>, Error> {
        // Newer `docker save` writes both; its own list has the names.
        if self.find("manifest.json").is_some() {
            self.docker_images()
        } else if self.find("index.json").is_some() {
            self.oci_images(base)
        } else {
            bad("neither manifest.json nor index.json is in it")
        }
    }

    /// A layer's bytes as packed.
    pub(crate) fn open(&self, layer: &PackedLayer) -> Result<impl Read + '_, Error> {
        match self.find(&layer.member) {
            Some(extent) => Ok(Slice { file: &self.file, extent }),
            None => bad(format!("{} is missing", layer.member)),
        }
    }

    fn docker_images(&self) -> Result<Vec<Packed>, Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Listed {
            config: String,
            repo_tags: Option<Vec<String>>,
            layers: Vec<String>,
        }
        let bytes = self.read("manifest.json", MANIFEST_LEN_MAX)?;
        let listed: Vec<Listed> = serde_json::from_slice(&bytes)
            .or_else(|error| bad(format!("manifest.json is unreadable: {error}")))?;
        listed
            .into_iter()
            .map(|image| {
                let names = image
                    .repo_tags
                    .unwrap_or_default()
                    .iter()
                    .map(|name| name.parse::<Reference>())
                    .collect::<Result<_, _>>()?;
                let layers = image.layers.iter().map(|name| self.layer(name, None));
                Ok(Packed {
                    config: self.read(&image.config, CONFIG_LEN_MAX)?,
                    manifest: None,
                    names,
                    layers: bounded(layers)?,
                })
            })
            .collect()
    }

    fn oci_images(&self, base: Option<&Reference>) -> Result<Vec<Packed>, Error> {
        let bytes = self.read("index.json", MANIFEST_LEN_MAX)?;
        let problem = |problem| Error::BadArchive { problem: format!("index.json: {problem}") };
        let Document::Index(entries) = manifest::parse(&bytes).map_err(problem)? else {
            return bad("index.json is no index");
        };
        let mut images: Vec<Packed> = Vec::new();
        let mut others = Vec::new();
        for entry in &entries {
            // One that is for another platform, or the list of one image's platforms.
            if let Err(available) = manifest::choose(std::slice::from_ref(entry)) {
                others.extend(available);
                continue;
            }
            let name = entry.name.as_deref().map(|name| full_name(name, base)).transpose()?;
            match self.oci_image(&entry.blob.digest, name.flatten(), base)? {
                Ok(image) => images.push(image),
                Err(available) => others.extend(available),
            }
        }
        if images.is_empty() {
            return Err(Error::NoPlatform {
                image: "in the archive".to_owned(),
                platform: manifest::host_platform(),
                available: others,
            });
        }
        Ok(images)
    }

    /// The image behind a manifest or an index of platforms, or which platforms there are.
    fn oci_image(
        &self,
        digest: &Digest,
        name: Option<Reference>,
        base: Option<&Reference>,
    ) -> Result<Result<Packed, Vec<String>>, Error> {
        let problem = |problem| Error::BadArchive {
            problem: format!("manifest {}: {problem}", digest.short()),
        };
        let mut bytes = self.blob(digest, MANIFEST_LEN_MAX)?;
        let manifest = match manifest::parse(&bytes).map_err(problem)? {
            Document::Image(manifest) => manifest,
            Document::Index(entries) => {
                let chosen = match manifest::choose(&entries) {
                    Ok(chosen) => chosen,
                    Err(available) => return Ok(Err(available)),
                };
                bytes = self.blob(&chosen.blob.digest, MANIFEST_LEN_MAX)?;
                match manifest::parse(&bytes).map_err(problem)? {
                    Document::Image(manifest) => manifest,
                    Document::Index(_) => return bad("an index inside of an index"),
                }
            }
        };
        let layers = manifest
            .layers
            .iter()
            .map(|blob| self.layer(&blob_name(&blob.digest), Some(blob.digest.clone())));
        Ok(Ok(Packed {
            config: self.blob(&manifest.config.digest, CONFIG_LEN_MAX)?,
            layers: bounded(layers)?,
            manifest: Some(bytes),
            names: name.or_else(|| base.cloned()).into_iter().collect(),
        }))
    }

    fn layer(&self, name: &str, blob: Option<Digest>) -> Result<PackedLayer, Error> {
        let member = normal(name);
        match self.find(&member) {
            Some(extent) => Ok(PackedLayer { member, blob, len: extent.len }),
            None => bad(format!("layer {name:?} is missing")),
        }
    }

    fn blob(&self, digest: &Digest, len_max: u64) -> Result<Vec<u8>, Error> {
        let bytes = self.read(&blob_name(digest), len_max)?;
        let actual = Digest::of(&bytes);
        if actual == *digest {
            Ok(bytes)
        } else {
            Err(Error::DigestMismatch {
                what: format!("{} in the archive", blob_name(digest)),
                expected: digest.to_string(),
                actual: actual.to_string(),
            })
        }
    }

    fn read(&self, name: &str, len_max: u64) -> Result<Vec<u8>, Error> {
        let Some(extent) = self.find(&normal(name)) else {
            return bad(format!("{name:?} is missing"));
        };
        if extent.len > len_max {
            return bad(format!("{name:?} has {} bytes, {len_max} are allowed", extent.len));
        }
        let mut bytes = Vec::new();
        Slice { file: &self.file, extent }
            .read_to_end(&mut bytes)
            .map_err(|error| Error::io("read archive", error))?;
        Ok(bytes)
    }

    fn find(&self, name: &str) -> Option<Extent> {
        let mut name = name;
        for _ in 0..LINKS_MAX {
            if let Some(extent) = self.members.get(name) {
                return Some(*extent);
            }
            name = self.links.get(name)?;
        }
        None
    }
}

fn bounded(
    layers: impl ExactSizeIterator<Item = Result<PackedLayer, Error>>,
) -> Result<Vec<PackedLayer>, Error> {
    match layers.len() {
        0 => bad("an image has no layers"),
        count if count > LAYERS_MAX => bad(format!("{count} layers, {LAYERS_MAX} are allowed")),
        _ => layers.collect(),
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The name an annotation gives: full names as they are, a bare tag (umoci, skopeo)
/// in the repository that the caller named. Without one the image stays nameless.
fn full_name(text: &str, base: Option<&Reference>) -> Result<Option<Reference>, Error> {
    if text.contains(['/', ':', '@']) {
        return Ok(Some(text.parse()?));
    }
    Ok(base.map(|base| base.with_tag(text)).transpose()?)
}

/// Without `.`, `..` and doubled slashes; members are only looked up by this name.
fn normal(path: &str) -> String {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn explain(error: io::Error) -> Error {
    match error.get_ref() {
        Some(inner) if inner.is::<Aborted>() => {
            Error::Interrupted { what: "reading the archive".to_owned() }
        }
        _ if is_full(&error) => Error::DiskFull { what: "the archive".to_owned() },
        _ if error.raw_os_error().is_some() => Error::io("store archive", error),
        _ => Error::BadArchive { problem: error.to_string() },
    }
}

/// Writes down what is read.
struct Tee<R> {
    source: R,
    file: File,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.file.write_all(&buffer[..count])?;
        Ok(count)
    }
}

/// A part of a file, read by position: several may be open at once.
struct Slice<'a> {
    file: &'a File,
    extent: Extent,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.extent.len).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read_at(&mut buffer[..want], self.extent.offset)?;
        self.extent.offset += count as u64;
        self.extent.len -= count as u64;
        Ok(count)
    }
}
