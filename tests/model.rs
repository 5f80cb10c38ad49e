//! Random commands over two servers, held against a small model: the model is the contract in a few lines.

mod harness;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicUsize, Ordering},
};

use harness::{Server, World, client::*};
use proptest::{prelude::*, test_runner::TestRunner};
use sessiond_client::v1::{
    AttributeValue, CreateSessionRequest, DeleteSessionRequest, EventType, ListSessionsRequest, SessionKey,
    SessionView, UpdateSessionRequest,
};
use tonic::Code;

const SLOTS: usize = 3;
const CASES: u32 = 60;

#[derive(Clone, Debug)]
enum Command {
    Create {
        request: bool,
    },
    Set {
        name: u8,
        value: u8,
        label: Option<u8>,
        request: bool,
    },
    Remove {
        name: u8,
        clear: bool,
    },
    SetIf {
        name: u8,
        stale: bool,
    },
    Subject(u8),
    Delete {
        by_token: bool,
        wrong: bool,
        request: bool,
    },
    Get {
        by_token: bool,
        wrong: bool,
    },
    /// Sends the slot's last mutation that had a request id once more.
    Repeat,
    List,
}

/// A command, the slot of the session that it is for, and the server that it goes to.
type Step = (Command, usize, usize);

fn step() -> impl Strategy<Value = Step> {
    let command = prop_oneof![
        2 => any::<bool>().prop_map(|request| Command::Create { request }),
        4 => (0..4u8, 0..3u8, proptest::option::of(0..2u8), any::<bool>())
            .prop_map(|(name, value, label, request)| Command::Set { name, value, label, request }),
        2 => (0..4u8, prop::bool::weighted(0.2)).prop_map(|(name, clear)| Command::Remove { name, clear }),
        2 => (0..4u8, any::<bool>()).prop_map(|(name, stale)| Command::SetIf { name, stale }),
        1 => (0..3u8).prop_map(Command::Subject),
        1 => (any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(by_token, wrong, request)| Command::Delete { by_token, wrong, request }),
        2 => (any::<bool>(), any::<bool>()).prop_map(|(by_token, wrong)| Command::Get { by_token, wrong }),
        2 => Just(Command::Repeat),
        1 => Just(Command::List),
    ];
    (command, 0..SLOTS, 0..2usize)
}

/// What the contract says a session holds.
#[derive(Clone, Debug, Default, PartialEq)]
struct Live {
    revision: i64,
    subject: String,
    attributes: BTreeMap<String, AttributeValue>,
    labels: BTreeMap<String, String>,
}

#[derive(Clone)]
enum Mutation {
    Create(CreateSessionRequest),
    Update(UpdateSessionRequest),
    /// And what it was answered.
    Delete(DeleteSessionRequest, bool),
}

#[derive(Clone, Default)]
enum State {
    #[default]
    Never,
    Live(Live),
    Ended,
}

struct Slot {
    token: String,
    state: State,
    last: Option<Mutation>,
}

struct Model<'a> {
    clients: &'a [Client; 2],
    slots: Vec<Slot>,
    /// Events that watchers are to be told.
    events: Vec<(String, EventType, i64)>,
    requests: u32,
}

