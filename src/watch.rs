//! Delivers the feed to many watchers.
//!
//! The [`Hub`] is a consumer of the feed: it appends entries and gaps to its ring, in order of arrival, and wakes the watchers
//! that an item may match. Each slot of the ring also holds the resume token after it, encoded once. A [`Subscription`] reads
//! with three readers of one shape, and filters what they return: the snapshot reads sessions, the catch-up reads log
//! entries that have left the ring, and the live reader reads the ring.

mod bookmark;
mod catch_up;
mod filter;
#[cfg(test)]
mod fixtures;
mod hub;
mod item;
mod lifetime;
mod live;
mod page_cache;
mod registry;
mod response;
mod response_reservation;
mod resume_token;
mod ring;
mod snapshot;
mod source;
mod subscription;
mod watcher;
mod watcher_index;

pub use filter::{Filter, Kind, Scope};
pub use hub::Hub;
pub use lifetime::{IdsLifetime, Lifetime, TokenLifetime};
pub use live::LiveReader;
pub use page_cache::PageCache;
pub use registry::{ClientStream, NotRegistered};
pub use response::{
    Batch, CloseReason, Closing, Control, MatchedEvent, ResyncReason, SharedEvent, Visibility, WatchLimits,
};
pub use resume_token::{MalformedResumeToken, ResumeToken};
pub use snapshot::InitialState;
pub use source::RedisSource;
pub use subscription::{Subscription, SubscriptionOptions};
