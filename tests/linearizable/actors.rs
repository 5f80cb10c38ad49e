//! Clients that call one session concurrently, each by its part of the plan.

use futures_util::future::join_all;
use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, RotateSessionRequest, SessionKey, SessionView,
    TouchSessionRequest, UpdateSessionRequest,
};

use crate::plan::{Action, By, Plan, TOKENS};
use harness::contract::{Call, Reply};
use harness::linearizability::{Clock, RecordedCall};
use harness::{Client, client::*};

/// One of the concurrent clients.
struct Actor<'a> {
    number: usize,
    client: Client,
    tokens: &'a [String],
    /// The last token that this client received.
    own_token: String,
    revision: Option<i64>,
    last: Option<Call>,
}

impl Actor<'_> {
    fn token(&self, by: By) -> String {
        match by {
            By::Token(index) => self.tokens[index].clone(),
            By::OwnToken | By::Id => self.own_token.clone(),
        }
    }

    fn key(&self, by: By) -> Option<SessionKey> {
        if let By::Id = by { by_id(&id_of(&self.own_token)) } else { by_token(&self.token(by)) }
    }

    /// Returns the call of an action. None: there is no call to retry.
    fn call(&self, at: usize, action: Action) -> Option<Call> {
        let (namespace, view) = (self.client.namespace.clone(), SessionView::Full.into());
        let request_id = |wanted| if wanted { format!("request-of-{}-{at:06}", self.number) } else { String::new() };
        let if_revision = |wanted| self.revision.filter(|_| wanted);
        let value = text(&format!("{}-{at}", self.number));
        let subject = format!("subject-of-{}", id_of(&self.own_token));
        Some(match action {
            Action::Create => Call::Create(CreateSessionRequest {
                namespace,
                token: self.tokens[0].clone(),
                request_id: request_id(true),
                ..Default::default()
            }),
            Action::Get { by, touch } => {
                Call::Get(GetSessionRequest { namespace, key: self.key(by), touch, ..Default::default() })
            }
            Action::Touch { by } => Call::Touch(TouchSessionRequest { namespace, key: self.key(by) }),
            Action::Set { by, own, conditional, request } => Call::Update(UpdateSessionRequest {
                namespace,
                key: self.key(by),
                set_attributes: [(if own { format!("of-{}", self.number) } else { "all".to_owned() }, value)].into(),
                if_revision: if_revision(conditional),
                request_id: request_id(request),
                view,
                ..Default::default()
            }),
            Action::Clear { by } => {
                let (key, clear_attributes) = (self.key(by), true);
                Call::Update(UpdateSessionRequest { namespace, key, clear_attributes, view, ..Default::default() })
            }
            Action::SetSubject { by, clear, conditional } => Call::Update(UpdateSessionRequest {
                namespace,
                key: self.key(by),
                subject: Some(if clear { String::new() } else { subject }),
                if_revision: if_revision(conditional),
                view,
                ..Default::default()
            }),
            Action::Rotate { by, offset, login, conditional, request } => {
                let token = self.token(by);
                let index = self.tokens.iter().position(|known| *known == token).unwrap_or(0);
                let new_token =
                    offset.map_or_else(String::new, |offset| self.tokens[(index + offset) % TOKENS].clone());
                Call::Rotate(RotateSessionRequest {
                    namespace,
                    request_id: request_id(request),
                    subject: login.then_some(subject),
                    if_revision: if_revision(conditional),
                    set_attributes: [("rotated".to_owned(), value)].into(),
                    new_token,
                    token,
                    ..Default::default()
                })
            }
            Action::Delete { by, request } => {
                let (key, request_id) = (self.key(by), request_id(request));
                Call::Delete(DeleteSessionRequest { namespace, key, request_id, cause: 0 })
            }
            Action::Retry => self.last.clone()?,
        })
    }

    async fn run(mut self, actions: &[Action], clock: &Clock) -> Vec<RecordedCall> {
        let mut history = Vec::new();
        for (at, action) in actions.iter().enumerate() {
            let Some(call) = self.call(at, *action) else { continue };
            let recorded = clock.record(&self.client, call).await;
            self.revision = recorded.reply.revision().or(self.revision);
            if let Reply::Session(_, token, _) = &recorded.reply {
                match &recorded.call {
                    _ if !token.is_empty() => self.own_token.clone_from(token),
                    Call::Rotate(request) => self.own_token.clone_from(&request.new_token),
                    _ => {}
                }
            }
            if !recorded.call.request_id().is_empty() {
                self.last = Some(recorded.call.clone());
            }
            history.push(recorded);
        }
        history
    }
}

/// Creates a session and runs the plan on it; returns the recorded calls.
pub async fn run_plan(plan: &Plan, clients: &[Client; 2], namespace: &str) -> Vec<RecordedCall> {
    let first = new_token();
    let tokens: Vec<String> =
        (0..TOKENS).map(|index| if index == 0 { first.clone() } else { successor_of(&first) }).collect();
    let clock = Clock::default();
    let actor = |number: usize, revision| Actor {
        number,
        client: clients[number % 2].in_namespace(namespace),
        tokens: &tokens,
        own_token: first.clone(),
        revision,
        last: None,
    };
    let mut history = actor(plan.len(), None).run(&[Action::Create], &clock).await;
    let created = history.first().and_then(|call| call.reply.revision());
    let runs = plan.iter().enumerate().map(|(number, actions)| actor(number, created).run(actions, &clock));
    let all = join_all(runs).await;
    history.extend(all.into_iter().flatten());
    history
}
