//! Delivers one feed of changes to many watchers.
//!
//! The [`feed`] follows the logs of all partitions and appends their entries to the [`hub`]'s ring, in order of
//! arrival. Each slot of the ring also holds the resume token after it, encoded once. A [`subscription`] is a cursor
//! into the ring, a [`filter`] and a wake-up. It reads from the log the entries that have left the ring.

mod bookmark;
mod catch_up;
mod deadlines;
mod eviction;
mod feed;
mod filter;
mod hub;
mod lifetime;
mod missing_keys;
mod page_cache;
mod place;
mod registration;
mod response;
mod resume_token;
mod ring;
mod rollback;
mod snapshot;
mod subscription;
mod throttle;

use std::time::Duration;

pub use deadlines::Deadlines;
pub use feed::feed;
pub use filter::{Filter, Kind, Scope, Visibility};
pub use hub::{Hub, TailRead, WatchLimitReached, WatchLimits};
pub use lifetime::{CloseReason, IdsLifetime, Lifetime, TokenLifetime};
pub use missing_keys::MissingKeys;
pub use registration::Registration;
pub use response::{Batch, Control, MatchedEvent};
pub use resume_token::{MalformedResumeToken, ResumeToken};
pub use ring::{ResyncReason, SharedEvent};
pub use rollback::Rollbacks;
pub use subscription::{InitialState, Subscription, SubscriptionOptions};

/// Time limit of one read from Redis, which may wait behind large replies on a slow line. If Redis hangs, the heartbeats
/// fail earlier.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause before a failed read from Redis is retried.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
