//! Requests of the calls benchmark: encoded once, with the token of each call copied into them.

use std::{
    collections::BTreeMap,
    ops::{Range, RangeInclusive},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use prost::Message;
use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, RotateSessionRequest, SessionView,
    UpdateSessionRequest,
};

use harness::client::{by_id, by_token, id_of};

use super::{
    content::Content,
    generator::{Calls, NextRequest},
};

/// Namespace in which no touch is due during the benchmark.
pub const QUIET: &str = "quiet";
/// Namespace in which every touch is due.
pub const TOUCHED: &str = "touched";
/// Policies of both namespaces.
pub const CONFIGURATION: &str = r#"
[default_policy]
idle_timeout = "12h"
touch_interval = "6h"
max_payload_bytes = "128 KiB"

[namespace.quiet]

[namespace.touched]
touch_interval = "0s"
"#;

/// Length of a token that the server generated.
const TOKEN: usize = 83;
/// Number of different contents of each size. A prime: an attribute that an update sets always has another value.
const CONTENTS: usize = 101;
/// Distance between the sessions of two turns. A prime: each session has its turn.
const STEP: usize = 7919;
/// Number of attributes of a session.
const ATTRIBUTES: usize = 10;
/// Attribute that contains a random number: two contents never have the same value.
pub const RANDOM_ATTRIBUTE: usize = 2;
/// Size of the response with a BASIC session.
const BASIC: RangeInclusive<usize> = 80..=300;
/// Response of a DeleteSession that ended a session.
const DELETED: &[u8] = &[0x08, 0x01];

/// Token that the server generated.
pub type Token = [u8; TOKEN];
/// Tokens of sessions that are used again and again.
pub type Sessions = Arc<[Token]>;
/// Tokens of sessions that one call uses up.
pub type Pool = Arc<Mutex<Vec<Token>>>;

/// Encoded request with a placeholder for a part of the token.
struct Template {
    message: Vec<u8>,
    placeholder: Range<usize>,
    part: Range<usize>,
}

impl Template {
    /// Encodes a request that contains [`placeholder`] or the id in it.
    fn new(request: &impl Message) -> Self {
        let (message, token) = (request.encode_to_vec(), placeholder());
        for part in [0..TOKEN, 4..30] {
            let text = token[part.clone()].as_bytes();
            if let Some(at) = message.windows(text.len()).position(|window| window == text) {
                return Template { message, placeholder: at..at + text.len(), part };
            }
        }
        unreachable!("the request has a placeholder")
    }

    fn write(&self, token: &Token, message: &mut Vec<u8>) {
        message.extend_from_slice(&self.message);
        message[self.placeholder.clone()].copy_from_slice(&token[self.part.clone()]);
    }
}

/// Returns a token that no session has.
fn placeholder() -> String {
    format!("ses_{}_{}", "z".repeat(26), "z".repeat(52))
}

/// Returns the token at the end of a response.
fn token_in(response: &[u8]) -> Token {
    let token = *response.last_chunk().expect("a token");
    assert!(token.starts_with(b"ses_"), "the response ends with a token");
    token
}

fn assert_size(message: &[u8], size: &RangeInclusive<usize>) {
    assert!(size.contains(&message.len()), "the response has {} bytes instead of {size:?}", message.len());
}

/// Size of the response with a session of this payload in KiB.
pub fn response_size(kib: usize) -> RangeInclusive<usize> {
    800 * kib..=2_000 * kib
}

/// Form of a GetSession.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Get {
    Token,
    TokenAndTouch,
    Id,
    BasicView,
    /// With `min_revision`: from memory, if possible.
    Memory,
    MemoryAndTouch,
}

/// Reads the sessions in turn.
pub fn get(form: Get, namespace: &str, sessions: &Sessions, size: RangeInclusive<usize>) -> Calls {
    let turns = Turns::of(sessions);
    get_by(form, namespace, size, move || *turns.next().1)
}

/// Reads the sessions of these tokens.
pub fn get_by(
    form: Get,
    namespace: &str,
    size: RangeInclusive<usize>,
    next: impl Fn() -> Token + Send + Sync + 'static,
) -> Calls {
    let token = placeholder();
    let key = if form == Get::Id { by_id(&id_of(&token)) } else { by_token(&token) };
    let (view, size) = if form == Get::BasicView { (SessionView::Basic, BASIC) } else { (SessionView::Full, size) };
    let touch = matches!(form, Get::TokenAndTouch | Get::MemoryAndTouch);
    let min_revision = matches!(form, Get::Memory | Get::MemoryAndTouch).then_some(0);
    let request = GetSessionRequest { namespace: namespace.to_owned(), key, touch, view: view.into(), min_revision };
    let template = Template::new(&request);
    Calls {
        method: "GetSession",
        next_request: Box::new(move |message| {
            template.write(&next(), message);
            true
        }),
        on_response: Box::new(move |message| assert_size(message, &size)),
    }
}

/// Limits the number of calls.
pub fn limited(limit: usize, calls: Calls) -> Calls {
    within(&Arc::new(AtomicUsize::new(limit)), calls)
}

/// Makes a call only while the number of calls that are left is above 0, and subtracts it.
pub fn within(left: &Arc<AtomicUsize>, calls: Calls) -> Calls {
    let (left, next) = (left.clone(), calls.next_request);
    let take = move || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
    Calls { next_request: Box::new(move |message| take() && next(message)), ..calls }
}

