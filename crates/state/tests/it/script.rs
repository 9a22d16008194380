//! The smallest notation for transactions: one a line, mutations parted by `;`.
//!
//! ```text
//! cluster | node a [10.128.0.0/24] | describe a HOST | down a | ready a | drain a | grant a CIDR
//! service web [PORT…] | update web [PORT…] [image=I] [on=back[:ADDRESS]] [dnsrr] [slots] | remove web | drop-service web
//! task 1 web.2 [t3] [@a .5] | place 1 @a .5 | desired 1 shutdown | explain 1 TEXT
//! network back [internal] [subnet=CIDR] [v6=CIDR] | rm-network back
//! policy p ACTION [from=A,B] [to=C] [ports=D] [priority=N] | rm-policy p
//! has a [BYTES for the system] [gpu:4] | taint a [KEY=VALUE:EFFECT…] | update web reserve=512|gpu:2
//! vip web[.SLOT] back ADDRESS | release ADDRESS
//! report 1 @a running#2 [error=E] [since=T] | drop 1
//! ```
//! A line may begin with `req=ID:HASH` and with `expect KEY=REVISION` parts. Ids are
//! the words themselves, filled with zeros.

use std::net::Ipv4Addr;

use warren_model::Time;
use warren_model::cluster::{Cluster, Subnet};
use warren_model::defaults::Defaults;
use warren_model::health::{Health, HealthState};
use warren_model::id::{ClusterId, NetworkId, NodeId, PolicyId, ServiceId, TaskId};
use warren_model::job::Schedule;
use warren_model::network::{NetworkSpec, VipHolder};
use warren_model::node::{Availability, Description, Forgotten, ForgottenChoice, Node, NodeStatus};
use warren_model::operator::Operator;
use warren_model::policy::{PolicyAction, PolicySpec};
use warren_model::resources::Resources;
use warren_model::service::{
    Attachment, EndpointMode, Mode, PortSpec, Protocol, PublishMode, ServiceSpec, TaskTemplate,
};
use warren_model::task::{Desired, Task, TaskState, TaskStatus};
use warren_state::State;
use warren_state::change::{Expect, Key, Mutation, Outcome, Request, Transaction};

pub(crate) fn bytes(word: &str) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..word.len()].copy_from_slice(word.as_bytes());
    bytes
}

pub(crate) fn node(word: &str) -> NodeId {
    NodeId::from_bytes(bytes(word.trim_start_matches('@')))
}

pub(crate) fn service(word: &str) -> ServiceId {
    ServiceId::from_bytes(bytes(word))
}

pub(crate) fn task(word: &str) -> TaskId {
    TaskId::from_bytes(bytes(word))
}

pub(crate) fn network(word: &str) -> NetworkId {
    NetworkId::from_bytes(bytes(word))
}

pub(crate) fn policy(word: &str) -> PolicyId {
    PolicyId::from_bytes(bytes(word))
}

pub(crate) fn policy_spec(name: &str, action: &str, words: &[&str]) -> PolicySpec {
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
        let (key, value) = word.split_once('=').unwrap();
        let peers = || value.split(',').map(|peer| peer.parse().unwrap()).collect();
        match key {
            "from" => spec.from = peers(),
            "to" => spec.to = peers(),
            "ports" => spec.ports = value.split(',').map(|port| port.parse().unwrap()).collect(),
            _ => spec.priority = value.parse().unwrap(),
        }
    }
    spec
}

pub(crate) fn subnet(word: &str) -> Subnet {
    let (address, prefix) = word.split_once('/').unwrap();
    Subnet { address: address.parse().unwrap(), prefix: prefix.parse().unwrap() }
}

pub(crate) fn spec(name: &str, words: &[&str]) -> ServiceSpec {
    let mut spec = ServiceSpec::new(
        name.parse().unwrap(),
        TaskTemplate { image: "nginx".into(), ..TaskTemplate::default() },
    );
    for word in words {
        match word.split_once('=') {
            Some(("image", image)) => spec.task.image = image.into(),
            Some(("on", place)) => spec.networks.push(attachment(place)),
            Some(("reserve", bytes)) => spec.task.reserve = resources(&[bytes]),
            Some(("replicas", n)) => spec.mode = Mode::Replicated { replicas: n.parse().unwrap() },
            Some(("job", n)) => {
                let (completions, max_concurrent) = (n.parse().unwrap(), 2);
                spec.mode = Mode::ReplicatedJob { completions, max_concurrent };
            }
            Some(("every", rule)) => {
                let mut schedule = Schedule::new("@hourly");
                schedule.concurrency = rule.parse().unwrap();
                spec.job.schedule = Some(schedule);
            }
            Some(other) => panic!("unknown option {other:?}"),
            None if *word == "dnsrr" => spec.endpoint.mode = EndpointMode::Dnsrr,
            None if *word == "slots" => spec.endpoint.slot_addresses = true,
            None => spec.ports.push(port(word)),
        }
    }
    spec
}

