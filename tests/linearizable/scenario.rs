//! A sequential history of one client, which is linearizable, and an altered end, which is not.

use sessiond_client::v1::{
    CreateSessionRequest, DeleteSessionRequest, GetSessionRequest, RotateSessionRequest, SessionView,
    UpdateSessionRequest,
};

use harness::contract::{Call, Reply, Rules};
use harness::linearizability::{Clock, RecordedCall, format_history, is_linearizable};
use harness::{Client, client::*};

/// The client, its session and its recorded calls.
pub struct Scenario {
    client: Client,
    rules: Rules,
    clock: Clock,
    first: String,
    history: Vec<RecordedCall>,
}

impl Scenario {
    pub async fn start(client: &Client, (namespace, rules): (&str, Rules)) -> Self {
        let (client, first) = (client.in_namespace(namespace), new_token());
        let mut scenario = Scenario { client, rules, clock: Clock::default(), first, history: Vec::new() };
        let token = scenario.first.clone();
        scenario
            .call(Call::Create(CreateSessionRequest { namespace: namespace.into(), token, ..Default::default() }))
            .await;
        scenario
    }

    async fn call(&mut self, call: Call) -> Reply {
        self.history.push(self.clock.record(&self.client, call).await);
        assert!(is_linearizable(&self.rules, &self.history), "{}", format_history(&self.history));
        self.last().clone()
    }

    pub async fn get(&mut self) -> Reply {
        let (namespace, key) = (self.client.namespace.clone(), by_id(&id_of(&self.first)));
        self.call(Call::Get(GetSessionRequest { namespace, key, ..Default::default() })).await
    }

    pub async fn set(&mut self, name: &str, if_revision: Option<i64>) -> Reply {
        let (namespace, key) = (self.client.namespace.clone(), by_id(&id_of(&self.first)));
        let (set_attributes, view) = ([(name.to_owned(), text("x"))].into(), SessionView::Full.into());
        let rest = UpdateSessionRequest::default();
        self.call(Call::Update(UpdateSessionRequest { namespace, key, set_attributes, if_revision, view, ..rest }))
            .await
    }

    pub async fn delete(&mut self) -> Reply {
        let (namespace, key) = (self.client.namespace.clone(), by_id(&id_of(&self.first)));
        self.call(Call::Delete(DeleteSessionRequest { namespace, key, ..Default::default() })).await
    }

    /// Rotates the first token; the server generates the successor.
    pub async fn rotate_by_server(&mut self) -> Reply {
        let (namespace, token) = (self.client.namespace.clone(), self.first.clone());
        self.call(Call::Rotate(RotateSessionRequest { namespace, token, ..Default::default() })).await
    }

    /// Rotates the first token to a new one of the caller.
    pub async fn rotate(&mut self) -> Reply {
        let (namespace, token) = (self.client.namespace.clone(), self.first.clone());
        let new_token = successor_of(&token);
        self.call(Call::Rotate(RotateSessionRequest { namespace, token, new_token, ..Default::default() })).await
    }

    fn last(&mut self) -> &mut Reply {
        &mut self.history.last_mut().expect("the history is not empty").reply
    }

    /// Asserts that the history is not linearizable if the last call has this reply. `concurrent`: not even if all
    /// calls after the first one run at the same time.
    pub fn assert_impossible_end(mut self, reply: Reply, concurrent: bool) {
        *self.last() = reply;
        if concurrent {
            let called = self.history[0].returned;
            let returned = self.history.last().expect("the history is not empty").returned;
            for recorded in &mut self.history[1..] {
                (recorded.called, recorded.returned) = (called, returned);
            }
        }
        assert!(!is_linearizable(&self.rules, &self.history), "{}", format_history(&self.history));
    }
}
