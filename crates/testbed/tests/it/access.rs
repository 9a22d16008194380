//! Who gets in, and who does not.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use warren_testbed::node::PORT;
use warren_testbed::{Cluster, Kind, Node, Options};

use crate::support::{SOON, form, of_role, web};

/// More than any request may have.
const OVERSIZED: usize = 80 << 20;
/// A refused join ends by itself.
const REFUSAL_MAX: Duration = Duration::from_secs(30);

/// A join in the foreground that must fail; what it said, which never is the token.
fn refused_join(node: &Node, token: &str, address: &str) -> Result<(i32, String)> {
    let mut command = node.command(&["node", "join", address]);
    command.env("WARREN_TOKEN", token);
    let process = node.host().spawn(
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::fs::File::create(node.host().folder().join("refusal"))?),
    )?;
    let ended = process.ended_within(REFUSAL_MAX);
    process.signal(rustix::process::Signal::KILL);
    anyhow::ensure!(ended, "a join to {address} with a bad token goes on");
    let status = process.status().context("it has ended")?;
    let said = std::fs::read_to_string(node.host().folder().join("refusal"))?;
    assert!(!said.trim().is_empty());
    assert!(token.len() < 20 || !said.contains(token), "{said}");
    Ok((status.code().unwrap_or(-1), said))
}

/// Bytes that say something about a secret, found in a file below the folder.
fn found_below(folder: &Path, secret: &[u8]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(found_below(&path, secret)?);
        } else if path.is_file() {
            let bytes = std::fs::read(&path)?;
            if bytes.windows(secret.len()).any(|window| window == secret) {
                found.push(path.display().to_string());
            }
        }
    }
    Ok(found)
}

#[test]
fn host_only_members_get_in() -> Result<()> {
    let cluster = form(1, 1)?;
    let (manager, worker) = (cluster.node("m1")?, cluster.node("w1")?);
    for node in [manager, worker] {
        for file in ["certificate", "node.key"] {
            let path = node.host().data_dir().join(file);
            let mode = std::fs::metadata(&path)?.permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{}", path.display());
        }
        assert!(found_below(&node.host().data_dir(), b"PRIVATE KEY")?.is_empty());
    }
    web(&cluster, "web", 1, None, &[])?;

    // Everybody may speak TLS to the port, and is told nothing.
    let hub = cluster.hub();
    let body = cluster.bed().folder().join("empty-message");
    std::fs::write(&body, [0; 5])?;
    let data = format!("@{}", body.display());
    let url = format!("https://{}/warren.v1.Control/ListServices", manager.endpoint());
    let headers = ["-H", "Content-Type: application/grpc", "-H", "TE: trailers"];
    let call = ["-sk", "--http2", "-m", "5", "-D", "-", "--data-binary", &data, &url];
    let said = hub.run("curl", &[&headers[..], &call[..]].concat())?;
    let status = said.out.lines().find_map(|line| line.strip_prefix("grpc-status: "));
    assert!(matches!(status, Some("7" | "16")), "{said:?}");
    // A message beyond all limits is not even read to its end.
    let length = u32::try_from(OVERSIZED - 5)?.to_be_bytes();
    std::fs::write(&body, [&[0][..], &length, &vec![0; OVERSIZED - 5]].concat())?;
    let said = hub.run("curl", &[&headers[..], &call[..]].concat())?;
    let status = said.out.lines().find_map(|line| line.strip_prefix("grpc-status: "));
    assert!(said.exit != 0 || matches!(status, Some("7" | "8" | "11" | "16")), "{said:?}");
    // A member does, and a manager's socket is asked by the command line.
    assert_eq!(manager.json(&["service", "ls"])?.len(), 1);

    // Those that do not speak it are let go, and nobody minds.
    let at = manager.host().socket(PORT);
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 4096], &[0x16, 3, 1, 0xff, 0xff]] {
        let mut stream = hub.connect(at)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let _ = stream.write_all(garbage);
        let mut answer = Vec::new();
        // Closed or reset, and nothing but an alert was said.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 64, "{answer:?}");
    }
    let half_open: Vec<_> = (0..50).map(|_| hub.connect(at)).collect::<Result<_>>()?;
    assert_eq!(manager.json(&["service", "ls"])?.len(), 1);
    drop(half_open);
    cluster.wait_ready(2, SOON)?;
    Ok(())
}

#[test]
fn host_joins_that_are_refused() -> Result<()> {
    let cluster = form(1, 0)?;
    let (manager, bed) = (cluster.node("m1")?, cluster.bed());
    let other = Cluster::form(1, 0, &Options { registry: false, ..Options::default() })?;
    let foreign = other.token("worker")?;
    drop(other);
    let spare = cluster.add(Kind::Worker)?;
    let endpoint = manager.endpoint();
    let token = cluster.token("worker")?;

    let truncated = &token[..token.len() - 3];
    assert_eq!(refused_join(&spare, truncated, &endpoint)?.0, 2);
    assert_eq!(refused_join(&spare, "hello", &endpoint)?.0, 2);
    // The pinned authority is another's: the peer is not who it should be.
    let (exit, said) = refused_join(&spare, &foreign, &endpoint)?;
    assert!(exit != 0 && exit != 2, "{exit} {said}");
    // Nobody there.
    let nobody = format!("{}:{PORT}", cluster.hub().address());
    let (exit, said) = refused_join(&spare, &token, &nobody)?;
    assert!(exit == 5 && said.contains(&nobody), "{exit} {said}");
    // Rotated away.
    let old = token;
    manager.ok(&["cluster", "token", "worker", "--rotate", "-q"])?;
    let token = cluster.token("worker")?;
    assert_ne!(old, token);
    let (exit, said) = refused_join(&spare, &old, &endpoint)?;
    assert!(exit != 0, "{exit} {said}");

    // None of it left anything that keeps the right one from working, over a bad line.
    let bad = warren_testbed::Link {
        delay: Duration::from_millis(50),
        loss: 0.05,
        ..warren_testbed::Link::default()
    };
    bed.shape("m1", spare.name(), bad)?;
    spare.join(&token, false, &[nobody, endpoint])?;
    let listed = cluster.wait_ready(2, SOON)?;
    assert!(of_role(&listed, "worker").contains(spare.name()));
    // The token is nowhere: not with the node, not with the manager, not in the lists of processes.
    for node in [manager, &spare] {
        let secret = token.rsplit('-').next().context("a secret")?;
        assert!(found_below(node.host().folder(), secret.as_bytes())?.is_empty());
        assert!(!node.host().run("ps", &["axww"])?.out.contains(secret));
    }
    Ok(())
}
