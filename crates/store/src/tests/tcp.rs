//! Managers with threads of their own, real disks and connections.

use std::path::Path;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use warren_base::clock::RealClock;
use warren_base::rng::SystemRng;

use super::super::*;
use super::net::{has_all, make};
use crate::transport::Member;
use crate::transport::tcp::{Dial, Tcp, moved_here};

struct Loopback;

impl Dial for Loopback {
    fn dial(&self, to: &Member) -> BoxFuture<'static, std::io::Result<BoxStream>> {
        let address = to.address.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as BoxStream)
        }
        .boxed()
    }
}

/// A manager, and the task that accepts its connections.
struct Manager {
    store: Store,
    address: String,
    accepting: AbortOnDrop<()>,
}

async fn manager(dir: &Path, number: u64, joins: bool) -> Manager {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let folder = dir.join(number.to_string());
    let (clock, rng) = (Arc::new(RealClock::new()), Arc::new(SystemRng));
    let options =
        Options::new(&folder.join("store"), &folder.join("key"), number, clock, rng).unwrap();
    let options = Options {
        address: address.clone(),
        transport: Some(Arc::new(Tcp::new(number, Arc::new(Loopback)))),
        ..options
    };
    let store = if joins { Store::join(options).await } else { Store::create(options).await };
    let store = store.unwrap();
    let inbound = store.clone();
    let accepting = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let store = inbound.clone();
            tokio::spawn(async move {
                store.serve(move || Ok(Box::new(moved_here(&stream)?)), None).await
            });
        }
    });
    Manager { store, address, accepting: AbortOnDrop(accepting) }
}

async fn becomes<T>(mut told: watch::Receiver<T>, is: impl Fn(&T) -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), told.wait_for(|now| is(now))).await;
    waited.expect("it takes no such time").expect("the store goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_managers_with_threads_and_connections() {
    let dir = tempfile::tempdir().unwrap();
    let mut managers = Vec::new();
    for number in 1..=3 {
        managers.push(manager(dir.path(), number, number > 1).await);
    }
    let leader = managers[0].store.clone();
    for (number, other) in (2..).zip(&managers[1..]) {
        leader.add_learner(number, &other.address).await.unwrap();
        becomes(other.store.in_touch(), |in_touch| *in_touch).await;
        leader.set_voters((1..=number).collect()).await.unwrap();
    }
    let writes = (0..60).map(|number| {
        let store = managers[usize::try_from(number % 3).unwrap()].store.clone();
        async move {
            make(&store, number).await.unwrap();
            assert!(has_all(&store, &[number]));
        }
    });
    futures::future::join_all(writes).await;
    managers[2].store.read_barrier().await.unwrap();
    assert!(has_all(&managers[2].store, &(0..60).collect::<Vec<_>>()));
    assert!(managers[1].store.metrics().forwarded > 0);

    // The leader goes, and its connections with it.
    let Manager { store, accepting, .. } = managers.remove(0);
    store.shutdown().await;
    drop(accepting);
    becomes(managers[0].store.leader_number(), |leader| leader.is_some_and(|leader| leader != 1))
        .await;
    make(&managers[0].store, 100).await.unwrap();
    make(&managers[1].store, 101).await.unwrap();
    for manager in managers {
        manager.store.shutdown().await;
    }
}
