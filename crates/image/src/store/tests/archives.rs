//! Archives and root file systems.

use super::*;

fn docker_archive(sample: &Sample, tars: &[Vec<u8>]) -> Tar {
    let config = format!("{}.json", Digest::of(&sample.config).hex());
    let layers: Vec<String> = (0..tars.len()).map(|index| format!("{index}/layer.tar")).collect();
    let listed = serde_json::json!([{
        "Config": config, "RepoTags": ["shop/web:1", "localhost:5000/web:2"], "Layers": layers,
    }]);
    let mut tar = Tar::default();
    for (name, bytes) in layers.iter().zip(tars) {
        tar = tar.program(name, bytes);
    }
    tar.program(&config, &sample.config).file("manifest.json", &listed.to_string())
}

fn oci_archive(sample: &Sample, annotations: &serde_json::Value) -> Tar {
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": manifest::OCI_MANIFEST,
            "digest": Digest::of(&sample.manifest).as_str(),
            "size": sample.manifest.len(),
            "annotations": annotations,
        }],
    });
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let mut tar = Tar::default()
        .file("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}")
        .file("index.json", &index.to_string());
    for bytes in sample.layers.iter().chain([&sample.config, &sample.manifest]) {
        tar = tar.program(&blob(bytes), bytes);
    }
    tar
}

async fn load(rig: &Rig, bytes: &[u8], base: Option<&str>) -> Result<Vec<Loaded>, Error> {
    let base: Option<Reference> = base.map(|base| base.parse().unwrap());
    let result = rig.store.load(bytes, base.as_ref(), Progress::none()).await;
    assert_eq!(rig.count("tmp"), 0);
    result
}

fn names(loaded: &[Loaded]) -> Vec<String> {
    loaded.iter().flat_map(|loaded| loaded.names.iter().map(Reference::familiar)).collect()
}

#[tokio::test]
async fn docker_archives_are_loaded() {
    let tars = two_layers();
    let sample = Sample::new(&tars, <[u8]>::to_vec);
    let archive = docker_archive(&sample, &tars).end();
    for bytes in [archive.clone(), gzip(&archive)] {
        let rig = Rig::new();
        let loaded = load(&rig, &bytes, None).await.unwrap();
        assert_eq!(names(&loaded), ["shop/web:1", "localhost:5000/web:2"]);
        let image = &loaded[0].image;
        assert_eq!(image.id, Digest::of(&sample.config).to_string());
        assert_eq!(fs::metadata(image.layers[0].join("etc")).unwrap().mode() & 0o777, 0o751);
        let rig = rig.reopen();
        assert_eq!(rig.store.find("shop/web:1").unwrap(), *image);
        // Again: everything is there.
        load(&rig, &bytes, None).await.unwrap();
        assert_eq!(rig.store.list().len(), 1);
    }
}

#[tokio::test]
async fn repeated_layers_may_be_links() {
    let tars = two_layers();
    let sample = Sample::new(&[tars[0].clone(), tars[0].clone()], <[u8]>::to_vec);
    let config = "config.json";
    let listed = serde_json::json!([{
        "Config": config, "RepoTags": null, "Layers": ["a/layer.tar", "b/layer.tar"],
    }]);
    let archive = Tar::default()
        .link("b/layer.tar", "../a/layer.tar")
        .program("a/layer.tar", &tars[0])
        .program(config, &sample.config)
        .file("manifest.json", &listed.to_string())
        .end();
    let rig = Rig::new();
    let loaded = load(&rig, &archive, None).await.unwrap();
    assert_eq!(loaded[0].image.layers.len(), 2);
    assert!(loaded[0].names.is_empty());
    assert_eq!(rig.store.list()[0].names, []);
}

#[tokio::test]
async fn oci_archives_are_loaded() {
    let sample = sample();
    let reference = "org.opencontainers.image.ref.name";
    for (annotations, base, expected) in [
        (serde_json::json!({reference: "busybox:1.36"}), None, vec!["busybox:1.36"]),
        (serde_json::json!({reference: "1.36"}), Some("busybox"), vec!["busybox:1.36"]),
        (serde_json::json!({reference: "1.36"}), None, vec![]),
        (
            serde_json::json!({reference: "x", "io.containerd.image.name": "r.io/y:z"}),
            None,
            vec!["r.io/y:z"],
        ),
        (serde_json::json!({}), Some("busybox:2"), vec!["busybox:2"]),
        (serde_json::json!(null), None, vec![]),
    ] {
        let rig = Rig::new();
        let archive = oci_archive(&sample, &annotations).end();
        let loaded = load(&rig, &archive, base).await.unwrap();
        assert_eq!(names(&loaded), expected);
        let manifest = Digest::of(&sample.manifest);
        assert_eq!(loaded[0].image.digest.as_deref(), Some(manifest.as_str()));
    }
}

