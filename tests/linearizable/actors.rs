//! Clients that work on one session at once, each by its plan.

use futures_util::future::join_all;
use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, RotateSessionRequest, SessionKey, SessionView,
    TouchSessionRequest, UpdateSessionRequest,
};

use crate::{
    contract::{Answer, Call},
    harness::{Client, client::*},
    history::{Clock, Recorded},
    plan::{Action, By, Plan, TOKENS},
};

/// One of the clients that work on a session at once.
struct Actor<'a> {
    number: usize,
    client: Client,
    tokens: &'a [String],
    mine: String,
    revision: Option<i64>,
    last: Option<Call>,
}

impl Actor<'_> {
    fn token(&self, by: By) -> String {
        match by {
            By::Token(place) => self.tokens[place].clone(),
            By::Mine | By::Id => self.mine.clone(),
        }
    }

    fn key(&self, by: By) -> Option<SessionKey> {
        if let By::Id = by { by_id(&id_of(&self.mine)) } else { by_token(&self.token(by)) }
    }

    /// None = there is nothing to repeat.
    fn call(&self, at: usize, action: Action) -> Option<Call> {
        let (namespace, view) = (self.client.namespace.clone(), SessionView::Full.into());
        let request_id = |wanted| if wanted { format!("request-of-{}-{at:06}", self.number) } else { String::new() };
        let if_revision = |wanted| self.revision.filter(|_| wanted);
        let value = text(&format!("{}-{at}", self.number));
        let subject = format!("subject-of-{}", id_of(&self.mine));
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
            Action::Subject { by, leaves, conditional } => Call::Update(UpdateSessionRequest {
                namespace,
                key: self.key(by),
                subject: Some(if leaves { String::new() } else { subject }),
                if_revision: if_revision(conditional),
                view,
                ..Default::default()
            }),
            Action::Rotate { by, to, login, conditional, request } => {
                let token = self.token(by);
                let place = self.tokens.iter().position(|known| *known == token).unwrap_or(0);
                let new_token = to.map_or_else(String::new, |to| self.tokens[(place + to) % TOKENS].clone());
                Call::Rotate(RotateSessionRequest {
                    namespace,
                    request_id: request_id(request && to.is_some()),
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
            Action::Repeat => self.last.clone()?,
        })
    }

    async fn act(mut self, actions: &[Action], clock: &Clock) -> Vec<Recorded> {
        let mut history = Vec::new();
        for (at, action) in actions.iter().enumerate() {
            let Some(call) = self.call(at, *action) else { continue };
            let recorded = clock.record(&self.client, call).await;
            self.revision = recorded.answer.revision().or(self.revision);
            if let Answer::Session(_, token, _) = &recorded.answer {
                match &recorded.call {
                    _ if !token.is_empty() => self.mine.clone_from(token),
                    Call::Rotate(request) => self.mine.clone_from(&request.new_token),
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

/// What happens to a new session when clients go by the plan.
pub async fn happens(plan: &Plan, clients: &[Client; 2], namespace: &str) -> Vec<Recorded> {
    let first = new_token();
    let tokens: Vec<String> =
        (0..TOKENS).map(|place| if place == 0 { first.clone() } else { successor_of(&first) }).collect();
    let clock = Clock::default();
    let actor = |number: usize, revision| Actor {
        number,
        client: clients[number % 2].in_namespace(namespace),
        tokens: &tokens,
        mine: first.clone(),
        revision,
        last: None,
    };
    let mut history = actor(plan.len(), None).act(&[Action::Create], &clock).await;
    let made = history.first().and_then(|created| created.answer.revision());
    let acts = plan.iter().enumerate().map(|(number, actions)| actor(number, made).act(actions, &clock));
    let all = join_all(acts).await;
    history.extend(all.into_iter().flatten());
    history
}
