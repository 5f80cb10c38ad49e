//! Pages of the logs that watchers who are far behind read: shared by all who are near the same place.

use std::{
    collections::VecDeque,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use tokio::{sync::Mutex, time::Instant};

use crate::store::{Error, Page, Partition, Position, Store};

use super::ring::Link;

/// Pages kept of each partition, and about how many bytes in all of them but the newest.
const KEPT: usize = 8;
const KEPT_BYTES: usize = 2 * 1024 * 1024;

/// What follows a position.
pub enum Following {
    /// At least one change, each following the one before it.
    Changes(Vec<Link>),
    /// Nothing.
    Tail,
    Compacted,
    Flushed,
    RolledBack,
}

/// The pages read last, of each partition. They are of one history each; when that was rewound they are forgotten.
pub struct Pages(Vec<OfPartition>);

#[derive(Default)]
struct OfPartition {
    kept: Mutex<Kept>,
    /// How often history was rewound.
    rewinds: AtomicU64,
}

/// Read when history had been rewound so often.
#[derive(Default)]
struct Kept {
    rewinds: u64,
    pages: VecDeque<Arc<[Link]>>,
}

impl Pages {
    pub fn new(partitions: usize) -> Self {
        Pages((0..partitions).map(|_| OfPartition::default()).collect())
    }

    /// Forgets the pages of a partition, also those that are being read.
    pub fn forget(&self, partition: Partition) {
        self.0[partition.index()].rewinds.fetch_add(1, Ordering::Relaxed);
    }

    /// What follows the position: from a page that somebody read, else read now, by one watcher for all.
    pub async fn after(
        &self,
        store: &Store,
        partition: Partition,
        position: Position,
        deadline: Instant,
    ) -> Result<Following, Error> {
        let own = &self.0[partition.index()];
        let mut kept = own.kept.lock().await;
        let rewinds = own.rewinds.load(Ordering::Relaxed);
        if kept.rewinds != rewinds {
            *kept = Kept { rewinds, pages: VecDeque::new() };
        }
        let found = kept.pages.iter().find_map(|page| {
            let at = page.iter().position(|link| link.previous == position)?;
            Some(page[at..].to_vec())
        });
        if let Some(changes) = found {
            return Ok(Following::Changes(changes));
        }
        let entries = match store.read_after(partition, position, deadline).await? {
            Page::Entries(entries) => entries,
            Page::Tail => return Ok(Following::Tail),
            Page::Compacted => return Ok(Following::Compacted),
            Page::Flushed => return Ok(Following::Flushed),
            Page::RolledBack => return Ok(Following::RolledBack),
        };
        let page: Arc<[Link]> = entries.into_iter().map(Link::new).collect();
        kept.keep(page.clone());
        Ok(Following::Changes(page.to_vec()))
    }
}

impl Kept {
    fn keep(&mut self, page: Arc<[Link]>) {
        let mut bytes = 0;
        let size = |page: &Arc<[Link]>| page.iter().map(|link| link.entry.event.size()).sum::<usize>();
        let mut fits = |page: &Arc<[Link]>| {
            bytes += size(page);
            bytes <= KEPT_BYTES
        };
        let fitting = self.pages.iter().take(KEPT - 1).take_while(|page| fits(page)).count();
        self.pages.truncate(fitting);
        self.pages.push_front(page);
    }
}
