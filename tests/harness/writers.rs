//! Many writers on a few hot sessions while something goes wrong, and what has to be true afterwards.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use futures_util::future::join_all;
use sessiond_client::v1::{Session, SessionEvent, UpdateSessionRequest};

use super::{Client, Server, client::*, eventually};

const WRITERS: usize = 16;
const SESSIONS: usize = 8;
/// So many writes that each of some dozen sessions has its share.
const MANY: usize = 1_000;

/// The revisions that were acknowledged, by session.
pub type Acknowledged = BTreeMap<String, HashSet<i64>>;

pub struct Written {
    pub acknowledged: Acknowledged,
    /// The last value that was acknowledged, by session and attribute. Each attribute has one writer, and its values grow.
    pub values: BTreeMap<(String, String), i64>,
    /// What else was answered.
    pub refused: Vec<tonic::Status>,
}

/// Writes for as long as `fault` takes and at least so many times; what was acknowledged.
pub async fn write_through(clients: &[Client], at_least: usize, fault: impl Future<Output = ()>) -> Acknowledged {
    let sessions = join_all((0..SESSIONS).map(async |_| clients[0].create(&[]).await.0)).await;
    write_to(clients, &sessions, at_least, fault).await.acknowledged
}

/// The same, to these sessions.
pub async fn write_to(
    clients: &[Client],
    sessions: &[Session],
    at_least: usize,
    fault: impl Future<Output = ()>,
) -> Written {
    let done = tokio::sync::watch::Sender::new(false);
    let writers = (0..WRITERS).map(async |writer: usize| {
        let (client, finished) = (&clients[writer % clients.len()], done.subscribe());
        let (mut writes, mut refused, mut turn) = (Vec::new(), Vec::new(), 0);
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
                Ok(answer) => writes.push((session.id.clone(), answer.into_inner().session.unwrap().revision, turn)),
                Err(status) => {
                    refused.push(status);
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
        (name, writes, refused)
    });
    let fault = async {
        fault.await;
        done.send_replace(true);
    };
    let (writers, ()) = tokio::join!(join_all(writers), fault);
    let acknowledged = sessions.iter().map(|session| (session.id.clone(), HashSet::from([session.revision]))).collect();
    let mut written = Written { acknowledged, values: BTreeMap::new(), refused: Vec::new() };
    for (name, writes, refused) in writers {
        written.refused.extend(refused);
        for (id, revision, turn) in writes {
            written.values.insert((id.clone(), name.clone()), turn as i64);
            written.acknowledged.get_mut(&id).unwrap().insert(revision);
        }
    }
    written
}

/// In us, by the clock that revisions are made of: the tests and Redis have one.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64
}

/// Returns when many more writes were acknowledged, by these servers together.
pub async fn many_are_acknowledged(servers: &[Server]) {
    let counted = async || {
        let name = "sessiond_calls_total{method=\"UpdateSession\",code=\"OK\"}";
        join_all(servers.iter().map(|server| server.metric(name))).await.into_iter().sum::<f64>()
    };
    let before = counted().await;
    eventually("writes are acknowledged", async || (counted().await >= before + MANY as f64).then_some(())).await;
}

impl Written {
    /// Each of these sessions had writes acknowledged before the one moment and after the other, and of all sessions many.
    #[track_caller]
    pub fn assert_many_around(&self, sessions: &[Session], from: i64, until: i64) {
        let count = |of: &HashSet<i64>, made: i64| {
            let of = || of.iter().filter(move |revision| **revision != made);
            [of().filter(|revision| **revision < from).count(), of().filter(|revision| **revision > until).count()]
        };
        let mut of_all = [0, 0];
        for of in self.acknowledged.values() {
            let counts = count(of, 0);
            of_all = [of_all[0] + counts[0], of_all[1] + counts[1]];
        }
        // Some that were answered after a moment were written before it.
        assert!(of_all.iter().all(|count| *count >= MANY / 2), "too few to prove anything: {of_all:?}");
        for session in sessions {
            let counts = count(&self.acknowledged[&session.id], session.revision);
            assert!(counts.iter().all(|count| *count > 0), "{} was not written to: {counts:?}", session.id);
        }
    }

    /// Every session has what was acknowledged, or what the same writer wrote after it.
    pub async fn assert_kept(&self, client: &Client) {
        for ((id, name), value) in &self.values {
            let session = client.get(by_id(id)).await.unwrap();
            let kept = session.attributes.get(name).and_then(|value| match value.kind.as_ref()? {
                sessiond_client::v1::attribute_value::Kind::StringValue(text) => text.parse::<i64>().ok(),
                _ => None,
            });
            assert!(
                kept.is_some_and(|kept| kept >= *value),
                "{id} {name}: {value} was acknowledged, {kept:?} is there"
            );
        }
    }
}

/// Every acknowledged revision was told; none twice, and in order.
pub fn assert_reliable(events: &[SessionEvent], acknowledged: &Acknowledged) {
    let mut told: BTreeMap<&str, Vec<i64>> = BTreeMap::new();
    for event in events {
        told.entry(&event.id).or_default().push(event.revision);
    }
    for (id, revisions) in acknowledged {
        let told = &told[&id[..]];
        assert!(told.is_sorted_by(|a, b| a < b), "told twice or out of order");
        let told: HashSet<_> = told.iter().copied().collect();
        let missing: Vec<_> = revisions.difference(&told).collect();
        assert!(missing.is_empty(), "acknowledged changes of {id} were not told: {missing:?}");
    }
}
