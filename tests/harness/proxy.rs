//! Between a server and its Redis: holds packets back, lets them go later, cuts connections, stops a server at a step.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use sessiond::store::scripts::Script;

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
};

use super::{Redis, redis::url_of};

pub struct Proxy {
    directory: TempDir,
    /// Whether what goes to Redis is held back.
    held: Arc<watch::Sender<bool>>,
    /// Raised to cut every connection.
    cut: Arc<watch::Sender<u32>>,
    steps: Arc<Steps>,
    redis: Redis,
}

/// Where a server is to be stopped.
struct Steps {
    stop: Mutex<Option<Stop>>,
    /// Whether Redis' answers are held back.
    mute: watch::Sender<bool>,
    /// What Redis has sent, by connection.
    heard: Mutex<Vec<Vec<u8>>>,
}

struct Stop {
    /// Of the script.
    digest: String,
    /// How often it is yet to be sent.
    left: u32,
    side: Side,
}

/// On which side of Redis a server is stopped.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    /// Redis does not get the script.
    Before,
    /// Redis runs it, and its answer does not come back.
    Behind,
}

impl Steps {
    /// Looks at what goes to Redis; `unseen` is what was sent before it, as far as a digest may begin there.
    fn note(&self, unseen: &mut Vec<u8>, sent: &[u8], held: &watch::Sender<bool>) {
        let mut stop = self.stop.lock().unwrap();
        let Some(Stop { digest, left, side }) = &mut *stop else { return unseen.clear() };
        unseen.extend_from_slice(sent);
        let mut from = 0;
        while let Some(at) = unseen[from..].windows(digest.len()).position(|window| window == digest.as_bytes()) {
            from += at + digest.len();
            *left = left.saturating_sub(1);
            if *left == 0 {
                match side {
                    Side::Before => held.send_replace(true),
                    Side::Behind => self.mute.send_replace(true),
                };
            }
        }
        unseen.drain(..from.max(unseen.len().saturating_sub(digest.len() - 1)));
    }
}

impl Proxy {
    pub fn start(redis: &Redis) -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-proxy-").tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("proxy.sock")).unwrap();
        let proxy = Proxy {
            directory,
            held: Arc::new(watch::Sender::new(false)),
            cut: Arc::new(watch::Sender::new(0)),
            steps: Arc::new(Steps { stop: Mutex::new(None), mute: watch::Sender::new(false), heard: Mutex::default() }),
            redis: redis.clone(),
        };
        let (held, cut, steps, target) = (proxy.held.clone(), proxy.cut.clone(), proxy.steps.clone(), redis.socket());
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Subscribed before it is connected: a cut while it is being opened cuts it.
                spawn(relay(client, target.clone(), held.clone(), cut.subscribe(), steps.clone()));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        url_of(&self.directory.path().join("proxy.sock"))
    }

    /// From now on nothing reaches Redis; its answers still come back. What is sent meanwhile is kept, even where the
    /// sender closes its connection, as a network may keep packets.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// The same from the moment that this script is sent the next time: it does not reach Redis.
    pub fn hold_at(&self, script: &Script) {
        self.stop(script, 1, Side::Before);
    }

    /// Whether something is held back, or would be.
    pub fn is_holding(&self) -> bool {
        *self.held.borrow()
    }

    /// What was held back goes on to Redis.
    pub fn let_go(&self) {
        *self.steps.stop.lock().unwrap() = None;
        self.held.send_replace(false);
    }

    /// From now on Redis does what it is told, and its answers do not come back.
    pub fn mute(&self) {
        self.steps.mute.send_replace(true);
    }

    /// The server goes no further than to this script, the n-th time from now: Redis runs it, and from then on none of
    /// its answers comes back.
    pub fn stop_at(&self, script: &Script, nth: u32) {
        self.stop(script, nth, Side::Behind);
    }

    fn stop(&self, script: &Script, left: u32, side: Side) {
        let loaded = self.redis.command(&["SCRIPT", "LOAD", &script.source()]);
        let digest = loaded.lines().nth(1).expect("a digest").to_owned();
        *self.steps.stop.lock().unwrap() = Some(Stop { digest, left, side });
    }

    /// Whether that has come to pass.
    pub fn is_stopped(&self) -> bool {
        *self.steps.mute.borrow()
    }

    /// Answers come back again, those that were held back first.
    pub fn go_on(&self) {
        *self.steps.stop.lock().unwrap() = None;
        self.steps.mute.send_replace(false);
    }

    /// What Redis has sent on each connection.
    pub fn heard(&self) -> Vec<Vec<u8>> {
        self.steps.heard.lock().unwrap().clone()
    }

    /// Cuts every connection, on both sides; what is held back is lost.
    pub fn cut(&self) {
        self.cut.send_modify(|count| *count += 1);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime owns it")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn relay(
    client: UnixStream,
    target: PathBuf,
    held: Arc<watch::Sender<bool>>,
    mut cut: watch::Receiver<u32>,
    steps: Arc<Steps>,
) {
    let Ok(server) = UnixStream::connect(target).await else { return };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let there = async {
        let mut buffer = vec![0; 64 * 1024];
        let mut unseen = Vec::new();
        let mut is_held = held.subscribe();
        loop {
            let count = from_client.read(&mut buffer).await.unwrap_or(0);
            if is_held.wait_for(|held| !held).await.is_err() || count == 0 {
                break;
            }
            steps.note(&mut unseen, &buffer[..count], &held);
            // It may be where the server is to be stopped.
            if is_held.wait_for(|held| !held).await.is_err() || to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        let mut mute = steps.mute.subscribe();
        let number = {
            let mut heard = steps.heard.lock().unwrap();
            heard.push(Vec::new());
            heard.len() - 1
        };
        while let Ok(count) = from_server.read(&mut buffer).await {
            // The client may be gone while its packets are still under way.
            if count == 0 || mute.wait_for(|mute| !mute).await.is_err() {
                break;
            }
            steps.heard.lock().unwrap()[number].extend_from_slice(&buffer[..count]);
            let _ = to_client.write_all(&buffer[..count]).await;
        }
    };
    tokio::select! {
        biased;
        _ = cut.changed() => {}
        () = async { tokio::join!(there, back); } => {}
    }
}
