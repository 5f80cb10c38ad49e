//! What may be asked of a case, at random.

use proptest::{option, prelude::*};
use sessiond_client::v1::Cause;

/// Sessions that commands are for.
pub const SLOTS: usize = 3;

/// How a command names the session in its slot.
#[derive(Clone, Copy, Debug)]
pub enum By {
    Id,
    Present,
    /// A token that was superseded, counted from the youngest; the oldest that is known, if there are not as many.
    Old(usize),
    /// The one that the session was made with, which may be forgotten by now.
    First,
    /// The session's id with a secret of nobody's.
    Stranger,
}

#[derive(Clone, Copy, Debug)]
pub enum If {
    Present,
    Stale,
}

/// What UpdateSession and RotateSession may change.
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
    pub condition: Option<If>,
    pub request: bool,
}

#[derive(Clone, Debug)]
pub enum Command {
    /// Anew: of another id, even if the slot's session lives.
    Create {
        anew: bool,
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
    /// One token after another, more than are remembered.
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
    /// The slot's last mutation that had a request id once more; or another one with that id.
    Repeat {
        altered: bool,
    },
}

/// A command, the slot of the session that it is for, and the server that it goes to.
pub type Step = (Command, usize, usize);

fn by() -> impl Strategy<Value = By> {
    prop_oneof![
        3 => Just(By::Id),
        6 => Just(By::Present),
        4 => (0..3usize).prop_map(By::Old),
        2 => prop_oneof![Just(By::Old(usize::MAX)), Just(By::First)],
        1 => Just(By::Stranger),
    ]
}

fn changes() -> impl Strategy<Value = Changes> {
    let content = (option::weighted(0.6, (0..3u8, 0..3u8)), option::weighted(0.2, 0..3u8), prop::bool::weighted(0.1));
    let labels = (option::weighted(0.3, 0..2u8), prop::bool::weighted(0.1));
    let login = (option::weighted(0.15, 0..3u8), option::weighted(0.1, 1..3i32));
    let condition = option::weighted(0.3, prop_oneof![2 => Just(If::Present), 1 => Just(If::Stale)]);
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
            |(anew, by_server, subject, label, request)| Command::Create { anew, by_server, subject, label, request }
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
        4 => prop::bool::weighted(0.3).prop_map(|altered| Command::Repeat { altered }),
    ];
    (command, 0..SLOTS, 0..2usize)
}

/// 0 = none.
pub fn subject_name(subject: u8) -> String {
    if subject == 0 { String::new() } else { format!("subject-{subject}") }
}
