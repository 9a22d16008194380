//! Sets of assignments: complete ones, changes, what is refused.

use proptest::prelude::*;
use warren_model::job::Given;
use warren_model::node_table::TableService;
use warren_model::quantity::Time;
use warren_model::service::Endpoint;
use warren_model::task::TaskState;

use super::*;

fn task_id(letter: char) -> TaskId {
    TaskId::from_bytes([u8::try_from(letter).unwrap(); 10])
}

fn service_id(n: u8) -> ServiceId {
    ServiceId::from_bytes([n; 10])
}

fn task(letter: char, service: u8, template: u32) -> AssignedTask {
    let known = TaskStatus::new(TaskState::Assigned, Time(0));
    AssignedTask {
        id: task_id(letter),
        service: service_id(service),
        slot: 1,
        template,
        desired: Desired::Running,
        address: Some(Ipv4Addr::new(10, 0, 0, service)),
        devices: Default::default(),
        known,
        given: Given::default(),
    }
}

fn service(name: &str, templates: &[u32]) -> AssignedService {
    let templates = templates.iter().map(|number| (*number, Arc::new(TaskTemplate::default())));
    AssignedService {
        name: name.to_owned(),
        on_disconnect: OnDisconnect::StopAfter { ms: 7000 },
        templates: templates.collect(),
        ..AssignedService::default()
    }
}

/// `c2.7 a b` is a complete set of epoch 2, revision 7 with tasks a and b; `i5-6 c !a` changes
/// revision 5 into 6: c is there, a is gone. Tasks are of service 1, in capitals to be removed.
fn message(text: &str) -> Assignment {
    let mut words = text.split_whitespace();
    let head = words.next().unwrap();
    let mut out = Assignment { complete: head.starts_with('c'), ..Assignment::default() };
    if out.complete {
        let (epoch, revision) = head[1..].split_once('.').unwrap();
        let epoch = epoch.parse().unwrap();
        out.revision = revision.parse().unwrap();
        out.membership = Some(MembershipView { epoch, ..MembershipView::default() });
    } else {
        let (from, to) = head[1..].split_once('-').unwrap();
        (out.applies_to, out.revision) = (from.parse().unwrap(), to.parse().unwrap());
    }
    for word in words {
        match word.strip_prefix('!') {
            Some(gone) => out.removed_tasks.push(task_id(gone.chars().next().unwrap())),
            None => {
                let letter = word.chars().next().unwrap();
                let mut task = task(letter.to_ascii_lowercase(), 1, 1);
                if letter.is_ascii_uppercase() {
                    task.desired = Desired::Remove;
                }
                out.tasks.push(task);
            }
        }
    }
    out.services.push((service_id(1), service("web", &[1])));
    out
}

/// Prints after each message: `epoch.revision tasks[+kept]`, with `*` on a new epoch, or `older`
/// or `missed`.
#[track_caller]
fn check(messages: &[&str], expected: &[&str]) {
    let mut set = Set::default();
    let letters = |tasks: &BTreeMap<TaskId, AssignedTask>| {
        tasks.keys().map(|id| char::from(id.as_bytes()[0])).collect::<String>()
    };
    let mut out = Vec::new();
    for text in messages {
        let before = set.clone();
        let taken = set.apply(message(text));
        let state = format!("{}.{} {}", set.epoch(), set.revision, letters(&set.tasks));
        let kept = letters(&set.kept.tasks);
        let kept = if kept.is_empty() { kept } else { format!("+{kept}") };
        out.push(match taken {
            Ok(taken) => format!("{state}{kept}{}", if taken.new_epoch { "*" } else { "" }),
            Err(gap) => {
                assert_eq!(set, before, "a message that is not taken changes nothing");
                match gap {
                    Gap::Older { .. } => "older".to_owned(),
                    Gap::Missed { .. } => "missed".to_owned(),
                }
            }
        });
    }
    assert_eq!(out, expected);
}

