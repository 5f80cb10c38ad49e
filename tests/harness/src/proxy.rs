//! A proxy between a sessiond server and its Redis: cuts connections, limits the bandwidth of replies, delays them, drops
//! channel messages, and holds back requests or replies, at once or from a script call or a command on.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use sessiond::redis::Script;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use super::{Redis, redis::socket_url};

/// Number of bytes after which another connection gets its turn if the bandwidth is limited.
const CHUNK: usize = 4 * 1024;

/// A proxy on a Unix socket in front of one Redis.
pub struct Proxy {
    directory: TempDir,
    /// Whether bytes for Redis are held back.
    requests_held: Arc<watch::Sender<bool>>,
    /// Incremented to cut all connections.
    cuts: Arc<watch::Sender<u32>>,
    control: Arc<Control>,
    /// Socket of the Redis that new connections lead to.
    target: Arc<Mutex<PathBuf>>,
    redis: Redis,
}

/// Purpose of a connection, which its requests show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Reads of the logs and of their ends, and other requests that Redis does not count as writes. Every connection until its
    /// first request shows another purpose.
    LogReads,
    /// Calls, with requests that Redis counts as writes.
    Calls,
    /// Channel messages and keyspace notifications.
    Messages,
}

impl Purpose {
    /// Commands of which one shows the purpose.
    const MARKS: [(Purpose, &[&str]); 2] =
        [(Purpose::Messages, &["SUBSCRIBE\r\n"]), (Purpose::Calls, &["EVALSHA\r\n", "GETEX\r\n"])];

    /// Returns the purpose that these requests show. None: any.
    fn shown_by(requests: &[u8]) -> Option<Self> {
        let has = |mark: &&str| requests.windows(mark.len()).any(|window| window == mark.as_bytes());
        Purpose::MARKS.into_iter().find(|(_, marks)| marks.iter().any(has)).map(|(purpose, _)| purpose)
    }
}

/// Connections whose replies are held back.
#[derive(Clone, Copy, PartialEq)]
enum HeldReplies {
    None,
    /// The first connections, up to this number.
    First(usize),
    /// The connections with this purpose.
    Of(Purpose),
    /// All connections except those of calls.
    OfFeed,
}

impl HeldReplies {
    /// Returns whether the replies to this connection are held back.
    fn includes(self, number: usize, purpose: &AtomicU8) -> bool {
        match self {
            HeldReplies::None => false,
            HeldReplies::First(count) => number < count,
            HeldReplies::Of(held) => purpose.load(Ordering::Relaxed) == held as u8,
            HeldReplies::OfFeed => purpose.load(Ordering::Relaxed) != Purpose::Calls as u8,
        }
    }
}

/// State that the connections share: the breakpoint and the replies.
struct Control {
    breakpoint: Mutex<Option<Breakpoint>>,
    replies_held: watch::Sender<HeldReplies>,
    /// Whether channel messages and keyspace notifications are dropped.
    messages_dropped: AtomicBool,
    /// All bytes that Redis has sent, by connection.
    replies: Mutex<Vec<Vec<u8>>>,
    /// Limit of the bytes of all replies. None: no limit.
    line: Mutex<Option<Line>>,
    /// Time by which replies are delayed.
    delay: Mutex<Duration>,
}

/// A line with a limited bandwidth, which all connections share.
struct Line {
    bytes_per_second: u32,
    /// Time at which the line is free again.
    free_at: Instant,
}

/// Number of bytes at the end of a source that are searched. Scripts end differently.
const MARK_BYTES: usize = 60;

/// A script or a command at which the proxy starts to hold back bytes.
struct Breakpoint {
    /// SHA-1 of the script, or the end of its source: scripts that only read are sent with their source. Or the command.
    mark: String,
    /// Number of calls of the script until the breakpoint is reached.
    remaining: u32,
    action: Action,
}

/// What the proxy holds back once the breakpoint is reached.
#[derive(Clone, Copy, PartialEq)]
enum Action {
    /// The script call and all later requests: Redis does not receive the script.
    HoldRequests,
    /// These replies: Redis runs the script, and its reply does not arrive.
    HoldReplies(HeldReplies),
}

impl Control {
    /// Searches requests for the mark of the breakpoint.
    ///
    /// `unsearched` holds the end of the bytes sent before, because a mark may be split over two reads.
    fn inspect(&self, unsearched: &mut Vec<u8>, sent: &[u8], requests_held: &watch::Sender<bool>) {
        let mut breakpoint = self.breakpoint.lock().unwrap();
        let Some(Breakpoint { mark, remaining, action }) = &mut *breakpoint else { return unsearched.clear() };
        unsearched.extend_from_slice(sent);
        let mut from = 0;
        while let Some(at) = unsearched[from..].windows(mark.len()).position(|window| window == mark.as_bytes()) {
            from += at + mark.len();
            *remaining = remaining.saturating_sub(1);
            if *remaining == 0 {
                match action {
                    Action::HoldRequests => drop(requests_held.send_replace(true)),
                    Action::HoldReplies(held) => drop(self.replies_held.send_replace(*held)),
                };
            }
        }
        unsearched.drain(..from.max(unsearched.len().saturating_sub(mark.len() - 1)));
    }

