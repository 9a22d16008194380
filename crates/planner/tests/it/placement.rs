//! Which node a task goes to, and that it goes to none that lacks what it asks.

use crate::world::check;

#[test]
fn reservations_are_kept_and_freed() {
    check(
        "nodes a b
        has a mem=1024
        has b mem=600
        service db n=4 mem=512
        plan => +db.1@a +db.2@b +db.3@a +db.4
        progress db => 3 assigned, 1 pending: no node fits: 2 short of memory (needs 512MiB)
        start
        plan =>
        service api n=1
        plan => +api.1@b
        remove api
        plan => x api.1
        obey
        plan => drop api.1 drop-service api
        update db n=3
        plan => drop db.4
        update db n=4
        plan => +db.4
        fail db.2
        plan => place db.4@b wake 1s",
    );
    // What is stopping still holds what it reserved, and what the system keeps is nobody's.
    check(
        "nodes a
        has a mem=1024 system=512
        service web n=1 mem=512 stop-first
        plan => +web.1@a
        start
        update web image=b
        plan => -web.1
        plan =>
        obey
        plan => +web.1/2@a",
    );
    // Smaller than one that waits, and placed before it.
    check(
        "nodes a
        has a cpu=2
        service big n=1 cpu=3000
        service small n=1 cpu=2000
        plan => +big.1 +small.1@a
        has a cpu=5
        plan => place big.1@a",
    );
    check(
        "nodes a b
        has b gpu=2
        service ml n=3 gpu=1
        plan => +ml.1@b +ml.2@b +ml.3
        has a gpu=1
        plan => place ml.3@a",
    );
    check(
        "nodes a
        has a disk=100
        service web n=2 disk=60
        plan => +web.1@a +web.2
        service top n=1 pids=32769
        plan => +top.1
        progress top => 1 pending: no node fits: 1 short of pids (needs 32769)",
    );
}

