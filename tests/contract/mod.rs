//! The contract, executable: what each call is answered, what it leaves behind, and who is told. No clock, no I/O.
//!
//! `session` has the rules of one session, `namespace` those of many: subjects, limits, lists; `watchers` says what each
//! of them is to be told. The rest is their vocabulary.

#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod calls;
pub mod namespace;
mod patch;
pub mod session;
pub mod state;
mod step;
pub mod watchers;

pub use calls::{Answer, Call};

/// What becomes of the tokens before the present one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OldTokens {
    /// They are in their grace period for longer than any test runs.
    WorkOn,
    /// No grace; one that comes back ends the session where a successor was used.
    EndTheSession,
    /// No grace; one that comes back is reported where a successor was used.
    AreReported,
}

/// What happens to a subject that has as many sessions as it may have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Beyond {
    TheOldestMakesRoom,
    NobodyIsAdmitted,
}

/// What a namespace's policy says, as far as the contract hangs on it.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    pub old_tokens: OldTokens,
    pub limit: Option<(usize, Beyond)>,
    /// Else a use right after another one is not written down.
    pub every_use_counts: bool,
}

impl Rules {
    /// The policy that makes them so.
    pub fn policy(&self) -> String {
        let (grace, reuse) = match self.old_tokens {
            OldTokens::WorkOn => ("1d", "end"),
            OldTokens::EndTheSession => ("0s", "end"),
            OldTokens::AreReported => ("0s", "report"),
        };
        let (limit, beyond) = self.limit.unwrap_or((0, Beyond::TheOldestMakesRoom));
        let beyond = if beyond == Beyond::NobodyIsAdmitted { "reject" } else { "replace-oldest" };
        let interval = if self.every_use_counts { "0s" } else { "1h" };
        format!(
            "rotation_grace = '{grace}'\ntoken_reuse = '{reuse}'\nsession_limit = {limit}\n\
             session_limit_policy = '{beyond}'\ntouch_interval = '{interval}'\n"
        )
    }
}