/// Adds the size of each response to a sum.
pub fn sized(sum: Arc<AtomicUsize>, calls: Calls) -> Calls {
    let on_response = calls.on_response;
    let add = move |message: &[u8]| {
        sum.fetch_add(message.len(), Ordering::Relaxed);
        on_response(message);
    };
    Calls { on_response: Box::new(add), ..calls }
}

/// Sets one attribute of the sessions in turn to a new value.
pub fn update(copies: usize, sessions: &Sessions) -> Calls {
    update_attribute(copies, sessions, |number| number % ATTRIBUTES)
}

/// Updates the sessions in turn. Each update creates an event, because it sets [`RANDOM_ATTRIBUTE`].
pub fn update_with_event(sessions: &Sessions) -> Calls {
    update_attribute(1, sessions, |_| RANDOM_ATTRIBUTE)
}

/// Sets the attribute that `attribute` returns for the number of the content.
fn update_attribute(copies: usize, sessions: &Sessions, attribute: fn(usize) -> usize) -> Calls {
    let template = |number| {
        let content = Content::repeated(copies, (CONTENTS + number) as u64);
        let (namespace, key) = (QUIET.to_owned(), by_token(&placeholder()));
        let set_attributes = BTreeMap::from([content.attribute(attribute(CONTENTS + number))]);
        Template::new(&UpdateSessionRequest { namespace, key, set_attributes, ..Default::default() })
    };
    let templates: Vec<_> = (0..CONTENTS).map(template).collect();
    let turns = Turns::of(sessions);
    Calls {
        method: "UpdateSession",
        next_request: Box::new(move |message| {
            let (turn, token) = turns.next();
            templates[turn % CONTENTS].write(token, message);
            true
        }),
        on_response: Box::new(|message| assert_size(message, &BASIC)),
    }
}

/// Updates each session with this number of different request ids.
pub fn update_with_request_ids(ids: usize, sessions: &Sessions) -> Calls {
    let turns = Turns::of(sessions);
    let calls = Calls {
        method: "UpdateSession",
        next_request: Box::new(move |message| {
            let (turn, token) = turns.next();
            let request = UpdateSessionRequest {
                namespace: QUIET.to_owned(),
                key: by_token(std::str::from_utf8(token).expect("a token is ASCII")),
                request_id: format!("request-{turn:016}"),
                ..Default::default()
            };
            request.encode(message).expect("a buffer grows");
            true
        }),
        on_response: Box::new(|message| assert_size(message, &BASIC)),
    };
    limited(ids * sessions.len(), calls)
}

/// Creates sessions and adds their tokens to the pool.
pub fn create(copies: usize, namespace: &str, created: &Pool) -> Calls {
    let message = |number| {
        let (namespace, attributes) = (namespace.to_owned(), Content::repeated(copies, number).as_attributes());
        CreateSessionRequest { namespace, attributes, ..Default::default() }.encode_to_vec()
    };
    let messages: Vec<_> = (0..CONTENTS as u64).map(message).collect();
    let (created, turns) = (created.clone(), AtomicUsize::new(0));
    Calls {
        method: "CreateSession",
        next_request: Box::new(move |message| {
            let turn = turns.fetch_add(1, Ordering::Relaxed);
            message.extend_from_slice(&messages[turn % CONTENTS]);
            true
        }),
        on_response: Box::new(move |message| created.lock().unwrap().push(token_in(message))),
    }
}

/// Rotates the sessions of one pool, and adds their new tokens to the other.
pub fn rotate(from: &Pool, to: &Pool) -> Calls {
    let (namespace, token) = (QUIET.to_owned(), placeholder());
    let (from, to) = (from.clone(), to.clone());
    Calls {
        method: "RotateSession",
        next_request: each(from, &RotateSessionRequest { namespace, token, ..Default::default() }),
        on_response: Box::new(move |message| to.lock().unwrap().push(token_in(message))),
    }
}

/// Ends the sessions of the pool.
pub fn delete(pool: &Pool) -> Calls {
    let (namespace, key) = (QUIET.to_owned(), by_token(&placeholder()));
    Calls {
        method: "DeleteSession",
        next_request: each(pool.clone(), &DeleteSessionRequest { namespace, key, ..Default::default() }),
        on_response: Box::new(|message| assert_eq!(message, DELETED, "the call ended a session")),
    }
}

/// Returns a source of one request for each token of the pool.
fn each(pool: Pool, request: &impl Message) -> NextRequest {
    let template = Template::new(request);
    Box::new(move |message| {
        let token = pool.lock().unwrap().pop();
        token.inspect(|token| template.write(token, message)).is_some()
    })
}

/// Order in which calls use sessions: scattered, and each again only after all the others.
struct Turns {
    sessions: Sessions,
    turn: AtomicUsize,
}

impl Turns {
    fn of(sessions: &Sessions) -> Self {
        Turns { sessions: sessions.clone(), turn: AtomicUsize::new(0) }
    }

    /// Returns the number of the turn and its session.
    fn next(&self) -> (usize, &Token) {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        (turn, &self.sessions[turn * STEP % self.sessions.len()])
    }
}
