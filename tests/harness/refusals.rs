//! Requests that are refused without Redis: each row of a table names its bad fields.

use sessiond_client::v1::*;
use tonic::Code;

use super::{Client, Server, World, client::*};

pub const CEILINGS: &str = "[limits]\ncall_timeout = '1s'\n\
    [default_policy]\nmax_idle_timeout = '1d'\nmax_absolute_timeout = '30d'\nmax_payload_bytes = '1 KiB'";

pub struct Deaf {
    pub world: World,
    pub server: Server,
    pub client: Client,
}

/// A server whose Redis hangs.
pub async fn deaf() -> Deaf {
    let world = World::own();
    let server = world.server_with(CEILINGS).await;
    let client = server.client().await;
    world.redis.pause();
    Deaf { world, server, client }
}

/// What it is about, the request, and the paths of its bad fields.
pub type Row<R> = (String, R, Vec<String>);

pub fn row<R>(what: impl Into<String>, request: R, fields: &[&str]) -> Row<R> {
    (what.into(), request, fields.iter().map(|field| (*field).to_owned()).collect())
}

pub fn check<T>(what: &str, answer: Answer<T>, mut fields: Vec<String>) -> tonic::Status {
    let status = answer.err().unwrap_or_else(|| panic!("{what}: was accepted"));
    assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status:?}");
    assert_eq!(status.reason(), "FIELD_INVALID", "{what}");
    let mut told = status.bad_fields();
    for field in &told {
        assert!(status.message().contains(field), "{what}: {field} in {:?}", status.message());
    }
    told.sort();
    fields.sort();
    assert_eq!(told, fields, "{what}: {}", status.message());
    status
}

pub async fn refuses<R, T>(rows: Vec<Row<R>>, call: impl AsyncFn(R) -> Answer<T>) {
    for (what, request, fields) in rows {
        check(&what, call(request).await, fields);
    }
}

pub fn create() -> CreateSessionRequest {
    CreateSessionRequest { namespace: NAMESPACE.into(), ..Default::default() }
}

pub fn update() -> UpdateSessionRequest {
    UpdateSessionRequest { namespace: NAMESPACE.into(), key: by_id(SOME_ID), ..Default::default() }
}

pub fn list() -> ListSessionsRequest {
    ListSessionsRequest { namespace: NAMESPACE.into(), ..Default::default() }
}

pub fn watch() -> WatchRequest {
    WatchRequest { namespace: NAMESPACE.into(), ..whole_namespace() }
}

pub const SOME_ID: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaa";

pub fn a(length: usize) -> String {
    "a".repeat(length)
}
