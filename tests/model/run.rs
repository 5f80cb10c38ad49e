//! Converts commands to calls, sends them, and compares their replies with the contract.

use std::collections::BTreeMap;

use sessiond_client::v1::{
    Authentication, CreateSessionRequest, DeleteSessionRequest, DeleteSubjectSessionsRequest, GetSessionRequest,
    ListSessionsRequest, RotateSessionRequest, SessionKey, SessionView, TouchSessionRequest, UpdateSessionRequest,
};

use crate::commands::{By, Changes, Command, Condition, SLOTS, Step, subject_name};
use harness::contract::{
    Call, Reply, Rules,
    namespace::Namespace,
    state::{Known, State},
};
use harness::{Client, client::*};

/// The session of a slot.
struct Slot {
    /// Token for CreateSession.
    token: String,
    /// The last call with a request id.
    last: Option<Call>,
}

impl Slot {
    fn new() -> Self {
        Slot { token: new_token(), last: None }
    }
}

/// The state of a running case.
pub struct Run<'a> {
    clients: &'a [Client; 2],
    slots: Vec<Slot>,
    pub model: Namespace,
    requests: u32,
}

impl<'a> Run<'a> {
    pub fn new(clients: &'a [Client; 2], rules: Rules) -> Self {
        let slots = (0..SLOTS).map(|_| Slot::new()).collect();
        Run { clients, slots, model: Namespace::new(rules), requests: 0 }
    }

    fn namespace(&self) -> String {
        self.clients[0].namespace.clone()
    }

    fn id(&self, slot: usize) -> String {
        id_of(&self.slots[slot].token)
    }

    /// Returns the tokens of the session of the slot, the oldest first.
    fn tokens(&self, slot: usize) -> Vec<String> {
        match self.model.state(&self.id(slot)) {
            State::Live(live) => live.tokens.into_iter().map(|token| token.text).collect(),
            State::Ended(tombstone) if !tombstone.tokens.is_empty() => tombstone.tokens,
            State::Ended(_) | State::NotCreated => vec![self.slots[slot].token.clone()],
        }
    }

    fn token(&self, slot: usize, by: By) -> String {
        let tokens = self.tokens(slot);
        match by {
            By::Id | By::Current => tokens[tokens.len() - 1].clone(),
            By::Superseded(age) => tokens[(tokens.len() - 1).saturating_sub(age).saturating_sub(1)].clone(),
            By::First => self.slots[slot].token.clone(),
            By::WrongSecret => successor_of(&tokens[0]),
        }
    }

    fn key(&self, slot: usize, by: By) -> Option<SessionKey> {
        if let By::Id = by { by_id(&self.id(slot)) } else { by_token(&self.token(slot, by)) }
    }

    fn request_id(&mut self, wanted: bool) -> String {
        self.requests += 1;
        if wanted { format!("request-{:010}", self.requests) } else { String::new() }
    }

    fn revision(&self, slot: usize, condition: Condition) -> i64 {
        match (self.model.state(&self.id(slot)), condition) {
            (State::Live(live), Condition::Current) => match live.revision {
                Known::Exactly(revision) | Known::AtLeast(revision) => revision,
            },
            _ => 1,
        }
    }

    pub async fn run(&mut self, (command, slot, server): Step) -> Result<(), String> {
        if let Command::RotateOften = command {
            for _ in 0..18 {
                let (namespace, token) = (self.namespace(), self.token(slot, By::Current));
                let call = Call::Rotate(RotateSessionRequest { namespace, token, ..Default::default() });
                self.send(call, slot, server).await?;
            }
            return Ok(());
        }
        match self.call(command, slot) {
            Some(call) => self.send(call, slot, server).await,
            None => Ok(()),
        }
    }

    async fn send(&mut self, call: Call, slot: usize, server: usize) -> Result<(), String> {
        let reply = call.send(&self.clients[server]).await;
        let result = self.model.check(&call, &reply);
        result.map_err(|expected| format!("{call:?}\nreply: {reply:?}\n{expected}"))?;
        if let (Call::Create(_), Reply::Session(_, token, _)) = (&call, reply)
            && !token.is_empty()
        {
            self.slots[slot].token = token;
        }
        if !call.request_id().is_empty() {
            self.slots[slot].last = Some(call);
        }
        Ok(())
    }

