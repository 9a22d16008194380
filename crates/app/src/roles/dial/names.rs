//! Addresses of names, as the system is set up to find them: the hosts file, then DNS.
//!
//! Not by libc, which would load shared objects. What the hosts file has is the
//! answer, also when it has addresses of one family alone: nobody waits for DNS
//! servers then, which may be down just when managers are looked for.

use std::io::BufReader;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, TokioResolver};
use tokio::sync::OnceCell;

use super::DialError;

const HOSTS: &str = "/etc/hosts";
const RESOLVE_MAX: Duration = Duration::from_secs(3);

#[derive(Clone, Default)]
pub(super) struct Names(Arc<OnceCell<TokioResolver>>);

impl Names {
    pub(super) async fn find(&self, name: &str) -> Result<Vec<IpAddr>, DialError> {
        let failed = |why: String| DialError::Resolve { name: name.to_owned(), why };
        // Each time: people change the file while the daemon runs.
        let file = tokio::task::spawn_blocking(|| std::fs::File::open(HOSTS)).await;
        if let Ok(Ok(file)) = file {
            let found = listed(BufReader::new(file), name);
            if !found.is_empty() {
                return Ok(found);
            }
        }
        let make = || async { TokioResolver::builder_tokio()?.build() };
        let resolver = self.0.get_or_try_init(make).await.map_err(|e| failed(e.to_string()))?;
        let found = tokio::time::timeout(RESOLVE_MAX, resolver.lookup_ip(name)).await;
        let found = found.map_err(|_| failed("no answer".to_owned()))?;
        Ok(found.map_err(|e| failed(e.to_string()))?.iter().collect())
    }
}

/// What a hosts file says of `name`; nothing, if it cannot be read.
fn listed(file: impl std::io::Read, name: &str) -> Vec<IpAddr> {
    let mut hosts = Hosts::default();
    let Ok(name) = name.to_lowercase().parse::<Name>() else { return Vec::new() };
    if hosts.read_hosts_conf(file).is_err() {
        return Vec::new();
    }
    let kinds = [RecordType::A, RecordType::AAAA].into_iter();
    let found =
        kinds.filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)));
    found.flat_map(|lookup| lookup.answers().to_vec()).filter_map(|r| r.data.ip_addr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: &str) {
        let file = "127.0.0.1 localhost\n::1 localhost\n# 10.0.0.9 m1\n10.0.0.1\tm1.example m1 # x\nfd00::2 M2\n";
        let found = listed(file.as_bytes(), name);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.join(" "), expected, "{name}");
    }

    #[test]
    fn the_hosts_file_answers() {
        check("m1", "10.0.0.1");
        check("M1.Example", "10.0.0.1");
        check("m2", "fd00::2");
        check("localhost", "127.0.0.1 ::1");
        check("m3", "");
        check("", "");
        assert!(listed(&b"\xff\xfe"[..], "m1").is_empty());
    }
}
