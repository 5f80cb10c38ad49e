//! One Redis server: the connections to it, their heartbeat, its clock. With the keys' hash tags, the scripts' loader and
//! the directory of a Cluster or Sentinel this is all that knows fred.
//!
//! fred is told of single servers alone; which of them has a partition is decided in `connection`. What fred does by
//! default and must not do here: send a command again after a disconnect (one attempt each), queue without bound, speak
//! RESP2 (an array that begins with the text `message` is then taken for a push), and wait for ever. Time-outs,
//! heartbeats and reconnecting are our own: see `wire`.

use std::{pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::{ClientLike, LuaInterface, PubsubInterface},
    types::{
        ClusterHash, CustomCommand, Key, Value,
        config::{Config, ServerConfig},
    },
};
use futures_util::future::{join_all, try_join_all};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::observe::Metrics;

use super::{
    clock::Clock,
    error::{Error, Failure, failure},
    replicated::{self, Replicated},
    scripts::Script,
    wire::{CONNECT_TIMEOUT, Line, Making, UNRESPONSIVE_AFTER, Wire},
};

/// Messages of a connection that has no subscriptions.
pub(super) const FEW: usize = 32;
/// How far ahead a script's time may end, however long the call's deadline.
const LONGEST_NOT_AFTER: Duration = Duration::from_secs(10);

/// What a command does, which decides what a lost answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reads,
    Writes,
}

/// Which connection a command takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Calls that somebody waits for.
    Calls,
    /// Log pages, scans, expiry: nothing large stands before a call.
    Bulk,
}

/// Whether some answers wait for replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    Never,
    ForReplicas,
}

/// Whether the server is asked for a slot that is only about to become its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    No,
    Yes,
}

/// What a server is sent.
#[derive(Clone, Copy)]
pub enum Request<'a> {
    /// The reply is an array that an integer begins.
    Script { script: &'static Script, keys: &'a [Key], args: &'a [Bytes] },
    /// One that reads, or that may as well be sent again.
    Command { name: &'static str, args: &'a [Value] },
}

/// One Redis server.
pub struct Node {
    pub place: ServerConfig,
    calls: Wire,
    bulk: Wire,
    pub(super) subscriber: Wire,
    pub(super) replicated: Replicated,
    clock: Clock,
    /// It has no partition any more.
    pub(super) left: CancellationToken,
    pub(super) metrics: Arc<Metrics>,
}

/// How servers are connected to: credentials, TLS, and what the answers wait for. The place in it is none's.
pub struct Opener {
    pub config: Config,
    pub waits: Waits,
    /// Messages waiting for the feed; beyond it they are lost, which the feed notices and makes good from the log.
    pub messages: usize,
    pub metrics: Arc<Metrics>,
}

impl Opener {
    /// Connects; afterwards it reconnects by itself, for ever.
    pub async fn open(&self, place: &ServerConfig) -> Result<Node, FredError> {
        let config = Config { server: place.clone(), ..self.config.clone() };
        let making = Making { config, messages: FEW, unresponsive_after: UNRESPONSIVE_AFTER };
        let hearing = Making { messages: self.messages, ..making.clone() };
        let patient = Making { unresponsive_after: replicated::UNRESPONSIVE_AFTER, ..making.clone() };
        let waiting = if self.waits == Waits::ForReplicas { replicated::CONNECTIONS } else { 0 };
        let waiting = try_join_all((0..waiting).map(|_| Wire::open(patient.clone())));
        let (calls, bulk, subscriber) = (Wire::open(making.clone()), Wire::open(making), Wire::open(hearing));
        let (calls, bulk, subscriber, waiting) = tokio::try_join!(calls, bulk, subscriber, waiting)?;
        Ok(Node {
            place: place.clone(),
            calls,
            bulk,
            subscriber,
            replicated: Replicated::new(waiting),
            clock: Clock::new(),
            left: CancellationToken::new(),
            metrics: self.metrics.clone(),
        })
    }
}

impl Node {
    fn wires(&self) -> impl Iterator<Item = &Wire> {
        [&self.calls, &self.bulk, &self.subscriber].into_iter().chain(self.replicated.wires())
    }

    /// For good.
    pub async fn close(&self) {
        self.left.cancel();
        join_all(self.wires().map(Wire::close)).await;
    }

