//! Connections to Redis servers: heartbeats, reconnects, topology, and the route of each request to the owner of its slot.
//! The only module that uses fred, the Redis client.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts are bounded by limits, and times and scores are whole numbers below 2^53"
)]

mod clock;
mod cluster_nodes;
mod connection;
mod credentials;
mod endpoint;
mod error;
mod event_queue;
mod heartbeat;
mod node;
mod node_connector;
mod primary_reads;
mod reconnecting_connection;
mod replicated_writer;
mod reply;
mod request;
mod router;
mod script;
mod slot;
mod subscriber;
mod topology;

pub use credentials::{Credentials, CurrentCredentials};
pub use endpoint::{Endpoint, uses_tls};
pub use error::{Effect, Error, lacks_replicas};
pub use event_queue::SubscriberEvent;
pub use heartbeat::{Condition, Probe};
pub use node::{LONGEST_NOT_AFTER, MAX_LARGE_REPLY_BYTES, Node, OnWrongType, Priority};
pub use node_connector::{NodeConnector, ReplicatedWrites};
pub use primary_reads::PrimaryReads;
pub use reply::Reply;
pub use request::{Asking, Request};
pub use router::{OnMigration, Router, SlotMap};
pub use script::Script;
pub use slot::Slot;
pub use subscriber::Subscriber;
