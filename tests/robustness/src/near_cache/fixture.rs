//! A valid constructed history of the near cache, and the defects that the check must find in it.

use prost_types::Timestamp;
use sessiond_client::v1::{
    Cause, CreateSessionRequest, DeleteSessionRequest, EventType, GetSessionRequest, RotateSessionRequest, Session,
    SessionKey, TokenState, UpdateSessionRequest,
};

use super::{Deletion, Disturbance, Epoch, Kind, Recording, workload::MARK};
use crate::{
    ground_truth::{Entry, Position, SessionState},
    history::{Micros, Operation, Outcome},
    seeded_rng::SeededRng,
};
use harness::{
    client::{NAMESPACE, by_id, by_token, id_of, text},
    contract::{Call, Reply, state::Content},
};

/// Description of a defect, the rule that it breaks, and the function that plants it.
pub type Defect = (&'static str, &'static str, fn(&mut Recording));

/// A rule of the check.
const STATE: &str = "a state that was not true any more, or never";
const TOKEN: &str = "a token that was not current then";

/// All defects.
pub const DEFECTS: [Defect; 20] = [
    ("an answer 1.1 s after its end", STATE, |history| history.moved(OLD, 1_100).returned += 1_000),
    ("a change by the same server is missing", STATE, |history| history.operations[OLD].instance = 1),
    ("an old answer without min_revision", STATE, |history| history.request(OLD).min_revision = None),
    ("an ended session after 1.1 s", STATE, |history| {
        history.moved(ENDED, 1_100);
    }),
    ("a lost change 1.1 s after the rollback", STATE, |history| {
        history.moved(LOST, 1_100);
    }),
    ("a revision that never was", STATE, |history| history.session(OLD).revision += 1),
    ("a deleted session after 1.1 s", STATE, |history| {
        history.moved(DELETED, 1_100);
    }),
    ("an unreported deletion after 10.1 s", STATE, |history| {
        history.disturbances.push(Disturbance { name: "lost".into(), from: at(169_900), until: at(170_100) });
        history.moved(DELETED, 10_100);
    }),
    ("another content", "a content that the session never had at its revision", |history| {
        history.session(OLD).subject = "another".into();
    }),
    ("a superseded token as the current one", TOKEN, |history| {
        let superseded = history.key(SUPERSEDED);
        history.request(CURRENT).key = superseded;
    }),
    ("the current token as superseded", TOKEN, |history| {
        let current = history.key(CURRENT);
        history.request(SUPERSEDED).key = current;
    }),
    ("a token without a state", TOKEN, |history| history.state(CURRENT, TokenState::Unspecified)),
    ("an id with the state of a token", TOKEN, |history| history.state(OLD, TokenState::Current)),
    ("less than min_revision", "less than its min_revision", |history| {
        history.request(OLD).min_revision = Some(at(110_000) as i64);
    }),
    ("a live session is refused", "a refusal of a session that lived", |history| {
        history.operations[OLD].outcome = Outcome::Answered(Reply::Rejected("SESSION_NOT_FOUND".into(), String::new()));
        history.operations[OLD].called = at(110_500);
    }),
    ("a session after its deadline", "a session after its deadline", |history| {
        history.session(OLD).expire_time = time(at(110_000));
    }),
    ("a touch is not recorded", "a due touch was not recorded", |history| history.request(OLD).touch = true),
    ("times of use 10.1 s old", "times of use that are more than 10 s old", |history| {
        history.session(CURRENT).access_time = time(at(110_000));
    }),
    ("a first use is not recorded", "a first use was not recorded", |history| {
        let rotation = history.operations.iter().find(|operation| matches!(operation.call, Call::Rotate(_)));
        let rotation = rotation.expect("there is a rotation").clone();
        history.operations.push(Operation { called: at(125_000), returned: at(125_001), ..rotation });
    }),
    ("a lost access 1.1 s after the restart", "an access that Redis lost", |history| {
        history.session(AFTER_RESTART).access_time = time(at(144_000));
    }),
];

/// Index of the read of a state that was replaced within the last second. The others follow.
const OLD: usize = 3;
const CURRENT: usize = 4;
const SUPERSEDED: usize = 5;
const ENDED: usize = 6;
const LOST: usize = 7;
const AFTER_RESTART: usize = 8;
const DELETED: usize = 9;

/// Time of the recording in µs.
fn at(ms: u64) -> Micros {
    1_000_000_000_000 + ms * 1_000
}

fn time(at: Micros) -> Option<Timestamp> {
    Some(Timestamp { seconds: (at / 1_000_000) as i64, nanos: (at % 1_000_000) as i32 * 1_000 })
}

impl Recording {
    /// Moves a read to this time after the end of the state that it returns.
    fn moved(&mut self, read: usize, ms_after_end: u64) -> &mut Operation {
        let end = match read {
            OLD => 110_000,
            ENDED => 130_000,
            LOST => 150_000,
            DELETED => 170_000,
            _ => unreachable!("its state does not end"),
        };
        let operation = &mut self.operations[read];
        (operation.called, operation.returned) = (at(end + ms_after_end), at(end + ms_after_end) + 500);
        operation
    }

    fn request(&mut self, read: usize) -> &mut GetSessionRequest {
        let Call::Get(request) = &mut self.operations[read].call else { panic!("it is a read") };
        request
    }

    fn key(&mut self, read: usize) -> Option<SessionKey> {
        self.request(read).key.clone()
    }

    fn session(&mut self, read: usize) -> &mut Session {
        let Outcome::Answered(Reply::Session(session, ..)) = &mut self.operations[read].outcome else {
            panic!("it is answered")
        };
        session
    }

