//! Between a server and its Redis: holds packets back, lets them go later, cuts connections.

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
};

use super::Redis;

pub struct Proxy {
    directory: TempDir,
    /// Whether what goes to Redis is held back.
    held: Arc<watch::Sender<bool>>,
    /// Raised to cut every connection.
    cut: Arc<watch::Sender<u32>>,
}

impl Proxy {
    pub fn start(redis: &Redis) -> Self {
        let directory = tempfile::Builder::new().prefix("sessiond-proxy-").tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("proxy.sock")).unwrap();
        let proxy =
            Proxy { directory, held: Arc::new(watch::Sender::new(false)), cut: Arc::new(watch::Sender::new(0)) };
        let (held, cut, target) = (proxy.held.clone(), proxy.cut.clone(), redis.socket());
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                spawn(relay(client, target.clone(), held.subscribe(), cut.subscribe()));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.directory.path().join("proxy.sock").display())
    }

    /// From now on nothing reaches Redis; its answers still come back. What is sent meanwhile is kept, even where the
    /// sender closes its connection, as a network may keep packets.
    pub fn hold(&self) {
        self.held.send_replace(true);
    }

    /// What was held back goes on to Redis.
    pub fn let_go(&self) {
        self.held.send_replace(false);
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

async fn relay(client: UnixStream, target: PathBuf, held: watch::Receiver<bool>, mut cut: watch::Receiver<u32>) {
    let Ok(server) = UnixStream::connect(target).await else { return };
    cut.mark_unchanged();
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let mut held = held;
    let there = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let count = from_client.read(&mut buffer).await.unwrap_or(0);
            if held.wait_for(|held| !held).await.is_err() || count == 0 {
                break;
            }
            if to_server.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
        let _ = to_server.shutdown().await;
    };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count) = from_server.read(&mut buffer).await {
            // The client may be gone while its packets are still under way.
            if count == 0 {
                break;
            }
            let _ = to_client.write_all(&buffer[..count]).await;
        }
    };
    tokio::select! {
        _ = cut.changed() => {}
        () = async { tokio::join!(there, back); } => {}
    }
}