/// `512`: of memory; `gpu:2`.
pub(crate) fn resources(words: &[&str]) -> Resources {
    let mut resources = Resources::default();
    for word in words {
        match word.split_once(':') {
            None => resources.memory_bytes = word.parse().unwrap(),
            Some((name, amount)) => {
                resources.generic.insert(name.into(), amount.parse().unwrap());
            }
        }
    }
    resources
}

/// `back`, `back:10.192.0.9`.
fn attachment(place: &str) -> Attachment {
    let (network, address) = place.split_once(':').unwrap_or((place, ""));
    let address = (!address.is_empty()).then(|| address.parse().unwrap());
    Attachment { address, ..Attachment::new(network.parse().unwrap()) }
}

fn network_spec(name: &str, words: &[&str]) -> NetworkSpec {
    let mut spec = NetworkSpec::new(name.parse().unwrap());
    for word in words {
        match word.split_once('=') {
            None if *word == "internal" => spec.internal = true,
            Some(("subnet", subnet)) => spec.subnet = Some(subnet.parse().unwrap()),
            Some(("v6", subnet)) => spec.subnet_v6 = Some(subnet.parse().unwrap()),
            other => panic!("unknown option {other:?}"),
        }
    }
    spec
}

/// `web`, `web.2`.
fn holder(name: &str, on: &str) -> VipHolder {
    let (name, slot) = name.split_once('.').unwrap_or((name, "0"));
    VipHolder { service: service(name), network: network(on), slot: slot.parse().unwrap() }
}

/// `8080`, `127.0.0.1:8080`, `53/udp`.
fn port(word: &str) -> PortSpec {
    let (word, protocol) = match word.strip_suffix("/udp") {
        Some(word) => (word, Protocol::Udp),
        None => (word, Protocol::Tcp),
    };
    let (bind, published) = word.rsplit_once(':').unwrap_or(("0.0.0.0", word));
    PortSpec {
        protocol,
        bind: bind.parse().unwrap(),
        published: published.parse().unwrap(),
        target: 80,
        mode: PublishMode::Ingress,
        name: None,
    }
}

fn new_node(word: &str, blocks: &[&str]) -> Node {
    Node {
        manager: true,
        status: NodeStatus::Ready,
        blocks: blocks.iter().map(|b| subnet(b)).collect(),
        ..Node::new(node(word), Description { hostname: word.into(), ..Description::default() })
    }
}

fn state_named(word: &str) -> TaskState {
    TaskState::ALL.into_iter().find(|state| state.as_str() == word).unwrap()
}

fn new_task(id: &str, place: &str, words: &[&str], address: Option<Ipv4Addr>) -> Task {
    let (name, slot) = place.split_once('.').unwrap();
    let on = words.iter().find_map(|word| word.strip_prefix('@'));
    let template = words.iter().find_map(|word| word.strip_prefix('t'));
    let state = if on.is_some() { TaskState::Assigned } else { TaskState::Pending };
    Task {
        id: task(id),
        service: service(name),
        slot: slot.parse().unwrap(),
        template: template.map_or(1, |t| t.parse().unwrap()),
        run: 0,
        node: on.map(node),
        address,
        desired: Desired::Running,
        status: TaskStatus::new(state, Time(0)),
        created: Time(0),
        devices: Default::default(),
        origin: None,
        revision: 0,
    }
}

pub(crate) fn status(words: &[&str]) -> TaskStatus {
    let (state, attempt) = words[0].split_once('#').unwrap();
    let mut status = TaskStatus::new(state_named(state), Time(5));
    status.attempt = attempt.parse().unwrap();
    for word in &words[1..] {
        match word.split_once('=').unwrap() {
            ("error", error) => status.error = Some(error.into()),
            ("health", health) => {
                let (state, since) = health.split_once('@').unwrap_or((health, "5"));
                let state = HealthState::ALL.into_iter().find(|s| s.as_str() == state).unwrap();
                status.health = Some(Health { state, since: Time(since.parse().unwrap()) });
            }
            ("since", since) => status.since = Time(since.parse().unwrap()),
            other => panic!("unknown option {other:?}"),
        }
    }
    status
}

/// The number after a word's beginning.
fn number(words: &[&str], begin: &str) -> Option<u8> {
    words.iter().find_map(|word| word.strip_prefix(begin)).map(|number| number.parse().unwrap())
}

