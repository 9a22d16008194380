//! Jobs, by the real binary: to their end, by a schedule, and what goes wrong.

use serde_json::Value;

use crate::node::{Node, Said, until};

fn create(node: &Node, name: &str, flags: &[&str], script: &str) -> Said {
    let mut args = vec!["service", "create", name, "--image", "bb:1"];
    args.extend(flags);
    args.extend(["sh", "-c", script]);
    node.warren(&args)
}

fn service(node: &Node, name: &str) -> Value {
    let services = node.json(&["service", "ls"]);
    services.into_iter().find(|service| service["name"] == name).unwrap()
}

fn runs(node: &Node, name: &str) -> Vec<Value> {
    node.json(&["job", "runs", name])
}

#[test]
fn host_jobs_run_to_their_end() {
    let node = Node::with_image();
    let said = create(
        &node,
        "sum",
        &["--mode", "replicated-job", "--replicas", "3", "--max-concurrent", "2"],
        "exit 0",
    );
    assert_eq!(said.exit, 0, "{said:?}");
    assert!(said.err.contains("3/3 completed"), "{said:?}");
    let tasks = node.tasks("sum");
    assert_eq!(tasks.len(), 3);
    assert!(tasks.iter().all(|task| task["state"] == "complete" && task["exit_code"] == 0));
    let row = service(&node, "sum");
    assert_eq!(
        (&row["completed"], &row["desired"], &row["running"]),
        (&3.into(), &3.into(), &0.into())
    );
    assert_eq!((&row["mode"], &row["job_state"]), (&"replicated-job".into(), &"complete".into()));
    assert!(node.ok(&["service", "ls"]).contains("3/3 completed"));
    assert_eq!(
        node.ok(&["explain", "service", "sum"]).lines().next(),
        Some("sum: run 1 is complete, 3 of 3 completed")
    );
    node.ok(&["wait", "service", "sum"]);

    // One that cannot work says so, after as many tries as it may have.
    let flags =
        ["--mode", "replicated-job", "--restart-max-attempts", "1", "--restart-delay", "0s"];
    let said = create(&node, "bad", &flags, "echo no >&2; exit 3");
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("job bad: bad.1 is failed"), "{said:?}");
    assert!(said.err.contains("exit code 3"), "{said:?}");
    let run = until("the run has ended", || {
        let run = runs(&node, "bad").remove(0);
        (run["state"] == "failed").then_some(run)
    });
    assert!(run["message"].as_str().unwrap().contains("exit code 3"), "{run}");
    assert_eq!(node.tasks("bad")[0]["restarts"], 1);
    assert_eq!(node.warren(&["wait", "service", "bad"]).exit, 1);

    // A change begins another run, and so does a person.
    node.ok(&["service", "update", "bad", "--args", "sh -c 'exit 0'"]);
    assert_eq!(node.ok(&["job", "run", "bad"]).trim(), "3");
    let states: Vec<_> = runs(&node, "bad").iter().map(|run| run["state"].clone()).collect();
    assert_eq!(states, ["complete", "complete", "failed"]);

    // The time of a run is limited.
    let flags = ["--mode", "global-job", "--job-time-limit", "2s", "--stop-signal", "KILL"];
    let said = create(&node, "slow", &flags, "sleep 3600");
    assert_eq!(said.exit, 1, "{said:?}");
    assert!(said.err.contains("time limit of 2s reached: 0 of 1 completed"), "{said:?}");
    until("nothing of it runs", || {
        let all = node.json(&["service", "ps", "slow"]);
        all.iter().all(|task| task["state"] != "running").then_some(())
    });
    node.ok(&["service", "rm", "sum", "bad", "slow"]);
    assert!(node.json(&["ps", "-a"]).is_empty());
}

#[test]
fn soak_a_schedule_begins_runs() {
    let node = Node::with_image();
    let flags = [
        "--mode",
        "replicated-job",
        "--schedule",
        "* * * * *",
        "--schedule-timezone",
        "Europe/Berlin",
    ];
    let said = create(&node, "tick", &flags, "exit 0");
    assert_eq!(said.exit, 0, "{said:?}");
    let row = service(&node, "tick");
    assert_eq!(row["job_state"], "scheduled");
    let due = row["next_run_at"].as_str().unwrap().to_owned();
    assert!(due.ends_with(":00.000Z"), "{due}");
    // Not to wait for it: one at once.
    assert_eq!(node.ok(&["job", "run", "tick"]).trim(), "1");
    let scheduled = until("the schedule began a run", || {
        let all = runs(&node, "tick");
        all.into_iter()
            .find(|run| run["scheduled_at"] == due.as_str() && run["state"] == "complete")
    });
    assert_eq!(scheduled["completed"], 1);
    assert_eq!(node.ok(&["service", "suspend", "tick"]).trim(), "tick");
    assert_eq!(service(&node, "tick")["job_state"], "suspended");
    assert_eq!(node.warren(&["service", "suspend", "tick"]).exit, 4);
    node.ok(&["service", "unsuspend", "tick"]);
    node.ok(&["service", "rm", "tick"]);
}

