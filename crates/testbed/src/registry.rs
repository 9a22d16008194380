//! A registry on the hub, Debian's docker-registry, with one image: a busybox
//! that every node can pull.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::bed::Testbed;
use crate::host::Host;
use crate::wait::until;

/// Where it listens on the hub.
const PORT: u16 = 5000;
/// Name and tag in the registry.
const NAME: &str = "bb";
const TAG: &str = "1";
const START_LIMIT: Duration = Duration::from_secs(20);
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/rootfs");
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// `host:port` of the registry on `hub`.
pub(crate) fn name(hub: &Host) -> String {
    hub.socket(PORT).to_string()
}

/// Reference of the image on it.
pub(crate) fn image(hub: &Host) -> String {
    format!("{}/{NAME}:{TAG}", name(hub))
}

/// Starts the registry and puts the image there.
pub(crate) fn serve(bed: &Testbed, hub: &Host) -> Result<()> {
    let folder = bed.folder();
    let config = folder.join("registry.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: error}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"0.0.0.0:{PORT}\"}}\n",
        folder.join("registry").display()
    );
    fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let log = fs::File::create(folder.join("registry.log")).context("open the registry's log")?;
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    hub.spawn(&mut command).context("see `make deps`")?;
    let at = hub.socket(PORT);
    until("the registry answers", START_LIMIT, || Ok(Some(hub.get(at, "/v2/")?)))?;
    push(hub, at, &root_fs(folder)?)
}

/// A root file system as a tar archive.
fn root_fs(folder: &Path) -> Result<Vec<u8>> {
    let path = folder.join("rootfs.tar");
    let status = Command::new(SCRIPT).arg(&path).status();
    if !status.with_context(|| format!("run {SCRIPT}"))?.success() {
        bail!("{SCRIPT} made no root file system");
    }
    fs::read(&path).with_context(|| format!("read {}", path.display()))
}

fn push(hub: &Host, at: SocketAddr, layer: &[u8]) -> Result<()> {
    let layer_digest = blob(hub, at, layer)?;
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Env": ["PATH=/bin"], "Cmd": ["sh"] },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    });
    let config = config.to_string().into_bytes();
    let config_digest = blob(hub, at, &config)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST_TYPE,
        "config": { "mediaType": CONFIG_TYPE, "digest": config_digest, "size": config.len() },
        "layers": [{ "mediaType": LAYER_TYPE, "digest": layer_digest, "size": layer.len() }],
    });
    let path = format!("/v2/{NAME}/manifests/{TAG}");
    let headers = [("Content-Type", MANIFEST_TYPE)];
    let answer = hub.request(at, "PUT", &path, &headers, manifest.to_string().as_bytes())?;
    if answer.status == 201 { Ok(()) } else { bail!("push the manifest: {}", answer.text()) }
}

/// Uploads a blob and says its digest.
fn blob(hub: &Host, at: SocketAddr, bytes: &[u8]) -> Result<String> {
    let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let digest = format!("sha256:{digest}");
    let begun = hub.request(at, "POST", &format!("/v2/{NAME}/blobs/uploads/"), &[], b"")?;
    let location = begun.header("location").context("begin an upload: no location")?;
    let path = location
        .split_once("://")
        .map_or(location, |(_, rest)| rest.find('/').map_or("/", |slash| &rest[slash..]));
    let path = format!("{path}&digest={digest}");
    let headers = [("Content-Type", "application/octet-stream")];
    let answer = hub.request(at, "PUT", &path, &headers, bytes)?;
    if answer.status == 201 { Ok(digest) } else { bail!("upload a blob: {}", answer.text()) }
}
