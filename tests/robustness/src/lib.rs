//! Robustness tests: records histories of sessiond under faults, and checks them against the guarantees W1–W10 and
//! S1–S6.
//!
//! `run` records one history, `campaign` many, and `soak` many on the same servers. `near_cache` records and checks long ones
//! of the reads from memory. `validate` holds one pure function for each guarantee, and `defects`
//! the errors that each of these functions must find. The integration test `robustness` plays a short campaign; the
//! program of this package plays a long one and writes docs/faults.md.

pub mod campaign;
pub mod defects;
mod environment;
mod fault_observed;
mod faults;
pub use faults::is_selected;
pub mod fixtures;
mod ground_truth;
mod history;
mod instance;
mod log_reader;
pub mod near_cache;
pub mod page;
mod recorder;
mod redis_time;
mod run;
mod seeded_rng;
pub mod soak;
mod streams;
mod table;
pub mod validate;
mod watchers;
mod workload;
