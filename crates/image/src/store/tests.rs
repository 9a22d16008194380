//! The store against a registry in the test and archives made by hand. The
//! registry's misbehaviour is in `stub`, real programs are in `host`.

mod archives;
mod crash;
mod failures;
mod host;
mod hostile;
mod outgoing;
mod stub;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex as StdMutex;
use std::time::Duration;

use super::*;
use crate::progress::{Phase, Progress};
use crate::testing::{Sample, Tar, gzip};
use stub::{Answer, Stub};

/// Short, so that a silent registry ends a test soon.
const IMPATIENT: Timeouts =
    Timeouts { connect: Duration::from_secs(2), stall: Duration::from_millis(300), repeats: 0 };
/// For tests in which nothing should be silent.
const PATIENT: Timeouts =
    Timeouts { connect: Duration::from_secs(10), stall: Duration::from_secs(20), repeats: 0 };

struct Rig {
    dir: tempfile::TempDir,
    store: Store,
}

fn options(dir: &Path) -> StoreOptions {
    StoreOptions {
        dir: dir.join("images"),
        docker_config: dir.join("docker/config.json"),
        insecure: Vec::new(),
        mirrors: Vec::new(),
        watermarks: None,
    }
}

impl Rig {
    fn new() -> Self {
        Self::with(PATIENT)
    }

    fn with(timeouts: Timeouts) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open_with(options(dir.path()), timeouts, Limits::default()).unwrap();
        Self { dir, store }
    }

    /// As after a restart.
    fn reopen(self) -> Self {
        self.reopen_with(None)
    }

    fn reopen_with(self, watermarks: Option<Watermarks>) -> Self {
        let Self { dir, store } = self;
        assert_eq!(Arc::strong_count(&store.0), 1);
        drop(store);
        let options = StoreOptions { watermarks, ..options(dir.path()) };
        let store = Store::open_with(options, PATIENT, Limits::default()).unwrap();
        Self { dir, store }
    }

    /// Entries of a folder of the store.
    fn count(&self, folder: &str) -> usize {
        fs::read_dir(self.dir.path().join("images").join(folder)).unwrap().count()
    }

    async fn pull(&self, name: &str) -> Result<Image, Error> {
        self.store.pull(&name.parse().unwrap(), Progress::none()).await
    }
}

/// Two layers: the second one has folders that only the first one describes.
fn two_layers() -> Vec<Vec<u8>> {
    let below = Tar::default()
        .dir("etc", 0o751)
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .dir("bin", 0o755)
        .program("bin/sh", b"#!")
        .file("gone", "x")
        .end();
    let above = Tar::default().file("etc/new", "new").file(".wh.gone", "").end();
    vec![below, above]
}

fn sample() -> Sample {
    Sample::new(&two_layers(), gzip)
}

#[tokio::test]
async fn a_pull_brings_an_image_that_outlives_a_restart() {
    let stub = Stub::serving(&sample()).await;
    let rig = Rig::new();
    let steps = Arc::new(StdMutex::new(Vec::new()));
    let progress = Progress::new({
        let steps = Arc::clone(&steps);
        move |step| steps.lock().unwrap().push(step.clone())
    });
    let name: Reference = stub.name("shop/web:1").parse().unwrap();
    let image = rig.store.pull(&name, progress).await.unwrap();

    assert_eq!(image.config.cmd, ["/bin/sh"]);
    assert_eq!(image.layers.len(), 2);
    assert_eq!(fs::read_to_string(image.layers[0].join("etc/new")).unwrap(), "new");
    assert_eq!(fs::metadata(image.layers[0].join("etc")).unwrap().mode() & 0o777, 0o751);
    assert_eq!(image.digest.as_deref(), Some(Digest::of(&sample().manifest).as_str()));
    assert_eq!(image.size_bytes, 22 + 2 + 1 + 3);
    let done = steps.lock().unwrap().iter().filter(|step| step.phase == Phase::Done).count();
    assert_eq!(done, 2);

    let by_digest = name.by_digest(Digest::of(&sample().manifest));
    let rig = rig.reopen();
    assert_eq!(rig.store.get(&name), Some(image.clone()));
    assert_eq!(rig.store.get(&by_digest), Some(image.clone()));
    let listed = rig.store.list();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].names, std::slice::from_ref(&name));
    assert_eq!((rig.count("tmp"), rig.count("layers"), rig.count("blobs/sha256")), (0, 2, 2));
    assert_eq!(crate::check::check(&image, "root", "/", &["sh".into()], "/bin"), Ok(()));

    // Again: the manifest alone is asked for.
    let before = stub.requests().len();
    assert_eq!(rig.pull(&stub.name("shop/web:1")).await.unwrap(), image);
    let paths: Vec<String> = stub.requests()[before..].iter().map(|r| r.path.clone()).collect();
    assert_eq!(paths, ["/v2/", "/v2/shop/web/manifests/1"]);
}

