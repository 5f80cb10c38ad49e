//! Presenting a token in every call that takes one, and the clock that its time runs by.

use sessiond_client::v1::{
    Authentication, GetSessionRequest, RotateSessionRequest, TouchSessionRequest, UpdateSessionRequest, WatchRequest,
};

use super::{Redis, Status, client::*, eventually};

/// A call that takes a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    Get,
    GetAndTouch,
    Touch,
    Update,
    Rotate,
    Watch,
    Delete,
}

pub const EVERY_CALL: [Call; 7] =
    [Call::Get, Call::GetAndTouch, Call::Touch, Call::Update, Call::Rotate, Call::Watch, Call::Delete];

pub const ACCEPTED: &str = "accepted";

impl Call {
    /// How it turns a token away that is superseded, and whose time is over.
    pub fn rotated(self) -> &'static str {
        self.turned_away("TOKEN_ROTATED")
    }

    /// How it turns a token away for this reason.
    pub fn turned_away(self, reason: &'static str) -> &'static str {
        if self == Call::Delete { "nothing deleted" } else { reason }
    }
}

impl Client {
    /// What presenting the token in this call comes to: `accepted`, or the reason why not.
    pub async fn present(&self, call: Call, token: &str) -> String {
        let (mut grpc, namespace, key) = (self.grpc.clone(), self.namespace.clone(), by_token(token));
        let get =
            |touch| GetSessionRequest { namespace: namespace.clone(), key: key.clone(), touch, ..Default::default() };
        let answer = match call {
            Call::Get => grpc.get_session(get(false)).await.map(drop),
            Call::GetAndTouch => grpc.get_session(get(true)).await.map(drop),
            Call::Touch => grpc.touch_session(TouchSessionRequest { namespace, key }).await.map(drop),
            Call::Update => self.set(key, &[("presented", text(&new_token()))]).await.map(drop),
            Call::Rotate => self.rotate(token).await.map(drop),
            Call::Watch => self.watch(by_token_request(token)).await.map(drop),
            Call::Delete => match self.delete(key).await {
                Ok(false) => return "nothing deleted".into(),
                answer => answer.map(drop),
            },
        };
        answer.map_or_else(|status| status.reason(), |()| ACCEPTED.into())
    }

    /// Rotates the token and presents its successor.
    pub async fn rotate_and_use(&self, token: &str) -> String {
        let successor = self.rotate(token).await.unwrap();
        self.get(by_token(&successor)).await.unwrap();
        successor
    }
}

/// A watch by this token.
pub fn by_token_request(token: &str) -> WatchRequest {
    WatchRequest { keys: by_token(token).into_iter().collect(), bookmark_interval: millis(100), ..Default::default() }
}

/// The rotation of this token, with nothing besides.
pub fn rotation_of(token: &str) -> RotateSessionRequest {
    RotateSessionRequest { token: token.into(), ..Default::default() }
}

/// The rotation of this token after which it is good for nothing.
pub fn graceless(token: &str) -> RotateSessionRequest {
    RotateSessionRequest { grace_period: millis(0), ..rotation_of(token) }
}

/// An update that makes the session this subject's.
pub fn login(token: &str, subject: &str) -> UpdateSessionRequest {
    UpdateSessionRequest { key: by_token(token), subject: Some(subject.into()), ..Default::default() }
}

pub fn by_password() -> Option<Authentication> {
    Some(Authentication { level: 1, methods: vec!["pwd".into()], ..Default::default() })
}

/// In ms since 1970.
pub fn in_ms(at: Option<prost_types::Timestamp>) -> i64 {
    let at = at.expect("a time is told");
    at.seconds * 1000 + i64::from(at.nanos) / 1_000_000
}

impl Redis {
    /// Its clock, in ms.
    pub fn now(&self) -> i64 {
        let time = self.list(&["TIME"]);
        time[0].parse::<i64>().unwrap() * 1000 + time[1].parse::<i64>().unwrap() / 1000
    }

    /// Returns once its clock shows this, in ms.
    pub async fn reaches(&self, at: i64) {
        eventually("that time comes", async || (self.now() >= at).then_some(())).await;
    }
}
