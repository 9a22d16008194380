//! A service's tasks over nodes while a plan is made: how many are where, and which node is next.
//!
//! Tasks of one template are alike, so nodes are judged once for all of them,
//! when the first is placed; then only what changes is judged again. A look at
//! every node for every task would give the same (tests compare).

use std::collections::BTreeMap;

use warren_model::Time;
use warren_model::placement::Attribute;
use warren_model::task::Task;

use super::ask::{Ask, Class, Share};
use super::tree::Tree;
use crate::nodes::Nodes;
use crate::slot::{Slot, is_failed, is_live};

/// A node that failed a task of a service is avoided by it for so long: longer than the longest
/// pause before a successor.
pub(crate) const PENALTY_MS: u64 = 600_000;

/// Shares of all nodes, in their order, and where tasks of each template go next.
pub(crate) struct Board<'a> {
    shares: Vec<Share>,
    failures: Failures,
    groups: BTreeMap<u32, Group<'a>>,
}

struct Group<'a> {
    ask: Ask<'a>,
    /// Which of `trees` each node is in.
    class: Vec<usize>,
    /// Best class first; made when those before have nothing left.
    trees: Vec<Option<Tree>>,
    /// Values of what is spread over, of each node; numbered as they are met.
    paths: Vec<Vec<u32>>,
    /// Tasks below each of them.
    tasks: BTreeMap<Vec<u32>, u32>,
}

/// By template and node: tasks that failed within [`PENALTY_MS`].
type Failures = BTreeMap<(u32, usize), u32>;

/// Of every node: live tasks, wanted ones, and those that failed lately.
fn tally<'s, 'a: 's>(
    slots: impl IntoIterator<Item = &'s Slot<'a>>,
    nodes: &Nodes<'_>,
    now: Time,
) -> (Vec<Share>, Failures) {
    let mut failures = Failures::new();
    let mut shares = vec![Share::default(); nodes.len()];
    let lately = |task: &Task| task.status.since.plus_ms(PENALTY_MS) > now;
    for slot in slots {
        let wanted = slot.wanted.iter().map(|task| (task, 1));
        let rest = slot.past.iter().chain(&slot.leaving).map(|task| (task, 0));
        for (task, wanted) in wanted.chain(rest) {
            let Some(site) = task.node.and_then(|node| nodes.position(node)) else { continue };
            if is_live(task) {
                shares[site].wanted += wanted;
                shares[site].live += 1;
            } else if is_failed(task) && lately(task) {
                *failures.entry((task.template, site)).or_default() += 1;
            }
        }
    }
    (shares, failures)
}

impl<'a> Board<'a> {
    pub(crate) fn new<'s>(
        slots: impl IntoIterator<Item = &'s Slot<'a>>,
        nodes: &Nodes<'a>,
        now: Time,
    ) -> Self
    where
        'a: 's,
    {
        let (shares, failures) = tally(slots, nodes, now);
        Self { shares, failures, groups: BTreeMap::new() }
    }

    pub(crate) fn share(&self, at: usize) -> Share {
        self.shares[at]
    }

    /// Takes up what the tasks of a template ask; `make` says it the first time.
    pub(crate) fn prepare(
        &mut self,
        template: u32,
        nodes: &Nodes<'a>,
        make: impl FnOnce() -> Ask<'a>,
    ) {
        let Self { shares, failures, groups } = self;
        let failed = |at| failures.get(&(template, at)).copied().unwrap_or_default();
        groups.entry(template).or_insert_with(|| Group::new(make(), shares, failed, nodes));
    }

    pub(crate) fn ask(&self, template: u32) -> Option<&Ask<'a>> {
        self.groups.get(&template).map(|group| &group.ask)
    }

    /// How far a node is from what is wished for tasks of a template: less is nearer.
    pub(crate) fn class(&self, template: u32, at: usize) -> Option<usize> {
        self.groups.get(&template).map(|group| group.class[at])
    }

    /// Whether a node can take a task of a template.
    pub(crate) fn fits(&self, template: u32, at: usize, nodes: &Nodes<'a>) -> bool {
        self.ask(template).is_some_and(|ask| ask.fits(nodes.site(at), at, self.shares[at]))
    }

    /// The best node for a task of a template that was asked for before.
    pub(crate) fn best(&mut self, template: u32, nodes: &Nodes<'a>) -> Option<usize> {
        let shares = &self.shares;
        self.groups.get_mut(&template)?.best(shares, nodes)
    }

    /// Changes a node's share, and all that follows from it and from what the node has left.
    pub(crate) fn change(&mut self, at: usize, nodes: &Nodes<'a>, edit: impl FnOnce(&mut Share)) {
        let before = self.shares[at];
        edit(&mut self.shares[at]);
        for group in self.groups.values_mut() {
            group.change(at, before, self.shares[at], nodes);
        }
    }
}

