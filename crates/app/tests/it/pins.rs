//! Images by digest: a tag that moves in a real registry moves nothing that runs.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::json;

use crate::node::{Node, until};
use crate::registry::digest;

const AT: &str = "127.0.0.1:5000";
const IMAGE: &str = "127.0.0.1:5000/app:1";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Debian's docker-registry on the node's loopback.
struct Registry<'a> {
    node: &'a Node,
    server: Option<Child>,
    layer: Vec<u8>,
}

impl Drop for Registry<'_> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<'a> Registry<'a> {
    fn start(node: &'a Node) -> Self {
        let layer = fs::read(node.folder().join("rootfs.tar")).unwrap();
        let mut registry = Self { node, server: None, layer };
        registry.serve();
        registry
    }

    fn serve(&mut self) {
        let config = self.node.folder().join("registry.yml");
        let blobs = self.node.folder().join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{AT}\"}}\n",
            blobs.display()
        );
        fs::write(&config, text).unwrap();
        let mut command =
            self.node.program(&["docker-registry", "serve", config.to_str().unwrap()]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        self.server = Some(command.spawn().unwrap());
        let up = || self.ask("GET", "/v2/", "", b"").filter(|(status, _)| *status == 200);
        until("the registry answers", up);
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // `timeout`, which waits for the registry, ends both.
            let pid = rustix::process::Pid::from_raw(i32::try_from(server.id()).unwrap()).unwrap();
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            server.wait().unwrap();
        }
    }

    /// Status and the headers of the answer.
    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Option<(u16, String)> {
        self.node.within(|| {
            let mut stream = TcpStream::connect(AT).ok()?;
            let length = body.len();
            let head = format!(
                "{method} {path} HTTP/1.1\r\nHost: {AT}\r\nConnection: close\r\n\
                 Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(body).ok()?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).ok()?;
            let text = String::from_utf8_lossy(&answer).into_owned();
            let status = text.split(' ').nth(1)?.parse().ok()?;
            Some((status, text))
        })
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = digest(bytes);
        let (_, head) = self.ask("POST", "/v2/app/blobs/uploads/", "", b"").unwrap();
        let location = head.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let path = location.trim().trim_start_matches("http://").trim_start_matches(AT);
        let path = format!("{path}&digest={digest}");
        let (status, said) = self.ask("PUT", &path, "application/octet-stream", bytes).unwrap();
        assert_eq!(status, 201, "{said}");
        digest
    }

    fn manifest(&self, name: &str, kind: &str, manifest: &[u8]) {
        let path = format!("/v2/app/manifests/{name}");
        let (status, said) = self.ask("PUT", &path, kind, manifest).unwrap();
        assert_eq!(status, 201, "{said}");
    }

    /// Pushes a busybox that knows its version as `app:1`, for several platforms; says the digest
    /// of the index.
    fn push(&self, version: &str) -> String {
        let layer = self.blob(&self.layer);
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": { "Env": ["PATH=/bin", format!("VERSION={version}")] },
            "rootfs": { "type": "layers", "diff_ids": [layer] },
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": self.blob(&config), "size": config.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "digest": layer, "size": self.layer.len(),
            }],
        });
        let manifest = manifest.to_string().into_bytes();
        let of_manifest = digest(&manifest);
        self.manifest(&of_manifest, MANIFEST, &manifest);
        let index = json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [{
                "mediaType": MANIFEST, "digest": of_manifest, "size": manifest.len(),
                "platform": { "architecture": "amd64", "os": "linux" },
            }],
        });
        let index = index.to_string().into_bytes();
        self.manifest("1", INDEX, &index);
        digest(&index)
    }
}

/// The version that each replica runs, in order of slots.
fn versions(node: &Node, service: &str) -> Vec<String> {
    let slots = node.tasks(service).len();
    let ask = |slot| {
        let target = format!("{service}.{slot}");
        node.ok(&["exec", &target, "sh", "-c", "echo $VERSION"]).trim().to_owned()
    };
    (1..=slots).map(ask).collect()
}

/// The image of the specification, as it is kept.
fn image(node: &Node, service: &str) -> String {
    let inspected = node.json(&["service", "inspect", service]);
    inspected[0]["spec"]["image"].as_str().unwrap().to_owned()
}

#[test]
fn host_a_tag_that_moves_moves_no_service() {
    let node = Node::with_image();
    let mut registry = Registry::start(&node);
    let first = registry.push("one");
    let sleep = ["--stop-signal", "KILL", "sh", "-c", "sleep 3600"];
    let create = |name: &str, image: &str, flags: &[&str]| {
        let args = [&["service", "create", name, "--image", image], flags, &sleep[..]].concat();
        let said = node.warren(&args);
        assert_eq!(said.exit, 0, "{said:?}");
        said.err
    };
    create("web", IMAGE, &[]);
    assert_eq!(image(&node, "web"), format!("{IMAGE}@{first}"));
    let listed = node.json(&["service", "ls"]);
    assert_eq!((&listed[0]["image"], &listed[0]["image_digest"]), (&json!(IMAGE), &json!(first)));

    // Another image under the tag, and pulled: a new replica is as the first is, after a restart
    // too.
    let second = registry.push("two");
    node.ok(&["image", "pull", IMAGE]);
    node.ok(&["service", "scale", "web=2"]);
    assert_eq!(versions(&node, "web"), ["one", "one"]);
    node.ok(&["service", "restart", "web"]);
    node.ok(&["service", "update", "web", "--env-add", "A=1"]);
    assert_eq!(versions(&node, "web"), ["one", "one"]);

    // Named again it is looked up again, and rolled out if it is another.
    node.ok(&["service", "update", "web", "--image", IMAGE]);
    assert_eq!(image(&node, "web"), format!("{IMAGE}@{second}"));
    assert_eq!(versions(&node, "web"), ["two", "two"]);
    let said = node.warren(&["service", "update", "web", "--image", IMAGE]);
    assert_eq!(said.exit, 0, "{said:?}");
    assert!(said.err.contains("nothing to change: service web stays at revision 5"), "{said:?}");
    let changed = node.ok(&["service", "history", "web", "--diff", "4..5"]);
    assert_eq!(changed, format!("image: {IMAGE}@{first} -> {IMAGE}@{second}\n"));
    node.ok(&["service", "rollback", "web"]);
    assert_eq!(versions(&node, "web"), ["one", "one"]);

    // As it is named, if that is wanted; what is not from a registry is told.
    create("loose", IMAGE, &["--no-resolve-image"]);
    assert_eq!(image(&node, "loose"), IMAGE);
    let said = create("local", "bb:1", &[]);
    assert!(said.contains("image bb:1 is not pinned to a digest: it was loaded"), "{said}");

    // A registry that is down: what is here runs, and nothing goes back.
    registry.stop();
    let said = create("later", IMAGE, &[]);
    assert!(said.contains("is not pinned to a digest: registry 127.0.0.1:5000"), "{said}");
    assert_eq!(
        (image(&node, "later"), versions(&node, "later")),
        (IMAGE.into(), vec!["two".into()])
    );
    let said = node.warren(&["service", "update", "web", "--image", IMAGE]);
    assert_eq!(said.exit, 0, "{said:?}");
    assert!(said.err.contains(&format!("stays at {first}: registry")), "{said:?}");
    assert!(said.err.contains("nothing to change"), "{said:?}");
    registry.serve();
    node.ok(&["service", "update", "later", "--image", IMAGE]);
    assert_eq!(image(&node, "later"), format!("{IMAGE}@{second}"));
}
