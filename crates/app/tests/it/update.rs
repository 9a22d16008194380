//! Updates that go wrong, on a real node: what runs goes on running.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::node::{Node, Said};

/// How often what runs is counted.
const SAMPLE: Duration = Duration::from_millis(50);

/// A service whose containers sleep, and end at once when told to.
fn create(node: &Node, replicas: &str, flags: &[&str]) {
    let mut args = vec!["service", "create", "web", "--image", "bb:1", "--stop-signal", "KILL"];
    args.extend(["--replicas", replicas]);
    args.extend(flags);
    args.extend(["sleep", "3600"]);
    node.ok(&args);
}

fn pids(node: &Node) -> Vec<u64> {
    let mut pids: Vec<u64> =
        node.tasks("web").iter().map(|task| task["pid"].as_u64().unwrap()).collect();
    pids.sort_unstable();
    pids
}

fn running(pids: &[u64]) -> usize {
    pids.iter().filter(|pid| PathBuf::from(format!("/proc/{pid}")).exists()).count()
}

/// What a command says, and the fewest of `pids` that were there at any time from before it began
/// until it ended.
fn fewest(node: &Node, pids: &[u64], args: &[&str]) -> (Said, usize) {
    let (ended, least) = (AtomicBool::new(false), AtomicUsize::new(usize::MAX));
    let said = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                least.fetch_min(running(pids), Ordering::Relaxed);
                std::thread::sleep(SAMPLE);
            }
        });
        let said = node.warren(args);
        ended.store(true, Ordering::Relaxed);
        said
    });
    (said, least.into_inner())
}

fn state(node: &Node) -> (String, u64) {
    let services = node.json(&["service", "ls"]);
    let text = services[0]["update_state"].as_str().unwrap().to_owned();
    (text, services[0]["revision"].as_u64().unwrap())
}

#[test]
fn host_a_failing_update_is_paused_and_undone_by_hand() {
    let node = Node::with_image();
    create(&node, "4", &["--update-parallelism", "2"]);
    let before = pids(&node);
    let (said, least) = fewest(&node, &before, &["service", "update", "web", "--args", "false"]);
    assert_eq!((said.exit, least), (1, 4), "{said:?}");
    assert!(said.err.contains("the update is paused: "), "{said:?}");
    assert_eq!(state(&node), ("paused".to_owned(), 2));
    let told = node.ok(&["explain", "service", "web"]);
    assert!(told.contains("the update to revision 2 is paused: "), "{told}");
    assert!(told.contains("warren service rollback web"), "{told}");
    // Nothing but what was begun is there twice, and it stays so.
    assert_eq!(running(&before), 4);

    let (said, least) = fewest(&node, &before, &["service", "rollback", "web"]);
    assert_eq!((said.exit, least), (0, 4), "{said:?}");
    assert_eq!(state(&node), ("rolled_back".to_owned(), 3));
    assert_eq!(pids(&node), before, "what was never renewed is not restarted");

    let history = node.json(&["service", "history", "web"]);
    let of = |key: &str| history.iter().map(|row| row[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("revision"), [3, 2, 1]);
    assert_eq!(of("action"), ["rollback", "update", "create"]);
    assert_eq!(of("current"), [true, false, false]);
    assert_eq!(history[0]["by"], "socket:0");
    assert_eq!(
        node.ok(&["service", "history", "web", "--diff", "1..2"]),
        "command: -sleep -3600 +false\n"
    );
    let said = node.warren(&["service", "history", "web", "--rev", "9"]);
    assert_eq!(said.exit, 3, "{said:?}");

    // What needs no other containers restarts none; what changes nothing is no revision.
    node.ok(&["service", "update", "web", "--label-add", "team=a", "--update-monitor", "2s"]);
    let said = node.warren(&["service", "update", "web", "--label-add", "team=a"]);
    assert_eq!(said.exit, 0, "{said:?}");
    assert!(said.err.contains("nothing to change: service web stays at revision 4"), "{said:?}");
    assert_eq!((state(&node).1, pids(&node)), (4, before));
    let said = node.warren(&["service", "pause", "web"]);
    assert_eq!(said.exit, 4, "{said:?}");
}

#[test]
fn host_a_failing_update_goes_back_by_itself() {
    let node = Node::with_image();
    let policy = ["--update-failure-action", "rollback", "--update-parallelism", "2"];
    create(&node, "4", &policy);
    let before = pids(&node);
    // It runs for a moment before it fails.
    let args = ["service", "update", "web", "--args", "sh -c 'sleep 0.2; exit 7'"];
    let (said, least) = fewest(&node, &before, &args);
    assert_eq!((said.exit, least), (1, 4), "{said:?}");
    assert!(said.err.contains("rolled back to revision 1: "), "{said:?}");
    assert_eq!(state(&node), ("rolled_back".to_owned(), 3));
    assert_eq!(pids(&node), before);

    // Stop-first may take down as many as are renewed at a time, and no more.
    node.ok(&["service", "update", "web", "--update-order", "stop-first"]);
    let (said, least) = fewest(&node, &before, &args);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(least >= 2, "{least} of 4 went on");
    assert_eq!(state(&node).0, "rolled_back");
    assert_eq!(running(&before), 2, "those that were not begun stay");
    assert_eq!(node.json(&["service", "ls"])[0]["running"], 4);

    // A good one passes, and is completed when the command is.
    node.ok(&["service", "update", "web", "--args", "sleep 7200"]);
    assert_eq!(state(&node).0, "completed");
    assert_eq!(running(&before), 0);
    // Further back than the one before: to the flags that it began with.
    node.ok(&["service", "rollback", "web", "--to", "1"]);
    let inspected = node.json(&["service", "inspect", "web"]);
    assert_eq!(inspected[0]["spec"]["command"][1], "3600");
    assert_eq!(inspected[0]["spec"]["update"]["order"], "start-first");
    assert_eq!(inspected[0]["update_state"], "rolled_back");
}

/// Nothing happens any more, and nobody waits for ever.
#[test]
fn host_an_update_without_a_place_is_given_up_by_who_waits() {
    let node = Node::with_image();
    create(&node, "2", &["--update-failure-action", "continue", "--update-deadline", "3s"]);
    let before = pids(&node);
    let said = node.warren(&["service", "update", "web", "--reserve-cpu", "1000"]);
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("no progress within 3s: web.1 is pending: "), "{said:?}");
    assert_eq!((state(&node).0.as_str(), pids_of_running(&node)), ("updating", before));
}

fn pids_of_running(node: &Node) -> Vec<u64> {
    let mut pids: Vec<u64> = node.tasks("web").iter().filter_map(|t| t["pid"].as_u64()).collect();
    pids.retain(|pid| *pid != 0);
    pids.sort_unstable();
    pids
}
