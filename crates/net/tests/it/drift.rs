//! What somebody else takes away comes back.

use std::process::Command;

use warren_net::{Carrier, Frontend, Networks, Table};

use crate::cluster::{on_cluster, service, vip};
use crate::world::{eventually, run, tcp_to, within};

#[test]
fn host_drift_is_repaired() {
    on_cluster(2, |cluster| async move {
        let [one, two] = cluster.nodes.as_slice() else { unreachable!() };
        let (web, client) = (one.pod("web", 2).await, two.pod("client", 3).await);
        let _servers = web.serve("web", 80);
        let table = |from| Table {
            services: vec![service("web", &[Frontend::Address(vip(1))], &[&web], from)].into(),
            networks: None::<Networks>,
            ..Table::default()
        };
        cluster.apply(Carrier::Vxlan, table).await;
        let works = || within(client.netns(), || tcp_to(vip(1), 80)) == "web 10.128.2.3";
        assert!(works());
        let state = || {
            within(&two.netns, || {
                [
                    run("ip route show table all"),
                    run("ip -6 route show table all proto 87"),
                    run("ip rule show"),
                    run("ip -6 rule show"),
                    run("ip neigh show nud permanent"),
                    run("ip -o addr show dev w-node02"),
                    run("bridge fdb show dev w-node02"),
                    run("nft -s list ruleset"),
                ]
                .map(|text| {
                    // Without the number of a link, which is a new one when it was made anew.
                    let bare = |line: &str| match line.split_once(": ") {
                        Some((number, rest)) if number.parse::<u32>().is_ok() => rest.to_owned(),
                        _ => line.to_owned(),
                    };
                    // A set has another order each time that it is made: each element by itself.
                    let parts = |line: String| -> Vec<String> {
                        let line = line.replace("elements = { ", "");
                        let clean =
                            |part: &str| part.trim_matches([' ', '\t', '}', ',']).to_owned();
                        line.split(", ").map(clean).collect()
                    };
                    let mut lines: Vec<String> = text.lines().map(bare).flat_map(parts).collect();
                    lines.sort();
                    lines
                })
            })
        };
        let table_name = "ip warren-node02";
        let breakages = [
            "ip route del 10.128.1.0/24 table main".to_owned(),
            "ip route del unreachable 10.128.0.0/10".into(),
            "ip -6 route flush proto 87".into(),
            "ip rule flush".into(),
            "ip neigh del 10.128.1.0 dev w-node02".into(),
            "bridge fdb del 02:57:4e:00:00:01 dev w-node02 dst 192.0.2.1".into(),
            "ip addr flush dev w-node02".into(),
            "ip link set w-node02 down".into(),
            "ip link set w-node02 mtu 1300".into(),
            "ip link del w-node02".into(),
            format!("nft flush chain {table_name} ports"),
            format!("nft delete chain {table_name} untranslated"),
            format!("nft flush set {table_name} vips"),
            format!("nft flush map {table_name} backends"),
            format!("nft insert rule {table_name} forward drop"),
            "nft flush ruleset".into(),
            // A container's own.
            "ip route del 10.128.2.3".into(),
            "ip -6 route del fd00:2::3".into(),
            "ip neigh flush nud permanent".into(),
        ];
        // What the kernel remembers of connections is no part of it, nor the uplink's own address,
        // which comes a second later.
        let settled = |lines: &[Vec<String>; 8]| {
            let of = |line: &&String| !line.trim().starts_with("tcp .") && !line.contains("fe80::");
            lines
                .iter()
                .map(|lines| lines.iter().filter(of).cloned().collect())
                .collect::<Vec<Vec<String>>>()
        };
        let before = settled(&state());
        for breakage in breakages {
            within(&two.netns, || {
                let words: Vec<&str> = breakage.split(' ').collect();
                let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
                let error = String::from_utf8_lossy(&output.stderr);
                // What is put back at once makes `ip` flush again, and give up in the end.
                let gave_up = breakage.contains("neigh flush") && error.is_empty();
                assert!(output.status.success() || gave_up, "{breakage}: {error}");
                if breakage == "ip rule flush" {
                    // What the kernel begins with is not ours to bring back.
                    run("ip rule add priority 32766 lookup main");
                    run("ip rule add priority 32767 lookup default");
                }
            });
            eventually(&format!("as before: {breakage}"), || settled(&state()) == before);
            assert!(works(), "{breakage}");
        }
    });
}
