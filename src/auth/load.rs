//! What a caller uses of the server at this moment. It outlives a reload of the callers.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

/// What each caller uses, by its name.
pub type Loads = HashMap<Arc<str>, Arc<Load>>;

/// Use of the server by one caller, or by all of them.
#[derive(Debug, Default)]
pub struct Load {
    /// Calls in flight.
    calls: AtomicUsize,
    /// Open watches.
    watches: AtomicUsize,
}

/// What is in use until it is dropped.
pub struct InUse {
    load: Arc<Load>,
    counter: fn(&Load) -> &AtomicUsize,
}

impl Load {
    /// Begins a call. None: as many as `limit` are in flight.
    pub fn begin_call(self: &Arc<Self>, limit: usize) -> Option<InUse> {
        self.begin(|load| &load.calls, limit)
    }

    /// Opens a watch. None: as many as `limit` are open.
    pub fn open_watch(self: &Arc<Self>, limit: usize) -> Option<InUse> {
        self.begin(|load| &load.watches, limit)
    }

    fn begin(self: &Arc<Self>, counter: fn(&Load) -> &AtomicUsize, limit: usize) -> Option<InUse> {
        let before = counter(self).fetch_add(1, Ordering::Relaxed);
        let in_use = InUse { load: self.clone(), counter };
        (before < limit).then_some(in_use)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        (self.counter)(&self.load).fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_is_exact_and_returns_with_the_drop() {
        let load = Arc::new(Load::default());
        let open: Vec<_> = (0..3).map_while(|_| load.begin_call(2)).collect();
        assert_eq!(open.len(), 2);
        assert!(load.begin_call(2).is_none() && load.open_watch(1).is_some());
        drop(open);
        assert!(load.begin_call(1).is_some());
    }
}
