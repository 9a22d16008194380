//! What a node keeps about its containers is for root alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use warren_runtime::Runtime;

use crate::host::Host;

#[tokio::test]
async fn host_private_folders() {
    let host = Host::new();
    host.waiting("web.1").await;
    let folders =
        ["run", "data", "run/c", "run/c/web.1", "data/containers", "data/containers/web.1"];
    let modes = folders.map(|folder| {
        let mode = fs::metadata(host.base.path().join(folder)).unwrap().permissions().mode();
        format!("{folder} {:o}", mode & 0o777)
    });
    host.native().remove("web.1").await.unwrap();
    assert_eq!(modes, folders.map(|folder| format!("{folder} 700")));
}

#[tokio::test]
async fn host_private_environment() {
    let host = Host::new();
    let mut spec = host.shell("web.1", "echo up; while :; do sleep 1000; done");
    spec.env = vec!["PASSWORD=hidden".to_owned()];
    host.native().start(spec).await.unwrap();
    host.printed("up").await;
    let shim = host.shim_pid("web.1").await;
    let environment = fs::read_to_string(format!("/proc/{shim}/environ")).unwrap();
    let arguments = fs::read_to_string(format!("/proc/{shim}/cmdline")).unwrap();
    host.native().remove("web.1").await.unwrap();
    assert_eq!((environment.as_str(), arguments.as_str()), ("", "warren-shim\0web.1\0"));
}
