//! Manifests, indices and configs: checked once here, trusted afterwards.
//!
//! Both families are read: Docker's (version 2, schema 2) and OCI's. Contract: a
//! [`Manifest`] has at least one layer, and as many as its [`Config`] has diff ids.

use std::collections::BTreeSet;

use oci_spec::image as oci;

use crate::digest::Digest;
use crate::{ImageConfig, ImageHealth};

/// Real ones have a few KiB, an index of forty platforms 30 KiB. Docker's limit.
pub(crate) const MANIFEST_LEN_MAX: u64 = 4 << 20;
/// A config holds the history of every layer: hundreds of KiB at worst.
pub(crate) const CONFIG_LEN_MAX: u64 = 8 << 20;
/// Docker's limit; overlayfs stacks up to 500 folders.
pub(crate) const LAYERS_MAX: usize = 127;
/// Entries of an index: platforms and their attestations.
const INDEX_ENTRIES_MAX: usize = 1024;

pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What is wrong with a document, for people.
pub(crate) type Problem = String;

/// Content by digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Blob,
    /// The lowest first.
    pub(crate) layers: Vec<Blob>,
}

/// One entry of an index.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) blob: Blob,
    /// `linux/arm64/v8`; none when the index does not say.
    platform: Option<(String, String, String)>,
    pub(crate) name: Option<String>,
}

#[derive(Debug)]
pub(crate) enum Document {
    Image(Manifest),
    Index(Vec<Entry>),
}

/// A config as stored, and what was read from it.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) config: ImageConfig,
    pub(crate) diff_ids: Vec<Digest>,
    /// RFC 3339, as the builder wrote it.
    pub(crate) created: Option<String>,
}

#[derive(serde::Deserialize)]
struct Probe {
    #[serde(rename = "schemaVersion")]
    schema_version: Option<u64>,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index.
pub(crate) fn parse(bytes: &[u8]) -> Result<Document, Problem> {
    let probe: Probe = json(bytes)?;
    match probe.schema_version {
        Some(2) => {}
        Some(1) => return Err("schema 1 is no longer supported, push the image again".to_owned()),
        Some(other) => return Err(format!("unknown schema version {other}")),
        None => return Err("schemaVersion is missing".to_owned()),
    }
    // One document that is both means different things to different readers (CVE-2021-41190).
    let is_index = probe.manifests.is_some();
    let is_image = probe.config.is_some() || probe.layers.is_some();
    match (is_index, is_image, probe.media_type.as_deref()) {
        (true, false, None | Some(OCI_INDEX | DOCKER_LIST)) => index(bytes).map(Document::Index),
        (false, true, None | Some(OCI_MANIFEST | DOCKER_MANIFEST)) => {
            image(bytes).map(Document::Image)
        }
        (true, true, _) => Err("both an index and a manifest".to_owned()),
        (_, _, Some(media_type)) => Err(format!("unknown media type {media_type:?}")),
        (false, false, None) => Err("neither a manifest nor an index".to_owned()),
    }
}

fn json<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|error| format!("unreadable: {error}"))
}

fn image(bytes: &[u8]) -> Result<Manifest, Problem> {
    let manifest: oci::ImageManifest = json(bytes)?;
    let media_type = manifest.config().media_type().to_string();
    if !matches!(media_type.as_str(), DOCKER_CONFIG | OCI_CONFIG) {
        return Err(format!("no container image but {media_type:?}"));
    }
    match manifest.layers().len() {
        0 => return Err("it has no layers".to_owned()),
        count if count > LAYERS_MAX => {
            return Err(format!("{count} layers, {LAYERS_MAX} are allowed"));
        }
        _ => {}
    }
    Ok(Manifest {
        config: blob(manifest.config())?,
        layers: manifest.layers().iter().map(blob).collect::<Result<_, _>>()?,
    })
}

fn blob(descriptor: &oci::Descriptor) -> Result<Blob, Problem> {
    let digest = descriptor.digest().to_string().parse().map_err(|error| format!("{error}"))?;
    Ok(Blob { digest, size: descriptor.size() })
}

