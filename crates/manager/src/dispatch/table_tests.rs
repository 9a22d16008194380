//! Tables of nodes: a world, a change, what each of them is told.

use proptest::prelude::*;
use warren_model::network::NetworkSpec;
use warren_model::node::{Availability, Description};
use warren_model::node_table::TablePeers;
use warren_model::policy::{PolicyAction, PolicySpec};
use warren_model::service::{PortSpec, Protocol, ServiceSpec};
use warren_model::task::{TaskState, TaskStatus};
use warren_model::{PolicyId, TaskId, Time};
use warren_state::change::Mutation;

use super::*;
use crate::testing::{apply, node_id, spec, task_id, world};

fn network_id(name: &str) -> NetworkId {
    let mut bytes = [0; 10];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    NetworkId::from_bytes(bytes)
}

fn service_id(n: u8) -> ServiceId {
    ServiceId::from_bytes([100 + n; 10])
}

fn on(spec: ServiceSpec, networks: &[&str]) -> ServiceSpec {
    let networks = networks.iter().map(|name| Attachment::new(name.parse().unwrap()));
    ServiceSpec { networks: networks.collect(), ..spec }
}

fn published(mut spec: ServiceSpec, mode: PublishMode) -> ServiceSpec {
    let (protocol, bind) = (Protocol::Tcp, Ipv4Addr::UNSPECIFIED);
    spec.ports = vec![PortSpec { protocol, bind, published: 8080, target: 80, mode, name: None }];
    spec
}

fn address(n: u8) -> Ipv4Addr {
    [10, 128, 0, n].into()
}

/// Nodes `a`, `b`, `c`; networks `back` and `front`; `web` on back, `api` on front, `db` on both,
/// each with its tasks as in `SLOT@NODE`.
fn networked(tasks: &[(u8, &str)]) -> State {
    let mut state = world("");
    let grant = |letter, block: &str| {
        let block = block.parse().unwrap();
        Mutation::GrantBlock { id: node_id(letter), block }
    };
    apply(&mut state, vec![Mutation::CreateNode(crate::testing::node('c'))]);
    let networks = ["default", "back", "front"].map(|name| Mutation::CreateNetwork {
        id: network_id(name),
        spec: NetworkSpec::new(name.parse().unwrap()),
    });
    apply(&mut state, networks.into());
    apply(
        &mut state,
        vec![grant('a', "10.128.0.0/24"), grant('b', "10.128.1.0/24"), grant('c', "10.128.2.0/24")],
    );
    let specs = [
        on(spec("web", 9), &["back"]),
        on(spec("api", 9), &["front"]),
        on(spec("db", 9), &["back", "front"]),
    ];
    for (n, spec) in (0..).zip(specs) {
        apply(&mut state, vec![Mutation::CreateService { id: service_id(n), spec }]);
    }
    for (number, (service, place)) in (1..).zip(tasks) {
        let (slot, letter) = place.split_once('@').unwrap();
        let letter = letter.chars().next().unwrap();
        add(&mut state, service_id(*service), number, slot.parse().unwrap(), letter);
    }
    state
}

fn add(state: &mut State, service: ServiceId, number: u8, slot: u32, letter: char) {
    let node = node_id(letter);
    let address = state.node(node).unwrap().blocks[0].nth(u64::from(number) + 1);
    let task = Task {
        id: task_id(number),
        service,
        slot,
        run: 0,
        template: 1,
        node: Some(node),
        address,
        desired: Desired::Running,
        status: TaskStatus::new(TaskState::Assigned, Time(0)),
        created: Time(0),
        devices: Default::default(),
        origin: None,
        revision: 0,
    };
    apply(state, vec![Mutation::CreateTask(task)]);
    apply(state, vec![report(number, letter, TaskState::Running)]);
}

fn report(number: u8, letter: char, state: TaskState) -> Mutation {
    let status = TaskStatus::new(state, Time(1));
    Mutation::ReportTask { id: task_id(number), node: node_id(letter), status }
}

/// `back: web[1 2!] …`: networks with their services, `!` on tasks that are no backend; then
/// what is known for its ports alone.
fn show(table: &NodeTable) -> String {
    let tasks = |service: &TableService| {
        let one = |task: &TableTask| {
            let number = task.task.as_bytes()[9];
            format!("{number}{}", if task.ready { "" } else { "!" })
        };
        format!("{}[{}]", service.name, words(service.tasks.iter().map(one)))
    };
    let networks = table.networks.iter().map(|(id, network)| {
        format!("{}: {}", network.name, words(table.users(*id).map(|(_, s)| tasks(s))))
    });
    let mesh = table.services.values().filter(|service| service.on.is_empty());
    let mesh = words(mesh.map(|service| tasks(service)));
    let mut all: Vec<String> = networks.collect();
    all.extend((!mesh.is_empty()).then(|| format!("ports: {mesh}")));
    all.join(" | ")
}

