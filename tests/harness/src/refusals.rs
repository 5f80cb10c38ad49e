//! Tables of invalid requests: each row has a request and the paths of its invalid fields.
//!
//! Redis hangs in these tests, so a server that rejects a request does so without Redis.

use sessiond_client::v1::*;
use tonic::Code;

use super::{Client, Server, World, client::*};

/// Configuration with a short call timeout and low maximum values of the policy.
pub const CEILINGS: &str = "[limits]\ncall_timeout = '1s'\n\
    [default_policy]\nmax_idle_timeout = '1d'\nmax_absolute_timeout = '30d'\nmax_payload_bytes = '1 KiB'";

/// A server whose Redis hangs, and a client of it.
pub struct HungRedis {
    /// Redis for this test only, paused.
    pub world: World,
    /// Server with the configuration [`CEILINGS`].
    pub server: Server,
    /// Client of the server, in the namespace [`NAMESPACE`].
    pub client: Client,
}

/// Starts a server with the configuration [`CEILINGS`], then pauses its Redis.
pub async fn hung_redis() -> HungRedis {
    let world = World::dedicated();
    let server = world.server_with(CEILINGS).await;
    let client = server.client().await;
    world.redis.pause();
    HungRedis { world, server, client }
}

/// Name of the case, request, paths of its invalid fields.
pub type Row<R> = (String, R, Vec<String>);

/// Returns a row. `fields`: paths of the invalid fields.
pub fn row<R>(name: impl Into<String>, request: R, fields: &[&str]) -> Row<R> {
    (name.into(), request, fields.iter().map(|field| (*field).to_owned()).collect())
}

/// Asserts that the call failed with FIELD_INVALID and named exactly these fields.
pub fn check<T>(name: &str, answer: CallResult<T>, mut fields: Vec<String>) -> tonic::Status {
    let status = answer.err().unwrap_or_else(|| panic!("{name}: was accepted"));
    assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status:?}");
    assert_eq!(status.reason(), "FIELD_INVALID", "{name}");
    let mut bad_fields = status.bad_fields();
    for field in &bad_fields {
        assert!(status.message().contains(field), "{name}: {field} in {:?}", status.message());
    }
    bad_fields.sort();
    fields.sort();
    assert_eq!(bad_fields, fields, "{name}: {}", status.message());
    status
}

/// Asserts that `call` fails with FIELD_INVALID for the request of each row, and names exactly the fields of the row.
pub async fn check_rows<R, T>(rows: Vec<Row<R>>, call: impl AsyncFn(R) -> CallResult<T>) {
    for (name, request, fields) in rows {
        check(&name, call(request).await, fields);
    }
}

/// Returns a valid request for an anonymous session, which a row makes invalid.
pub fn create() -> CreateSessionRequest {
    CreateSessionRequest { namespace: NAMESPACE.into(), ..Default::default() }
}

/// Returns a request without changes for the session [`SOME_ID`], which a row makes invalid.
pub fn update() -> UpdateSessionRequest {
    UpdateSessionRequest { namespace: NAMESPACE.into(), key: by_id(SOME_ID), ..Default::default() }
}

/// Returns a valid request for all sessions of the namespace, which a row makes invalid.
pub fn list() -> ListSessionsRequest {
    ListSessionsRequest { namespace: NAMESPACE.into(), ..Default::default() }
}

/// Returns a valid request for a watch of the whole namespace, which a row makes invalid.
pub fn watch() -> WatchRequest {
    WatchRequest { namespace: NAMESPACE.into(), ..whole_namespace() }
}

/// A valid id that no session has.
pub const SOME_ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Returns a text of this length in bytes.
pub fn a(length: usize) -> String {
    "a".repeat(length)
}
