//! Real programs: Debian's docker-registry, skopeo and umoci, and the kernel's
//! overlayfs and tmpfs. Needs root and those packages with busybox-static.

use std::io::BufRead;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags};

use super::*;

/// `secret`, as htpasswd -B writes it.
const HTPASSWD: &str = "me:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

#[track_caller]
fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program}: {error}; apt install skopeo umoci docker-registry")
    });
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
}

/// Ends with the test.
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

impl Registry {
    fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    fn start_with(dir: &Path, http: &str) -> Self {
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http: {{addr: '127.0.0.1:0'{http}}}\nauth: {{htpasswd: {{realm: test, path: {0}/htpasswd}}}}\n",
            dir.display()
        );
        fs::write(dir.join("config.yml"), config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry; apt install docker-registry");
        let log = std::io::BufReader::new(child.stderr.take().unwrap());
        let (found, address) = std::sync::mpsc::channel();
        // Reads on, so that the registry never waits for room in the pipe.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let end = rest.find(['"', ',']).unwrap_or(rest.len());
                    let _ = found.send(rest[..end].to_owned());
                }
            }
        });
        let address = address.recv_timeout(Duration::from_secs(20));
        let mut registry = Self { child, address: String::new() };
        registry.address = address.expect("docker-registry says where it listens");
        registry
    }

    fn push(&self, from: &str, name: &str, more: &[&str]) {
        let to = format!("docker://{}/{name}", self.address);
        let mut args = vec!["copy", "--insecure-policy", "--dest-tls-verify=false"];
        args.extend(["--dest-creds", "me:secret"]);
        args.extend(more);
        args.extend([from, &to]);
        run("skopeo", &args);
    }
}

/// An image of busybox with changes over five layers, and what it should look like.
struct Built {
    layout: String,
    expected: PathBuf,
}