#[tokio::test]
async fn layers_may_be_packed_in_any_way() {
    let zstd: fn(&[u8]) -> Vec<u8> = |tar| zstd::encode_all(tar, 3).unwrap();
    for pack in [gzip, zstd, <[u8]>::to_vec] {
        let stub = Stub::serving(&Sample::new(&two_layers(), pack)).await;
        let rig = Rig::new();
        assert_eq!(rig.pull(&stub.name("x")).await.unwrap().layers.len(), 2);
    }
}

#[tokio::test]
async fn the_build_for_this_node_is_taken_from_an_index() {
    let sample = sample();
    let host = manifest::host_architecture();
    let index = |arch: &str| {
        serde_json::json!({
            "schemaVersion": 2,
            "mediaType": manifest::DOCKER_LIST,
            "manifests": [{
                "mediaType": manifest::DOCKER_MANIFEST,
                "digest": Digest::of(&sample.manifest).as_str(),
                "size": sample.manifest.len(),
                "platform": {"os": "linux", "architecture": arch},
            }],
        })
        .to_string()
        .into_bytes()
    };
    let stub = Stub::serving(&sample).await;
    stub.manifest("/v2/x/manifests/latest", &index(host));
    let rig = Rig::new();
    let image = rig.pull(&stub.name("x")).await.unwrap();
    assert_eq!(image.digest.as_deref(), Some(Digest::of(&index(host)).as_str()));
    let name: Reference = stub.name("x").parse().unwrap();
    for bytes in [index(host), sample.manifest.clone()] {
        assert!(rig.store.get(&name.by_digest(Digest::of(&bytes))).is_some());
    }

    let looked_up = rig.store.look_up(&name).await.unwrap();
    let digest = Digest::of(&index(host));
    assert_eq!(looked_up, Remote { digest, build: Ok(image.id.clone()) });
    let manifest = name.by_digest(Digest::of(&sample.manifest));
    stub.manifest(&format!("/v2/x/manifests/{}", Digest::of(&sample.manifest)), &sample.manifest);
    let looked_up = rig.store.look_up(&manifest).await.unwrap();
    let digest = Digest::of(&sample.manifest);
    assert_eq!(looked_up, Remote { digest, build: Ok(image.id.clone()) });

    stub.manifest("/v2/x/manifests/latest", &index("s390x"));
    let looked_up = rig.store.look_up(&name).await.unwrap();
    let digest = Digest::of(&index("s390x"));
    assert_eq!(looked_up, Remote { digest, build: Err(vec!["linux/s390x".to_owned()]) });
    let error = rig.pull(&stub.name("x")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "image {} has no build for linux/{host}, only for linux/s390x",
            stub.name("x:latest")
        )
    );
}

#[tokio::test]
async fn one_download_serves_many_callers() {
    let stub = Stub::serving(&sample()).await;
    let rig = Rig::new();
    let names = ["x:1", "x:1", "x:1", "x:2", "x:2"].map(|name| stub.name(name));
    let pulls = names.iter().map(|name| rig.pull(name));
    for image in futures::future::join_all(pulls).await {
        image.unwrap();
    }
    let layers: Vec<String> =
        sample().layers.iter().map(|layer| format!("/v2/x/blobs/{}", Digest::of(layer))).collect();
    for layer in layers {
        let count = stub.requests().iter().filter(|request| request.path == layer).count();
        assert_eq!(count, 1, "{layer}");
    }
    assert_eq!(rig.store.list().len(), 1);
    assert_eq!(rig.store.list()[0].names.len(), 2);
}

