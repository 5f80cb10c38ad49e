//! Connections to Redis servers: heartbeats, reconnects, topology, and the route of each command to the owner of its slot.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "counts are bounded by limits, and times and scores are whole numbers below 2^53"
)]

pub(crate) mod clock;
pub(crate) mod heartbeat;
pub(crate) mod node;
pub(crate) mod node_connector;
pub(crate) mod reconnecting_connection;
pub(crate) mod replicated_writer;
pub(crate) mod router;
pub(crate) mod topology;
