//! Random commands of a case.

use proptest::{option, prelude::*};
use sessiond_client::v1::Cause;

/// Number of sessions of a case.
pub const SLOTS: usize = 3;

/// The key by which a command addresses the session of its slot.
#[derive(Clone, Copy, Debug)]
pub enum By {
    Id,
    /// The current token.
    Current,
    /// A superseded token, counted from the newest; the oldest one if there are fewer.
    Superseded(usize),
    /// The token from CreateSession, which the session may no longer keep.
    First,
    /// A token with the id of the session and a wrong secret.
    WrongSecret,
}

/// The revision in `if_revision`.
#[derive(Clone, Copy, Debug)]
pub enum Condition {
    Current,
    Stale,
}

/// The changes of an UpdateSession or RotateSession.
#[derive(Clone, Debug)]
pub struct Changes {
    pub set: Option<(u8, u8)>,
    pub remove: Option<u8>,
    pub clear: bool,
    pub label: Option<u8>,
    pub unlabel: bool,
    pub subject: Option<u8>,
    pub level: Option<i32>,
    pub short: Option<bool>,
    pub touch: bool,
    pub condition: Option<Condition>,
    pub request: bool,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// `new_id`: with a new id, even if the session of the slot is live.
    Create {
        new_id: bool,
        by_server: bool,
        subject: u8,
        label: Option<u8>,
        request: bool,
    },
    Get {
        by: By,
        touch: bool,
    },
    Touch {
        by: By,
    },
    Update {
        by: By,
        changes: Changes,
    },
    Rotate {
        by: By,
        by_server: bool,
        known: bool,
        without_grace: bool,
        changes: Changes,
    },
    /// Rotates more often than the number of superseded tokens that a session keeps.
    RotateOften,
    Delete {
        by: By,
        cause: Cause,
        request: bool,
    },
    DeleteSubject {
        subject: u8,
        except: bool,
        cause: Cause,
    },
    List {
        subject: Option<u8>,
        label: Option<u8>,
        page_size: i32,
    },
    /// Retries the last call of the slot that had a request id. `altered`: sends another request with this id.
    Retry {
        altered: bool,
    },
}

/// A command, the slot of its session, and the number of the server.
pub type Step = (Command, usize, usize);

fn by() -> impl Strategy<Value = By> {
    prop_oneof![
        3 => Just(By::Id),
        6 => Just(By::Current),
        4 => (0..3usize).prop_map(By::Superseded),
        2 => prop_oneof![Just(By::Superseded(usize::MAX)), Just(By::First)],
        1 => Just(By::WrongSecret),
    ]
}

fn changes() -> impl Strategy<Value = Changes> {
    let content = (option::weighted(0.6, (0..3u8, 0..3u8)), option::weighted(0.2, 0..3u8), prop::bool::weighted(0.1));
    let labels = (option::weighted(0.3, 0..2u8), prop::bool::weighted(0.1));
    let login = (option::weighted(0.15, 0..3u8), option::weighted(0.1, 1..3i32));
    let condition = option::weighted(0.3, prop_oneof![2 => Just(Condition::Current), 1 => Just(Condition::Stale)]);
    let rest = (option::weighted(0.1, any::<bool>()), any::<bool>(), condition, any::<bool>());
    (content, labels, login, rest).prop_map(|(content, (label, unlabel), (subject, level), rest)| {
        let ((set, remove, clear), (short, touch, condition, request)) = (content, rest);
        Changes { set, remove, clear, label, unlabel, subject, level, short, touch, condition, request }
    })
}

pub fn step() -> impl Strategy<Value = Step> {
    let cause = |causes: [Cause; 3]| prop::sample::select(causes.to_vec());
    let command = prop_oneof![
        5 => (any::<bool>(), any::<bool>(), 0..3u8, option::of(0..2u8), any::<bool>()).prop_map(
            |(new_id, by_server, subject, label, request)| {
                Command::Create { new_id, by_server, subject, label, request }
            }
        ),
        6 => (by(), any::<bool>()).prop_map(|(by, touch)| Command::Get { by, touch }),
        2 => by().prop_map(|by| Command::Touch { by }),
        9 => (by(), changes()).prop_map(|(by, changes)| Command::Update { by, changes }),
        8 => (by(), any::<bool>(), prop::bool::weighted(0.1), prop::bool::weighted(0.2), changes()).prop_map(
            |(by, by_server, known, without_grace, changes)| {
                Command::Rotate { by, by_server, known, without_grace, changes }
            }
        ),
        1 => Just(Command::RotateOften),
        2 => (by(), cause([Cause::Unspecified, Cause::Revoked, Cause::Replaced]), any::<bool>())
            .prop_map(|(by, cause, request)| Command::Delete { by, cause, request }),
        1 => (1..3u8, any::<bool>(), cause([Cause::Unspecified, Cause::Revoked, Cause::Logout]))
            .prop_map(|(subject, except, cause)| Command::DeleteSubject { subject, except, cause }),
        2 => (option::weighted(0.7, 1..3u8), option::weighted(0.3, 0..2u8), 0..3i32)
            .prop_map(|(subject, label, page_size)| Command::List { subject, label, page_size }),
        4 => prop::bool::weighted(0.3).prop_map(|altered| Command::Retry { altered }),
    ];
    (command, 0..SLOTS, 0..2usize)
}

/// Returns the name of a subject. 0: no subject.
pub fn subject_name(subject: u8) -> String {
    if subject == 0 { String::new() } else { format!("subject-{subject}") }
}
