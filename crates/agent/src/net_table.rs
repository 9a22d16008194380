//! What this node must know of the network, handed to whoever makes names,
//! addresses and rules of it.
//!
//! Always the whole table, one at a time; of several that come while one is
//! being taken the newest alone. What was refused is handed over again, after
//! growing pauses, unless a newer one comes.
//!
//! Not here: what is done with it.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use warren_base::clock::Clock;
use warren_model::NodeTable;

use crate::effects::chain;
use crate::restart::doubled;

/// A kernel that refuses a table seldom takes it a moment later; connections wait, though.
const RETRY_FIRST_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 10_000;

/// Whoever works with the table.
#[async_trait]
pub trait NetTable: Send + Sync + 'static {
    /// Takes `table` in the place of any before; returns once it holds.
    ///
    /// # Errors
    /// When it does not hold in full; the same or a newer one is handed over later.
    async fn hold(&self, table: Arc<NodeTable>) -> Result<(), warren_net::Error>;
}

/// Keeps the last table, for those who follow it.
#[derive(Debug, Default)]
pub struct HeldTable(watch::Sender<Arc<NodeTable>>);

impl HeldTable {
    pub fn follow(&self) -> watch::Receiver<Arc<NodeTable>> {
        self.0.subscribe()
    }
}

#[async_trait]
impl NetTable for HeldTable {
    async fn hold(&self, table: Arc<NodeTable>) -> Result<(), warren_net::Error> {
        self.0.send_replace(table);
        Ok(())
    }
}

/// Hands over what comes, until the agent stops.
pub(crate) async fn run(
    holder: Arc<dyn NetTable>,
    mut tables: watch::Receiver<Arc<NodeTable>>,
    clock: Arc<dyn Clock>,
    stopping: CancellationToken,
) {
    let mut failures = 0;
    // What is there at first is nothing that anybody told.
    let mut due = false;
    loop {
        if due {
            let table = Arc::clone(&tables.borrow_and_update());
            match holder.hold(table).await {
                Ok(()) => (due, failures) = (false, 0),
                Err(error) => {
                    failures += 1;
                    tracing::warn!(error = chain(&error), "the network's table does not hold");
                }
            }
        }
        let pause_ms = match due {
            true => doubled(RETRY_FIRST_MS, failures - 1, RETRY_MAX_MS),
            false => u64::MAX,
        };
        let wake_ms = clock.monotonic_ms().saturating_add(pause_ms);
        tokio::select! {
            () = stopping.cancelled() => return,
            moved = tables.changed() => match moved {
                Ok(()) => due = true,
                Err(_) => return,
            },
            () = clock.sleep_until(wake_ms) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use warren_base::clock::RealClock;
    use warren_model::ClusterId;

    use super::*;
    use crate::fake::FakeNetTable;

    fn table(n: u8) -> Arc<NodeTable> {
        let cluster = Some(ClusterId::from_bytes([n; 10]));
        Arc::new(NodeTable { cluster, ..NodeTable::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn the_newest_is_handed_over_until_it_holds() {
        let fake = Arc::new(FakeNetTable::default());
        let (tables, received) = watch::channel(Arc::default());
        let stopping = CancellationToken::new();
        let holder: Arc<dyn NetTable> = Arc::clone(&fake) as _;
        let clock = Arc::new(RealClock::new());
        let running = tokio::spawn(run(holder, received, clock, stopping.clone()));
        let mut held = fake.held();
        assert_eq!(**held.borrow(), NodeTable::default());
        tables.send_replace(table(1));
        held.changed().await.unwrap();
        assert_eq!(*held.borrow_and_update(), table(1));
        fake.refuse(Some("no memory"));
        tables.send_replace(table(2));
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        tables.send_replace(table(3));
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        assert_eq!(*held.borrow(), table(1));
        fake.refuse(None);
        held.changed().await.unwrap();
        assert_eq!(*held.borrow(), table(3));
        stopping.cancel();
        running.await.unwrap();
    }

    #[tokio::test]
    async fn who_follows_sees_the_last() {
        let held = HeldTable::default();
        let follow = held.follow();
        held.hold(table(4)).await.unwrap();
        assert_eq!(*follow.borrow(), table(4));
    }
}