    /// Keeps every connection until it is closed for good, and drops the clock's estimate whenever that for calls is a new
    /// one.
    pub async fn keep_alive(&self) {
        let name = self.name();
        let mut lines = self.calls.lines();
        let forgetting = async {
            while lines.changed().await.is_ok() {
                self.clock.forget();
            }
        };
        let keeping = join_all(self.wires().map(|wire| wire.keep(&name)));
        let working = async { tokio::join!(forgetting, keeping, self.replicated.work()) };
        tokio::select! {
            _ = working => {}
            () = self.left.cancelled() => {}
        }
    }

    /// Where it is, for logs.
    pub fn name(&self) -> String {
        name_of(&self.place)
    }

    /// Whether it answered the last ping on every connection.
    pub fn is_up(&self) -> bool {
        self.wires().all(Wire::is_up)
    }

    /// The last moment of its clock, in ms, at which a script of this call may write. The estimate of that clock is
    /// bounded by every answer, so the moment is later than the deadline by a round trip at most.
    pub async fn not_after(&self, deadline: Instant) -> Result<u64, Failure> {
        if !self.clock.is_known() {
            self.time(Lane::Calls, deadline).await?;
        }
        Ok(self.clock.at(deadline.min(Instant::now() + LONGEST_NOT_AFTER)) / 1000)
    }

    /// What its clock shows now, at the latest known; in microseconds.
    pub fn now(&self) -> Option<u64> {
        self.clock.is_known().then(|| self.clock.at(Instant::now()))
    }

    /// Takes a reading of its clock that came in answer to what was sent then.
    pub fn note_time(&self, redis_us: u64, sent: Instant) {
        self.clock.note(redis_us, sent);
    }

    /// What it says of itself in this section, a `field:value` a line.
    pub async fn info(&self, section: &'static str, deadline: Instant) -> Result<String, Failure> {
        let reply = self.command(Lane::Bulk, "INFO", &[section.into()], deadline).await?;
        reply.into_string().ok_or_else(|| Error::Unexpected("INFO".into()).into())
    }

    /// Its present run: another one after every restart.
    pub async fn run(&self, deadline: Instant) -> Result<String, Failure> {
        let info = self.info("server", deadline).await?;
        let run = info.lines().find_map(|line| line.strip_prefix("run_id:"));
        run.map(str::to_owned).ok_or_else(|| Error::Unexpected("INFO".into()).into())
    }

    /// Reads its clock, in us.
    pub async fn time(&self, lane: Lane, deadline: Instant) -> Result<u64, Failure> {
        let sent = Instant::now();
        let reply = self.command(lane, "TIME", &[], deadline).await?;
        let mut parts = reply.into_array().into_iter().filter_map(|part| part.as_u64());
        let (Some(seconds), Some(micros)) = (parts.next(), parts.next()) else {
            return Err(Error::Unexpected("TIME".into()).into());
        };
        let now = seconds * 1_000_000 + micros;
        self.note_time(now, sent);
        Ok(now)
    }

    /// Fails where it is a replica: what that says of a log's end, or of what is missing from it, may be old.
    pub async fn is_primary(&self, deadline: Instant) -> Result<(), Failure> {
        let reply = self.command(Lane::Bulk, "ROLE", &[], deadline).await?;
        let role = reply.into_array().into_iter().next().and_then(|role| role.into_string());
        if role.as_deref() == Some("master") { Ok(()) } else { Err(Failure::Elsewhere("it is a replica".into())) }
    }

    /// What a primary answers to a command that reads, or may as well be sent again: a replica lacks what it has not heard
    /// of yet.
    pub async fn ask_primary(
        &self,
        name: &'static str,
        args: &[Value],
        deadline: Instant,
        asking: Asking,
    ) -> Result<Value, Failure> {
        let reply = self.send(Lane::Bulk, Request::Command { name, args }, deadline, Effect::Reads, asking);
        // Right behind it, on the same connection.
        Ok(tokio::try_join!(biased; reply, self.is_primary(deadline))?.0)
    }

    pub async fn command(
        &self,
        lane: Lane,
        name: &'static str,
        args: &[Value],
        deadline: Instant,
    ) -> Result<Value, Failure> {
        self.send(lane, Request::Command { name, args }, deadline, Effect::Reads, Asking::No).await
    }

