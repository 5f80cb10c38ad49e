//! The gate in front of every route: refuses what is no gRPC call, what a browser sends, and calls without a valid
//! credential. It reads headers only, never the body.

use std::{sync::Arc, time::SystemTime};

use http::{
    Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, ORIGIN},
};
use tonic::body::Body;

use super::{CallMetrics, Method};
use crate::{
    auth::{Authenticator, Peer, Requester},
    grpc::status,
    observe::Metrics,
};

/// The one method that needs no credential: probes send none.
const HEALTH_CHECK: &str = "/grpc.health.v1.Health/Check";
/// Header that browsers add to requests, and pages cannot remove.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Name of keys in the metrics.
const BY_KEY: &str = "key";
/// Name of client certificates in the metrics.
const BY_CERTIFICATE: &str = "certificate";
/// Content type of gRPC. A suffix or parameters may follow.
const GRPC: &[u8] = b"application/grpc";

/// Gate of one connection.
#[derive(Clone)]
pub struct Gate {
    /// Finds the callers.
    pub authenticator: Arc<Authenticator>,
    /// Client of the connection.
    pub peer: Arc<Peer>,
    /// Metrics of the server.
    pub metrics: Arc<Metrics>,
}

impl Gate {
    /// Adds the caller to the extensions of a request, or returns the response that refuses the request.
    pub fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Box<Response<Body>>> {
        if let Some((code, reason)) = refused_as_http(request.headers()) {
            self.metrics.network.count_refusal(reason);
            return Err(Box::new(refusal(code)));
        }
        if request.uri().path() == HEALTH_CHECK {
            return Ok(());
        }
        let (certificate, now) = (self.peer.certificate.as_ref(), SystemTime::now());
        match self.authenticator.authenticate(request.headers(), certificate, now) {
            Ok(requester) => {
                self.note_authentication(&requester, now);
                request.extensions_mut().insert(requester);
                Ok(())
            }
            Err(refusal) => {
                let by = match certificate {
                    _ if request.headers().contains_key(AUTHORIZATION) => BY_KEY,
                    Some(_) => BY_CERTIFICATE,
                    None => "none",
                };
                self.metrics.network.count_authentication(by, refusal.name());
                self.metrics.network.count_refusal("credentials_invalid");
                let method = Method::of_path(request.uri().path()).map_or("unknown", |method| method.name);
                let metrics = CallMetrics::new(self.metrics.clone(), method);
                Err(Box::new(metrics.respond(status::credentials_invalid())))
            }
        }
    }
}

impl Gate {
    fn note_authentication(&self, requester: &Requester, now: SystemTime) {
        let Some(credential) = &requester.credential else { return };
        let by = if credential.key_id().is_some() { BY_KEY } else { BY_CERTIFICATE };
        self.metrics.network.count_authentication(by, "ok");
        if let Some(key) = requester.newly_used_key(now) {
            self.metrics.network.note_key_use(&requester.caller.name, key.to_string(), now);
        }
    }
}

/// Returns the HTTP status, and the reason for the metrics, of a request that is no gRPC call, or that a browser may have sent for any page: it would come with the
/// client certificate of its user. None: the request is neither.
fn refused_as_http(headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    if headers.contains_key(ORIGIN) || headers.contains_key(SEC_FETCH_SITE) {
        return Some((StatusCode::FORBIDDEN, "browser"));
    }
    let suffix = headers.get(CONTENT_TYPE).and_then(|value| value.as_bytes().strip_prefix(GRPC));
    match suffix {
        Some([] | [b'+' | b';', ..]) => None,
        Some(_) | None => Some((StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type")),
    }
}

fn refusal(code: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = code;
    response
}
