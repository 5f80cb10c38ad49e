//! Read barrier: requests for a read of the tails, and its results. Requests that arrive during a read share the next one.
//!
//! The requests are numbered. A read answers all of them up to the last one before it began, so any number of requests
//! wait without a queue, and none is lost.

use tokio::sync::watch;

/// A completed read of the tails of all logs. Every consumer has the entries that were in the logs before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TailRead {
    /// Time in us before the read, Redis clock.
    pub as_of: u64,
}

/// Results of the reads so far.
#[derive(Default)]
struct Results {
    /// Last completed read, and the number of the last request that it answers. None: there was none.
    completed: Option<(u64, TailRead)>,
    /// Number of the last request whose read failed. 0: none failed.
    failed: u64,
}

impl Results {
    fn is_answered(&self, number: u64) -> bool {
        self.failed >= number || self.read_of(number).is_some()
    }

    /// Read that began after the request with this number. None: it has not completed.
    fn read_of(&self, number: u64) -> Option<TailRead> {
        self.completed.filter(|(last, _)| *last >= number).map(|(_, read)| read)
    }
}

/// Requests read barriers.
#[derive(Clone)]
pub struct Barrier {
    /// Number of the last request. 0: there was none.
    requested: watch::Sender<u64>,
    results: watch::Receiver<Results>,
}

/// A requested read barrier.
pub struct PendingBarrier {
    number: u64,
    results: watch::Receiver<Results>,
}

/// Requests of a barrier, and their results.
pub(super) struct BarrierRequests {
    requested: watch::Receiver<u64>,
    results: watch::Sender<Results>,
    /// Number of the last request that has a result.
    answered: u64,
}

/// Creates both ends of a barrier.
pub(super) fn barrier() -> (Barrier, BarrierRequests) {
    let (requested, requests) = watch::channel(0);
    let (results, receiver) = watch::channel(Results::default());
    (Barrier { requested, results: receiver }, BarrierRequests { requested: requests, results, answered: 0 })
}

impl Barrier {
    /// Requests a read without waiting for it.
    pub fn request(&self) -> PendingBarrier {
        let mut number = 0;
        self.requested.send_modify(|last| {
            *last += 1;
            number = *last;
        });
        PendingBarrier { number, results: self.results.clone() }
    }

    /// Waits until every consumer has all entries that were in the logs before this call. None: Redis cannot be read.
    pub async fn pass(&self) -> Option<TailRead> {
        self.request().wait().await
    }
}

impl PendingBarrier {
    /// Waits for the result. None: Redis cannot be read. May be cancelled and called again.
    pub async fn wait(&mut self) -> Option<TailRead> {
        let number = self.number;
        let results = self.results.wait_for(|results| results.is_answered(number)).await.ok()?;
        results.read_of(number)
    }
}

impl BarrierRequests {
    /// Waits until there is a request without a result.
    pub(super) async fn wait(&mut self) {
        let answered = self.answered;
        if self.requested.wait_for(|last| *last > answered).await.is_err() {
            // There can be no further request.
            std::future::pending().await
        }
    }

    /// Number of the last request. Call it before the read that answers it.
    pub(super) fn last(&self) -> u64 {
        *self.requested.borrow()
    }

    /// Answers all requests up to this number. None: the read failed.
    pub(super) fn answer(&mut self, last: u64, read: Option<TailRead>) {
        self.answered = last;
        self.results.send_modify(|results| match read {
            Some(read) => results.completed = Some((last, read)),
            None => results.failed = last,
        });
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::join_all};

    use super::*;

    /// Result of a barrier. Outer None: it has none yet.
    fn result(pending: &mut PendingBarrier) -> Option<Option<TailRead>> {
        pending.wait().now_or_never()
    }

    #[tokio::test]
    async fn barrier_passes_after_a_read_that_began_later() {
        let (barrier, mut requests) = barrier();
        let mut early = barrier.request();
        requests.wait().await;
        let last = requests.last();
        let mut during_the_read = barrier.request();
        let read = TailRead { as_of: 1 };
        requests.answer(last, Some(read));
        assert_eq!((result(&mut early), result(&mut during_the_read)), (Some(Some(read)), None));
        requests.wait().await;
        requests.answer(requests.last(), None);
        assert_eq!((result(&mut early), result(&mut during_the_read)), (Some(Some(read)), Some(None)));
        assert!(requests.wait().now_or_never().is_none(), "every request has a result");
    }

    #[tokio::test]
    async fn barrier_many_requests_share_one_read() {
        let (barrier, mut requests) = barrier();
        let all = join_all((0..100_000).map(|_| barrier.pass()));
        let serve = async {
            requests.wait().await;
            requests.answer(requests.last(), Some(TailRead { as_of: 1 }));
        };
        let (reads, ()) = tokio::join!(all, serve);
        assert!(reads.iter().all(Option::is_some));
    }

    #[tokio::test]
    async fn barrier_without_server_fails() {
        let (barrier, requests) = barrier();
        let mut pending = barrier.request();
        drop(requests);
        assert_eq!(result(&mut pending), Some(None));
        assert_eq!(barrier.pass().await, None);
    }
}
