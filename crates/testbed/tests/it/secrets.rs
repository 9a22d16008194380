//! Secrets stay where they belong. Searched for on disks, in logs, in lists of
//! processes and on the wire; each search is proven by a word that was put
//! there to be found.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use warren_testbed::node::PORT;
use warren_testbed::{Cluster, Kind, Node, Options};

use crate::support::{SOON, wait_voters};

/// What is put everywhere, to be found.
const CANARY: &str = "canary-of-3f1d2c86";
/// The value of a variable of a service.
const PASSWORD: &str = "hunter2-8ce1b7a90d";
/// How every private key on P-256 begins, as PKCS #8 and as SEC 1 write it in bytes.
const PKCS8: &[u8] = b"\x02\x01\x00\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07";
const SEC1: &[u8] = b"\x30\x77\x02\x01\x01\x04\x20";

/// Words to look for, each under the name that a finding shows.
struct Wanted(Vec<(String, Vec<u8>)>);

impl Wanted {
    fn add(&mut self, name: &str, word: &[u8]) {
        assert!(word.len() >= 7, "{name} would be found by chance");
        self.0.push((name.to_owned(), word.to_vec()));
    }

    fn within(&self, bytes: &[u8]) -> BTreeSet<String> {
        let mut by_first: BTreeMap<u8, Vec<&(String, Vec<u8>)>> = BTreeMap::new();
        for wanted in &self.0 {
            by_first.entry(wanted.1[0]).or_default().push(wanted);
        }
        let mut begins = [false; 256];
        by_first.keys().for_each(|first| begins[usize::from(*first)] = true);
        let mut found = BTreeSet::new();
        for (at, byte) in bytes.iter().enumerate().filter(|(_, byte)| begins[usize::from(**byte)]) {
            let candidates = by_first.get(byte).into_iter().flatten();
            let here = candidates.filter(|(_, word)| bytes[at..].starts_with(word));
            found.extend(here.map(|(name, _)| name.clone()));
        }
        found
    }
}

/// Where what was found, e.g. `m1/data/node.key` and the names of words.
type Findings = BTreeMap<String, BTreeSet<String>>;

fn note(findings: &mut Findings, place: String, found: BTreeSet<String>) {
    if !found.is_empty() {
        findings.entry(place).or_default().extend(found);
    }
}

/// Data folder, run folder and log of a machine.
fn on_disk(folder: &Path, wanted: &Wanted, findings: &mut Findings) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, kind) = (entry.path(), entry.file_type()?);
        if kind.is_dir() {
            on_disk(&path, wanted, findings)?;
        } else if kind.is_file() {
            // Some come and go.
            let Ok(bytes) = fs::read(&path) else { continue };
            note(findings, path.display().to_string(), wanted.within(&bytes));
        }
    }
    Ok(())
}

/// Arguments and environments of the processes of a machine; those in containers have process
/// namespaces of their own, and what they were given is theirs.
fn in_processes(node: &Node, wanted: &Wanted, findings: &mut Findings) -> Result<()> {
    let space = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = space(&node.host().pid().context("it is up")?.to_string());
    ensure!(own.is_some(), "the machine has a process namespace");
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().filter(|name| name.parse::<u32>().is_ok()) else { continue };
        if space(pid) != own {
            continue;
        }
        for file in ["cmdline", "environ"] {
            // It may just have ended.
            let Ok(bytes) = fs::read(format!("/proc/{pid}/{file}")) else { continue };
            note(findings, format!("{}: {file}", node.name()), wanted.within(&bytes));
        }
    }
    Ok(())
}

fn everywhere(cluster: &Cluster, nodes: &[&Node], wanted: &Wanted) -> Result<Findings> {
    let mut findings = Findings::new();
    for node in nodes {
        on_disk(node.host().folder(), wanted, &mut findings)?;
        in_processes(node, wanted, &mut findings)?;
    }
    let heard = cluster.bed().heard()?;
    ensure!(heard.iter().map(Vec::len).sum::<usize>() > 100_000, "hardly anything was said");
    for said in heard {
        note(&mut findings, "wire".to_owned(), wanted.within(&said));
    }
    Ok(findings)
}

/// Puts the canary where the searches look.
fn plant(cluster: &Cluster, node: &Node) -> Result<()> {
    let host = node.host();
    fs::write(host.data_dir().join("planted"), [b"\0\xff", CANARY.as_bytes()].concat())?;
    fs::write(host.folder().join("planted.log"), format!("a line with {CANARY} in it\n"))?;
    let mut sleeper = Command::new("sh");
    // Two commands: else the shell becomes the only one, without the argument.
    sleeper.args(["-c", "sleep 300; :", CANARY]);
    host.spawn(&mut sleeper)?;
    let mut sleeper = Command::new("sleep");
    host.spawn(sleeper.arg("300").env("WORD", CANARY))?;
    // Workers do not listen.
    let mut stream = cluster.hub().connect(cluster.node("m1")?.host().socket(PORT))?;
    for half in CANARY.as_bytes().chunks(CANARY.len() / 2) {
        std::io::Write::write_all(&mut stream, half)?;
    }
    // Until it was read, refused and closed it was on the wire.
    stream.set_read_timeout(Some(SOON))?;
    let _ = std::io::Read::read_to_end(&mut stream, &mut Vec::new());
    Ok(())
}

/// The key in the key file of a node, while that is not locked.
fn key_of(node: &Node) -> Result<Vec<u8>> {
    let path = node.host().data_dir().join("node.key");
    let text = fs::read_to_string(&path)?;
    let digits = text.split_whitespace().nth(1).context("a key")?;
    ensure!(text.starts_with("warren-key-1 ") && digits.len() == 64, "{}", path.display());
    Ok(digits.as_bytes().to_vec())
}

