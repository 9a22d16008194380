//! What /proc says of a container: its processes, its network, bytes from and to disks.
//!
//! Processes come and go while they are looked at: one that is gone is left out.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use super::Shared;
use crate::{Process, Traffic, Usage};

/// Units of times in /proc; the same on every machine that we run on.
const TICKS_PER_SECOND: u64 = 100;
const PAGE_BYTES: u64 = 4096;
/// Of a file about one process; `status` is the longest.
const FILE_MAX: u64 = 16 * 1024;

impl Shared {
    pub(crate) fn usage(&self, id: &str, pid: u32) -> io::Result<Usage> {
        let mut usage = self.cgroups.usage(id)?;
        usage.at_ns = monotonic_ns();
        let devices = fs::read_to_string(format!("/proc/{pid}/net/dev")).ok();
        usage.network = devices.map(|text| network(&text));
        if usage.io.is_none() {
            // Without a group that counts: processes count what they and their children did.
            let pids = self.cgroups.processes(id)?;
            let all = pids.iter().take(Process::COUNT_MAX).filter_map(|pid| disks(*pid));
            usage.io = all.reduce(|a, b| Traffic {
                taken: a.taken.saturating_add(b.taken),
                given: a.given.saturating_add(b.given),
            });
        }
        Ok(usage)
    }

    pub(crate) fn processes(&self, id: &str) -> io::Result<Vec<Process>> {
        let booted = SystemTime::now().checked_sub(since_boot()).unwrap_or(SystemTime::UNIX_EPOCH);
        let mut pids = self.cgroups.processes(id)?;
        pids.sort_unstable();
        pids.truncate(Process::COUNT_MAX);
        Ok(pids.into_iter().filter_map(|pid| process(pid, booted)).collect())
    }
}

fn monotonic_ns() -> u64 {
    nanos(&clock_gettime(ClockId::Monotonic))
}

fn since_boot() -> Duration {
    Duration::from_nanos(nanos(&clock_gettime(ClockId::Boottime)))
}

fn nanos(time: &rustix::time::Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000) + u64::try_from(time.tv_nsec).unwrap_or(0)
}

fn read(path: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_MAX).read_to_end(&mut bytes).ok()?;
    Some(bytes)
}

fn process(pid: i32, booted: SystemTime) -> Option<Process> {
    let stat = read(&format!("/proc/{pid}/stat"))?;
    let status = read(&format!("/proc/{pid}/status"))?;
    let command = read(&format!("/proc/{pid}/cmdline")).unwrap_or_default();
    parse(&stat, &String::from_utf8_lossy(&status), &command, booted)
}

/// From the three files of a process, as proc(5) has them.
fn parse(stat: &[u8], status: &str, command: &[u8], booted: SystemTime) -> Option<Process> {
    let stat = String::from_utf8_lossy(stat);
    // The name may hold anything, parentheses included.
    let (head, tail) = stat.rsplit_once(')')?;
    let (pid, name) = head.split_once(" (")?;
    let fields: Vec<&str> = tail.split_ascii_whitespace().collect();
    // Numbered as in proc(5), where the state is field 3.
    let number = |at: usize| fields.get(at - 3).and_then(|text| text.parse::<u64>().ok());
    let line = |key: &str| {
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(known, _)| *known == key).map(|(_, value)| value.trim())
    };
    let last = |text: &str| text.split_ascii_whitespace().last().and_then(|word| word.parse().ok());
    let first =
        |text: &str| text.split_ascii_whitespace().next().and_then(|word| word.parse().ok());
    let ticks = number(14)?.saturating_add(number(15)?);
    let started = Duration::from_millis(number(22)?.saturating_mul(1000) / TICKS_PER_SECOND);
    let pid = pid.parse().ok()?;
    Some(Process {
        pid,
        parent: u32::try_from(number(4)?).ok()?,
        inner: line("NSpid").and_then(last).unwrap_or(pid),
        uid: line("Uid").and_then(first).unwrap_or(0),
        state: fields.first()?.chars().next()?,
        resident_bytes: number(24).unwrap_or(0).saturating_mul(PAGE_BYTES),
        cpu_ms: ticks.saturating_mul(1000) / TICKS_PER_SECOND,
        started: booted + started,
        threads: u32::try_from(number(20)?).unwrap_or(u32::MAX),
        command: words(command, name),
    })
}