#[tokio::test]
async fn bad_archives_change_nothing() {
    let rig = Rig::new();
    let tars = two_layers();
    let sample = Sample::new(&tars, <[u8]>::to_vec);
    let none = serde_json::json!({});
    let evil = vec![Tar::default().file("../evil", "x").end()];
    let evil_sample = Sample::new(&evil, <[u8]>::to_vec);
    let other = Sample::new(&[tars[1].clone(), tars[0].clone()], <[u8]>::to_vec);
    let listed = |text: &str| Tar::default().file("manifest.json", text).end();
    let oci = oci_archive(&sample, &none).end();
    let mut altered = oci.clone();
    let config_at = oci.windows(12).rposition(|bytes| bytes == b"architecture").unwrap();
    altered[config_at] = b'A';
    for (bytes, expected) in [
        (b"no tar at all".repeat(100), "no tar archive"),
        (Vec::new(), "neither manifest.json nor index.json"),
        (Tar::default().file("f", "x").end(), "neither manifest.json nor index.json"),
        (listed("{"), "manifest.json is unreadable"),
        (listed(r#"[{"Config":"c","Layers":["/etc/passwd"]}]"#), "\"c\" is missing"),
        (listed(r#"[{"Config":"../../etc/passwd","Layers":["x"]}]"#), "is missing"),
        (docker_archive(&sample, &tars[..1]).end(), "1 layers, its config 2"),
        (docker_archive(&other, &tars).end(), "content of layer"),
        (docker_archive(&evil_sample, &evil).end(), "path with \"..\""),
        (altered, "in the archive is"),
        (oci[..oci.len() / 2].to_vec(), "ends in the middle"),
        (gzip(&oci)[..200].to_vec(), "deflate stream"),
        (
            oci_archive(&sample, &serde_json::json!({"io.containerd.image.name": "B:d"})).end(),
            "upper case",
        ),
    ] {
        let error = load(&rig, &bytes, None).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(rig.store.list().is_empty());
        assert_eq!(rig.count("layers"), 0, "{error}");
    }
}

#[tokio::test]
async fn root_file_systems_are_imported() {
    let rig = Rig::new();
    let tar = Tar::default().dir("./", 0o755).program("./bin/httpd", b"x").end();
    let name: Reference = "web:1".parse().unwrap();
    let options = ImportOptions {
        cmd: vec!["httpd".into(), "-f".into()],
        env: vec!["PATH=/bin".into()],
        workdir: "/srv".into(),
        user: "33".into(),
        exposed_ports: vec!["80".into(), "53/udp".into()],
        ..ImportOptions::default()
    };
    let import = |bytes: Vec<u8>, options: ImportOptions| {
        let (store, name) = (rig.store.clone(), name.clone());
        async move { store.import(&bytes[..], &name, options, Progress::none()).await }
    };
    let image = import(gzip(&tar), options.clone()).await.unwrap();
    assert_eq!(image.config.cmd, ["httpd", "-f"]);
    assert_eq!(image.config.exposed_ports, ["53/udp", "80/tcp"]);
    assert_eq!((image.config.workdir.as_str(), image.config.user.as_str()), ("/srv", "33"));
    assert_eq!(rig.store.get(&name), Some(image.clone()));
    // The same gives the same.
    assert_eq!(import(tar.clone(), options.clone()).await.unwrap(), image);
    assert_eq!((rig.count("layers"), rig.count("tmp")), (1, 0));

    for (change, expected) in [
        (ImportOptions { env: vec!["NOVALUE".into()], ..options.clone() }, "KEY=value"),
        (ImportOptions { workdir: "srv".into(), ..options.clone() }, "absolute"),
        (ImportOptions { exposed_ports: vec!["0".into()], ..options.clone() }, "65535"),
        (ImportOptions { exposed_ports: vec!["80/http".into()], ..options.clone() }, "/sctp"),
        (ImportOptions { volumes: vec!["data".into()], ..options.clone() }, "absolute"),
    ] {
        let error = import(tar.clone(), change).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
    let error = import(b"no tar".repeat(100), options).await.unwrap_err();
    assert!(matches!(error, Error::BadLayer { .. }), "{error}");
    assert_eq!(rig.count("layers"), 1);
}

/// A stream that fails in the middle.
struct Broken(usize);

impl tokio::io::AsyncRead for Broken {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        if self.0 == 0 {
            return std::task::Poll::Ready(Err(std::io::ErrorKind::ConnectionReset.into()));
        }
        self.0 -= 1;
        buffer.put_slice(&[0; 512][..buffer.remaining().min(512)]);
        std::task::Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn a_stream_that_breaks_is_no_image() {
    let rig = Rig::new();
    let name: Reference = "web:1".parse().unwrap();
    let options = ImportOptions::default();
    let import = rig.store.import(Broken(3), &name, options, Progress::none());
    assert!(matches!(import.await.unwrap_err(), Error::Io { .. }));
    let load = rig.store.load(Broken(3), None, Progress::none());
    assert!(matches!(load.await.unwrap_err(), Error::Io { .. }));
    assert!(rig.store.list().is_empty());
    assert_eq!((rig.count("layers"), rig.count("tmp")), (0, 0));
}
