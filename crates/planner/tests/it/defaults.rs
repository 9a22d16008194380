//! What is reserved for tasks whose service reserves nothing.

use crate::world::check;

#[test]
fn who_says_nothing_reserves_the_default() {
    check(
        "nodes a
        has a mem=200
        default 64
        service web n=4
        plan => +web.1@a +web.2@a +web.3@a +web.4
        explain web.4 => no node fits: 1 short of memory (needs 64MiB, default of the cluster) | \
         a: needs 64MiB memory (default of the cluster), 8MiB free of 200MiB | near a
        fix web => free 56MiB more memory on a; warren service update --reserve-memory 8MiB web
        service tiny n=1 mem=8
        plan => +tiny.1@a",
    );
    // What a service says itself counts, and nothing beside it.
    check(
        "nodes a
        has a mem=200
        default 150
        service web n=3 mem=60
        plan => +web.1@a +web.2@a +web.3@a",
    );
}

#[test]
fn a_node_has_its_own() {
    check(
        "nodes a b
        has a mem=200 default=100
        has b mem=200
        default 50
        service web n=7
        plan => +web.1@a +web.2@b +web.3@b +web.4@a +web.5@b +web.6@b +web.7
        explain web => no node fits: 1 short of memory (needs 100MiB, default of the node), 1 \
         short of memory (needs 50MiB, default of the cluster) | \
         a: needs 100MiB memory (default of the node), 0B free of 200MiB | \
         b: needs 50MiB memory (default of the cluster), 0B free of 200MiB | near a
        has a default=0
        plan => place web.7@a",
    );
}

#[test]
fn a_change_counts_at_once_and_ends_nothing() {
    check(
        "nodes a
        has a mem=200
        service web n=3
        plan => +web.1@a +web.2@a +web.3@a
        start
        default 100
        plan =>
        service db n=1 mem=10
        plan => +db.1
        why db.1 => no node fits: 1 short of memory (needs 10MiB)
        default 60
        plan => place db.1@a
        update web n=4
        plan => +web.4
        default 0
        plan => place web.4@a",
    );
}

#[test]
fn who_is_ended_gives_back_the_default() {
    check(
        "nodes a
        has a mem=200
        default 100
        service low n=2
        plan => +low.1@a +low.2@a
        start
        service top n=1 mem=90 prio=1 preempt
        plan => !low.2 for top.1 +top.1 more
        why top.1 => waits until tasks of lower priority have ended on a
        plan => +low.2 more
        plan =>
        obey
        plan => place top.1@a",
    );
}