/// Arguments as one line; the name in brackets of what has none.
fn words(command: &[u8], name: &str) -> String {
    let command = command.strip_suffix(b"\0").unwrap_or(command);
    let cut = &command[..command.len().min(Process::COMMAND_MAX)];
    let escaped = |text: &str| text.chars().flat_map(escape).collect::<String>();
    if cut.is_empty() {
        return format!("[{}]", escaped(name));
    }
    let words = cut.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    escaped(&words.collect::<Vec<_>>().join(" "))
}

/// A process names itself: nothing of it is to reach a terminal as it is.
fn escape(letter: char) -> Vec<char> {
    if letter.is_control() { letter.escape_default().collect() } else { vec![letter] }
}

/// `/proc/<pid>/net/dev`, all but loopback.
fn network(text: &str) -> Traffic {
    let mut traffic = Traffic::default();
    for line in text.lines() {
        let Some((name, counters)) = line.split_once(':') else { continue };
        if name.trim() == "lo" {
            continue;
        }
        let counters: Vec<u64> =
            counters.split_ascii_whitespace().filter_map(|word| word.parse().ok()).collect();
        traffic.taken = traffic.taken.saturating_add(counters.first().copied().unwrap_or(0));
        traffic.given = traffic.given.saturating_add(counters.get(8).copied().unwrap_or(0));
    }
    traffic
}

fn disks(pid: i32) -> Option<Traffic> {
    let text = read(&format!("/proc/{pid}/io"))?;
    let text = String::from_utf8_lossy(&text);
    let number = |key: &str| {
        let mut lines = text.lines().filter_map(|line| line.split_once(": "));
        let found = lines.find(|(known, _)| *known == key);
        found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
    };
    Some(Traffic { taken: number("read_bytes"), given: number("write_bytes") })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAT: &[u8] = b"77 (a) b (c) S 70 77 77 0 -1 4194560 1 2 3 4 150 50 7 8 20 0 3 0 500 \
        9000000 256 18446744073709551615 1 1";

    #[test]
    fn one_process() {
        let status = "Name:\tx\nUid:\t1000\t1001\t1000\t1000\nNSpid:\t77\t5\n";
        let booted = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        let process = parse(STAT, status, b"sleep\0in\x1b[2J\0", booted).unwrap();
        assert_eq!((process.pid, process.parent, process.inner, process.uid), (77, 70, 5, 1000));
        assert_eq!((process.state, process.threads, process.cpu_ms), ('S', 3, 2000));
        assert_eq!(process.resident_bytes, 256 * PAGE_BYTES);
        assert_eq!(process.started, booted + Duration::from_secs(5));
        assert_eq!(process.command, "sleep in\\u{1b}[2J");
        let plain = parse(STAT, "", b"", booted).unwrap();
        assert_eq!((plain.inner, plain.command.as_str()), (77, "[a) b (c]"));
        for wrong in [&b""[..], b"77 (x", b"77 (x) S", b"x (y) S 1 2 3"] {
            assert_eq!(parse(wrong, status, b"", booted), None);
        }
    }

    #[test]
    fn interfaces() {
        let text = "Inter-| Receive | Transmit\n face |bytes packets\n    lo: 9 9 9 9 9 9 9 9 9\n\
            \x20 eth0: 100 2 0 0 0 0 0 0 40 3 0 0 0 0 0 0\n  eth1:1 2 0 0 0 0 0 0 2 3\n";
        assert_eq!(network(text), Traffic { taken: 101, given: 42 });
        assert_eq!(network("nonsense: x"), Traffic::default());
    }
}