    fn state(&mut self, read: usize, to: TokenState) {
        let Outcome::Answered(Reply::Session(_, _, state)) = &mut self.operations[read].outcome else {
            panic!("it is answered")
        };
        *state = to;
    }
}

/// Returns a session with this mark after its change at this time, and its log entry.
fn changed(token: &str, ms: u64, kind: EventType, mark: &str, generation: i32) -> (Session, Entry) {
    let session = Session {
        namespace: NAMESPACE.into(),
        id: id_of(token),
        revision: at(ms) as i64,
        attributes: [(MARK.to_owned(), text(mark))].into(),
        access_time: time(at(100_000)),
        create_time: time(at(100_000)),
        token_generation: generation,
        ..Default::default()
    };
    let position = Position { revision: at(ms), nonce: 1 };
    let entry = Entry {
        position,
        previous: position,
        namespace: NAMESPACE.into(),
        id: id_of(token),
        kind,
        cause: Cause::Unspecified,
        after: Some(SessionState { content: Content::from(&session), expires: None }),
        before: None,
        changed: Vec::new(),
    };
    (session, entry)
}

/// Returns a call that instance 1 answered 2 ms after it was sent, and that took effect in between.
fn write(ms: u64, call: Call, reply: Reply) -> Operation {
    let (called, returned) = (at(ms) - 1_000, at(ms) + 1_000);
    Operation { client: 0, instance: 1, called, returned, call, outcome: Outcome::Answered(reply) }
}

fn replied(session: &Session) -> Reply {
    Reply::Session(session.clone().into(), String::new(), TokenState::Unspecified)
}

/// Returns a read from memory by instance 0.
fn read(ms: u64, key: Option<SessionKey>, session: &Session, accessed: u64, state: TokenState) -> Operation {
    let request = GetSessionRequest { namespace: NAMESPACE.into(), key, min_revision: Some(0), ..Default::default() };
    let session = Session { access_time: time(at(accessed)), ..session.clone() };
    let reply = Reply::Session(session.into(), String::new(), state);
    let (called, returned) = (at(ms), at(ms) + 500);
    Operation { client: 10, instance: 0, called, returned, call: Call::Get(request), outcome: Outcome::Answered(reply) }
}

/// Returns a valid history. One session changes, rotates and ends. Another one changes, Redis restarts without that change at
/// 150 s, and its key is deleted at 170 s.
pub fn valid() -> Recording {
    let mut rng = SeededRng::from_seed(1);
    let [one, next, other] = [(); 3].map(|()| rng.token());
    let next = format!("{}{}", &one[..31], &next[31..]);
    let (created, create_entry) = changed(&one, 100_000, EventType::Created, "0", 1);
    let (updated, update_entry) = changed(&one, 110_000, EventType::Updated, "1", 1);
    let (rotated, rotate_entry) = changed(&one, 120_000, EventType::Rotated, "1", 2);
    let (_, end_entry) = changed(&one, 130_000, EventType::Ended, "1", 2);
    let (kept, kept_entry) = changed(&other, 102_000, EventType::Created, "2", 1);
    let (lost, lost_entry) = changed(&other, 148_000, EventType::Updated, "3", 1);
    let namespace = || NAMESPACE.to_owned();
    let mark = |session: &Session| session.attributes.clone().into_iter().collect();
    let create = |token: &str, session: &Session| {
        let (token, attributes) = (token.to_owned(), mark(session));
        Call::Create(CreateSessionRequest { namespace: namespace(), token, attributes, ..Default::default() })
    };
    let update = |session: &Session| {
        let (key, set_attributes) = (by_id(&session.id), mark(session));
        Call::Update(UpdateSessionRequest { namespace: namespace(), key, set_attributes, ..Default::default() })
    };
    let (token, new_token) = (one.clone(), next.clone());
    let rotate = RotateSessionRequest { namespace: namespace(), token, new_token, ..Default::default() };
    let delete = DeleteSessionRequest { namespace: namespace(), key: by_id(&id_of(&one)), ..Default::default() };
    let none = TokenState::Unspecified;
    let operations = vec![
        write(100_000, create(&one, &created), replied(&created)),
        write(102_000, create(&other, &kept), replied(&kept)),
        read(110_500, by_id(&id_of(&one)), &updated, 110_400, none),
        read(110_900, by_id(&id_of(&one)), &created, 105_000, none),
        read(121_000, by_token(&next), &rotated, 120_500, TokenState::Current),
        read(121_500, by_token(&one), &rotated, 121_000, TokenState::Superseded),
        read(130_900, by_id(&id_of(&one)), &rotated, 121_000, none),
        read(150_900, by_id(&id_of(&other)), &lost, 130_000, none),
        read(152_500, by_id(&id_of(&other)), &kept, 130_000, none),
        read(170_900, by_id(&id_of(&other)), &kept, 165_000, none),
        write(110_000, update(&updated), replied(&updated)),
        write(120_000, Call::Rotate(rotate), replied(&rotated)),
        write(130_000, Call::Delete(delete), Reply::Deleted(true)),
        write(148_000, update(&lost), replied(&lost)),
    ];
    let before = vec![create_entry, update_entry, rotate_entry, end_entry, kept_entry.clone(), lost_entry];
    let restart = [at(150_000), at(150_010)];
    Recording {
        seed: 0,
        kind: Kind::Restarts,
        steps_clock: false,
        operations,
        epochs: vec![
            Epoch { from: [0; 2], until: restart, kept_until: at(140_000), log: before },
            Epoch { from: restart, until: [Micros::MAX; 2], kept_until: Micros::MAX, log: vec![kept_entry] },
        ],
        deletions: vec![Deletion { id: id_of(&other), from: at(170_000), until: at(170_001) }],
        disturbances: Vec::new(),
    }
}
