//! Settings, tokens, the authority, the lock, operators, backups.

use std::io::Read;
use std::sync::Arc;

use tonic::{Code, Request};
use warren_base::clock::ManualClock;
use warren_model::Secret;
use warren_proto::v1;
use warren_state::change::Mutation;
use warren_trust::backup::{BackupKey, BackupUnlock, decrypt};
use warren_trust::{Authority, NodeKey, UnlockKey};
use zeroize::Zeroizing;

use crate::house::{House, key_hash, node_id, remote, soon};

#[tokio::test]
async fn settings_are_shown_and_changed() {
    let house = House::open("a").await;
    let mut control = house.control.clone();
    let request = v1::UpdateClusterRequest {
        history_limit: Some(2),
        certificate_lifetime_ms: Some(120_000),
        request_id: vec![1; 16],
        ..Default::default()
    };
    let first = soon(control.update_cluster(request.clone())).await.unwrap().into_inner();
    let again = soon(control.update_cluster(request)).await.unwrap().into_inner();
    assert_eq!(first.revision, again.revision);
    let state = soon(control.get_cluster(v1::GetClusterRequest {})).await.unwrap().into_inner();
    assert_eq!((state.history_limit, state.certificate_lifetime_ms), (2, 120_000));
    assert!(!state.locked && state.backup.is_none() && state.authority.len() == 32);
    let refused = soon(control.update_cluster(v1::UpdateClusterRequest::default())).await;
    assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn tokens_stay_until_they_are_rotated() {
    let house = House::open("a").await;
    let mut control = house.control.clone();
    let mut ask = async |rotate, expires_in_ms| {
        let request = v1::GetJoinTokenRequest { rotate, expires_in_ms, ..Default::default() };
        soon(control.get_join_token(request)).await.unwrap().into_inner()
    };
    let first = ask(false, None).await;
    assert_eq!(ask(false, None).await, first);
    let ending = ask(false, Some(1000)).await;
    assert_eq!(ending.token, first.token);
    assert!(ending.expires.is_some());
    assert_eq!(ask(false, None).await, ending);
    let rotated = ask(true, None).await;
    assert_ne!(rotated.token, first.token);
    assert_eq!((rotated.expires, rotated.managers), (None, vec!["10.0.0.97:2377".to_owned()]));
}

#[tokio::test]
async fn a_rotation_of_the_authority_ends_by_itself() {
    let house = House::open("ab").await;
    let mut control = house.control.clone();
    let rotate = v1::RotateAuthorityRequest { request_id: vec![1; 16] };
    let first = soon(control.rotate_authority(rotate.clone())).await.unwrap().into_inner();
    let again = soon(control.rotate_authority(rotate)).await.unwrap().into_inner();
    assert_eq!(first.revision, again.revision);
    let state = soon(control.get_cluster(v1::GetClusterRequest {})).await.unwrap().into_inner();
    assert_eq!(state.nodes_by_older_authority, 2);
    let refused = soon(control.rotate_authority(v1::RotateAuthorityRequest::default())).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("2 nodes have certificates"), "{}", refused.message());
    let kept = house.store.view().cluster().unwrap().ca.clone().unwrap();
    assert_eq!(kept.certificates.len(), 3);
    let issuer_hash = Authority::from_state(&kept).unwrap().issuer_hash();
    for letter in ['a', 'b'] {
        let (id, key_hash) = (node_id(letter), key_hash(letter));
        let not_after = crate::house::FAR;
        house.write(vec![Mutation::SetCertificate { id, key_hash, not_after, issuer_hash }]).await;
    }
    let certificates = |view: &warren_state::State| {
        view.cluster().unwrap().ca.as_ref().unwrap().certificates.clone()
    };
    let view = soon(house.until(|view| certificates(view).len() == 1)).await;
    assert_eq!(certificates(&view), kept.certificates[..1]);
}

#[tokio::test]
async fn the_lock() {
    let house = House::open("a").await;
    let mut control = house.control.clone();
    let mut set = async |off, rotate| {
        let request = v1::SetLockRequest { off, rotate, request_id: Vec::new() };
        soon(control.set_lock(request)).await.map(|answer| answer.into_inner().key)
    };
    let key = set(false, false).await.unwrap();
    assert_eq!(set(false, false).await.unwrap(), key);
    let kept = |house: &House| house.store.view().cluster().unwrap().unlock_key.clone();
    let text = |kept: &Secret| UnlockKey::from_state(kept).unwrap().to_string();
    assert_eq!(text(&kept(&house).unwrap()), key);
    let rotated = set(false, true).await.unwrap();
    assert_ne!(rotated, key);
    assert_eq!(set(true, false).await.unwrap(), "");
    assert!(kept(&house).is_none());
    assert_eq!(set(true, true).await.unwrap_err().code(), Code::InvalidArgument);
    let unlock = v1::UnlockRequest { key: rotated };
    let refused = soon(house.control.clone().unlock(unlock)).await.unwrap_err();
    assert_eq!(refused.message(), "this node is not locked");
}

