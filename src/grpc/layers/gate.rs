//! The gate in front of every route: refuses what is no gRPC call, what a browser sends, and calls without a valid
//! credential. It reads headers only, never the body.

use std::{sync::Arc, time::SystemTime};

use http::{
    Request, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, ORIGIN, USER_AGENT},
};
use tonic::{Status, body::Body};

use super::{Admitted, CallMetrics, Method};
use crate::{
    audit_log::{Actor, AuditLog, Event, Refusal, Source, Target},
    auth::{Authenticator, InUse, KeyId, Load, Peer, Requester, Unauthenticated},
    grpc::{audit::actor_of, status},
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

/// What decides which connections and calls are admitted.
pub struct Admission {
    /// Finds the callers.
    pub authenticator: Arc<Authenticator>,
    /// Connections without a valid credential.
    pub unauthenticated: Arc<Unauthenticated>,
    /// Log of refusals.
    pub audit_log: Arc<AuditLog>,
    /// Calls in flight of all callers.
    load: Arc<Load>,
    /// Maximum number of calls in flight. One caller gets at most half.
    max_calls: usize,
}

impl Admission {
    /// Admits this many calls in flight, and this many connections without a valid credential.
    pub fn new(
        authenticator: Arc<Authenticator>,
        audit_log: Arc<AuditLog>,
        max_calls: usize,
        max_unauthenticated: usize,
    ) -> Self {
        let unauthenticated = Arc::new(Unauthenticated::new(max_unauthenticated));
        Admission { authenticator, unauthenticated, audit_log, load: Arc::default(), max_calls }
    }
}

/// Gate of one connection.
pub struct Gate {
    /// What decides, for all connections.
    pub admission: Arc<Admission>,
    /// Client of the connection.
    pub peer: Arc<Peer>,
    /// Metrics of the server.
    pub metrics: Arc<Metrics>,
}

/// Place of an admitted call, until its response is ready.
type CallPlace = [Option<InUse>; 2];

impl Gate {
    /// Adds the caller to the extensions of a request and returns its place, or returns the response that refuses the request.
    pub fn admit<B>(&self, request: &mut Request<B>) -> Result<CallPlace, Box<Response<Body>>> {
        if let Some((code, reason)) = refused_as_http(request.headers()) {
            self.metrics.network.count_refusal(reason);
            self.note_refusal(request, Event::AuthzFail, reason, None);
            return Err(Box::new(refusal(code)));
        }
        if request.uri().path() == HEALTH_CHECK {
            return Ok([None, None]);
        }
        let (certificate, now) = (self.peer.certificate.as_ref(), SystemTime::now());
        match self.admission.authenticator.authenticate(request.headers(), certificate, now) {
            Ok(requester) => {
                self.note_authentication(&requester, now);
                let place = self.place_for(&requester).map_err(|status| Box::new(self.refuse(request, status)))?;
                request.extensions_mut().insert(Admitted { requester, peer: self.peer.clone() });
                Ok(place)
            }
            Err(refusal) => {
                let by = match certificate {
                    _ if request.headers().contains_key(AUTHORIZATION) => BY_KEY,
                    Some(_) => BY_CERTIFICATE,
                    None => "none",
                };
                self.metrics.network.count_authentication(by, refusal.name());
                self.metrics.network.count_refusal("credentials_invalid");
                self.note_refusal(request, Event::AuthnFail, refusal.name(), refusal.key());
                Err(Box::new(self.refuse(request, status::credentials_invalid())))
            }
        }
    }

    /// Takes the place of a call, of the server and of its caller.
    fn place_for(&self, requester: &Requester) -> Result<CallPlace, Status> {
        let Admission { load, max_calls, .. } = &*self.admission;
        let Some(of_server) = load.begin_call(*max_calls) else {
            self.metrics.network.count_shed("calls");
            return Err(status::too_many_calls("all callers"));
        };
        if requester.credential.is_none() {
            return Ok([Some(of_server), None]);
        }
        let Some(of_caller) = requester.caller.load.begin_call((max_calls / 2).max(1)) else {
            self.metrics.network.count_shed("caller_calls");
            return Err(status::too_many_calls("this caller"));
        };
        Ok([Some(of_server), Some(of_caller)])
    }

    /// Counts a refusal in the audit log. `key`: id of a key that was valid once, or will be.
    fn note_refusal<B>(&self, request: &Request<B>, event: Event, reason: &str, key: Option<KeyId>) {
        let source = Source::network_of(self.peer.address.ip());
        let apart = key.map_or_else(String::new, |key| key.to_string());
        self.admission.audit_log.refuse(Refusal { source, event, reason: reason.to_owned(), apart }, || {
            let method = Method::of_path(request.uri().path()).map(|method| method.name);
            let actor = actor_of(&self.peer, request.headers().get(USER_AGENT));
            (Actor { key: key.map(|key| key.to_string()), ..actor }, Target { method, ..Target::default() })
        });
    }

    /// Returns the response with this status, and counts it.
    fn refuse<B>(&self, request: &Request<B>, status: Status) -> Response<Body> {
        let method = Method::of_path(request.uri().path()).map_or("unknown", |method| method.name);
        CallMetrics::new(self.metrics.clone(), method).respond(status)
    }

    fn note_authentication(&self, requester: &Requester, now: SystemTime) {
        let Some(credential) = &requester.credential else { return };
        self.peer.note_authentication();
        let by = if credential.key_id().is_some() { BY_KEY } else { BY_CERTIFICATE };
        self.metrics.network.count_authentication(by, "ok");
        if let Some(key) = requester.newly_used_key(now) {
            self.metrics.network.note_key_use(&requester.caller.name, key.to_string(), now);
        }
    }
}

/// Returns the HTTP status, and the reason for the metrics, of a request that is no gRPC call, or that a browser may have sent
/// for any page: it would come with the client certificate of its user. None: the request is neither.
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
