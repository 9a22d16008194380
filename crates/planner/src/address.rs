//! Addresses of one node's containers, and blocks of addresses for nodes.
//!
//! The next address that no task on record has comes first, in a circle from the
//! one that was given last. Then those of ended tasks, the longest ended first.
//! What others remember of an address (connection tracking, caches of names, the
//! kernel of a node whose daemon is away) should be as old as possible.

use std::collections::{BTreeSet, VecDeque};
use std::net::Ipv4Addr;

use warren_model::Time;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::task::Task;

/// First address of a block that a container may get: 0 is the network, 1 the gateway.
const FIRST: u64 = 2;

/// What one node has left. Only ever goes forward, so what it gave is not given again.
pub(crate) struct Pool {
    blocks: Vec<Subnet>,
    /// Of tasks on record, ended ones included; in order.
    used: Vec<Ipv4Addr>,
    /// Block and number in it where the search for an unused address goes on.
    next: (usize, u64),
    /// How many numbers it has still to look at.
    left: u64,
    /// Of ended tasks alone, the longest ended first; looked up once nothing is unused.
    released: Option<VecDeque<Ipv4Addr>>,
}

impl Pool {
    /// `used` in order; the search begins behind `last`.
    pub(crate) fn new(
        blocks: &[Subnet],
        used: impl Iterator<Item = Ipv4Addr>,
        last: Option<Ipv4Addr>,
    ) -> Self {
        let behind = last.and_then(|last| {
            let at = blocks.iter().position(|block| is_usable(*block, last))?;
            Some((at, u64::from(u32::from(last) - u32::from(blocks[at].address)) + 1))
        });
        Self {
            next: behind.unwrap_or((0, FIRST)),
            left: blocks.iter().map(usable).sum(),
            blocks: blocks.to_vec(),
            used: used.collect(),
            released: None,
        }
    }

    /// One more, when nothing is left of the others.
    pub(crate) fn add(&mut self, block: Subnet) {
        self.next = (self.blocks.len(), FIRST);
        self.left += usable(&block);
        self.blocks.push(block);
    }

    /// A free address; `tasks` are those of the node.
    pub(crate) fn take<'a, T>(&mut self, tasks: impl FnOnce() -> T) -> Option<Ipv4Addr>
    where
        T: Iterator<Item = &'a Task>,
    {
        if let Some(address) = self.take_unused() {
            return Some(address);
        }
        let blocks = &self.blocks;
        self.released.get_or_insert_with(|| released(blocks, tasks())).pop_front()
    }

    fn take_unused(&mut self) -> Option<Ipv4Addr> {
        while self.left > 0 {
            let Some(block) = self.blocks.get(self.next.0) else {
                self.next = (0, FIRST);
                continue;
            };
            if self.next.1 - FIRST >= usable(block) {
                self.next = (self.next.0 + 1, FIRST);
                continue;
            }
            let address = block.nth(self.next.1);
            (self.next.1, self.left) = (self.next.1 + 1, self.left - 1);
            if let Some(address) = address
                && self.used.binary_search(&address).is_err()
            {
                return Some(address);
            }
        }
        None
    }
}

/// Addresses that only ended tasks have, the longest ended first.
fn released<'a>(blocks: &[Subnet], tasks: impl Iterator<Item = &'a Task>) -> VecDeque<Ipv4Addr> {
    let mut live = BTreeSet::new();
    let mut ended: Vec<(Time, Ipv4Addr)> = Vec::new();
    for task in tasks {
        let Some(address) = task.address else { continue };
        if task.status.state.is_terminal() {
            ended.push((task.status.since, address));
        } else {
            live.insert(address);
        }
    }
    // The last release counts: keep each address once, where it occurs last.
    ended.sort_unstable();
    let mut seen = BTreeSet::new();
    let mut order = VecDeque::new();
    for (_, address) in ended.into_iter().rev() {
        let usable = blocks.iter().any(|block| is_usable(*block, address));
        if usable && !live.contains(&address) && seen.insert(address) {
            order.push_front(address);
        }
    }
    order
}

/// Addresses for containers; the last of a block is the broadcast address.
fn usable(block: &Subnet) -> u64 {
    block.size().saturating_sub(FIRST + 1)
}

fn is_usable(block: Subnet, address: Ipv4Addr) -> bool {
    let at = u64::from(u32::from(address)).checked_sub(u64::from(u32::from(block.address)));
    at.is_some_and(|at| at >= FIRST && at + 1 < block.size())
}

/// The lowest block of the cluster's pool that overlaps none of `granted`.
pub(crate) fn next_block(
    cluster: &Cluster,
    granted: impl Iterator<Item = Subnet>,
) -> Option<Subnet> {
    let start = |subnet: &Subnet| u64::from(u32::from(subnet.address));
    let prefix = cluster.block_prefix;
    let size = Subnet { prefix, ..cluster.pool }.size();
    let mut granted: Vec<Subnet> = granted.collect();
    granted.sort_unstable();
    let mut at = start(&cluster.pool);
    for block in &granted {
        if at + size <= start(block) {
            break;
        }
        // Blocks of another size than today's may end anywhere; the next begins on a multiple.
        let end = start(block) + block.size();
        at = at.max(end.next_multiple_of(size));
    }
    let fits = at + size <= start(&cluster.pool) + cluster.pool.size();
    let address = u32::try_from(at).ok().filter(|_| fits)?;
    Some(Subnet { address: address.into(), prefix })
}