#[tokio::test]
async fn operators_come_and_go() {
    let house = House::open("a").await;
    let mut control = house.control.clone();
    let request = v1::CreateOperatorRequest {
        name: "anna".into(),
        role: v1::OperatorRole::Read.into(),
        request_id: vec![1; 16],
        ..Default::default()
    };
    let made = soon(control.create_operator(request.clone())).await.unwrap().into_inner();
    let mut as_anna = house.control_as(remote(None)).await;
    let mut list = Request::new(v1::ListNodesRequest::default());
    let bearer = format!("Bearer {}", made.token).parse().unwrap();
    list.metadata_mut().insert("authorization", bearer);
    soon(as_anna.list_nodes(list)).await.unwrap();
    // A retry cannot tell the token again.
    let refused = soon(control.create_operator(request.clone())).await.unwrap_err();
    assert!(refused.message().contains("its token was lost"), "{}", refused.message());
    let other = v1::CreateOperatorRequest { request_id: Vec::new(), ..request };
    let refused = soon(control.create_operator(other)).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists);
    let certified = v1::CreateOperatorRequest {
        name: "ci.shop".into(),
        role: v1::OperatorRole::Deploy.into(),
        signing_request: NodeKey::generate().unwrap().signing_request("x").unwrap(),
        ..Default::default()
    };
    let certified = soon(control.create_operator(certified)).await.unwrap().into_inner();
    assert!(certified.token.is_empty() && certified.certificates.len() == 2);
    let listed = soon(control.list_operators(v1::ListOperatorsRequest {})).await.unwrap();
    let listed = listed.into_inner().operators;
    let names: Vec<&str> = listed.iter().map(|operator| operator.name.as_str()).collect();
    assert_eq!(names, ["anna", "ci.shop"]);
    assert!(listed.iter().all(|o| o.token_hash.is_empty() && o.key_hash.is_empty()));
    let remove = v1::RemoveOperatorRequest { name: "anna".into(), request_id: Vec::new() };
    soon(control.remove_operator(remove.clone())).await.unwrap();
    let refused = soon(control.remove_operator(remove)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let audit = v1::ListAuditRequest { after: 0, limit: 2 };
    let audit = soon(control.list_audit(audit)).await.unwrap().into_inner().records;
    let actions: Vec<&str> = audit.iter().map(|record| record.action.as_str()).collect();
    assert_eq!(actions, ["operator.create", "operator.remove"]);
    assert!(audit.iter().all(|record| !record.detail.contains("wrno1")));
}

/// What a backup holds.
fn plain(bytes: &[u8], unlock: &BackupUnlock) -> Vec<u8> {
    let mut plain = Vec::new();
    decrypt(bytes, unlock).unwrap().read_to_end(&mut plain).unwrap();
    plain
}

fn export(house: &House) -> Vec<u8> {
    let mut bytes = Vec::new();
    house.store.export().read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn backups_for_people() {
    let house = House::open("a").await;
    let mut control = house.control.clone();
    let request = v1::BackupRequest { passphrase: "a b c".into(), ..Default::default() };
    let mut chunks = soon(control.backup(request)).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(chunk) = soon(chunks.message()).await.unwrap() {
        bytes.extend(chunk.data);
    }
    let unlock = BackupUnlock::Passphrase(Zeroizing::new("a b c".into()));
    assert_eq!(plain(&bytes, &unlock), export(&house));
    for (recipient, passphrase) in [("", ""), ("x", "y")] {
        let (recipient, passphrase) = (recipient.to_owned(), passphrase.to_owned());
        let request = v1::BackupRequest { recipient, passphrase };
        let refused = soon(control.backup(request)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn backups_by_the_leader() {
    let clock = ManualClock::at(1_767_225_600_000);
    let house = House::with_clock("a", Arc::new(clock.clone())).await;
    let folder = tempfile::tempdir().unwrap();
    let key = BackupKey::generate().unwrap();
    let names = || {
        let entries = std::fs::read_dir(folder.path()).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let request = v1::UpdateClusterRequest {
        backup: Some(v1::BackupPolicy {
            folder: folder.path().to_str().unwrap().into(),
            interval_ms: 60_000,
            keep: 2,
            recipient: key.recipient().unwrap().to_string(),
        }),
        ..Default::default()
    };
    soon(house.control.clone().update_cluster(request)).await.unwrap();
    // At once, then every minute, and the oldest go.
    let third = format!("warren-{}-20260101T000300Z.backup", crate::house::CLUSTER);
    let passing = async {
        // Written when it was due or, by this fast clock, some seconds later.
        let due = |name: &String| name.ends_with(".backup") && *name >= third;
        while !names().iter().any(due) {
            clock.advance(1000);
            tokio::time::timeout(std::time::Duration::from_millis(5), std::future::pending::<()>())
                .await
                .unwrap_err();
        }
    };
    soon(passing).await;
    let settled = async {
        while names().len() != 2 || names().iter().any(|name| name.ends_with(".tmp")) {
            tokio::task::yield_now().await;
        }
    };
    soon(settled).await;
    let newest = std::fs::read(folder.path().join(names().last().unwrap())).unwrap();
    assert!(!plain(&newest, &BackupUnlock::Key(key)).is_empty());
    let off = v1::UpdateClusterRequest { backup_off: true, ..Default::default() };
    soon(house.control.clone().update_cluster(off)).await.unwrap();
    assert!(house.store.view().cluster().unwrap().backup.is_none());
}

#[tokio::test]
async fn log_levels() {
    let house = House::open("a").await;
    let mut control = house.control.clone();
    let set = |filter: &str| v1::SetLogLevelRequest { filter: filter.into() };
    let before = soon(control.set_log_level(set("debug"))).await.unwrap().into_inner();
    assert_eq!(before.before, "info");
    let refused = soon(control.set_log_level(set("bad"))).await.unwrap_err();
    assert_eq!(refused.message(), "log level \"bad\" is not understood");
}
