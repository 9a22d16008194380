//! Working with running containers by hand: attach, exec, cp, stats, top, pause.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::node::{Node, until};

/// A command at a terminal of its own, by `script` of util-linux.
struct Seat {
    child: Child,
    said: Receiver<Vec<u8>>,
    text: String,
}

impl Seat {
    fn new(node: &Node, line: &str) -> Self {
        let mut command = node.program(&["script", "-qefc", line, "/dev/null"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let (to, said) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if to.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { child, said, text: String::new() }
    }

    fn types(&mut self, text: &str) {
        self.child.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    fn sees(&mut self, wanted: &str) {
        until(&format!("{wanted:?} is seen"), || {
            while let Ok(bytes) = self.said.try_recv() {
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
            self.text.contains(wanted).then_some(())
        });
    }
}

/// What was seen, if a test fails.
impl Drop for Seat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seen: {:?}", self.text);
        }
    }
}

const WARREN: &str = env!("CARGO_BIN_EXE_warren");

#[test]
fn host_attached_by_hand() {
    let node = Node::with_image();
    let script = "echo up; while read a; do stty size; echo got $a; test $a = end && exit 7; done";
    let create = ["service", "create", "term", "--tty", "--restart-condition", "none"];
    node.ok(&[&create[..], &["--image", "bb:1", "sh", "-c", script]].concat());
    let wider = node.folder().join("wider");
    let line = format!(
        "stty rows 33 cols 101; (until test -e {}; do sleep 0.02; done; \
         stty -F /dev/tty rows 40 cols 90) & exec {WARREN} attach term.1",
        wider.display()
    );
    let mut seat = Seat::new(&node, &line);
    let mut other = Seat::new(&node, &format!("exec {WARREN} attach --no-stdin term"));
    // Its size arrives a moment after it is attached.
    until("the size is there", || {
        seat.types("hello\r");
        seat.sees("got hello\r\n");
        seat.text.contains("33 101\r\n").then_some(())
    });
    // This terminal is not raw: nothing is typed there.
    other.sees("got hello\r");
    fs::write(&wider, "").unwrap();
    until("the other size is there", || {
        seat.types("more\r");
        seat.sees("got more");
        seat.text.contains("40 90").then_some(())
    });
    seat.types("\x10\x11");
    seat.sees("detached");
    assert_eq!(seat.child.wait().unwrap().code(), Some(0));
    let bad = node.warren(&["attach", "--detach-keys", "ctrl-P", "term"]);
    assert!(bad.exit == 2 && bad.err.contains("\"ctrl-P\" is no key"), "{bad:?}");

    // It goes on, another daemon or not, and its end is the end of who is attached.
    node.kill_daemon();
    node.ok(&["node", "run", "--detach"]);
    let said = node.warren_with_input(&["attach", "term.1"], b"end\n");
    assert_eq!(said.exit, 7, "{said:?}");
    assert!(node.ok(&["service", "logs", "term"]).contains("got hello\n"));

    // Without a terminal both streams are apart, and signals go through.
    let script = "echo up; trap 'echo usr; exit 9' USR1; while :; do read a && echo out $a && echo err >&2; done";
    let create = ["service", "create", "pipe", "-i", "--restart-condition", "none"];
    node.ok(&[&create[..], &["--image", "bb:1", "sh", "-c", script]].concat());
    let mut command = node.command(&["attach", "pipe"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    until("it is attached", || {
        node.ok(&["service", "logs", "pipe"]).contains("out one").then_some(())
    });
    node.ok(&["task", "signal", "pipe.1", "USR1"]);
    let output = child.wait_with_output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(
        (output.status.code(), text(&output.stdout), text(&output.stderr)),
        (Some(9), "out one\nusr\n".to_owned(), "err\n".to_owned())
    );
}

#[test]
fn host_executed_by_hand() {
    let node = Node::with_image();
    node.ok(&["service", "create", "web", "--image", "bb:1", "sleep", "1000"]);
    let file = node.folder().join("env");
    fs::write(&file, "A=1\nB=2\n").unwrap();
    let file = file.to_str().unwrap();
    let script = "echo $A $B; pwd; id -u; id -g";
    let exec = ["exec", "--env-file", file, "-e", "B=3", "-w", "/tmp", "-u", "12:34", "web.1"];
    let said = node.ok(&[&exec[..], &["sh", "-c", script]].concat());
    assert_eq!(said, "1 3\n/tmp\n12\n34\n");
    for (words, code) in [(&["none"][..], 127), (&["/etc"], 126), (&["sh", "-c", "exit 42"], 42)] {
        assert_eq!(node.warren(&[&["exec", "web.1"], words].concat()).exit, code, "{words:?}");
    }
    node.ok(&["exec", "-d", "web.1", "sh", "-c", "echo there > /tmp/left; sleep 1000"]);
    until("the command has run", || {
        let said = node.warren(&["exec", "web.1", "cat", "/tmp/left"]);
        (said.out == "there\n").then_some(())
    });
    let said = node.warren(&["exec", "-d", "web.1", "none"]);
    assert!(said.exit == 1 && said.err.contains("not found"), "{said:?}");
    let said = node.warren(&["exec", "--privileged", "web.1", "true"]);
    assert!(said.exit == 4 && said.err.contains("is not privileged"), "{said:?}");
    let said = node.warren(&["exec", "-d", "-i", "web.1", "true"]);
    assert_eq!(said.exit, 2, "{said:?}");
    // A command at a terminal may be left, and goes on.
    let mut seat = Seat::new(
        &node,
        &format!(
            "exec {WARREN} exec -it --detach-keys ctrl-x,d web.1 sh -c 'echo here; sleep 1; echo more; echo on > /tmp/on; sleep 99'"
        ),
    );
    seat.sees("here");
    seat.types("\x18d");
    seat.sees("detached");
    assert_eq!(seat.child.wait().unwrap().code(), Some(0));
    until("it goes on", || {
        let said = node.warren(&["exec", "web.1", "cat", "/tmp/on"]);
        (said.out == "on\n").then_some(())
    });
    // A file of users that somebody blew up is read in part: root is on its first line.
    let script = "i=/etc/passwd; echo 'root:x:0:0::/root:/bin/sh' > $i; truncate -s 1G $i";
    node.ok(&["exec", "web.1", "sh", "-c", script]);
    assert_eq!(node.ok(&["exec", "-u", "root", "web.1", "id", "-u"]), "0\n");
    let said = node.warren(&["exec", "-u", "nobody-else", "web.1", "true"]);
    assert!(said.exit == 2 && said.err.contains("no user \"nobody-else\""), "{said:?}");
}

#[test]
fn host_copied_by_hand() {
    let node = Node::with_image();
    node.ok(&["service", "create", "web", "--image", "bb:1", "sleep", "1000"]);
    let here = node.folder().join("here");
    fs::create_dir_all(here.join("site/css")).unwrap();
    fs::write(here.join("site/index"), "hello").unwrap();
    fs::write(here.join("site/css/a"), "x".repeat(300_000)).unwrap();
    let path = |name: &str| here.join(name).to_str().unwrap().to_owned();
    let said = node.warren(&["cp", &path("site"), "web.1:/srv/pages"]);
    assert_eq!(said.exit, 3, "{said:?}");
    node.ok(&["cp", "-q", &path("site"), "web.1:/pages"]);
    node.ok(&["cp", "-q", &path("site/."), "web.1:/tmp"]);
    let script =
        "cat /pages/index; wc -c < /pages/css/a; cat /tmp/index; stat -c %u:%g /pages/index";
    let said = node.ok(&["exec", "web.1", "sh", "-c", script]);
    assert_eq!(said, "hello300000\nhello0:0\n");
    node.ok(&["cp", "web.1:/pages", &path("back")]);
    assert_eq!(fs::read_to_string(here.join("back/index")).unwrap(), "hello");
    node.ok(&["cp", "web.1:/pages/index", &path("back")]);
    node.ok(&["cp", "web.1:/pages/index", &path("one")]);
    assert_eq!(fs::read_to_string(here.join("one")).unwrap(), "hello");

    // As archives, and what is mounted is written over.
    let tar = node.command(&["cp", "web.1:/pages", "-"]).output().unwrap();
    assert!(tar.status.success() && tar.stdout.len() > 300_000);
    node.ok(&["exec", "web.1", "mkdir", "/more"]);
    let said = node.warren_with_input(&["cp", "-", "web.1:/more"], &tar.stdout);
    assert_eq!(said.exit, 0, "{said:?}");
    assert_eq!(node.ok(&["exec", "web.1", "cat", "/more/pages/index"]), "hello");
    fs::write(here.join("hosts"), "127.0.0.1 mine\n").unwrap();
    node.ok(&["cp", "-q", &path("hosts"), "web.1:/etc/hosts"]);
    assert_eq!(node.ok(&["exec", "web.1", "cat", "/etc/hosts"]), "127.0.0.1 mine\n");

    // Links of a container lead to what is within it, whoever follows them.
    let secret = here.join("secret");
    fs::write(&secret, "secret").unwrap();
    let secret = secret.to_str().unwrap();
    let script = format!(
        "ln -s {secret} /peek; ln -s {} /away; ln -s ../../../../.. /up; ln -s /proc/1/root /root1",
        here.display()
    );
    node.ok(&["exec", "web.1", "sh", "-c", &script]);
    for from in ["/away/secret", &format!("/up{secret}"), &format!("/root1{secret}")] {
        let said = node.warren(&["cp", &format!("web.1:{from}"), &path("stolen")]);
        assert!(matches!(said.exit, 2 | 3), "{from}: {said:?}");
    }
    let said = node.warren(&["cp", "-L", "web.1:/peek", &path("stolen")]);
    assert_eq!(said.exit, 3, "{said:?}");
    let said = node.warren(&["cp", &path("one"), "web.1:/away/planted"]);
    assert_eq!(said.exit, 3, "{said:?}");
    assert!(!here.join("stolen").exists() && !here.join("planted").exists());
    // A link here is not followed by what comes.
    symlink(&here, here.join("back/css2")).unwrap();
    node.ok(&["exec", "web.1", "sh", "-c", "mkdir /pages/css2; echo bad > /pages/css2/one"]);
    let said = node.warren(&["cp", "web.1:/pages/.", &path("back")]);
    assert_eq!(said.exit, 4, "{said:?}");
    assert_eq!(fs::read_to_string(here.join("one")).unwrap(), "hello");

    for (words, exit, why) in [
        (&["a", "b"][..], 2, "neither SOURCE nor DESTINATION is in a container"),
        (&["web.1:/a", "web.1:/b"], 2, "both in containers"),
        (&["web.1:/none", "x"], 3, "/none: no such file or folder"),
        (&["web.1:/dev/null", "x"], 2, "is a device, a socket or a pipe"),
        (&["web.1:/proc/version", "x"], 2, "made up by the kernel"),
        (&["none", "web.1:/"], 3, "SOURCE: none: No such file"),
        (&["shop.1:/a", "x"], 3, "no service shop"),
        (&["--max-size", "10", "web.1:/pages/css/a", "x"], 2, "more than 10 bytes"),
    ] {
        let said = node.warren(&[&["cp"], words].concat());
        assert!(said.exit == exit && said.err.contains(why), "{words:?}: {said:?}");
    }
}

#[test]
fn host_figures_and_pauses_by_hand() {
    let node = Node::with_image();
    let script = "i=0; while :; do i=$((i+1)); echo $i > /count; done";
    let create = ["service", "create", "busy", "--limit-memory", "64M", "--limit-cpu", "0.1"];
    let health = ["--health-cmd", "true", "--health-interval", "100ms", "-p", "8099:80"];
    node.ok(&[&create[..], &health, &["--image", "bb:1", "sh", "-c", script]].concat());
    // On a machine that does much else it may have less than it could have.
    let row = until("it is held back", || {
        let row = node.json(&["stats", "--no-stream", "busy"]).remove(0);
        (row["throttled_percent"].as_f64().unwrap() > 1.0).then_some(row)
    });
    let cpu = row["cpu_percent"].as_f64().unwrap();
    assert!(cpu > 1.0 && cpu < 40.0, "{row}");
    assert_eq!(
        (row["name"].as_str(), row["memory_limit_bytes"].as_u64()),
        (Some("busy.1"), Some(64 << 20))
    );
    let held = row["memory_bytes"].as_u64().unwrap();
    assert!((1..20 << 20).contains(&held), "{row}");
    let table = node.ok(&["stats", "--no-stream"]);
    assert!(table.starts_with("NAME") && table.contains("busy.1"), "{table}");
    assert_eq!(node.warren(&["stats", "--no-stream", "none"]).exit, 3);

    let pid = node.tasks("busy")[0]["pid"].as_u64().unwrap();
    let processes = node.json(&["top", "busy.1"]);
    let main = processes.iter().find(|row| row["inner_pid"] == 1).unwrap();
    assert_eq!((main["pid"].as_u64(), main["uid"].as_u64()), (Some(pid), Some(0)));
    assert!(node.ok(&["top", "busy"]).contains("echo $i > /count"));

    node.ok(&["task", "pause", "busy.1"]);
    let shown = || node.tasks("busy")[0]["state"].as_str().unwrap().to_owned();
    assert_eq!(shown(), "paused");
    assert!(node.ok(&["ps"]).contains("paused"));
    let said = node.warren(&["exec", "busy.1", "true"]);
    assert!(said.exit == 4 && said.err.contains("is paused"), "{said:?}");
    let row = node.json(&["stats", "--no-stream", "busy"]).remove(0);
    assert_eq!((row["cpu_percent"].as_f64(), row["paused"].as_bool()), (Some(0.0), Some(true)));
    // Another daemon finds it so, asks nothing of it, and lets it go on.
    node.kill_daemon();
    node.ok(&["node", "run", "--detach"]);
    assert_eq!(shown(), "paused");
    node.ok(&["task", "unpause", "busy.1"]);
    assert_eq!(shown(), "running");
    until("it is healthy", || (node.tasks("busy")[0]["health"] == "healthy").then_some(()));
    assert_eq!(node.tasks("busy")[0]["attempt"], 1);
    assert_eq!(node.ok(&["exec", "busy.1", "true"]), "");

    node.ok(&["task", "pause", "busy.1"]);
    node.ok(&["service", "rm", "busy"]);
    until("it is gone", || node.json(&["ps"]).is_empty().then_some(()));
}