fn index(bytes: &[u8]) -> Result<Vec<Entry>, Problem> {
    let index: oci::ImageIndex = json(bytes)?;
    if index.manifests().len() > INDEX_ENTRIES_MAX {
        let count = index.manifests().len();
        return Err(format!("index of {count} entries, {INDEX_ENTRIES_MAX} are allowed"));
    }
    index.manifests().iter().map(entry).collect()
}

fn entry(descriptor: &oci::Descriptor) -> Result<Entry, Problem> {
    let platform = descriptor.platform().as_ref().map(|platform| {
        let variant = platform.variant().clone().unwrap_or_default();
        (platform.os().to_string(), platform.architecture().to_string(), variant)
    });
    let name = descriptor.annotations().as_ref().and_then(|annotations| {
        // containerd writes the full name, everybody else the tag or the name.
        ["io.containerd.image.name", oci::ANNOTATION_REF_NAME]
            .into_iter()
            .find_map(|key| annotations.get(key).cloned())
    });
    Ok(Entry { blob: blob(descriptor)?, platform, name })
}

/// The architecture of this node in the images' words.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "riscv64" => "riscv64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// `linux/amd64`
pub(crate) fn host_platform() -> String {
    format!("linux/{}", host_architecture())
}

/// The entry for this node, or the platforms there are.
pub(crate) fn choose(entries: &[Entry]) -> Result<&Entry, Vec<String>> {
    let host = host_architecture();
    // The plainest variant runs everywhere: amd64 before amd64/v3.
    let exact = entries
        .iter()
        .filter_map(|entry| match &entry.platform {
            Some((os, arch, variant)) if os == "linux" && arch == host => Some((variant, entry)),
            _ => None,
        })
        .min_by(|a, b| a.0.cmp(b.0));
    if let Some((_, entry)) = exact {
        return Ok(entry);
    }
    // Without a platform the config tells, once it is there.
    entries.iter().find(|entry| entry.platform.is_none()).ok_or_else(|| {
        let mut names: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            .filter(|(os, _, _)| os != "unknown")
            .map(|(os, arch, variant)| match variant.as_str() {
                "" => format!("{os}/{arch}"),
                variant => format!("{os}/{arch}/{variant}"),
            })
            .collect();
        names.sort();
        names.dedup();
        names
    })
}

/// `linux/arm64` of each entry of an index, variants left out; none if one does not say.
pub(crate) fn platforms(entries: &[Entry]) -> BTreeSet<String> {
    if entries.iter().any(|entry| entry.platform.is_none()) {
        return BTreeSet::new();
    }
    let known = entries.iter().filter_map(|entry| entry.platform.as_ref());
    // Attestations are for an unknown one.
    let known = known.filter(|(os, _, _)| os != "unknown");
    known.map(|(os, architecture, _)| format!("{os}/{architecture}")).collect()
}

/// What a type has when it is absent; Docker writes null for that.
pub(crate) fn or_default<'de, D, T>(reader: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: serde::Deserialize<'de> + Default,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(reader)?.unwrap_or_default())
}

