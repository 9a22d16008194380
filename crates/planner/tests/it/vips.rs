//! Virtual IPs: who gets which.

use warren_model::id::ClusterId;
use warren_model::network::{NetworkSpec, Vip};
use warren_model::{Cluster, Time};
use warren_planner::{Beats, Index, plan};
use warren_state::State;
use warren_state::change::{Mutation, Transaction};

use crate::world::{Ids, World, check};

#[test]
fn each_service_has_one_on_each_of_its_networks() {
    check(
        "nodes a
        network back
        service web n=2
        plan => +web.1@a +web.2@a
        vips web => default 10.192.0.1
        service api n=1 on=back on=default
        plan => +api.1@a
        vips api => back 10.192.0.2, default 10.192.0.3
        update web image=b n=3
        plan => +web.3/2@a
        vips web => default 10.192.0.1
        progress api => 1 assigned",
    );
}

#[test]
fn slots_have_one_if_their_service_wants_so() {
    check(
        "nodes a
        service db n=2 slots
        plan => +db.1@a +db.2@a
        vips db => default 10.192.0.1, default.1 10.192.0.2, default.2 10.192.0.3
        start
        update db n=1
        plan => x db.2
        vips db => default 10.192.0.1, default.1 10.192.0.2
        service web n=1
        plan => +web.1@a
        vips web => default 10.192.0.4
        update db n=2
        plan => +db.2@a
        vips db => default 10.192.0.1, default.1 10.192.0.2, default.2 10.192.0.3",
    );
    check(
        "nodes a\n service db n=1 slots dnsrr\n plan => +db.1@a\n vips db => default.1 10.192.0.1",
    );
}

#[test]
fn what_is_not_needed_any_more_is_given_up() {
    check(
        "nodes a
        network back
        service web n=1 on=back
        plan => +web.1@a
        vips web => back 10.192.0.1
        start
        update web dnsrr
        plan =>
        vips web =>
        progress web => converged
        update web vip off=back
        plan =>
        vips web => default 10.192.0.2
        wait 601s
        service api n=1
        plan => +api.1@a
        vips api => default 10.192.0.1",
    );
    // With the service itself; its address is nobody's for a while.
    check(
        "nodes a
        service web n=0
        plan =>
        vips web => default 10.192.0.1
        remove web
        plan => drop-service web
        service api n=0
        plan =>
        vips api => default 10.192.0.2",
    );
}

#[test]
fn networks_with_a_subnet_take_from_it_and_others_do_not() {
    check(
        "nodes a
        network back 10.192.0.0/29
        network front 10.192.0.16/29
        service web n=0 on=back on=default on=front
        plan =>
        vips web => back 10.192.0.1, default 10.192.0.8, front 10.192.0.17
        service api n=0 on=back on=default
        plan =>
        vips api => back 10.192.0.2, default 10.192.0.9",
    );
    check(
        "nodes a
        network back 10.192.0.0/29
        service web n=0 on=back ip=10.192.0.2
        plan =>
        vips web => back 10.192.0.2
        service api n=0 slots on=back
        plan =>
        vips api => back 10.192.0.1
        update api n=1
        plan => +api.1@a
        vips api => back 10.192.0.1, back.1 10.192.0.3",
    );
}

#[test]
fn a_pool_that_is_used_up_is_told_and_waited_for() {
    check(
        "nodes a
        network back 10.192.0.0/30
        service db n=0 on=back
        service api n=0 on=back
        service web n=0 on=back
        plan =>
        vips api => back 10.192.0.1
        vips db => back 10.192.0.2
        vips web =>
        progress db => converged
        progress web => no free virtual IP on back: the subnet 10.192.0.0/30 is used up
        update db off=back
        plan =>
        plan => wake 600s
        progress web => no free virtual IP on back: the subnet 10.192.0.0/30 is used up
        wait 599s
        plan => wake 1s
        vips web =>
        wait 1s
        plan =>
        vips web => back 10.192.0.2
        progress web => converged",
    );
}

#[test]
fn the_default_network_is_made_when_it_is_not_there() {
    let mut state = State::default();
    let apply = |state: &mut State, mutations: Vec<Mutation>| {
        let transaction = Transaction { mutations, ..Transaction::default() };
        state.apply(Time(1), &[transaction], &mut vec![]);
    };
    let cluster = Cluster::new(ClusterId::from_bytes([1; 10]));
    apply(&mut state, vec![Mutation::SetCluster(cluster)]);
    let (mut index, beats, mut ids) = (Index::default(), Beats::default(), Ids::default());
    let first = plan(&state, &mut index, &beats, &mut ids, Time(2));
    let spec = NetworkSpec::of_default().unwrap();
    let [Mutation::CreateNetwork { spec: made, .. }] = &first.transaction.mutations[..] else {
        panic!("{first:?}");
    };
    assert!(first.more && *made == spec);
    apply(&mut state, first.transaction.mutations);
    let second = plan(&state, &mut index, &beats, &mut ids, Time(3));
    assert!(second.transaction.mutations.is_empty() && !second.more);
}

#[test]
fn a_plan_has_room_for_a_thousand_and_no_more() {
    let mut world = World::new();
    world.run("service db n=1000 slots");
    let mut plans = 0;
    loop {
        plans += 1;
        if !world.plan().more {
            break;
        }
    }
    assert!((2..=4).contains(&plans), "{plans} plans");
    let held = world.state.vips().filter(|vip| vip.released.is_none()).count();
    assert_eq!(held, 1001);
    assert_eq!(Vip::QUARANTINE_MS, 600_000);
}
