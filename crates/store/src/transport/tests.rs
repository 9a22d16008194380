//! Calls over real streams: in memory, and cut, silent or wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::frame::{self, Greeting};
use super::serve::{Answer, ServeError, serve};
use super::tcp::{BoxStream, Dial, Tcp};
use super::*;

/// Hands each dialled stream's other end to the test.
struct Dialled {
    ends: mpsc::UnboundedSender<BoxStream>,
    refuse: bool,
    dials: AtomicUsize,
}

impl Dial for Dialled {
    fn dial(&self, _to: &Member) -> BoxFuture<'static, std::io::Result<BoxStream>> {
        self.dials.fetch_add(1, Ordering::Relaxed);
        if self.refuse {
            let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
            return futures::future::ready(Err(refused)).boxed();
        }
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let _ = self.ends.send(Box::new(theirs));
        futures::future::ready(Ok(Box::new(ours) as BoxStream)).boxed()
    }
}

fn dialled(refuse: bool) -> (Arc<Dialled>, mpsc::UnboundedReceiver<BoxStream>) {
    let (ends, accepted) = mpsc::unbounded_channel();
    (Arc::new(Dialled { ends, refuse, dials: AtomicUsize::new(0) }), accepted)
}

/// Answers with what it got, `Vote` not before it is told to.
struct Echo {
    go: Arc<Notify>,
}

impl Answer for Echo {
    fn number(&self) -> u64 {
        2
    }

    fn answer(
        &self,
        from: u64,
        kind: Call,
        payload: Bytes,
    ) -> BoxFuture<'static, Result<Bytes, String>> {
        let go = self.go.clone();
        async move {
            match kind {
                Call::Vote => go.notified().await,
                Call::PreVote => return Err(format!("no {from}")),
                _ => {}
            }
            Ok(payload)
        }
        .boxed()
    }
}

fn member() -> Member {
    Member { number: 2, address: "there:2377".to_owned() }
}

/// A caller, and a server that accepts whatever it dials.
fn pair() -> (Tcp, Arc<Dialled>, Arc<Notify>) {
    let (dial, mut accepted) = dialled(false);
    let go = Arc::new(Notify::new());
    let echo = Arc::new(Echo { go: go.clone() });
    tokio::spawn(async move {
        while let Some(stream) = accepted.recv().await {
            let echo = echo.clone();
            tokio::spawn(async move { serve(stream, Some(1), echo.as_ref()).await });
        }
    });
    (Tcp::new(1, dial.clone()), dial, go)
}

