//! Grants: every call × key kind × credential × grant × pattern, and what a refusal contains.

use std::pin::Pin;

use harness::{
    World,
    callers::{Caller, CallersFile, Key},
    client::*,
    pki::{Pki, uri},
};
use sessiond_client::v1::{
    Authentication, CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest,
    ListSessionsRequest, RotateSessionRequest, SessionKey, SessionView, TouchSessionRequest, UpdateSessionRequest,
    WatchRequest,
};
use tonic::Code;

type Call = Box<dyn Fn(Client) -> Pin<Box<dyn Future<Output = CallResult<()>>>>>;

/// A call, its name, and the grants with which it is allowed.
struct Row(&'static str, &'static [&'static str], Call);

const TOKEN: &[&str] = &["token", "full"];
const MANAGE: &[&str] = &["manage", "full"];
const FULL: &[&str] = &["full"];

/// Makes a row whose call builds this request, sets its namespace, and sends it with this method of the stub.
macro_rules! row {
    ($name:expr, $allowed:expr, $method:ident, $request:expr) => {
        Row(
            $name,
            $allowed,
            Box::new(move |mut client| {
                Box::pin(async move {
                    let mut request = tonic::Request::new($request);
                    request.get_mut().namespace = client.namespace.clone();
                    client.grpc.$method(request).await.map(drop)
                })
            }),
        )
    };
}

fn id() -> Option<SessionKey> {
    by_id(&id_of(&new_token()))
}

fn token() -> Option<SessionKey> {
    by_token(&new_token())
}

fn get(key: Option<SessionKey>, view: SessionView, touch: bool) -> GetSessionRequest {
    GetSessionRequest { key, view: view.into(), touch, ..Default::default() }
}

fn watch(keys: &[Option<SessionKey>], view: SessionView) -> WatchRequest {
    WatchRequest { keys: keys.iter().flatten().cloned().collect(), view: view.into(), ..Default::default() }
}

fn subject() -> Option<String> {
    Some("alice".into())
}

fn authentication() -> Option<Authentication> {
    Some(Authentication { level: 1, ..Default::default() })
}

fn rows() -> Vec<Row> {
    use SessionView::{Basic, Full, Unspecified};
    vec![
        row!("create", FULL, create_session, CreateSessionRequest::default()),
        row!("get token BASIC", TOKEN, get_session, get(token(), Basic, false)),
        row!("get token FULL", TOKEN, get_session, get(token(), Full, false)),
        row!("get token touch", TOKEN, get_session, get(token(), Unspecified, true)),
        row!("get id BASIC", MANAGE, get_session, get(id(), Basic, false)),
        row!("get id BASIC touch", FULL, get_session, get(id(), Basic, true)),
        row!("get id FULL", FULL, get_session, get(id(), Full, false)),
        row!("get id default view", FULL, get_session, get(id(), Unspecified, false)),
        row!("update token", TOKEN, update_session, UpdateSessionRequest { key: token(), ..Default::default() }),
        row!(
            "update token subject",
            FULL,
            update_session,
            UpdateSessionRequest { key: token(), subject: subject(), ..Default::default() }
        ),
        row!(
            "update token empty subject",
            FULL,
            update_session,
            UpdateSessionRequest { key: token(), subject: Some(String::new()), ..Default::default() }
        ),
        row!(
            "update token authentication",
            FULL,
            update_session,
            UpdateSessionRequest { key: token(), authentication: authentication(), ..Default::default() }
        ),
        row!("update id", FULL, update_session, UpdateSessionRequest { key: id(), ..Default::default() }),
        row!("touch token", TOKEN, touch_session, TouchSessionRequest { key: token(), ..Default::default() }),
        row!("touch id", FULL, touch_session, TouchSessionRequest { key: id(), ..Default::default() }),
        row!("rotate", TOKEN, rotate_session, RotateSessionRequest { token: new_token(), ..Default::default() }),
        row!(
            "rotate subject",
            FULL,
            rotate_session,
            RotateSessionRequest { token: new_token(), subject: subject(), ..Default::default() }
        ),
        row!(
            "rotate authentication",
            FULL,
            rotate_session,
            RotateSessionRequest { token: new_token(), authentication: authentication(), ..Default::default() }
        ),
        row!("delete token", TOKEN, delete_session, DeleteSessionRequest { key: token(), ..Default::default() }),
        row!("delete id", MANAGE, delete_session, DeleteSessionRequest { key: id(), ..Default::default() }),
        row!(
            "delete subject",
            MANAGE,
            delete_subject_sessions,
            DeleteSubjectSessionsRequest { subject: "alice".into(), ..Default::default() }
        ),
        row!("list", MANAGE, list_sessions, ListSessionsRequest::default()),
        row!("list BASIC", MANAGE, list_sessions, ListSessionsRequest { view: Basic.into(), ..Default::default() }),
        row!("list FULL", FULL, list_sessions, ListSessionsRequest { view: Full.into(), ..Default::default() }),
        row!("list subject", MANAGE, list_sessions, ListSessionsRequest { subject: subject(), ..Default::default() }),
        row!("watch token", TOKEN, watch, watch(&[token()], Unspecified)),
        row!("watch token FULL", TOKEN, watch, watch(&[token()], Full)),
        row!("watch ids", MANAGE, watch, watch(&[id(), id()], Unspecified)),
        row!("watch ids FULL", FULL, watch, watch(&[id(), id()], Full)),
        row!("watch id and token", FULL, watch, watch(&[id(), token()], Basic)),
        row!("watch token and subject", FULL, watch, WatchRequest { subject: subject(), ..watch(&[token()], Basic) }),
        row!("watch token and all", FULL, watch, WatchRequest { whole_namespace: true, ..watch(&[token()], Basic) }),
        row!("watch subject", MANAGE, watch, WatchRequest { subject: subject(), ..Default::default() }),
        row!("watch subject FULL", FULL, watch, WatchRequest { subject: subject(), ..watch(&[], Full) }),
        row!("watch all", MANAGE, watch, WatchRequest { whole_namespace: true, ..Default::default() }),
        row!("watch all FULL", FULL, watch, WatchRequest { whole_namespace: true, ..watch(&[], Full) }),
    ]
}

/// Patterns, with a namespace that each matches and one that it does not match.
const PATTERNS: [(&str, &str, &str); 3] = [("web", "web", "web-2"), ("shop-*", "shop-a", "shop"), ("*", "any", "any")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_needs_its_grant_in_its_namespace() {
    let pki = Pki::generate();
    let mut callers = Vec::new();
    let mut clients = Vec::new();
    for (index, (pattern, ..)) in PATTERNS.into_iter().enumerate() {
        for grant in ["token", "manage", "full"] {
            let (key, identity) = (Key::generate(), format!("spiffe://test/{grant}/{index}"));
            let caller = Caller::new(&format!("{grant}-{index}"), &[(pattern, grant)]);
            callers.push(caller.key(&key).certificate(&identity));
            let with_key = ClientOptions { tls: Some(pki.client_options()), key: Some(key.text) };
            let certificate = pki.client_authority.client(&[uri(&identity)]);
            let with_certificate = ClientOptions { tls: Some(pki.client_options_with(&certificate)), key: None };
            clients.push((PATTERNS[index], grant, "key", with_key));
            clients.push((PATTERNS[index], grant, "certificate", with_certificate));
        }
    }
    let file = CallersFile::new(&callers);
    let world = World::shared();
    let server = world.server_with(&(pki.mutual_toml() + &file.toml())).await;
    let mut wrong = Vec::new();
    for ((pattern, matching, other), grant, credential, options) in clients {
        let client = Client::connect_with(&server.address, &options).await;
        for (namespace, is_in) in [(matching, true), (other, pattern == "*")] {
            for Row(name, allowed, call) in rows() {
                let is_allowed = is_in && allowed.contains(&grant);
                let result = call(client.in_namespace(namespace)).await;
                let is_refused = result.as_ref().is_err_and(|status| status.code() == Code::PermissionDenied);
                if is_refused == is_allowed {
                    wrong.push(format!("{name} with {grant} on {pattern} by {credential} in {namespace}: {result:?}"));
                }
                if let Err(status) = result.filter_refused() {
                    assert_eq!(status.reason(), "GRANT_MISSING");
                    assert_eq!(status.metadata_of("namespace"), namespace);
                    assert_eq!(status.metadata_of("grant"), allowed[0]);
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

trait FilterRefused {
    fn filter_refused(self) -> CallResult<()>;
}

impl FilterRefused for CallResult<()> {
    /// Returns the status if the call was refused for lack of a grant.
    fn filter_refused(self) -> CallResult<()> {
        self.or_else(|status| if status.code() == Code::PermissionDenied { Err(status) } else { Ok(()) })
    }
}
