//! Follows the logs into the hub: by the channels where they prove to be complete, by reading the log otherwise.
//!
//! Every server has a follower of its own, so that one that hangs holds up no other. An entry is taken if and only if the
//! one before it is the last one taken. Anything else, every new connection, lost messages, and once a second anyway, the
//! tails of the server's partitions are read, and what is missing from the logs. Subscribe first, then read the tails:
//! nothing falls between.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    time::{Instant, MissedTickBehavior, sleep},
};

use crate::store::{Channels, Error, Heard, Message, Page, Partition, Position, Server, Store, Tails};

use super::{
    hub::{Hub, LOOK_EVERY, Pushed, Verified},
    rewind::fork,
    ring::{Lost, Resync},
};

const TAIL_EVERY: Duration = Duration::from_secs(1);
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks for the tails to be read.
type Request = oneshot::Sender<Verified>;

/// Runs for ever.
pub async fn feed(store: Arc<Store>, hub: Arc<Hub>) {
    let (mut requests, mut waiting) = (hub.take_requests(), Vec::new());
    loop {
        // Asked first: what moves from now on is told.
        let moved = store.moved();
        let followers: Vec<Follower> =
            store.servers().into_iter().map(|server| Follower::new(&store, &hub, server)).collect();
        let following = join_all(followers.iter().map(Follower::follow));
        tokio::select! {
            // First: a server that has nothing any more is not listened to.
            biased;
            () = moved => hub.note_rewind(),
            _ = following => {}
            () = answer(&followers, &mut requests, &mut waiting) => {}
            () = tidy(&hub) => {}
        }
    }
}

/// Has every server's tails read for whoever asks, and for those who wait already; for ever. Where one cannot be read
/// nobody is answered.
async fn answer(followers: &[Follower], requests: &mut mpsc::UnboundedReceiver<Request>, waiting: &mut Vec<Request>) {
    while !waiting.is_empty() || requests.recv_many(waiting, usize::MAX).await > 0 {
        let verified = join_all(followers.iter().map(Follower::verify)).await;
        if let Some(verified) = verified.into_iter().collect::<Option<Vec<_>>>() {
            let as_of = verified.iter().map(|verified| verified.as_of).min().unwrap_or(0);
            for waiting in waiting.drain(..) {
                let _ = waiting.send(Verified { as_of });
            }
        }
        waiting.clear();
    }
    std::future::pending().await
}

/// Takes leave of watchers that read nothing, and forgets old endings; for ever.
async fn tidy(hub: &Hub) {
    loop {
        sleep(LOOK_EVERY).await;
        hub.leave_slow();
        hub.vanished.turn();
    }
}

/// Follows the logs of one server.
struct Follower {
    store: Arc<Store>,
    hub: Arc<Hub>,
    server: Server,
    sender: mpsc::UnboundedSender<Request>,
    requests: Mutex<mpsc::UnboundedReceiver<Request>>,
}

