//! Tables in a small notation.
//!
//! ```text
//! web.shop a:10.9.0.1+www b: http/tcp=80 1=10.1.0.1 2(db-2)=10.1.0.2!
//! ```
//! is service `web` of stack `shop`: on network `a` with a virtual address and an alias, on `b`
//! by its tasks; a named port; a task, and one with a hostname that is not ready.
//! `? 10.1.0.9 shop a b` is a container of `shop` on two networks, first `a`.

mod random;

use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::dns::{NamedPort, NetworkId};

pub(crate) fn network(name: &str) -> NetworkId {
    let mut id = [0; 10];
    id[..name.len()].copy_from_slice(name.as_bytes());
    NetworkId(id)
}

fn addresses(text: &str) -> Addresses {
    let mut addresses = Addresses::default();
    for address in text.split(',').filter(|text| !text.is_empty()) {
        match address.parse().unwrap() {
            IpAddr::V4(address) => addresses.v4 = Some(address),
            IpAddr::V6(address) => addresses.v6 = Some(address),
        }
    }
    addresses
}

fn service(id: u8, words: &[&str]) -> Service {
    let (name, stack) = match words[0].split_once('.') {
        Some((name, stack)) => (name, Some(stack.into())),
        None => (words[0], None),
    };
    let id = ServiceId::from_bytes([id; 10]);
    let (attachments, ports, tasks) = (vec![], vec![], vec![]);
    let mut service = Service { id, name: name.into(), stack, attachments, ports, tasks };
    for word in &words[1..] {
        match word.split_once('=') {
            Some((port, number)) if port.contains('/') => {
                let (name, protocol) = port.split_once('/').unwrap();
                let protocol = if protocol == "udp" { Protocol::Udp } else { Protocol::Tcp };
                let port = number.parse().unwrap();
                service.ports.push(NamedPort { name: name.into(), protocol, port });
            }
            Some((slot, at)) => {
                let (slot, hostname) = match slot.trim_end_matches(')').split_once('(') {
                    Some((slot, hostname)) => (slot, Some(hostname.into())),
                    None => (slot, None),
                };
                let (ready, at) = (!at.ends_with('!'), at.trim_end_matches('!'));
                let (slot, addresses) = (slot.parse().unwrap(), addresses(at));
                service.tasks.push(Task { slot, hostname, addresses, ready });
            }
            None => {
                let (on, rest) = word.split_once(':').unwrap();
                let mut parts = rest.split('+');
                let endpoint = match parts.next().unwrap() {
                    "" => Endpoint::Tasks,
                    vip => Endpoint::Vip(addresses(vip)),
                };
                let aliases = parts.map(Into::into).collect();
                service.attachments.push(Attachment { network: network(on), endpoint, aliases });
            }
        }
    }
    service
}

pub(crate) fn tables(text: &str) -> Tables {
    let pool = Prefix { address: "10.0.0.0".parse().unwrap(), len: 8 };
    let mut tables = Tables { pools: vec![pool], ..Tables::default() };
    for (line, id) in text.lines().zip(1..) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [] => {}
            ["?", address, stack, ref networks @ ..] => {
                let upstream = match networks.last() {
                    Some(&"nobody") => Upstream::Nobody,
                    Some(&"own") => {
                        Upstream::Servers([SocketAddr::from(([1, 1, 1, 1], 53))].into())
                    }
                    _ => Upstream::Host,
                };
                tables.askers.push(Asker {
                    addresses: addresses(address),
                    stack: (stack != "-").then(|| stack.into()),
                    networks: networks
                        .iter()
                        .filter(|n| n.len() == 1)
                        .map(|n| network(n))
                        .collect(),
                    upstream,
                });
            }
            _ => tables.services.push(service(id, &words)),
        }
    }
    tables
}

fn kind_of(text: &str) -> u16 {
    match text {
        "A" => kind::A,
        "AAAA" => kind::AAAA,
        "SRV" => kind::SRV,
        "PTR" => kind::PTR,
        "SOA" => kind::SOA,
        "NS" => kind::NS,
        "TXT" => kind::TXT,
        _ => kind::ANY,
    }
}

