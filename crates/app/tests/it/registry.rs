//! A registry whose repositories are broken in one way each. Answers at the
//! place where it was started: inside a node's network, for one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// A layer, not compressed, of one file.
pub(crate) fn layer(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0; 512];
    let mut put =
        |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend(content);
    // Content fills whole blocks, two empty ones are the end.
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let mut command = Command::new("sha256sum");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    format!("sha256:{}", std::str::from_utf8(&output.stdout[..64]).unwrap())
}

struct Answer {
    status: u16,
    /// What is promised, which may be more than comes.
    length: usize,
    body: Vec<u8>,
}

/// Runs until the test ends.
pub(crate) struct Registry {
    address: String,
}

/// What it says, by path.
#[derive(Default)]
pub(crate) struct Answers(BTreeMap<String, Answer>);

impl Answers {
    /// Every question about `repository` has this answer.
    pub(crate) fn status(&mut self, repository: &str, status: u16) {
        let answer = Answer { status, length: 0, body: Vec::new() };
        self.0.insert(format!("/v2/{repository}/manifests/1"), answer);
    }

    /// An image of one layer, which is broken on its way.
    pub(crate) fn image(&mut self, repository: &str, layer: &[u8], damage: impl Fn(&mut Vec<u8>)) {
        let mut sent = layer.to_vec();
        damage(&mut sent);
        let layer_digest = digest(layer);
        let config = format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer_digest}"]}}}}"#
        );
        let config_digest = digest(config.as_bytes());
        let (config_size, layer_size) = (config.len(), layer.len());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
            "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","size":{config_size},"digest":"{config_digest}"}},
            "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":{layer_size},"digest":"{layer_digest}"}}]}}"#
        );
        let mut put = |path: String, length, body| {
            self.0.insert(format!("/v2/{repository}/{path}"), Answer { status: 200, length, body });
        };
        put("manifests/1".to_owned(), manifest.len(), manifest.into_bytes());
        put(format!("blobs/{config_digest}"), config_size, config.into_bytes());
        put(format!("blobs/{layer_digest}"), layer_size, sent);
    }
}

impl Registry {
    pub(crate) fn start(fill: impl FnOnce(&mut Answers)) -> Self {
        let mut answers = Answers::default();
        fill(&mut answers);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that has heard enough is no error.
                let _ = answer(stream, &answers);
            }
        });
        Self { address }
    }

    pub(crate) fn name(&self, repository: &str) -> String {
        format!("{}/{repository}:1", self.address)
    }
}

fn answer(mut stream: TcpStream, answers: &Answers) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let (status, length, body) = match answers.0.get(path) {
        Some(answer) => (answer.status, answer.length, answer.body.as_slice()),
        None if path == "/v2/" => (200, 0, &[][..]),
        None => (404, 0, &[][..]),
    };
    let head =
        format!("HTTP/1.1 {status} X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)
}
