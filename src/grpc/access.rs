//! Which grant each call needs. It is decided by the request alone, before any other field of it is checked.

use crate::{
    auth::{Authorized, Caller, Grant, GrantMissing},
    pb::{self, SessionView, session_key},
    session::{Malformed, Namespace},
};

/// Request of a call in a namespace.
pub(super) trait Access {
    /// Namespace of the request, unchecked.
    fn namespace(&self) -> &str;

    /// Grant that the call needs; the grant `full` allows it as well.
    fn needed(&self) -> Grant;
}

/// Why a caller was not authorized.
pub(super) enum NotAuthorized {
    /// The request names no namespace.
    Malformed(Malformed),
    /// The caller has no grant for the call.
    GrantMissing(GrantMissing),
}

/// Checks that the caller may make this call in its namespace.
pub(super) fn authorize(caller: &Caller, request: &impl Access) -> Result<Authorized<Namespace>, NotAuthorized> {
    let namespace = request.namespace().parse().map_err(NotAuthorized::Malformed)?;
    caller.authorize(request.needed(), namespace).map_err(NotAuthorized::GrantMissing)
}

/// Returns the grant for a call with this key: `token` if it is a token. Calls without a key are invalid.
fn keyed(key: Option<&pb::SessionKey>, by_id: Grant) -> Grant {
    match key.and_then(|key| key.key.as_ref()) {
        Some(session_key::Key::Token(_)) | None => Grant::Token,
        Some(session_key::Key::Id(_)) => by_id,
    }
}

/// Returns the grant for reads that do not need a token: `manage` as long as they return no attributes.
fn read(view: SessionView) -> Grant {
    if view == SessionView::Basic { Grant::Manage } else { Grant::Full }
}

/// Implements [`Access`] for requests: which grant each needs.
macro_rules! needed {
    ($($request:ident: |$name:pat_param| $needed:expr;)*) => {$(
        impl Access for pb::$request {
            fn namespace(&self) -> &str {
                &self.namespace
            }

            fn needed(&self) -> Grant {
                let $name = self;
                $needed
            }
        }
    )*};
}

needed! {
    CreateSessionRequest: |_| Grant::Full;
    GetSessionRequest: |call| {
        let by_id = if call.touch { Grant::Full } else { read(call.view()) };
        keyed(call.key.as_ref(), by_id)
    };
    UpdateSessionRequest: |call| {
        let is_login = call.subject.is_some() || call.authentication.is_some();
        if is_login { Grant::Full } else { keyed(call.key.as_ref(), Grant::Full) }
    };
    TouchSessionRequest: |call| keyed(call.key.as_ref(), Grant::Full);
    RotateSessionRequest: |call| {
        let is_login = call.subject.is_some() || call.authentication.is_some();
        if is_login { Grant::Full } else { Grant::Token }
    };
    DeleteSessionRequest: |call| keyed(call.key.as_ref(), Grant::Manage);
    DeleteSubjectSessionsRequest: |_| Grant::Manage;
    ListSessionsRequest: |call| read(basic_by_default(call.view()));
    WatchRequest: |call| {
        let by_token = |key: &pb::SessionKey| keyed(Some(key), Grant::Full) == Grant::Token;
        let by_tokens = call.keys.iter().filter(|key| by_token(key)).count();
        match by_tokens {
            0 => read(basic_by_default(call.view())),
            tokens if tokens == call.keys.len() && call.subject.is_none() && !call.whole_namespace => Grant::Token,
            _ => Grant::Full,
        }
    };
}

/// Returns the view of a call whose default is BASIC.
fn basic_by_default(view: SessionView) -> SessionView {
    if view == SessionView::Unspecified { SessionView::Basic } else { view }
}