#[test]
fn constraints() {
    check(
        "nodes a b c
        has b disk:ssd
        has c disk:SSD cores:16
        service web n=2 where=disk==ssd
        plan => +web.1@b +web.2@c
        service big n=1 where=cores>8
        plan => +big.1@c
        service edge n=1 where=node.hostname=~[b*
        plan => +edge.1
        progress edge => 1 pending: no node fits: 3 not node.hostname=~[b*
        update edge anywhere where=node.hostname_in_b,x
        plan => place edge.1@b
        service boss n=1 where=node.role==worker
        plan => +boss.1",
    );
    // A node that stops being as it must is left, once there is another.
    check(
        "nodes a b
        has a zone:x
        service web n=1 where=zone==x
        plan => +web.1@a
        start
        has a zone:y
        plan => +web.1
        plan =>
        has b zone:x
        plan => place web.1@b
        start
        plan => -web.1
        progress web => converged",
    );
    // Global services are where their constraints hold.
    check(
        "nodes a b
        has a zone:x
        service mon global where=zone==x
        plan => +mon.a@a
        start
        progress mon => converged
        has b zone:x
        plan => +mon.b@b
        has a zone:y
        plan => x mon.a",
    );
}

#[test]
fn a_global_service_is_where_it_fits() {
    check(
        "nodes a b c
        has b mem=100
        has c mem=100
        service mon global mem=60
        plan => +mon.b@b +mon.c@c
        start
        counts mon => 2/3
        explain mon => no node fits: 3 short of memory (needs 60MiB) | b: needs 60MiB memory, \
         40MiB free of 100MiB | c: needs 60MiB memory, 40MiB free of 100MiB | a: needs 60MiB \
         memory, 0B free of 0B | near b
        has a mem=60
        plan => +mon.a@a",
    );
}

#[test]
fn taints() {
    check(
        "nodes a b
        taint a gpu:no-schedule
        service web n=2
        plan => +web.1@b +web.2@b
        service ml n=2 tolerate=gpu
        plan => +ml.1@a +ml.2@b
        start
        taint b gpu:no-execute
        plan => +web.1
        progress web => 1 pending, 1 to be moved, 1 to be stopped: no node fits: 1 tainted \
         gpu:no-execute, 1 tainted gpu:no-schedule",
    );
    check(
        "nodes a b
        taint a old:prefer-no-schedule
        service web n=3
        plan => +web.1@b +web.2@b +web.3@b
        drain b
        service api n=1
        plan => +api.1@a -web.1 +web.1@a",
    );
    check(
        "nodes a b
        service mon global
        plan => +mon.a@a +mon.b@b
        start
        taint b x:no-schedule
        plan =>
        counts mon => 2/1
        taint b x:no-execute
        plan => x mon.b",
    );
}

#[test]
fn spread_over_labels_then_nodes() {
    check(
        "nodes a b c d
        has a zone:x
        has b zone:x
        has c zone:x
        has d zone:y
        service web n=6 spread=zone
        plan => +web.1@a +web.2@d +web.3@b +web.4@d +web.5@c +web.6@d",
    );
    // Branches that are equal go by what is on their nodes.
    check(
        "nodes a b
        has a zone:x
        has b zone:y
        service one n=1
        service two n=1 spread=zone
        plan => +one.1@a +two.1@b",
    );
    check(
        "nodes a b c d
        has a zone:x rack:1
        has b zone:x rack:2
        has c zone:x rack:2
        has d zone:y rack:1
        service web n=6 spread=zone spread=rack
        plan => +web.1@a +web.2@d +web.3@b +web.4@d +web.5@c +web.6@d",
    );
    // A full branch is no reason to wait.
    check(
        "nodes a b
        has a zone:x mem=1000
        has b zone:y mem=100
        service web n=4 mem=100 spread=zone
        plan => +web.1@a +web.2@b +web.3@a +web.4@a",
    );
}

#[test]
fn preferences_in_order() {
    check(
        "nodes a b c
        has a disk:ssd
        has b zone:x
        has c disk:ssd zone:y
        service web n=1 prefer=zone==x prefer=disk==ssd
        plan => +web.1@b
        service api n=2 prefer=disk==ssd prefer=zone==y
        plan => +api.1@c +api.2@c
        service db n=3 prefer=disk==ssd max=1
        plan => +db.1@a +db.2@c +db.3@b",
    );
}

#[test]
fn most_per_node() {
    check(
        "nodes a b
        service web n=5 max=2
        plan => +web.1@a +web.2@b +web.3@a +web.4@b +web.5
        progress web => 4 assigned, 1 pending: no node fits: 2 with as many of it as may \
         be (2)
        nodes c
        plan => place web.5@c",
    );
    // Who leaves makes room at once.
    check(
        "nodes a
        service web n=3 max=1
        plan => +web.1@a +web.2 +web.3
        fail web.1
        plan => place web.2@a wake 1s
        fail web.2
        plan => place web.3@a wake 1s
        wait 1s
        plan => -web.1 +web.1 -web.2 +web.2
        update web n=2
        plan => x web.3 place web.1@a",
    );
    // The old task of a slot does not stand in the way of the new one.
    check(
        "nodes a
        service web n=1 max=1
        plan => +web.1@a
        start
        update web image=b
        plan => +web.1/2@a
        start
        plan => -web.1",
    );
}

#[test]
fn near_and_apart() {
    check(
        "nodes a b c
        service cache n=1 near=db
        plan => +cache.1
        progress cache => 1 pending: no node fits: 3 without db
        service db n=1
        plan => +db.1@a more
        plan => place cache.1@a",
    );
    check(
        "nodes a b
        service db n=1
        plan => +db.1@a
        service web n=2 apart=db
        plan => +web.1@b +web.2@b
        service api n=1 apart=web
        plan => +api.1@a
        update db n=2
        plan => +db.2@a",
    );
    // Who is not wanted near does not come near either.
    check(
        "nodes a
        service web n=1 apart=db
        plan => +web.1@a
        service db n=1
        plan => +db.1
        progress db => 1 pending: no node fits: 1 with web
        update web n=0
        plan => x web.1
        obey
        plan => place db.1@a drop web.1",
    );
    check(
        "nodes a b
        service db n=1
        plan => +db.1@a
        service web n=1 near=db:soft
        plan => +web.1@a
        service api n=1 apart=db:soft apart=web:soft
        plan => +api.1@b",
    );
}

#[test]
fn packing() {
    check(
        "nodes a b c
        has a mem=1000
        has b mem=1000
        has c mem=1000
        service one n=1 mem=300
        plan => +one.1@a
        service web n=4 mem=300 pack
        plan => +web.1@a +web.2@a +web.3@b +web.4@b
        strategy pack
        service api n=1
        plan => +api.1@a",
    );
}

#[test]
fn a_node_that_failed_a_task_is_avoided_by_its_service_alone() {
    check(
        "nodes a b
        service web n=2
        plan => +web.1@a +web.2@b
        start
        fail web.1
        plan => wake 1s
        wait 1s
        plan => -web.1 +web.1@b
        start
        update web n=3
        plan => +web.3@b
        service api n=1
        plan => +api.1@a
        wait 600s
        update web n=4
        plan => +web.4@a",
    );
}

#[test]
fn on_the_nodes_own_network_there_are_no_addresses() {
    check(
        "nodes a
        service edge n=2 host-network stop-first
        plan => +edge.1@a +edge.2@a
        addresses edge => none none
        vips edge =>
        service web n=1
        plan => +web.1@a
        addresses web => 10.128.0.2
        start
        update edge own-network n=1
        plan => -edge.1 x edge.2
        obey
        plan => +edge.1/2@a drop edge.2
        addresses edge => 10.128.0.3",
    );
    // One that waited is placed without as well.
    check(
        "nodes a
        has a mem=1
        service edge n=1 mem=64 host-network
        plan => +edge.1
        has a mem=64
        plan => place edge.1@a
        addresses edge => none",
    );
}
