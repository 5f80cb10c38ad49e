//! Place of the responses of a watch in the response budget of its connection.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Size in bytes up to which a response needs no place.
const SMALL_BYTES: usize = 16 * 1024;

/// Place of the current response of a watch. A watch without a place waits, makes no progress, and is evicted in the end.
///
/// The budget is that of the connection only: if watches shared one, a slow consumer would delay those of other clients.
pub(super) struct Place {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

impl Place {
    /// No place yet, in this budget of bytes.
    pub(super) fn new(budget: Arc<Semaphore>) -> Self {
        Place { budget, held: None }
    }

    /// Returns the place: the client has room for the response that it was for.
    pub(super) fn release(&mut self) {
        self.held = None;
    }

    /// Waits for a place of this size, before a response is read from Redis.
    pub(super) async fn reserve(&mut self, bytes: usize) {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The budget is never closed.
        self.held = self.budget.clone().acquire_many_owned(permits).await.ok();
    }

    /// Adapts the place to a response of this size: waits for one if there is none, else returns what exceeds it.
    pub(super) async fn fit(&mut self, bytes: usize) {
        match &mut self.held {
            _ if bytes <= SMALL_BYTES => self.release(),
            Some(held) => drop(held.split(held.num_permits().saturating_sub(bytes))),
            None => self.reserve(bytes).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn response_waits_until_its_place_is_free() {
        let budget = Arc::new(Semaphore::new(100_000));
        let [mut first, mut second] = [(); 2].map(|()| Place::new(budget.clone()));
        first.reserve(90_000).await;
        first.fit(60_000).await;
        assert_eq!(budget.available_permits(), 40_000);
        second.fit(SMALL_BYTES).await;
        assert_eq!(budget.available_permits(), 40_000);
        assert!(second.fit(50_000).now_or_never().is_none());
        first.release();
        second.fit(50_000).await;
        assert_eq!(budget.available_permits(), 50_000);
        second.fit(1).await;
        assert_eq!(budget.available_permits(), 100_000);
    }
}
