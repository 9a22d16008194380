//! Clusters come into being, and do what clusters are for.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use warren_testbed::node::PORT;
use warren_testbed::{Cluster, Options};

use crate::support::{
    SOON, all_answer, form, holds, nodes_of, of_role, refused, service_names, wait_voters, web,
};

/// From nothing to all nodes being ready; measured far below on an idle machine.
const FORMED_MAX: Duration = Duration::from_secs(20);

#[test]
fn host_one_manager_and_one_worker() -> Result<()> {
    let cluster = form(1, 1)?;
    let listed = cluster.listed()?;
    assert_eq!(of_role(&listed, "manager"), BTreeSet::from(["m1".to_owned()]));
    assert_eq!(of_role(&listed, "worker"), BTreeSet::from(["w1".to_owned()]));
    assert_eq!(cluster.leader()?.name(), "m1");

    let tasks = web(&cluster, "web", 1, Some(8080), &[])?;
    assert_eq!(nodes_of(&tasks), BTreeSet::from(["w1".to_owned()]));
    let service = cluster.services()?.remove(0);
    assert_eq!((&service["running"], &service["desired"]), (&1.into(), &1.into()));
    assert_eq!(service["image"], cluster.image());
    all_answer(&cluster, &tasks, 8080)?;

    cluster.asked()?.ok(&["service", "scale", "web=2", "--detach"])?;
    let tasks = cluster.wait_running("web", 2, SOON)?;
    all_answer(&cluster, &tasks, 8080)?;

    cluster.asked()?.ok(&["service", "rm", "web"])?;
    cluster.until("the service is gone", SOON, || {
        Ok((cluster.asked()?.warren(&["service", "inspect", "web"])?.exit == 3).then_some(()))
    })?;
    let at = cluster.node("w1")?.host().socket(8080);
    cluster.until("nobody answers", SOON, || Ok(cluster.hub().get(at, "/").is_err().then_some(())))
}

#[test]
fn host_three_managers_and_two_workers() -> Result<()> {
    let cluster = form(3, 2)?;
    assert!(cluster.formed_in() < FORMED_MAX, "{:?}", cluster.formed_in());
    let listed = cluster.listed()?;
    assert_eq!((of_role(&listed, "manager").len(), of_role(&listed, "worker").len()), (3, 2));
    wait_voters(&cluster, 3)?;
    for manager in cluster.managers() {
        drop(cluster.hub().connect(manager.host().socket(PORT))?);
    }

    let tasks = web(&cluster, "web", 2, Some(8080), &[])?;
    assert_eq!(nodes_of(&tasks).len(), 2, "spread: {tasks:?}");
    all_answer(&cluster, &tasks, 8080)?;
    // So do nodes that only manage.
    for manager in cluster.managers() {
        let at = manager.host().socket(8080);
        cluster.until(&format!("{} answers at 8080", manager.name()), SOON, || {
            Ok((cluster.hub().get(at, "/")?.status == 200).then_some(()))
        })?;
    }
    // Any manager takes writes and tells what was written, to whoever wrote it.
    for (number, manager) in cluster.managers().enumerate() {
        let name = format!("by-{number}");
        let image = cluster.image();
        let args = ["service", "create", &name, "--image", &image, "--replicas", "0", "--detach"];
        manager.ok(&args)?;
        let listed = manager.json(&["service", "ls"])?;
        assert!(listed.iter().any(|service| service["name"] == name), "{name}: {listed:?}");
    }
    for manager in cluster.managers() {
        cluster.until(&format!("{} lists all", manager.name()), SOON, || {
            Ok((manager.json(&["service", "ls"])?.len() == 4).then_some(()))
        })?;
    }
    Ok(())
}

#[test]
fn host_managers_alone() -> Result<()> {
    let cluster = form(3, 0)?;
    let listed = cluster.listed()?;
    assert_eq!((of_role(&listed, "manager").len(), listed.len()), (3, 3));
    cluster.create("web", &["--replicas", "2"], &["sleep", "1000"])?;
    holds("nothing runs", Duration::from_secs(3), || {
        Ok(cluster.tasks("web")?.iter().all(|task| task["state"] == "pending"))
    })?;
    let said = cluster.asked()?.warren(&["wait", "service", "web", "--timeout", "1s"])?;
    assert_eq!(said.exit, 1, "{said:?}");
    assert_eq!(service_names(&cluster)?, BTreeSet::from(["web".to_owned()]));
    Ok(())
}

/// A manager that runs containers too: what a person gets who asks for nothing.
#[test]
fn host_hybrid_node_and_its_socket() -> Result<()> {
    use std::os::unix::fs::{FileTypeExt, PermissionsExt};

    let bare = Cluster::bare(1, 0, &Options { registry: false, ..Options::default() })?;
    let node = bare.node("m1")?;
    let said = refused(node, &["service", "ls"], 5)?;
    assert!(said.contains("hint"), "{said}");
    refused(node, &["service", "create", "web", "--image", "bb:1"], 5)?;
    refused(node, &["node", "run"], 3)?;
    drop(bare);

    let cluster = Cluster::form(1, 0, &Options { hybrid: true, ..Options::default() })?;
    let listed = cluster.listed()?;
    assert_eq!(of_role(&listed, "hybrid"), BTreeSet::from(["m1".to_owned()]));
    let socket = std::fs::metadata(cluster.node("m1")?.socket())?;
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.permissions().mode() & 0o777, 0o660);
    let tasks = web(&cluster, "web", 1, Some(8080), &[])?;
    all_answer(&cluster, &tasks, 8080)
}