fn mutation(state: &State, text: &str) -> Mutation {
    let words: Vec<&str> = text.split_whitespace().collect();
    // `.5` is the fifth address of the node's first block, or a whole address.
    let address = words.iter().find_map(|word| {
        let id = node(words.iter().find(|w| w.starts_with('@'))?);
        match word.strip_prefix('.') {
            Some(last) => state.node(id)?.blocks.first()?.nth(last.parse().unwrap()),
            None => word.parse().ok(),
        }
    });
    match (words[0], &words[1..]) {
        ("cluster", rest) => Mutation::SetCluster(Cluster {
            defaults: Defaults {
                reserve_memory_bytes: number(rest, "default:").unwrap_or(0).into(),
                ..Defaults::default()
            },
            ..Cluster::new(ClusterId::from_bytes([1; 10]))
        }),
        ("node", [id, blocks @ ..]) => Mutation::CreateNode(new_node(id, blocks)),
        ("worker", [id, rest @ ..]) => {
            let key_hash = [number(rest, "key=").unwrap_or(0); 32];
            Mutation::CreateNode(Node { manager: false, key_hash, ..new_node(id, &[]) })
        }
        ("role", [id, role]) => Mutation::SetRole {
            id: node(id),
            manager: matches!(*role, "manager" | "both"),
            worker: matches!(*role, "worker" | "both"),
        },
        ("labels", [id, labels @ ..]) => {
            let pairs = labels.iter().map(|label| label.split_once('=').unwrap_or((label, "")));
            let labels = pairs.map(|(key, value)| (key.to_owned(), value.to_owned()));
            Mutation::SetLabels { id: node(id), labels: labels.collect() }
        }
        ("has", [id, generic @ ..]) => Mutation::SetResources {
            id: node(id),
            generic: resources(generic).generic,
            system_reserved: Resources { generic: [].into(), ..resources(generic) },
            defaults: Defaults::default(),
        },
        ("taint", [id, taints @ ..]) => Mutation::SetTaints {
            id: node(id),
            taints: taints.iter().map(|taint| taint.parse().unwrap()).collect(),
        },
        ("forgotten", [id, epoch, choice]) => {
            let choice = match *choice {
                "keep" => ForgottenChoice::Keep,
                _ => ForgottenChoice::Drop,
            };
            let forgotten = Forgotten { epoch: epoch.parse().unwrap(), choice };
            Mutation::SetForgotten { id: node(id), forgotten }
        }
        ("certificate", [id, rest @ ..]) => Mutation::SetCertificate {
            id: node(id),
            key_hash: [number(rest, "key=").unwrap_or(0); 32],
            not_after: Time(u64::from(number(rest, "until=").unwrap_or(0)) * 1000),
            issuer_hash: [number(rest, "issuer=").unwrap_or(0); 32],
        },
        ("rm", [id, rest @ ..]) => Mutation::RemoveNode {
            id: node(id),
            keep_until: Time(u64::from(number(rest, "until=").unwrap_or(200)) * 1000),
            force: rest.contains(&"force"),
        },
        ("operator", [name, role, rest @ ..]) => Mutation::PutOperator(Operator {
            name: name.parse().unwrap(),
            role: role.parse().unwrap(),
            token_hash: number(rest, "token=").map(|n| [n; 32]),
            key_hash: number(rest, "key=").map(|n| [n; 32]),
            expires: number(rest, "expires=").map(|n| Time(u64::from(n) * 1000)),
            created: Time(0),
            revision: 0,
        }),
        ("rm-operator", [name]) => Mutation::RemoveOperator { name: name.parse().unwrap() },
        ("restored", [epoch, at_least]) => Mutation::Restored {
            epoch: epoch.parse().unwrap(),
            revision_at_least: at_least.parse().unwrap(),
        },
        ("describe", [id, host]) => {
            let description = Description { hostname: (*host).into(), ..Description::default() };
            Mutation::DescribeNode { id: node(id), description }
        }
        ("down", [id]) => Mutation::SetNodeStatus { id: node(id), status: NodeStatus::Down },
        ("ready", [id]) => Mutation::SetNodeStatus { id: node(id), status: NodeStatus::Ready },
        ("drain", [id]) => {
            let (id, availability) = (node(id), Availability::Drain);
            Mutation::SetAvailability { id, availability, deadline_ms: None }
        }
        ("grant", [id, block]) => Mutation::GrantBlock { id: node(id), block: subnet(block) },
        ("network", [name, rest @ ..]) => {
            Mutation::CreateNetwork { id: network(name), spec: network_spec(name, rest) }
        }
        ("rm-network", [name]) => Mutation::RemoveNetwork { id: network(name) },
        ("policy", [name, action, rest @ ..]) => {
            Mutation::CreatePolicy { id: policy(name), spec: policy_spec(name, action, rest) }
        }
        ("rm-policy", [name]) => Mutation::RemovePolicy { id: policy(name) },
        ("vip", [name, on, address]) => {
            Mutation::GrantVip { holder: holder(name, on), address: address.parse().unwrap() }
        }
        ("release", [address]) => Mutation::ReleaseVip { address: address.parse().unwrap() },
        ("service", [name, rest @ ..]) => {
            Mutation::CreateService { id: service(name), spec: spec(name, rest) }
        }
        ("update", [name, rest @ ..]) => {
            Mutation::UpdateService { id: service(name), spec: spec(name, rest) }
        }
        ("rename", [name, other]) => {
            Mutation::UpdateService { id: service(name), spec: spec(other, &[]) }
        }
        ("remove", [name]) => Mutation::RemoveService { id: service(name) },
        ("drop-service", [name]) => Mutation::DropService { id: service(name) },
        ("task", [id, place, rest @ ..]) => {
            Mutation::CreateTask(new_task(id, place, rest, address))
        }
        ("place", [id, on, ..]) => Mutation::PlaceTask {
            id: task(id),
            node: node(on),
            address,
            devices: words
                .iter()
                .filter(|word| word.contains('/'))
                .map(|d| (*d).to_owned())
                .collect(),
        },
        ("desired", [id, desired]) => {
            let desired = match *desired {
                "running" => Desired::Running,
                "shutdown" => Desired::Shutdown,
                _ => Desired::Remove,
            };
            Mutation::SetDesired { id: task(id), desired }
        }
        ("explain", [id, error]) => {
            Mutation::ExplainTask { id: task(id), error: (*error).to_owned() }
        }
        ("report", [id, on, rest @ ..]) => {
            Mutation::ReportTask { id: task(id), node: node(on), status: status(rest) }
        }
        ("drop", [id]) => Mutation::DropTask { id: task(id) },
        other => panic!("unknown mutation {other:?}"),
    }
}

