//! Nodes that fit, arranged so that the best one is found without looking at all of them.
//!
//! A tree with a level for each attribute that is spread over, and nodes as its
//! leaves. From the root down the child with the fewest tasks is taken, and of
//! those the one that leads to the best leaf; so picking, and telling of one node that
//! it changed, take a number of steps that grows with the logarithm of nodes.
//!
//! Ties cannot happen: leaves' keys are different, and a branch's is that of the
//! leaf it leads to.

use std::collections::{BTreeMap, BTreeSet};

use super::ask::Key;

/// Tasks below, the key of the leaf it leads to, which child.
type Entry = (u32, Key, usize);

#[derive(Default)]
struct Branch {
    parent: Option<usize>,
    /// Tasks of the service on nodes below, whether these fit or not.
    tasks: u32,
    /// Of branches that have leaves, or the leaves themselves.
    children: BTreeSet<Entry>,
    /// That of this branch among its parent's children.
    entry: Option<Entry>,
}

pub(crate) struct Tree {
    branches: Vec<Branch>,
    /// Each leaf's branch and its entry there, by position of the node.
    leaves: BTreeMap<usize, (usize, Option<Entry>)>,
    by_path: BTreeMap<Vec<u32>, usize>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        let root = (Vec::new(), 0);
        Self { branches: vec![Branch::default()], leaves: BTreeMap::new(), by_path: [root].into() }
    }

    /// Adds a node under the values it has, by number, with what is known of tasks below each.
    pub(crate) fn add(&mut self, at: usize, path: &[u32], tasks: impl Fn(&[u32]) -> u32) {
        let mut branch = 0;
        for depth in 1..=path.len() {
            let known = self.by_path.get(&path[..depth]).copied();
            branch = known.unwrap_or_else(|| {
                let new = self.branches.len();
                let tasks = tasks(&path[..depth]);
                self.branches.push(Branch { parent: Some(branch), tasks, ..Branch::default() });
                self.by_path.insert(path[..depth].to_vec(), new);
                new
            });
        }
        self.leaves.insert(at, (branch, None));
    }

    /// The best node.
    pub(crate) fn best(&self) -> Option<usize> {
        // The key of the leaf goes with every entry above it.
        self.branches[0].children.first().map(|(_, key, _)| key.1)
    }

    /// Sets a node's key; `None` while it does not fit.
    pub(crate) fn set(&mut self, at: usize, key: Option<Key>) {
        let Some((branch, before)) = self.leaves.get(&at).copied() else { return };
        let after = key.map(|key| (0, key, at));
        if before == after {
            return;
        }
        self.leaves.insert(at, (branch, after));
        let children = &mut self.branches[branch].children;
        if let Some(entry) = before {
            children.remove(&entry);
        }
        children.extend(after);
        self.lift(branch);
    }

    /// So many tasks are below the values of `path` now.
    pub(crate) fn count(&mut self, path: &[u32], tasks: u32) {
        let Some(branch) = self.by_path.get(path).copied() else { return };
        self.branches[branch].tasks = tasks;
        self.lift(branch);
    }

    /// Puts a branch and those above it where they belong among their siblings.
    fn lift(&mut self, from: usize) {
        let mut at = from;
        while let Some(parent) = self.branches[at].parent {
            let branch = &mut self.branches[at];
            let after = branch.children.first().map(|(_, key, _)| (branch.tasks, *key, at));
            let before = std::mem::replace(&mut branch.entry, after);
            if before == after {
                return;
            }
            let siblings = &mut self.branches[parent].children;
            if let Some(entry) = before {
                siblings.remove(&entry);
            }
            siblings.extend(after);
            at = parent;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Tasks = BTreeMap<Vec<u32>, u32>;

    /// What a look at every node below a branch finds.
    fn naive(
        keys: &[Option<u32>],
        paths: &[Vec<u32>],
        tasks: &Tasks,
        below: &[u32],
    ) -> Option<usize> {
        let depth = below.len();
        let under: Vec<usize> = (0..keys.len())
            .filter(|at| keys[*at].is_some() && paths[*at].starts_with(below))
            .collect();
        if paths.first().is_none_or(|path| path.len() == depth) {
            return under.into_iter().min_by_key(|at| (keys[*at], *at));
        }
        let branches: BTreeSet<&[u32]> = under.iter().map(|at| &paths[*at][..=depth]).collect();
        let found = branches.into_iter().filter_map(|branch| {
            let at = naive(keys, paths, tasks, branch)?;
            Some((tasks[branch], keys[at], at))
        });
        found.min().map(|(_, _, at)| at)
    }

    proptest! {
        /// Whatever changes, the best is the one that a look at all would find.
        #[test]
        fn the_best_is_found(
            paths in prop::collection::vec(prop::collection::vec(0..3u8, 2), 1..8),
            levels in 0..3usize,
            changes in prop::collection::vec((0..8usize, prop::option::of(0..4u32), 0..3u32), 0..40),
        ) {
            let paths: Vec<Vec<u32>> = paths
                .iter()
                .map(|path| path.iter().take(levels).map(|value| u32::from(*value)).collect())
                .collect();
            let mut tasks = Tasks::new();
            for path in &paths {
                for depth in 1..=path.len() {
                    tasks.insert(path[..depth].to_vec(), 0);
                }
            }
            let mut keys = vec![None; paths.len()];
            let mut tree = Tree::new();
            for (at, path) in paths.iter().enumerate() {
                tree.add(at, path, |_| 0);
            }
            for (at, key, more) in changes {
                let at = at % paths.len();
                keys[at] = key;
                tree.set(at, key.map(|key| Key::plain(key, at)));
                for depth in 1..=paths[at].len() {
                    let path = &paths[at][..depth];
                    let count = tasks.get_mut(path).unwrap();
                    *count = (*count + more) % 7;
                    tree.count(path, *count);
                }
                prop_assert_eq!(tree.best(), naive(&keys, &paths, &tasks, &[]));
            }
        }
    }
}
