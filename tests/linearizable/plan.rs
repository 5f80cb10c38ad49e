//! What each client is going to do, made from a seed.

use proptest::{
    option,
    prelude::*,
    strategy::ValueTree,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};

/// Tokens that a session has, had, or may get.
pub const TOKENS: usize = 4;
/// Calls on one session by all clients together.
const CALLS: usize = 14;

/// How an action names the session.
#[derive(Clone, Copy, Debug)]
pub enum By {
    Id,
    /// One of the tokens that the session has, had, or may get.
    Token(usize),
    /// The last one that this client was told of.
    Mine,
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
    /// Sets an attribute of the client's own or one of everybody's.
    Set {
        by: By,
        own: bool,
        conditional: bool,
        request: bool,
    },
    Clear {
        by: By,
    },
    Subject {
        by: By,
        leaves: bool,
        conditional: bool,
    },
    /// `to`: how many tokens further; None = the server makes it.
    Rotate {
        by: By,
        to: Option<usize>,
        login: bool,
        conditional: bool,
        request: bool,
    },
    Delete {
        by: By,
        request: bool,
    },
    /// The client's last one that had a request id.
    Repeat,
}

/// What each client does, one action after another.
pub type Plan = Vec<Vec<Action>>;

fn plan() -> impl Strategy<Value = Plan> {
    let by = || prop_oneof![2 => Just(By::Id), 4 => (0..TOKENS).prop_map(By::Token), 2 => Just(By::Mine)];
    let flag = any::<bool>;
    let rarely = || prop::bool::weighted(0.2);
    let action = prop_oneof![
        1 => Just(Action::Create),
        4 => (by(), flag()).prop_map(|(by, touch)| Action::Get { by, touch }),
        1 => by().prop_map(|by| Action::Touch { by }),
        5 => (by(), flag(), flag(), flag())
            .prop_map(|(by, own, conditional, request)| Action::Set { by, own, conditional, request }),
        1 => by().prop_map(|by| Action::Clear { by }),
        2 => (by(), flag(), flag()).prop_map(|(by, leaves, conditional)| Action::Subject { by, leaves, conditional }),
        6 => (by(), option::weighted(0.8, 1..TOKENS), rarely(), rarely(), flag()).prop_map(
            |(by, to, login, conditional, request)| Action::Rotate { by, to, login, conditional, request }
        ),
        1 => (by(), flag()).prop_map(|(by, request)| Action::Delete { by, request }),
        1 => Just(Action::Repeat),
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
    plan().new_tree(&mut runner).expect("a plan can always be made").current()
}

/// The seed of the first round. To play a failing one again: SEED=<seed> cargo test --test linearizable
pub fn first_seed() -> u64 {
    #[expect(clippy::disallowed_methods, reason = "it is no setting of the service")]
    let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| getrandom::u64().unwrap() >> 16)
}
