//! One feed in, many watchers out.
//!
//! The [`feed`] follows the logs of all partitions into the [`hub`]'s one ring, in order of arrival; beside every entry
//! stands the resume token after it, encoded once. A [`subscription`] is a cursor into that ring, a [`filter`] and a
//! wake-up; what it cannot take from the ring any more it reads from the log.

mod behind;
mod bookmark;
mod deadlines;
mod feed;
mod filter;
mod hub;
mod lifetime;
mod pages;
mod registration;
mod rewind;
mod ring;
mod snapshot;
mod subscription;
mod token;
mod vanished;

pub use deadlines::Deadlines;
pub use feed::feed;
pub use filter::{Filter, Kind, Scope, Seen};
pub use hub::{Hub, Limits, Verified, WatchLimitReached};
pub use lifetime::{Finish, IdsLifetime, Lifetime, TokenLifetime};
pub use ring::{Entry, Resync};
pub use subscription::{Batch, Control, Matched, Start, State, Subscription};
pub use token::{Garbage, ResumeToken};
pub use vanished::Vanished;
