//! A history that one client made, and what it must not be.

use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, RotateSessionRequest, SessionView,
    UpdateSessionRequest,
};

use crate::{
    contract::{Answer, Call, Rules},
    harness::{Client, client::*},
    history::{Clock, Recorded, is_linearizable, list},
};

/// The history of a session, and its calls.
pub struct Story {
    client: Client,
    rules: Rules,
    clock: Clock,
    first: String,
    history: Vec<Recorded>,
}

impl Story {
    pub async fn begin(client: &Client, (namespace, rules): (&str, Rules)) -> Self {
        let (client, first) = (client.in_namespace(namespace), new_token());
        let mut story = Story { client, rules, clock: Clock::default(), first, history: Vec::new() };
        let token = story.first.clone();
        story
            .call(Call::Create(CreateSessionRequest { namespace: namespace.into(), token, ..Default::default() }))
            .await;
        story
    }

    async fn call(&mut self, call: Call) -> Answer {
        self.history.push(self.clock.record(&self.client, call).await);
        assert!(is_linearizable(&self.rules, &self.history), "{}", list(&self.history));
        self.last().clone()
    }

    pub async fn get(&mut self) -> Answer {
        let (namespace, key) = (self.client.namespace.clone(), by_id(&id_of(&self.first)));
        self.call(Call::Get(GetSessionRequest { namespace, key, ..Default::default() })).await
    }

    pub async fn set(&mut self, name: &str, if_revision: Option<i64>) -> Answer {
        let (namespace, key) = (self.client.namespace.clone(), by_id(&id_of(&self.first)));
        let (set_attributes, view) = ([(name.to_owned(), text("x"))].into(), SessionView::Full.into());
        let rest = UpdateSessionRequest::default();
        self.call(Call::Update(UpdateSessionRequest { namespace, key, set_attributes, if_revision, view, ..rest }))
            .await
    }

    pub async fn delete(&mut self) -> Answer {
        let (namespace, key) = (self.client.namespace.clone(), by_id(&id_of(&self.first)));
        self.call(Call::Delete(DeleteSessionRequest { namespace, key, ..Default::default() })).await
    }

    pub async fn rotate(&mut self) -> Answer {
        let (namespace, token) = (self.client.namespace.clone(), self.first.clone());
        let new_token = successor_of(&token);
        self.call(Call::Rotate(RotateSessionRequest { namespace, token, new_token, ..Default::default() })).await
    }

    fn last(&mut self) -> &mut Answer {
        &mut self.history.last_mut().expect("something was called").answer
    }

    /// Had the last call been answered so, the history would be wrong; even if all calls that made it had been under way
    /// at once with those before them, where `at_once`.
    pub fn cannot_end_with(mut self, answer: Answer, at_once: bool) {
        *self.last() = answer;
        if at_once {
            let called = self.history[0].returned;
            let returned = self.history.last().expect("something was called").returned;
            for recorded in &mut self.history[1..] {
                (recorded.called, recorded.returned) = (called, returned);
            }
        }
        assert!(!is_linearizable(&self.rules, &self.history), "{}", list(&self.history));
    }
}
