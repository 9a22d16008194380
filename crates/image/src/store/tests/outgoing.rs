//! What goes out again is what came in: archives, pushes, and the check of the store.

use bytes::Bytes;
use tokio::sync::mpsc;

use super::*;
use crate::testing::mode;

/// The archive of some images.
async fn save(store: &Store, images: &[&str]) -> Result<Vec<u8>, Error> {
    let images: Vec<String> = images.iter().map(|&image| image.to_owned()).collect();
    let (sender, mut pieces) = mpsc::channel::<Bytes>(2);
    let work = store.save(&images, sender, Progress::none());
    let gather = async {
        let mut bytes = Vec::new();
        while let Some(piece) = pieces.recv().await {
            bytes.extend_from_slice(&piece);
        }
        bytes
    };
    let (done, bytes) = tokio::join!(work, gather);
    done.map(|()| bytes)
}

/// Layers with whatever makes it hard to put a tar together again.
fn awkward() -> Vec<Vec<u8>> {
    let mut layers = two_layers();
    let long = format!("{}/{}", "d".repeat(120), "n".repeat(150));
    layers.push(
        Tar::default()
            .dir("./opq", 0o700)
            .file("opq/.wh..wh..opq", "")
            .file("./etc/.wh.new", "")
            .entry(b'3', "dev/null", "", mode(0o666), b"")
            .pax(&[("SCHILY.xattr.trusted.overlay.opaque", b"y"), ("comment", b"kept")])
            .file("a", &"content".repeat(100))
            .hard("b", "a")
            .link("c", "../../a")
            .long(b'L', &long)
            .file("short", "by a long name")
            .entry(b'6', "fifo", "", mode(0o600), b"")
            .bytes(&[0; 512])
            .bytes(b"what follows the end of an archive counts too")
            .end(),
    );
    layers
}

