//! What goes on when daemon, data plane, or both are gone.

use std::time::{Duration, Instant};

use warren_dataplane::End;

use crate::clients::{Client, Echo};
use crate::world::{
    Host, VIP, assert_connects, assert_pings, dig, eventually, files, on_hosts, table,
};

/// What a person would notice.
const STALL_MAX: Duration = Duration::from_secs(1);
/// So long a datagram may be under way where some are lost, and where none may be.
const SOON: Duration = Duration::from_millis(20);
const LATE: Duration = Duration::from_secs(4);
/// Answers that clients must have had before and after something happens.
const ENOUGH: Duration = Duration::from_millis(300);

/// Both nodes have a data plane and know each other.
fn begin(one: &Host, two: &Host) {
    for host in [one, two] {
        host.keep("one");
        host.handle().set_table(table(10));
        host.apply();
    }
}

#[track_caller]
fn assert_same(before: u32, host: &Host) {
    assert_eq!(host.process("the data plane", |_| true).pid, before);
}

#[test]
fn host_names_and_packets() {
    on_hosts(|one, two| {
        begin(one, two);
        let (a, b) = (one.container(2), two.container(2));
        assert_pings(&a, b.address);
        assert_connects(&a, &b);
        assert_connects(&b, &a);
        assert_eq!(dig(&a, "web A"), VIP.to_string());
        assert_eq!(dig(&a, "+tcp web A"), VIP.to_string());
        assert_eq!(dig(&a, "tasks.web A"), "10.128.1.2 10.128.2.2");
        assert_eq!(dig(&b, "web AAAA"), "fd01:101:101:1::ac0:9");
        assert_eq!(dig(&b, "nobody A"), "");
        let status = one.process("one's data plane", |status| status.carries);
        assert_eq!((status.services, status.askers), (11, 1));
        assert!(status.dns.unwrap().answered >= 3, "{status:?}");
        let peer = &status.peers[0];
        assert!(peer.handshake_ms > 0 && peer.received_bytes > 0, "{peer:?}");
        assert_eq!(peer.endpoint, "192.0.2.2:51820");
        // What is said of a container does not outlive it.
        one.handle().dismiss(crate::world::asker(1, 2).task);
        eventually("it is dismissed", || one.status().is_some_and(|status| status.askers == 0));
        assert_eq!(dig(&a, "web A"), "");
        one.stop(End::Remove);
        assert_eq!(files(one.folder.path().into()).into_iter().collect::<Vec<_>>(), ["data.log"]);
        assert!(!one.run("ip link").contains("w-T"));
    });
}

#[test]
fn host_a_data_plane_that_is_killed_is_back_at_once() {
    on_hosts(|one, two| {
        begin(one, two);
        let (a, b) = (one.container(2), two.container(2));
        assert_pings(&a, b.address);
        let echo = Echo::in_container(&b);
        for host in [one, two, one] {
            let before = host.process("a data plane", |status| status.carries).pid;
            let (packets, names) =
                (Client::of_echo(&a, &echo, SOON), Client::of_names(&a, "web", VIP));
            std::thread::sleep(ENOUGH);
            let begun = Instant::now();
            host.kill(before);
            host.process("another data plane", |status| {
                status.pid != before && status.carries && status.dns.is_some()
            });
            eprintln!("another data plane after {:?}", begun.elapsed());
            std::thread::sleep(ENOUGH);
            let (packets, names) = (packets.stop(), names.stop());
            eprintln!("packets {packets:?}, names {names:?}");
            assert!(packets.answered > 0 && packets.gap < STALL_MAX, "{packets:?}");
            // Questions wait in the socket.
            assert!(names.answered > 0 && names.lost == 0, "{names:?}");
        }
    });
}

#[test]
fn host_a_daemon_that_is_gone_costs_nothing() {
    on_hosts(|one, two| {
        begin(one, two);
        let (a, b) = (one.container(2), two.container(2));
        assert_pings(&a, b.address);
        let echo = Echo::in_container(&b);
        let before = one.process("a data plane", |status| status.carries).pid;
        let (packets, names) = (Client::of_echo(&a, &echo, LATE), Client::of_names(&a, "web", VIP));
        one.stop(End::Leave);
        std::thread::sleep(ENOUGH);
        // The next one finds it, and what it was told.
        one.keep("one");
        assert_same(before, one);
        std::thread::sleep(ENOUGH);
        // It tells, and takes over what is to be told when the process is gone.
        let c = one.container(3);
        assert_eq!(dig(&c, "web A"), VIP.to_string());
        let (packets, names) = (packets.stop(), names.stop());
        assert_eq!((packets.lost, names.lost), (0, 0), "{packets:?} {names:?}");
        one.kill(before);
        one.process("another data plane", |status| status.pid != before && status.askers == 2);
        assert_eq!(dig(&a, "web A"), VIP.to_string());
        assert_pings(&c, b.address);
        one.handle().restore(vec![crate::world::asker(1, 3)]);
        eventually("askers are restored", || one.status().is_some_and(|s| s.askers == 1));
    });
}

#[test]
fn host_a_successor_loses_no_question() {
    on_hosts(|one, two| {
        begin(one, two);
        let (a, b) = (one.container(2), two.container(2));
        assert_pings(&a, b.address);
        let echo = Echo::in_container(&b);
        let before = one.process("a data plane", |status| status.carries).pid;
        let (packets, names) = (Client::of_echo(&a, &echo, SOON), Client::of_names(&a, "web", VIP));
        std::thread::sleep(ENOUGH);
        one.stop(End::Leave);
        // The daemon was upgraded; managers have not been heard of yet.
        one.keep("two");
        let after = one.process("a successor", |status| status.pid != before && status.carries);
        assert_eq!((after.services, after.askers), (11, 1));
        std::thread::sleep(ENOUGH);
        let (packets, names) = (packets.stop(), names.stop());
        eprintln!("packets {packets:?}, names {names:?}");
        assert!(packets.answered > 0 && packets.gap < STALL_MAX, "{packets:?}");
        assert!(names.answered > 0 && names.lost == 0, "{names:?}");
        eventually("the old one ends", || {
            !std::path::Path::new(&format!("/proc/{before}/stat")).exists()
        });
        assert_eq!(dig(&a, "s1 A"), "10.128.1.2 10.128.2.2");
        assert_same(after.pid, one);
    });
}
