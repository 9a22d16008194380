//! Who passes on for whom, by what nodes report.

use warren_state::change::Mutation;

use super::*;
use crate::testing::{apply, node, node_id, world};

/// A cluster of `a` to `f`, all of which the leader has heard.
struct World {
    state: State,
    told: BTreeMap<NodeId, Vec<Cut>>,
    failed: BTreeSet<(Ends, NodeId)>,
}

fn key(id: NodeId) -> Mutation {
    let mut description = node('a').description;
    description.hostname = format!("host-{}", char::from(id.as_bytes()[0]));
    description.overlay_key = [id.as_bytes()[0]; 32];
    Mutation::DescribeNode { id, description }
}

impl World {
    fn new(letters: &str) -> Self {
        let mut state = world("");
        let cluster = warren_model::Cluster::clone(state.cluster().unwrap());
        let cluster = warren_model::Cluster { overlay: OverlayKind::Wireguard, ..cluster };
        apply(&mut state, vec![Mutation::SetCluster(cluster)]);
        let more = letters.chars().filter(|letter| !"ab".contains(*letter));
        apply(&mut state, more.map(|letter| Mutation::CreateNode(node(letter))).collect());
        apply(&mut state, letters.chars().map(|letter| key(node_id(letter))).collect());
        let told = letters.chars().map(|letter| (node_id(letter), Vec::new())).collect();
        Self { state, told, failed: BTreeSet::new() }
    }

    /// `a-b` a does not reach b, `a-b!c` nor by c; nodes that are not named reach everybody.
    fn says(&mut self, text: &str) -> &mut Self {
        self.told.values_mut().for_each(Vec::clear);
        self.failed.clear();
        for word in text.split_whitespace() {
            let mut letters = word.chars();
            let (one, two) = (letters.next().unwrap(), letters.nth(1).unwrap());
            let via = letters.nth(1).map(node_id);
            self.told
                .get_mut(&node_id(one))
                .unwrap()
                .push(Cut { node: node_id(two), via_lost: via });
            if let Some(via) = via {
                self.failed.insert((ends(node_id(one), node_id(two)), via));
            }
        }
        self
    }

    /// What follows, as `a-b:c0`; decides again until nothing does.
    #[track_caller]
    fn check(&mut self, expected: &str) {
        for round in 0.. {
            assert!(round < 3, "it does not come to an end");
            let look = Look { view: &self.state, told: &self.told, failed: &self.failed };
            let changes = decide(&look);
            if changes.is_empty() {
                break;
            }
            let set = |(id, relays)| Mutation::SetRelays { id, relays };
            apply(&mut self.state, changes.into_iter().map(set).collect());
        }
        let letter = |id: NodeId| char::from(id.as_bytes()[0]);
        let shown: Vec<String> = kept(&self.state)
            .iter()
            .map(|([one, two], relay)| {
                format!("{}-{}:{}{}", letter(*one), letter(*two), letter(relay.via), relay.slot)
            })
            .collect();
        assert_eq!(shown.join(" "), expected);
    }

    fn status(&mut self, letter: char, status: NodeStatus) {
        apply(&mut self.state, vec![Mutation::SetNodeStatus { id: node_id(letter), status }]);
    }
}

#[test]
fn a_pair_that_is_cut_goes_by_one_that_reaches_both() {
    let mut world = World::new("abcd");
    world.says("").check("");
    // One of the two is enough, whichever.
    world.says("b-a").check("a-b:c0");
    // It stays, though d has less to do.
    world.says("a-b b-a a-d").check("a-b:c0 a-d:c1");
    world.says("a-b").check("a-b:c0");
    world.says("").check("");
    // c does not reach a.
    world.says("a-b c-a").check("a-b:d0 a-c:d1");
}

#[test]
fn nobody_can() {
    let mut world = World::new("abc");
    world.says("a-b a-c").check("");
    world.says("a-b").check("a-b:c0");
    // Two who would pass on for each other do not.
    world.says("a-b a-c").check("a-b:c0");
    let mut world = World::new("ab");
    world.says("a-b").check("");
}

