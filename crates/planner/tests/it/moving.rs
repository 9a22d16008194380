//! Tasks that are moved: off nodes that drain, and to nodes that came later.

use proptest::prelude::*;
use warren_model::moving::Cause;

use crate::world::{World, check};

#[test]
fn a_node_that_comes_back_gets_its_part() {
    let mut world = World::new();
    let run = |world: &mut World, commands: &[&str]| {
        commands.iter().for_each(|command| drop(world.run(command)));
    };
    run(&mut world, &["nodes a b c", "service web n=30", "settle"]);
    assert_eq!(world.run("on web"), "a 10 b 10 c 10");
    run(&mut world, &["wait 5s", "down c", "settle"]);
    assert_eq!(world.run("on web"), "a 15 b 15");
    run(&mut world, &["wait 5s", "up c", "settle"]);
    assert_eq!(world.run("on web"), "a 10 b 10 c 10");
    assert_eq!(world.run("counts web"), "30/30");
    let before = world.state.revision();
    run(&mut world, &["wait 700s", "plan", "wait 700s", "plan"]);
    assert_eq!(world.state.revision(), before, "it has ended");
}

#[test]
fn moves_are_few_and_start_first() {
    check(
        "nodes a
        service web n=5
        plan => +web.1@a +web.2@a +web.3@a +web.4@a +web.5@a
        start
        wait 1s
        nodes b
        plan => wake 5s
        wait 5s
        plan => +web.5@b +web.4@b
        cause web.5 => balance
        progress web => converged
        plan => wake 300s
        start web.5
        plan => -web.5 wake 300s
        plan => wake 300s
        obey
        start web.4
        plan => -web.4
        obey
        plan =>
        on web => a 3 b 2",
    );
    // What is no better by more than one task is left where it is.
    check(
        "nodes a
        service web n=1
        plan => +web.1@a
        start
        wait 1s
        nodes b
        plan =>
        wait 60s
        plan =>",
    );
}

#[test]
fn nothing_is_moved_that_had_the_choice() {
    // Scaled down unevenly: no event, no move.
    check(
        "nodes a b
        service web n=4 where=disk!=x
        settle
        on web => a 2 b 2
        has b disk:x
        settle
        on web => a 4
        has b disk:y
        settle
        on web => a 4
        wait 1s
        pause b
        active b
        settle
        on web => a 2 b 2",
    );
}

#[test]
fn who_is_never_moved() {
    let uneven = |words: &str| {
        let mut world = World::new();
        let service = format!("service web n=4 {words}");
        for command in ["nodes a", &service, "settle", "wait 1s", "nodes b", "settle"] {
            world.run(command);
        }
        world.run("on web")
    };
    assert_eq!(uneven(""), "a 2 b 2");
    for words in ["rebalance=never", "stop-first", "pack", "keep", "stop-after=5s", "volume=data"] {
        assert_eq!(uneven(words), "a 4", "{words}");
    }
    // What is of the task alone goes with it; who is told so moves the others, too.
    for words in ["volume", "volume=data rebalance=always"] {
        assert_eq!(uneven(words), "a 2 b 2", "{words}");
    }
    // Not to where it may not be, nor to where it likes less to be.
    for words in ["where=disk==ssd", "prefer=node.hostname==a"] {
        let mut world = World::new();
        let service = format!("service web n=4 {words}");
        for command in ["nodes a", "has a disk:ssd", &service, "settle", "wait 1s", "nodes b"] {
            world.run(command);
        }
        world.run("settle");
        assert_eq!(world.run("on web"), "a 4", "{words}");
    }
    check(
        "rebalance never
        nodes a
        service web n=4
        settle
        wait 1s
        nodes b
        settle
        on web => a 4
        rebalance auto
        settle
        on web => a 2 b 2",
    );
}

#[test]
fn who_has_volumes_stays_with_them() {
    check(
        "nodes a b
        service web n=1
        settle
        service db n=1 volume=data
        settle
        on db => b 1
        remove web
        settle
        update db image=2
        settle
        on db => b 1
        fail db.1
        settle
        on db => b 1
        wait 1s
        drain b
        settle
        on db => a 1
        active b
        settle
        wait 60s
        update db image=3
        settle
        on db => a 1",
    );
}

#[test]
fn a_move_that_does_not_come_up_is_given_up() {
    check(
        "nodes a
        service web n=2
        settle
        wait 1s
        nodes b
        plan => wake 5s
        wait 5s
        plan => +web.2@b
        wait 299s
        plan => wake 1s
        wait 1s
        plan => -web.2
        obey
        plan =>
        wait 900s
        plan =>
        on web => a 2
        pause b
        wait 1s
        active b
        plan => wake 5s
        wait 5s
        plan => +web.2@b
        fail web.2
        plan => -web.2 wake 600s
        wait 900s
        plan =>
        on web => a 2",
    );
    // The node drains, or is lost, before it is up.
    check(
        "nodes a
        service web n=2
        settle
        wait 1s
        nodes b
        wait 5s
        plan => +web.2@b
        drain b
        plan => -web.2
        on web => a 2",
    );
}

#[test]
fn moves_wait_for_updates_and_for_what_does_not_work() {
    check(
        "nodes a
        service web n=4 least=4 par=0
        settle
        wait 1s
        nodes b
        wait 5s
        unhealthy web.1
        plan =>
        healthy web.1
        plan => +web.4@b +web.3@b
        update web image=b
        plan => +web.1/2@b +web.2/2@b -web.3 +web.3/2@a -web.4 +web.4/2@b
        settle
        progress web => converged",
    );
}