#[test]
fn sets_go_forward() {
    check(&["c0.5 a b", "i5-6 c !a", "c0.6 c"], &["0.5 ab", "0.6 bc", "0.6 c"]);
    check(&["c0.5 a", "c0.4", "i5-4 b", "c0.5 b"], &["0.5 a", "older", "older", "0.5 b"]);
    check(&["i0-3 a", "c0.5 a", "i4-6 b"], &["missed", "0.5 a", "missed"]);
}

#[test]
fn a_newer_epoch_wins_and_what_it_does_not_know_is_kept() {
    check(&["c1.5 a b", "c2.3 a", "c1.9 b", "c2.2"], &["1.5 ab*", "2.3 a+b*", "older", "older"]);
    check(
        &["c1.5 a b", "c2.3 a", "c2.4 a b", "c2.5 a"],
        &["1.5 ab*", "2.3 a+b*", "2.4 ab", "2.5 a"],
    );
    check(
        &["c1.5 a b", "c2.3", "i3-4 !a c", "c3.1 c"],
        &["1.5 ab*", "2.3 +ab*", "2.4 c+b", "3.1 c+b*"],
    );
    check(&["c1.5 a B", "c2.3"], &["1.5 ab*", "2.3 +a*"]);
}

#[test]
fn kept_tasks_have_what_they_need() {
    let mut set = Set::default();
    let mut first = message("c1.5 a");
    first.tasks.push(task('b', 2, 3));
    first.services.push((service_id(2), service("db", &[3, 4])));
    set.apply(first).unwrap();
    assert_eq!(set.services[&service_id(2)].templates.len(), 1, "nobody refers to 4");
    set.apply(message("c2.3")).unwrap();
    assert_eq!(set.service(service_id(2)).unwrap().name, "db");
    assert!(set.template(service_id(2), 3).is_some());
    assert!(set.template(service_id(1), 1).is_some(), "web is known, its template only kept");
    let names: Vec<_> = set.all_services().map(|(_, service)| service.name.as_str()).collect();
    assert_eq!(names, ["web", "db"]);
    assert_eq!(set.all().count(), 2);
    set.drop_kept();
    assert_eq!((set.all().count(), set.all_services().count()), (0, 1));
}

#[test]
fn nonsense_costs_itself_alone() {
    use warren_proto::v1;
    let (mut wire, _) = {
        let mut set = Set::default();
        set.apply(message("c1.5 a b")).unwrap();
        set.to_wire()
    };
    wire.tasks[0].id = vec![1];
    wire.services[0].on_disconnect = Some(v1::OnDisconnect { kind: None });
    wire.membership.as_mut().unwrap().issuer_hash = vec![1, 2];
    wire.removed_tasks.push(vec![]);
    let parsed = Assignment::from(wire);
    assert_eq!((parsed.tasks.len(), parsed.services.len()), (1, 1));
    assert_eq!(parsed.services[0].1.on_disconnect, OnDisconnect::default());
    assert_eq!(parsed.membership, None);
    assert_eq!(parsed.problems.len(), 4, "{:?}", parsed.problems);
}

/// A part of a table with services of these letters.
fn part(complete: bool, letters: &str, gone: &str, more: bool) -> Option<TablePart> {
    let id = |letter: char| ServiceId::from_bytes([u8::try_from(letter).unwrap(); 10]);
    let service = |letter: char| {
        let service = TableService {
            name: letter.to_string().parse().unwrap(),
            on: vec![],
            endpoint: Endpoint::default(),
            ports: vec![],
            hostname: None,
            tasks: vec![],
        };
        (id(letter), Arc::new(service))
    };
    let change = TableChange {
        complete,
        services: letters.chars().map(service).collect(),
        removed_services: gone.chars().map(id).collect(),
        ..TableChange::default()
    };
    Some(TablePart { change, more })
}

/// The table's services after each message, `…` while parts are missing.
#[track_caller]
fn check_tables(messages: Vec<(&str, Option<TablePart>)>, expected: &[&str]) {
    let mut set = Set::default();
    let mut seen = Vec::new();
    for (text, table) in messages {
        // A message that is not taken changes nothing here either.
        let _ = set.apply(Assignment { table, ..message(text) });
        let names = set.table.services.values().map(|service| service.name.as_str());
        let more = if set.next_table.is_some() { "…" } else { "" };
        seen.push(format!("{}{more}", names.collect::<String>()));
    }
    assert_eq!(seen, expected);
}

