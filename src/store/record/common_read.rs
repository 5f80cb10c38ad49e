//! The common read: answers a read from the record alone, without a script.

use super::{Front, Kind, tokens::CurrentToken};
use crate::session::{Credential, Policy, TokenState};

/// Minimum time in ms from the estimated time of Redis to the deadline of a session that the common read answers. The clock of
/// Redis may be ahead of the estimate.
const MARGIN_MS: u64 = 2_000;
/// Minimum time in ms between two stored touches, if the policy sets none.
pub(in crate::store) const DEFAULT_TOUCH_INTERVAL_MS: u64 = 60_000;

/// Result of [`common_read`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum CommonRead {
    /// The session lives and the credential is accepted. The answer does not depend on what the script may write.
    Accepted {
        /// State of the presented token.
        token_state: TokenState,
        /// Whether the token was not presented before: a call that presents it records this.
        is_first_use: bool,
        /// Whether a touch is due.
        touch_is_due: bool,
    },
    /// Only the script can answer.
    NeedsScript,
}

/// Answers a read, or returns that the script is needed. `now_us` is the estimated time of Redis; None: unknown.
///
/// A token is accepted only if it is the current one: any other may be refused, or end the session.
pub(in crate::store) fn common_read(
    front: &Front,
    credential: Credential,
    policy: &Policy,
    now_us: Option<u64>,
) -> CommonRead {
    let (Kind::Live, Some(now_us)) = (front.kind, now_us) else { return CommonRead::NeedsScript };
    let now = now_us / 1_000;
    let is_near_end = front.expires().is_some_and(|expires| expires <= now + MARGIN_MS);
    let presented = match credential {
        Credential::Id => Some((TokenState::NotPresented, false)),
        Credential::Secret(verifier) => front
            .tokens()
            .current()
            .filter(|token| token.has(verifier))
            .map(|token| (state_of_current(&token, policy, now), !token.is_used())),
    };
    match presented {
        Some((token_state, is_first_use)) if !is_near_end => {
            CommonRead::Accepted { token_state, is_first_use, touch_is_due: touch_is_due(front, policy, now) }
        }
        _ => CommonRead::NeedsScript,
    }
}

fn state_of_current(token: &CurrentToken<'_>, policy: &Policy, now: u64) -> TokenState {
    // The clock may have been set back since the token was issued.
    let age = now.checked_sub(token.since()).map(u128::from);
    match (policy.renewal_timeout, age) {
        (Some(renewal), Some(age)) if age >= renewal.as_millis() => TokenState::RotationDue,
        _ => TokenState::Current,
    }
}

/// Whether the last stored touch is at least the touch interval ago, or a twentieth of the idle timeout.
fn touch_is_due(front: &Front, policy: &Policy, now: u64) -> bool {
    // A clock that was set back is behind the last touch.
    let Some(age) = now.checked_sub(front.accessed) else { return false };
    let interval = policy.touch_interval.map_or(DEFAULT_TOUCH_INTERVAL_MS.into(), |interval| interval.as_millis());
    u128::from(age) >= interval || front.idle > 0 && age.saturating_mul(20) >= front.idle
}
