//! Prepared cases of what waits, and the reasons that are told.

use crate::world::check;

#[test]
fn fifteen_reasons_to_wait() {
    // 1 and 2: short of memory; what the system keeps counts. The nearest lacks least.
    check(
        "nodes a b
        has a mem=2048 system=1738
        has b mem=256
        service db n=1 mem=512
        plan => +db.1
        explain db.1 => no node fits: 2 short of memory (needs 512MiB) | \
         a: needs 512MiB memory, 310MiB free of 310MiB | \
         b: needs 512MiB memory, 256MiB free of 256MiB | near a
        fix db => add a node with 512MiB memory; warren service update --reserve-memory 310MiB db
        has a system=0
        plan => place db.1@a
        explain db.1 => fits | a here | b: needs 512MiB memory, 256MiB free of 256MiB",
    );
    // 3: of what there is, others have reserved it.
    check(
        "nodes a
        has a cpu=2
        service one n=1 cpu=1500
        plan => +one.1@a
        service two n=1 cpu=1000
        plan => +two.1
        explain two => no node fits: 1 short of cpu (needs 1) | a: needs 1 cpu, 0.5 free of 2 | near a
        fix two => free 0.5 more cpu on a; warren service update --reserve-cpu 0.5 two",
    );
    // 4: things that people count.
    check(
        "nodes a
        has a gpu=1
        service ml n=1 gpu=2
        plan => +ml.1
        explain ml => no node fits: 1 short of gpu (needs 2) | a: needs 2 gpu, 1 free of 1 | near a
        fix ml => add a node with 2 gpu; warren service update --reserve gpu=1 ml",
    );
    // 5: disk and processes, both told.
    check(
        "nodes a
        has a disk=10
        service web n=1 disk=20 pids=40000
        plan => +web.1
        explain web => no node fits: 1 short of pids (needs 40000) | a: needs 40000 pids, 32768 \
         free of 32768; needs 20MiB disk, 10MiB free of 10MiB | near a",
    );
    // 6 and 7: a constraint, with and without a value on the node.
    check(
        "nodes a b
        has a disk:hdd
        service web n=1 where=disk==ssd
        plan => +web.1
        explain web.1 => no node fits: 2 not node.labels.disk==ssd | a: not \
         node.labels.disk==ssd: its node.labels.disk is hdd | b: not node.labels.disk==ssd: has no \
         node.labels.disk | near a
        fix web => warren node update --label-add 'disk=ssd' a",
    );
    // 8: a taint.
    check(
        "nodes a
        taint a gpu=yes:no-schedule
        service web n=1
        plan => +web.1
        explain web => no node fits: 1 tainted gpu=yes:no-schedule | a: tainted \
         gpu=yes:no-schedule, which is not tolerated | near a
        fix web => warren service update --toleration-add 'gpu=yes:no-schedule' web",
    );
    // 9: nobody to be near to. 10: somebody to be apart from.
    check(
        "nodes a
        service cache n=1 near=db
        plan => +cache.1
        explain cache => no node fits: 1 without db | a: has no task of db | near a
        service web n=1
        plan => +web.1@a
        service lone n=1 apart=web
        plan => +lone.1
        explain lone => no node fits: 1 with web | a: has a task of web | near a
        fix lone => warren service update --affinity-rm web lone",
    );
    // 11: as many per node as may be. 12: a port of the host.
    check(
        "nodes a
        service web n=2 max=1
        plan => +web.1@a +web.2
        explain web.2 => no node fits: 1 with as many of it as may be (1) | a: has 1 of at most 1 \
         of it | near a
        service dns n=2 host=53
        plan => +dns.1@a +dns.2
        explain dns.2 => host port 53 is in use on every ready node (1) | a: host port 53 is in \
         use by another task of it | near a",
    );
    // 13: paused, draining. 14: down, and for deciding alone.
    check(
        "nodes a b c d
        pause a
        drain b
        down c
        role d manager
        service web n=1
        plan => c is down +web.1
        explain web => no node is ready for tasks: 1 down, 1 paused, 1 draining, 1 not a worker | \
         a: is paused: nothing new is placed there | b: is drained: what is there moves away | \
         c: is down | d: runs no containers | near a
        fix web => warren node update --availability active a; warren node update --availability \
         active b; start node c: warren node run",
    );
    // 15: no node at all.
    check(
        "service web n=1
        plan => +web.1
        explain web => the cluster has no node
        fix web => join a node: warren cluster token",
    );
}

#[test]
fn addresses_that_are_used_up() {
    let mut world = crate::world::World::new();
    world.cluster(|cluster| {
        cluster.pool = "10.128.0.0/30".parse().unwrap();
        cluster.block_prefix = 30;
    });
    world.add_node("a", vec![]);
    world.run("service web n=2");
    assert_eq!(world.run("plan"), "grant a 10.128.0.0/30 +web.1@a +web.2");
    assert_eq!(
        world.run("explain web.2"),
        "no free address: the pool 10.128.0.0/30 is used up | a: has no free address, nor has the \
         pool | near a"
    );
}

#[test]
fn what_runs_and_what_fits() {
    check(
        "nodes a b c
        has a zone:x
        has b zone:x
        service web n=1 where=zone==x
        plan => +web.1@a
        start
        explain web.1 => fits | a here | b | c: not node.labels.zone==x: has no node.labels.zone
        explain web => fits | b next | a | c: not node.labels.zone==x: has no node.labels.zone
        taint a x:no-execute
        taint b x:no-execute
        explain web.1 => fits | a here: tainted x:no-execute, which is not tolerated | b: tainted \
         x:no-execute, which is not tolerated | c: not node.labels.zone==x: has no node.labels.zone",
    );
}