#[tokio::test]
async fn a_pull_goes_on_without_its_first_caller() {
    let sample = sample();
    let stub = Stub::serving(&sample).await;
    let layer = format!("/v2/x/blobs/{}", Digest::of(&sample.layers[0]));
    let gate = stub.gate(&layer);
    let rig = Rig::new();
    let name = stub.name("x");
    let spawn = || {
        let (store, name) = (rig.store.clone(), name.parse().unwrap());
        tokio::spawn(async move { store.pull(&name, Progress::none()).await })
    };
    let first = spawn();
    gate.reached().await;
    let second = spawn();
    tokio::task::yield_now().await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    gate.open();
    second.await.unwrap().unwrap();
    assert_eq!(stub.requests().iter().filter(|request| request.path == layer).count(), 1);
}

#[tokio::test]
async fn a_pull_that_nobody_waits_for_leaves_nothing() {
    let sample = sample();
    let stub = Stub::serving(&sample).await;
    let layer = format!("/v2/x/blobs/{}", Digest::of(&sample.layers[1]));
    let gate = stub.gate(&layer);
    let rig = Rig::new();
    let (store, name) = (rig.store.clone(), stub.name("x").parse().unwrap());
    let pull = tokio::spawn(async move { store.pull(&name, Progress::none()).await });
    gate.reached().await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    // The threads end by themselves; the last one gives up the store's lock.
    let Rig { dir, store } = rig;
    drop(store);
    let lock = File::open(dir.path().join("images/lock")).unwrap();
    let free = tokio::task::spawn_blocking(move || {
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).unwrap();
    });
    tokio::time::timeout(Duration::from_secs(20), free).await.unwrap().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("images/tmp")).unwrap().count(), 0);
    gate.open();
    let store = Store::open_with(options(dir.path()), PATIENT, Limits::default()).unwrap();
    assert!(store.list().is_empty());
    Rig { dir, store }.pull(&stub.name("x")).await.unwrap();
}

#[tokio::test]
async fn names_move_and_images_go_with_their_last_name() {
    let stub = Stub::serving(&sample()).await;
    let rig = Rig::new();
    let old = rig.pull(&stub.name("x:1")).await.unwrap();
    rig.pull(&stub.name("x:2")).await.unwrap();
    let nobody = BTreeSet::new();

    let error = rig.store.remove(&old.id, &nobody).await.unwrap_err();
    assert!(matches!(error, Error::ManyNames { .. }), "{error}");
    let removed = rig.store.remove(&stub.name("x:1"), &nobody).await.unwrap();
    assert_eq!(removed.untagged, [stub.name("x:1")]);
    assert!(removed.deleted.is_empty());

    let in_use = BTreeSet::from([old.id.clone()]);
    let error = rig.store.remove(&stub.name("x:2"), &in_use).await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");

    // A new image under the same name leaves the old one nameless.
    let tars = [two_layers()[0].clone(), Tar::default().file("other", "text").end()];
    stub.serve(&Sample::new(&tars, gzip));
    let new = rig.pull(&stub.name("x:2")).await.unwrap();
    assert_ne!(new.id, old.id);
    assert_eq!(rig.count("layers"), 3);
    assert_eq!(rig.store.list()[1].names, []);
    let nameless = Prune::default();
    assert!(rig.store.prune(nameless, &in_use).await.unwrap().deleted.is_empty());
    let young = Prune { unused_for: Duration::from_secs(60), ..nameless };
    assert!(rig.store.prune(young, &nobody).await.unwrap().deleted.is_empty());
    let dry = Prune { dry_run: true, ..nameless };
    let would = rig.store.prune(dry, &nobody).await.unwrap().deleted;
    assert_eq!(would, std::slice::from_ref(&old.id));
    let removed = rig.store.prune(nameless, &nobody).await.unwrap();
    assert_eq!((removed.deleted, removed.freed_bytes), (vec![old.id.clone()], 3));
    assert_eq!((rig.count("layers"), rig.count("blobs/sha256"), rig.count("tmp")), (2, 2, 0));

    let short = &new.id["sha256:".len()..][..6];
    assert_eq!(rig.store.find(short).unwrap().id, new.id);
    let removed = rig.store.remove(short, &nobody).await.unwrap();
    assert_eq!(removed.deleted, [new.id]);
    assert_eq!((rig.count("layers"), rig.count("blobs/sha256"), rig.count("tmp")), (0, 0, 0));
    let error = rig.store.remove("x:2", &nobody).await.unwrap_err();
    assert_eq!(error.to_string(), "no such image: x:2");
}