impl<'a> Group<'a> {
    fn new(
        ask: Ask<'a>,
        shares: &[Share],
        failed: impl Fn(usize) -> u32,
        nodes: &Nodes<'a>,
    ) -> Self {
        let paths = paths(&ask.service.spec.placement.spread, nodes);
        let mut tasks = BTreeMap::new();
        for (at, share) in shares.iter().enumerate() {
            for depth in 1..=paths[at].len() {
                // What is lost or on its way to another node is where it will be counted.
                let counted = if nodes.site(at).is_lasting() { share.wanted } else { 0 };
                *tasks.entry(paths[at][..depth].to_vec()).or_default() += counted;
            }
        }
        let classes = (0..nodes.len()).map(|at| ask.class(nodes.site(at), at, failed(at)));
        let classes: Vec<Class> = classes.collect();
        let mut order = classes.clone();
        order.sort_unstable();
        order.dedup();
        let place = |class| order.binary_search(class).unwrap_or_default();
        let class = classes.iter().map(place).collect();
        let trees = order.iter().map(|_| None).collect();
        Self { ask, class, trees, paths, tasks }
    }

    fn best(&mut self, shares: &[Share], nodes: &Nodes<'a>) -> Option<usize> {
        (0..self.trees.len()).find_map(|class| self.tree(class, shares, nodes).best())
    }

    fn tree(&mut self, class: usize, shares: &[Share], nodes: &Nodes<'a>) -> &mut Tree {
        let Self { ask, class: classes, trees, paths, tasks } = self;
        trees[class].get_or_insert_with(|| {
            let mut tree = Tree::new();
            for at in (0..classes.len()).filter(|at| classes[*at] == class) {
                tree.add(at, &paths[at], |path| tasks.get(path).copied().unwrap_or_default());
                let (site, share) = (nodes.site(at), shares[at]);
                tree.set(at, ask.fits(site, at, share).then(|| ask.key(site, at, share)));
            }
            tree
        })
    }

    fn change(&mut self, at: usize, before: Share, after: Share, nodes: &Nodes<'a>) {
        let path = &self.paths[at];
        if before.wanted != after.wanted && nodes.site(at).is_lasting() {
            for depth in 1..=path.len() {
                let Some(tasks) = self.tasks.get_mut(&path[..depth]) else { continue };
                *tasks = tasks.saturating_add(after.wanted).saturating_sub(before.wanted);
                for tree in self.trees.iter_mut().flatten() {
                    tree.count(&path[..depth], *tasks);
                }
            }
        }
        if let Some(tree) = &mut self.trees[self.class[at]] {
            let site = nodes.site(at);
            let fits = self.ask.fits(site, at, after);
            tree.set(at, fits.then(|| self.ask.key(site, at, after)));
        }
    }
}

fn paths(levels: &[Attribute], nodes: &Nodes<'_>) -> Vec<Vec<u32>> {
    let mut numbers: BTreeMap<String, u32> = BTreeMap::new();
    let mut number = |value: String| {
        let next = u32::try_from(numbers.len()).unwrap_or(u32::MAX);
        *numbers.entry(value).or_insert(next)
    };
    let sites = nodes.sites().iter();
    sites.map(|site| levels.iter().map(|level| number(level.value(site.node))).collect()).collect()
}