fn transaction(state: &State, line: &str) -> Transaction {
    let mut transaction = Transaction::default();
    for part in line.split(';').map(str::trim) {
        if let Some(request) = part.strip_prefix("req=") {
            let (id, hash) = request.split_once(':').unwrap();
            transaction.request = Some(Request {
                principal: "socket:0".into(),
                id: id.parse().unwrap(),
                hash: hash.parse().unwrap(),
            });
        } else if let Some(principal) = part.strip_prefix("as ") {
            transaction.principal = Some(principal.to_owned());
        } else if let Some(expect) = part.strip_prefix("expect ") {
            let (key, revision) = expect.split_once('=').unwrap();
            let key = match key.split_once(' ').unwrap_or((key, "")) {
                ("node", id) => Key::Node(node(id)),
                ("service", id) => Key::Service(service(id)),
                ("task", id) => Key::Task(task(id)),
                ("operator", name) => Key::Operator(name.parse().unwrap()),
                _ => Key::Cluster,
            };
            transaction.expects.push(Expect { key, revision: revision.parse().unwrap() });
        } else if !part.is_empty() {
            transaction.mutations.push(mutation(state, part));
        }
    }
    transaction
}

/// Applies a script, one entry a line at seconds 1, 2, …; a line `@SECONDS` sets the clock.
/// Returns the state and each line's outcome, `ok`, `again N` or why not.
pub(crate) fn run(script: &str) -> (State, Vec<String>) {
    let mut state = State::default();
    let mut outcomes = vec![];
    let mut seconds = 0;
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(to) = line.strip_prefix('@') {
            seconds = to.parse().unwrap();
            continue;
        }
        seconds += 1;
        let transaction = transaction(&state, line);
        let before = state.checksum();
        let mut events = vec![];
        let outcome = state.apply(Time(seconds * 1000), &[transaction], &mut events).remove(0);
        let revision = state.revision();
        assert!(events.iter().all(|event| event.revision == revision));
        assert_eq!(state.check(), Vec::<String>::new(), "after {line}");
        outcomes.push(match outcome {
            Outcome::Applied { .. } => {
                assert!(before != state.checksum());
                "ok".to_owned()
            }
            Outcome::Repeated { revision } => format!("again {revision}"),
            Outcome::Rejected(rejection) => {
                assert!(events.is_empty(), "a rejected transaction says nothing");
                readable(&rejection.to_string())
            }
        });
    }
    (state, outcomes)
}

/// Ids in a text as the words they were made of.
fn readable(text: &str) -> String {
    let word = |token: &str| {
        let id: TaskId = token.parse().ok()?;
        let text = std::str::from_utf8(id.as_bytes()).ok()?.trim_end_matches('\0');
        text.chars().all(|c| c.is_ascii_graphic()).then(|| text.to_owned())
    };
    let tokens = text.split(' ').map(|token| word(token).unwrap_or_else(|| token.to_owned()));
    tokens.collect::<Vec<_>>().join(" ")
}
