//! Registry of the Lua scripts, and the outcome numbers of their replies. The header of each file documents keys, arguments and
//! replies.

use crate::redis::Script;

/// Code that scripts share, by the name in their `include` lines.
const INCLUDES: &[(&str, &str)] = &[
    ("answer_retry", include_str!("scripts/lib/answer_retry.lua")),
    ("append", include_str!("scripts/lib/append.lua")),
    ("change", include_str!("scripts/lib/change.lua")),
    ("check", include_str!("scripts/lib/check.lua")),
    ("check_update", include_str!("scripts/lib/check_update.lua")),
    ("constants", include_str!("scripts/lib/constants.lua")),
    ("end_session", include_str!("scripts/lib/end_session.lua")),
    ("gate", include_str!("scripts/lib/gate.lua")),
    ("head", include_str!("scripts/lib/head.lua")),
    ("may_schedule", include_str!("scripts/lib/may_schedule.lua")),
    ("no_live_session", include_str!("scripts/lib/no_live_session.lua")),
    ("pack_head", include_str!("scripts/lib/pack_head.lua")),
    ("pack_life", include_str!("scripts/lib/pack_life.lua")),
    ("read_rare", include_str!("scripts/lib/read_rare.lua")),
    ("record_after", include_str!("scripts/lib/record_after.lua")),
    ("record_text", include_str!("scripts/lib/record_text.lua")),
    ("refuse_token", include_str!("scripts/lib/refuse_token.lua")),
    ("requests", include_str!("scripts/lib/requests.lua")),
    ("rotate", include_str!("scripts/lib/rotate.lua")),
    ("schedule", include_str!("scripts/lib/schedule.lua")),
    ("stored_content", include_str!("scripts/lib/stored_content.lua")),
    ("subject", include_str!("scripts/lib/subject.lua")),
    ("times_after", include_str!("scripts/lib/times_after.lua")),
    ("tokens", include_str!("scripts/lib/tokens.lua")),
    ("tokens_after", include_str!("scripts/lib/tokens_after.lua")),
    ("touch", include_str!("scripts/lib/touch.lua")),
    ("unless_wrong_type", include_str!("scripts/lib/unless_wrong_type.lua")),
    ("write_mark", include_str!("scripts/lib/write_mark.lua")),
    ("write_whole", include_str!("scripts/lib/write_whole.lua")),
];

macro_rules! registry {
    ($($constant:ident $name:literal in $file:literal flags $flags:literal keys $keys:literal;)*) => {
        $(#[doc = concat!("Script `", $name, "` in `scripts/", $file, "`.")]
        pub static $constant: Script =
            Script::new($name, $flags, $keys, include_str!(concat!("scripts/", $file)), INCLUDES);)*
        /// All scripts, each with its file.
        pub static ALL: &[(&Script, &str)] = &[$((&$constant, $file)),*];
    };
}

registry! {
    CREATE "create" in "create.lua" flags "" keys 6;
    READ "read" in "read.lua" flags "allow-oom" keys 6;
    READ_ONLY "read-only" in "read.lua" flags "no-writes,allow-oom" keys 6;
    UPDATE "update" in "update.lua" flags "" keys 6;
    ROTATE "rotate" in "update.lua" flags "" keys 6;
    END "end" in "end.lua" flags "allow-oom" keys 6;
    EXPIRE "expire" in "expire.lua" flags "allow-oom" keys 6;
    RESERVE "reserve" in "reserve.lua" flags "" keys 2;
    REMOVE "remove" in "remove.lua" flags "allow-oom" keys 2;
    SURVEY "survey" in "survey.lua" flags "no-writes,allow-oom" keys 4;
    MISSING_IN_INDEXES "missing-in-indexes" in "missing_in_indexes.lua" flags "no-writes,allow-oom" keys 2;
    FIRST_ENTRIES "first-entries" in "first_entries.lua" flags "no-writes,allow-oom" keys 2;
    CLAIM "claim" in "claim.lua" flags "allow-oom" keys 1;
    REPAIR "repair" in "repair.lua" flags "allow-oom" keys 2;
    INITIALISE "initialise" in "initialise.lua" flags "" keys 1;
    DUE "due" in "due.lua" flags "allow-oom" keys 2;
    TRIM "trim" in "trim.lua" flags "allow-oom" keys 2;
    PAGE "page" in "page.lua" flags "no-writes,allow-oom" keys 1;
    PROBE "probe" in "probe.lua" flags "allow-oom" keys 0;
}

/// First integer of the reply of a gated script. The same list is in constants.lua.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The store has no id or another one.
    StoreChanged = -2,
    /// The script ran after its deadline.
    TooLate = -1,
    /// No live session, or a wrong token.
    NotFound = 0,
    /// The script did what was asked.
    Done = 1,
    /// The session has ended.
    Ended = 2,
    /// A live session has the id.
    Exists = 3,
    /// The record cannot be read.
    Corrupt = 4,
    /// The current revision is another one.
    RevisionMismatch = 5,
    /// The request id belongs to another request.
    RequestIdReused = 6,
    /// The session knows as many request ids as it can, and none can be dropped yet.
    RequestIdLimit = 7,
    /// Another call has changed the content.
    Conflict = 8,
    /// Another call has the turn to change the content.
    Busy = 9,
    /// The presented token has a successor that was not presented yet; everything else was done.
    Shared = 10,
    /// The deadline or period has not passed.
    NotDue = 11,
    /// The presented token is superseded and not accepted.
    Rotated = 12,
    /// The successor is, or was, a token of the session.
    TokenKnown = 13,
    /// The subject index has no valid reservation of the id.
    NotReserved = 14,
    /// The subject has reached its limit; the caller has to check its newest entries.
    SubjectFull = 15,
    /// The subject has reached its limit.
    SubjectLimit = 16,
    /// The session does not meet the condition.
    NotMeant = 17,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Outcome; 20] = [
        Outcome::StoreChanged,
        Outcome::TooLate,
        Outcome::NotFound,
        Outcome::Done,
        Outcome::Ended,
        Outcome::Exists,
        Outcome::Corrupt,
        Outcome::RevisionMismatch,
        Outcome::RequestIdReused,
        Outcome::RequestIdLimit,
        Outcome::Conflict,
        Outcome::Busy,
        Outcome::Shared,
        Outcome::NotDue,
        Outcome::Rotated,
        Outcome::TokenKnown,
        Outcome::NotReserved,
        Outcome::SubjectFull,
        Outcome::SubjectLimit,
        Outcome::NotMeant,
    ];

    /// Outcome with this number. None: unknown.
    pub fn from_number(number: i64) -> Option<Self> {
        Outcome::ALL.into_iter().find(|outcome| *outcome as i64 == number)
    }
}