#[test]
fn jobs_that_make_no_sense_are_refused() {
    let node = Node::start();
    let refused = |flags: &[&str], expected: &str| {
        let said = create(&node, "job", flags, "exit 0");
        assert_eq!(said.exit, 2, "{said:?}");
        assert!(said.err.contains(expected), "{expected}\n{said:?}");
    };
    let job = ["--mode", "replicated-job"];
    let with = |more: &[&'static str]| [&job[..], more].concat();
    refused(&with(&["--schedule", "0 0 31 2 *"]), "--schedule: \"0 0 31 2 *\" never comes");
    refused(&with(&["--schedule", "often"]), "--schedule: \"often\" is not a schedule");
    refused(
        &with(&["--schedule", "@daily", "--schedule-timezone", "Mars/Phobos"]),
        "--schedule-timezone: \"Mars/Phobos\" is not a time zone",
    );
    refused(
        &with(&["--schedule-timezone", "UTC"]),
        "--schedule-timezone: \"UTC\" is of a schedule, and there is none",
    );
    refused(
        &with(&["--update-parallelism", "2"]),
        "--update-parallelism: \"2\" is for services that go on",
    );
    refused(
        &with(&["--restart-condition", "any"]),
        "--restart-condition: \"any\" would run what is done again",
    );
    refused(&with(&["--max-concurrent", "0"]), "--max-concurrent: \"0\" lets nothing begin");
    refused(
        &["--mode", "global-job", "--replicas", "2"],
        "--replicas: 2 cannot be asked of a global job",
    );
    refused(
        &["--schedule", "@daily"],
        "--schedule: \"@daily\" is for jobs, and the mode is replicated",
    );
    refused(&["--max-concurrent", "2"], "--max-concurrent: 2 is for --mode replicated-job");
}

#[test]
fn host_a_run_is_given_parameters_and_a_payload() {
    let node = Node::with_image();
    let job = ["--mode", "replicated-job", "--user", "65534:65534", "--read-only"];
    let takes = ["--param", "DAY", "--param", "region=eu", "--payload", "optional"];
    let script = "test $(stat -c %a:%u $WARREN_PAYLOAD) = 400:65534 || exit 9
        echo $WARREN_PARAM_DAY $WARREN_PARAM_REGION $TEXT $(cat $WARREN_PAYLOAD)";
    let flags = [&job[..], &takes, &["-e", "TEXT={{.Param.DAY}}day"]].concat();
    let said = create(&node, "say", &flags, script);
    assert_eq!(said.exit, 0, "{said:?}");
    assert!(runs(&node, "say").is_empty());
    assert_eq!(service(&node, "say")["job_state"], "on demand");

    // What does not fit is refused, whoever asks.
    let refused = |args: &[&str], expected: &[&str]| {
        let said = node.warren(args);
        assert_eq!(said.exit, 2, "{said:?}");
        assert!(expected.iter().all(|text| said.err.contains(text)), "{expected:?}\n{said:?}");
    };
    let hint = "warren job dispatch say --param DAY=VALUE";
    refused(&["job", "run", "say"], &["param: \"DAY\" is missing", hint]);
    refused(
        &["job", "dispatch", "say", "--param", "DAY=mon", "--param", "zone=1"],
        &["param: \"zone\" is unknown; allowed are DAY (required), region"],
    );
    let file = node.folder().join("large");
    std::fs::write(&file, vec![b'x'; 16385]).unwrap();
    let large = file.to_str().unwrap();
    refused(
        &["job", "dispatch", "say", "--param", "DAY=mon", "--payload", large],
        &["--payload:", "is more than 16384 bytes"],
    );
    refused(
        &["service", "update", "say", "--schedule", "@daily"],
        &["--schedule: \"@daily\" begins runs that nobody says anything to", "parameter DAY"],
    );

    // Two at a time do not mind each other.
    let args = ["job", "dispatch", "say", "--param", "DAY=mon", "--payload", "-"];
    let said = node.warren_with_input(&args, b"a b\n");
    assert_eq!((said.exit, said.out.trim()), (0, "1"), "{said:?}\n{}", node.ok(&["ps", "-a"]));
    assert_eq!(node.ok(&["service", "logs", "say", "--raw"]), "mon eu monday a b\n");
    let run = runs(&node, "say").remove(0);
    assert_eq!(run["params"]["region"], "eu", "{run}");
    assert_eq!((&run["state"], &run["payload_bytes"]), (&"complete".into(), &4.into()));
    assert!(node.ok(&["job", "runs", "say"]).contains("DAY=mon region=eu +4B"));
    let inspected = node.ok(&["service", "inspect", "say"]);
    assert!(inspected.contains("\"concurrency\": \"allow\""), "{inspected}");
    let audit = node.ok(&["audit"]);
    assert!(audit.contains("params=DAY payload_bytes=4") && !audit.contains("mon"), "{audit}");
    node.ok(&["service", "rm", "say"]);
}