fn print(outcome: Outcome<'_>) -> String {
    let print = |record: &Record| match &record.data {
        Data::A(address) => format!("{address}/{}", record.ttl_s),
        Data::Aaaa(address) => format!("{address}/{}", record.ttl_s),
        Data::Srv { port, target } => format!("{port}@{target}"),
        Data::Ptr(name) => name.to_string(),
        Data::Soa => "soa".into(),
    };
    match outcome {
        Outcome::Found(answer) => {
            let mut records: Vec<String> = answer.records.iter().map(print).collect();
            records.sort();
            let additional =
                answer.additional.iter().map(|(owner, r)| format!("+{owner}={}", print(r)));
            records.extend(additional);
            records.join(" ")
        }
        Outcome::NoData => "no data".into(),
        Outcome::NoName => "no name".into(),
        Outcome::Forward(Upstream::Servers(servers)) => format!("forward to {}", servers[0]),
        Outcome::Forward(_) => "forward".into(),
        Outcome::Refused => "refused".into(),
    }
}

/// `cases`: one a line, `ASKER NAME TYPE: outcome`; times to live after a slash.
#[track_caller]
fn check(text: &str, cases: &str) {
    let zone = Zone::new(tables(text));
    for case in cases.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (question, expected) = case.split_once(": ").unwrap();
        let words: Vec<&str> = question.split_whitespace().collect();
        let [asker, name, kind] = words[..] else { panic!("{case}") };
        let name = name.trim_end_matches('.');
        let got = print(zone.lookup(asker.parse().unwrap(), name, kind_of(kind), 0));
        assert_eq!(got, expected, "{question}");
    }
}

const SHOP: &str = "
    web.shop  a:10.9.0.1,fd09::1+www+api.example.com  http/tcp=80 dns/udp=53  1=10.1.0.1,fd01::1 2=10.1.0.2 3=10.1.0.3!
    db.shop   a:  pg/tcp=5432  1(db-1)=10.1.0.11,fd01::11 2(db-2)=10.1.0.12!
    web       b:10.9.0.2+www  1=10.1.0.21
    web.blog  b:10.9.0.3  1=10.1.0.31
    cache.blog c:  1=10.1.0.41!
    ?  10.1.0.1,fd01::1 shop  a
    ?  10.1.0.31 blog  b c
    ?  10.1.0.99 other a b
    ?  10.1.0.98 -  c nobody
    ?  10.1.0.97 -  b own
";

#[test]
fn services_and_their_parts() {
    check(
        SHOP,
        "
        10.1.0.1 web A: 10.9.0.1/1
        fd01::1 web A: 10.9.0.1/1
        ::ffff:10.1.0.1 web A: 10.9.0.1/1
        10.1.0.1 web AAAA: fd09::1/1
        10.1.0.1 web ANY: 10.9.0.1/1 fd09::1/1
        10.1.0.1 web TXT: no data
        10.1.0.1 web.shop A: 10.9.0.1/1
        10.1.0.1 web.shop.warren.internal. A: 10.9.0.1/1
        10.1.0.1 tasks.web A: 10.1.0.1/0 10.1.0.2/0
        10.1.0.1 tasks.web AAAA: fd01::1/0
        10.1.0.1 tasks.web.shop.warren.internal A: 10.1.0.1/0 10.1.0.2/0
        10.1.0.1 2.web A: 10.1.0.2/0
        10.1.0.1 2.web AAAA: no data
        10.1.0.1 3.web A: no data
        10.1.0.1 4.web.shop A: no name
        10.1.0.1 4.web.warren.internal A: no name
        10.1.0.1 02.web A: forward
        10.1.0.1 02.web.shop.warren.internal A: no name
        10.1.0.1 db A: 10.1.0.11/0
        10.1.0.1 tasks.db A: 10.1.0.11/0
        10.1.0.1 nothing A: no name
        10.1.0.1 nothing.warren.internal A: no name
        ",
    );
}

#[test]
fn aliases_and_hostnames() {
    check(
        SHOP,
        "
        10.1.0.1 www A: 10.9.0.1/1
        10.1.0.1 www.shop.warren.internal A: 10.9.0.1/1
        10.1.0.1 api.example.com A: 10.9.0.1/1
        10.1.0.1 tasks.www A: 10.1.0.1/0 10.1.0.2/0
        10.1.0.31 api.example.com A: forward
        10.1.0.1 db-1 A: 10.1.0.11/0
        10.1.0.1 db-1.shop AAAA: fd01::11/0
        10.1.0.1 db-2 A: no data
        10.1.0.31 db-1 A: no name
        ",
    );
}

