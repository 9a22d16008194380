//! Images on their way out and back, the check of the store, and what a killed daemon
//! leaves of it. With Debian's docker-registry and skopeo.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::node::{Node, until};

/// Debian's, on the node's network; ends with the test.
struct Registry {
    child: Child,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn registry(node: &Node) -> Registry {
    let address = "127.0.0.1:5000".to_owned();
    let folder = node.folder().join("registry");
    let file = node.folder().join("registry.yml");
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
         http: {{addr: '{address}'}}\n",
        folder.display()
    );
    fs::write(&file, config).unwrap();
    // Without the limit that the node's other programs have: it is killed by its id.
    let path = node.program(&["true"]).get_args().next().unwrap().to_owned();
    let mut command = Command::new("nsenter");
    command.arg(path).args(["docker-registry", "serve"]).arg(&file).stderr(Stdio::null());
    let child = command.spawn().expect("apt install docker-registry");
    let registry = Registry { child, address };
    until("the registry answers", || {
        node.within(|| std::net::TcpStream::connect(&registry.address).ok())
    });
    registry
}

#[track_caller]
fn ok(node: &Node, words: &[&str]) -> String {
    let output = node.program(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{words:?}: {text}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn entries(node: &Node, folder: &str) -> BTreeSet<String> {
    let listed = fs::read_dir(node.data_dir().join("images").join(folder)).unwrap();
    listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn ids(node: &Node) -> BTreeSet<String> {
    let rows = node.json(&["image", "ls"]);
    rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn host_images_go_out_and_come_back() {
    let node = Node::with_image();
    let registry = registry(&node);
    let before = ids(&node);
    let name = format!("{}/shop/bb:1", registry.address);
    let pushed = node.ok(&["image", "push", "bb:1", &name]);
    let (told, digest) = pushed.trim().split_once(": ").unwrap();
    assert_eq!(told, name);
    // What others say of it.
    let inspect = ["skopeo", "inspect", "--tls-verify=false"];
    let said = ok(&node, &[&inspect[..], &[&format!("docker://{name}")]].concat());
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["Digest"], digest);
    assert_eq!(said["Layers"].as_array().unwrap().len(), 1);

    let file = node.folder().join("bb.tar");
    let path = file.to_str().unwrap();
    node.ok(&["image", "save", "-o", path, "bb:1"]);
    for kind in ["docker-archive", "oci-archive"] {
        let to = node.folder().join(kind);
        let (from, to) = (format!("{kind}:{path}"), format!("dir:{}", to.display()));
        ok(&node, &["skopeo", "copy", "--insecure-policy", "-q", &from, &to]);
    }
    let streamed = node.command(&["image", "save", "bb:1"]).output().unwrap().stdout;
    assert_eq!(fs::read(&file).unwrap(), streamed);
    // Pulled, and loaded: the same image.
    for back in [&["image", "pull", &name][..], &["image", "load", path]] {
        node.ok(&["image", "prune", "--all"]);
        assert!(ids(&node).is_empty());
        node.ok(back);
        assert_eq!(ids(&node), before);
    }
    assert_eq!(node.ok(&["image", "fsck", "-q"]), "");

    // Nothing stays of what goes wrong.
    let missing = node.warren(&["image", "save", "-o", path, "none:1"]);
    assert_eq!(missing.exit, 3, "{missing:?}");
    assert_eq!(fs::read(&file).unwrap(), streamed);
    let missing = node.warren(&["image", "push", "none:1"]);
    assert_eq!(missing.exit, 3, "{missing:?}");
    let id = before.first().unwrap();
    let nameless = node.warren(&["image", "push", id]);
    assert_eq!(nameless.exit, 2, "{nameless:?}");

    // Damage of what is in use is told and left; of what is not, repaired.
    node.ok(&[
        "service",
        "create",
        "web",
        "--image",
        "bb:1",
        "--stop-signal",
        "KILL",
        "sleep",
        "3600",
    ]);
    let layer = entries(&node, "layers").pop_first().unwrap();
    let file = node.data_dir().join("images/layers").join(layer).join("etc/passwd");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(&file, text.replace("root", "toor")).unwrap();
    let found = node.warren(&["image", "fsck", "--repair", "--format", "json"]);
    assert_eq!(found.exit, 1, "{found:?}");
    let rows: Vec<Value> = serde_json::from_str(&found.out).unwrap();
    assert_eq!(rows[0]["what"], "image bb:1");
    assert_eq!(rows[0]["repaired"], false);
    assert_eq!(ids(&node), before);
    node.ok(&["service", "rm", "web"]);
    until("the image is no longer in use", || {
        (node.warren(&["image", "fsck", "--repair"]).exit == 0).then_some(())
    });
    assert!(ids(&node).is_empty());
    assert!(entries(&node, "layers").is_empty() && entries(&node, "recipes").is_empty());
    assert_eq!(node.warren(&["image", "load", path]).exit, 0);
    assert_eq!(ids(&node), before);
}

/// A root file system of many files: unpacking takes a while.
fn rootfs(at: &Path, seed: u64) -> PathBuf {
    let (folder, tar) = (at.join(format!("rootfs{seed}")), at.join(format!("rootfs{seed}.tar")));
    let mut state = seed;
    for n in 0..3000 {
        let path = folder.join(format!("d{}/f{n}", n % 50));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let noise: Vec<u8> = std::iter::repeat_with(|| random(&mut state).to_le_bytes())
            .take(if n % 100 == 0 { 20_000 } else { 100 })
            .flatten()
            .collect();
        fs::write(path, noise).unwrap();
    }
    let packed = Command::new("tar").arg("-C").arg(&folder).arg("-cf").arg(&tar).arg(".").status();
    assert!(packed.unwrap().success());
    tar
}

fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

/// kill -9 of the daemon at a random instant of pull, load and prune, thirty times: what it
/// comes back with is whole, and nothing is left over.
#[test]
fn soak_killed_in_the_middle_of_images() {
    let node = Node::with_image();
    let registry = registry(&node);
    let create = ["service", "create", "web", "--image", "bb:1", "--stop-signal", "KILL"];
    node.ok(&[&create[..], &["sleep", "86400"]].concat());
    let kept = ids(&node);
    let archive = node.folder().join("both.tar");
    let names: Vec<String> = (1..3).map(|n| format!("{}/big:{n}", registry.address)).collect();
    for (n, name) in (1..).zip(&names) {
        node.ok(&["image", "import", rootfs(node.folder(), n).to_str().unwrap(), name]);
        node.ok(&["image", "push", name]);
    }
    node.ok(&["image", "save", "-o", archive.to_str().unwrap(), &names[0], &names[1]]);
    let all = ids(&node);
    node.ok(&["image", "prune", "--all"]);
    assert_eq!(ids(&node), kept);
    let layers = entries(&node, "layers");

    let works: [&[&str]; 4] = [
        &["image", "pull", &names[0]],
        &["image", "load", archive.to_str().unwrap()],
        &["image", "prune", "--all"],
        &["image", "pull", &names[1]],
    ];
    let mut state = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    eprintln!("seed {state}");
    let mut met = [0; 4];
    for round in 0..30 {
        let which = round % works.len();
        let mut work = node.command(works[which]);
        let mut work = work.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // What is measured is the instant, not a condition that could be waited for.
        let instant = Instant::now() + Duration::from_millis(random(&mut state) % 900);
        until("the instant", || (Instant::now() >= instant).then_some(()));
        node.kill_daemon();
        met[which] += i32::from(!work.wait().unwrap().success());
        node.ok(&["node", "run", "--detach"]);
        let said = node.warren(&["image", "fsck", "--format", "json"]);
        assert_eq!((said.exit, said.out.trim()), (0, "[]"), "round {round}: {said:?}");
        let here = ids(&node);
        assert!(here.is_superset(&kept) && here.is_subset(&all), "round {round}: {here:?}");
        let expected = layers.len() + here.len() - kept.len();
        assert_eq!(entries(&node, "layers").len(), expected, "round {round}");
        assert_eq!(entries(&node, "recipes"), entries(&node, "layers"), "round {round}");
        assert_eq!(entries(&node, "tmp").len(), 0, "round {round}");
        assert_eq!(node.tasks("web")[0]["state"], "running", "round {round}");
    }
    eprintln!("in the middle of pull {}, load {}, prune {}", met[0] + met[3], met[1], met[2]);
    assert!(met[0] + met[1] + met[3] > 0, "no instant was within the work: {met:?}");
    for work in works {
        node.ok(work);
    }
    node.ok(&["image", "prune", "--all"]);
    assert_eq!((ids(&node), entries(&node, "layers")), (kept, layers));
}

const LAYER_BYTES: u64 = 2 << 30;

/// Serves an image of one layer of 2 GiB, from a file.
fn serve_large(node: &Node) -> String {
    let blob = node.folder().join("layer");
    let mut file = fs::File::create(&blob).unwrap();
    let header = crate::registry::layer("big", &[]);
    let mut header = header[..512].to_vec();
    header[124..136].copy_from_slice(format!("{LAYER_BYTES:011o}\0").as_bytes());
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    file.write_all(&header).unwrap();
    let size = LAYER_BYTES + 512 + 1024;
    file.set_len(size).unwrap();
    let sum = |path: &Path| {
        let output = Command::new("sha256sum").arg(path).output().unwrap();
        format!("sha256:{}", std::str::from_utf8(&output.stdout[..64]).unwrap())
    };
    let layer = sum(&blob);
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{layer}"]}}}}"#
    );
    let path = node.folder().join("config");
    fs::write(&path, &config).unwrap();
    let (digest, len) = (sum(&path), config.len());
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","size":{len},"digest":"{digest}"}},
        "layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","size":{size},"digest":"{layer}"}}]}}"#
    );
    let listener = node.within(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let request = lines.next().unwrap().unwrap();
            while lines.next().is_some_and(|line| !line.unwrap().is_empty()) {}
            let mut answer = |length: u64, mut body: &mut dyn std::io::Read| {
                let head = format!(
                    "HTTP/1.1 200 X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
                );
                let _ = stream.write_all(head.as_bytes());
                let _ = std::io::copy(&mut body, &mut stream);
            };
            match request.split(' ').nth(1).unwrap() {
                path if path.ends_with("manifests/1") => {
                    answer(manifest.len() as u64, &mut manifest.as_bytes());
                }
                path if path.ends_with(&digest) => answer(len as u64, &mut config.as_bytes()),
                path if path.ends_with(&layer) => {
                    answer(size, &mut fs::File::open(&blob).unwrap());
                }
                _ => answer(0, &mut std::io::empty()),
            }
        }
    });
    format!("{address}/big:1")
}

