//! Keys that change while streams run.

use std::thread;
use std::time::Duration;

use warren_wireguard::{PrivateKey, Reason};

use crate::world::{Host, Stream, assert_answers, assert_silent, eventually, join, key, on_hosts};

/// The longest pause of a stream that is no break: far below TCP's patience.
const PAUSE_MAX: Duration = Duration::from_secs(2);

#[track_caller]
fn assert_flows(stream: &Stream, step: &str) {
    for _ in 0..3 {
        let pause = stream.goes_on();
        assert!(pause < PAUSE_MAX, "{step}: {pause:?}");
    }
}

fn handshake(host: &Host) -> Option<u64> {
    host.stats().handshake_ms
}

#[test]
fn host_own_key_is_replaced_under_a_stream() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let streams = [Stream::start(&one, &two, false), Stream::start(&two, &one, true)];
        let all = |step: &str| streams.iter().for_each(|stream| assert_flows(stream, step));
        all("before");
        let first = handshake(&two);

        // All peers accept the new key first.
        let known = one.peer();
        let of_one = |keys: &[u8]| {
            let mut peer = known.clone();
            peer.keys = keys.iter().map(|n| key(*n).public()).collect();
            peer
        };
        two.apply(&[of_one(&[1, 11])]);
        all("accepted");
        assert_eq!(handshake(&two), first, "a key that is only accepted changes nothing");

        // Then the node offers it.
        let of_two = two.peer();
        one.keys = vec![key(11), key(1)];
        one.apply(std::slice::from_ref(&of_two));
        eventually("a handshake with the new key", || handshake(&two) != first);
        all("offered");

        // Then the old one ends, on both sides, in either order.
        one.keys = vec![key(11)];
        one.apply(std::slice::from_ref(&of_two));
        all("ended here");
        two.apply(&[of_one(&[11])]);
        all("ended there");
        for stream in streams {
            stream.stop();
        }
        // The new key is all that is needed.
        assert_eq!(one.stats().dropped(Reason::Forged), 0);
        assert_answers(&one, &two);
        assert_answers(&two, &one);
    });
}

#[test]
fn host_new_key_is_offered_too_early() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let stream = Stream::start(&one, &two, false);
        assert_flows(&stream, "before");
        one.keys = vec![key(11), key(1)];
        let of_two = two.peer();
        one.apply(&[of_two]);
        eventually("a handshake that is refused", || two.dropped(Reason::UnknownPeer) > 0);
        assert_flows(&stream, "the old key carries on");
        stream.stop();
    });
}

#[test]
fn host_removed_key_is_refused_at_once() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        assert_answers(&one, &two);
        let stranger = PrivateKey::from_bytes([99; 32]);
        let mut of_one = one.peer();
        of_one.keys = vec![stranger.public()];
        two.apply(&[of_one]);
        assert_silent(&one, &two);
        two.apply(&[one.peer()]);
        assert_answers(&two, &one);
    });
}

#[test]
fn host_unchanged_peers_keep_their_sessions() {
    on_hosts(|mut one, mut two| {
        join(&mut one, &mut two);
        let stream = Stream::start(&one, &two, false);
        assert_flows(&stream, "before");
        let before = handshake(&one);
        for n in 0..50 {
            let mut other = two.peer();
            other.keys = vec![key(50 + n).public()];
            other.allowed.clear();
            // In another place of the table each time.
            let mut peers = vec![two.peer(), other];
            peers.rotate_left(usize::from(n % 2));
            one.apply(&peers);
            thread::sleep(Duration::from_millis(5));
        }
        assert_flows(&stream, "after 50 tables");
        one.apply(&[two.peer()]);
        assert_eq!(handshake(&one), before);
        stream.stop();
    });
}
