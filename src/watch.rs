//! Delivers the feed to many watchers.
//!
//! The [`Hub`] is a consumer of the feed: it appends entries and gaps to its ring, in order of arrival. Each slot of the
//! ring also holds the resume token after it, encoded once. A [`Subscription`] is a cursor into the ring, a [`Filter`] and
//! a wake-up. It reads from the log the entries that have left the ring.

mod bookmark;
mod catch_up;
mod eviction;
mod filter;
mod hub;
mod lifetime;
mod log_progress;
mod page_cache;
mod registration;
mod response;
mod response_reservation;
mod resume_token;
mod ring;
mod snapshot;
mod snapshot_reads;
mod subscription;
mod watcher_index;

use std::time::Duration;

pub use filter::{Filter, Kind, Scope, Visibility};
pub use hub::{Hub, WatchLimits};
pub use lifetime::{CloseReason, IdsLifetime, Lifetime, TokenLifetime};
pub use registration::{Registration, WatchLimitReached};
pub use response::{Batch, Control, MatchedEvent};
pub use resume_token::{MalformedResumeToken, ResumeToken};
pub use ring::{ResyncReason, SharedEvent};
pub use subscription::{InitialState, Subscription, SubscriptionOptions};

/// Pause before a failed read from Redis is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
