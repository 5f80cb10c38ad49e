//! A TCP relay between a client and a server: cuts, stalls and redirects its connections.

use std::sync::{Arc, Mutex};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A relay on a free TCP port.
pub struct Relay {
    /// Address that clients connect to.
    pub address: String,
    /// Server that new connections are relayed to. None: new connections are closed at once.
    target: Arc<Mutex<Option<String>>>,
    /// Incremented to cut all connections.
    cuts: watch::Sender<u32>,
    /// Incremented to stall all open connections.
    stalls: watch::Sender<u32>,
}

impl Relay {
    /// Starts a relay to the server at this address.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap().to_string(),
            target: Arc::new(Mutex::new(Some(target.to_owned()))),
            cuts: watch::Sender::new(0),
            stalls: watch::Sender::new(0),
        };
        let (target, cuts, stalls) = (relay.target.clone(), relay.cuts.subscribe(), relay.stalls.subscribe());
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut cuts, mut stalls) = (cuts.clone(), stalls.clone());
                // Marked before the target is read: a cut or stall during the connect applies to this connection.
                cuts.mark_unchanged();
                stalls.mark_unchanged();
                let target = target.lock().unwrap().clone();
                if let Some(target) = target {
                    spawn(pass(client, target, cuts, stalls));
                }
            }
        });
        relay
    }

    /// Relays new connections to this server; open connections keep their server.
    pub fn set_target(&self, target: &str) {
        *self.target.lock().unwrap() = Some(target.to_owned());
    }

    /// Closes all connections, and new ones too until [`Relay::set_target`].
    pub fn cut(&self) {
        *self.target.lock().unwrap() = None;
        self.cuts.send_modify(|count| *count += 1);
    }

    /// Stops forwarding on all open connections and keeps them open; new connections work.
    pub fn stall_connections(&self) {
        self.stalls.send_modify(|count| *count += 1);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime owns it")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn pass(mut client: TcpStream, target: String, mut cuts: watch::Receiver<u32>, mut stalls: watch::Receiver<u32>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    tokio::select! {
        biased;
        _ = cuts.changed() => return,
        _ = stalls.changed() => {}
        _ = copy_bidirectional(&mut client, &mut server) => return,
    }
    let _ = cuts.changed().await;
}
