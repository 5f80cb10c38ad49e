//! Watchers of every kind, which go on elsewhere whenever their watch breaks off.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use sessiond_client::v1::{EventType, ResyncReason, SessionView, WatchRequest, WatchResponse};
use tokio::{
    sync::watch,
    time::{Instant, timeout},
};
use tonic::{Code, Status, Streaming};

use crate::{
    chance::Chance,
    harness::{Client, client::*},
    history::{CLOSED_FOR_GOOD, Control, Filter, Scope},
    made::everything,
    recorder::{Recorder, name_of},
    workload::{COLOURS, SUBJECTS},
};

/// No response for so long: the watch is given up, and opened elsewhere.
const SILENCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(50);

/// How a watcher reads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Manner {
    /// As fast as it can.
    Steady,
    /// It breaks off again and again, and goes on elsewhere.
    Restless,
    /// The same, and it has forgotten where it was.
    Forgetful,
    /// It is not there while readers are told to stop, and goes on after that.
    Away,
    /// It takes its time for every response.
    Slow,
    /// It reads nothing while readers are told to stop.
    Stopping,
}

pub struct Watcher {
    pub filter: Filter,
    pub manner: Manner,
    pub initial_state: bool,
    /// Addresses of the instances.
    pub addresses: Vec<String>,
    pub recorder: Arc<Recorder>,
    pub chance: Chance,
    /// Whether stopping readers are to stop.
    pub stopped: watch::Receiver<bool>,
}

/// What is watched, how, and whether the state comes first.
pub fn kinds(ids: BTreeSet<String>, chance: &mut Chance) -> Vec<(Filter, Manner, bool)> {
    let of_subject = Filter { scope: Scope::Subject(SUBJECTS[0].to_owned()), ..everything() };
    let of_colour = Filter { labels: labels(&[("colour", COLOURS[0])]), ..everything() };
    let endings = Filter { kinds: vec![EventType::Created, EventType::Ended, EventType::Left], ..of_colour.clone() };
    let of_ids = Filter { scope: Scope::Ids(ids), ..everything() };
    let mut state = || chance.once_in(2);
    vec![
        (everything(), Manner::Steady, false),
        (everything(), Manner::Steady, true),
        (everything(), Manner::Restless, state()),
        (everything(), Manner::Stopping, state()),
        (everything(), Manner::Away, state()),
        (everything(), Manner::Slow, state()),
        (of_subject.clone(), Manner::Restless, state()),
        (of_subject, Manner::Forgetful, true),
        (of_colour.clone(), Manner::Forgetful, true),
        (of_colour, Manner::Restless, state()),
        (endings, Manner::Steady, false),
        (of_ids, Manner::Restless, state()),
    ]
}

fn request(filter: &Filter, initial_state: bool, resume_token: Vec<u8>) -> WatchRequest {
    let (ids, subject) = match &filter.scope {
        Scope::Namespace => (BTreeSet::new(), None),
        Scope::Ids(ids) => (ids.clone(), None),
        Scope::Subject(subject) => (BTreeSet::new(), Some(subject.clone())),
    };
    WatchRequest {
        namespace: NAMESPACE.to_owned(),
        whole_namespace: filter.scope == Scope::Namespace,
        keys: ids.iter().filter_map(|id| by_id(id)).collect(),
        subject,
        labels: filter.labels.clone(),
        types: filter.kinds.iter().map(|kind| i32::from(*kind)).collect(),
        view: SessionView::Full.into(),
        resume_token,
        initial_state,
        bookmark_interval: millis(200),
    }
}

/// Where a watcher is to go on.
#[derive(Default)]
struct Place {
    /// The last watch that told something.
    watch: Option<usize>,
    token: Vec<u8>,
    /// A state begun is of no use before it is complete.
    is_complete: bool,
}

impl Watcher {
    /// Watches until it is dropped, or nothing more is to come.
    pub async fn run(mut self, number: usize) {
        let mut place = Place::default();
        let mut instance = self.chance.below(self.addresses.len());
        loop {
            if self.manner == Manner::Away {
                let _ = self.stopped.wait_for(|stopped| !stopped).await;
            }
            let begins_anew = self.manner == Manner::Forgetful || !place.is_complete;
            if self.initial_state && begins_anew {
                place = Place::default();
            }
            let opened = self.open(instance, &place).await;
            if matches!(&opened, Err(Some(status)) if status.code() == Code::NotFound) {
                // All that it was to watch had ended before.
                return self.recorder.is_over(number);
            }
            if let Ok(stream) = opened {
                let watch = self.recorder.opened(instance, self.filter.clone(), self.initial_state, place.watch);
                let how = self.read(stream, number, watch, &mut place).await;
                let is_over = how == CLOSED_FOR_GOOD;
                self.recorder.closed(watch, how);
                if is_over {
                    return self.recorder.is_over(number);
                }
            }
            tokio::time::sleep(PAUSE).await;
            instance = self.chance.below(self.addresses.len());
        }
    }

    /// Err(None) = no answer.
    async fn open(&self, instance: usize, place: &Place) -> Result<Streaming<WatchResponse>, Option<Status>> {
        let client = timeout(SILENCE, Client::try_connect(&self.addresses[instance])).await;
        let mut client = client.ok().and_then(Result::ok).ok_or(None)?;
        let request = request(&self.filter, self.initial_state, place.token.clone());
        let opened = timeout(SILENCE, client.grpc.watch(request)).await.map_err(|_| None)?;
        opened.map(tonic::Response::into_inner).map_err(|status| {
            self.recorder.refused(&status);
            Some(status)
        })
    }

    /// Reads until the watch ends, or it has enough of it; how that was.
    async fn read(
        &mut self,
        mut stream: Streaming<WatchResponse>,
        number: usize,
        watch: usize,
        place: &mut Place,
    ) -> String {
        let patience = Duration::from_millis(200 + self.chance.below(800) as u64);
        let leaves_at = Instant::now() + patience;
        let mut is_slow = false;
        loop {
            match self.manner {
                Manner::Slow => tokio::time::sleep(Duration::from_millis(20)).await,
                Manner::Stopping => {
                    let _ = self.stopped.wait_for(|stopped| !stopped).await;
                }
                Manner::Restless | Manner::Forgetful if Instant::now() > leaves_at => return "left".to_owned(),
                Manner::Away if *self.stopped.borrow() => return "left".to_owned(),
                Manner::Restless | Manner::Forgetful | Manner::Away | Manner::Steady => {}
            }
            let response = match timeout(SILENCE, stream.message()).await {
                Err(_) => return "silent".to_owned(),
                Ok(Ok(Some(response))) => response,
                Ok(Ok(None)) if is_slow => return "closed: too slow".to_owned(),
                Ok(Ok(None)) => return CLOSED_FOR_GOOD.to_owned(),
                Ok(Err(status)) => return format!("closed: {}", name_of(&status)),
            };
            place.token.clone_from(&response.resume_token);
            place.watch = Some(watch);
            let response = self.recorder.told(number, watch, response);
            match response.control {
                Some(Control::Synced) => place.is_complete = true,
                // A last word.
                Some(Control::Resync(ResyncReason::SlowConsumer, _)) => is_slow = true,
                Some(Control::Bookmark(_)) | None => {}
                Some(Control::Resync(..)) => place.is_complete = false,
            }
        }
    }
}
