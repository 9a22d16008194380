//! One work, however many wait for it.
//!
//! The work is a shared future: any waiter drives it, so it goes on when the
//! first one leaves, and is dropped when the last one does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared, WeakShared};

use crate::progress::Fan;

type Work<T> = Shared<BoxFuture<'static, T>>;

/// A work that is going on.
pub(super) struct Flight<T: Clone> {
    pub(super) fan: Arc<Fan>,
    pub(super) work: Work<T>,
}

impl<T: Clone> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self { fan: Arc::clone(&self.fan), work: self.work.clone() }
    }
}

/// Works by key.
pub(super) struct Flights<T: Clone>(Mutex<BTreeMap<String, Entry<T>>>);

struct Entry<T: Clone> {
    fan: Weak<Fan>,
    work: WeakShared<BoxFuture<'static, T>>,
}

impl<T: Clone> Default for Flights<T> {
    fn default() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<T: Clone + Send + 'static> Flights<T> {
    /// Joins the work of that key, or starts it.
    pub(super) fn join(
        &self,
        key: &str,
        start: impl FnOnce(Arc<Fan>) -> BoxFuture<'static, T>,
    ) -> Flight<T> {
        let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = flights.get(key)
            && let (Some(fan), Some(work)) = (entry.fan.upgrade(), entry.work.upgrade())
            // A finished work says how things were: whoever comes later looks again.
            && work.peek().is_none()
        {
            return Flight { fan, work };
        }
        flights.retain(|_, entry| entry.fan.strong_count() > 0);
        let fan = Arc::new(Fan::default());
        let work = start(Arc::clone(&fan)).shared();
        if let Some(weak) = work.downgrade() {
            let entry = Entry { fan: Arc::downgrade(&fan), work: weak };
            flights.insert(key.to_owned(), entry);
        }
        Flight { fan, work }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn a_work_outlives_its_first_caller() {
        let flights: Arc<Flights<u32>> = Arc::default();
        let started = Arc::new(AtomicUsize::new(0));
        let (finish, finished) = oneshot::channel();
        let mut finished = Some(finished);
        let mut join = || {
            let started = Arc::clone(&started);
            let finished = finished.take();
            flights.join("key", move |_| {
                started.fetch_add(1, Ordering::SeqCst);
                async move { finished.unwrap().await.unwrap() }.boxed()
            })
        };
        let (first, second) = (join(), join());
        let first = tokio::spawn(first.work);
        let second = tokio::spawn(second.work);
        tokio::task::yield_now().await;
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        finish.send(7).unwrap();
        assert_eq!(second.await.unwrap(), 7);
        assert_eq!(started.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_work_ends_with_its_last_caller() {
        struct Flag(Arc<AtomicUsize>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let flights: Flights<()> = Flights::default();
        let dropped = Arc::new(AtomicUsize::new(0));
        let flag = Flag(Arc::clone(&dropped));
        let flight = flights.join("key", move |_| {
            async move {
                let _flag = flag;
                std::future::pending().await
            }
            .boxed()
        });
        drop(flight);
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
        let again = flights.join("key", |_| async {}.boxed());
        again.work.await;
    }
}
