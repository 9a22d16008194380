//! Random services, in random order, beside a reading of the tables that knows no index.

use std::collections::BTreeMap;
use std::net::IpAddr;

use proptest::prelude::*;
use warren_model::id::ServiceId;

use super::super::*;
use super::{addresses, network, print, tables};
use crate::dns::{NamedPort, NetworkId};

fn some_service() -> impl Strategy<Value = Service> {
    let name = prop::sample::select(vec!["web", "db", "tasks", "1"]);
    let stack = prop::sample::select(vec![None, Some("shop"), Some("blog"), Some("web")]);
    let alias = prop::sample::select(vec!["www", "web", "web.shop", "api.example.com"]);
    let aliases = prop::collection::vec(alias.prop_map(Into::into), 0..3);
    let network = prop::sample::select(vec!["a", "b", "c"]).prop_map(network);
    let endpoint = prop_oneof![
        Just(Endpoint::Tasks),
        (1u8..5).prop_map(|n| Endpoint::Vip(addresses(&format!("10.9.0.{n},fd09::{n}")))),
    ];
    let attachments = prop::collection::btree_map(network, (endpoint, aliases), 1..3);
    let hostname = prop::sample::select(vec![None, None, Some("db-1"), Some("web")]);
    let task =
        (1u32..4, hostname, 1u8..8, any::<bool>()).prop_map(|(slot, hostname, at, ready)| Task {
            slot,
            hostname: hostname.map(Into::into),
            addresses: addresses(&format!("10.1.0.{at}")),
            ready,
        });
    let tasks = prop::collection::vec(task, 0..4);
    (1u8..6, name, stack, attachments, tasks).prop_map(|(id, name, stack, attachments, tasks)| {
        Service {
            id: ServiceId::from_bytes([id; 10]),
            name: name.into(),
            stack: stack.map(Into::into),
            attachments: attachments
                .into_iter()
                .map(|(network, (endpoint, aliases))| Attachment { network, endpoint, aliases })
                .collect(),
            ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
            tasks,
        }
    })
}

const ASKERS: &str =
    "? 10.2.0.1 shop a\n? 10.2.0.2 blog b a\n? 10.2.0.3 - c b a\n? 10.2.0.4 web c\n? 10.2.0.5 -";

fn every_name() -> Vec<String> {
    let mut names = Vec::new();
    for base in ["web", "db", "tasks", "1", "www", "db-1", "api.example.com", "shop"] {
        for stack in ["", ".shop", ".blog", ".web"] {
            for before in ["", "tasks.", "1.", "2.", "_http._tcp.", "_tcp.", "_http._tcp.tasks."] {
                for after in ["", ".warren.internal"] {
                    names.push(format!("{before}{base}{stack}{after}"));
                }
            }
        }
    }
    names.extend((0..8).map(|n| format!("{n}.0.1.10.in-addr.arpa")));
    names.extend((0..5).map(|n| format!("{n}.0.9.10.in-addr.arpa")));
    names
}

