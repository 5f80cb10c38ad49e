//! sessiond keeps login sessions in Redis for services written in any language, and tells every change to whoever
//! watches.
//!
//! # The way of a call
//!
//! [`server`] accepts it; the guard in [`grpc`] reads its message and sets its deadline; `grpc::parse` turns it into
//! plain types of [`session`]; [`service`] applies the namespace's policy and turns tokens into hashes; [`store`] runs
//! one Lua script, which decides and writes; its reply becomes a session again, and `grpc::render` puts it on the wire.
//!
//! # The way of a change
//!
//! A script appends it to its partition's log and publishes it on the partition's channel. The feed in [`watch`] proves
//! by each entry's `prev` that none is missing, reads the log where that fails, and puts the entry into one ring; every
//! subscription takes from the ring what its filter matches; `grpc::watch_stream` sends the bytes.
//!
//! # Reading order
//!
//! [`session`] → [`store`] → [`watch`], [`sweeper`], [`auditor`], [`bridge`] → [`service`] → [`grpc`] → [`server`]; imports go the
//! other way only. [`config`], [`observe`], [`embedded`], [`tasks`] and [`pb`] are leaves. [`cli`] stands beside all of it:
//! a client like any other, which knows the service by its proto files alone.

pub mod auditor;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod embedded;
pub mod grpc;
pub mod observe;
pub mod pb;
pub mod server;
pub mod service;
pub mod session;
pub mod store;
pub mod sweeper;
pub mod tasks;
pub mod watch;