#[test]
fn who_passes_on_is_replaced() {
    let mut world = World::new("abcd");
    world.says("a-b").check("a-b:c0");
    world.status('c', NodeStatus::Down);
    world.check("a-b:d0");
    world.status('c', NodeStatus::Ready);
    world.check("a-b:d0");
    // It carries nothing.
    world.says("b-a!d").check("a-b:c0");
    let drain = |letter, availability| Mutation::SetAvailability {
        id: node_id(letter),
        availability,
        deadline_ms: None,
    };
    apply(&mut world.state, vec![drain('c', Availability::Drain)]);
    world.says("b-a!d").check("a-b:c0");
    world.says("b-a").check("a-b:d0");
    // Nobody is left: it may come back.
    world.status('d', NodeStatus::Down);
    world.check("a-b:d0");
    apply(&mut world.state, vec![drain('c', Availability::Active)]);
    world.check("a-b:c0");
}

#[test]
fn a_new_leader_undoes_nothing_unheard() {
    let mut world = World::new("abc");
    world.says("a-b").check("a-b:c0");
    world.told = BTreeMap::new();
    world.check("a-b:c0");
    world.told.insert(node_id('a'), Vec::new());
    world.check("a-b:c0");
    world.told.insert(node_id('b'), Vec::new());
    world.check("");
    // Of a version that says nothing: neither end nor between.
    let mut world = World::new("abc");
    world.says("a-b");
    world.told.remove(&node_id('c'));
    world.check("");
    world.told.insert(node_id('c'), Vec::new());
    world.told.remove(&node_id('b'));
    world.check("");
}

#[test]
fn load_is_shared_and_ports_are_apart() {
    let mut world = World::new("abcdef");
    world.says("a-b a-c b-c").check("a-b:d0 a-c:e0 b-c:f0");
    let mut world = World::new("abcdef");
    // a and b have e in common: each pair a port of its own there.
    world.says("a-b a-c a-d b-d a-f b-f").check("a-b:e0 a-c:e1 a-d:e2 a-f:e3 b-d:c0 b-f:c1");
}

#[test]
fn without_a_tunnel_there_is_nothing_to_pass_on() {
    let mut world = World::new("abc");
    world.says("a-b").check("a-b:c0");
    let cluster = world.state.cluster().unwrap();
    let cluster = warren_model::Cluster {
        overlay: OverlayKind::Vxlan,
        ..warren_model::Cluster::clone(cluster)
    };
    apply(&mut world.state, vec![Mutation::SetCluster(cluster)]);
    world.check("");
}

#[test]
fn what_nodes_say_is_bounded_and_who_failed_is_tried_again() {
    use super::book::{CUTS_MAX, CutBook, cuts, wire};
    let many = vec![Cut { node: node_id('b'), via_lost: None }; CUTS_MAX + 1];
    assert_eq!(cuts(wire(&many)).len(), CUTS_MAX);
    let nonsense = warren_proto::v1::Cut { node: vec![1], via_lost: vec![] };
    assert!(cuts(vec![nonsense]).is_empty());
    let mut world = World::new("abc");
    world.says("a-b").check("a-b:c0");
    let book = CutBook::default();
    let moved = book.watch();
    book.tell(node_id('a'), vec![Cut { node: node_id('b'), via_lost: Some(node_id('c')) }]);
    assert!(moved.has_changed().unwrap());
    let pair = (ends(node_id('a'), node_id('b')), node_id('c'));
    let read = book.read(&world.state, 1000);
    assert_eq!((read.failed.contains(&pair), read.wake_ms), (true, Some(31_000)));
    book.tell(node_id('a'), vec![Cut { node: node_id('b'), via_lost: None }]);
    assert!(book.read(&world.state, 30_999).failed.contains(&pair));
    let read = book.read(&world.state, 31_000);
    assert!(read.failed.is_empty() && read.told.len() == 1);
    // Who is no member any more said nothing.
    book.tell(node_id('z'), Vec::new());
    assert_eq!(book.read(&world.state, 40_000).told.len(), 1);
}
