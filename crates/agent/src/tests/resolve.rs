//! Checks of a service whose images are to be named by digest.

use std::os::unix::fs::PermissionsExt;

use warren_image::{Error as ImageError, Reference};
use warren_model::service::ServiceSpec;
use warren_proto::v1;
use warren_proto::v1::frame::Kind;
use warren_proto::v1::open_stream::Kind as Open;

use super::manager::Session;
use super::{Bench, patiently, service_id, template};

/// What the agent finds of `image`, which is to be resolved.
async fn look(bench: &Bench, session: &Session, image: &str) -> v1::CheckResult {
    let task = warren_model::TaskTemplate { image: image.into(), ..template() };
    let spec = ServiceSpec::new("other".parse().unwrap(), task);
    let check = v1::Check {
        spec: Some((&spec).into()),
        service: service_id().as_bytes().to_vec(),
        resolve: vec![image.to_owned()],
    };
    session.open(1, Open::Check(check)).await;
    let mut tunnel = bench.manager.tunnel().await;
    loop {
        match patiently(tunnel.incoming.message()).await.unwrap().unwrap().kind {
            Some(Kind::Checked(found)) => return found,
            Some(Kind::Progress(_)) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn unreachable() -> ImageError {
    ImageError::Unreachable {
        what: "it".into(),
        registry: "registry.test".into(),
        detail: "gone".into(),
    }
}

#[tokio::test(start_paused = true)]
async fn images_are_named_by_what_their_registry_says() {
    let bench = Bench::new().await;
    let session = bench.session().await;
    let root = bench.dir.path().join("image");
    let program = root.join("bin/run");
    std::fs::create_dir_all(root.join("bin")).unwrap();
    std::fs::write(&program, "").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    bench.images.unpacked_in(&root);

    // As it is there, whether its tag is written or not; pulled once.
    let name: Reference = "r.test/app:latest".parse().unwrap();
    bench.images.publish(&name);
    let first = look(&bench, &session, "r.test/app").await;
    let pinned = first.pinned["r.test/app"].clone();
    assert!(pinned.starts_with("r.test/app:latest@sha256:"), "{pinned}");
    let again = look(&bench, &session, "r.test/app:latest").await;
    assert_eq!(again.pinned["r.test/app:latest"], pinned);
    assert_eq!(*bench.images.pulls().borrow(), 1);

    // The tag moves on: what is here does not count.
    bench.images.publish_anew(&name, "more");
    let moved = look(&bench, &session, "r.test/app").await;
    assert_ne!(moved.pinned["r.test/app"], pinned);
    assert_eq!(*bench.images.pulls().borrow(), 2);

    // A registry that is down, with the image here.
    bench.images.fail_pulls(Some(unreachable()));
    let down = look(&bench, &session, "r.test/app").await;
    assert!(down.pinned.is_empty() && down.local.is_empty());
    assert!(down.unresolved["r.test/app"].contains("cannot be reached"), "{down:?}");
    assert!(!down.image_id.is_empty());

    // Made here: nobody is asked for it where it has no registry, and it is left where it has one
    // that does not know it, or has another.
    bench.images.put(&"app:1".parse().unwrap());
    assert_eq!(look(&bench, &session, "app:1").await.local, ["app:1"]);
    let made: Reference = "r.test/made:1".parse().unwrap();
    bench.images.put(&made);
    assert_eq!(look(&bench, &session, "r.test/made:1").await.local, ["r.test/made:1"]);
    bench.images.fail_pulls(None);
    assert_eq!(look(&bench, &session, "r.test/made:1").await.local, ["r.test/made:1"]);
    bench.images.publish_anew(&made, "another");
    assert_eq!(look(&bench, &session, "r.test/made:1").await.local, ["r.test/made:1"]);
    // The very same has been pushed there.
    bench.images.publish(&made);
    assert!(look(&bench, &session, "r.test/made:1").await.pinned.contains_key("r.test/made:1"));
    // By digest it is what it is.
    let by_digest = look(&bench, &session, &pinned).await;
    assert!(by_digest.pinned.is_empty() && by_digest.local.is_empty());
}