fn words(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

const WORLD: [(u8, &str); 4] = [(0, "1@a"), (1, "1@b"), (2, "1@b"), (0, "2@c")];

#[test]
fn a_node_is_told_of_networks_that_its_tasks_are_on() {
    let view = networked(&WORLD);
    let told = |letter| show(&complete(&view, node_id(letter)));
    assert_eq!(told('a'), "back: web[1 4] db[3]");
    assert_eq!(told('b'), "back: web[1 4] db[3] | front: api[2] db[3]");
    assert_eq!(told('c'), "back: web[1 4] db[3]");
    let table = complete(&view, node_id('a'));
    // Of a service that is on another network, too, only the common one is named.
    let db = &table.services[&service_id(2)];
    assert_eq!(db.on.iter().map(|on| on.network).collect::<Vec<_>>(), [network_id("back")]);
    let peers: Vec<String> =
        table.peers.values().map(|peer| format!("{} {}", peer.number, peer.blocks[0])).collect();
    assert_eq!(peers, ["1 10.128.0.0/24", "2 10.128.1.0/24", "3 10.128.2.0/24"]);
}

#[test]
fn host_names_are_told_to_those_who_may_ask_for_them() {
    let mut view = networked(&WORLD);
    let mut boxed = published(on(spec("web", 9), &["back"]), PublishMode::Ingress);
    boxed.task.hostname = Some("box".to_owned());
    apply(&mut view, vec![Mutation::UpdateService { id: service_id(0), spec: boxed.clone() }]);
    let told =
        |view: &State| complete(view, node_id('b')).services[&service_id(0)].hostname.clone();
    assert_eq!(told(&view).as_deref(), Some("box"));
    boxed.networks = on(spec("web", 9), &["default"]).networks;
    apply(&mut view, vec![Mutation::UpdateService { id: service_id(0), spec: boxed }]);
    assert_eq!(told(&view), None);
    let peers = complete(&view, node_id('a')).peers;
    let names: Vec<String> = peers.values().map(|peer| peer.name.clone()).collect();
    let hosts: Vec<String> = view.nodes().map(|node| node.description.hostname.clone()).collect();
    assert_eq!(names, hosts);
}

#[test]
fn of_published_ports_every_node_is_told_and_of_nothing_else() {
    let mut view = networked(&WORLD);
    let ingress = published(on(spec("api", 9), &["front"]), PublishMode::Ingress);
    apply(&mut view, vec![Mutation::UpdateService { id: service_id(1), spec: ingress }]);
    let table = complete(&view, node_id('a'));
    assert_eq!(show(&table), "back: web[1 4] db[3] | ports: api[2]");
    let api = &table.services[&service_id(1)];
    assert_eq!((api.on.len(), api.ports.len()), (0, 1));
    apply(&mut view, vec![report(2, 'b', TaskState::Draining)]);
    let table = complete(&view, node_id('a'));
    assert_eq!(show(&table), "back: web[1 4] db[3] | ports: api[]");
    let host = published(on(spec("api", 9), &["front"]), PublishMode::Host);
    apply(&mut view, vec![Mutation::UpdateService { id: service_id(1), spec: host }]);
    assert_eq!(show(&complete(&view, node_id('a'))), "back: web[1 4] db[3]");
}

/// What nodes `a` and `b` know after `mutations`, and which of `a`, `b`, `c` were woken. Whatever
/// happens, changes lead to the same as beginning anew.
#[track_caller]
fn check(mutations: Vec<Mutation>, expected: &str) {
    let old = networked(&WORLD);
    let mut new = old.clone();
    let events = apply(&mut new, mutations);
    let told = ['a', 'b'].map(|letter| {
        let node = node_id(letter);
        let mut table = complete(&old, node);
        let change = changes(&old, &new, node);
        let said = change.is_some();
        if let Some(change) = change {
            table.apply(change);
        }
        assert_eq!(table, complete(&new, node), "of {letter}");
        if said { show(&table) } else { ".".to_owned() }
    });
    let woken: String = match crate::dispatch::assign::touched(&old, &new, Some(&events)) {
        crate::dispatch::assign::Touched::Everyone => "all".to_owned(),
        crate::dispatch::assign::Touched::Nodes(nodes) => {
            ['a', 'b', 'c'].iter().filter(|l| nodes.contains(&node_id(**l))).collect()
        }
    };
    assert_eq!(format!("{} // {} // {woken}", told[0], told[1]), expected);
}

#[test]
fn what_does_not_run_or_is_not_wanted_leaves_at_once() {
    let b = "back: web[1! 4] db[3] | front: api[2] db[3]";
    let a = "back: web[1! 4] db[3]";
    check(vec![report(1, 'a', TaskState::Draining)], &format!("{a} // {b} // all"));
    let shutdown = Mutation::SetDesired { id: task_id(1), desired: Desired::Shutdown };
    check(vec![shutdown], &format!("{a} // {b} // all"));
    let down = Mutation::SetNodeStatus { id: node_id('a'), status: NodeStatus::Down };
    check(vec![down], &format!("{a} // {b} // all"));
    // One that has ended is no member either, and its node on no network any more.
    check(
        vec![report(1, 'a', TaskState::Failed)],
        " // back: web[4] db[3] | front: api[2] db[3] // all",
    );
    // Of what is not on its networks a node hears nothing.
    check(
        vec![report(2, 'b', TaskState::Draining)],
        ". // back: web[1 4] db[3] | front: api[2!] db[3] // b",
    );
}

#[test]
fn what_says_nothing_new_says_nothing() {
    let mut status = TaskStatus::new(TaskState::Running, Time(1));
    status.pid = 77;
    let again = Mutation::ReportTask { id: task_id(1), node: node_id('a'), status };
    check(vec![again], ". // . // ");
    let (id, availability) = (node_id('c'), Availability::Pause);
    let pause = Mutation::SetAvailability { id, availability, deadline_ms: None };
    check(vec![pause], ". // . // c");
    let labels = [("rack".to_owned(), "1".to_owned())].into();
    check(vec![Mutation::SetLabels { id: node_id('c'), labels }], ". // . // c");
    let mut image = on(spec("web", 9), &["back"]);
    image.task.image = "other".into();
    // What its tasks were made of until now is to be kept where they are, and by that alone.
    check(vec![Mutation::UpdateService { id: service_id(0), spec: image }], ". // . // ac");
}

#[test]
fn networks_come_with_the_first_task_and_go_with_the_last() {
    let task = |place: Option<NodeId>| Task {
        id: task_id(9),
        service: service_id(1),
        slot: 2,
        run: 0,
        template: 1,
        node: place,
        address: place.map(|_| address(9)),
        desired: Desired::Running,
        status: TaskStatus::new(TaskState::Assigned, Time(0)),
        created: Time(0),
        devices: Default::default(),
        origin: None,
        revision: 0,
    };
    check(
        vec![Mutation::CreateTask(task(Some(node_id('a'))))],
        "back: web[1 4] db[3] | front: api[2 9!] db[3] // \
         back: web[1 4] db[3] | front: api[2 9!] db[3] // ab",
    );
    // The service moves to another network.
    let moved = on(spec("web", 9), &["front"]);
    check(
        vec![Mutation::UpdateService { id: service_id(0), spec: moved }],
        "front: web[1 4] api[2] db[3] // \
         back: db[3] | front: web[1 4] api[2] db[3] // all",
    );
}

#[test]
fn addresses_and_nodes_that_change() {
    let holder = VipHolder { service: service_id(1), network: network_id("front"), slot: 0 };
    let grant = Mutation::GrantVip { holder, address: [10, 192, 0, 7].into() };
    check(vec![grant], ". // back: web[1 4] db[3] | front: api[2] db[3] // b");
    let description = Description {
        hostname: "host-a".into(),
        address: "192.0.2.1:2377".into(),
        overlay_key: [7; 32],
        ..Description::default()
    };
    let same = "back: web[1 4] db[3] // back: web[1 4] db[3] | front: api[2] db[3] // all";
    check(vec![Mutation::DescribeNode { id: node_id('a'), description }], same);
    let block = "10.128.9.0/24".parse().unwrap();
    check(vec![Mutation::GrantBlock { id: node_id('c'), block }], same);
    let new = crate::testing::node('d');
    check(vec![Mutation::CreateNode(new)], same);
}

#[test]
fn relays_are_told_to_those_who_have_a_part_in_them() {
    let old = {
        let mut state = networked(&[]);
        apply(&mut state, vec![Mutation::CreateNode(crate::testing::node('d'))]);
        state
    };
    let id = node_id('a');
    let set = |state: &State, relays: &[(char, char, u8)]| {
        let relays = relays.iter().map(|(peer, via, slot)| Relay {
            peer: node_id(*peer),
            via: node_id(*via),
            slot: *slot,
        });
        let mut next = state.clone();
        let events = apply(&mut next, vec![Mutation::SetRelays { id, relays: relays.collect() }]);
        (next, events.into_iter().map(|event| event.message).collect::<Vec<_>>())
    };
    let (new, events) = set(&old, &[('b', 'c', 1)]);
    assert_eq!(events, ["does not reach host-b: by way of host-c"]);
    let relay = TableRelay { ends: [id, node_id('b')], via: node_id('c'), slot: 1 };
    for (letter, told) in [('a', true), ('b', true), ('c', true), ('d', false)] {
        let node = node_id(letter);
        let change = changes(&old, &new, node);
        assert_eq!(change.and_then(|change| change.relays), told.then(|| vec![relay]), "{letter}");
        assert_eq!(complete(&new, node).relays == [relay], told, "{letter}");
    }
    let told = |old: &State, new: &State| match concerned(old, new, BTreeSet::new(), &[id].into()) {
        Concerned::Nodes(nodes) => nodes.iter().map(|id| char::from(id.as_bytes()[0])).collect(),
        Concerned::Everyone => "all".to_owned(),
    };
    assert_eq!(told(&old, &new), "abc");
    let (other, events) = set(&new, &[('b', 'd', 0)]);
    assert_eq!(events, ["does not reach host-b: by way of host-d"]);
    assert_eq!(told(&new, &other), "abcd");
    assert_eq!(changes(&new, &other, node_id('c')).unwrap().relays, Some(vec![]));
    let (none, events) = set(&other, &[]);
    assert_eq!(
        (told(&other, &none).as_str(), events),
        ("abd", vec!["reaches host-b itself again".to_owned()])
    );
    // What makes no sense is refused.
    let refused = |relays: Vec<Relay>| {
        let mutations = vec![Mutation::SetRelays { id: node_id('b'), relays }];
        let transaction = warren_state::change::Transaction { mutations, ..Default::default() };
        let outcome = old.clone().apply(old.time(), &[transaction], &mut Vec::new());
        assert!(matches!(outcome[..], [warren_state::change::Outcome::Rejected(_)]), "{outcome:?}");
    };
    let relay = |peer, via, slot| Relay { peer: node_id(peer), via: node_id(via), slot };
    refused(vec![relay('a', 'c', 0)]);
    refused(vec![relay('c', 'c', 0)]);
    refused(vec![relay('c', 'b', 0)]);
    refused(vec![relay('c', 'z', 0)]);
    refused(vec![relay('c', 'a', Relay::SLOTS)]);
    refused(vec![relay('d', 'a', 0), relay('c', 'a', 0)]);
}

#[test]
fn underlay_addresses_are_without_ports() {
    let hosts = ["10.0.0.1:2377", "[fd00::1]:2377", "db.example.org:1", ""].map(host);
    assert_eq!(hosts, ["10.0.0.1", "fd00::1", "db.example.org", ""]);
}

#[test]
fn large_updates_go_in_parts() {
    let service = |n: u32| {
        let tasks = vec![v1::NetTask { task: vec![7; 10], ..v1::NetTask::default() }; 1000];
        let id = n.to_be_bytes().to_vec();
        v1::NetService { id, name: "web".into(), tasks, ..v1::NetService::default() }
    };
    let update = v1::NetUpdate {
        complete: true,
        removed_peers: vec![vec![1; 10]],
        services: (0..200).map(service).collect(),
        ..v1::NetUpdate::default()
    };
    let parts = parts(update.clone());
    assert!(parts.len() > 2, "{}", parts.len());
    let (last, others) = parts.split_last().unwrap();
    assert!(!last.more && others.iter().all(|part| part.more));
    assert!(parts[0].complete && parts[1..].iter().all(|part| !part.complete));
    let services: Vec<_> = parts.iter().flat_map(|part| part.services.clone()).collect();
    assert_eq!(services, update.services);
    assert!(parts.iter().all(|part| prost::Message::encoded_len(part) <= PART_BYTES + 64));
    assert_eq!(super::parts(v1::NetUpdate::default()), [v1::NetUpdate::default()]);
}

fn policy_id(n: u8) -> PolicyId {
    PolicyId::from_bytes([200 + n; 10])
}

/// `from=A,B to=C`, as people write the ends.
fn policy(name: &str, action: &str, words: &[&str]) -> PolicySpec {
    let mut spec = PolicySpec {
        name: name.parse().unwrap(),
        labels: Default::default(),
        action: PolicyAction::ALL.into_iter().find(|a| a.as_str() == action).unwrap(),
        from: vec![],
        to: vec![],
        ports: vec![],
        priority: PolicySpec::PRIORITY,
    };
    for word in words {
        let (key, peers) = word.split_once('=').unwrap();
        let peers = peers.split(',').map(|peer| peer.parse().unwrap()).collect();
        if key == "from" { spec.from = peers } else { spec.to = peers }
    }
    spec
}

/// What node `letter` is told of policies: `p web>db`, with `*` for anybody.
fn told_policies(view: &State, letter: char) -> String {
    let name = |id: &ServiceId| view.service(*id).unwrap().spec.name.to_string();
    let end = |peers: &Option<TablePeers>| {
        let Some(TablePeers { services, ranges, outside }) = peers else { return "*".to_owned() };
        let mut all: Vec<String> = services.iter().map(name).collect();
        all.extend(ranges.iter().map(ToString::to_string));
        all.extend(outside.then(|| "outside".to_owned()));
        all.join(",")
    };
    let table = complete(view, node_id(letter));
    let policies = table.policies.values();
    words(policies.map(|p| format!("{} {}>{}", p.name, end(&p.from), end(&p.to))))
}

#[test]
fn policies_are_told_where_they_matter() {
    let mut view = networked(&WORLD);
    let mut make = |n: u8, name: &str, words: &[&str]| {
        let spec = policy(name, "deny", words);
        apply(&mut view, vec![Mutation::CreatePolicy { id: policy_id(n), spec }]);
    };
    make(0, "p", &["from=api", "to=db"]);
    make(1, "q", &["to=web,outside"]);
    make(2, "r", &["from=network=front", "to=192.0.2.0/24"]);
    // Nodes `a` and `c` run web alone, `b` runs api and db.
    assert_eq!(told_policies(&view, 'b'), "p api>db q *>web,outside r api,db>192.0.2.0/24");
    assert_eq!(told_policies(&view, 'a'), "q *>web,outside");
    // Of api, which is on no network of its own, it does not hear.
    apply(
        &mut view,
        vec![Mutation::CreatePolicy {
            id: policy_id(3),
            spec: policy("s", "only-from", &["from=api,db", "to=web"]),
        }],
    );
    assert_eq!(told_policies(&view, 'c'), "q *>web,outside s db>web");
    let both = on(spec("api", 9), &["back", "front"]);
    apply(&mut view, vec![Mutation::UpdateService { id: service_id(1), spec: both }]);
    assert_eq!(told_policies(&view, 'c'), "q *>web,outside s api,db>web");
    // One that is gone is nobody, and somebody once it is back.
    let remove =
        [Mutation::RemoveService { id: service_id(1) }, Mutation::DropTask { id: task_id(2) }];
    apply(&mut view, vec![report(2, 'b', TaskState::Removed)]);
    apply(&mut view, remove.into());
    apply(&mut view, vec![Mutation::DropService { id: service_id(1) }]);
    assert_eq!(told_policies(&view, 'c'), "q *>web,outside s db>web");
    let api = Mutation::CreateService { id: service_id(7), spec: on(spec("api", 9), &["back"]) };
    apply(&mut view, vec![api]);
    assert_eq!(told_policies(&view, 'c'), "q *>web,outside s db,api>web");
}

fn any_step() -> impl Strategy<Value = (u8, u8, u8)> {
    (0..14u8, 0..5u8, 0..3u8)
}

/// Applies what may happen, if the state takes it.
fn step(state: &mut State, (what, which, other): (u8, u8, u8)) {
    let (task, letter) = (task_id(which + 1), ['a', 'b', 'c'][usize::from(other)]);
    let networks: [&[&str]; 5] = [&["back"], &["front"], &["back", "front"], &[], &["default"]];
    let service = service_id(other);
    let name = ["web", "api", "db"][usize::from(other)];
    let at = |state: &State| state.task(task).and_then(|task| task.node);
    let report = |state: &State, to: TaskState| {
        let node = at(state).unwrap_or_else(|| node_id('a'));
        let attempt = u32::from(other);
        Mutation::ReportTask {
            id: task,
            node,
            status: TaskStatus { attempt, ..TaskStatus::new(to, Time(1)) },
        }
    };
    let mutation = match what {
        0 => report(state, TaskState::Running),
        1 => report(state, TaskState::Draining),
        2 => report(state, TaskState::Failed),
        3 => Mutation::SetDesired { id: task, desired: Desired::Shutdown },
        4 => Mutation::SetNodeStatus { id: node_id(letter), status: NodeStatus::Down },
        5 => Mutation::SetNodeStatus { id: node_id(letter), status: NodeStatus::Ready },
        6 => {
            let spec = on(spec(name, 9), networks[usize::from(which)]);
            Mutation::UpdateService { id: service, spec }
        }
        7 => {
            let spec = on(spec(name, 9), networks[usize::from(which)]);
            let spec = published(spec, PublishMode::Ingress);
            // One port each.
            let mut spec = spec;
            spec.ports[0].published += u16::from(other);
            Mutation::UpdateService { id: service, spec }
        }
        8 => Mutation::GrantVip {
            holder: VipHolder {
                service,
                network: network_id(networks[2][usize::from(which % 2)]),
                slot: 0,
            },
            address: [10, 192, 0, which + 1].into(),
        },
        9 => Mutation::ReleaseVip { address: [10, 192, 0, which + 1].into() },
        10 => Mutation::DropTask { id: task },
        12 => {
            let peer = ["to=network=front", "from=web", "to=db", "from=network=back", "to=outside"];
            let spec = policy(name, "deny", &[peer[usize::from(which)]]);
            Mutation::CreatePolicy { id: policy_id(other), spec }
        }
        13 => Mutation::RemovePolicy { id: policy_id(other) },
        _ => {
            let id = TaskId::from_bytes([0, 0, 0, 0, 0, 0, 0, which, 9, other]);
            let node = Some(node_id(letter));
            let block = state.node(node_id(letter)).map(|node| node.blocks[0]);
            let address = block.and_then(|block| block.nth(u64::from(which) + 20));
            Mutation::CreateTask(Task {
                id,
                service,
                slot: 3,
                run: 0,
                template: 1,
                node,
                address,
                desired: Desired::Running,
                status: TaskStatus::new(TaskState::Assigned, Time(0)),
                created: Time(0),
                devices: Default::default(),
                origin: None,
                revision: 0,
            })
        }
    };
    let transaction =
        warren_state::change::Transaction { mutations: vec![mutation], ..Default::default() };
    state.apply(state.time().plus_ms(1), &[transaction], &mut vec![]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Changes over any number of steps lead to the same as beginning anew; who is not woken had
    /// nothing to be told; and nothing is told of networks that a node is not on.
    #[test]
    fn changes_lead_to_the_same(
        before in prop::collection::vec(any_step(), 0..12),
        after in prop::collection::vec(any_step(), 1..12),
    ) {
        let mut old = networked(&WORLD);
        before.into_iter().for_each(|what| step(&mut old, what));
        let mut new = old.clone();
        after.into_iter().for_each(|what| step(&mut new, what));
        for letter in ['a', 'b', 'c'] {
            let node = node_id(letter);
            let mut table = complete(&old, node);
            if let Some(change) = changes(&old, &new, node) {
                prop_assert!(!change.is_empty());
                table.apply(change);
            }
            prop_assert_eq!(&table, &complete(&new, node));
            for service in table.services.values() {
                let known = service.on.iter().all(|on| table.networks.contains_key(&on.network));
                let mesh = service.mesh_ports().next().is_some();
                prop_assert!(known && (mesh || !service.on.is_empty()));
            }
        }
    }

    #[test]
    fn who_is_not_woken_had_nothing_to_be_told(
        before in prop::collection::vec(any_step(), 0..12),
        last in any_step(),
    ) {
        let mut old = networked(&WORLD);
        before.into_iter().for_each(|what| step(&mut old, what));
        let mut new = old.clone();
        step(&mut new, last);
        // Of policies everybody is woken: `touched` sees to it.
        prop_assume!(!new.policies_differ(&old));
        let nodes: BTreeSet<NodeId> = new.nodes_since(&old).into_iter().collect();
        let services = new.services_since(&old).into_iter().collect();
        if let Concerned::Nodes(woken) = concerned(&old, &new, services, &nodes) {
            for letter in ['a', 'b', 'c'] {
                let silent = !woken.contains(&node_id(letter));
                prop_assert!(!silent || changes(&old, &new, node_id(letter)).is_none(), "{letter}");
            }
        }
    }
}