    pub async fn send(
        &self,
        lane: Lane,
        request: Request<'_>,
        deadline: Instant,
        effect: Effect,
        asking: Asking,
    ) -> Result<Value, Failure> {
        let line = self.line(match lane {
            Lane::Calls => &self.calls,
            Lane::Bulk => &self.bulk,
        })?;
        let started = Instant::now();
        // Boxed: fred's futures take some 30 KB, which whoever calls would have in each of its own.
        let sending: Pin<Box<dyn Future<Output = _> + Send>> = match asking {
            Asking::No => Box::pin(request.send(&line)),
            Asking::Yes => Box::pin(request.ask(&line)),
        };
        let answer = timeout_at(deadline, line.answer(sending)).await;
        let answer = match answer {
            Ok(answer) => answer.map_err(|error| failure(&error, effect)),
            Err(_) if effect == Effect::Reads => Err(Error::Timeout.into()),
            Err(_) => Err(Error::OutcomeTimeout.into()),
        };
        self.metrics.redis_call(request.name(), started.elapsed(), answer.is_ok());
        answer
    }

    /// Where there is none nothing is sent.
    fn line(&self, wire: &Wire) -> Result<Arc<Line>, Failure> {
        wire.line().ok_or_else(|| match self.left.is_cancelled() {
            true => Failure::Elsewhere("its partitions have moved".into()),
            false => Error::Unavailable("reconnecting".into()).into(),
        })
    }

    /// Subscribes to sharded channels, one by one for their slots differ, and to plain ones.
    pub async fn subscribe(&self, sharded: Vec<String>, plain: Vec<String>) -> Result<(), Failure> {
        let line = self.line(&self.subscriber)?;
        // A slot that it does not have any more keeps nothing else from being heard.
        let subscribing = async {
            let mut outcome = line.subscribe(plain).await;
            for channel in sharded {
                let subscribed = line.ssubscribe(channel).await;
                outcome = outcome.and(subscribed);
            }
            outcome
        };
        match timeout(CONNECT_TIMEOUT, line.answer(subscribing)).await {
            Ok(subscribed) => subscribed.map_err(|error| failure(&error, Effect::Reads)),
            Err(_) => Err(Error::Timeout.into()),
        }
    }
}

impl Request<'_> {
    fn name(&self) -> &'static str {
        match self {
            Request::Script { script, .. } => script.name,
            Request::Command { name, .. } => name,
        }
    }

    async fn send(self, client: &Client) -> Result<Value, FredError> {
        match self {
            Request::Script { script, keys, args } => {
                let (keys, args) = (keys.to_vec(), args.iter().cloned().map(Value::Bytes).collect::<Vec<_>>());
                match client.evalsha(script.digest().clone(), keys.clone(), args.clone()).await {
                    // Nothing ran. Sent in full it runs at once, and is known from then on.
                    Err(error) if error.details().starts_with("NOSCRIPT") => {
                        client.eval(script.source(), keys, args).await
                    }
                    answer => answer,
                }
            }
            Request::Command { name, args } => client.custom(custom(name), args.to_vec()).await,
        }
    }

    /// With ASKING before it on the same connection.
    async fn ask(self, client: &Client) -> Result<Value, FredError> {
        let pipeline = client.pipeline();
        let _: Value = pipeline.custom(custom("ASKING"), Vec::<Value>::new()).await?;
        let _: Value = match self {
            Request::Script { script, keys, args } => {
                let mut values = vec![script.source().into(), Value::from(keys.len() as i64)];
                values.extend(keys.iter().cloned().map(Value::from));
                values.extend(args.iter().cloned().map(Value::Bytes));
                pipeline.custom(custom("EVAL"), values).await?
            }
            Request::Command { name, args } => pipeline.custom(custom(name), args.to_vec()).await?,
        };
        let answer = pipeline.try_all::<Value>().await.into_iter().nth(1);
        answer.unwrap_or_else(|| Err(FredError::new(ErrorKind::Canceled, "no answer")))
    }
}

/// A command by its name; of single servers no slot is asked for.
pub(super) fn custom(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

/// `host:port`, or the path of a socket.
pub fn name_of(place: &ServerConfig) -> String {
    match place {
        ServerConfig::Unix { path } => path.display().to_string(),
        place => place.hosts().first().map(ToString::to_string).unwrap_or_default(),
    }
}
