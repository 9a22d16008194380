//! Commands about the cluster and its nodes.

use expect_test::{Expect, expect};

use super::fake::{FakeNode, World};
use super::say;

async fn check(line: &str, expected: Expect) {
    let node = FakeNode::start(World::default());
    let line = line.replace("DIR", &node.folder().display().to_string());
    let mut said = say(&node, &line).await.all();
    for asked in node.world(|world| std::mem::take(&mut world.asked)) {
        said.push_str(&format!("asked {asked}\n"));
    }
    expected.assert_eq(&said.replace(&*node.folder().to_string_lossy(), "DIR"));
}

#[tokio::test]
async fn tokens() {
    check("cluster token -q", expect![[r#"
        exit 0
        --- out
        wrn1-w-x-y
        asked GetJoinTokenRequest { manager: false, rotate: false, expires_in_ms: None, request_id: [] }
    "#]]).await;
    check("cluster token manager --rotate --expires 1h", expect![[r#"
        exit 0
        --- out
        warren node join --token wrn1-m-x-y 10.0.0.1:2377,10.0.0.3:2377
        --- err
        a machine becomes a manager of this cluster by
        the token is good until 2027-01-15T09:00:00.000Z
        asked GetJoinTokenRequest { manager: true, rotate: true, expires_in_ms: Some(3600000), request_id: [] }
    "#]]).await;
    check("cluster token worker --format '{{.Role}} {{.Managers}}'", expect![[r#"
        exit 0
        --- out
        worker 10.0.0.1:2377, 10.0.0.3:2377
        asked GetJoinTokenRequest { manager: false, rotate: false, expires_in_ms: None, request_id: [] }
    "#]]).await;
    check(
        "cluster token worker --expires 1h",
        expect![[r#"
        exit 2
        --- err
        error: --rotate is missing
        hint: usage: warren cluster token --rotate --expires <DURATION> <ROLE>
    "#]],
    )
    .await;
    check(
        "cluster token boss",
        expect![[r#"
        exit 2
        --- err
        error: [ROLE]: "boss" is not one of worker, manager
    "#]],
    )
    .await;
}

#[tokio::test]
async fn settings_and_locks() {
    check(
        "cluster settings",
        expect![[r#"
            exit 0
            --- out
            allowed: none
            authority: abababababababababababababababababababababababababababababababab
            backup: 
            block prefix: 24
            certificate lifetime: 90d
            defaults: 
            epoch: 0
            history limit: 5
            id: 040g2081040g2081
            locked: false
            nodes by older authority: 0
            overlay: vxlan
            pool: 10.128.0.0/10
            prefix v6: fd01:101:101::/48
            rebalance: auto
            revision: 7
            strategy: spread
            vip pool: 10.192.0.0/14
            asked GetClusterRequest
        "#]],
    )
    .await;
    check("cluster update --history-limit 3 --certificate-lifetime 2m", expect![[r#"
        exit 0
        asked UpdateClusterRequest { history_limit: Some(3), certificate_lifetime_ms: Some(120000), backup: None, backup_off: false, request_id: [], strategy: Unspecified, rebalance: Unspecified, defaults: None, allowed: None }
    "#]]).await;
    check(
        "cluster update",
        expect![[r#"
            exit 2
            --- err
            error: cluster update: nothing is to be changed
            hint: give --history-limit, --strategy, --rebalance, --default-reserve-memory (and the like), --allow, --certificate-lifetime or --backup-folder
        "#]],
    )
    .await;
    check(
        "cluster update --backup-folder /b",
        expect![[r#"
        exit 2
        --- err
        error: --backup-folder: backups need a --backup-recipient
        hint: `warren cluster backup-key FILE` makes a key pair
    "#]],
    )
    .await;
    check("cluster update --backup-folder off", expect![[r#"
        exit 0
        asked UpdateClusterRequest { history_limit: None, certificate_lifetime_ms: None, backup: None, backup_off: true, request_id: [], strategy: Unspecified, rebalance: Unspecified, defaults: None, allowed: None }
    "#]]).await;
    check(
        "cluster lock",
        expect![[r#"
        exit 0
        --- out
        WRNKEY-AAAA
        --- err
        managers are locked after a restart from now on; keep this key, it opens them:
        asked SetLockRequest { off: false, rotate: false, request_id: [] }
    "#]],
    )
    .await;
    check(
        "cluster lock --off",
        expect![[r#"
        exit 0
        asked SetLockRequest { off: true, rotate: false, request_id: [] }
    "#]],
    )
    .await;
    check(
        "cluster ca rotate",
        expect![[r#"
        exit 0
        --- err
        nodes change to the new authority now; `warren cluster settings` shows
        how many have not yet. Join tokens are others from now on
        asked RotateAuthorityRequest { request_id: [] }
    "#]],
    )
    .await;
    check(
        "cluster key rotate",
        expect![[r#"
        exit 0
        asked RotateDataKeyRequest
    "#]],
    )
    .await;
}

#[tokio::test]
async fn backups() {
    check(
        "cluster backup - --recipient wrnb1-x",
        expect![[r#"
        exit 0
        --- out
        sealed bytes--- err
        12B backed up
        asked BackupRequest { .. }
    "#]],
    )
    .await;
    check(
        "cluster backup - --passphrase-file DIR/none",
        expect![[r#"
        exit 2
        --- err
        error: --passphrase-file: DIR/none: No such file or directory
    "#]],
    )
    .await;
    let node = FakeNode::start(World::default());
    let file = node.folder().join("b");
    let said = say(&node, &format!("cluster backup {} --recipient x", file.display())).await;
    assert_eq!((said.exit, said.out.as_str()), (0, ""));
    assert_eq!(std::fs::read(&file).unwrap(), b"sealed bytes");
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let key = node.folder().join("key");
    let made = say(&node, &format!("cluster backup-key {}", key.display())).await;
    assert!(made.exit == 0 && made.out.starts_with("wrnb1-"), "{}", made.all());
    assert!(std::fs::read_to_string(&key).unwrap().starts_with("WRNBACKUP-"));
    let again = say(&node, &format!("cluster backup-key {}", key.display())).await;
    assert_eq!(again.exit, 4, "{}", again.all());
}

#[tokio::test]
async fn nodes() {
    check(
        "node inspect beta --format '{{.Role}} {{.Labels.rack}}'",
        expect![[r#"
        exit 0
        --- out
        worker 7
    "#]],
    )
    .await;
    check(
        "node inspect self --format '{{.Hostname}}'",
        expect![[r#"
        exit 0
        --- out
        alpha
    "#]],
    )
    .await;
    check(
        "node inspect gamma",
        expect![[r#"
        exit 3
        --- err
        error: there is no node gamma
        hint: `warren node ls` shows all
    "#]],
    )
    .await;
    check("node update beta --availability pause --label-add a=b --label-rm c --forgotten drop", expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        asked UpdateNodeRequest { node: "beta", manager: None, worker: None, availability: Pause, labels_add: {"a": "b"}, labels_remove: ["c"], request_id: [], forgotten: Drop, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: None, defaults: None }
    "#]]).await;
    check(
        "node update beta",
        expect![[r#"
            exit 2
            --- err
            error: node update: nothing is to be changed
            hint: give --availability, --label-add, --label-rm, --worker, --resource, --system-reserve, --default-reserve-memory (and the like) or --forgotten
        "#]],
    )
    .await;
    check(
        "node update beta --availability gone",
        expect![[r#"
        exit 2
        --- err
        error: --availability: "gone" is not one of active, pause, drain
    "#]],
    )
    .await;
    check("node promote beta", expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        asked UpdateNodeRequest { node: "beta", manager: Some(true), worker: None, availability: Unspecified, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: None, defaults: None }
    "#]]).await;
    check("node demote alpha", expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        asked UpdateNodeRequest { node: "alpha", manager: Some(false), worker: None, availability: Unspecified, labels_add: {}, labels_remove: [], request_id: [], forgotten: Unspecified, generic: [], system_reserved: None, taints_add: [], taints_remove: [], drain_deadline_ms: None, defaults: None }
    "#]]).await;
    check(
        "node rm --force beta",
        expect![[r#"
        exit 0
        --- out
        081040g2081040g2
        asked RemoveNodeRequest { node: "beta", force: true, request_id: [] }
    "#]],
    )
    .await;
    check(
        "node leave",
        expect![[r#"
        exit 0
        --- err
        2 tasks to move
        left
        asked LeaveClusterRequest { force: false }
    "#]],
    )
    .await;
    check(
        "node log-level info,warren_store=debug",
        expect![[r#"
        exit 0
        --- err
        log level was info
        asked SetLogLevelRequest { filter: "info,warren_store=debug" }
    "#]],
    )
    .await;
}

#[tokio::test]
async fn operators_and_audit() {
    check("operator create anna --role deploy --expires 30d", expect![[r#"
        exit 0
        --- out
        wrno1-aaaa
        --- err
        operator anna calls with this token:
        asked CreateOperatorRequest { name: "anna", role: Deploy, expires_in_ms: Some(2592000000), signing_request: [], request_id: [] }
    "#]]).await;
    check(
        "operator create anna --role boss",
        expect![[r#"
        exit 2
        --- err
        error: --role: "boss" is not a role; allowed are admin, deploy and read
    "#]],
    )
    .await;
    check(
        "operator create anna --certificate",
        expect![[r#"
        exit 2
        --- err
        error: --context-file is missing
        hint: usage: warren operator create --context-file <FILE> --certificate <NAME>
    "#]],
    )
    .await;
    check(
        "operator ls --format json",
        expect![[r#"
        exit 0
        --- out
        [
          {
            "created_at": "2027-01-15T08:00:00.000Z",
            "expires_at": "2027-01-15T08:00:00.000Z",
            "name": "anna",
            "role": "deploy"
          }
        ]
        asked ListOperatorsRequest
    "#]],
    )
    .await;
    check(
        "operator rm anna",
        expect![[r#"
        exit 0
        --- out
        anna
        asked RemoveOperatorRequest { name: "anna", request_id: [] }
    "#]],
    )
    .await;
    check(
        "audit",
        expect![[r#"
        exit 0
        --- out
        REVISION   TIME                       WHO             ACTION           OBJECT   DETAIL
        7          2027-01-15T08:00:00.000Z   operator:anna   service.create   web      replicas=3
        asked ListAuditRequest { after: 0, limit: 100 }
    "#]],
    )
    .await;
}

#[tokio::test]
async fn waiting_for_nodes() {
    let node = FakeNode::start(World::default());
    let said = say(&node, "node update alpha --availability drain --wait").await;
    assert_eq!(said.all(), "exit 0\n--- out\n081040g2081040g2\n", "nothing runs there");
    // The answer is about alpha, whatever is asked for.
    let said = say(&node, "node promote alpha --wait").await;
    assert_eq!(said.all(), "exit 0\n--- out\n081040g2081040g2\n");
    let said = say(&node, "node demote alpha --wait --timeout 300ms").await;
    assert!(
        said.exit == 1 && said.err.contains("not within 300ms: alpha: is to be a manager again"),
        "{}",
        said.all()
    );
    let said = say(&node, "node promote beta --timeout 1s").await;
    assert!(said.exit == 2 && said.err.contains("--wait is missing"), "{}", said.all());
}

#[tokio::test]
async fn log_levels() {
    check(
        "node log-level loud",
        expect![[r#"
        exit 2
        --- err
        error: FILTER: "loud" is not a log level
        hint: write one of off, error, warn, info, debug, or by module: info,warren_store=debug
    "#]],
    )
    .await;
}

#[tokio::test]
async fn keys_are_rotated_once() {
    let refusal = Some((tonic::Code::Unavailable, "some managers keep their data keys", "repeat"));
    let node = FakeNode::start(World { refusal, ..World::default() });
    let said = say(&node, "cluster key rotate").await;
    assert_eq!(said.exit, 5, "{}", said.all());
    assert_eq!(node.world(|world| world.asked.len()), 1);
}

#[tokio::test]
async fn contexts() {
    check(
        "context ls --format json",
        expect![[r#"
        exit 0
        --- out
        []
    "#]],
    )
    .await;
    check(
        "context use none",
        expect![[r#"
        exit 3
        --- err
        error: there is no context none
        hint: `warren context ls` shows all
    "#]],
    )
    .await;
    check(
        "context create x",
        expect![[r#"
        exit 2
        --- err
        error: context create: --from, or --address and --fingerprint
        hint: `warren operator create NAME --context-file FILE` makes a file for --from
    "#]],
    )
    .await;
    check(
        "--context none node ls",
        expect![[r#"
        exit 3
        --- err
        error: there is no context none
        hint: `warren context ls` shows all
    "#]],
    )
    .await;
}

#[tokio::test]
async fn joining() {
    // What the parser lets through is a role; these never get so far.
    check(
        "node join",
        expect![[r#"
        exit 2
        --- err
        error: HOST[:PORT] is missing
        hint: usage: warren node join <HOST[:PORT]>...
    "#]],
    )
    .await;
}

#[tokio::test]
async fn what_may_be_old_is_marked() {
    let node = FakeNode::start(World { stale_ms: 2500, ..World::default() });
    for line in ["node ls -q", "cluster info"] {
        let said = say(&node, line).await;
        assert_eq!(said.exit, 0);
        assert!(said.err.contains("no leader for 3 s"), "{}", said.err);
        assert!(!said.out.contains("leader for"), "{}", said.out);
    }
}

#[tokio::test]
async fn a_manager_without_majority_is_not_asked_again() {
    let refusal = Some((tonic::Code::Unavailable, "no majority answers", "wait"));
    let node = FakeNode::start(World { refusal, slow_ms: 2100, ..World::default() });
    let began = std::time::Instant::now();
    let said = say(&node, "node update beta --availability drain").await;
    assert_eq!(said.exit, 5, "{}", said.all());
    assert!(began.elapsed().as_secs() < 5);
    assert_eq!(node.world(|world| world.asked.len()), 1);
}