fn build(dir: &Path) -> Built {
    let layout = dir.join("layout").display().to_string();
    let image = format!("{layout}:latest");
    let bundle = dir.join("bundle");
    let bundle_text = bundle.display().to_string();
    run("umoci", &["init", "--layout", &layout]);
    run("umoci", &["new", "--image", &image]);
    run("umoci", &["unpack", "--image", &image, &bundle_text]);
    let root = bundle.join("rootfs");
    for folder in ["bin", "etc/app/deep", "var/cache/old", "tmp", "gone/with/all", "swap"] {
        fs::create_dir_all(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("apt install busybox-static");
    symlink("busybox", root.join("bin/sh")).unwrap();
    fs::hard_link(root.join("bin/busybox"), root.join("bin/httpd")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    for name in ["etc/app/deep/a", "var/cache/old/b", "gone/with/all/c", "swap/d", "tmp/keep"] {
        fs::write(root.join(name), name).unwrap();
    }
    let mode = |name: &str, mode| {
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    mode("tmp", 0o1777);
    mode("etc/app", 0o750);
    mode("bin/busybox", 0o4755);
    std::os::unix::fs::chown(root.join("etc/app"), Some(33), Some(34)).unwrap();
    run("umoci", &["repack", "--refresh-bundle", "--image", &image, &bundle_text]);

    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_file(root.join("tmp/keep")).unwrap();
    fs::remove_dir_all(root.join("swap")).unwrap();
    fs::write(root.join("swap"), "now a file").unwrap();
    fs::write(root.join("etc/app/deep/new"), "new").unwrap();
    run("umoci", &["repack", "--refresh-bundle", "--image", &image, &bundle_text]);

    fs::remove_file(root.join("swap")).unwrap();
    fs::create_dir(root.join("swap")).unwrap();
    fs::write(root.join("swap/again"), "a folder again").unwrap();
    run("umoci", &["repack", "--refresh-bundle", "--image", &image, &bundle_text]);

    let fresh = dir.join("fresh");
    fs::create_dir(&fresh).unwrap();
    fs::write(fresh.join("only"), "only").unwrap();
    run("umoci", &["insert", "--image", &image, "--opaque", fresh.to_str().unwrap(), "/var/cache"]);
    run("umoci", &["insert", "--image", &image, "--whiteout", "/etc/app/deep/a"]);
    run(
        "umoci",
        &["config", "--image", &image, "--config.cmd", "sh", "--config.exposedports", "80/tcp"],
    );
    let flat = dir.join("flat");
    run("umoci", &["unpack", "--image", &image, flat.to_str().unwrap()]);
    Built { layout, expected: flat.join("rootfs") }
}

/// Unmounted with the test.
struct Mounted(PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// The kernel's own view of an image.
fn overlay(image: &Image, at: &Path) -> Mounted {
    fs::create_dir_all(at).unwrap();
    let lower: Vec<String> = image.layers.iter().map(|layer| layer.display().to_string()).collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", lower.join(":"))).unwrap();
    rustix::mount::mount("overlay", at, "overlay", MountFlags::RDONLY, options.as_c_str()).unwrap();
    Mounted(at.to_owned())
}

/// Path, kind, mode, owner and content of everything in a folder.
fn listing(root: &Path) -> Vec<String> {
    fn walk(root: &Path, path: &Path, lines: &mut Vec<String>) {
        let metadata = path.symlink_metadata().unwrap();
        let content = match metadata.file_type() {
            kind if kind.is_symlink() => fs::read_link(path).unwrap().display().to_string(),
            kind if kind.is_file() => Digest::of(&fs::read(path).unwrap()).short().to_owned(),
            _ => String::new(),
        };
        lines.push(format!(
            "{} {:o} {}:{} {content}",
            path.strip_prefix(root).unwrap().display(),
            metadata.mode(),
            metadata.uid(),
            metadata.gid(),
        ));
        if metadata.is_dir() {
            let mut inside: Vec<PathBuf> =
                fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            inside.iter().for_each(|path| walk(root, path, lines));
        }
    }
    let mut lines = Vec::new();
    let mut inside: Vec<PathBuf> =
        fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    inside.sort();
    inside.iter().for_each(|path| walk(root, path, &mut lines));
    lines
}

#[tokio::test]
async fn host_images_of_real_tools_look_as_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let built = build(dir.path());
    let expected = listing(&built.expected);
    assert!(expected.len() > 10, "{expected:?}");
    let registry = Registry::start(dir.path());
    let source = format!("oci:{}:latest", built.layout);
    registry.push(&source, "shop/busybox:gzip", &[]);
    registry.push(&source, "shop/busybox:docker", &["--format", "v2s2"]);
    registry.push(&source, "shop/busybox:zstd", &["--dest-compress-format", "zstd"]);

    let rig = Rig::new();
    let error = rig.pull(&format!("{}/shop/busybox:gzip", registry.address)).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let error = rig.store.login(&registry.address, "me", "wrong").await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");

    for tag in ["gzip", "docker", "zstd"] {
        // A store for each, so that each is really unpacked.
        let rig = Rig::new();
        rig.store.login(&registry.address, "me", "secret").await.unwrap();
        let name = format!("{}/shop/busybox:{tag}", registry.address);
        let image = rig.pull(&name).await.unwrap();
        assert_eq!(image.config.cmd, ["sh"], "{tag}");
        assert_eq!(image.config.exposed_ports, ["80/tcp"], "{tag}");
        let mounted = overlay(&image, &rig.dir.path().join("mnt"));
        assert_eq!(listing(&mounted.0), expected, "{tag}");
        let checked = crate::check::check(&image, "root", "/tmp", &["httpd".into()], "/bin");
        assert_eq!(checked, Ok(()), "{tag}");
        drop(mounted);
        let error = rig.pull(&format!("{}/shop/none:1", registry.address)).await.unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }

    let archives = dir.path().join("archives");
    fs::create_dir(&archives).unwrap();
    let docker = archives.join("docker.tar").display().to_string();
    let oci = archives.join("oci.tar").display().to_string();
    run(
        "skopeo",
        &["copy", "--insecure-policy", &source, &format!("docker-archive:{docker}:shop/b:1")],
    );
    run("skopeo", &["copy", "--insecure-policy", &source, &format!("oci-archive:{oci}:shop/b:2")]);
    // umoci makes layouts, tar makes them archives; its names are bare tags.
    let umoci = archives.join("umoci.tar").display().to_string();
    run("tar", &["-C", &built.layout, "-cf", &umoci, "."]);
    for (archive, name) in [(docker, "shop/b:1"), (oci, "shop/b:2"), (umoci, "shop/b:latest")] {
        let rig = Rig::new();
        let file = tokio::fs::File::open(&archive).await.unwrap();
        let base: Reference = "shop/b".parse().unwrap();
        let loaded = rig.store.load(file, Some(&base), Progress::none()).await.unwrap();
        assert_eq!(loaded[0].names, [name.parse().unwrap()], "{archive}");
        let mounted = overlay(&loaded[0].image, &rig.dir.path().join("mnt"));
        assert_eq!(listing(&mounted.0), expected, "{archive}");
    }
}

#[tokio::test]
async fn host_a_full_disk_is_told_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("images");
    fs::create_dir(&small).unwrap();
    rustix::mount::mount("tmpfs", &small, "tmpfs", MountFlags::empty(), c"size=3m,nr_inodes=200")
        .unwrap();
    let mounted = Mounted(small.clone());
    let store = Store::open_with(options(dir.path()), PATIENT, Limits::default()).unwrap();
    let rig = Rig { dir, store };
    // Dropped before the folder that it is mounted in.
    let _mounted = mounted;
    let free = || rustix::fs::statvfs(&small).map(|stat| (stat.f_bfree, stat.f_ffree)).unwrap();

    let stub = Stub::serving(&sample()).await;
    rig.pull(&stub.name("x:1")).await.unwrap();
    let before = free();
    let noise: Vec<u8> =
        (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let big = Tar::default().program("big", &noise).end();
    let many = (0..500).fold(Tar::default(), |tar, n| tar.file(&format!("f{n}"), "")).end();
    for tar in [big.clone(), many] {
        let tars = [Tar::default().file("first", "x").end(), tar];
        stub.serve(&Sample::new(&tars, gzip));
        let error = rig.pull(&stub.name("x:2")).await.unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert!(error.hint().is_some());
        assert_eq!(free(), before);
    }
    for bytes in [&big, &gzip(&big)] {
        let name: Reference = "y".parse().unwrap();
        let import =
            rig.store.import(&bytes[..], &name, ImportOptions::default(), Progress::none());
        let error = import.await.unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        let error = rig.store.load(&bytes[..], None, Progress::none()).await.unwrap_err();
        assert!(matches!(error, Error::DiskFull { .. }), "{error}");
        assert_eq!(free(), before);
    }
    assert_eq!(rig.store.list().len(), 1);
    stub.serve(&sample());
    rig.pull(&stub.name("x:1")).await.unwrap();
}

const TRUSTING: &str = "store::tests::host::host_victim_trusts_a_certificate";
const NAME: &str = "WARREN_IMAGE_TEST_HTTPS_NAME";

/// Does nothing unless it is told what: certificates are read from the environment,
/// which belongs to a whole process.
#[tokio::test]
async fn host_victim_trusts_a_certificate() {
    let Ok(name) = std::env::var(NAME) else {
        return;
    };
    let rig = Rig::new();
    let (registry, _) = name.split_once('/').unwrap();
    rig.store.login(registry, "me", "secret").await.unwrap();
    rig.pull(&name).await.unwrap();
    println!("PULLED");
}

#[tokio::test]
async fn host_certificates_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let (key, cert) = (dir.path().join("key.pem"), dir.path().join("cert.pem"));
    let (key_text, cert_text) = (key.display().to_string(), cert.display().to_string());
    let request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test \
        -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE";
    let mut args: Vec<&str> = request.split_whitespace().collect();
    args.extend(["-keyout", &key_text, "-out", &cert_text]);
    run("openssl", &args);
    let tls = format!(", tls: {{certificate: {cert_text}, key: {key_text}}}");
    let registry = Registry::start_with(dir.path(), &tls);
    let built = build(dir.path());
    registry.push(&format!("oci:{}:latest", built.layout), "x:1", &[]);
    let name = format!("{}/x:1", registry.address);

    let error = Rig::new().pull(&name).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    let victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", TRUSTING, "--nocapture"])
        .env("SSL_CERT_FILE", &cert)
        .env(NAME, &name)
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&victim.stdout);
    assert!(output.contains("PULLED"), "{output} {}", String::from_utf8_lossy(&victim.stderr));
}
