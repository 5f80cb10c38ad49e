//! Metrics of connections, credentials and callers.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};

use super::labels::ResultLabel;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FileLabel {
    file: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CertificateLabel {
    certificate: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthenticationLabels {
    by: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LimitLabel {
    limit: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabel {
    class: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallerLabels {
    caller: Arc<str>,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KeyLabels {
    caller: Arc<str>,
    key: String,
}

/// Metrics of connections, credentials, callers and the audit log.
#[derive(Default)]
pub struct NetworkMetrics {
    handshakes: Family<ResultLabel, Counter>,
    certificate_ends: Family<CertificateLabel, Gauge>,
    reloaded: Family<FileLabel, Gauge>,
    reload_times: Family<FileLabel, Gauge>,
    authentications: Family<AuthenticationLabels, Counter>,
    refusals: Family<ReasonLabel, Counter>,
    shed: Family<LimitLabel, Counter>,
    closed: Family<ReasonLabel, Counter>,
    caller_requests: Family<CallerLabels, Counter>,
    key_uses: Family<KeyLabels, Gauge>,
    audit_healthy: Gauge,
    audit_lines: Family<ClassLabel, Counter>,
    audit_lines_lost: Counter,
}

impl NetworkMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        let help = "TLS handshakes by result; a rise of a result other than ok names what clients do wrong";
        r.register("tls_handshakes", help, self.handshakes.clone());
        let help = "Time at which a certificate of this server, or the first of its client authorities, expires";
        r.register_with_unit("tls_certificate_not_after_timestamp", help, Unit::Seconds, self.certificate_ends.clone());
        let help = "1 if the last reload of a file with credentials succeeded, 0 if the file cannot be used and the content \
                    from before stays in force";
        r.register("reload_last_successful", help, self.reloaded.clone());
        let help = "Time of the last successful reload of a file with credentials";
        r.register_with_unit("reload_last_success_timestamp", help, Unit::Seconds, self.reload_times.clone());
        let help = "Calls by credential (key, certificate, none) and result; a rise of a result other than ok is a caller \
                    with a wrong credential, or an attack";
        r.register("authentications", help, self.authentications.clone());
        let help = "Requests refused before their body was read, and calls refused for lack of a grant, by reason";
        r.register("refusals", help, self.refusals.clone());
        let help = "Calls and streams refused because of a limit, by limit; a rise means that the server, or one caller, is at it";
        r.register("shed", help, self.shed.clone());
        let help = "Connections closed by this server for a reason of its client";
        r.register("connections_closed", help, self.closed.clone());
        let help = "Requests answered, by caller and status code";
        r.register("caller_requests", help, self.caller_requests.clone());
        let help = "Time of the last call with an API key; a key whose time no longer moves can be removed";
        r.register_with_unit("caller_key_last_used_timestamp", help, Unit::Seconds, self.key_uses.clone());
        let help = "0 if the audit log cannot be written and its lines wait, else 1, also without an audit log";
        self.audit_healthy.set(1);
        r.register("audit_healthy", help, self.audit_healthy.clone());
        let help = "Lines of the audit log by class";
        r.register("audit_lines", help, self.audit_lines.clone());
        let help = "Lines of the audit log that were lost, because too many waited to be written";
        r.register("audit_lines_lost", help, self.audit_lines_lost.clone());
    }

    /// Counts a TLS handshake.
    pub fn count_handshake(&self, result: &'static str) {
        self.handshakes.get_or_create(&ResultLabel { result }).inc();
    }

    /// Sets the time from which on a certificate has expired.
    pub fn set_certificate_end(&self, certificate: &'static str, end: SystemTime) {
        self.certificate_ends.get_or_create(&CertificateLabel { certificate }).set(seconds(end));
    }

    /// Notes that a file was reloaded at this time.
    pub fn note_reload(&self, file: &'static str, now: SystemTime) {
        self.reloaded.get_or_create(&FileLabel { file }).set(1);
        self.reload_times.get_or_create(&FileLabel { file }).set(seconds(now));
    }

    /// Notes that a file cannot be used.
    pub fn note_failed_reload(&self, file: &'static str) {
        self.reloaded.get_or_create(&FileLabel { file }).set(0);
    }

    /// Counts an attempt to authenticate.
    pub fn count_authentication(&self, by: &'static str, result: &'static str) {
        self.authentications.get_or_create(&AuthenticationLabels { by, result }).inc();
    }

    /// Counts a refused request.
    pub fn count_refusal(&self, reason: &'static str) {
        self.refusals.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts what was refused because of a limit.
    pub fn count_shed(&self, limit: &'static str) {
        self.shed.get_or_create(&LimitLabel { limit }).inc();
    }

    /// Counts a connection that the server closed.
    pub fn count_closed_connection(&self, reason: &'static str) {
        self.closed.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Counts an answered request of a caller.
    pub fn count_caller_request(&self, caller: &Arc<str>, code: &'static str) {
        self.caller_requests.get_or_create(&CallerLabels { caller: caller.clone(), code }).inc();
    }

    /// Notes that a key was used at this time.
    pub fn note_key_use(&self, caller: &Arc<str>, key: String, now: SystemTime) {
        self.key_uses.get_or_create(&KeyLabels { caller: caller.clone(), key }).set(seconds(now));
    }

    /// Sets whether the audit log can be written.
    pub fn set_audit_healthy(&self, is_healthy: bool) {
        self.audit_healthy.set(is_healthy.into());
    }

    /// Counts a line of the audit log.
    pub fn count_audit_line(&self, class: &'static str) {
        self.audit_lines.get_or_create(&ClassLabel { class }).inc();
    }

    /// Counts lines of the audit log that are lost.
    pub fn count_lost_audit_lines(&self, lines: u64) {
        self.audit_lines_lost.inc_by(lines);
    }

    /// Removes a key, which no caller has any more.
    pub fn forget_key(&self, caller: &Arc<str>, key: String) {
        self.key_uses.remove(&KeyLabels { caller: caller.clone(), key });
    }
}

fn seconds(time: SystemTime) -> i64 {
    let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX)
}
