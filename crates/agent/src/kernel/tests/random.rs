//! Whatever was drawn before, what is drawn next is what a fresh drawing makes.

use proptest::prelude::*;

use super::*;
use crate::table::Publisher;

/// Words of a town's services: networks they are on, tasks, ports.
fn services() -> impl Strategy<Value = String> {
    let task = (1..8u8, prop::sample::select(vec!["a", "b", "c"]), any::<bool>());
    let tasks = prop::collection::vec(task, 0..4);
    let on = prop::sample::subsequence(vec!["back=.5", "front", "edge=.7"], 0..=3);
    let service = (on, any::<bool>(), tasks).prop_map(|(on, port, tasks)| {
        let mut words = on.join(" ");
        if port {
            words.push_str(" p80");
        }
        for (number, node, ready) in tasks {
            let _ = write!(words, " t{number}{node}{}", if ready { "+" } else { "-" });
        }
        words
    });
    prop::collection::vec(service, 1..4).prop_map(|services| {
        let line = |(at, words): (usize, &String)| format!("s{at}x {words}\n");
        services.iter().enumerate().map(line).collect()
    })
}

fn towns() -> impl Strategy<Value = (String, String)> {
    let nodes = prop::sample::subsequence(vec!["node a\n", "node b\n", "node c m3.test\n"], 0..=3);
    let networks = vec!["network back\n", "network front\n", "network edge internal\n"];
    let networks = prop::sample::subsequence(networks, 0..=3);
    let here = prop::collection::btree_map(1..8u8, any::<bool>(), 0..4);
    (nodes, networks, services(), here).prop_map(|(nodes, networks, services, here)| {
        let here = here.iter().map(|(n, up)| format!("{n}{} ", if *up { "+" } else { "-" }));
        (format!("{}{}{services}", nodes.concat(), networks.concat()), here.collect())
    })
}

proptest! {
    #[test]
    fn memory_saves_work_and_changes_nothing(steps in prop::collection::vec(towns(), 1..6)) {
        let (mut drawing, mut publisher) = (Drawing::new(site()), Publisher::default());
        // Numbers of networks depend on what was seen before.
        let names = |whole: &Whole| -> Vec<String> {
            shown(whole).lines().map(|line| line.split("}: ").last().unwrap().to_owned()).collect()
        };
        for (town, here) in steps {
            let town = Town::new(&town).here(&here);
            let drawn = town.draw(&mut drawing);
            let fresh = town.draw(&mut Drawing::new(site()));
            prop_assert_eq!(names(&drawn), names(&fresh));
            publisher.want(drawn.clone());
            prop_assert_eq!(publisher.table(), &drawn.table());
            prop_assert_eq!(&drawn.overlay, &fresh.overlay);
            prop_assert_eq!(drawn.internal.len(), fresh.internal.len());
            for service in &drawn.table().services {
                for backend in service.backends.iter().filter(|backend| backend.local) {
                    let fits = town.table.services.values().flat_map(|s| &s.tasks).any(|task| {
                        let local = town.locals.get(&task.task);
                        IpAddr::V4(task.address) == backend.address
                            && local.is_some_and(|local| local.serving == (backend.weight > 0))
                    });
                    prop_assert!(fits, "{:?}", backend);
                }
            }
        }
    }
}
