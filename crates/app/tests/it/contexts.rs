//! Calls from afar, by contexts.

use std::time::{Duration, Instant};

use crate::node::{Node, WARREN, until};

/// Somebody without a node, on the network of one.
pub(crate) struct Afar<'a>(pub(crate) &'a Node);

impl Afar<'_> {
    /// Exit code and standard error.
    pub(crate) fn call(&self, args: &[&str]) -> (i32, String) {
        let mut command = self.0.command(args);
        let folder = self.0.folder();
        command.env("XDG_CONFIG_HOME", folder.join("home"));
        command.env("WARREN_RUN_DIR", folder.join("none"));
        let output = command.output().unwrap();
        (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

#[test]
fn host_contexts_outlive_a_rotation() {
    let one = Node::start();
    let afar = Afar(&one);
    let file = |name: &str| one.folder().join(name).display().to_string();
    let (anna, boss) = (file("anna.json"), file("boss.json"));
    one.ok(&["operator", "create", "anna", "--context-file", &anna]);
    let create = ["operator", "create", "boss", "--role", "admin", "--certificate"];
    one.ok(&[&create[..], &["--context-file", &boss]].concat());
    for (name, from) in [("anna", &anna), ("late", &anna), ("boss", &boss)] {
        assert_eq!(afar.call(&["context", "create", name, "--from", from]).0, 0);
    }
    let ls = |name: &str| afar.call(&["--context", name, "node", "ls"]);
    assert_eq!(afar.call(&["--context", "boss", "cluster", "ca", "rotate"]).0, 0);
    let setting = |what: &str| one.ok(&["cluster", "settings", "--format", what]).trim().to_owned();
    until("the rotation is over", || (setting("{{.NodesByOlderAuthority}}") == "0").then_some(()));
    // A token's context learns of it; a certificate by the old authority is refused at once.
    assert_eq!(ls("anna"), (0, String::new()));
    let (began, (exit, err)) = (Instant::now(), ls("boss"));
    assert!(exit == 1 && err.contains("does not accept the certificate of context boss"), "{err}");
    assert!(err.contains("warren context update boss --from"), "{err}");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // Managers forget to show the old authority when they renew again.
    let until_when = || {
        let about = one.ok(&["node", "inspect", "self", "--format", "{{.CertificateNotAfter}}"]);
        about.trim().to_owned()
    };
    let before = until_when();
    one.ok(&["cluster", "update", "--certificate-lifetime", "1h"]);
    until("it is renewed", || (until_when() != before).then_some(()));
    assert_eq!(ls("anna"), (0, String::new()));
    let (exit, err) = until("the new one is shown", || {
        let said = ls("late");
        (said.0 != 0).then_some(said)
    });
    assert!(exit == 1 && err.contains("context late") && !err.contains("join token"), "{err}");
    let fingerprint = setting("{{.Authority}}");
    assert_eq!(afar.call(&["context", "update", "late", "--fingerprint", &fingerprint]).0, 0);
    assert_eq!(ls("late"), (0, String::new()));
}

#[test]
fn host_names_in_the_hosts_file_need_no_dns() {
    let one = Node::start();
    let afar = Afar(&one);
    let file = |name: &str| one.folder().join(name).display().to_string();
    let (anna, hosts, resolv) = (file("anna.json"), file("hosts"), file("resolv.conf"));
    one.ok(&["operator", "create", "anna", "--context-file", &anna]);
    assert_eq!(afar.call(&["context", "create", "anna", "--from", &anna]).0, 0);
    assert_eq!(afar.call(&["context", "update", "anna", "--address", "m1.test"]).0, 0);
    // Addresses of one family alone, and a server that takes questions and never answers.
    std::fs::write(&hosts, "127.0.0.1 m1.test\n").unwrap();
    std::fs::write(&resolv, "nameserver 127.0.0.99\n").unwrap();
    let _silent = one.within(|| std::net::UdpSocket::bind("127.0.0.99:53").unwrap());
    let script = format!(
        "mount --bind {hosts} /etc/hosts && mount --bind {resolv} /etc/resolv.conf && \
         exec {WARREN} --context anna node ls"
    );
    let mut command = one.program(&["unshare", "--mount", "sh", "-c", &script]);
    command.env("XDG_CONFIG_HOME", one.folder().join("home"));
    let began = Instant::now();
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
