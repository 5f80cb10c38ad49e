//! The actions of each client, generated from a seed.

use proptest::{
    option,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Number of tokens of the plan: those that the session has, had, or may get.
pub const TOKENS: usize = 4;
/// Maximum number of calls of all clients.
const CALLS: usize = 14;

/// The key by which an action addresses the session.
#[derive(Clone, Copy, Debug)]
pub enum By {
    Id,
    /// One of the tokens of the plan.
    Token(usize),
    /// The last token that this client received.
    OwnToken,
}

#[derive(Clone, Copy, Debug)]
pub enum Action {
    Create,
    Get {
        by: By,
        touch: bool,
    },
    Touch {
        by: By,
    },
    /// Sets an attribute. `own`: one that only this client sets.
    Set {
        by: By,
        own: bool,
        conditional: bool,
        request: bool,
    },
    Clear {
        by: By,
    },
    SetSubject {
        by: By,
        clear: bool,
        conditional: bool,
    },
    /// `offset`: distance of the new token in the list of tokens. None: the server creates it.
    Rotate {
        by: By,
        offset: Option<usize>,
        login: bool,
        conditional: bool,
        request: bool,
    },
    Delete {
        by: By,
        request: bool,
    },
    /// Retries the last call of the client that had a request id.
    Retry,
}

/// The actions of each client, in order.
pub type Plan = Vec<Vec<Action>>;

fn plan() -> impl Strategy<Value = Plan> {
    let by = || prop_oneof![2 => Just(By::Id), 4 => (0..TOKENS).prop_map(By::Token), 2 => Just(By::OwnToken)];
    let flag = any::<bool>;
    let rarely = || prop::bool::weighted(0.2);
    let action = prop_oneof![
        1 => Just(Action::Create),
        4 => (by(), flag()).prop_map(|(by, touch)| Action::Get { by, touch }),
        1 => by().prop_map(|by| Action::Touch { by }),
        5 => (by(), flag(), flag(), flag())
            .prop_map(|(by, own, conditional, request)| Action::Set { by, own, conditional, request }),
        1 => by().prop_map(|by| Action::Clear { by }),
        2 => (by(), flag(), flag()).prop_map(|(by, clear, conditional)| Action::SetSubject { by, clear, conditional }),
        6 => (by(), option::weighted(0.8, 1..TOKENS), rarely(), rarely(), flag()).prop_map(
            |(by, offset, login, conditional, request)| Action::Rotate { by, offset, login, conditional, request }
        ),
        1 => (by(), flag()).prop_map(|(by, request)| Action::Delete { by, request }),
        1 => Just(Action::Retry),
    ];
    (2..=4usize).prop_flat_map(move |clients| {
        let each = prop::collection::vec(action.clone(), 2..=CALLS / clients);
        prop::collection::vec(each, clients..=clients)
    })
}

pub fn plan_of(seed: u64) -> Plan {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes[8] = 1;
    let random = TestRng::from_seed(RngAlgorithm::XorShift, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), random);
    plan().new_tree(&mut runner).expect("the strategy generates a plan").current()
}

/// Returns the seed of the first round. Replay a failure with `SEED=<seed> cargo test --test linearizable`.
pub fn first_seed() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "a setting of the test, not of the service")]
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| getrandom::u64().unwrap() >> 16)
}