#[test]
fn levels_are_evened_out_from_the_top() {
    check(
        "nodes a b c d
        has a zone:x
        has b zone:x
        has c zone:y
        has d zone:y
        pause c
        pause d
        service web n=8 spread=zone
        settle
        on web => a 4 b 4
        wait 1s
        active c
        settle
        on web => a 2 b 2 c 4
        wait 1s
        active d
        settle
        on web => a 2 b 2 c 2 d 2",
    );
}

#[test]
fn the_cluster_moves_a_few_at_a_time() {
    let mut world = World::new();
    world.run("nodes a");
    for n in 0..9 {
        world.run(&format!("service web{n} n=6"));
    }
    world.settle();
    for command in ["wait 1s", "nodes b", "wait 5s"] {
        world.run(command);
    }
    let created = |plan: &str| plan.matches("@b").count();
    assert_eq!(created(&world.run("plan")), 8, "all together");
    assert_eq!(created(&world.run("plan")), 0);
    world.settle();
    for n in 0..9 {
        assert_eq!(world.run(&format!("on web{n}")), "a 3 b 3");
    }
}

#[test]
fn drains_are_start_first_and_share_a_budget() {
    check(
        "nodes a b c
        service web n=2
        plan => +web.1@a +web.2@b
        start
        drain a
        plan => +web.1@c
        cause web.1 => drain
        start
        plan => -web.1
        drain b
        plan => +web.2@c
        active b
        plan => -web.2
        on web => b 1 c 1",
    );
    // What has to end first does so only while enough others work, whichever node drains.
    check(
        "nodes a b c
        service web n=3 stop-first least=2 par=0
        plan => +web.1@a +web.2@b +web.3@c
        start
        drain a
        drain b
        plan => -web.1
        plan =>
        obey
        plan => +web.1@c
        cause web.1 => drain
        plan =>
        start
        plan => -web.2
        obey
        plan => +web.2@c",
    );
    // Of updates it is a bound, too.
    check(
        "nodes a
        service web n=4 stop-first least=75% par=0
        settle
        update web image=b
        plan => -web.1
        obey
        plan => +web.1/2@a
        plan =>
        start
        plan => -web.2",
    );
}

#[test]
fn a_deadline_ends_what_is_left() {
    // All of it has to work: nothing may be stopped, until the time is over.
    check(
        "nodes a b
        service web n=2 stop-first least=100%
        plan => +web.1@a +web.2@b
        start
        drain a 10s
        plan => wake 10s
        progress web => 1 to be moved: 2 of 2 must stay available
        wait 10s
        plan => -web.1
        obey
        plan => +web.1@b
        cause web.1 => deadline",
    );
    // Also what fits nowhere else.
    check(
        "nodes a b
        service web n=1 where=node.hostname==a
        plan => +web.1@a
        start
        drain a 10s
        plan => +web.1 wake 10s
        wait 10s
        plan => -web.1
        on web => - 1
        active a
        plan => place web.1@a",
    );
    // And what is paused.
    check(
        "nodes a b
        service web n=2
        settle
        update web image=b
        plan => +web.1/2@a
        hold web
        drain a 10s
        plan => wake 10s
        wait 10s
        plan => -web.1/2 -web.1 +web.1/2@b",
    );
}

/// Wanted tasks on each node that takes some.
fn spread(world: &mut World, nodes: &[&str]) -> Vec<u32> {
    let on = world.run("on web");
    let words: Vec<&str> = on.split_whitespace().collect();
    let count = |node: &&str| {
        let at = words.iter().position(|word| word == node);
        at.map_or(0, |at| words[at + 1].parse().unwrap())
    };
    nodes.iter().map(count).collect()
}

/// Moves for balance that the state remembers.
fn moves(world: &World) -> usize {
    let moved = |task: &&warren_model::Task| {
        task.origin.is_some_and(|origin| origin.cause == Cause::Balance)
    };
    world.state.tasks().filter(moved).count()
}

proptest! {
    #![proptest_config(crate::cases(96))]

    /// Whatever nodes do, moves end, and once each node has opened after all tasks were placed they
    /// are even; time alone moves nothing then.
    #[test]
    fn moves_end_and_even_out(
        n in 0..25u32,
        events in prop::collection::vec((0..4usize, 0..5u8), 0..10),
    ) {
        let nodes = ["a", "b", "c", "d"];
        let mut world = World::new();
        world.cluster(|cluster| cluster.history_limit = 100);
        for command in ["nodes a b c d", &format!("service web n={n} par=0"), "settle"] {
            world.run(command);
        }
        for (at, what) in events {
            let word = ["down", "up", "drain", "active", "pause"][usize::from(what)];
            world.run(&format!("{word} {}", nodes[at]));
            let before = moves(&world);
            world.settle();
            // Each opening moves no task twice.
            prop_assert!(moves(&world) - before <= n as usize);
            world.run("wait 7s");
        }
        for node in nodes {
            for word in ["up", "pause", "wait 1s", "active"] {
                let command = if word.contains(' ') { word.into() } else { format!("{word} {node}") };
                world.run(&command);
            }
            world.settle();
        }
        let counts = spread(&mut world, &nodes);
        prop_assert_eq!(counts.iter().sum::<u32>(), n);
        let (most, least) = (counts.iter().max().unwrap(), counts.iter().min().unwrap());
        prop_assert!(most - least <= 1, "{counts:?}");
        let before = world.state.revision();
        for _ in 0..5 {
            world.run("wait 200s");
            prop_assert_eq!(world.plan().transaction.mutations, vec![]);
        }
        prop_assert_eq!(world.state.revision(), before);
    }
}
