use warren_model::TaskTemplate;
use warren_model::service::{Companion, CompanionKind};

use super::*;

/// `x`: the digest of one letter over and over.
fn at(name: &str, x: char) -> String {
    format!("{name}@sha256:{}", x.to_string().repeat(64))
}

/// The service's own image, then those of sidecars `a`, `b`, …
fn spec(images: &[&str]) -> ServiceSpec {
    let template =
        |image: &&str| TaskTemplate { image: (*image).to_owned(), ..TaskTemplate::default() };
    let mut spec = ServiceSpec::new("web".parse().unwrap(), template(&images[0]));
    for (image, name) in images[1..].iter().zip(["a", "b", "c"]) {
        spec.task.companions.push(Companion {
            name: name.parse().unwrap(),
            kind: CompanionKind::Sidecar,
            task: template(image),
        });
    }
    spec
}

#[track_caller]
fn check_wanted(before: Option<&[&str]>, after: &[&str], again: bool, expected: &[&str]) {
    let before = before.map(spec);
    assert_eq!(wanted(before.as_ref(), &spec(after), again), expected);
}

#[test]
fn what_is_asked_for() {
    let one = at("x:1", '1');
    // New: all, each name once; what has a digest never.
    check_wanted(None, &["x:1", "y", "x:1"], true, &["x:1", "y"]);
    check_wanted(None, &[&one, "y"], true, &["y"]);
    // Changed: what is named anew.
    check_wanted(Some(&[&one]), &[&one], false, &[]);
    check_wanted(Some(&[&one]), &[&one], true, &[]);
    check_wanted(Some(&[&one]), &["x:1"], true, &["x:1"]);
    check_wanted(Some(&[&one]), &["x:1"], false, &["x:1"]);
    check_wanted(Some(&[&one]), &["x:2"], false, &["x:2"]);
    // What was never pinned is left alone unless it is named.
    check_wanted(Some(&["x:1"]), &["x:1"], false, &[]);
    check_wanted(Some(&["x:1"]), &["x:1"], true, &["x:1"]);
    // Containers beside it by their own names.
    check_wanted(Some(&["x:1", "y:1"]), &["x:1", "y:1", "z:1"], false, &["z:1"]);
    check_wanted(Some(&["x:1", "y:1"]), &["x:1", "x:1"], false, &["x:1"]);
}

/// How images are named afterwards, and what is said.
#[track_caller]
fn check_pin(
    before: Option<&[&str]>,
    after: &[&str],
    found: Result<&Digests, &str>,
    expected: &[&str],
    said: &[&str],
) {
    let before = before.map(spec);
    let mut spec = spec(after);
    let asked = wanted(before.as_ref(), &spec, true);
    let notes = pin(before.as_ref(), &mut spec, &asked, found).unwrap();
    let named: Vec<&String> = images(&spec).map(|(_, name)| name).collect();
    assert_eq!(named, expected);
    assert_eq!(notes, said);
}

#[test]
fn how_images_are_named_then() {
    let (one, two) = (at("x:1", '1'), at("x:1", '2'));
    let latest = at("y:latest", '3');
    let pairs = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    };
    let found = Digests {
        pinned: pairs(&[("x:1", &two), ("y", &latest)]),
        unresolved: pairs(&[("z:1", "registry z is\n down")]),
        local: vec!["l:1".to_owned()],
    };
    check_pin(None, &["x:1", "y", "x:1"], Ok(&found), &[&two, &latest, &two], &[]);
    // The tag has moved on; a sidecar that is as it was is not touched.
    check_pin(Some(&[&one, &one]), &["x:1", &one], Ok(&found), &[&two, &one], &[]);
    check_pin(Some(&[&two]), &["x:1"], Ok(&found), &[&two], &[]);
    // A registry that is down takes nothing away.
    let down = "image z:1 is not pinned to a digest: registry z is down";
    check_pin(None, &["z:1"], Ok(&found), &["z:1"], &[down]);
    check_pin(Some(&[&one]), &["z:1"], Ok(&found), &["z:1"], &[down]);
    let kept = at("z:1", '4');
    let stays = format!("image z:1 stays at sha256:{}: registry z is down", "4".repeat(64));
    check_pin(Some(&[&kept]), &["z:1"], Ok(&found), &[&kept], &[&stays]);
    // One that was loaded is meant by its name.
    let local = "image l:1 is not pinned to a digest: it was loaded or imported, and is not from a registry";
    let pinned = at("l:1", '5');
    check_pin(Some(&[&pinned]), &["l:1", "l:1"], Ok(&found), &["l:1", "l:1"], &[local]);
    // Nobody looked.
    let note = "image x:1 is not pinned to a digest: nobody looked";
    check_pin(None, &["x:1"], Err("nobody looked"), &["x:1"], &[note]);
    let stays = format!("image x:1 stays at sha256:{}: nobody looked", "1".repeat(64));
    check_pin(Some(&[&one]), &["x:1"], Err("nobody looked"), &[&one], &[&stays]);
    // A node of the version before says nothing.
    check_pin(None, &["x:1"], Ok(&Digests::default()), &["x:1"], &[]);
}

#[test]
fn a_node_cannot_name_another_image() {
    for bad in [at("other:1", '1'), "x:1".to_owned(), at("x:1", 'z'), at("x", '1'), at("x:1", 'é')]
    {
        let pinned = [("x:1".to_owned(), bad.clone())].into();
        let found = Digests { pinned, ..Digests::default() };
        let mut spec = spec(&["x:1"]);
        let asked = wanted(None, &spec, true);
        assert!(pin(None, &mut spec, &asked, Ok(&found)).is_err(), "{bad}");
        assert_eq!(spec.task.image, "x:1");
    }
}
