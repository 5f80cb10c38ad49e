//! Reservation of the responses of a watch in the response budget of its connection.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Size in bytes up to which a response needs no reservation.
const UNRESERVED_BYTES: usize = 16 * 1024;

/// Reservation of the current response of a watch. A watch without one waits, makes no progress, and is evicted in the end.
///
/// The budget is that of the connection only: if watches shared one, a slow consumer would delay those of other clients.
pub(super) struct ResponseReservation {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
}

/// How a reservation was adapted to a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// Without waiting.
    AtOnce,
    /// It may have waited for other responses of the connection.
    Waited,
}

impl ResponseReservation {
    /// No reservation yet, in this budget of bytes.
    pub(super) fn new(budget: Arc<Semaphore>) -> Self {
        ResponseReservation { budget, held: None }
    }

    /// Releases the reservation: the client has taken the response that it was for.
    pub(super) fn release(&mut self) {
        self.held = None;
    }

    /// Waits for a reservation of this size, before a response is read from Redis.
    pub(super) async fn reserve(&mut self, bytes: usize) {
        let permits = u32::try_from(bytes).unwrap_or(u32::MAX);
        // The budget is never closed.
        self.held = self.budget.clone().acquire_many_owned(permits).await.ok();
    }

    /// Adapts the reservation to a response of this size: waits for one if there is none, else returns what exceeds it.
    pub(super) async fn fit(&mut self, bytes: usize) -> Fit {
        match &mut self.held {
            _ if bytes <= UNRESERVED_BYTES => self.release(),
            Some(held) => drop(held.split(held.num_permits().saturating_sub(bytes))),
            None => {
                self.reserve(bytes).await;
                return Fit::Waited;
            }
        }
        Fit::AtOnce
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn response_waits_until_the_budget_has_its_size() {
        let budget = Arc::new(Semaphore::new(100_000));
        let [mut first, mut second] = [(); 2].map(|()| ResponseReservation::new(budget.clone()));
        first.reserve(90_000).await;
        first.fit(60_000).await;
        assert_eq!(budget.available_permits(), 40_000);
        second.fit(UNRESERVED_BYTES).await;
        assert_eq!(budget.available_permits(), 40_000);
        assert!(second.fit(50_000).now_or_never().is_none());
        first.release();
        second.fit(50_000).await;
        assert_eq!(budget.available_permits(), 50_000);
        second.fit(1).await;
        assert_eq!(budget.available_permits(), 100_000);
    }
}