impl Follower {
    fn new(store: &Arc<Store>, hub: &Arc<Hub>, server: Server) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        Follower { store: store.clone(), hub: hub.clone(), server, sender, requests: Mutex::new(requests) }
    }

    async fn verify(&self) -> Option<Verified> {
        let (answer, verified) = oneshot::channel();
        self.sender.send(answer).ok()?;
        verified.await.ok()
    }

    /// For ever.
    async fn follow(&self) {
        let mut channels = self.store.listen(&self.server);
        let mut requests = self.requests.lock().await;
        let (mut subscribed, mut is_new, mut run) = (false, true, None::<String>);
        let mut tick = tokio::time::interval(TAIL_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let mut waiting: Vec<Request> = Vec::new();
            let mut is_tick = false;
            tokio::select! {
                heard = self.hear(&mut channels) => match heard {
                    Sign::Nothing => continue,
                    Sign::Gap => {}
                    Sign::Connected => (subscribed, is_new) = (false, true),
                },
                request = requests.recv() => waiting.extend(request),
                _ = tick.tick() => is_tick = true,
            }
            while let Ok(request) = requests.try_recv() {
                waiting.push(request);
            }
            if !subscribed {
                subscribed = self.store.subscribe(&self.server).await.is_ok();
            }
            let before = run.clone();
            match self.catch_up(&mut run).await {
                Ok((verified, was_behind)) => {
                    if subscribed && std::mem::take(&mut is_new) && before.is_some() && before == run {
                        // While there was no connection. Before we came, and in another run, the next audit finds it.
                        self.hub.vanished.note_missed();
                    }
                    for waiting in waiting {
                        let _ = waiting.send(verified);
                    }
                    // What the channels should have brought: the server may have dropped the subscription to a slot that
                    // was away for a while.
                    subscribed = subscribed && !(is_tick && was_behind);
                }
                Err(error) => tracing::debug!(%error, "tails could not be read"),
            }
            if is_tick {
                // However long that took: what is heard has its turn.
                tick.reset();
            }
        }
    }

    /// Takes in what comes next.
    async fn hear(&self, channels: &mut Channels) -> Sign {
        match channels.next(&self.store).await {
            Heard::Message(Message::Entry(entry)) => {
                if let Some(now) = self.store.now_at(entry.partition) {
                    let lag = now.saturating_sub(entry.position.revision.0);
                    self.hub.metrics.feed_lag_seconds.observe(lag as f64 / 1e6);
                }
                match self.hub.push(*entry) {
                    Pushed::Taken | Pushed::Stale => return Sign::Nothing,
                    Pushed::Gap => {}
                }
            }
            Heard::Message(Message::InLog(partition, Some(position))) => {
                match self.read_log(partition, position).await {
                    Ok(None) => return Sign::Nothing,
                    Ok(Some(_)) => {}
                    Err(error) => tracing::debug!(%error, "log could not be read"),
                }
            }
            Heard::Vanished(partition, name) => {
                self.hub.vanished.note(partition, name);
                return Sign::Nothing;
            }
            Heard::MissedVanishings => {
                self.hub.vanished.note_missed();
                return Sign::Nothing;
            }
            Heard::Message(Message::InLog(_, None)) | Heard::Missed => {}
            Heard::Connected => return Sign::Connected,
        }
        Sign::Gap
    }

    /// Reads all tails, and from the logs what the hub lacks. Where a log does not lead there everybody is told. What
    /// another run of Redis has lost may show in no log; which run it is is noted. Also whether the hub lacked something.
    async fn catch_up(&self, run: &mut Option<String>) -> Result<(Verified, bool), Error> {
        let tails = self.tails().await?;
        // Afterwards: they are of this run, or of one before it.
        let found = self.store.run_of(&self.server, Instant::now() + READ_TIMEOUT).await?;
        if run.replace(found.clone()).is_some_and(|before| before != found) {
            self.hub.note_rewind();
        }
        let mut broken: HashMap<Resync, Vec<(Partition, Position)>> = HashMap::new();
        let was_behind = tails.tails.iter().any(|(partition, tail)| self.hub.position(*partition) != tail.position);
        let mut outcome = tails.unread.map_or(Ok((Verified { as_of: tails.as_of }, was_behind)), Err);
        for (partition, tail) in tails.tails {
            match self.read_log(partition, tail.position).await {
                Ok(None) => {}
                Ok(Some(why)) => broken.entry(why).or_default().push((partition, tail.position)),
                // The others are read all the same.
                Err(error) => outcome = Err(error),
            }
        }
        if broken.is_empty() {
            return outcome;
        }
        for (why, partitions) in broken {
            self.announce(why, partitions).await?;
        }
        // On from where history forked.
        let tails = self.tails().await?;
        outcome = tails.unread.map_or(outcome, Err);
        for (partition, tail) in tails.tails {
            if self.read_log(partition, tail.position).await?.is_some() {
                outcome = Err(Error::Unavailable("history was rewound again".into()));
            }
        }
        outcome
    }

    /// Tells everybody what was missed, and goes on where that is known, else at the tails.
    async fn announce(&self, why: Resync, tails: Vec<(Partition, Position)>) -> Result<(), Error> {
        if why == Resync::RolledBack {
            let mut lost = Lost { links: Vec::new(), from: Vec::new() };
            for (partition, _) in &tails {
                if let Some((from, links)) = fork(&self.store, *partition, &self.hub.history(*partition)).await? {
                    lost.from.push((*partition, from));
                    lost.links.extend(links);
                }
            }
            if lost.from.len() == tails.len() {
                tracing::warn!(changes = lost.links.len(), "history was rewound; watchers are told what was lost");
                self.hub.rewind(lost);
                return Ok(());
            }
        }
        tracing::warn!(?why, "history cannot be followed; watchers are told to resync");
        self.hub.restart(why, self.store.id(), tails);
        Ok(())
    }

    /// Where the logs end. One that was emptied or exchanged is taken as it is now, or made anew.
    async fn tails(&self) -> Result<Tails, Error> {
        match self.store.tails(&self.server, Instant::now() + READ_TIMEOUT).await {
            Err(Error::StoreChanged) => {
                // A primary of old that comes back empty is not the store.
                self.store.confirm(&self.server).await?;
                let made = self.store.initialise(&self.server.partitions).await;
                made.map_err(|error| Error::Unavailable(error.to_string()))?;
                self.store.tails(&self.server, Instant::now() + READ_TIMEOUT).await
            }
            tails => tails,
        }
    }

    /// Takes from the log what the hub lacks up to this position; why that cannot be.
    async fn read_log(&self, partition: Partition, until: Position) -> Result<Option<Resync>, Error> {
        if self.hub.position(partition) != until {
            self.hub.metrics.feed_gaps.inc();
        }
        loop {
            let at = self.hub.position(partition);
            if at == until {
                return Ok(None);
            }
            match self.store.read_after(partition, at, Instant::now() + READ_TIMEOUT).await? {
                Page::Tail => return Ok(None),
                Page::Entries(entries) => {
                    for entry in entries {
                        self.hub.push_from_log(entry);
                    }
                    let reached = self.hub.position(partition);
                    if reached == at {
                        return Err(Error::Unavailable("the log leads nowhere".into()));
                    }
                    // What came later than that is for the channel, or the next reading.
                    if reached.revision >= until.revision {
                        return Ok(None);
                    }
                }
                Page::Compacted => return Ok(Some(Resync::Compacted)),
                Page::Flushed => return Ok(Some(Resync::Flushed)),
                Page::RolledBack => return Ok(Some(Resync::RolledBack)),
            }
        }
    }
}

/// What came of something heard.
enum Sign {
    Nothing,
    /// The tails are to be read.
    Gap,
    /// The same, once the channels are subscribed to anew.
    Connected,
}