/// A layer of 2 GiB costs the daemon less than 64 MiB of memory in all.
#[test]
fn soak_a_large_layer_needs_little_memory() {
    let node = Node::start();
    let name = serve_large(&node);
    let pid = node.pid().unwrap().as_raw_nonzero();
    // What is its own: pages of the program's file are shared and can be dropped.
    let memory = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    let mut pull = Command::new("nsenter");
    let path = node.command(&[]).get_args().next().unwrap().to_owned();
    // Without the limit of other commands: two gigabytes take their time.
    pull.arg(path).arg(crate::node::WARREN).args(["image", "pull", &name]);
    pull.env("WARREN_RUN_DIR", node.run_dir()).stdout(Stdio::null());
    let mut pull = pull.spawn().unwrap();
    let (begun, mut most) = (Instant::now(), before);
    let ended = std::thread::spawn(move || pull.wait().unwrap());
    while !ended.is_finished() {
        most = most.max(memory());
        // A sample: often enough to see what buffers grow to, seldom enough to cost nothing.
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert!(ended.join().unwrap().success(), "{}", node.log());
    eprintln!("own memory: {before} KiB before, {most} KiB at most, {:?}", begun.elapsed());
    assert!(most < 64 << 10, "{most} KiB");
    let row = &node.json(&["image", "ls"])[0];
    assert_eq!(row["size_bytes"], LAYER_BYTES);
}