/// The addresses that the tables give for `name`, found by looking at everything.
fn expected(
    services: &BTreeMap<ServiceId, Service>,
    asker: &Asker,
    name: &str,
) -> Option<Vec<String>> {
    let (name, exactly) = match name.strip_suffix(".warren.internal") {
        Some(name) => (name, true),
        None => (name, false),
    };
    let plain = |name: &str| -> Vec<(&Service, &Attachment, Option<String>)> {
        let mut ranked = Vec::new();
        for service in services.values() {
            let on = |n: &NetworkId| service.attachments.iter().find(|a| a.network == *n);
            let texts = |attachment: &Attachment| -> Vec<(String, bool)> {
                let own = std::iter::once(&service.name).chain(&attachment.aliases);
                let hosts = service.tasks.iter().filter_map(|t| t.hostname.as_ref());
                own.map(|n| (n.to_string(), false))
                    .chain(hosts.map(|n| (n.to_string(), true)))
                    .collect()
            };
            let full = |text: &str| match &service.stack {
                Some(stack) => format!("{text}.{stack}"),
                None => text.to_owned(),
            };
            let rank = |text: &str| {
                if exactly {
                    return (full(text) == name).then_some(1);
                }
                match () {
                    () if service.stack.is_some()
                        && service.stack == asker.stack
                        && text == name =>
                    {
                        Some(0)
                    }
                    () if full(text) == name => Some(1),
                    () if text == name && service.stack.is_some() => Some(2),
                    () => None,
                }
            };
            for rank_wanted in 0..3 {
                for attachment in asker.networks.iter().filter_map(on) {
                    let mut texts = texts(attachment);
                    texts.retain(|(text, _)| rank(text) == Some(rank_wanted));
                    texts.sort_by_key(|(_, host)| *host);
                    if let Some((text, host)) = texts.into_iter().next() {
                        ranked.push((rank_wanted, service, attachment, host.then_some(text)));
                        break;
                    }
                }
            }
        }
        let best = ranked.iter().map(|(rank, ..)| *rank).min();
        ranked.retain(|(rank, ..)| Some(*rank) == best);
        if ranked.iter().any(|(.., host)| host.is_none()) {
            ranked.retain(|(.., host)| host.is_none());
        }
        ranked.into_iter().map(|(_, s, a, h)| (s, a, h)).collect()
    };
    let mut all = Vec::new();
    let hits = plain(name);
    if !hits.is_empty() {
        for (service, attachment, host) in hits {
            match (attachment.endpoint, host) {
                (Endpoint::Vip(vip), None) => all.extend(vip.v4),
                (_, host) => all.extend(
                    service
                        .tasks
                        .iter()
                        .filter(|t| {
                            t.ready && (host.is_none() || t.hostname.as_deref() == host.as_deref())
                        })
                        .filter_map(|t| t.addresses.v4),
                ),
            }
        }
    } else {
        let (first, rest) = name.split_once('.')?;
        let slot: Option<u32> = first.parse().ok();
        if first != "tasks" && slot.is_none() {
            return None;
        }
        let tasks = plain(rest).into_iter().flat_map(|(service, _, host)| {
            service.tasks.iter().filter(move |t| {
                slot.is_none_or(|slot| t.slot == slot)
                    && (host.is_none() || t.hostname.as_deref() == host.as_deref())
            })
        });
        let tasks: Vec<&Task> = tasks.collect();
        if plain(rest).is_empty() || slot.is_some() && tasks.is_empty() {
            return None;
        }
        all.extend(tasks.into_iter().filter(|t| t.ready).filter_map(|t| t.addresses.v4));
    }
    let mut all: Vec<String> = all.iter().map(ToString::to_string).collect();
    all.sort();
    Some(all)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn changes_end_where_whole_tables_do(steps in prop::collection::vec((some_service(), any::<bool>()), 1..12)) {
        let mut tables = tables(ASKERS);
        let mut zone = Zone::new(tables.clone());
        let mut services = BTreeMap::new();
        for (service, keep) in steps {
            let id = service.id;
            if keep {
                services.insert(id, service.clone());
                zone.put_service(service);
            } else {
                services.remove(&id);
                zone.remove_service(id);
            }
        }
        tables.services = services.values().cloned().collect();
        let fresh = Zone::new(tables.clone());
        prop_assert_eq!(zone.names.len(), fresh.names.len());
        prop_assert_eq!(zone.known.len(), fresh.known.len());
        prop_assert_eq!(zone.stacks.len(), fresh.stacks.len());
        prop_assert_eq!(zone.addresses.len(), fresh.addresses.len());
        for asker in &tables.askers {
            let at = IpAddr::V4(asker.addresses.v4.unwrap());
            for name in every_name() {
                for kind in [kind::A, kind::SRV, kind::PTR] {
                    let (one, other) = (zone.lookup(at, &name, kind, 0), fresh.lookup(at, &name, kind, 0));
                    prop_assert_eq!(print(one), print(other), "{} {} {}", at, name, kind);
                }
                if name.contains("_tcp") || name.ends_with(".arpa") {
                    continue;
                }
                let got = zone.lookup(at, &name, kind::A, 0);
                let got = match got {
                    Outcome::Found(answer) => Some(answer.records),
                    Outcome::NoData => Some(Vec::new()),
                    _ => None,
                };
                let got = got.map(|records| {
                    let mut texts: Vec<String> = records.iter().map(|r| print(found(vec![r.clone()]))).collect();
                    texts.iter_mut().for_each(|text| text.truncate(text.find('/').unwrap()));
                    texts.sort();
                    texts
                });
                let expected = expected(&services, asker, &name);
                // Names of stacks exist too, with nothing.
                if expected.is_some() || got != Some(Vec::new()) {
                    prop_assert_eq!(got, expected, "{} {}", at, name);
                }
            }
        }
    }
}