    /// Returns the call of a command. None: there is no call to retry.
    fn call(&mut self, command: Command, slot: usize) -> Option<Call> {
        let namespace = self.namespace();
        Some(match command {
            Command::Create { new_id, by_server, subject, label: of, request } => {
                if new_id || by_server {
                    self.slots[slot] = Slot::new();
                }
                Call::Create(CreateSessionRequest {
                    namespace,
                    subject: subject_name(subject),
                    labels: label(of),
                    attributes: [("created".to_owned(), json("true"))].into(),
                    token: if by_server { String::new() } else { self.slots[slot].token.clone() },
                    request_id: self.request_id(request && !by_server),
                    ..Default::default()
                })
            }
            Command::Get { by, touch } => {
                Call::Get(GetSessionRequest { namespace, key: self.key(slot, by), touch, ..Default::default() })
            }
            Command::Touch { by } => Call::Touch(TouchSessionRequest { namespace, key: self.key(slot, by) }),
            Command::Update { by, changes } => self.update(slot, by, changes),
            Command::Rotate { by, by_server, known, without_grace, changes } => {
                let (token, first) = (self.token(slot, by), self.tokens(slot).swap_remove(0));
                let new_token = match known {
                    true if first != token => first,
                    _ if by_server => String::new(),
                    _ => successor_of(&token),
                };
                let grace_period = without_grace.then(|| seconds(0)).flatten();
                let Call::Update(update) = self.update(slot, by, changes) else { unreachable!() };
                rotation(RotateSessionRequest { token, new_token, grace_period, ..Default::default() }, update)
            }
            Command::RotateOften => unreachable!("`run` sends several calls for it"),
            Command::Delete { by, cause, request } => {
                let (key, request_id) = (self.key(slot, by), self.request_id(request));
                Call::Delete(DeleteSessionRequest { namespace, key, request_id, cause: cause.into() })
            }
            Command::DeleteSubject { subject, except, cause } => Call::DeleteSubject(DeleteSubjectSessionsRequest {
                namespace,
                subject: subject_name(subject),
                except_id: if except { self.id(slot) } else { String::new() },
                cause: cause.into(),
                created_before: None,
            }),
            Command::List { subject, label: of, page_size } => Call::List(ListSessionsRequest {
                namespace,
                subject: subject.map(subject_name),
                labels: label(of),
                page_size,
                view: SessionView::Full.into(),
                ..Default::default()
            }),
            Command::Retry { altered: false } => self.slots[slot].last.clone()?,
            Command::Retry { altered: true } => match self.slots[slot].last.clone()? {
                Call::Create(request) => {
                    Call::Create(CreateSessionRequest { subject: request.subject + "x", ..request })
                }
                Call::Update(request) => Call::Update(UpdateSessionRequest { touch: !request.touch, ..request }),
                Call::Rotate(request) => {
                    Call::Rotate(RotateSessionRequest { clear_attributes: !request.clear_attributes, ..request })
                }
                last => last,
            },
        })
    }

    fn update(&mut self, slot: usize, by: By, changes: Changes) -> Call {
        let attribute = |name: u8| format!("a{name}");
        let set = |(name, value): (u8, u8)| (attribute(name), text(&"v".repeat(usize::from(value) * 100)));
        let remove = changes.remove.filter(|name| changes.set.is_none_or(|(set, _)| set != *name));
        let methods = vec!["pwd".to_owned()];
        Call::Update(UpdateSessionRequest {
            namespace: self.namespace(),
            key: self.key(slot, by),
            set_attributes: changes.set.map(set).into_iter().collect(),
            remove_attributes: remove.map(attribute).into_iter().collect(),
            clear_attributes: changes.clear,
            set_labels: label(changes.label),
            remove_labels: if changes.unlabel && changes.label.is_none() { vec!["label".into()] } else { vec![] },
            subject: changes.subject.map(subject_name),
            authentication: changes.level.map(|level| Authentication { level, methods, authentication_time: None }),
            idle_timeout: changes.short.and_then(|short| seconds(if short { 1200 } else { 1800 })),
            touch: changes.touch,
            if_revision: changes.condition.map(|condition| self.revision(slot, condition)),
            view: SessionView::Full.into(),
            request_id: self.request_id(changes.request),
            ..Default::default()
        })
    }
}

fn label(label: Option<u8>) -> BTreeMap<String, String> {
    label.map(|label| ("label".to_owned(), label.to_string())).into_iter().collect()
}

/// Returns a rotation with the tokens and grace period of `tokens` and the other fields of the update.
fn rotation(tokens: RotateSessionRequest, update: UpdateSessionRequest) -> Call {
    Call::Rotate(RotateSessionRequest {
        namespace: update.namespace,
        request_id: update.request_id,
        subject: update.subject,
        authentication: update.authentication,
        set_attributes: update.set_attributes,
        remove_attributes: update.remove_attributes,
        clear_attributes: update.clear_attributes,
        if_revision: update.if_revision,
        ..tokens
    })
}
