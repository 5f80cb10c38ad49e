//! Near cache: answers reads from the memory of this instance, from copies that are at most a second old.
//!
//! The [`Cache`] is a consumer of the feed. A copy is dropped by every event of its session, and answers only while the feed
//! proves that it has received all events: for [`MAX_AGE`] after a read of the end of the partition's log. docs/adr/0015 has
//! the rules and their reasons.

mod partition;
mod stripes;

use std::{sync::Arc, time::Duration};

use quick_cache::{OptionsBuilder, Weighter, sync};

use crate::{
    feed::{Consumer, Gap},
    moment::Moment,
    observe::Metrics,
    session::{Policy, Revision, Session, SessionRef, TokenState},
    store::{CopyAnswer, Entry, Get, Live, Partition, RecordCopy},
};
use partition::{Epoch, PartitionState};
use stripes::{StripeNumber, Stripes};

/// Maximum time from a read of the end of the partition's log to an answer from a copy.
pub const MAX_AGE: Duration = Duration::from_secs(1);
/// Maximum time from the read of a copy to an answer from it. Touches, first uses and unreported deletions in Redis do not
/// drop a copy.
const MAX_COPY_AGE: Duration = Duration::from_secs(10);
/// Number of parts of the index, each with a lock and an equal share of the bytes. A session that is larger than a share is not
/// kept.
const SHARDS: usize = 16;
/// Bytes of a copy in addition to the record: key, reference counts, slot of the index.
const OVERHEAD_BYTES: usize = 192;
/// Estimated size of a copy, which determines the initial size of the index.
const TYPICAL_BYTES: u64 = 2_048;

/// Copies of records, by namespace and id.
pub struct Cache {
    copies: sync::Cache<SessionRef, Arc<Copy>, Weight>,
    partitions: Vec<PartitionState>,
    stripes: Stripes,
    metrics: Arc<Metrics>,
}

/// Copy of a record, and what it depends on.
struct Copy {
    record: RecordCopy,
    /// Epoch of the partition before the record was read.
    epoch: Epoch,
    /// Moment before the record was read.
    read_at: Moment,
}

/// A read that may fill the cache. Created before the read is sent, because events may overtake its reply.
pub struct Fill {
    epoch: Epoch,
    stripe: StripeNumber,
    begun: Moment,
}

/// Size of a copy, in bytes.
#[derive(Clone)]
struct Weight;

impl Weighter<SessionRef, Arc<Copy>> for Weight {
    fn weight(&self, _: &SessionRef, copy: &Arc<Copy>) -> u64 {
        (copy.record.bytes() + OVERHEAD_BYTES) as u64
    }
}

/// Why the store must be read.
#[derive(Clone, Copy)]
enum Miss {
    /// There is no copy, or it is of an earlier epoch.
    Absent,
    /// The copy has a lower revision than the caller requires.
    Revision,
    /// The copy was read too long ago.
    Old,
    /// The end of the log was read too long ago.
    Unverified,
    /// A touch must be written.
    Touch,
    /// The script decides.
    Script,
}

impl Miss {
    /// Label of the metric.
    fn label(self) -> &'static str {
        match self {
            Miss::Absent => "absent",
            Miss::Revision => "revision",
            Miss::Old => "old",
            Miss::Unverified => "unverified",
            Miss::Touch => "touch",
            Miss::Script => "script",
        }
    }
}

impl Cache {
    /// An empty cache of at most this many bytes. None: zero bytes, which turn it off.
    pub fn new(max_bytes: u64, partitions: usize, metrics: Arc<Metrics>) -> Option<Self> {
        let estimated = usize::try_from(max_bytes / TYPICAL_BYTES).unwrap_or(usize::MAX);
        let mut options = OptionsBuilder::new();
        let options =
            options.shards(SHARDS).weight_capacity(max_bytes).estimated_items_capacity(estimated).build().ok()?;
        (max_bytes > 0).then(|| Cache {
            copies: sync::Cache::with_options(options, Weight, Default::default(), Default::default()),
            partitions: (0..partitions).map(|_| PartitionState::default()).collect(),
            stripes: Stripes::default(),
            metrics,
        })
    }

