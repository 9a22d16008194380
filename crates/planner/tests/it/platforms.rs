//! Images that are not for every machine.

use crate::world::check;

#[test]
fn only_where_there_is_a_build() {
    check(
        "nodes a b c
        has a arch=x86_64
        has b arch=aarch64
        service web n=2 for=linux/arm64
        plan => +web.1@b +web.2@c
        service one n=1 for=linux/riscv64 where=node.hostname!=c
        plan => +one.1
        explain one => no node fits: 1 not node.hostname!=c, 2 without a build of the image (it is \
         for linux/riscv64) | a: image is for linux/riscv64, node is linux/amd64 | b: image is for \
         linux/riscv64, node is linux/arm64 | c: not node.hostname!=c: its node.hostname is c | \
         near a
        service both n=3 for=linux/amd64,linux/arm64 max=1
        plan => +both.1@a +both.2@b +both.3@c",
    );
}

#[test]
fn what_runs_stays_and_what_is_global_is_where_it_can() {
    check(
        "nodes a b
        has a arch=x86_64
        has b arch=aarch64
        service mon global for=linux/arm64
        plan => +mon.b@b
        start
        service web n=1 where=node.hostname==a
        plan => +web.1@a
        start
        update web for=linux/arm64
        plan =>",
    );
}
