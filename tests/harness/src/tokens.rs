//! Presents a token in every call that accepts one, and reads Redis' clock, which decides about grace periods.

use sessiond_client::v1::{
    Authentication, GetSessionRequest, RotateSessionRequest, TouchSessionRequest, UpdateSessionRequest, WatchRequest,
};

use super::{Redis, Status, client::*, eventually};

/// A call that accepts a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// GetSession without a touch.
    Get,
    /// GetSession with `touch`.
    GetAndTouch,
    /// TouchSession.
    Touch,
    /// UpdateSession that sets an attribute to a new value.
    Update,
    /// RotateSession; the server generates the successor.
    Rotate,
    /// Watch of the session by its token.
    Watch,
    /// DeleteSession. Every token that the session stores ends it; with any other token it succeeds and deletes nothing.
    Delete,
}

/// All calls that accept a token.
pub const EVERY_CALL: [Call; 7] =
    [Call::Get, Call::GetAndTouch, Call::Touch, Call::Update, Call::Rotate, Call::Watch, Call::Delete];

/// All calls that reject a superseded token after its grace period.
pub const REJECTING_CALLS: [Call; 6] =
    [Call::Get, Call::GetAndTouch, Call::Touch, Call::Update, Call::Rotate, Call::Watch];

/// Result of [`Client::present`] for an accepted token.
pub const ACCEPTED: &str = "accepted";

impl Call {
    /// Returns the result of this call for a token of an ended session, or one that the session does not store, which other
    /// calls reject with this reason.
    pub fn rejection(self, reason: &'static str) -> &'static str {
        if self == Call::Delete { "nothing deleted" } else { reason }
    }
}

impl Client {
    /// Presents the token in this call; returns [`ACCEPTED`] or the reason of the rejection.
    pub async fn present(&self, call: Call, token: &str) -> String {
        let (mut grpc, namespace, key) = (self.grpc.clone(), self.namespace.clone(), by_token(token));
        let get =
            |touch| GetSessionRequest { namespace: namespace.clone(), key: key.clone(), touch, ..Default::default() };
        let result = match call {
            Call::Get => grpc.get_session(get(false)).await.map(drop),
            Call::GetAndTouch => grpc.get_session(get(true)).await.map(drop),
            Call::Touch => grpc.touch_session(TouchSessionRequest { namespace, key }).await.map(drop),
            Call::Update => self.set(key, &[("presented", text(&new_token()))]).await.map(drop),
            Call::Rotate => self.rotate(token).await.map(drop),
            Call::Watch => self.watch(token_watch_request(token)).await.map(drop),
            Call::Delete => match self.delete(key).await {
                Ok(false) => return "nothing deleted".into(),
                result => result.map(drop),
            },
        };
        result.map_or_else(|status| status.reason(), |()| ACCEPTED.into())
    }

    /// Rotates the token and presents its successor once; returns the successor.
    pub async fn rotate_and_use(&self, token: &str) -> String {
        let successor = self.rotate(token).await.unwrap();
        self.get(by_token(&successor)).await.unwrap();
        successor
    }
}

/// Request for a watch by this token, with a bookmark every 100 ms.
pub fn token_watch_request(token: &str) -> WatchRequest {
    WatchRequest { keys: by_token(token).into_iter().collect(), bookmark_interval: millis(100), ..Default::default() }
}

/// Request that rotates this token and changes nothing else.
pub fn rotation_of(token: &str) -> RotateSessionRequest {
    RotateSessionRequest { token: token.into(), ..Default::default() }
}

/// Request that rotates this token with a grace period of 0.
pub fn rotation_without_grace(token: &str) -> RotateSessionRequest {
    RotateSessionRequest { grace_period: millis(0), ..rotation_of(token) }
}

/// Request that sets the subject of an anonymous session.
pub fn login(token: &str, subject: &str) -> UpdateSessionRequest {
    UpdateSessionRequest { key: by_token(token), subject: Some(subject.into()), ..Default::default() }
}

/// Authentication field of a password login.
pub fn by_password() -> Option<Authentication> {
    Some(Authentication { level: 1, methods: vec!["pwd".into()], ..Default::default() })
}

/// Returns a timestamp field in ms since the epoch. Panics if the field is absent.
pub fn unix_ms(at: Option<prost_types::Timestamp>) -> i64 {
    let at = at.expect("a timestamp");
    at.seconds * 1000 + i64::from(at.nanos) / 1_000_000
}

impl Redis {
    /// Returns the time in ms since the epoch, Redis clock.
    pub fn now(&self) -> i64 {
        let time = self.list(&["TIME"]);
        time[0].parse::<i64>().unwrap() * 1000 + time[1].parse::<i64>().unwrap() / 1000
    }

    /// Waits until the Redis clock reaches this time, in ms since the epoch.
    pub async fn wait_for_time(&self, at: i64) {
        eventually("the Redis clock reaches the time", async || (self.now() >= at).then_some(())).await;
    }
}
