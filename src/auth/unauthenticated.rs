//! Connections whose client has not presented a valid credential yet. Their number is limited: the oldest is closed first.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Connections without a valid credential, by their age.
pub struct Unauthenticated {
    /// Maximum number of them.
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    /// Number of the next connection.
    next: u64,
    /// What closes each connection, by its number.
    connections: BTreeMap<u64, CancellationToken>,
}

/// Place of one connection among those without a valid credential. The connection leaves them when it is dropped.
pub struct UnauthenticatedPlace {
    number: u64,
    among: Arc<Unauthenticated>,
}

impl Unauthenticated {
    /// Allows at most this many connections.
    pub fn new(limit: usize) -> Self {
        Unauthenticated { limit, open: Mutex::default() }
    }

    /// Adds a new connection, and closes the oldest one if there are too many. The returned token is cancelled when the new
    /// one must be closed.
    pub fn add(self: &Arc<Self>) -> (UnauthenticatedPlace, CancellationToken) {
        let close = CancellationToken::new();
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        if open.connections.len() >= self.limit
            && let Some((_, oldest)) = open.connections.pop_first()
        {
            oldest.cancel();
        }
        open.connections.insert(number, close.clone());
        (UnauthenticatedPlace { number, among: self.clone() }, close)
    }
}

impl Drop for UnauthenticatedPlace {
    fn drop(&mut self) {
        self.among.open.lock().connections.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oldest_connection_without_credential_is_closed_first() {
        let among = Arc::new(Unauthenticated::new(2));
        let (first, second) = (among.add(), among.add());
        assert!(!first.1.is_cancelled());
        let third = among.add();
        assert!(first.1.is_cancelled() && !second.1.is_cancelled() && !third.1.is_cancelled());
        // The second one has presented a credential.
        drop(second.0);
        let fourth = among.add();
        assert!(!second.1.is_cancelled() && !third.1.is_cancelled() && !fourth.1.is_cancelled());
        drop(first);
        drop(among.add());
        assert!(third.1.is_cancelled() && !fourth.1.is_cancelled());
    }
}
