//! Faults of the load: subjects at their session limit, and sessions of the maximum size.

use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use sessiond_client::v1::CreateSessionRequest;

use super::{Fault, create_many};
use crate::{environment::Environment, fault_observed::Evidence};
use harness::Status;

/// Namespace of sessions that no watcher watches. Its policy has a session limit.
pub const SIDE_NAMESPACE: &str = "side";
/// Session limit of the policy of that namespace.
pub const SESSION_LIMIT: usize = 20;
const CREATES: usize = 3 * SESSION_LIMIT;

/// Many creates for a subject that is at its session limit, through all instances at once.
pub struct SessionLimitReached;

impl Fault for SessionLimitReached {
    fn name(&self) -> &'static str {
        "creates at session_limit"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let mut clients = env.clients().await;
            clients.iter_mut().for_each(|client| SIDE_NAMESPACE.clone_into(&mut client.namespace));
            let create = |number: usize| {
                let request = CreateSessionRequest { subject: "limited".into(), ..Default::default() };
                clients[number % clients.len()].create_with(request)
            };
            let created = join_all((0..CREATES).map(create)).await;
            // A session can be replaced before its create has ended.
            let is_replaced = |status: &tonic::Status| {
                status.reason() == "SESSION_ENDED" && status.metadata_of("cause") == "REPLACED"
            };
            let failed = created.into_iter().filter_map(Result::err).filter(|status| !is_replaced(status));
            env.problems.extend(failed.map(|status| status.to_string()));
            let live = clients[0].list_subject("limited").await.len();
            match live {
                SESSION_LIMIT => env.confirmed += 1,
                _ => env.problems.push(format!("{live} sessions at a limit of {SESSION_LIMIT}")),
            }
        })
    }
}

/// Number of large sessions.
const LARGE_SESSIONS: usize = 4;
/// Attribute size of these sessions in bytes, close to the maximum of 1 MiB.
const LARGE_BYTES: usize = 900_000;

/// Sessions of almost the maximum size, which every watcher receives.
pub struct LargeSessions;

impl Fault for LargeSessions {
    fn name(&self) -> &'static str {
        "sessions of 900 KB"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.confirmed += create_many(env, LARGE_SESSIONS, LARGE_BYTES).await;
        })
    }
}