    /// Waits until the line has carried these bytes.
    async fn carry(&self, bytes: usize) {
        let carried_at = self.line.lock().unwrap().as_mut().map(|line| {
            let takes = Duration::from_secs_f64(bytes as f64 / f64::from(line.bytes_per_second));
            line.free_at = line.free_at.max(Instant::now()) + takes;
            line.free_at
        });
        if let Some(carried_at) = carried_at {
            sleep_until(carried_at).await;
        }
    }
}

impl Proxy {
    /// Starts a proxy in front of this Redis.
    pub fn start(redis: &Redis) -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-proxy-").tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("proxy.sock")).unwrap();
        let control = Control {
            breakpoint: Mutex::new(None),
            replies_held: watch::Sender::new(HeldReplies::None),
            messages_dropped: AtomicBool::new(false),
            replies: Mutex::default(),
            line: Mutex::new(None),
            delay: Mutex::default(),
        };
        let proxy = Proxy {
            directory,
            requests_held: Arc::new(watch::Sender::new(false)),
            cuts: Arc::new(watch::Sender::new(0)),
            control: Arc::new(control),
            target: Arc::new(Mutex::new(redis.socket())),
            redis: redis.clone(),
        };
        let (held, cuts, control) = (proxy.requests_held.clone(), proxy.cuts.clone(), proxy.control.clone());
        let target = proxy.target.clone();
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Subscribes before it connects, so that a cut during the connect applies to this connection.
                let cuts = cuts.subscribe();
                let target = target.lock().unwrap().clone();
                spawn(relay(client, target, held.clone(), cuts, control.clone()));
            }
        });
        proxy
    }

    /// Returns the URL of Redis through this proxy.
    pub fn url(&self) -> String {
        socket_url(&self.directory.path().join("proxy.sock"))
    }

    /// Holds back all requests from now on; replies still pass.
    ///
    /// Held requests are kept even if the sender closes its connection, as a network may deliver packets late.
    pub fn hold_requests(&self) {
        self.requests_held.send_replace(true);
    }

    /// Holds back all requests from the next call of this script on: the script does not reach Redis.
    pub fn hold_requests_at(&self, script: &Script) {
        self.set_breakpoint(script, 1, Action::HoldRequests);
    }

    /// Returns whether requests are held back.
    pub fn is_holding_requests(&self) -> bool {
        *self.requests_held.borrow()
    }

    /// Removes the breakpoint and forwards the held requests to Redis.
    pub fn release_requests(&self) {
        *self.control.breakpoint.lock().unwrap() = None;
        self.requests_held.send_replace(false);
    }

    /// Holds back all replies from now on; Redis still executes the requests.
    pub fn hold_replies(&self) {
        self.hold_replies_of(usize::MAX);
    }

    /// Holds back the replies to the first `count` connections; those to later ones pass.
    pub fn hold_replies_of(&self, count: usize) {
        self.control.replies_held.send_replace(HeldReplies::First(count));
    }

    /// Holds back the replies to the connections with this purpose; the others pass.
    pub fn hold_replies_to(&self, purpose: Purpose) {
        self.control.replies_held.send_replace(HeldReplies::Of(purpose));
    }

    /// Holds back all replies except those to calls.
    pub fn hold_replies_to_feed(&self) {
        self.control.replies_held.send_replace(HeldReplies::OfFeed);
    }

    /// Holds back all replies from the n-th call of this script on: Redis runs it, and its reply does not arrive.
    pub fn hold_replies_after(&self, script: &Script, nth: u32) {
        self.set_breakpoint(script, nth, Action::HoldReplies(HeldReplies::First(usize::MAX)));
    }

    /// Holds back the replies to the connections with this purpose from the next request with this command on.
    pub fn hold_replies_after_command(&self, command: &str, purpose: Purpose) {
        let (mark, action) = (command.to_owned(), Action::HoldReplies(HeldReplies::Of(purpose)));
        *self.control.breakpoint.lock().unwrap() = Some(Breakpoint { mark, remaining: 1, action });
    }

    /// Drops channel messages and keyspace notifications, or forwards them again.
    pub fn drop_messages(&self, are_dropped: bool) {
        self.control.messages_dropped.store(are_dropped, Ordering::Relaxed);
    }

    fn set_breakpoint(&self, script: &Script, remaining: u32, action: Action) {
        let source = script.source();
        let loaded = self.redis.command(&["SCRIPT", "LOAD", &source]);
        let digest = loaded.lines().nth(1).expect("a digest").to_owned();
        let reads = script.flags.contains("no-writes");
        let mark = if reads { source[source.len().saturating_sub(MARK_BYTES)..].to_owned() } else { digest };
        *self.control.breakpoint.lock().unwrap() = Some(Breakpoint { mark, remaining, action });
    }

    /// Returns whether replies are held back.
    pub fn is_holding_replies(&self) -> bool {
        *self.control.replies_held.borrow() != HeldReplies::None
    }

    /// Removes the breakpoint and forwards the held replies, then new ones.
    pub fn release_replies(&self) {
        *self.control.breakpoint.lock().unwrap() = None;
        self.control.replies_held.send_replace(HeldReplies::None);
    }

    /// Limits the bytes of all replies together; the connections share the line fairly.
    pub fn limit_bandwidth(&self, bytes_per_second: u32) {
        *self.control.line.lock().unwrap() = Some(Line { bytes_per_second, free_at: Instant::now() });
    }

    /// Delays all replies by this time from now on, like a long line to Redis.
    pub fn delay_replies(&self, delay: Duration) {
        *self.control.delay.lock().unwrap() = delay;
    }

    /// Returns the number of connections that were opened so far.
    pub fn connections(&self) -> usize {
        self.control.replies.lock().unwrap().len()
    }

    /// Returns all bytes that Redis has sent so far, by connection.
    pub fn replies(&self) -> Vec<Vec<u8>> {
        self.control.replies.lock().unwrap().clone()
    }

    /// Forgets the bytes that Redis has sent so far.
    pub fn forget_replies(&self) {
        self.control.replies.lock().unwrap().iter_mut().for_each(|replies| *replies = Vec::new());
    }

    /// Closes all connections on both sides. New ones lead to this Redis.
    pub fn switch_to(&self, redis: &Redis) {
        *self.target.lock().unwrap() = redis.socket();
        self.cut();
    }

    /// Closes all connections on both sides; held bytes are lost.
    pub fn cut(&self) {
        self.cuts.send_modify(|count| *count += 1);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime owns it")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn relay(
    client: UnixStream,
    target: PathBuf,
    requests_held: Arc<watch::Sender<bool>>,
    mut cuts: watch::Receiver<u32>,
    control: Arc<Control>,
) {
    let Ok(server) = UnixStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let purpose = AtomicU8::new(Purpose::LogReads as u8);
    let forward_requests = async {
        let mut buffer = vec![0; 64 * 1024];
        let mut unsearched = Vec::new();
        let mut is_held = requests_held.subscribe();
        loop {
            let count = from_client.read(&mut buffer).await.unwrap_or(0);
            if purpose.load(Ordering::Relaxed) == Purpose::LogReads as u8 {
                let shown = Purpose::shown_by(&buffer[..count]).unwrap_or(Purpose::LogReads);
                purpose.store(shown as u8, Ordering::Relaxed);
            }
            if is_held.wait_for(|held| !held).await.is_err() || count == 0 {
                break;
            }
            control.inspect(&mut unsearched, &buffer[..count], &requests_held);
            // These bytes may have reached the breakpoint.
            if is_held.wait_for(|held| !held).await.is_err() || to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let forward_replies = async {
        let mut buffer = vec![0; 64 * 1024];
        let mut is_held = control.replies_held.subscribe();
        let number = {
            let mut replies = control.replies.lock().unwrap();
            replies.push(Vec::new());
            replies.len() - 1
        };
        while let Ok(count) = from_server.read(&mut buffer).await {
            if count == 0 || is_held.wait_for(|held| !held.includes(number, &purpose)).await.is_err() {
                break;
            }
            // Pushes begin with `>`; replies to heartbeats pass.
            if buffer[0] == b'>' && control.messages_dropped.load(Ordering::Relaxed) {
                continue;
            }
            control.replies.lock().unwrap()[number].extend_from_slice(&buffer[..count]);
            let delay = *control.delay.lock().unwrap();
            if !delay.is_zero() {
                sleep(delay).await;
            }
            for chunk in buffer[..count].chunks(CHUNK) {
                control.carry(chunk.len()).await;
                // The client may have closed its side while its requests are still held.
                let _ = to_client.write_all(chunk).await;
            }
        }
    };
    tokio::select! {
        biased;
        _ = cuts.changed() => {}
        () = async { tokio::join!(forward_requests, forward_replies); } => {}
    }
}
