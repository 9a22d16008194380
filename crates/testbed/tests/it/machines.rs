//! Machines and the switch, without the program under test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Result;
use warren_testbed::wait::until;
use warren_testbed::{Host, Kind, Link, Testbed};

/// Milliseconds of one ping; nothing: no answer within a second.
fn ping(from: &Host, to: &str) -> Result<Option<f64>> {
    let said = from.run("busybox", &["ping", "-c", "1", "-W", "1", to])?;
    let time = said.out.split("time=").nth(1).and_then(|rest| rest.split(' ').next());
    Ok(time.and_then(|time| time.parse().ok()))
}

#[test]
fn host_lines_between_machines() -> Result<()> {
    let bed = Testbed::start(1)?;
    let (hub, one, two) = (bed.add(Kind::Hub)?, bed.add(Kind::Manager)?, bed.add(Kind::Worker)?);
    assert_eq!((one.name(), two.name()), ("m1", "w1"));
    assert_eq!(one.run("uname", &["-n"])?.out, "m1\n");
    for to in [two.address().to_string(), hub.address6().to_string()] {
        assert!(ping(&one, &to)?.is_some(), "{to}");
    }

    let two_address = two.address().to_string();
    bed.shape("m1", "w1", Link::delayed(Duration::from_millis(40)))?;
    let time = ping(&one, &two_address)?.unwrap();
    assert!((80.0..200.0).contains(&time), "{time} ms");
    assert!(ping(&one, &hub.address().to_string())?.unwrap() < 40.0);

    bed.shape_one_way("w1", "m1", Link::CUT)?;
    assert_eq!(ping(&one, &two_address)?, None);
    let lost = bed.traffic("w1", "m1")?.lost;
    assert!(lost > 0, "{lost}");
    bed.heal();
    assert!(ping(&one, &two_address)?.is_some());

    bed.isolate("w1")?;
    assert_eq!(ping(&two, &hub.address().to_string())?, None);
    assert!(ping(&one, &hub.address().to_string())?.is_some());
    Ok(())
}

#[test]
fn host_machines_lose_power() -> Result<()> {
    let bed = Testbed::start(1)?;
    let (hub, one) = (bed.add(Kind::Hub)?, bed.add(Kind::Manager)?);
    std::fs::create_dir_all(one.run_dir())?;
    std::fs::create_dir_all(one.data_dir())?;
    let boot_id = || one.run("cat", &["/proc/sys/kernel/random/boot_id"]);
    let before = boot_id()?;
    let daemon = one.spawn(Command::new("sleep").arg("1000"))?;
    // A grandchild that nobody waits for.
    one.run("sh", &["-c", "setsid sleep 1001 </dev/null >/dev/null 2>&1 &"])?;
    let running = one.run("ps", &["ax"])?.out;
    assert!(running.contains("sleep 1000") && running.contains("sleep 1001"), "{running}");

    one.freeze()?;
    let states = one.run("ps", &["ax", "-o", "stat,args"])?.out;
    let stopped = |line: &str| line.starts_with('T') && line.ends_with("sleep 1001");
    assert!(states.lines().any(stopped), "{states}");
    one.thaw()?;

    one.reboot()?;
    assert!(!daemon.is_alive());
    assert!(!one.run("ps", &["ax"])?.out.contains("sleep"));
    assert_ne!(boot_id()?.out, before.out);
    assert!(one.data_dir().exists() && !one.run_dir().exists());
    let address = one.address().to_string();
    until("it answers", Duration::from_secs(5), || ping(&hub, &address))?;

    one.down()?;
    assert!(one.run("true", &[]).is_err());
    assert_eq!(ping(&hub, &address)?, None);
    Ok(())
}

/// Bytes a second of one connection.
fn throughput(from: &Host, to: &Host, bytes: usize) -> Result<f64> {
    let listener = to.within(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 7000)))??;
    let address = SocketAddr::from((to.address(), 7000));
    let mut sender = from.connect(address)?;
    let mut receiver = listener.accept()?.0;
    let start = Instant::now();
    let count = std::thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![7; 1 << 16];
            for _ in 0..bytes >> 16 {
                if sender.write_all(&block).is_err() {
                    return;
                }
            }
        });
        let (mut count, mut block) = (0, vec![0; 1 << 16]);
        while let Ok(n @ 1..) = receiver.read(&mut block) {
            count += n;
        }
        count
    });
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = count as f64 / start.elapsed().as_secs_f64();
    assert_eq!(count, bytes >> 16 << 16);
    Ok(rate)
}

#[test]
fn host_lines_carry_enough() -> Result<()> {
    let bed = Testbed::start(1)?;
    let (one, two) = (bed.add(Kind::Manager)?, bed.add(Kind::Worker)?);
    let rate = throughput(&one, &two, 64 << 20)?;
    eprintln!("{:.0} Mbit/s over a perfect wire", rate * 8.0 / 1e6);
    // Far below what is measured, for machines that do other things as well.
    assert!(rate > 10e6, "{rate} bytes/s");

    bed.shape_one_way("m1", "w1", Link { bandwidth: Some(1_000_000), ..Link::default() })?;
    let rate = throughput(&one, &two, 2 << 20)?;
    assert!((500e3..1_100e3).contains(&rate), "{rate} bytes/s at a megabyte a second");

    let bad = Link { loss: 0.02, duplicate: 0.05, reorder: 0.05, ..Link::default() };
    bed.shape("m1", "w1", bad)?;
    throughput(&one, &two, 256 << 10)?;
    assert!(bed.traffic("m1", "w1")?.lost > 0);
    Ok(())
}

/// Another process uses a bed and is killed; nothing of it stays.
#[test]
fn host_killed_runs_leave_nothing() -> Result<()> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_warren-testbed"))
        .args(["--bare", "--managers", "1", "--workers", "1"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.contains("ready") {
        assert!(std::io::BufRead::read_line(&mut lines, &mut said)? > 0, "{said}");
    }
    let folder = said.lines().find_map(|line| line.strip_prefix("folder ")).unwrap().to_owned();
    let pids: Vec<String> = said
        .lines()
        .filter_map(|line| line.split_once("--target "))
        .map(|(_, rest)| rest.split(' ').next().unwrap().to_owned())
        .collect();
    assert_eq!(pids.len(), 3, "{said}");
    child.kill()?;
    child.wait()?;
    until("the machines are gone", Duration::from_secs(10), || {
        let left = pids.iter().any(|pid| std::path::Path::new("/proc").join(pid).exists());
        Ok((!left).then_some(()))
    })?;
    drop(Testbed::start(1)?);
    assert!(!std::path::Path::new(&folder).exists());
    Ok(())
}