impl Model<'_> {
    fn request_id(&mut self, wanted: bool) -> String {
        self.requests += 1;
        if wanted { format!("request-{:010}", self.requests) } else { String::new() }
    }

    fn note(&mut self, slot: usize, kind: EventType, revision: i64) {
        let id = id_of(&self.slots[slot].token);
        self.events.push((id, kind, revision));
    }

    async fn run(&mut self, (command, slot, server): Step) {
        let client = &self.clients[server].clone();
        let token = self.slots[slot].token.clone();
        let (id, key) = (id_of(&token), by_token(&token));
        let stranger = by_token(&format!("{}{}", &token[..31], &new_token()[31..]));
        match command {
            Command::Create { request } => {
                let request_id = self.request_id(request);
                self.create(client, slot, CreateSessionRequest { token, request_id, ..Default::default() }).await;
            }
            Command::Set { name, value, label, request } => {
                let set_attributes = [(format!("a{name}"), text(&"v".repeat(usize::from(value) * 100)))].into();
                let set_labels = label.map(|label| ("label".to_owned(), label.to_string())).into_iter().collect();
                let request_id = self.request_id(request);
                let update = UpdateSessionRequest { key, set_attributes, set_labels, request_id, ..Default::default() };
                self.update(client, slot, update).await;
            }
            Command::Remove { name, clear } => {
                let update = UpdateSessionRequest {
                    key: by_id(&id),
                    remove_attributes: vec![format!("a{name}")],
                    remove_labels: vec!["label".into()],
                    clear_attributes: clear,
                    ..Default::default()
                };
                self.update(client, slot, update).await;
            }
            Command::SetIf { name, stale } => {
                let current = if let State::Live(live) = &self.slots[slot].state { live.revision } else { 1 };
                let update = UpdateSessionRequest {
                    key,
                    set_attributes: [(format!("a{name}"), json("[1]"))].into(),
                    if_revision: Some(current - i64::from(stale && current > 1)),
                    ..Default::default()
                };
                self.update(client, slot, update).await;
            }
            Command::Subject(subject) => {
                let subject = Some(if subject == 0 { String::new() } else { subject.to_string() });
                self.update(client, slot, UpdateSessionRequest { key, subject, ..Default::default() }).await;
            }
            Command::Delete { by_token, wrong, request } => {
                let key = if wrong {
                    stranger
                } else if by_token {
                    key
                } else {
                    by_id(&id)
                };
                let request_id = self.request_id(request);
                let delete = DeleteSessionRequest { namespace: client.namespace.clone(), key, request_id, cause: 0 };
                self.delete(client, slot, delete, wrong).await;
            }
            Command::Get { by_token, wrong } => {
                let key = if wrong {
                    stranger
                } else if by_token {
                    key
                } else {
                    by_id(&id)
                };
                self.get(client, slot, key, wrong).await;
            }
            Command::Repeat => self.repeat(client, slot).await,
            Command::List => self.list(client).await,
        }
    }

    async fn get(&self, client: &Client, slot: usize, key: Option<SessionKey>, wrong: bool) {
        let answer = client.get(key).await;
        match &self.slots[slot].state {
            State::Live(live) if !wrong => assert_same(live, &answer.unwrap()),
            State::Ended if !wrong => drop(expect_error(answer, Code::NotFound, "SESSION_ENDED")),
            _ => drop(expect_error(answer, Code::NotFound, "SESSION_NOT_FOUND")),
        }
    }

    async fn create(&mut self, client: &Client, slot: usize, request: CreateSessionRequest) {
        let answer = client.create_as(request.clone()).await;
        match &self.slots[slot].state {
            State::Never => {
                let session = answer.unwrap().0;
                let live = Live { revision: session.revision, ..Live::default() };
                assert_same(&live, &session);
                self.slots[slot].state = State::Live(live);
                self.note(slot, EventType::Created, session.revision);
                self.remember(slot, &request.request_id.clone(), Mutation::Create(request));
            }
            State::Live(_) => drop(expect_error(answer, Code::AlreadyExists, "SESSION_EXISTS")),
            State::Ended => drop(expect_error(answer, Code::NotFound, "SESSION_ENDED")),
        }
    }

    async fn update(&mut self, client: &Client, slot: usize, request: UpdateSessionRequest) {
        let answer = client.update(request.clone()).await;
        let live = match &self.slots[slot].state {
            State::Live(live) => live.clone(),
            State::Never => return drop(expect_error(answer, Code::NotFound, "SESSION_NOT_FOUND")),
            State::Ended => return drop(expect_error(answer, Code::NotFound, "SESSION_ENDED")),
        };
        if request.if_revision.is_some_and(|revision| revision != live.revision) {
            return drop(expect_error(answer, Code::Aborted, "REVISION_MISMATCH"));
        }
        if request.subject.as_ref().is_some_and(|to| !to.is_empty() && !live.subject.is_empty() && *to != live.subject)
        {
            return drop(expect_error(answer, Code::FailedPrecondition, "SUBJECT_CHANGE"));
        }
        let mut after = live.clone();
        if request.clear_attributes {
            after.attributes.clear();
        }
        request.remove_attributes.iter().for_each(|name| drop(after.attributes.remove(name)));
        request.remove_labels.iter().for_each(|name| drop(after.labels.remove(name)));
        after.attributes.extend(request.set_attributes.clone());
        after.labels.extend(request.set_labels.clone());
        after.subject = request.subject.clone().unwrap_or(after.subject);
        let session = answer.unwrap();
        if after != live {
            assert!(session.revision > live.revision, "a change raises the revision");
            after.revision = session.revision;
            self.note(slot, EventType::Updated, session.revision);
        }
        assert_same(&after, &session);
        self.slots[slot].state = State::Live(after);
        self.remember(slot, &request.request_id.clone(), Mutation::Update(request));
    }

    async fn delete(&mut self, client: &Client, slot: usize, request: DeleteSessionRequest, wrong: bool) {
        let deleted = client.grpc.clone().delete_session(request.clone()).await.unwrap().into_inner().deleted;
        let ends = matches!(self.slots[slot].state, State::Live(_)) && !wrong;
        assert_eq!(deleted, ends);
        if !ends && matches!(self.slots[slot].state, State::Never) {
            // What it left there stops a create that is under way; this slot goes on with another session.
            self.slots[slot] = new_slot();
        }
        if ends {
            self.slots[slot].state = State::Ended;
            // Its revision is the event's alone.
            self.note(slot, EventType::Ended, 0);
            self.remember(slot, &request.request_id.clone(), Mutation::Delete(request, deleted));
        }
    }

    fn remember(&mut self, slot: usize, request_id: &str, mutation: Mutation) {
        if !request_id.is_empty() {
            self.slots[slot].last = Some(mutation);
        }
    }

    async fn repeat(&mut self, client: &Client, slot: usize) {
        let Some(last) = self.slots[slot].last.clone() else { return };
        let answer = match last {
            Mutation::Create(request) => client.create_as(request).await.map(|(session, _)| session),
            Mutation::Update(request) => client.update(request).await,
            Mutation::Delete(request, deleted) => {
                let again = client.grpc.clone().delete_session(request).await.unwrap().into_inner().deleted;
                return assert_eq!(again, deleted);
            }
        };
        match &self.slots[slot].state {
            State::Live(live) => assert_same(live, &answer.unwrap()),
            _ => drop(expect_error(answer, Code::NotFound, "SESSION_ENDED")),
        }
    }

    async fn list(&self, client: &Client) {
        let request = ListSessionsRequest {
            namespace: client.namespace.clone(),
            view: SessionView::Full.into(),
            ..Default::default()
        };
        let page = client.grpc.clone().list_sessions(request).await.unwrap().into_inner();
        assert_eq!(page.next_page_token, "");
        let mut expected = BTreeMap::new();
        for slot in &self.slots {
            if let State::Live(live) = &slot.state {
                expected.insert(id_of(&slot.token), live);
            }
        }
        assert_eq!(page.sessions.len(), expected.len());
        for session in &page.sessions {
            assert_same(expected[&session.id], session);
        }
    }
}

