//! Between a client and the servers that it may reach: cuts, silences and redirects its connections.

use std::sync::{Arc, Mutex};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

pub struct Relay {
    /// What clients connect to.
    pub address: String,
    /// None = nobody answers.
    target: Arc<Mutex<Option<String>>>,
    /// Raised to cut every connection.
    cut: watch::Sender<u32>,
    /// Raised to let nothing more through what is open, which stays open.
    silence: watch::Sender<u32>,
}

impl Relay {
    /// Relays to the server at this address.
    pub async fn start(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Relay {
            address: listener.local_addr().unwrap().to_string(),
            target: Arc::new(Mutex::new(Some(target.to_owned()))),
            cut: watch::Sender::new(0),
            silence: watch::Sender::new(0),
        };
        let (target, cut, silence) = (relay.target.clone(), relay.cut.subscribe(), relay.silence.subscribe());
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (mut cut, mut silence) = (cut.clone(), silence.clone());
                // Before the target is read: what is raised while this one is being opened holds for it.
                cut.mark_unchanged();
                silence.mark_unchanged();
                let target = target.lock().unwrap().clone();
                if let Some(target) = target {
                    spawn(pass(client, target, cut, silence));
                }
            }
        });
        relay
    }

    /// New connections go there; those that are open stay.
    pub fn turn_to(&self, target: &str) {
        *self.target.lock().unwrap() = Some(target.to_owned());
    }

    /// Cuts every connection, and takes no new ones until it is turned to a server.
    pub fn cut(&self) {
        *self.target.lock().unwrap() = None;
        self.cut.send_modify(|count| *count += 1);
    }

    /// Nothing more comes through the connections that are open, and they stay open; new ones work.
    pub fn silence(&self) {
        self.silence.send_modify(|count| *count += 1);
    }
}

#[expect(clippy::disallowed_methods, reason = "the test's runtime owns it")]
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn pass(mut client: TcpStream, target: String, mut cut: watch::Receiver<u32>, mut silence: watch::Receiver<u32>) {
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    tokio::select! {
        biased;
        _ = cut.changed() => return,
        _ = silence.changed() => {}
        _ = copy_bidirectional(&mut client, &mut server) => return,
    }
    let _ = cut.changed().await;
}