/// Digits as the bytes that they mean.
fn bytes_of(digits: &[u8]) -> Vec<u8> {
    let value = |digit: &u8| char::from(*digit).to_digit(16).unwrap_or_default();
    let byte = |pair: &[u8]| u8::try_from(value(&pair[0]) << 4 | value(&pair[1])).unwrap();
    digits.chunks_exact(2).map(byte).collect()
}

/// A service with a secret variable, which only its own environment passes on.
fn create_with_password(cluster: &Cluster, manager: &Node) -> Result<()> {
    let image = cluster.image();
    let line = ["service", "create", "db", "--image", &image, "--detach", "-e", "PASSWORD"];
    let mut command = manager.command(&[&line[..], &["sh", "-c", "sleep 1000"]].concat());
    let said = manager.host().output(command.env("PASSWORD", PASSWORD), b"")?;
    ensure!(said.exit == 0, "{said:?}");
    cluster.wait_running("db", 1, SOON)?;
    let seen = manager.ok(&["exec", "db", "sh", "-c", "echo $PASSWORD"])?;
    ensure!(seen.trim() == PASSWORD, "the service has it: {seen}");
    Ok(())
}

/// Puts the canary on all machines, and sees it found: there, and nothing else than before.
fn planted(
    cluster: &Cluster,
    nodes: &[&Node],
    wanted: &Wanted,
    mut expected: Findings,
) -> Result<()> {
    let canary = BTreeSet::from(["canary".to_owned()]);
    for node in nodes {
        plant(cluster, node)?;
        let (host, name) = (node.host(), node.name());
        for file in [host.data_dir().join("planted"), host.folder().join("planted.log")] {
            expected.insert(file.display().to_string(), canary.clone());
        }
        for file in ["cmdline", "environ"] {
            expected.insert(format!("{name}: {file}"), canary.clone());
        }
    }
    expected.insert("wire".to_owned(), canary);
    cluster.until("the canary is found", SOON, || {
        let findings = everywhere(cluster, nodes, wanted)?;
        ensure!(findings == expected, "{findings:?}");
        Ok(Some(()))
    })
}

#[test]
fn host_secrets_are_nowhere_to_be_found() -> Result<()> {
    let options = Options { log_level: "debug".into(), ..Options::default() };
    let cluster = Cluster::form(1, 0, &options)?;
    cluster.bed().listen();
    let manager = cluster.node("m1")?;
    let (second, worker) = (cluster.add(Kind::Manager)?, cluster.add(Kind::Worker)?);
    let nodes = [manager, &second, &worker].map(|node| &**node);

    let mut wanted = Wanted(Vec::new());
    wanted.add("canary", CANARY.as_bytes());
    wanted.add("private key", b"PRIVATE KEY");
    wanted.add("private key", PKCS8);
    wanted.add("private key", SEC1);
    wanted.add("password", PASSWORD.as_bytes());
    for role in ["manager", "worker"] {
        let token = cluster.token(role)?;
        let secret = token.rsplit('-').next().context("a secret")?;
        wanted.add("join token", secret.as_bytes());
    }
    cluster.join(&second, false)?;
    cluster.join(&worker, false)?;
    cluster.wait_ready(3, SOON)?;
    wait_voters(&cluster, 2)?;
    create_with_password(&cluster, manager)?;
    let token = manager.ok(&["operator", "create", "anna", "--role", "deploy"])?;
    wanted.add("operator's token", token.trim().rsplit('-').next().context("a token")?.as_bytes());
    for node in nodes {
        let digits = key_of(node)?;
        wanted.add(&format!("key of {}", node.name()), &digits);
        wanted.add(&format!("key of {}", node.name()), &bytes_of(&digits));
    }
    manager.ok(&["cluster", "ca", "rotate"])?;
    manager.ok(&["cluster", "key", "rotate"])?;

    // What may be: keys in the files that are named for it, which are for nobody else.
    let findings = everywhere(&cluster, &nodes, &wanted)?;
    let allowed: Findings = nodes
        .iter()
        .map(|node| {
            let path = node.host().data_dir().join("node.key").display().to_string();
            (path, BTreeSet::from([format!("key of {}", node.name())]))
        })
        .collect();
    assert_eq!(findings, allowed);
    for path in allowed.keys() {
        assert_eq!(fs::metadata(path)?.permissions().mode() & 0o777, 0o600, "{path}");
    }

    // With a lock managers have none.
    let unlock = manager.ok(&["cluster", "lock"])?;
    wanted.add("unlock key", unlock.trim().as_bytes());
    let of_worker = worker.host().data_dir().join("node.key").display().to_string();
    let left = BTreeMap::from([(of_worker, BTreeSet::from(["key of w1".to_owned()]))]);
    cluster.until("managers are locked", SOON, || {
        Ok((everywhere(&cluster, &nodes, &wanted)? == left).then_some(()))
    })?;

    // And all of these searches find what is there.
    planted(&cluster, &nodes, &wanted, left)
}

#[test]
fn private_keys_are_known_by_how_they_begin() -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let mut wanted = Wanted(Vec::new());
    wanted.add("private key", PKCS8);
    assert!(!wanted.within(&key.serialize_der()).is_empty());
    // A certificate has a public key alone.
    let certificate = rcgen::CertificateParams::default().self_signed(&key)?;
    assert!(wanted.within(certificate.der()).is_empty());
    Ok(())
}
