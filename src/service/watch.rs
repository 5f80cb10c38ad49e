//! Watch: checks what the caller may watch, and opens the subscription.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use futures_util::stream::AbortHandle;
use tokio::sync::Semaphore;

use super::*;
use crate::{
    auth::{LastingRight, Requester},
    store::Found,
    watch::{
        ClientStream, CloseReason, Filter, IdsLifetime, InitialState, Kind, Lifetime, LiveReader, NotRegistered,
        ResumeToken, Scope, Subscription, SubscriptionOptions, TokenLifetime,
    },
};

/// Maximum time of the read that presents the token when a watch opens.
const PRESENT_TIMEOUT: Duration = Duration::from_secs(2);

/// Sessions that a watch covers.
pub enum WatchKeys {
    /// All sessions of the namespace.
    WholeNamespace,
    /// The sessions with these ids.
    Ids(HashSet<SessionId>),
    /// The sessions of the subject with this name.
    Subject(String),
    /// The session of this token.
    Token(PresentedToken),
}

/// Request of Watch.
pub struct Watch {
    /// Namespace of the watched sessions.
    pub namespace: Authorized<Namespace>,
    /// Sessions that the watch covers.
    pub keys: WatchKeys,
    /// Labels that a session must have, all of them, before or after the change.
    pub labels: BTreeMap<String, String>,
    /// Kinds of events that the watch delivers. None: all.
    pub kinds: Option<HashSet<Kind>>,
    /// Position after which the watch starts. None: the current end of the log.
    pub resume: Option<ResumeToken>,
    /// Whether the watch starts with a snapshot.
    pub state: InitialState,
    /// Maximum time between two responses.
    pub bookmark_interval: Duration,
}

/// HTTP/2 stream that delivers a watch.
pub struct WatchStream {
    /// Resets the stream. The registry aborts it if the client does not read the final response.
    pub reset: AbortHandle,
    /// Caller of the watch.
    pub requester: Requester,
    /// Number of bytes that responses of the connection may still hold.
    pub budget: Arc<Semaphore>,
}

impl Service {
    /// Opens a watch. It delivers every matching change after the resume token, or after the current end of the log.
    pub async fn watch(&self, call: Watch, stream: WatchStream) -> Result<Subscription, Error> {
        let policy = self.policy(&call.namespace)?;
        let mut presented = None;
        let (scope, mut lifetime) = match call.keys {
            WatchKeys::WholeNamespace => (Scope::Namespace, Lifetime::Unlimited),
            WatchKeys::Ids(ids) => {
                let ids = Arc::new(ids);
                (Scope::Ids(ids.clone()), Lifetime::Ids(IdsLifetime::new(ids)))
            }
            WatchKeys::Token(token) => {
                let (id, credential) = token.credential()?;
                presented = Some((id, credential));
                (Scope::Ids(Arc::new(HashSet::from([id]))), Lifetime::Token(TokenLifetime::new(id, credential)))
            }
            WatchKeys::Subject(subject) => (Scope::Subject(subject), Lifetime::Unlimited),
        };
        if self.hub.is_draining() {
            return Err(Error::Draining);
        }
        if let Some((id, credential)) = presented {
            let name = call.namespace.session(id);
            let get = store::Get { credential, view: View::Basic, touch: Touch::No };
            if let Found::Rotated = self.store.get(&name, get, policy, Instant::now() + PRESENT_TIMEOUT).await? {
                return Err(Error::Rotated);
            }
        }
        // The ring of this server may be behind the server that issued the resume token: read the tails from the primary.
        let read = self.watch_source.pass_barrier().await?;
        // One caller gets at most half of the watches, so that the others can open theirs.
        let load = stream.requester.caller.load.clone();
        let limit = if stream.requester.credential.is_some() { self.hub.max_watches() / 2 } else { usize::MAX };
        let in_use = load.open_watch(limit.max(1)).ok_or(Error::CallerWatchLimit)?;
        let right = LastingRight::new(self.authenticator.clone(), stream.requester, call.namespace.clone(), in_use);
        let client = ClientStream { reset: stream.reset, right: right.map(Box::new) };
        let filter = Filter { namespace: (*call.namespace).clone(), scope, labels: call.labels, kinds: call.kinds };
        let filter = Arc::new(filter);
        let registered = LiveReader::register(self.hub.clone(), filter.clone(), call.bookmark_interval, client);
        let registered = registered.map_err(|reason| match reason {
            NotRegistered::LimitReached => Error::WatchLimit,
            NotRegistered::Draining => Error::Draining,
        })?;
        // The read follows the registration, so an end is either in its result or in the stream.
        lifetime.refresh(&self.store, &call.namespace).await?;
        match lifetime.token_close_reason() {
            // The stream delivers what ended since the resume token, and reads the lifetime again at that position.
            None | Some(CloseReason::TokenEnded(_)) if call.resume.is_some() => lifetime.invalidate(),
            Some(CloseReason::TokenEnded(cause)) => return Err(Error::Ended(*cause)),
            Some(CloseReason::TokenRotated) => return Err(Error::Rotated),
            Some(_) => return Err(Error::NotFound),
            None => match lifetime.ended_ids() {
                ended if ended.is_empty() => {}
                ids => return Err(Error::IdsNotFound(ids)),
            },
        }
        let start = SubscriptionOptions {
            filter,
            lifetime,
            bookmark_interval: call.bookmark_interval,
            resume: call.resume,
            initial_state: call.state,
            as_of: read.as_of,
        };
        Ok(Subscription::new(self.watch_source.clone(), registered, start, stream.budget))
    }
}
