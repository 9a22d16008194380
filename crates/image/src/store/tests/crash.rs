//! Killed at any instant, the store is whole when it is opened again.
//!
//! The victim is this very test program, run again for one test.

use std::io::BufRead;
use std::process::{Command, Stdio};

use super::*;

const VICTIM: &str = "store::tests::crash::victim_changes_its_store_until_it_is_killed";
const FOLDER: &str = "WARREN_IMAGE_TEST_VICTIM_DIR";
const REGISTRY: &str = "WARREN_IMAGE_TEST_VICTIM_REGISTRY";
const ROUNDS: usize = 24;

fn samples() -> [Sample; 2] {
    let file = |n: usize| Tar::default().file(&format!("f{n}"), &format!("{n}").repeat(20_000));
    let shared = two_layers()[0].clone();
    [1, 2].map(|n| Sample::new(&[shared.clone(), file(n).end(), file(n + 2).end()], gzip))
}

/// Does nothing unless it is told where.
#[tokio::test]
async fn victim_changes_its_store_until_it_is_killed() {
    let (Some(dir), Ok(registry)) = (std::env::var_os(FOLDER), std::env::var(REGISTRY)) else {
        return;
    };
    let options = options(Path::new(&dir));
    let store = Store::open_with(options, PATIENT, Limits::default()).unwrap();
    let nobody = BTreeSet::new();
    loop {
        for name in ["x:1", "x:2"] {
            let name: Reference = format!("{registry}/{name}").parse().unwrap();
            let told = Progress::new(|step| println!("STEP {step:?}"));
            store.pull(&name, told).await.unwrap();
            println!("STEP pulled");
        }
        for name in ["x:1", "x:2"] {
            store.remove(&format!("{registry}/{name}"), &nobody).await.unwrap();
            println!("STEP removed");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_leaves_a_whole_store() {
    let stub = Stub::new().await;
    for (tag, sample) in ["1", "2"].into_iter().zip(samples()) {
        stub.serve(&sample);
        let rule = sample.manifest.clone();
        let path = format!("/v2/x/manifests/{tag}");
        stub.rule(move |request| (request.path == path).then(|| Answer::ok(&rule)));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut seen = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", VICTIM, "--nocapture"])
            .env(FOLDER, dir.path())
            .env(REGISTRY, &stub.address)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = std::io::BufReader::new(victim.stdout.take().unwrap());
        let steps = output.lines().map_while(Result::ok).filter(|line| line.contains("STEP"));
        let count = tokio::task::block_in_place(|| steps.take(round * 3 + 1).count());
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert_eq!(count, round * 3 + 1, "the victim ended by itself");

        let store = Store::open_with(options(dir.path()), PATIENT, Limits::default()).unwrap();
        let rig = Rig { dir: tempfile::tempdir().unwrap(), store };
        let images = dir.path().join("images");
        let count = |folder: &str| fs::read_dir(images.join(folder)).unwrap().count();
        let listed = rig.store.list();
        assert_eq!(count("tmp"), 0);
        assert_eq!(count("blobs/sha256"), 2 * listed.len());
        assert_eq!(count("layers"), if listed.is_empty() { 0 } else { 1 + 2 * listed.len() });
        for row in &listed {
            assert_eq!(row.names.len(), 1);
            let image = rig.store.find(&row.id).unwrap();
            let n: usize = row.names[0].tag().unwrap().parse().unwrap();
            for (layer, n) in image.layers.iter().zip([n + 2, n]) {
                let text = fs::read_to_string(layer.join(format!("f{n}"))).unwrap();
                assert_eq!(text, format!("{n}").repeat(20_000));
            }
        }
        seen.insert(listed.len());
    }
    // It was hit in different places.
    assert!(seen.len() > 1, "{seen:?}");
}
