//! What can go wrong on the way: each is one clear error and leaves nothing.

use super::*;

/// Pulls `x`, expects an error, and that nothing is left of the pull.
async fn refused(rig: &Rig, stub: &Stub) -> Error {
    let error = rig.pull(&stub.name("x")).await.unwrap_err();
    assert_eq!(rig.count("tmp"), 0, "{error}");
    assert!(rig.store.list().is_empty(), "{error}");
    if !error.is_transient() {
        assert_eq!(rig.count("layers"), 0, "{error}");
    }
    // Each says what to do about it; a status that nobody knows is the exception.
    let unknown = matches!(error, Error::RegistryError { status: 418, .. });
    assert!(error.hint().is_some() || unknown, "{error}");
    error
}

fn layer_path(sample: &Sample, index: usize) -> String {
    format!("/v2/x/blobs/{}", Digest::of(&sample.layers[index]))
}

#[tokio::test]
async fn answers_other_than_success_are_told_apart() {
    let rig = Rig::new();
    for (status, body, expected, transient) in [
        (404, "", "x:latest not found in registry", false),
        (403, r#"{"errors":[{"message":"no"}]}"#, "denies access to ADDR/x:latest: no", false),
        (401, "", "denies access to", false),
        (500, "<html>", "answered 500 for ADDR/x:latest", true),
        (503, r#"{"errors":[{"message":"busy"}]}"#, "answered 503 for ADDR/x:latest: busy", true),
        (429, "", "answered 429", true),
        (418, "", "answered 418", false),
    ] {
        let stub = Stub::new().await;
        stub.answer("/v2/x/manifests/latest", Answer::status(status, &[], body));
        let error = refused(&rig, &stub).await;
        let expected = expected.replace("ADDR", &stub.address);
        assert!(error.to_string().contains(&expected), "{error}");
        assert_eq!(error.is_transient(), transient, "{error}");
        if status == 401 {
            let hint = error.hint().unwrap();
            assert!(hint.contains(&format!("warren registry login {}", stub.address)), "{hint}");
        }
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unreachable() {
    let rig = Rig::new();
    let stub = Stub::new().await;
    let name = stub.name("x");
    drop(stub);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = listener.local_addr().unwrap();
    drop(listener);
    for (name, why) in [
        // Accepted and let go of, or refused: whichever comes first.
        (name, ""),
        (format!("{closed}/x"), "Connection refused"),
        // Which of the two depends on whether this machine has a name server.
        ("no-such-host.invalid/x".to_owned(), "the name no-such-host.invalid"),
    ] {
        let error = rig.pull(&name).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("cannot be reached for {name}")), "{text}");
        assert!(text.contains(why) && !text.contains("os error"), "{text}");
        assert!(error.is_transient() && error.hint().is_some());
    }
}

#[tokio::test]
async fn a_silent_registry_is_not_waited_for() {
    let rig = Rig::with(IMPATIENT);
    let sample = sample();
    for path in ["/v2/", "/v2/x/manifests/latest", &layer_path(&sample, 0)] {
        let stub = Stub::serving(&sample).await;
        stub.answer(path, Answer::Hang);
        let error = refused(&rig, &stub).await;
        assert!(matches!(error, Error::TimedOut { .. }), "{path}: {error}");
        assert!(error.is_transient());
    }
    let stub = Stub::serving(&sample).await;
    stub.answer(&layer_path(&sample, 1), Answer::Stall { body: sample.layers[1].clone() });
    let error = refused(&rig, &stub).await;
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
    let stub = Stub::serving(&sample).await;
    stub.answer("/v2/x/manifests/latest", Answer::Stall { body: sample.manifest.clone() });
    assert!(matches!(refused(&rig, &stub).await, Error::TimedOut { .. }));
}

#[tokio::test]
async fn a_registry_that_trickles_is_given_up() {
    let rig = Rig::with(IMPATIENT);
    let sample = sample();
    let bodies = [
        (layer_path(&sample, 0), sample.layers[0].clone()),
        ("/v2/x/manifests/latest".to_owned(), sample.manifest.clone()),
    ];
    for (path, body) in bodies {
        let stub = Stub::serving(&sample).await;
        stub.answer(&path, Answer::Trickle { body });
        let error = refused(&rig, &stub).await;
        assert!(matches!(error, Error::TooSlow { got: 1.., .. }), "{path}: {error}");
        assert!(error.is_transient() && error.hint().is_some());
    }
}

#[tokio::test]
async fn altered_bytes_are_found() {
    let rig = Rig::new();
    let sample = sample();
    let mut altered = sample.layers[0].clone();
    let middle = altered.len() / 2;
    altered[middle] ^= 1;
    // Also when they are another valid layer, or no layer at all.
    let other = gzip(&Tar::default().file("evil", "x").end());
    let mut page = b"<html>".repeat(500);
    page.truncate(sample.layers[0].len());
    for bytes in [altered, page] {
        let stub = Stub::serving(&sample).await;
        stub.answer(&layer_path(&sample, 0), Answer::ok(&bytes));
        let error = refused(&rig, &stub).await;
        assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
    }
    let stub = Stub::serving(&sample).await;
    stub.answer(&layer_path(&sample, 0), Answer::ok(&[&sample.layers[0][..], b"x"].concat()));
    let error = refused(&rig, &stub).await;
    assert!(error.to_string().contains("longer than"), "{error}");

    // The manifest names a layer whose content is not what the config says.
    let stub = Stub::serving(&sample).await;
    let layers = [other.clone(), sample.layers[1].clone()];
    stub.manifest("/v2/x/manifests/latest", &Sample::manifest_of(&sample.config, &layers));
    stub.answer(&format!("/v2/x/blobs/{}", Digest::of(&other)), Answer::ok(&other));
    let error = refused(&rig, &stub).await;
    assert!(error.to_string().starts_with("content of layer"), "{error}");

    let config = format!("/v2/x/blobs/{}", Digest::of(&sample.config));
    let stub = Stub::serving(&sample).await;
    stub.answer(&config, Answer::ok(&sample.config.to_ascii_uppercase()));
    assert!(matches!(refused(&rig, &stub).await, Error::DigestMismatch { .. }));

    let stub = Stub::serving(&sample).await;
    let digest = Digest::of(b"other");
    stub.manifest(&format!("/v2/x/manifests/{digest}"), &sample.manifest);
    let error = rig.pull(&stub.name(&format!("x@{digest}"))).await.unwrap_err();
    assert!(matches!(error, Error::DigestMismatch { .. }), "{error}");
}

#[tokio::test]
async fn broken_connections_are_taken_up_again() {
    let noise: String = (0..8_000u64).map(|n| format!("{} ", n * n % 9973)).collect();
    let sample = Sample::new(&[Tar::default().file("noise", &noise).end()], <[u8]>::to_vec);
    let body = sample.layers[0].clone();
    let third = body.len() / 3 + 1;

    // Three pieces, each from where the one before ended.
    let rig = Rig::new();
    let stub = Stub::serving(&sample).await;
    stub.answer(&layer_path(&sample, 0), Answer::Truncate { body: body.clone(), after: third });
    let image = rig.pull(&stub.name("x")).await.unwrap();
    assert_eq!(fs::read_to_string(image.layers[0].join("noise")).unwrap(), noise);
    let ranges = stub.requests().iter().filter(|request| request.range.is_some()).count();
    assert_eq!(ranges, 2);

    // A server without ranges begins anew: what is known is left out.
    let rig = Rig::new();
    let stub = Stub::serving(&sample).await;
    let path = layer_path(&sample, 0);
    let cut = Answer::Truncate { body: body.clone(), after: third };
    stub.rule(move |request| {
        (request.path == path && request.range.is_none()).then(|| cut.clone())
    });
    rig.pull(&stub.name("x")).await.unwrap();

    // One that never gets to the end.
    let rig = Rig::new();
    let stub = Stub::serving(&sample).await;
    stub.answer(&layer_path(&sample, 0), Answer::Truncate { body, after: 10 });
    let error = refused(&rig, &stub).await;
    assert!(matches!(error, Error::Truncated { got: 40, .. }), "{error}");
    assert!(error.is_transient());
}

#[tokio::test]
async fn documents_have_limits() {
    let rig = Rig::new();
    let sample = sample();
    let stub = Stub::serving(&sample).await;
    stub.manifest("/v2/x/manifests/latest", &vec![b' '; 5 << 20]);
    let error = refused(&rig, &stub).await;
    assert!(error.to_string().contains("more than 4194304 bytes"), "{error}");
    for (bytes, expected) in [
        (&b"<html>"[..], "unreadable"),
        (b"{\"schemaVersion\":1}", "schema 1"),
        (b"{\"schemaVersion\":2}", "neither a manifest nor an index"),
    ] {
        stub.manifest("/v2/x/manifests/latest", bytes);
        let error = refused(&rig, &stub).await;
        assert!(error.to_string().contains(expected), "{error}");
    }
    let one = &sample.layers[..1];
    stub.manifest("/v2/x/manifests/latest", &Sample::manifest_of(&sample.config, one));
    let error = refused(&rig, &stub).await;
    assert!(error.to_string().contains("1 layers, the config 2"), "{error}");
}

#[tokio::test]
async fn layers_that_climb_out_are_refused() {
    let rig = Rig::new();
    for (tar, expected) in [
        (Tar::default().file("../../../escape", "x"), "\"../../../escape\": path with \"..\""),
        (Tar::default().link("l", "/etc").file("l/escape", "x"), "a symbolic link to nothing"),
        (Tar::default().hard("h", "/etc/passwd"), "not in the layer"),
    ] {
        let stub = Stub::serving(&Sample::new(&[two_layers()[0].clone(), tar.end()], gzip)).await;
        let error = refused(&rig, &stub).await;
        assert!(matches!(error, Error::BadLayer { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert!(!Path::new("/etc/escape").exists());
}

/// Answers only to the right password; `basic(user, password)` in base64.
pub(super) fn with_password(stub: &Stub) {
    stub.rule(|request| {
        let open = request.authorization.as_deref() == Some("Basic bWU6c2VjcmV0");
        let challenge = [("WWW-Authenticate", "Basic realm=\"r\"".to_owned())];
        let body = r#"{"errors":[{"message":"authentication required"}]}"#;
        (!open).then(|| Answer::status(401, &challenge, body))
    });
}

#[tokio::test]
async fn passwords_are_checked_stored_and_used() {
    let rig = Rig::new();
    let stub = Stub::serving(&sample()).await;
    with_password(&stub);
    let error = refused(&rig, &stub).await;
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    let error = rig.store.login(&stub.address, "me", "wrong").await.unwrap_err();
    assert!(error.to_string().contains("denies access to user me"), "{error}");
    assert!(!format!("{error:?}").contains("wrong"));
    assert!(!rig.dir.path().join("docker/config.json").exists());
    rig.store.login(&stub.address, "me", "secret").await.unwrap();
    rig.pull(&stub.name("x")).await.unwrap();
    rig.store.logout(&stub.address).await.unwrap();
    let error = rig.pull(&stub.name("x")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(rig.store.logout(&stub.address).await.is_err());
    for (registry, user) in [("UPPER case", "me"), ("r.io", ""), ("r.io", "a:b")] {
        assert!(rig.store.login(registry, user, "p").await.is_err());
    }
}

/// A registry whose tokens end after one use each.
fn with_tokens(stub: &Stub) {
    let realm = format!("http://{}/token", stub.address);
    let issued = StdMutex::new((0, BTreeSet::new()));
    stub.rule(move |request| {
        let mut issued = issued.lock().unwrap();
        if request.path.starts_with("/token") {
            let password = request.authorization.as_deref() == Some("Basic bWU6c2VjcmV0");
            if !password || !request.path.contains("scope=repository%3Ax%3Apull") {
                return Some(Answer::status(401, &[], r#"{"details":"bad password"}"#));
            }
            issued.0 += 1;
            let token = format!("t{}", issued.0);
            let body = format!("{{\"token\":\"{token}\"}}");
            issued.1.insert(format!("Bearer {token}"));
            return Some(Answer::ok(body.as_bytes()));
        }
        if request.path == "/v2/" {
            return None;
        }
        let known = request.authorization.as_ref().is_some_and(|token| issued.1.remove(token));
        let challenge =
            format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:x:pull\"");
        (!known).then(|| Answer::status(401, &[("WWW-Authenticate", challenge)], ""))
    });
}

#[tokio::test]
async fn tokens_are_fetched_and_renewed() {
    let rig = Rig::new();
    let stub = Stub::serving(&sample()).await;
    with_tokens(&stub);
    let error = refused(&rig, &stub).await;
    assert!(error.to_string().contains("denies access to"), "{error}");
    assert!(error.to_string().contains("bad password"), "{error}");
    rig.store.login(&stub.address, "me", "secret").await.unwrap();
    rig.pull(&stub.name("x")).await.unwrap();
}

#[tokio::test]
async fn a_token_service_may_send_rubbish() {
    let rig = Rig::new();
    for body in ["", "{}", "{\"token\":\"a\\nb\"}"] {
        let stub = Stub::serving(&sample()).await;
        let realm = format!("http://{}/token", stub.address);
        stub.rule(move |request| {
            if request.path.starts_with("/token") {
                return Some(Answer::ok(body.as_bytes()));
            }
            let challenge = [("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))];
            (request.path != "/v2/").then(|| Answer::status(401, &challenge, ""))
        });
        let error = refused(&rig, &stub).await;
        assert!(error.to_string().contains("token service sent"), "{error}");
    }
}

#[tokio::test]
async fn passwords_do_not_follow_redirects() {
    let rig = Rig::new();
    let sample = sample();
    let (stub, storage) = (Stub::serving(&sample).await, Stub::serving(&sample).await);
    let target = storage.address.clone();
    stub.rule(move |request| {
        let body = request.path.contains("/blobs/") && request.authorization.is_some();
        let location = format!("http://{target}{}", request.path);
        body.then(|| Answer::status(307, &[("Location", location)], ""))
    });
    with_password(&stub);
    rig.store.login(&stub.address, "me", "secret").await.unwrap();
    rig.pull(&stub.name("x")).await.unwrap();
    assert_eq!(storage.requests().len(), 3);
    assert!(storage.requests().iter().all(|request| request.authorization.is_none()));

    // Nor does a challenge of the other host make us show them.
    let rig = Rig::new();
    rig.store.login(&stub.address, "me", "secret").await.unwrap();
    with_password(&storage);
    let before = storage.requests().len();
    let error = rig.pull(&stub.name("x")).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
    assert!(storage.requests()[before..].iter().all(|request| request.authorization.is_none()));
}

#[tokio::test]
async fn redirects_end() {
    let rig = Rig::new();
    let stub = Stub::serving(&sample()).await;
    let location = format!("http://{}/v2/x/manifests/latest", stub.address);
    stub.answer("/v2/x/manifests/latest", Answer::status(302, &[("Location", location)], ""));
    let error = refused(&rig, &stub).await;
    assert!(error.to_string().contains("too many redirects"), "{error}");
}