#[tokio::test]
async fn saved_images_are_the_same_when_loaded() {
    let stub = Stub::serving(&Sample::new(&awkward(), gzip)).await;
    let rig = Rig::new();
    let image = rig.pull(&stub.name("shop/web:1")).await.unwrap();
    rig.pull(&stub.name("shop/web:2")).await.unwrap();
    let (one, two) = (stub.name("shop/web:1"), stub.name("shop/web:2"));
    let archive = save(&rig.store, &[&one, &two]).await.unwrap();
    assert_eq!(save(&rig.store, &[&two, &one, &one]).await.unwrap(), archive);
    let rig = rig.reopen();
    assert_eq!(save(&rig.store, &[&one, &two]).await.unwrap(), archive);

    // By Docker's list, by the OCI's index, and by an id, which names nothing.
    let without = |name: &str| {
        let mut archive = archive.clone();
        let at = archive.windows(name.len()).rposition(|part| part == name.as_bytes()).unwrap();
        archive[at] = b'x';
        let sum: u32 = archive[at..at + 512]
            .iter()
            .enumerate()
            .map(|(n, byte)| if (148..156).contains(&n) { 32 } else { u32::from(*byte) })
            .sum();
        archive[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        archive
    };
    let by_id = save(&rig.store, &[&image.id]).await.unwrap();
    for (archive, names) in [
        (archive.clone(), 2),
        (without("manifest.json"), 2),
        (without("index.json"), 2),
        (by_id, 0),
    ] {
        let other = Rig::new();
        let loaded = other.store.load(&archive[..], None, Progress::none()).await.unwrap();
        assert!(loaded.iter().all(|loaded| loaded.image.id == image.id));
        assert_eq!(loaded.iter().map(|loaded| loaded.names.len()).sum::<usize>(), names);
        assert_eq!(loaded[0].image.layers.len(), 3);
    }
    for (images, problem) in
        [(&["none:1"][..], "no such image"), (&[&one, "none:1"], "no such image"), (&[], "256")]
    {
        let error = save(&rig.store, images).await.unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn layers_without_a_recipe_are_written_anew() {
    // An entry that replaces another one: what it replaced is gone.
    let twice = Tar::default().file("f", "first").file("f", "second").dir("d", 0o711).end();
    let stub = Stub::serving(&Sample::new(&[awkward()[2].clone(), twice], gzip)).await;
    let rig = Rig::new();
    let image = rig.pull(&stub.name("x")).await.unwrap();
    assert_eq!((rig.count("layers"), rig.count("recipes")), (2, 1));
    let archive = save(&rig.store, &[&stub.name("x")]).await.unwrap();
    let other = Rig::new();
    let loaded = other.store.load(&archive[..], None, Progress::none()).await.unwrap();
    assert_ne!(loaded[0].image.id, image.id);
    assert_eq!(loaded[0].image.config, image.config);
    let top = &loaded[0].image.layers[0];
    assert_eq!(fs::read_to_string(top.join("f")).unwrap(), "second");
    assert_eq!(fs::metadata(top.join("d")).unwrap().mode() & 0o7777, 0o711);
    // From now on it comes out as it is.
    let again = save(&other.store, &[&stub.name("x")]).await.unwrap();
    assert_eq!(again, archive);
}

#[tokio::test]
async fn what_was_altered_does_not_go_out() {
    let stub = Stub::serving(&sample()).await;
    let rig = Rig::new();
    let image = rig.pull(&stub.name("x")).await.unwrap();
    let file = image.layers[1].join("etc/passwd");
    fs::write(&file, "root:y:0:0::/:/bin/sh\n").unwrap();
    let error = save(&rig.store, &[&stub.name("x")]).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    fs::remove_file(&file).unwrap();
    let error = save(&rig.store, &[&stub.name("x")]).await.unwrap_err();
    assert!(error.to_string().contains("\"etc/passwd\" is missing"), "{error}");
    assert!(error.hint().unwrap().contains("fsck"));
    fs::write(&file, "root:x:0:0::/:/bin/sh\n").unwrap();
    fs::write(
        rig.dir.path().join("images/recipes").join(image.layers[0].file_name().unwrap()),
        "x",
    )
    .unwrap();
    let error = save(&rig.store, &[&stub.name("x")]).await.unwrap_err();
    assert!(error.to_string().contains("its recipe is damaged"), "{error}");
}

/// A registry that takes what it is given, in memory.
#[derive(Default)]
struct Taken {
    blobs: BTreeSet<String>,
    manifests: Vec<(String, Vec<u8>)>,
    /// By number; several go on at once.
    uploads: Vec<Vec<u8>>,
    log: Vec<String>,
}

/// `trouble` may answer instead, told how many requests there were before.
fn taking(
    stub: &Stub,
    trouble: impl Fn(usize, &str, &str) -> Option<Answer> + Send + Sync + 'static,
) -> Arc<StdMutex<Taken>> {
    let taken = Arc::new(StdMutex::new(Taken::default()));
    let shared = Arc::clone(&taken);
    stub.rule(move |request| {
        let mut taken = shared.lock().unwrap();
        let path = request.path.split('?').next().unwrap();
        let query = request.path.split_once('?').map_or("", |(_, query)| query);
        let (_, rest) = path.split_once("/v2/")?;
        let count = taken.log.len();
        if rest.is_empty() {
            return None;
        }
        taken.log.push(format!("{} {}", request.method, rest));
        if let Some(answer) = trouble(count, &request.method, rest) {
            return Some(answer);
        }
        let number: Option<usize> = rest.rsplit_once("uploads/").and_then(|(_, n)| n.parse().ok());
        let location =
            |number: usize| ("Location", format!("/v2/y/blobs/uploads/{number}?state=s"));
        Some(match (request.method.as_str(), number) {
            ("HEAD", _) => {
                let digest = rest.rsplit_once('/').unwrap().1;
                Answer::status(if taken.blobs.contains(digest) { 200 } else { 404 }, &[], "")
            }
            ("POST", _) => {
                taken.uploads.push(Vec::new());
                Answer::status(202, &[location(taken.uploads.len() - 1)], "")
            }
            ("PATCH", Some(number)) => {
                taken.uploads[number].extend_from_slice(&request.body);
                Answer::status(202, &[location(number)], "")
            }
            ("GET", Some(number)) => {
                let range = format!("0-{}", taken.uploads[number].len().saturating_sub(1));
                Answer::status(204, &[location(number), ("Range", range)], "")
            }
            ("PUT", Some(number)) => {
                let upload = [&taken.uploads[number][..], &request.body].concat();
                let digest = Digest::of(&upload).to_string();
                if !query.contains(&digest.replace(':', "%3A")) || !query.contains("state=s") {
                    return Some(Answer::status(400, &[], ""));
                }
                taken.blobs.insert(digest);
                Answer::status(201, &[], "")
            }
            ("PUT", None) => {
                taken.manifests.push((rest.to_owned(), request.body.clone()));
                Answer::status(201, &[], "")
            }
            ("DELETE", _) => Answer::status(204, &[], ""),
            _ => return None,
        })
    });
    taken
}

async fn push(rig: &Rig, from: &str, stub: &Stub) -> Result<Pushed, Error> {
    let to: Reference = stub.name("y:1").parse().unwrap();
    rig.store.push(from, Some(&to), Progress::none()).await
}

#[tokio::test]
async fn pushes_send_what_is_not_there() {
    let source = Stub::serving(&sample()).await;
    let rig = Rig::new();
    let image = rig.pull(&source.name("x")).await.unwrap();
    let target = Stub::new().await;
    let taken = taking(&target, |_, _, _| None);
    let pushed = push(&rig, &source.name("x"), &target).await.unwrap();
    assert_eq!((pushed.id.as_str(), pushed.reference.tag()), (image.id.as_str(), Some("1")));
    let (path, manifest) = taken.lock().unwrap().manifests[0].clone();
    assert_eq!(path, "y/manifests/1");
    assert_eq!(Digest::of(&manifest).to_string(), pushed.digest);
    let manifest::Document::Image(parsed) = manifest::parse(&manifest).unwrap() else { panic!() };
    assert_eq!(parsed.layers.iter().map(|layer| layer.size).sum::<u64>(), pushed.size_bytes);
    for blob in parsed.layers.iter().chain([&parsed.config]) {
        assert!(taken.lock().unwrap().blobs.contains(blob.digest.as_str()));
    }
    // Again: nothing but questions and the manifest.
    taken.lock().unwrap().log.clear();
    assert_eq!(push(&rig, &source.name("x"), &target).await.unwrap(), pushed);
    let log = taken.lock().unwrap().log.clone();
    assert!(log.iter().all(|line| !line.starts_with("POST y/blobs/uploads/ ")), "{log:?}");
    assert_eq!(log.iter().filter(|line| line.starts_with("PUT")).count(), 1, "{log:?}");

    // Where all layers are as they were pulled, so is the manifest.
    let sample = sample();
    let known = sample.layers.iter().map(|layer| Digest::of(layer).to_string());
    taken.lock().unwrap().blobs.extend(known);
    let same = push(&rig, &source.name("x"), &target).await.unwrap();
    assert_eq!(same.digest, Digest::of(&sample.manifest).to_string());
    assert_eq!(taken.lock().unwrap().manifests.last().unwrap().1, sample.manifest);
    assert_eq!(rig.count("tmp"), 0);
}

#[tokio::test]
async fn broken_uploads_go_on_where_they_were() {
    // More than two pieces of 8 MiB, which do not compress.
    let mut state = 1u64;
    let noise: Vec<u8> = (0..20u32 << 20)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect();
    let source =
        Stub::serving(&Sample::new(&[Tar::default().program("big", &noise).end()], gzip)).await;
    let rig = Rig::new();
    rig.pull(&source.name("x")).await.unwrap();
    let target = Stub::new().await;
    let broken = StdMutex::new(BTreeSet::new());
    let taken = taking(&target, move |count, method, rest| {
        // The second piece is lost, the end gets a 500 once.
        let patches = method == "PATCH" && count > 3;
        let first = |what: &str| broken.lock().unwrap().insert(what.to_owned());
        if patches && first("patch") {
            return Some(Answer::Drop);
        }
        let end = method == "PUT" && rest.contains("uploads");
        (end && first("put")).then(|| Answer::status(500, &[], ""))
    });
    push(&rig, &source.name("x"), &target).await.unwrap();
    let log = taken.lock().unwrap().log.clone();
    assert!(log.iter().filter(|line| line.starts_with("GET y/blobs/uploads")).count() >= 1);

    // One that never takes it.
    let target = Stub::new().await;
    taking(&target, |_, method, _| (method == "PUT").then(|| Answer::status(500, &[], "")));
    let error = push(&rig, &source.name("x"), &target).await.unwrap_err();
    assert!(matches!(error, Error::RegistryError { status: 500, .. }), "{error}");
    let target = Stub::new().await;
    taking(&target, |_, method, _| (method == "POST").then(|| Answer::status(403, &[], "")));
    let error = push(&rig, &source.name("x"), &target).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert_eq!(rig.count("tmp"), 0);
    for (text, problem) in [("none:1", "no such image"), (&source.name("x")[..], "write a tag")] {
        let digest = Digest::of(b"x");
        let to: Reference = target.name(&format!("y@{digest}")).parse().unwrap();
        let error = rig.store.push(text, Some(&to), Progress::none()).await.unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[tokio::test]
async fn uploads_elsewhere_get_no_credentials() {
    let source = Stub::serving(&sample()).await;
    let rig = Rig::new();
    rig.pull(&source.name("x")).await.unwrap();
    let (target, storage) = (Stub::new().await, Stub::new().await);
    failures::with_password(&target);
    let elsewhere = storage.name("v2/y/blobs/uploads");
    let begun = StdMutex::new(0);
    let taken = taking(&target, move |_, method, _| {
        let mut begun = begun.lock().unwrap();
        *begun += usize::from(method == "POST");
        let location = format!("http://{elsewhere}/{}?state=s", *begun - usize::from(*begun > 0));
        (method == "POST").then(|| Answer::status(202, &[("Location", location)], ""))
    });
    taking(&storage, |_, _, _| None).lock().unwrap().uploads = vec![Vec::new(); 3];
    rig.store.login(&target.address, "me", "secret").await.unwrap();
    // Registries do not know what went elsewhere: it is not asked for again.
    push(&rig, &source.name("x"), &target).await.unwrap();
    assert!(!storage.requests().is_empty());
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()));
    assert_eq!(taken.lock().unwrap().manifests.len(), 1);
}

#[tokio::test]
async fn the_check_finds_and_repairs() {
    let stub = Stub::serving(&sample()).await;
    let rig = Rig::new();
    let nobody = BTreeSet::new();
    let image = rig.pull(&stub.name("x")).await.unwrap();
    let clean = rig.store.fsck(true, &nobody).await.unwrap();
    assert_eq!((clean.faults.len(), clean.images, clean.layers, clean.unverified), (0, 1, 2, 0));

    let images = rig.dir.path().join("images");
    let layer = image.layers[1].clone();
    let recipe = images.join("recipes").join(layer.file_name().unwrap());
    let manifest = images.join("blobs/sha256").join(Digest::of(&sample().manifest).hex());
    let config = images.join("blobs/sha256").join(image.id.strip_prefix("sha256:").unwrap());
    type Break = Box<dyn Fn()>;
    let breaks: Vec<(&str, Break, &str, bool)> = {
        let path = |name: &str| layer.join(name);
        let (sh, passwd, etc) = (path("bin/sh"), path("etc/passwd"), path("etc"));
        let images = images.clone();
        let (a, b, c, d) = (sh, passwd.clone(), passwd.clone(), passwd.clone());
        let (leftover, stray) = (images.join("tmp/leftover"), images.join("layers/stray"));
        let (all, extra) = (layer.clone(), images.join("blobs/sha256/extra"));
        vec![
            ("mode", Box::new(move || chmod(&a, 0o777)), "\"bin/sh\" has another mode", true),
            ("gone", Box::new(move || fs::remove_file(&b).unwrap()), "is missing or shorter", true),
            ("short", Box::new(move || fs::write(&c, "x").unwrap()), "missing or shorter", true),
            ("same length", Box::new(move || fs::write(&d, [b'x'; 22]).unwrap()), "altered", true),
            ("owner", Box::new(move || chown(&passwd)), "has another owner", true),
            ("kind", Box::new(move || swap(&etc)), "missing", true),
            ("folder", Box::new(move || fs::remove_dir_all(&all).unwrap()), "is missing", true),
            (
                "config",
                Box::new(move || fs::write(&config, "x").unwrap()),
                "config is missing",
                true,
            ),
            ("manifest", Box::new(move || fs::write(&manifest, "x").unwrap()), "manifest", false),
            ("recipe", Box::new(move || fs::write(&recipe, "x").unwrap()), "its recipe", false),
            ("tmp", Box::new(move || fs::write(&leftover, "x").unwrap()), "belongs to no", false),
            ("stray", Box::new(move || fs::create_dir(&stray).unwrap()), "belongs to no", false),
            ("extra", Box::new(move || fs::write(&extra, "x").unwrap()), "belongs to no", false),
        ]
    };
    for (name, harm, problem, goes) in breaks {
        rig.store.remove(&stub.name("x"), &nobody).await.ok();
        rig.pull(&stub.name("x")).await.unwrap();
        assert_eq!(rig.store.fsck(true, &nobody).await.unwrap().faults, [], "{name}");
        harm();
        let found = rig.store.fsck(false, &nobody).await.unwrap().faults;
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(found[0].problem.contains(problem) && !found[0].repaired, "{name}: {found:?}");
        let used = BTreeSet::from([image.id.clone()]);
        let found = rig.store.fsck(true, &used).await.unwrap().faults;
        assert_eq!(found[0].repaired, !goes, "{name}: {found:?}");
        assert!(rig.store.find(&image.id).is_ok(), "{name}");
        if goes {
            let found = rig.store.fsck(true, &nobody).await.unwrap().faults;
            assert!(found.iter().all(|fault| fault.repaired), "{name}: {found:?}");
            assert!(rig.store.find(&image.id).is_err(), "{name}");
        }
        assert_eq!(rig.store.fsck(false, &nobody).await.unwrap().faults, [], "{name}");
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn chown(path: &Path) {
    std::os::unix::fs::chown(path, Some(5), Some(5)).unwrap();
}

/// A folder becomes a link to itself.
fn swap(path: &Path) {
    fs::remove_dir_all(path).unwrap();
    std::os::unix::fs::symlink(path, path).unwrap();
}

#[tokio::test]
async fn the_check_leaves_what_others_work_on() {
    let sample = sample();
    let stub = Stub::serving(&sample).await;
    let rig = Rig::new();
    let gate = stub.gate(&format!("/v2/x/blobs/{}", Digest::of(&sample.layers[1])));
    let (store, name) = (rig.store.clone(), stub.name("x").parse().unwrap());
    let pull = tokio::spawn(async move { store.pull(&name, Progress::none()).await });
    gate.reached().await;
    while rig.count("tmp") == 0 {
        tokio::task::yield_now().await;
    }
    let checked = rig.store.fsck(true, &BTreeSet::new()).await.unwrap();
    assert_eq!(checked.faults, []);
    gate.open();
    pull.await.unwrap().unwrap();
    assert_eq!(rig.store.fsck(true, &BTreeSet::new()).await.unwrap().faults, []);
}

#[tokio::test]
async fn mirrors_are_asked_first() {
    let (origin, mirror) = (Stub::serving(&sample()).await, Stub::serving(&sample()).await);
    let dir = tempfile::tempdir().unwrap();
    let gone = "http://127.0.0.1:1".to_owned();
    let mirrors = [gone, format!("http://{}", mirror.address)]
        .map(|url| Mirror::parse(&format!("{}={url}", origin.address)).unwrap());
    let options = StoreOptions { mirrors: mirrors.into(), ..options(dir.path()) };
    let store = Store::open_with(options, PATIENT, Limits::default()).unwrap();
    let rig = Rig { dir, store };
    let name = origin.name("x:1");
    rig.pull(&name).await.unwrap();
    assert!(rig.store.get(&name.parse().unwrap()).is_some());
    assert_eq!(origin.requests().len(), 0);
    // What a mirror does not have or cannot give is the registry's own to give.
    mirror.answer("/v2/x/manifests/2", Answer::status(500, &[], ""));
    rig.pull(&origin.name("x:2")).await.unwrap();
    assert!(!origin.requests().is_empty());
}

#[tokio::test]
async fn busy_registries_are_asked_again() {
    let stub = Stub::serving(&sample()).await;
    let left = StdMutex::new(3);
    stub.rule(move |request| {
        let mut left = left.lock().unwrap();
        let busy = request.path.contains("/x/") && *left > 0;
        *left -= i32::from(busy);
        let again = [("Retry-After", "0".to_owned())];
        busy.then(|| Answer::status(429, &again, ""))
    });
    let rig = Rig::new();
    let error = rig.pull(&stub.name("x")).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let rig = Rig::with(Timeouts { repeats: 2, ..PATIENT });
    rig.pull(&stub.name("x")).await.unwrap();
}
