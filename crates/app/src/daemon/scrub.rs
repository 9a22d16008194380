//! Takes a secret out of what others see of this process: its command line and
//! environment, as `ps` and `/proc` show them.
//!
//! Both lie in this process's own memory, whose edges `/proc/self/stat` tells
//! and which `/proc/self/mem` writes. Where that does not work nothing is
//! changed: the secret was on the command line because somebody put it there.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

/// Fields of `/proc/self/stat`, counted from the one after the name: where arguments begin, and
/// where the environment ends.
const ARG_START: usize = 45;
const ENV_END: usize = 48;
/// The kernel's own limit of arguments and environment together is 2 MiB by default.
const AREA_MAX: u64 = 8 << 20;

/// Overwrites every occurrence of `secret`.
pub(crate) fn scrub(secret: &[u8]) {
    if let Err(error) = overwrite(secret) {
        tracing::debug!(%error, "the command line could not be overwritten");
    }
}

fn overwrite(secret: &[u8]) -> io::Result<()> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let (start, end) = edges(&stat).ok_or_else(|| io::Error::other("/proc/self/stat is odd"))?;
    if secret.is_empty() || end <= start || end - start > AREA_MAX {
        return Err(io::Error::other("nothing to look through"));
    }
    let memory = OpenOptions::new().read(true).write(true).open("/proc/self/mem")?;
    let len = usize::try_from(end - start).map_err(io::Error::other)?;
    let mut area = zeroize::Zeroizing::new(vec![0; len]);
    memory.read_exact_at(&mut area, start)?;
    let stars = vec![b'*'; secret.len()];
    for (at, _) in area.windows(secret.len()).enumerate().filter(|(_, part)| *part == secret) {
        memory.write_all_at(&stars, start + at as u64)?;
    }
    Ok(())
}

fn edges(stat: &str) -> Option<(u64, u64)> {
    // The name is in parentheses and may have any character, these included.
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    Some((fields.get(ARG_START)?.parse().ok()?, fields.get(ENV_END)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_is_seen_no_more() {
        // Nextest names this very test as an argument.
        let secret = b"what_was_given_is_seen_no_more";
        let seen = || {
            let line = fs::read("/proc/self/cmdline").unwrap();
            line.windows(secret.len()).any(|part| part == secret)
        };
        if !seen() {
            return;
        }
        scrub(secret);
        assert!(!seen());
    }
}
