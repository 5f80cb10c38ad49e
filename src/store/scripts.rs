//! Registry of the Lua scripts, and the outcome numbers of their replies. The header of each file documents keys, arguments and
//! replies.

use crate::redis::Script;

/// No shared code.
const NONE: &[&str] = &[];
/// Checks store id and deadline.
const GATE: &[&str] = &[include_str!("scripts/gate.lua")];
/// Reads a session.
const RECORD: &[&str] = &[GATE[0], include_str!("scripts/record.lua"), include_str!("scripts/token.lua")];
/// Writes a session.
const MUTATION: &[&str] = &[RECORD[0], RECORD[1], RECORD[2], include_str!("scripts/mutation.lua")];

macro_rules! registry {
    ($($constant:ident $name:literal in $file:literal flags $flags:literal keys $keys:literal $preludes:ident;)*) => {
        $(#[doc = concat!("Script `", $name, "` in `scripts/", $file, "`.")]
        pub static $constant: Script =
            Script::new($name, $flags, $keys, $preludes, include_str!(concat!("scripts/", $file)));)*
        /// All scripts.
        pub static ALL: &[&Script] = &[$(&$constant),*];
    };
}

registry! {
    CREATE "create" in "create.lua" flags "" keys 6 MUTATION;
    READ "read" in "get.lua" flags "allow-oom" keys 6 RECORD;
    READ_ONLY "read-only" in "get.lua" flags "no-writes,allow-oom" keys 6 RECORD;
    TOUCH "touch" in "get.lua" flags "allow-oom" keys 6 MUTATION;
    UPDATE "update" in "update.lua" flags "" keys 6 MUTATION;
    ROTATE "rotate" in "update.lua" flags "" keys 6 MUTATION;
    END "end" in "end.lua" flags "allow-oom" keys 6 MUTATION;
    SETTLE "settle" in "settle.lua" flags "allow-oom" keys 6 MUTATION;
    ADMIT "admit" in "admit.lua" flags "" keys 2 GATE;
    FORGET "forget" in "forget.lua" flags "allow-oom" keys 2 GATE;
    SURVEY "survey" in "survey.lua" flags "allow-oom" keys 4 GATE;
    INDEXED "indexed" in "indexed.lua" flags "allow-oom" keys 2 GATE;
    ENTRIES "entries" in "entries.lua" flags "allow-oom" keys 2 GATE;
    CLAIM "claim" in "claim.lua" flags "allow-oom" keys 1 GATE;
    REPAIR "repair" in "repair.lua" flags "allow-oom" keys 2 NONE;
    INITIALISE "initialise" in "initialise.lua" flags "" keys 1 NONE;
    DUE "due" in "due.lua" flags "allow-oom" keys 2 NONE;
    TRIM "trim" in "trim.lua" flags "allow-oom" keys 2 NONE;
    PAGE "page" in "page.lua" flags "no-writes,allow-oom" keys 1 NONE;
    PROBE "probe" in "probe.lua" flags "allow-oom" keys 0 NONE;
}

/// First integer of the reply of a gated script. The same list is in gate.lua.
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
    /// The session has another subject.
    SubjectChange = 7,
    /// The change would exceed the maximum number of attributes.
    TooManyAttributes = 8,
    /// The change would exceed the maximum number of labels.
    TooManyLabels = 9,
    /// The change would exceed the maximum payload.
    TooLarge = 10,
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
        Outcome::SubjectChange,
        Outcome::TooManyAttributes,
        Outcome::TooManyLabels,
        Outcome::TooLarge,
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
