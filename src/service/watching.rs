//! Opening a watch.

use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

use super::*;
use crate::{
    store::Found,
    watch::{
        Filter, Finish, IdsLifetime, Kind, Lifetime, ResumeToken, Scope, Start, State, Subscription, TokenLifetime,
    },
};

const PRESENT_TIMEOUT: Duration = Duration::from_secs(2);

pub enum WatchKeys {
    WholeNamespace,
    Ids(HashSet<SessionId>),
    Subject(String),
    Token(Token),
    MalformedToken,
}

pub struct Watch {
    pub namespace: Namespace,
    pub keys: WatchKeys,
    pub labels: BTreeMap<String, String>,
    /// None = all.
    pub kinds: Option<HashSet<Kind>>,
    pub resume: Option<ResumeToken>,
    pub state: State,
    pub bookmark_interval: Duration,
}

impl Service {
    /// Opens a watch that tells every matching change after the log's end as of now, or after the resume token.
    pub async fn watch(&self, call: Watch) -> Result<Subscription, Error> {
        let policy = self.policy(&call.namespace)?;
        let mut presented = None;
        let (scope, mut lifetime) = match call.keys {
            WatchKeys::WholeNamespace => (Scope::Namespace, Lifetime::Unlimited),
            WatchKeys::Ids(ids) => (Scope::Ids(ids.clone()), Lifetime::Ids(IdsLifetime::new(ids))),
            WatchKeys::Token(token) => {
                let (id, proof) = (token.id(), Proof::Secret(token.verifier()));
                presented = Some((id, proof));
                (Scope::Ids(HashSet::from([id])), Lifetime::Token(TokenLifetime::new(id, proof)))
            }
            WatchKeys::Subject(subject) => (Scope::Subject(subject), Lifetime::Unlimited),
            WatchKeys::MalformedToken => return Err(Error::NotFound),
        };
        if self.draining.is_cancelled() {
            return Err(Error::Draining);
        }
        if let Some((id, proof)) = presented {
            let name = SessionName { namespace: call.namespace.clone(), id };
            let get = store::Get { proof, view: View::Basic, use_: Use::DoesNotCount };
            if let Found::Rotated = self.store.get(&name, get, policy, Instant::now() + PRESENT_TIMEOUT).await? {
                return Err(Error::Rotated);
            }
        }
        // Ask the primary: this server's ring may lag behind the one that gave the token.
        let verified = self.hub.refresh().await;
        let verified = verified.ok_or_else(|| store::Error::Unavailable("the log's end cannot be read".into()))?;
        let filter = Filter { namespace: call.namespace.clone(), scope, labels: call.labels, kinds: call.kinds };
        let registered = self.hub.register(&filter, call.bookmark_interval).map_err(|_| Error::WatchLimit)?;
        // Looked at after the registration: an ending comes by the look or by the stream.
        lifetime.look(&self.store, &call.namespace).await?;
        match lifetime.ended() {
            // What ended since the resume token is told by the stream: it is looked at again where that has got to.
            None | Some(Finish::TokenEnded(_)) if call.resume.is_some() => lifetime.forget(),
            Some(Finish::TokenEnded(cause)) => return Err(Error::Ended(*cause)),
            Some(Finish::TokenRotated) => return Err(Error::Rotated),
            Some(_) => return Err(Error::NotFound),
            None if !lifetime.is_whole() => return Err(Error::NotFound),
            None => {}
        }
        let start = Start {
            filter,
            lifetime,
            bookmark_interval: call.bookmark_interval,
            resume: call.resume,
            state: call.state,
            as_of: verified.as_of,
        };
        Ok(Subscription::new(self.store.clone(), registered, start, self.draining.clone()))
    }
}