#[test]
fn a_service_has_its_name_before_containers_do() {
    check(
        "db a: 1(web)=10.1.0.1\nweb a:10.9.0.2 1=10.1.0.2\n? 10.1.0.9 - a",
        "
        10.1.0.9 web A: 10.9.0.2/1
        10.1.0.9 tasks.web A: 10.1.0.2/0
        10.1.0.9 db A: 10.1.0.1/0
        ",
    );
}

#[test]
fn ports_and_reverse_names() {
    check(
        SHOP,
        "
        10.1.0.1 _http._tcp.web SRV: 80@web.shop.warren.internal +web.shop.warren.internal=10.9.0.1/1 +web.shop.warren.internal=fd09::1/1
        10.1.0.1 _http._tcp.2.web.shop SRV: 80@2.web.shop.warren.internal +2.web.shop.warren.internal=10.1.0.2/0
        10.1.0.1 _pg._tcp.db SRV: 5432@1.db.shop.warren.internal +1.db.shop.warren.internal=10.1.0.11/0 +1.db.shop.warren.internal=fd01::11/0
        10.1.0.1 _http._tcp.web A: no data
        10.1.0.1 _http._udp.web SRV: no name
        10.1.0.1 _tcp.web SRV: no data
        10.1.0.1 _udp.db SRV: no name
        10.1.0.1 _smtp._tcp.web.shop.warren.internal SRV: no name
        10.1.0.1 _http._tcp.nothing SRV: no name
        10.1.0.1 _sip._tcp.example.com SRV: forward
        10.1.0.1 1.0.9.10.in-addr.arpa PTR: web.shop.warren.internal
        10.1.0.1 2.0.1.10.in-addr.arpa PTR: 2.web.shop.warren.internal
        10.1.0.1 3.0.1.10.in-addr.arpa PTR: no name
        10.1.0.1 1.0.9.10.in-addr.arpa A: no data
        10.1.0.1 2.0.9.10.in-addr.arpa PTR: no name
        10.1.0.1 1.2.0.192.in-addr.arpa PTR: forward
        10.1.0.1 01.0.9.10.in-addr.arpa PTR: forward
        10.1.0.1 1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.9.0.d.f.ip6.arpa PTR: web.shop.warren.internal
        10.1.0.1 1.0.0.0.9.0.a.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.5.5.d.f.ip6.arpa PTR: forward
        ",
    );
}

#[test]
fn a_name_is_for_those_who_may_connect() {
    check(
        SHOP,
        "
        10.1.0.31 db A: no name
        10.1.0.31 db.shop A: no name
        10.1.0.31 tasks.db.shop A: no name
        10.1.0.31 db.shop.warren.internal A: no name
        10.1.0.31 shop.warren.internal A: no name
        10.1.0.1 shop.warren.internal A: no data
        10.1.0.1 warren.internal A: no data
        10.1.0.1 warren.internal SOA: soa
        10.1.0.31 cache A: no data
        10.1.0.98 cache A: no data
        10.1.0.98 web A: no name
        10.1.0.98 example.com A: refused
        10.1.0.97 example.com A: forward to 1.1.1.1:53
        10.1.0.77 web A: refused
        ",
    );
}

#[test]
fn whose_name_it_is() {
    check(
        SHOP,
        "
        10.1.0.31 web A: 10.9.0.3/1
        10.1.0.31 web.warren.internal A: 10.9.0.2/1
        10.1.0.31 web.blog A: 10.9.0.3/1
        10.1.0.31 www A: 10.9.0.2/1
        10.1.0.99 web A: 10.9.0.2/1
        10.1.0.99 web.shop A: 10.9.0.1/1
        10.1.0.99 db A: 10.1.0.11/0
        ",
    );
    // Of other stacks, all; of one's own the name stays, also without a ready task.
    check(
        "
        web.one a: 1=10.1.0.1
        web.two a: 1=10.1.0.2
        api.one a: 1=10.1.0.3!
        api.two a: 1=10.1.0.4
        ? 10.1.0.9 three a
        ? 10.1.0.8 one a
        ",
        "
        10.1.0.9 web A: 10.1.0.1/0 10.1.0.2/0
        10.1.0.9 web.warren.internal A: no name
        10.1.0.8 web A: 10.1.0.1/0
        10.1.0.8 api A: no data
        ",
    );
    // An alias that looks like the full name of another's is not that one's short name.
    check(
        "db a:10.9.0.1+web.shop\nweb.shop a:10.9.0.2\n? 10.1.0.9 shop a",
        "10.1.0.9 web A: 10.9.0.2/1\n10.1.0.9 web.shop A: 10.9.0.1/1 10.9.0.2/1",
    );
}

