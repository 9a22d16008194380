//! Policies in, lists of clauses for the services that run here out.

use warren_net::{Action, Peers, Traffic};

use super::*;

/// `web in: +p1 from{128.1.2} tcp:80` …: a line for each service and direction, clauses in
/// order, `+` lets pass and `-` drops; then who is in the sets.
fn shown(whole: &Whole) -> String {
    let networks = whole.table().networks.unwrap();
    let word = |text: &str| {
        let id: [u8; 10] = *text.parse::<PolicyId>().unwrap().as_bytes();
        String::from_utf8(id.iter().copied().filter(|byte| *byte != 0).collect()).unwrap()
    };
    let name_of = |key: &str| {
        let (id, end) = key.split_once('/').unwrap();
        format!("{} {end}", word(id))
    };
    let mut text = String::new();
    for policy in &networks.policies {
        let short = |address: &IpAddr| address.to_string().trim_start_matches("10.").to_owned();
        let subjects: Vec<String> = policy.subjects.iter().map(short).collect();
        let _ = write!(text, "{} [{}]:", name_of(&policy.key), subjects.join(" "));
        for clause in &policy.clauses {
            let sign = if clause.action == Action::Allow { '+' } else { '-' };
            let _ = write!(text, " {sign}{}", word(&clause.name));
            if let Peers::Some { set, subnets, outside } = &clause.peers {
                let set = set.as_ref().map(|key| {
                    let set = networks.peers.get(key).unwrap();
                    set.addresses.iter().map(short).collect::<Vec<_>>().join(" ")
                });
                let subnets = subnets.iter().map(|(address, len)| format!("{address}/{len}"));
                let all = set.into_iter().chain(subnets);
                let all = all.chain(outside.then(|| "outside".to_owned()));
                let _ = write!(text, "({})", all.collect::<Vec<_>>().join(" "));
            }
            for traffic in &clause.traffic {
                let _ = match traffic {
                    Traffic::Icmp => write!(text, " icmp"),
                    Traffic::Ports(range) => {
                        write!(text, " {}:{}-{}", range.protocol, range.first, range.last)
                    }
                };
            }
        }
        text.push('\n');
    }
    text
}

#[track_caller]
fn check(policies: &str, expected: &str) {
    const TOWN: &str = "
        node a
        node b
        network back
        web back t1a+ t2b+
        db back t3a+
        far back t4b+
    ";
    let whole = Town::new(&[TOWN, policies].concat()).draw(&mut Drawing::new(site()));
    let expected: Vec<&str> = expected.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    assert_eq!(shown(&whole).lines().collect::<Vec<_>>(), expected, "{policies}");
}

#[test]
fn who_is_kept_from_whom() {
    check("", "");
    check(
        "policy p deny to db from web",
        "db in [128.0.4]: -p(128.0.2 128.1.3)\nweb out [128.0.2]: -p(128.0.4)",
    );
    // The one that an "only" is about is shut to all others.
    check(
        "policy p only-from to db from web ports 5432,icmp",
        "db in [128.0.4]: +p(128.0.2 128.1.3) tcp:5432-5432 icmp -p
         web out [128.0.2]: +p(128.0.4) tcp:5432-5432 icmp",
    );
    check(
        "policy p only-to from db to 192.0.2.0/24,outside",
        "db out [128.0.4]: +p(192.0.2.0/24 outside) -p",
    );
    // Of what does not run here nothing is held.
    check("policy p deny to far from 192.0.2.0/24", "");
    // Anybody is everybody.
    check(
        "policy p deny to 169.254.169.254",
        "db out [128.0.4]: -p(169.254.169.254/32)
         web out [128.0.2]: -p(169.254.169.254/32)",
    );
    check(
        "policy p deny",
        "db in [128.0.4]: -p
         db out [128.0.4]: -p
         web in [128.0.2]: -p
         web out [128.0.2]: -p",
    );
    // Somebody who is gone is nobody.
    check("policy p only-from to db from gone", "db in [128.0.4]: +p() -p");
}

#[test]
fn what_is_looked_at_first() {
    let order = |policies: &str, expected: &str| {
        let town = "node a\n network back\n db back t3a+\n";
        let whole = Town::new(&[town, policies].concat()).draw(&mut Drawing::new(site()));
        let text = shown(&whole);
        let into = text.lines().find_map(|line| line.strip_prefix("db in [128.0.4]: "));
        assert_eq!(into, Some(expected), "{policies}");
    };
    // At the same priority what denies; then the name.
    order("policy a allow to db\n policy b deny to db", "-b +a");
    order("policy b allow to db priority 9\n policy a deny to db priority 10", "+b -a");
    order("policy b deny to db\n policy a deny to db", "-a -b");
    // Several "only" together let pass what any of them names.
    order(
        "policy b only-from to db from outside\n policy a only-from to db from 192.0.2.0/24 \n policy c deny to db priority 200",
        "+a(192.0.2.0/24) +b(outside) -c -a",
    );
}

#[test]
fn what_did_not_change_is_the_same_pointer() {
    let text =
        "node a\n network back\n web back t1a+\n db back t2a+\n policy p deny from web to db";
    let mut drawing = Drawing::new(site());
    let mut town = Town::new(text);
    let first = town.draw(&mut drawing);
    let of = |whole: &Whole, name: &str| {
        whole.parts[&ServiceId::from_bytes(bytes(name))].policies.clone()
    };
    town.add("db back t2a+ t3a+");
    let second = town.draw(&mut drawing);
    assert!(Arc::ptr_eq(&of(&first, "web")[0], &of(&second, "web")[0]));
    assert_ne!(of(&first, "db"), of(&second, "db"));
    let peers = first.peers.iter().zip(second.peers.iter());
    let same: Vec<bool> = peers.map(|(first, second)| Arc::ptr_eq(first, second)).collect();
    assert_eq!(same, [true, false], "who web is, who db is");
    town.table.policies.clear();
    let third = town.draw(&mut drawing);
    assert!(of(&third, "web").is_empty() && third.peers.is_empty());
}
