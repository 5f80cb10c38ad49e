//! Concurrent writers on a few sessions during a fault, and the checks of acknowledged writes and events afterwards.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use sessiond_client::v1::{Session, SessionEvent, UpdateSessionRequest};

use super::{Client, Server, client::*, eventually};

const WRITERS: usize = 16;
const SESSIONS: usize = 8;
/// Number of writes after which each of a few dozen sessions has been written to.
const MANY: usize = 1_000;

/// Acknowledged revisions, by session id.
pub type Acknowledged = BTreeMap<String, HashSet<i64>>;

/// Acknowledged writes and errors of concurrent writers.
pub struct WriteResults {
    /// Acknowledged revisions, including those of the creates.
    pub acknowledged: Acknowledged,
    /// Last acknowledged value, by session id and attribute. Each attribute has one writer, which writes increasing
    /// values.
    pub values: BTreeMap<(String, String), i64>,
    /// Errors that the writers received.
    pub errors: Vec<tonic::Status>,
}

/// Creates sessions and writes to them until `fault` has ended and at least `at_least` writes were made.
///
/// Returns the acknowledged revisions.
pub async fn write_during(clients: &[Client], at_least: usize, fault: impl Future<Output = ()>) -> Acknowledged {
    let sessions = join_all((0..SESSIONS).map(async |_| clients[0].create(&[]).await.0)).await;
    write_sessions_during(clients, &sessions, at_least, fault).await.acknowledged
}

/// Writes to these sessions until `fault` has ended and at least `at_least` writes were made.
pub async fn write_sessions_during(
    clients: &[Client],
    sessions: &[Session],
    at_least: usize,
    fault: impl Future<Output = ()>,
) -> WriteResults {
    let done = tokio::sync::watch::Sender::new(false);
    let writers = (0..WRITERS).map(async |writer: usize| {
        let (client, finished) = (&clients[writer % clients.len()], done.subscribe());
        let (mut writes, mut errors, mut turn) = (Vec::new(), Vec::new(), 0);
        let name = format!("w{writer}");
        while turn < at_least / WRITERS || !*finished.borrow() {
            turn += 1;
            let session = &sessions[(writer + turn) % sessions.len()];
            let update = UpdateSessionRequest {
                namespace: client.namespace.clone(),
                key: by_id(&session.id),
                set_attributes: [(name.clone(), text(&turn.to_string()))].into(),
                ..Default::default()
            };
            match client.grpc.clone().update_session(update).await {
                Ok(response) => {
                    writes.push((session.id.clone(), response.into_inner().session.unwrap().revision, turn))
                }
                Err(status) => {
                    errors.push(status);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        (name, writes, errors)
    });
    let fault = async {
        fault.await;
        done.send_replace(true);
    };
    let (writers, ()) = tokio::join!(join_all(writers), fault);
    let acknowledged = sessions.iter().map(|session| (session.id.clone(), HashSet::from([session.revision]))).collect();
    let mut results = WriteResults { acknowledged, values: BTreeMap::new(), errors: Vec::new() };
    for (name, writes, errors) in writers {
        results.errors.extend(errors);
        for (id, revision, turn) in writes {
            results.values.insert((id.clone(), name.clone()), turn as i64);
            results.acknowledged.get_mut(&id).unwrap().insert(revision);
        }
    }
    results
}

/// Returns the time in µs since the epoch. Revisions use the same clock, because Redis runs on this machine.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// Waits until these servers together have acknowledged 1,000 more writes.
pub async fn wait_for_many_writes(servers: &[Server]) {
    let counted = async || {
        let name = "sessiond_grpc_requests_total{method=\"UpdateSession\",code=\"OK\"}";
        join_all(servers.iter().map(|server| server.metric(name))).await.into_iter().sum::<f64>()
    };
    let before = counted().await;
    eventually("many writes are acknowledged", async || (counted().await >= before + MANY as f64).then_some(())).await;
}

impl WriteResults {
    /// Checks that each of these sessions has acknowledged writes before `from` and after `until` (µs since the epoch),
    /// and that all sessions together have at least 500 of both.
    #[track_caller]
    pub fn assert_writes_around(&self, sessions: &[Session], from: i64, until: i64) {
        let count = |revisions: &HashSet<i64>, created: i64| {
            let writes = || revisions.iter().filter(move |revision| **revision != created);
            [
                writes().filter(|revision| **revision < from).count(),
                writes().filter(|revision| **revision > until).count(),
            ]
        };
        let mut total = [0, 0];
        for revisions in self.acknowledged.values() {
            let counts = count(revisions, 0);
            total = [total[0] + counts[0], total[1] + counts[1]];
        }
        // Half of MANY: some writes that were counted after a moment were made before it.
        assert!(total.iter().all(|count| *count >= MANY / 2), "too few writes: {total:?}");
        for session in sessions {
            let counts = count(&self.acknowledged[&session.id], session.revision);
            assert!(counts.iter().all(|count| *count > 0), "{} was not written to: {counts:?}", session.id);
        }
    }

    /// Checks that each attribute has its last acknowledged value, or a later value of the same writer.
    pub async fn assert_acknowledged_kept(&self, client: &Client) {
        for ((id, name), value) in &self.values {
            let session = client.get(by_id(id)).await.unwrap();
            let kept = session.attributes.get(name).and_then(|value| match value.kind.as_ref()? {
                sessiond_client::v1::attribute_value::Kind::StringValue(text) => text.parse::<i64>().ok(),
                _ => None,
            });
            assert!(
                kept.is_some_and(|kept| kept >= *value),
                "{id} {name}: {value} was acknowledged, {kept:?} is stored"
            );
        }
    }
}

/// Checks that the events contain every acknowledged revision once, and in order per session.
pub fn assert_complete_in_order(events: &[SessionEvent], acknowledged: &Acknowledged) {
    let mut delivered: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for event in events {
        delivered.entry(&event.id).or_default().push(event.revision);
    }
    for (id, revisions) in acknowledged {
        let delivered = &delivered[&id[..]];
        assert!(delivered.is_sorted_by(|a, b| a < b), "delivered twice or out of order");
        let delivered: HashSet<_> = delivered.iter().copied().collect();
        let missing: Vec<_> = revisions.difference(&delivered).collect();
        assert!(missing.is_empty(), "acknowledged changes of {id} were not delivered: {missing:?}");
    }
}