fn assert_same(live: &Live, session: &sessiond_client::v1::Session) {
    let held = Live {
        revision: session.revision,
        subject: session.subject.clone(),
        attributes: session.attributes.clone(),
        labels: session.labels.clone(),
    };
    assert_eq!(&held, live);
}

fn new_slot() -> Slot {
    Slot { token: new_token(), state: State::Never, last: None }
}

/// Every case has a namespace of its own.
async fn hold_against_the_model(servers: &[Server; 2], case: usize, steps: Vec<Step>) {
    let namespace = format!("case-{case}");
    let clients =
        [servers[0].client().await.in_namespace(&namespace), servers[1].client().await.in_namespace(&namespace)];
    let mut watching = clients[1].watch_all().await;
    let slots = (0..SLOTS).map(|_| new_slot()).collect();
    let mut model = Model { clients: &clients, slots, events: Vec::new(), requests: 0 };
    for step in steps {
        model.run(step).await;
    }
    let mut told: BTreeMap<String, Vec<(EventType, i64)>> = BTreeMap::new();
    for event in watching.everything_so_far().await {
        let revision = if event.r#type() == EventType::Ended { 0 } else { event.revision };
        told.entry(event.id.clone()).or_default().push((event.r#type(), revision));
    }
    let mut expected: BTreeMap<String, Vec<(EventType, i64)>> = BTreeMap::new();
    for (id, kind, revision) in &model.events {
        expected.entry(id.clone()).or_default().push((*kind, *revision));
    }
    assert_eq!(told, expected, "what watchers were told");
}

#[test]
fn random_commands_over_two_servers_do_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = World::shared();
    let servers = runtime.block_on(async { [world.server().await, world.server().await] });
    let cases = AtomicUsize::new(0);
    let config = ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() };
    TestRunner::new(config)
        .run(&proptest::collection::vec(step(), 1..40), |steps| {
            let case = cases.fetch_add(1, Ordering::Relaxed);
            let held = std::panic::AssertUnwindSafe(|| {
                runtime.block_on(hold_against_the_model(&servers, case, steps));
            });
            std::panic::catch_unwind(held).map_err(|_| TestCaseError::fail("see the panic above"))
        })
        .unwrap();
}
