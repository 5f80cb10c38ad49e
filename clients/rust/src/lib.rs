//! Rust client of `sessiond.v1.SessionService`: the generated stubs, and a consumer of the Watch stream.
//!
//! ```no_run
//! use sessiond_client::v1::{GetSessionRequest, SessionKey, session_key::Key};
//! use sessiond_client::v1::session_service_client::SessionServiceClient;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut sessions = SessionServiceClient::connect("http://127.0.0.1:50051").await?;
//! let token = "the bearer secret from the cookie".to_owned();
//! let key = Some(SessionKey { key: Some(Key::Token(token)) });
//! let request = GetSessionRequest { namespace: "web".into(), key, touch: true, ..Default::default() };
//! let session = sessions.get_session(request).await?.into_inner().session;
//! # Ok(()) }
//! ```

#![warn(unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::expect_used, clippy::unwrap_used))]

pub mod watch;

/// Messages and stub of the protobuf package `sessiond.v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
#[rustfmt::skip]
pub mod v1 {
    include!("generated/sessiond.v1.rs");
}