#[test]
fn the_first_network_in_common_decides() {
    let of = |order: &str| format!("web a:10.9.0.1 b:10.9.0.2+www c:\n? 10.1.0.9 - {order}");
    check(&of("a b"), "10.1.0.9 web A: 10.9.0.1/1");
    check(&of("b a"), "10.1.0.9 web A: 10.9.0.2/1");
    check(&of("a b"), "10.1.0.9 www A: 10.9.0.2/1");
    check(&of("c a"), "10.1.0.9 web A: no data");
}

#[test]
fn what_stays_here_and_what_leaves() {
    check(
        SHOP,
        "
        10.1.0.1 example.com A: forward
        10.1.0.1 metadata.google.internal A: forward
        10.1.0.1 xwarren.internal A: forward
        10.1.0.1 intranet A: no name
        10.1.0.1 com NS: forward
        10.1.0.1 . NS: forward
        10.1.0.1 tasks.google A: forward
        10.1.0.1 tasks.cache A: no name
        10.1.0.1 1.cache.blog A: no name
        10.1.0.1 cache.blog NS: no name
        10.1.0.1 nothing.blog A: forward
        ",
    );
}

#[test]
fn case_is_of_no_matter() {
    let zone = Zone::new(tables("Web.Shop a:10.9.0.1+WWW 1(Db-1)=10.1.0.1\n? 10.1.0.1 SHOP a"));
    for name in ["web", "www", "web.shop.warren.internal"] {
        let outcome = zone.lookup("10.1.0.1".parse().unwrap(), name, kind::A, 0);
        assert_eq!(print(outcome), "10.9.0.1/1", "{name}");
    }
    assert_eq!(print(zone.lookup("10.1.0.1".parse().unwrap(), "db-1", kind::A, 0)), "10.1.0.1/0");
}

#[test]
fn answers_rotate() {
    let zone = Zone::new(tables("web a: 1=10.1.0.1 2=10.1.0.2 3=10.1.0.3\n? 10.1.0.9 - a"));
    let first = |rotation| match zone.lookup("10.1.0.9".parse().unwrap(), "web", kind::A, rotation)
    {
        Outcome::Found(answer) => print(found(vec![answer.records[0].clone()])),
        other => panic!("{other:?}"),
    };
    let firsts: Vec<String> = (0..4).map(first).collect();
    assert_eq!(firsts, ["10.1.0.1/0", "10.1.0.2/0", "10.1.0.3/0", "10.1.0.1/0"]);
    let _ = first(u32::MAX);
}

#[test]
fn names_beyond_the_limits_are_none() {
    let label = "x".repeat(300);
    let mut tables = tables("web a:10.9.0.1\n? 10.1.0.9 - a");
    tables.services[0].attachments[0].aliases.push(format!("{label}.{label}").into());
    let zone = Zone::new(tables);
    assert_eq!(print(zone.lookup("10.1.0.9".parse().unwrap(), "web", kind::A, 0)), "10.9.0.1/1");
    assert_eq!(print(zone.lookup("10.1.0.9".parse().unwrap(), &label, kind::A, 0)), "no name");
}

/// What a change of one service costs, shown by who still shares memory with the old snapshot.
#[test]
fn a_change_leaves_the_old_snapshot_as_it_was() {
    let before = Zone::new(tables(SHOP));
    let mut after = before.clone();
    let web = before
        .services
        .iter()
        .map(|(_, s)| s)
        .find(|s| s.stack.as_deref() == Some("shop") && &*s.name == "web");
    let mut web = Service::clone(web.unwrap());
    web.tasks[0].ready = false;
    let id = web.id;
    after.put_service(web);
    let ask =
        |zone: &Zone| print(zone.lookup("10.1.0.1".parse().unwrap(), "tasks.web", kind::A, 0));
    assert_eq!(ask(&before), "10.1.0.1/0 10.1.0.2/0");
    assert_eq!(ask(&after), "10.1.0.2/0");
    after.remove_service(id);
    assert_eq!(ask(&after), "no name");
    assert_eq!(ask(&before), "10.1.0.1/0 10.1.0.2/0");
    let shared = before
        .services
        .iter()
        .filter(|(id, s)| after.services.get(*id).is_some_and(|o| Arc::ptr_eq(s, o)));
    assert_eq!(shared.count(), before.service_count() - 1);
}
