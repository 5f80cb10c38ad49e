//! Executable model of the contract: the reply of each call, the state after it, and its events. No clock, no I/O.
//!
//! `session` holds the rules of one session, `namespace` the rules of several: subjects, limits, lists. `watchers`
//! holds the events that each watcher receives. The other modules define their types.

pub mod calls;
pub mod namespace;
mod patch;
pub mod session;
pub mod state;
mod step;
pub mod watchers;

pub use calls::{Call, Reply};

/// Effect of a superseded token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TokenReuse {
    /// Accepted: the grace period is longer than any test.
    InGrace,
    /// No grace period: the token ends the session if a successor was presented.
    EndSession,
    /// No grace period: the token is reported once, with TOKEN_REUSED, if a successor was presented.
    Report,
}

/// Effect of a new session of a subject that has reached its session limit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OverLimit {
    /// The oldest session of the subject ends with cause REPLACED.
    ReplaceOldest,
    /// The call fails with SUBJECT_SESSION_LIMIT.
    Reject,
}

/// The part of a namespace's policy that the contract depends on.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Grace period of superseded tokens, and the effect of token reuse.
    pub token_reuse: TokenReuse,
    /// Maximum number of sessions of a subject, and the effect of one more. None: no limit.
    pub limit: Option<(usize, OverLimit)>,
    /// Whether every touch is written. False: the touch interval, a twentieth of the idle timeout, is longer than any test, so
    /// no touch is written.
    pub every_touch_is_written: bool,
}

impl Rules {
    /// Returns the policy with these rules, as TOML.
    pub fn policy(&self) -> String {
        let (grace, reuse) = match self.token_reuse {
            TokenReuse::InGrace => ("1d", "end"),
            TokenReuse::EndSession => ("0s", "end"),
            TokenReuse::Report => ("0s", "report"),
        };
        let (limit, over_limit) = self.limit.unwrap_or((0, OverLimit::ReplaceOldest));
        let limit_policy = if over_limit == OverLimit::Reject { "reject" } else { "replace-oldest" };
        let interval = if self.every_touch_is_written { "0s" } else { "30m" };
        format!(
            "rotation_grace = '{grace}'\ntoken_reuse = '{reuse}'\nsession_limit = {limit}\n\
             session_limit_policy = '{limit_policy}'\ntouch_interval = '{interval}'\n"
        )
    }
}
