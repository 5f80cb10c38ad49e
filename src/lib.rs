//! sessiond is a gRPC service that stores login sessions in Redis and streams every change to watchers.
//!
//! # Path of a request
//!
//! 1. [`server`] accepts the connection, performs the TLS handshake and applies the limits. The gate of [`grpc`] finds the
//!    caller in [`auth`].
//! 2. The layers of [`grpc`] read the one message of the call, set its deadline and count its result.
//! 3. `grpc::parse` checks the grant of the caller, and converts the message to the types of [`session`], or rejects it with every
//!    invalid field.
//! 4. [`service`] applies the policy of the namespace, and converts tokens to verifiers.
//! 5. [`store`] runs one Lua script for a mutation; [`redis`] routes it to the server of the partition. The script checks,
//!    appends to the log of the partition, publishes the entry on the channel of the partition, and writes the session.
//! 6. `grpc::render` converts the result to the response; `grpc::status` converts errors to gRPC statuses.
//!
//! A GetSession with `min_revision` asks the [`cache`] before the store.
//!
//! # Path of an event
//!
//! 1. The script appends an entry to the log of its partition and publishes it.
//! 2. The [`feed`] receives it from the channel. If its `previous` is not the last position received, an entry is missing,
//!    and the feed reads the log. It passes every entry to its consumers, in one order.
//! 3. The hub in [`watch`], one of the consumers, adds the entry to the ring of recent events, which all watches share,
//!    and wakes the watches of its session, its subject and its namespace.
//! 4. Each subscription takes the entries that match its filter from the ring. One that is behind the ring reads the log.
//! 5. `grpc::watch_stream` sends them; an event is encoded once per view.
//!
//! # Reading order
//!
//! [`session`] and [`redis`] → [`store`] → [`feed`] → [`cache`], [`watch`] → [`service`] → [`grpc`] → [`server`]. Each module
//! imports only modules to its left, and [`auth`], which imports [`session`] only; [`grpc`] and [`server`] write to the [`audit_log`]; the [`workers`] import [`feed`], not
//! [`watch`]. [`config`], [`observe`], [`embedded`], [`moment`], [`tasks`] and [`pb`] are leaves: the process around the service.
//! [`cli`] is a client; it depends on the proto files, the Rust client and the form of API keys only.

#![warn(unreachable_pub)]
#![cfg_attr(
    not(test),
    warn(
        clippy::expect_used,
        clippy::unwrap_used,
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        clippy::print_stderr,
        clippy::print_stdout,
    )
)]

pub mod audit_log;
pub mod auth;
pub mod cache;
pub mod cli;
pub mod config;
pub mod embedded;
pub mod feed;
pub mod grpc;
pub mod moment;
pub mod observe;
pub mod pb;
pub mod redis;
pub mod server;
pub mod service;
pub mod session;
pub mod store;
pub mod tasks;
pub mod watch;
pub mod workers;
