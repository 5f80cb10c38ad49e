//! Generated stubs of `sessiond.v1.SessionService`.
//!
//! ```no_run
//! use sessiond_client::v1::{GetSessionRequest, SessionKey, session_key::Key};
//! use sessiond_client::v1::session_service_client::SessionServiceClient;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let mut sessions = SessionServiceClient::connect("http://127.0.0.1:50051").await?;
//! let token = "the bearer secret out of the cookie".to_owned();
//! let key = Some(SessionKey { key: Some(Key::Token(token)) });
//! let request = GetSessionRequest { namespace: "web".into(), key, touch: true, ..Default::default() };
//! let session = sessions.get_session(request).await?.into_inner().session;
//! # Ok(()) }
//! ```

/// Messages and client of package `sessiond.v1`.
#[allow(clippy::all, clippy::pedantic, missing_docs)]
#[rustfmt::skip]
pub mod v1 {
    include!("generated/sessiond.v1.rs");
}