#[tokio::test(start_paused = true)]
async fn calls_are_pipelined_on_a_connection_per_lane() {
    let (tcp, dial, go) = pair();
    let slow = tokio::spawn(tcp.call(&member(), Call::Vote, Bytes::from_static(b"slow")));
    let calls = (0..500u32)
        .map(|n| tcp.call(&member(), Call::Append, Bytes::copy_from_slice(&n.to_le_bytes())));
    let answers = futures::future::join_all(calls).await;
    // The queue holds some, the rest is refused at once: nothing grows.
    let (done, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
    assert!(done.len() >= 255 && !refused.is_empty());
    for (n, answer) in done.iter().enumerate() {
        assert_eq!(answer.as_ref().unwrap().as_ref(), u32::try_from(n).unwrap().to_le_bytes());
    }
    let large = Bytes::from(vec![7; 3 << 20]);
    let back = tcp.call(&member(), Call::Snapshot, large.clone()).await.unwrap();
    assert_eq!(back, large);
    go.notify_one();
    assert_eq!(slow.await.unwrap().unwrap(), Bytes::from_static(b"slow"));
    let refused = tcp.call(&member(), Call::PreVote, Bytes::new()).await;
    assert_eq!(refused, Err(TransportError::Refused { to: 2, why: "no 1".to_owned() }));
    assert_eq!(dial.dials.load(Ordering::Relaxed), 2);
    let huge = tcp.call(&member(), Call::Append, Bytes::from(vec![0; 5 << 20])).await;
    assert!(matches!(huge, Err(TransportError::Unreachable { .. })), "{huge:?}");
}

#[tokio::test(start_paused = true)]
async fn refused_connections_are_tried_with_pauses() {
    let (dial, _ends) = dialled(true);
    let tcp = Tcp::new(1, dial.clone());
    let end = Instant::now() + Duration::from_secs(10);
    while Instant::now() < end {
        let answer = tcp.call(&member(), Call::Append, Bytes::new()).await;
        assert!(matches!(answer, Err(TransportError::Unreachable { .. })), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let dials = dial.dials.load(Ordering::Relaxed);
    assert!((20..50).contains(&dials), "{dials}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up_and_dialled_again() {
    let (dial, mut accepted) = dialled(false);
    let tcp = Tcp::new(1, dial.clone());
    let start = Instant::now();
    let call = tokio::spawn(tcp.call(&member(), Call::Append, Bytes::from_static(b"x")));
    let mute = accepted.recv().await.unwrap();
    let lost = call.await.unwrap();
    assert!(matches!(lost, Err(TransportError::Lost { .. })), "{lost:?}");
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    drop(mute);
    tokio::time::sleep(Duration::from_millis(50)).await;
    let again = tokio::spawn(tcp.call(&member(), Call::Append, Bytes::from_static(b"y")));
    let mut stream = accepted.recv().await.unwrap();
    let mut read = vec![0; frame::GREETING_LEN + frame::HEAD_LEN + 1];
    stream.read_exact(&mut read).await.unwrap();
    assert_eq!(read.last(), Some(&b'y'));
    // A peer that only answers pings lives: the call waits for its own deadline.
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::spawn(async move {
        loop {
            let mut ping = [0; frame::HEAD_LEN];
            if reader.read_exact(&mut ping).await.is_err() || writer.write_all(&ping).await.is_err()
            {
                return;
            }
        }
    });
    let start = Instant::now();
    let late = again.await.unwrap();
    assert!(matches!(late, Err(TransportError::Lost { .. })), "{late:?}");
    assert!(start.elapsed() > Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn idle_connections_close_by_themselves() {
    let (dial, mut accepted) = dialled(false);
    let tcp = Tcp::new(1, dial);
    let echo = Echo { go: Arc::default() };
    let call = tokio::spawn(tcp.call(&member(), Call::Append, Bytes::from_static(b"x")));
    let stream = accepted.recv().await.unwrap();
    let start = Instant::now();
    let served = serve(stream, None, &echo).await;
    served.unwrap();
    assert!(call.await.unwrap().is_ok());
    assert!(start.elapsed() >= Duration::from_secs(60), "{:?}", start.elapsed());
}

async fn said(bytes: &[u8], known: Option<u64>) -> ServeError {
    let (mut ours, theirs) = tokio::io::duplex(64 << 10);
    ours.write_all(bytes).await.unwrap();
    let echo = Echo { go: Arc::default() };
    let error = serve(Box::new(theirs), known, &echo).await.unwrap_err();
    let mut refusal = Vec::new();
    ours.read_to_end(&mut refusal).await.unwrap();
    let mut refusal = bytes::BytesMut::from(&refusal[..]);
    if let Some(told) = frame::decode(&mut refusal).unwrap() {
        assert_eq!((told.id, told.kind), (0, frame::ERROR));
        assert_eq!(told.payload, error.to_string().as_bytes());
    }
    error
}

#[tokio::test(start_paused = true)]
async fn wrong_callers_are_told_and_sent_away() {
    let greeting = |from, to| Greeting { lane: Lane::Rest, from, to }.encode();
    assert!(matches!(said(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None).await, ServeError::Frame(_)));
    assert!(matches!(said(b"WRN", None).await, ServeError::Slow));
    let error = said(&greeting(1, 3), None).await;
    assert!(matches!(error, ServeError::Misdirected { from: 1, to: 3, number: 2 }), "{error}");
    let error = said(&greeting(1, 2), Some(4)).await;
    assert!(matches!(error, ServeError::Impostor { known: 4, from: 1 }), "{error}");
    let long = [&greeting(1, 2)[..], &u32::MAX.to_le_bytes(), &[0; 9]].concat();
    assert!(matches!(said(&long, Some(1)).await, ServeError::Frame(_)));
    let unknown = [&greeting(1, 2)[..], &9u32.to_le_bytes(), &1u64.to_le_bytes(), &[99]].concat();
    let error = said(&unknown, Some(1)).await;
    assert!(matches!(error, ServeError::Kind { kind: 99 }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_says_why_to_its_callers() {
    let (dial, mut accepted) = dialled(false);
    let tcp = Tcp::new(7, dial);
    let echo = Echo { go: Arc::default() };
    let call = tokio::spawn(tcp.call(&member(), Call::Append, Bytes::new()));
    let stream = accepted.recv().await.unwrap();
    serve(stream, Some(1), &echo).await.unwrap_err();
    let lost = call.await.unwrap().unwrap_err().to_string();
    assert!(lost.contains("manager 1 calls itself manager 7"), "{lost}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_end_a_connection_in_order(bytes in proptest::collection::vec(any::<u8>(), 0..300), greet: bool) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let (mut ours, theirs) = tokio::io::duplex(1 << 20);
            if greet {
                let greeting = Greeting { lane: Lane::Consensus, from: 1, to: 2 };
                ours.write_all(&greeting.encode()).await.unwrap();
            }
            ours.write_all(&bytes).await.unwrap();
            ours.shutdown().await.unwrap();
            let echo = Echo { go: Arc::default() };
            let _ = serve(Box::new(theirs), None, &echo).await;
        });
    }
}
