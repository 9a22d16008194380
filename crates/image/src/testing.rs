//! Tars and images made for tests, byte by byte where honest tools would refuse.

use std::io::Write;

use crate::digest::Digest;

/// A tar being written.
#[derive(Clone, Default)]
pub(crate) struct Tar(Vec<u8>);

/// Attributes of the next member.
#[derive(Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mode: u32,
    pub(crate) mtime: u64,
}

impl Default for Owner {
    fn default() -> Self {
        Self { uid: 0, gid: 0, mode: 0o644, mtime: 1_000_000 }
    }
}

pub(crate) fn mode(mode: u32) -> Owner {
    Owner { mode, ..Owner::default() }
}

impl Tar {
    pub(crate) fn entry(
        mut self,
        kind: u8,
        path: &str,
        link: &str,
        owner: Owner,
        data: &[u8],
    ) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_size(data.len() as u64);
        header.set_mode(owner.mode);
        header.set_uid(owner.uid);
        header.set_gid(owner.gid);
        header.set_mtime(owner.mtime);
        // Past the checks of the tar crate.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.padded(data)
    }

    pub(crate) fn raw(mut self, header: &tar::Header, data: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.padded(data)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn padded(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        let padding = data.len().wrapping_neg() % 512;
        self.0.resize(self.0.len() + padding, 0);
        self
    }

    pub(crate) fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(b'5', path, "", Owner { mode, ..Owner::default() }, b"")
    }

    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        self.entry(b'0', path, "", Owner::default(), text.as_bytes())
    }

    pub(crate) fn program(self, path: &str, bytes: &[u8]) -> Self {
        self.entry(b'0', path, "", mode(0o755), bytes)
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, mode(0o777), b"")
    }

    pub(crate) fn hard(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, Owner::default(), b"")
    }

    /// PAX records for the member that follows.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while rest + length.to_string().len() != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length} {key}=").as_bytes());
            data.extend_from_slice(value);
            data.push(b'\n');
        }
        self.entry(b'x', "pax", "", Owner::default(), &data)
    }

    /// GNU's long name for the member that follows.
    pub(crate) fn long(self, kind: u8, name: &str) -> Self {
        let data = [name.as_bytes(), b"\0"].concat();
        self.entry(kind, "././@LongLink", "", Owner::default(), &data)
    }

    /// Without an end.
    pub(crate) fn raw_bytes(self) -> Vec<u8> {
        self.0
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An image in pieces: layers as given, packed by `pack`.
pub(crate) struct Sample {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    /// Packed.
    pub(crate) layers: Vec<Vec<u8>>,
}

impl Sample {
    pub(crate) fn new(tars: &[Vec<u8>], pack: fn(&[u8]) -> Vec<u8>) -> Self {
        let diff_ids: Vec<String> = tars.iter().map(|tar| Digest::of(tar).to_string()).collect();
        let config = serde_json::json!({
            "architecture": crate::manifest::host_architecture(),
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = config.to_string().into_bytes();
        let layers: Vec<Vec<u8>> = tars.iter().map(|tar| pack(tar)).collect();
        let manifest = Self::manifest_of(&config, &layers);
        Self { config, manifest, layers }
    }

    pub(crate) fn manifest_of(config: &[u8], layers: &[Vec<u8>]) -> Vec<u8> {
        let descriptor = |media_type: &str, bytes: &[u8]| {
            serde_json::json!({
                "mediaType": media_type,
                "digest": Digest::of(bytes).as_str(),
                "size": bytes.len(),
            })
        };
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": crate::manifest::OCI_MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", config),
            "layers": layers.iter().map(|bytes| descriptor(layer, bytes)).collect::<Vec<_>>(),
        })
        .to_string()
        .into_bytes()
    }
}