#[test]
fn tables_are_whole_or_as_before() {
    check_tables(
        vec![
            ("c1.5", part(true, "ab", "", true)),
            ("i5-5", part(false, "c", "", true)),
            ("i5-5", part(false, "d", "", false)),
            ("i5-6", part(false, "e", "a", false)),
            ("i6-7", None),
            ("i7-8", part(false, "f", "", true)),
            // The session broke; the next begins anew.
            ("c1.9", part(true, "g", "", true)),
            ("i9-9", part(false, "h", "", false)),
            // Of a manager that is behind, and one that does not follow.
            ("c1.2", part(true, "x", "", false)),
            ("i4-12", part(true, "y", "", false)),
            // One of before there were tables.
            ("c1.10", None),
        ],
        &["…", "…", "abcd", "bcde", "bcde", "bcde…", "bcde…", "gh", "gh", "gh", "gh"],
    );
}

#[test]
fn a_table_that_is_the_same_is_the_same_one() {
    let mut set = Set::default();
    set.apply(Assignment { table: part(true, "ab", "", false), ..message("c1.5") }).unwrap();
    let before = Arc::clone(&set.table);
    set.apply(Assignment { table: part(true, "ab", "", false), ..message("c1.6") }).unwrap();
    assert!(Arc::ptr_eq(&before, &set.table));
    let alone = Assignment { table: part(false, "c", "", false), ..Assignment::default() };
    assert!(alone.is_table_alone() && !message("i5-6 a").is_table_alone());
    let (wire, kept) = set.to_wire();
    assert_eq!(Set::from_wire(wire, kept), (set, vec![]));
}

proptest! {
    /// Whatever comes in whatever order, (epoch, revision) never goes back, no task is both
    /// assigned and kept, and the wire carries all of it.
    #[test]
    fn never_backwards(messages in prop::collection::vec(
        (any::<bool>(), 0..3u64, 1..6u64, 1..6u64, "[a-d]{0,4}", "[a-d]{0,2}"), 0..12,
    )) {
        let mut set = Set::default();
        for (complete, epoch, applies_to, revision, tasks, gone) in messages {
            let head = if complete {
                format!("c{epoch}.{revision}")
            } else {
                format!("i{applies_to}-{revision}")
            };
            let mut text = head;
            tasks.chars().for_each(|letter| text.push_str(&format!(" {letter}")));
            gone.chars().for_each(|letter| text.push_str(&format!(" !{letter}")));
            let before = (set.epoch(), set.revision);
            let taken = set.apply(message(&text)).is_ok();
            prop_assert!((set.epoch(), set.revision) >= before);
            prop_assert!(taken || (set.epoch(), set.revision) == before);
            prop_assert!(set.kept.tasks.keys().all(|id| !set.tasks.contains_key(id)));
            let (wire, kept) = set.to_wire();
            let (again, problems) = Set::from_wire(wire, kept);
            prop_assert_eq!(problems, Vec::<String>::new());
            prop_assert_eq!(&again, &set);
        }
    }
}

#[test]
fn labels_of_services_are_kept_and_change() {
    let mut set = Set::default();
    let labelled = |text: &str, value: &str| {
        let mut message = message(text);
        for (_, service) in &mut message.services {
            service.labels.insert("team".into(), value.into());
        }
        message
    };
    set.apply(labelled("c1.5 a", "shop")).unwrap();
    let of = |set: &Set| {
        let (_, service) = set.all_services().next().unwrap();
        service.labels["team"].clone()
    };
    assert_eq!(of(&set), "shop");
    let (whole, kept) = set.to_wire();
    assert_eq!(of(&Set::from_wire(whole, kept).0), "shop");
    set.apply(labelled("i5-6 b", "stock")).unwrap();
    assert_eq!(of(&set), "stock");
}
