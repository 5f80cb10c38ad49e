//! Callers of the service: the credentials by which the server knows them, and the grants that decide what each may do.
//!
//! [`Credential`] is what a call presents. [`Callers`], made of the file `callers.toml`, finds its [`Caller`]. Only
//! [`Caller::authorize`] makes an [`Authorized`] namespace, which every use case of the service requires. Nothing here does
//! I/O or reads a clock.

mod api_key;
mod authenticator;
mod authorized;
mod callers;
mod certificate;
mod credential;
mod file;
mod grant;
mod load;
mod peer;
mod unauthenticated;

pub use api_key::{ApiKey, KeyId};
pub use authenticator::{Authenticator, LastingRight, Requester, RightLost};
pub use authorized::{Authorized, GrantMissing};
pub use callers::{Caller, Callers, Found};
pub use certificate::{CertificateNames, ClientCertificate, ClientVerifier, Identity, expiry_of};
pub use credential::{Credential, Refusal};
pub use file::InvalidCallers;
pub use grant::{Grant, Grants, Pattern};
pub use load::{InUse, Load, Loads};
pub use peer::Peer;
pub use unauthenticated::{Unauthenticated, UnauthenticatedPlace};
