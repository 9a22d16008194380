//! Images made to do harm, in documents and layers: refused with one clear error, or
//! taken without what is bad in them.

use serde_json::{Value, json};

use super::*;
use crate::testing::mode;

async fn refused(rig: &Rig, stub: &Stub, expected: &str) {
    let error = rig.pull(&stub.name("x")).await.expect_err(expected);
    assert!(error.to_string().contains(expected), "{expected}: {error}");
    assert!(error.hint().is_some(), "{error}");
    assert!(rig.store.list().is_empty());
    assert_eq!((rig.count("tmp"), rig.count("layers"), rig.count("recipes")), (0, 0, 0), "{error}");
}

/// The sample with a config that someone else wrote.
fn with_config(config: &Value) -> Sample {
    let sample = sample();
    let config = config.to_string().into_bytes();
    let manifest = Sample::manifest_of(&config, &sample.layers);
    Sample { config, manifest, ..sample }
}

#[tokio::test]
async fn configs_of_wrong_types_are_refused() {
    let rig = Rig::new();
    let good: Value = serde_json::from_slice(&sample().config).unwrap();
    let with = |path: &str, value: Value| {
        let mut config = good.clone();
        *config.pointer_mut(path).unwrap() = value;
        config
    };
    for (config, expected) in [
        (json!([]), "config: unreadable"),
        (json!("text"), "config: unreadable"),
        (json!(null), "config: unreadable"),
        (json!({}), "config: unreadable"),
        (with("/config", json!("x")), "config: unreadable"),
        (with("/config/Cmd", json!("sh -c true")), "config: unreadable"),
        (with("/config/Cmd", json!([1])), "config: unreadable"),
        (with("/config/Env", json!({"A": "b"})), "config: unreadable"),
        (with("/rootfs", json!(null)), "config: unreadable"),
        (with("/rootfs/diff_ids", json!("x")), "config: unreadable"),
        (with("/rootfs/diff_ids", json!(["../../etc", "x"])), "diff id"),
        (with("/rootfs/diff_ids", json!([])), "2 layers, the config 0"),
        (with("/architecture", json!(7)), "config: unreadable"),
        (with("/os", json!("windows")), "no build for linux/"),
    ] {
        let stub = Stub::serving(&with_config(&config)).await;
        refused(&rig, &stub, expected).await;
    }
    // Deeper than any parser's stack.
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let mut sample = sample();
    sample.config = deep.into_bytes();
    sample.manifest = Sample::manifest_of(&sample.config, &sample.layers);
    refused(&rig, &Stub::serving(&sample).await, "unreadable").await;
}

#[tokio::test]
async fn indexes_lead_to_manifests_alone() {
    let rig = Rig::new();
    let index = |inner: &[u8], media_type: &str| {
        let entry = json!({
            "mediaType": media_type,
            "digest": Digest::of(inner).as_str(),
            "size": inner.len(),
            "platform": {"os": "linux", "architecture": manifest::host_architecture()},
        });
        let index =
            json!({"schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": [entry]});
        index.to_string().into_bytes()
    };
    let stub = Stub::serving(&sample()).await;
    let inner = index(&sample().manifest, manifest::OCI_MANIFEST);
    let outer = index(&inner, manifest::OCI_INDEX);
    stub.manifest(&format!("/v2/x/manifests/{}", Digest::of(&inner)), &inner);
    stub.manifest("/v2/x/manifests/latest", &outer);
    refused(&rig, &stub, "an index inside of an index").await;
    // One that leads to itself would have to know its own digest: what comes is not that.
    let digest = Digest::of(&inner);
    stub.manifest(&format!("/v2/x/manifests/{digest}"), &outer);
    refused(&rig, &stub, digest.as_str()).await;
    // The same in an archive.
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let archive = Tar::default()
        .file("index.json", std::str::from_utf8(&index(&outer, manifest::OCI_INDEX)).unwrap())
        .program(&blob(&outer), &outer)
        .program(&blob(&inner), &inner)
        .end();
    let error = rig.store.load(&archive[..], None, Progress::none()).await.unwrap_err();
    assert!(error.to_string().contains("an index inside of an index"), "{error}");
}

#[tokio::test]
async fn documents_without_end_are_cut_off() {
    let rig = Rig::new();
    let sample = sample();
    let stub = Stub::serving(&sample).await;
    stub.answer("/v2/x/manifests/latest", Answer::Endless { len: 100 << 20 });
    refused(&rig, &stub, "more than 4194304 bytes").await;
    let stub = Stub::serving(&sample).await;
    let config = format!("/v2/x/blobs/{}", Digest::of(&sample.config));
    stub.answer(&config, Answer::Endless { len: 100 << 20 });
    refused(&rig, &stub, "which is the limit").await;
}

#[tokio::test]
async fn urls_of_foreign_layers_are_not_asked() {
    let sample = sample();
    let (stub, foreign) = (Stub::serving(&sample).await, Stub::serving(&sample).await);
    let mut document: Value = serde_json::from_slice(&sample.manifest).unwrap();
    for layer in document["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
        layer["urls"] = json!([format!("http://{}/layer", foreign.address), "file:///etc/shadow"]);
    }
    stub.manifest("/v2/x/manifests/latest", document.to_string().as_bytes());
    Rig::new().pull(&stub.name("x")).await.unwrap();
    assert_eq!(foreign.requests().len(), 0);
}

#[tokio::test]
async fn devices_are_left_out_and_told() {
    let device = |tar: Tar, name: &str| tar.entry(b'3', name, "", mode(0o666), b"");
    let first = device(device(Tar::default().file("f", "x"), "dev/null"), "dev/zero").end();
    let second = device(Tar::default().file("g", "x"), "dev/sda").end();
    let stub = Stub::serving(&Sample::new(&[first, second], gzip)).await;
    let rig = Rig::new();
    let image = rig.pull(&stub.name("x")).await.unwrap();
    assert_eq!(image.devices_skipped, 3);
    assert!(!image.layers[1].join("dev/null").exists());
    let rig = rig.reopen();
    assert_eq!(rig.store.find(&image.id).unwrap(), image);
    // Also where the layers were there already.
    assert_eq!(rig.pull(&stub.name("x:2")).await.unwrap().devices_skipped, 3);
}

#[tokio::test]
async fn layers_of_bad_names_are_refused() {
    let rig = Rig::new();
    let many = "d/".repeat(2048);
    for (tar, expected) in [
        (Tar::default().long(b'L', &"n".repeat(256)).file("s", ""), "part of 256 bytes"),
        (Tar::default().long(b'L', &many).file("s", ""), "name of 4097 bytes, 4095 are allowed"),
        (Tar::default().long(b'K', &many).link("s", "t"), "name of 4097 bytes, 4095 are allowed"),
        (Tar::default().pax(&[("path", many.as_bytes())]).file("s", ""), "name of 4096 bytes"),
        (Tar::default().pax(&[("path", b"a\0b")]).file("s", ""), "zero byte"),
        (Tar::default().file("/../etc/x", ""), "path with \"..\""),
        (Tar::default().link("l", "..").file("l/x", "").hard("h", "../x"), "outside of the layer"),
        (Tar::default().file("f", "").file("f/x", ""), "which is no folder"),
    ] {
        let stub = Stub::serving(&Sample::new(&[tar.end()], gzip)).await;
        refused(&rig, &stub, expected).await;
    }
}