    /// Answers a read with a session of at least this revision. None: the store must be read. `now_us` is the estimated time
    /// of Redis; None: unknown.
    pub fn read(
        &self,
        (partition, name): (Partition, &SessionRef),
        get: &Get,
        policy: &Policy,
        min_revision: Revision,
        now_us: Option<u64>,
    ) -> Option<(Session, TokenState)> {
        let answer = self.answer(partition, name, min_revision, |record| {
            record.read(get.credential, (get.view, get.touch), policy, now_us)
        });
        self.metrics.count_cache_read(answer.as_ref().err().map_or("hit", |miss| miss.label()));
        answer.ok()
    }

    fn answer(
        &self,
        partition: Partition,
        name: &SessionRef,
        min_revision: Revision,
        read: impl FnOnce(&RecordCopy) -> CopyAnswer,
    ) -> Result<(Session, TokenState), Miss> {
        // In this order: events up to the tail read have dropped their copies when it is seen, and the clock is read last,
        // because the process may be stopped at any point.
        let verified = self.partitions[partition.index()].verified();
        let copy = self.copies.get(name).ok_or(Miss::Absent)?;
        let answer = read(&copy.record);
        let now = Moment::now();
        if verified.epoch != copy.epoch {
            return Err(Miss::Absent);
        }
        if copy.record.position().revision < min_revision {
            return Err(Miss::Revision);
        }
        if now.since(copy.read_at) > MAX_COPY_AGE {
            return Err(Miss::Old);
        }
        if now.since(verified.at) > MAX_AGE {
            return Err(Miss::Unverified);
        }
        match answer {
            CopyAnswer::Session(session, token_state) => Ok((session, token_state)),
            CopyAnswer::TouchDue => Err(Miss::Touch),
            CopyAnswer::NeedsStore => Err(Miss::Script),
        }
    }

    /// Prepares a read of the store that may fill the cache. Call it before the read is sent.
    pub fn begin(&self, (partition, name): (Partition, &SessionRef)) -> Fill {
        let epoch = self.partitions[partition.index()].verified().epoch;
        Fill { epoch, stripe: self.stripes.number(&name.id), begun: Moment::now() }
    }

    /// Keeps a copy of the session that was read, unless it may be older than an event.
    pub fn fill(&self, fill: Fill, live: &Live) {
        let Some(record) = live.copy() else { return };
        let copy = Copy { record, epoch: fill.epoch, read_at: fill.begun };
        let position = copy.record.position();
        let name = &live.session.name;
        self.stripes.if_unchanged(&name.id, fill.stripe, position, || {
            self.copies.insert(name.clone(), Arc::new(copy));
        });
    }

    /// Drops the copy of a session that this instance may have changed. Reads that are in flight do not fill the cache.
    pub fn forget(&self, name: &SessionRef) {
        self.stripes.change(&name.id, None, || drop(self.copies.remove(name)));
    }
}

impl Consumer for Cache {
    /// Drops the copy of the session, unless it is of this change.
    fn on_entry(&self, entry: &Entry) {
        let name = &entry.event.session.name;
        self.stripes.change(&name.id, Some(entry.position), || {
            self.copies.remove_if(name, |copy| copy.record.position() != entry.position);
        });
    }

    fn on_gap(&self, gap: &Gap) {
        gap.ends.iter().for_each(|(partition, _)| self.partitions[partition.index()].start_epoch());
    }

    fn on_restart(&self, partitions: &[Partition]) {
        partitions.iter().for_each(|partition| self.partitions[partition.index()].start_epoch());
    }

    fn on_tail_read(&self, partitions: &[Partition], sent: Moment) {
        partitions.iter().for_each(|partition| self.partitions[partition.index()].verify(sent));
        self.metrics.set_cache_size(self.copies.weight(), self.copies.len());
    }
}
