//! Addresses that change, engines that end, peers behind address translation, and rest.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use warren_wireguard::{Engine, Error, Reason, Tun, Udp};

use crate::world::{
    Stream, assert_answers, assert_silent, eventually, join, key, on_hosts, seconds,
};

#[test]
fn host_peer_moves_to_another_address() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let stream = Stream::start(&one, &two, false);
        stream.goes_on();
        assert_eq!(two.stats().endpoint, Some(one.endpoint(false)));
        one.run("ip addr add 192.0.2.77/24 dev eth0");
        one.run("ip addr del 192.0.2.1/24 dev eth0");
        // The kernel removes what was in that subnet with its first address.
        one.run("ip addr replace 192.0.2.77/24 dev eth0");
        let moved = "192.0.2.77:51820".parse().unwrap();
        eventually("heard from the new address", || two.stats().endpoint == Some(moved));
        assert!(stream.goes_on() < Duration::from_secs(3));
        stream.stop();
        // A configured endpoint that is changed counts again.
        let mut of_one = one.peer();
        of_one.endpoint = Some("192.0.2.78:51820".parse().unwrap());
        two.apply(&[of_one]);
        assert_eq!(two.stats().endpoint, Some("192.0.2.78:51820".parse().unwrap()));
    });
}

#[test]
fn host_peer_behind_address_translation() {
    on_hosts(|mut one, mut two| {
        // Two does not know where one is; one keeps the way open.
        let (mut of_one, mut of_two) = (one.peer(), two.peer());
        of_one.endpoint = None;
        of_two.keepalive = seconds(1);
        two.start(&[of_one]);
        one.start(&[]);
        assert_silent(&two, &one);
        assert!(two.stats().dropped(Reason::NoEndpoint) > 0);
        one.apply(&[of_two]);
        eventually("a handshake that nobody asked for", || two.stats().endpoint.is_some());
        assert_answers(&two, &one);
        let before = two.stats().received_packets;
        thread::sleep(Duration::from_secs(4));
        let kept = two.stats().received_packets - before;
        assert!((3..=5).contains(&kept), "{kept} keepalives in 4 s");
    });
}

#[test]
fn host_successor_takes_over_under_a_stream() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let streams = [Stream::start(&one, &two, false), Stream::start(&two, &one, true)];
        for _ in 0..3 {
            streams.iter().for_each(|stream| _ = stream.goes_on());
            let start = Instant::now();
            let handover = one.engine.take().unwrap().hand_over().unwrap();
            assert_eq!(handover.peers, [(key(2).public(), two.endpoint(false))]);
            let tun = handover.tun.into_iter().map(|fd| Tun::adopt(fd).unwrap()).collect();
            let udp = handover.udp.into_iter().map(|fd| Udp::adopt(fd).unwrap()).collect();
            let options = one.options(tun, udp, handover.peers);
            one.engine = Some(Engine::start(options, &one.table(&[two.peer()])).unwrap());
            streams.iter().for_each(|stream| _ = stream.goes_on());
            assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        }
        for stream in streams {
            stream.stop();
        }
        let not_a_tun = fs::File::open("/dev/null").unwrap().into();
        assert!(matches!(Tun::adopt(not_a_tun), Err(Error::Io { .. })));
    });
}

#[test]
fn host_engine_ends_without_a_word() {
    on_hosts(|mut one, mut two| {
        one.persist = true;
        join(&mut one, &mut two);
        let streams = [Stream::start(&one, &two, false), Stream::start(&two, &one, true)];
        streams.iter().for_each(|stream| _ = stream.goes_on());
        // As after SIGKILL: nothing is told to anyone, the device alone stays.
        drop(one.engine.take());
        thread::sleep(Duration::from_millis(200));
        let start = Instant::now();
        one.start(&[two.peer()]);
        streams.iter().for_each(|stream| _ = stream.goes_on());
        // The other side still uses the old session; hearing that is enough to make a new one.
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        for stream in streams {
            stream.stop();
        }
    });
}

#[test]
fn host_clock_is_behind() {
    on_hosts(|mut one, two| {
        let mut options = one.options(one.tun(), one.udp(), Vec::new());
        options.not_before_ms = u64::MAX;
        let refused = Engine::start(options, &one.table(&[two.peer()]));
        assert!(matches!(refused, Err(Error::ClockBehind { .. })));
        one.start(&[two.peer()]);
    });
}

/// How often threads of engines in this process were woken so far.
fn wakes() -> u64 {
    let mut wakes = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let Ok(name) = fs::read_to_string(path.join("comm")) else { continue };
        if name.starts_with("wireguard-") {
            let status = fs::read_to_string(path.join("status")).unwrap();
            let line = status.lines().find(|l| l.starts_with("voluntary_ctxt")).unwrap();
            wakes += line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap();
        }
    }
    wakes
}

#[test]
fn host_engine_at_rest_sleeps() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let idle = |what: &str| {
            let before = wakes();
            thread::sleep(Duration::from_secs(4));
            let woken = wakes() - before;
            assert!(woken <= 2, "{what}: two engines woke {woken} times in 4 s");
        };
        // The kernel tells which multicast groups it listens to.
        thread::sleep(Duration::from_secs(3));
        idle("never used");
        assert_answers(&one, &two);
        let before = wakes();
        thread::sleep(Duration::from_secs(2));
        assert!(wakes() > before, "links in use look at their timers");
        // The protocol's last wish comes 15 s after the last packet.
        thread::sleep(Duration::from_secs(22));
        idle("at rest");
        assert_answers(&two, &one);
    });
}
