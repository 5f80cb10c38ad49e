//! A watcher as the hub and the registry see it: its wake-up, the slots that it has not taken, its progress.

use std::{
    future::poll_fn,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::task::AtomicWaker;

use crate::session::millis;

use super::response::Closing;

/// Time in ms that is added to a watcher's timeout while it reads from Redis: enough for several reads in sequence.
const REDIS_ALLOWANCE_MS: u64 = 10_000;

/// Value of `first_pending` if no slot is pending.
const NONE_PENDING: u64 = u64::MAX;

/// State of a watcher, shared by the task of its stream, the hub and the registry. It has no lock.
pub(super) struct Watcher {
    /// Wakes the task of the stream.
    waker: AtomicWaker,
    /// Number of the first slot of interest that the watcher has not taken. [`NONE_PENDING`]: there is none before the
    /// ring's end. Changed only while the ring is locked.
    first_pending: AtomicU64,
    /// Time of the watcher's last progress, in ms since the registry was created. In the future while it reads from
    /// Redis. A watcher whose client reads makes progress with every bookmark.
    progress_at: AtomicU64,
    /// Maximum time without progress in ms. After it the watcher is a slow consumer.
    timeout_ms: u64,
    is_evicted: AtomicBool,
    /// Why the server ends the watch. Not set: it does not.
    closing: OnceLock<Box<Closing>>,
}

impl Watcher {
    /// A watcher that makes progress now, and is a slow consumer after this time without progress.
    pub(super) fn new(now_ms: u64, timeout: Duration) -> Self {
        Watcher {
            waker: AtomicWaker::new(),
            first_pending: AtomicU64::new(NONE_PENDING),
            progress_at: AtomicU64::new(now_ms),
            timeout_ms: millis(timeout),
            is_evicted: AtomicBool::new(false),
            closing: OnceLock::new(),
        }
    }

    /// Notes that the slot with this number is of interest. The ring must be locked.
    pub(super) fn note_slot(&self, number: u64) {
        self.first_pending.fetch_min(number, Ordering::AcqRel);
    }

    /// Takes the number of the first slot of interest that was not taken. None: there is none before the ring's end. The
    /// ring must be locked.
    pub(super) fn take_pending(&self) -> Option<u64> {
        let first = self.first_pending.swap(NONE_PENDING, Ordering::AcqRel);
        (first != NONE_PENDING).then_some(first)
    }

    /// Wakes the task of the stream.
    pub(super) fn wake(&self) {
        self.waker.wake();
    }

    /// Returns when a slot of interest may be pending, or the watcher was evicted.
    pub(super) async fn woken(&self) {
        let is_woken = || self.first_pending.load(Ordering::Acquire) != NONE_PENDING || self.is_evicted();
        poll_fn(|context| self.poll(context, is_woken)).await;
    }

    /// Returns the reason when the server ends the watch.
    pub(super) async fn closed(&self) -> Closing {
        poll_fn(|context| self.poll(context, || self.closing.get().is_some())).await;
        self.closing.get().map_or(Closing::Draining, |closing| (**closing).clone())
    }

    /// Registers the task before it checks the condition, so that no wake-up is lost.
    fn poll(&self, context: &Context<'_>, is_ready: impl Fn() -> bool) -> Poll<()> {
        if is_ready() {
            return Poll::Ready(());
        }
        self.waker.register(context.waker());
        if is_ready() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Marks progress at `now_ms`: the stream was polled, so the client reads.
    pub(super) fn mark_progress(&self, now_ms: u64) {
        self.progress_at.store(now_ms, Ordering::Relaxed);
    }

    /// Marks progress before reads from Redis, whose time does not count against the client.
    pub(super) fn mark_progress_before_reads(&self, now_ms: u64) {
        self.progress_at.store(now_ms + REDIS_ALLOWANCE_MS, Ordering::Relaxed);
    }

    /// Whether the watcher has made no progress for longer than its timeout, at `now_ms`.
    pub(super) fn is_slow(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.progress_at.load(Ordering::Relaxed)) > self.timeout_ms
    }

    /// Marks the watcher as a slow consumer, and wakes it.
    pub(super) fn evict(&self) {
        self.is_evicted.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the watcher was evicted.
    pub(super) fn is_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::Acquire)
    }

    /// Ends the watch. The first reason counts.
    pub(super) fn close(&self, reason: Closing) {
        let _ = self.closing.set(Box::new(reason));
        self.wake();
    }
}