#[cfg(test)]
mod tests {
    use super::*;
    use warren_model::id::{ClusterId, ServiceId, TaskId};
    use warren_model::task::{Desired, TaskState, TaskStatus};

    fn subnet(text: &str) -> Subnet {
        let (address, prefix) = text.split_once('/').unwrap();
        Subnet { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
    }

    #[track_caller]
    fn check(blocks: &str, tasks: &str, expected: &str) {
        check_after(blocks, "", tasks, expected);
    }

    /// Tasks as `.2` (live) or `.2@7` (ended at 7); gives what is taken after `last`, in order.
    #[track_caller]
    fn check_after(blocks: &str, last: &str, tasks: &str, expected: &str) {
        let blocks: Vec<Subnet> = blocks.split_whitespace().map(subnet).collect();
        let tasks = tasks.split_whitespace().map(|word| {
            let word = word.strip_prefix('.').unwrap();
            let (last, ended) = word.split_once('@').unwrap_or((word, ""));
            let state = if ended.is_empty() { TaskState::Running } else { TaskState::Complete };
            Task {
                id: TaskId::MIN,
                service: ServiceId::MIN,
                slot: 1,
                template: 1,
                run: 0,
                node: None,
                address: blocks[0].nth(last.parse().unwrap()),
                desired: Desired::Running,
                status: TaskStatus::new(state, Time(ended.parse().unwrap_or(0))),
                created: Time(0),
                devices: Default::default(),
                origin: None,
                revision: 1,
            }
        });
        let tasks: Vec<Task> = tasks.collect();
        let mut used: Vec<Ipv4Addr> = tasks.iter().filter_map(|task| task.address).collect();
        used.sort_unstable();
        let last = (!last.is_empty()).then(|| last.parse().unwrap());
        let mut pool = Pool::new(&blocks, used.into_iter(), last);
        let taken = std::iter::from_fn(|| pool.take(|| tasks.iter())).take(8);
        let last = |address: Ipv4Addr| format!(".{}", address.octets()[3]);
        assert_eq!(taken.map(last).collect::<Vec<_>>().join(" "), expected);
    }

    #[test]
    fn unused_first_then_the_longest_released() {
        check("10.0.0.0/29", "", ".2 .3 .4 .5 .6");
        check("10.0.0.0/29", ".2 .4", ".3 .5 .6");
        check("10.0.0.0/29", ".2@9 .3@7 .4", ".5 .6 .3 .2");
        check("10.0.0.0/29", ".2@1 .2@9 .3@7", ".4 .5 .6 .3 .2");
        check("10.0.0.0/29", ".2@1 .2", ".3 .4 .5 .6");
        check("10.0.0.0/30 10.0.0.4/30", "", ".2 .6");
        check("10.0.0.0/31 10.0.0.4/32", "", "");
        check("", "", "");
    }

    #[test]
    fn an_address_rests_while_there_are_others() {
        check_after("10.0.0.0/29", "10.0.0.2", "", ".3 .4 .5 .6 .2");
        check_after("10.0.0.0/29", "10.0.0.4", ".2 .5", ".6 .3 .4");
        check_after("10.0.0.0/29", "10.0.0.6", "", ".2 .3 .4 .5 .6");
        check_after("10.0.0.0/29", "10.0.0.4", ".2@9 .3@7 .5", ".6 .4 .3 .2");
        check_after("10.0.0.0/30 10.0.0.8/29", "10.0.0.10", "", ".11 .12 .13 .14 .2 .10");
        check_after("10.0.0.0/30 10.0.0.8/29", "10.0.0.13", "", ".14 .2 .10 .11 .12 .13");
        // No container's, or of a block that the node has no more.
        check_after("10.0.0.0/30 10.0.0.8/29", "10.0.0.9", "", ".2 .10 .11 .12 .13 .14");
        check_after("10.0.0.0/30", "10.0.9.9", "", ".2");
        check_after("", "10.0.9.9", "", "");
    }

    #[track_caller]
    fn check_block(pool: &str, prefix: u8, granted: &str, expected: &str) {
        let cluster = Cluster {
            pool: subnet(pool),
            block_prefix: prefix,
            ..Cluster::new(ClusterId::from_bytes([0; 10]))
        };
        let granted: Vec<Subnet> = granted.split_whitespace().map(subnet).collect();
        let found = next_block(&cluster, granted.into_iter());
        let found = found.map(|block| block.to_string());
        assert_eq!(found.as_deref().unwrap_or("none"), expected);
    }

    #[test]
    fn blocks() {
        check_block("10.128.0.0/10", 24, "", "10.128.0.0/24");
        check_block("10.128.0.0/10", 24, "10.128.0.0/24 10.128.2.0/24", "10.128.1.0/24");
        check_block("10.128.0.0/10", 24, "10.128.1.0/24 10.128.0.0/24", "10.128.2.0/24");
        check_block("10.128.0.0/10", 24, "10.128.0.0/26", "10.128.1.0/24");
        check_block("10.128.0.0/10", 26, "10.128.0.0/24", "10.128.1.0/26");
        check_block("10.0.0.0/24", 25, "10.0.0.0/25", "10.0.0.128/25");
        check_block("10.0.0.0/24", 25, "10.0.0.0/25 10.0.0.128/25", "none");
        check_block("255.255.255.0/24", 24, "255.255.255.0/24", "none");
        // A pool that was moved: old blocks below and above do not matter.
        check_block("10.1.0.0/16", 24, "10.0.0.0/24 10.2.0.0/24", "10.1.0.0/24");
    }
}