#[tokio::test]
async fn a_full_disk_loses_what_is_longest_unused() {
    let stub = Stub::serving(&sample()).await;
    let mut rig = Rig::new();
    let mut ids = Vec::new();
    for tag in ["1", "2", "latest"] {
        let tar = Tar::default().file("tag", tag).end();
        stub.serve(&Sample::new(&[tar], gzip));
        ids.push(rig.pull(&stub.name(&format!("x:{tag}"))).await.unwrap().id);
    }
    let full = Watermarks::parse("1:1").unwrap();
    let nobody = BTreeSet::new();
    let run = async |rig: &Rig, in_use: &BTreeSet<String>| {
        rig.store.make_room(in_use, false).await.unwrap().deleted
    };
    // Never without watermarks, nor what has just come.
    assert_eq!(run(&rig, &nobody).await, [""; 0]);
    rig = rig.reopen_with(full);
    assert_eq!(run(&rig, &nobody).await, [""; 0]);
    // As if the second came first of all, and the third was of an older version.
    let index = rig.dir.path().join("images/index.json");
    let mut json: serde_json::Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    for (id, fetched) in ids.iter().zip([2, 1, 0]) {
        json["images"][id]["fetched"] = fetched.into();
    }
    fs::write(&index, json.to_string()).unwrap();
    rig = rig.reopen_with(full);
    let in_use = BTreeSet::from([ids[0].clone()]);
    assert_eq!(run(&rig, &in_use).await, [ids[2].clone(), ids[1].clone()]);
    assert_eq!(rig.count("layers"), 1);
    // What somebody asked for is used.
    assert!(rig.store.get(&stub.name("x:1").parse().unwrap()).is_some());
    assert_eq!(run(&rig, &nobody).await, [""; 0]);
    // A disk that is not as full as that.
    rig = rig.reopen_with(Watermarks::parse("99:99").unwrap());
    assert_eq!(run(&rig, &nobody).await, [""; 0]);
    assert_eq!(rig.store.make_room(&nobody, true).await.unwrap().deleted, [ids[0].clone()]);
}

#[tokio::test]
async fn leftovers_of_a_crash_are_swept() {
    let stub = Stub::serving(&sample()).await;
    let rig = Rig::new();
    let image = rig.pull(&stub.name("x")).await.unwrap();
    let images = rig.dir.path().join("images");
    fs::create_dir_all(images.join("tmp/9/half")).unwrap();
    fs::create_dir_all(images.join("layers").join("0".repeat(64))).unwrap();
    fs::write(images.join("blobs/sha256").join("1".repeat(64)), "x").unwrap();
    let rig = rig.reopen();
    assert_eq!((rig.count("layers"), rig.count("blobs/sha256"), rig.count("tmp")), (2, 2, 0));
    assert_eq!(rig.store.find(&image.id).unwrap(), image);

    // A damaged image is left out and can be pulled again.
    fs::remove_dir_all(&image.layers[1]).unwrap();
    let rig = rig.reopen();
    assert!(rig.store.list().is_empty());
    assert_eq!(rig.pull(&stub.name("x")).await.unwrap(), image);
}

#[tokio::test]
async fn a_store_has_one_owner() {
    let rig = Rig::new();
    let error = Store::open(options(rig.dir.path())).unwrap_err();
    assert!(matches!(error, Error::StoreInUse { .. }), "{error}");
    let mode = fs::metadata(rig.dir.path().join("images")).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[tokio::test]
async fn an_opaque_root_hides_the_layers_below() {
    let tars = [
        two_layers()[0].clone(),
        Tar::default().file(".wh..wh..opq", "").file("only", "x").end(),
        Tar::default().file("top", "x").end(),
    ];
    let stub = Stub::serving(&Sample::new(&tars, gzip)).await;
    let rig = Rig::new();
    let image = rig.pull(&stub.name("x")).await.unwrap();
    assert_eq!(image.layers.len(), 2);
    let rig = rig.reopen();
    assert_eq!(rig.store.find(&image.id).unwrap(), image);
}