/// The part that the OCI's types do not know; nothing, if it is not as Docker writes it.
fn health(bytes: &[u8]) -> Option<ImageHealth> {
    #[derive(serde::Deserialize)]
    struct Outer {
        config: Option<Inner>,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Inner {
        healthcheck: Option<ImageHealth>,
    }
    let outer: Outer = json(bytes).ok()?;
    outer.config?.healthcheck
}

impl Config {
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let parsed: oci::ImageConfiguration = json(bytes)?;
        let diff_ids = parsed
            .rootfs()
            .diff_ids()
            .iter()
            .map(|id| id.parse().map_err(|error| format!("diff id: {error}")))
            .collect::<Result<Vec<_>, _>>()?;
        let mut config = ImageConfig {
            architecture: parsed.architecture().to_string(),
            os: parsed.os().to_string(),
            ..ImageConfig::default()
        };
        if let Some(settings) = parsed.config() {
            config.entrypoint = settings.entrypoint().clone().unwrap_or_default();
            config.cmd = settings.cmd().clone().unwrap_or_default();
            config.env = settings.env().clone().unwrap_or_default();
            config.workdir = settings.working_dir().clone().unwrap_or_default();
            config.user = settings.user().clone().unwrap_or_default();
            config.stop_signal = settings.stop_signal().clone().unwrap_or_default();
            config.exposed_ports = settings.exposed_ports().clone().unwrap_or_default();
            config.volumes = settings.volumes().clone().unwrap_or_default();
            config.labels = settings.labels().clone().unwrap_or_default().into_iter().collect();
        }
        config.health = health(bytes);
        // They come out of hash maps.
        config.exposed_ports.sort();
        config.volumes.sort();
        Ok(Self { config, diff_ids, created: parsed.created().clone() })
    }

    /// Whether it can run here; a config that names no platform is taken at its word.
    pub(crate) fn is_for_host(&self) -> bool {
        let says = |name: &str, value: &str| name.is_empty() || name == value;
        says(&self.config.os, "linux") && says(&self.config.architecture, host_architecture())
    }

    /// As stored: the same config always gives the same bytes.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        use serde_json::{Map, Value, json};
        let set = |names: &[String]| {
            names.iter().map(|name| (name.clone(), json!({}))).collect::<Map<String, Value>>()
        };
        let config = &self.config;
        let mut settings = Map::new();
        let mut put = |key: &str, empty: bool, value: Value| {
            if !empty {
                settings.insert(key.to_owned(), value);
            }
        };
        put("Entrypoint", config.entrypoint.is_empty(), json!(config.entrypoint));
        put("Cmd", config.cmd.is_empty(), json!(config.cmd));
        put("Env", config.env.is_empty(), json!(config.env));
        put("WorkingDir", config.workdir.is_empty(), json!(config.workdir));
        put("User", config.user.is_empty(), json!(config.user));
        put("StopSignal", config.stop_signal.is_empty(), json!(config.stop_signal));
        put("ExposedPorts", config.exposed_ports.is_empty(), json!(set(&config.exposed_ports)));
        put("Volumes", config.volumes.is_empty(), json!(set(&config.volumes)));
        put("Labels", config.labels.is_empty(), json!(config.labels));
        put("Healthcheck", config.health.is_none(), json!(config.health));
        let mut document = json!({
            "architecture": config.architecture,
            "os": config.os,
            "config": settings,
            "rootfs": {
                "type": "layers",
                "diff_ids": self.diff_ids.iter().map(Digest::as_str).collect::<Vec<_>>(),
            },
            "history": [{ "comment": "imported" }],
        });
        if let Some(created) = &self.created {
            document["created"] = json!(created);
        }
        document.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(media_type: &str, text: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": Digest::of(text.as_bytes()).as_str(), "size": text.len()})
    }

    fn manifest() -> serde_json::Value {
        json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, "config"),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", "layer")],
        })
    }

    fn platform(os: &str, arch: &str, variant: Option<&str>) -> serde_json::Value {
        let mut entry = descriptor(OCI_MANIFEST, &format!("{os}{arch}{variant:?}"));
        entry["platform"] = json!({"os": os, "architecture": arch});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = json!(variant);
        }
        entry
    }

    fn chosen(entries: Vec<serde_json::Value>) -> Result<Digest, Vec<String>> {
        let text = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        let Ok(Document::Index(entries)) = parse(text.as_bytes()) else {
            panic!("no index");
        };
        choose(&entries).map(|entry| entry.blob.digest.clone())
    }

    #[test]
    fn manifests_are_read() {
        let Document::Image(image) = parse(manifest().to_string().as_bytes()).unwrap() else {
            panic!("an index");
        };
        assert_eq!(image.config, Blob { digest: Digest::of(b"config"), size: 6 });
        assert_eq!(image.layers.len(), 1);
    }

    #[track_caller]
    fn refuse(change: impl FnOnce(&mut serde_json::Value), problem: &str) {
        let mut document = manifest();
        change(&mut document);
        let found = parse(document.to_string().as_bytes()).expect_err(problem);
        assert!(found.contains(problem), "{found}");
    }

    #[test]
    fn bad_manifests_are_refused() {
        refuse(|m| m["schemaVersion"] = json!(1), "schema 1");
        refuse(|m| m["schemaVersion"] = json!(3), "schema version 3");
        refuse(|m| m["schemaVersion"] = json!(null), "missing");
        refuse(|m| m["manifests"] = json!([]), "both an index and a manifest");
        refuse(|m| m["mediaType"] = json!("text/html"), "text/html");
        refuse(|m| m["mediaType"] = json!(OCI_INDEX), "unknown media type");
        refuse(|m| m["layers"] = json!([]), "no layers");
        refuse(|m| m["layers"][0]["digest"] = json!("sha256:../../x"), "unreadable");
        refuse(|m| m["layers"][0]["size"] = json!(-1), "unreadable");
        refuse(
            |m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json"),
            "helm",
        );
        let layer = manifest()["layers"][0].clone();
        refuse(|m| m["layers"] = json!(vec![layer; 128]), "128 layers");
        assert!(parse(b"<html>").unwrap_err().contains("unreadable"));
        assert!(parse(b"{\"schemaVersion\":2}").unwrap_err().contains("neither"));
    }

    #[test]
    fn the_plainest_build_for_this_node_is_chosen() {
        let host = host_architecture();
        let plain = Digest::of(format!("linux{host}None").as_bytes());
        let entries = vec![
            platform("windows", host, None),
            platform("linux", host, Some("v3")),
            platform("linux", host, None),
            platform("linux", "s390x", None),
        ];
        assert_eq!(chosen(entries), Ok(plain));
        let unknown = descriptor(OCI_MANIFEST, "unknown");
        let entries = vec![platform("linux", "s390x", None), unknown];
        assert_eq!(chosen(entries), Ok(Digest::of(b"unknown")));
        let entries = vec![platform("linux", "s390x", None), platform("unknown", "unknown", None)];
        assert_eq!(chosen(entries), Err(vec!["linux/s390x".to_owned()]));
    }

    #[test]
    fn configs_survive_writing() {
        let config = Config {
            config: ImageConfig {
                entrypoint: vec!["/bin/sh".into()],
                env: vec!["A=b".into()],
                exposed_ports: vec!["80/tcp".into()],
                volumes: vec!["/data".into()],
                labels: [("k".to_owned(), "v".to_owned())].into(),
                user: "1000".into(),
                health: Some(ImageHealth {
                    test: vec!["CMD".into(), "/check".into()],
                    interval: 5_000_000_000,
                    ..ImageHealth::default()
                }),
                architecture: host_architecture().into(),
                os: "linux".into(),
                ..ImageConfig::default()
            },
            diff_ids: vec![Digest::of(b"layer")],
            created: None,
        };
        let read = Config::parse(&config.to_json()).unwrap();
        assert_eq!(read.config, config.config);
        assert_eq!(read.diff_ids, config.diff_ids);
        assert_eq!(read.to_json(), config.to_json());
        assert!(read.is_for_host());
    }

    #[test]
    fn nulls_of_docker_are_read() {
        let text = json!({
            "architecture": "s390x", "os": "linux", "created": "2024-01-01T00:00:00Z",
            "config": {"Cmd": null, "Entrypoint": null, "Env": null, "ExposedPorts": null, "Volumes": null, "Labels": null, "OnBuild": null, "Image": "",
                "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": null, "Retries": 2}},
            "rootfs": {"type": "layers", "diff_ids": []},
        });
        let config = Config::parse(text.to_string().as_bytes()).unwrap();
        assert_eq!(config.created.as_deref(), Some("2024-01-01T00:00:00Z"));
        assert!(!config.is_for_host());
        let health = config.config.health.unwrap();
        assert_eq!((health.test[1].as_str(), health.interval, health.retries), ("true", 0, 2));
    }
}
