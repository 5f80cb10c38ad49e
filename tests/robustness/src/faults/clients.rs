//! Faults of clients: connections that are not used, responses that are not read, logout with unknown tokens, and forged
//! messages.

use std::{
    any::Any,
    time::{Duration, Instant},
};

use futures_util::{
    StreamExt,
    future::{LocalBoxFuture, join_all},
    stream,
};
use prost::Message;
use sessiond_client::v1::{CreateSessionRequest, ListSessionsRequest, SessionView, WatchRequest};
use tokio::time::{sleep, timeout};

use super::{Fault, load::SIDE_NAMESPACE};
use crate::{environment::Environment, fault_observed::Evidence, instance::Instance};
use harness::{
    Client,
    client::{NAMESPACE, by_token, incompressible, new_token, text, whole_namespace},
    eventually,
    raw::{Raw, framed},
};

/// HTTP/2 window of clients that do not read, in bytes.
const WINDOW: u32 = 64 * 1024;

/// A call whose response is not read.
type Unread = (h2::client::ResponseFuture, h2::SendStream<bytes::Bytes>);

/// Connects to this instance and starts `count` calls.
async fn start_unread(address: &str, method: &str, request: &impl Message, count: usize) -> (Raw, Vec<Unread>) {
    let raw = Raw::connect_with_windows(address, WINDOW, WINDOW).await;
    let body = bytes::Bytes::from(framed(request));
    let mut calls = Vec::new();
    for _ in 0..count {
        calls.push(raw.begin(method, &[], Some(body.clone())).await);
    }
    (raw, calls)
}

/// Waits until a metric of the instance has at least this value.
async fn wait_until_counted(instance: &Instance, metric: &str, count: usize) {
    eventually("the clients are counted", async || (instance.metric(metric).await >= count as f64).then_some(())).await;
}

/// 200 clients connect to one instance and make no call.
#[derive(Default)]
pub struct IdleConnections {
    open: Vec<Raw>,
}

/// Number of idle connections.
const IDLE_CONNECTIONS: usize = 200;

impl Fault for IdleConnections {
    fn name(&self) -> &'static str {
        "200 idle connections"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let number = env.rng.below(env.instances.len());
            let instance = &env.instances[number];
            self.open = join_all((0..IDLE_CONNECTIONS).map(|_| Raw::connect(&instance.address))).await;
            wait_until_counted(instance, "sessiond_grpc_connections", IDLE_CONNECTIONS).await;
            env.confirmed += 1;
        })
    }

    fn heal<'a>(&'a mut self, _env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.open.clear() })
    }
}

/// A client reads none of 100 ListSessions responses.
#[derive(Default)]
pub struct ListsUnread {
    /// The connection, the response that has begun, and the calls.
    open: Option<Box<dyn Any>>,
}

/// Number of sessions in each response.
const LISTED_SESSIONS: usize = 10;
/// Attribute size of these sessions in bytes.
const LISTED_BYTES: usize = 40_000;
/// Number of calls.
const LISTS: usize = 100;

impl Fault for ListsUnread {
    fn name(&self) -> &'static str {
        "100 ListSessions responses unread"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let address = env.instances[env.rng.below(env.instances.len())].address.clone();
            let client = Client::connect(&address).await.in_namespace(SIDE_NAMESPACE);
            for _ in 0..LISTED_SESSIONS {
                let attributes = [("large".to_owned(), text(&incompressible(LISTED_BYTES)))].into();
                let create = CreateSessionRequest { subject: "listed".into(), attributes, ..Default::default() };
                if let Err(status) = client.create_with(create).await {
                    env.problems.push(status.to_string());
                }
            }
            let request = ListSessionsRequest {
                namespace: SIDE_NAMESPACE.into(),
                subject: Some("listed".into()),
                view: SessionView::Full.into(),
                ..Default::default()
            };
            let (raw, mut calls) = start_unread(&address, "ListSessions", &request, LISTS).await;
            let (first, request) = calls.swap_remove(0);
            let first = timeout(Duration::from_secs(5), first).await;
            env.confirmed += usize::from(first.is_ok());
            self.open = Some(Box::new((raw, first, request, calls)));
        })
    }

    fn heal<'a>(&'a mut self, _env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.open = None })
    }
}

/// A client with many watches reads nothing, but its HTTP/2 connection answers pings.
#[derive(Default)]
pub struct WatchesUnread {
    open: Option<(Raw, Vec<Unread>)>,
}

/// Number of watches.
const WATCHES: usize = 50;

impl Fault for WatchesUnread {
    fn name(&self) -> &'static str {
        "50 watches unread"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(6)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let number = env.rng.below(env.instances.len());
            let instance = &env.instances[number];
            let request = WatchRequest { namespace: NAMESPACE.into(), ..whole_namespace() };
            self.open = Some(start_unread(&instance.address, "Watch", &request, WATCHES).await);
            wait_until_counted(instance, "sessiond_watches", WATCHES).await;
            env.confirmed += 1;
        })
    }

    fn heal<'a>(&'a mut self, _env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.open = None })
    }
}

/// Clients delete sessions by tokens that no session has, 500 each second.
pub struct DeletesOfUnknownTokens;

/// Number of deletes per second.
const DELETES_PER_SECOND: usize = 500;
/// Duration of the deletes. A slow machine sends fewer.
const DELETES_TIME: Duration = Duration::from_secs(3);
/// Number of deletes in flight at once.
const CONCURRENT_DELETES: usize = 16;

impl Fault for DeletesOfUnknownTokens {
    fn name(&self) -> &'static str {
        "500 deletes of unknown tokens per second"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let (clients, started) = (env.clients().await, Instant::now());
            let delete = async |number: usize| {
                let due = Duration::from_secs(1) * number as u32 / DELETES_PER_SECOND as u32;
                sleep(due.saturating_sub(started.elapsed())).await;
                clients[number % clients.len()].delete(by_token(&new_token())).await
            };
            let mut deletes = stream::iter(0..).map(delete).buffer_unordered(CONCURRENT_DELETES);
            while let Some(deleted) = deletes.next().await {
                match deleted {
                    Ok(_) => env.confirmed += 1,
                    Err(status) => env.problems.push(status.to_string()),
                }
                if started.elapsed() > DELETES_TIME {
                    break;
                }
            }
        })
    }
}

/// Another client of Redis publishes messages on the channels of sessiond.
pub struct ForgedMessages;

impl Fault for ForgedMessages {
    fn name(&self) -> &'static str {
        "forged messages on the channels"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let channels = env.redis.list(&["PUBSUB", "SHARDCHANNELS", "ses:*"]);
            let messages =
                ["", "message", "1-1", "9007199254740991-1", "9007199254740992-1", "-", "\u{9c}1-1", "[1,2]"];
            for _ in 0..20 {
                for channel in &channels {
                    let message = env.rng.choose(&messages);
                    env.confirmed += usize::try_from(env.redis.number(&["SPUBLISH", channel, message])).unwrap_or(0);
                }
                // The keys exist: the sessions must not end.
                for key in env.redis.keys("ses:*:s:web:*") {
                    env.redis.number(&["PUBLISH", "__keyevent@0__:del", &key]);
                }
                sleep(Duration::from_millis(50)).await;
            }
        })
    }
}
