//! A slot of a Cluster whose keys are on two nodes: reads are answered from the record on either node. Writes, and reads that
//! only a script decides, wait for the end of the migration or fail unapplied.

use std::{collections::BTreeSet, time::Duration};

use harness::{
    Client, Redis, Server, Status,
    client::*,
    cluster::{Cluster, PREFIX, SlotMove},
    eventually,
    servers::run_blocking,
    tokens::*,
    writers::{assert_complete_in_order, write_sessions_during},
};
use sessiond_client::v1::{
    CreateSessionRequest, EventType, GetSessionRequest, ListSessionsRequest, RotateSessionRequest, Session, SessionKey,
    SessionView, TokenState, TouchSessionRequest, WatchRequest,
};
use tokio::time::{Instant, sleep};
use tonic::Code;

/// Policies under which every touch is due, almost every touch, or none; and one without grace periods.
const POLICIES: &str = "[default_policy]\ntouch_interval = '0s'\n[namespace.often]\ntouch_interval = '1ms'\n\
                        [namespace.rare]\nidle_timeout = '12h'\ntouch_interval = '30m'\n\
                        [namespace.strict]\nrotation_grace = '0s'";
const NAMESPACES: [&str; 3] = [NAMESPACE, "often", "rare"];
/// Time that calls wait before the test ends the migration.
const WAIT: Duration = Duration::from_millis(300);

/// A cluster, and two servers with all sessions in one slot.
struct Rig {
    cluster: Cluster,
    /// Client of the server whose calls wait 10 s, longer than any migration takes.
    client: Client,
    /// Client of the server whose calls wait 1 s.
    impatient: Client,
    _servers: [Server; 2],
    slot: u16,
}

impl Rig {
    async fn start() -> Self {
        let cluster = run_blocking(|| Cluster::start(0)).await;
        let servers = [start_server(&cluster, "10s").await, start_server(&cluster, "1s").await];
        let slot = cluster.slot_of(&cluster.keys(&format!("{PREFIX}*:meta")).remove(0));
        let (client, impatient) = (servers[0].client().await, servers[1].client().await);
        Rig { cluster, client, impatient, _servers: servers, slot }
    }

    /// Creates two sessions in each namespace. Returns them with their clients and tokens.
    async fn create_two_in_each_namespace(&self) -> Vec<(Client, Session, String)> {
        let mut sessions = Vec::new();
        for namespace in NAMESPACES.into_iter().flat_map(|namespace| [namespace; 2]) {
            let client = self.client.in_namespace(namespace);
            let (session, token) = client.create(&[("a", text("1"))]).await;
            sessions.push((client, session, token));
        }
        sessions
    }

    /// Owner of the slot, and another node.
    fn nodes(&self) -> (Redis, Redis) {
        let from = self.cluster.primary_of_slot(self.slot);
        let to = self.cluster.primaries().into_iter().find(|node| node.port() != from.port()).unwrap();
        (from, to)
    }

    /// Starts a migration of the slot and moves the keys that end with one of these texts.
    fn half_move(&self, moved: &[&str]) -> SlotMove {
        let moving = self.cluster.start_slot_move(self.slot, &self.nodes().1);
        assert_eq!(moving.step_where(|key| moved.iter().any(|end| key.ends_with(end))), moved.len());
        moving
    }

    /// Runs the calls, and `end` after they have waited.
    async fn while_waiting<T>(&self, calls: impl Future<Output = T>, end: impl FnOnce() + Send + 'static) -> T {
        let ending = async {
            sleep(WAIT).await;
            run_blocking(end).await;
        };
        tokio::join!(calls, ending).0
    }
}

/// Starts a server with one partition, so that all keys are in one slot.
async fn start_server(cluster: &Cluster, call_timeout: &str) -> Server {
    let toml = format!("partitions = 1\nlimits.call_timeout = '{call_timeout}'\n{POLICIES}");
    Server::start(&cluster.url(), PREFIX, &toml).await
}

/// Reads a session in this view.
async fn get(client: &Client, key: Option<SessionKey>, view: SessionView, touch: bool) -> Session {
    let request =
        GetSessionRequest { namespace: client.namespace.clone(), key, touch, view: view.into(), ..Default::default() };
    client.grpc.clone().get_session(request).await.unwrap().into_inner().session.unwrap()
}

/// The session in the BASIC view.
fn basic(session: &Session) -> Session {
    Session { attributes: Default::default(), ..session.clone() }
}

/// Checks that a call failed at its deadline because of the migration, and was not applied.
#[track_caller]
fn expect_migrating<T>(result: CallResult<T>) {
    let status = expect_error(result, Code::Unavailable, "STORE_UNAVAILABLE");
    assert!(status.message().contains("migrating") && status.message().ends_with("nothing was applied"), "{status:?}");
}

fn ids(sessions: impl IntoIterator<Item = Session>) -> BTreeSet<String> {
    sessions.into_iter().map(|session| session.id).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_reads_are_answered_on_both_nodes() {
    let rig = Rig::start().await;
    let sessions = rig.create_two_in_each_namespace().await;
    let moved: Vec<&str> = sessions.iter().step_by(2).map(|(_, session, _)| &session.id[..]).collect();
    let moving = rig.half_move(&moved);
    for (client, session, token) in &sessions {
        for key in [by_token(token), by_id(&session.id)] {
            // A touch that is due and cannot be written.
            for touch in [false, true] {
                assert_eq!(get(client, key.clone(), SessionView::Full, touch).await, *session);
                assert_eq!(get(client, key.clone(), SessionView::Basic, touch).await, basic(session));
            }
            let request = TouchSessionRequest { namespace: client.namespace.clone(), key };
            let touched = client.grpc.clone().touch_session(request).await.unwrap().into_inner();
            assert_eq!(touched.expire_time, session.expire_time);
        }
    }
    run_blocking(move || moving.finish()).await;
    for (client, session, token) in &sessions {
        let touched = client.touch(by_token(token)).await.unwrap();
        assert_eq!(touched.access_time == session.access_time, client.namespace == "rare", "the touch is written");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_first_use_is_answered_not_recorded() {
    let rig = Rig::start().await;
    let mut sessions = Vec::new();
    for (client, session, first) in rig.create_two_in_each_namespace().await {
        let second = client.rotate(&first).await.unwrap();
        sessions.push((client, session, first, second));
    }
    let moved: Vec<&str> = sessions.iter().step_by(2).map(|(_, session, ..)| &session.id[..]).collect();
    let moving = rig.half_move(&moved);
    for (client, session, _, second) in &sessions {
        assert_eq!(client.token_state(second).await.unwrap(), TokenState::Current);
        let touched = client.touch(by_token(second)).await.unwrap();
        assert_eq!((&touched.attributes, touched.access_time), (&session.attributes, session.access_time));
        client.watch(token_watch_request(second)).await.unwrap().bookmark().await;
    }
    run_blocking(move || moving.finish()).await;
    for (client, _, first, second) in &sessions {
        assert_eq!(&client.rotate(first).await.unwrap(), second, "the successor was not presented yet");
        client.get(by_token(second)).await.unwrap();
        expect_error(client.rotate(first).await, Code::NotFound, "TOKEN_ROTATED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_reads_are_answered_on_new_connections() {
    let rig = Rig::start().await;
    let client = &rig.impatient;
    let (session, token) = client.create(&[]).await;
    let request = || ListSessionsRequest { namespace: NAMESPACE.into(), ..Default::default() };
    let moving = rig.half_move(&[&session.id]);
    let (from, to) = rig.nodes();
    for _ in 0..5 {
        for node in [&from, &to] {
            node.must(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
        let mut grpc = client.grpc.clone();
        let (listed, read) = tokio::join!(
            answered_after_reconnect(async || grpc.list_sessions(request()).await),
            answered_after_reconnect(async || client.get(by_token(&token)).await),
        );
        assert_eq!((&listed.into_inner().sessions[..], read), (&[basic(&session)][..], session.clone()));
    }
    run_blocking(move || moving.finish()).await;
}

/// Repeats a read while the server reconnects to Redis. No attempt may wait for the migration.
async fn answered_after_reconnect<T>(mut read: impl AsyncFnMut() -> CallResult<T>) -> T {
    eventually("the server has reconnected", async || match read().await {
        Err(status) if status.message().contains("migrating") => panic!("{status:?}"),
        read => read.ok(),
    })
    .await
}

/// Reads whose answers depend on time, superseded tokens, tombstones or absence.
struct ScriptReads {
    superseded: String,
    reused: String,
    ended: String,
    expiring: String,
}

impl ScriptReads {
    async fn create(client: &Client) -> Self {
        let (_, superseded) = client.create(&[]).await;
        client.rotate(&superseded).await.unwrap();
        let strict = client.in_namespace("strict");
        let (_, reused) = strict.create(&[]).await;
        strict.rotate_and_use(&reused).await;
        let (_, ended) = client.create(&[]).await;
        client.delete(by_token(&ended)).await.unwrap();
        let brief = CreateSessionRequest { idle_timeout: seconds(2), ..Default::default() };
        let (_, expiring) = client.create_with(brief).await.unwrap();
        ScriptReads { superseded, reused, ended, expiring }
    }

    fn ids(&self) -> Vec<String> {
        [&self.superseded, &self.reused, &self.ended, &self.expiring].map(|token| id_of(token)).to_vec()
    }

    /// Reads with each token, a wrong token, and unknown keys.
    async fn read(&self, client: &Client) -> [CallResult<TokenState>; 6] {
        let (wrong, unknown, strict) = (successor_of(&self.superseded), new_token(), client.in_namespace("strict"));
        let (superseded, reused, ended, expiring, wrong, unknown) = tokio::join!(
            client.token_state(&self.superseded),
            strict.token_state(&self.reused),
            client.token_state(&self.ended),
            client.token_state(&self.expiring),
            client.token_state(&wrong),
            client.token_state(&unknown),
        );
        [superseded, reused, ended, expiring, wrong, unknown]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_reads_of_scripts_wait_for_its_end() {
    let rig = Rig::start().await;
    for is_moved in [false, true] {
        let reads = ScriptReads::create(&rig.client).await;
        let moved = if is_moved { reads.ids() } else { Vec::new() };
        let moving = rig.half_move(&moved.iter().map(|id| &id[..]).collect::<Vec<_>>());
        for read in reads.read(&rig.impatient).await {
            expect_migrating(read);
        }
        let [superseded, reused, ended, expiring, wrong, unknown] =
            rig.while_waiting(reads.read(&rig.client), move || moving.finish()).await;
        assert_eq!(superseded.unwrap(), TokenState::Superseded);
        expect_error(reused, Code::NotFound, "SESSION_ENDED");
        expect_error(ended, Code::NotFound, "SESSION_ENDED");
        assert!(expiring.is_ok() || expiring.unwrap_err().reason() == "SESSION_ENDED");
        expect_error(wrong, Code::NotFound, "SESSION_NOT_FOUND");
        expect_error(unknown, Code::NotFound, "SESSION_NOT_FOUND");
    }
}

/// Sessions, each for one kind of write.
struct Writes {
    updated: Session,
    rotated: (Session, String),
    logged_in: (Session, String),
    deleted: Session,
}

impl Writes {
    async fn create(client: &Client) -> Self {
        let (updated, _) = client.create(&[("a", text("1"))]).await;
        let (rotated, logged_in) = (client.create(&[]).await, client.create(&[]).await);
        let (deleted, _) = client.create(&[]).await;
        Writes { updated, rotated, logged_in, deleted }
    }

    fn ids(&self) -> [&str; 4] {
        [&self.updated, &self.rotated.0, &self.logged_in.0, &self.deleted].map(|session| &session.id[..])
    }

    /// Makes all writes at the same time, each with a request id if it can have one.
    async fn write(&self, client: &Client, subject: &str) -> [CallResult<()>; 6] {
        let rotation = RotateSessionRequest { request_id: id_of(&new_token()), ..rotation_of(&self.rotated.1) };
        let changed = [("a", text("2"))];
        let (update, rotate, login, delete, create, create_for) = tokio::join!(
            client.set(by_id(&self.updated.id), &changed),
            client.rotate_with(rotation),
            client.login_by_rotation(&self.logged_in.1, subject),
            client.delete(by_id(&self.deleted.id)),
            client.create_with(CreateSessionRequest::default()),
            client.create_with(CreateSessionRequest { subject: subject.into(), ..Default::default() }),
        );
        [update.map(drop), rotate.map(drop), login.map(drop), delete.map(drop), create.map(drop), create_for.map(drop)]
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_writes_wait_and_are_applied_once() {
    let rig = Rig::start().await;
    let client = &rig.client;
    let mut watching = client.watch_all().await;
    for round in 0..4 {
        let (writes, subject) = (Writes::create(client).await, format!("user{round}"));
        watching.events(4).await;
        let moved = match round {
            0 => Vec::new(),
            1 => writes.ids().to_vec(),
            2 => vec![":log"],
            _ => vec![":meta"],
        };
        let moving = rig.half_move(&moved);
        for written in writes.write(&rig.impatient, &subject).await {
            expect_migrating(written);
        }
        for (id, attributes) in [(&writes.updated.id, 1), (&writes.deleted.id, 0)] {
            assert_eq!(client.get(by_id(id)).await.unwrap().attributes.len(), attributes);
        }
        let written = rig.while_waiting(writes.write(client, &subject), move || moving.finish()).await;
        written.into_iter().for_each(Result::unwrap);
        let mut events: Vec<_> = watching.events_until_now().await.iter().map(|event| event.r#type()).collect();
        events.sort();
        let expected = [EventType::Created, EventType::Created, EventType::Updated, EventType::Rotated];
        assert_eq!(events, [&expected[..], &[EventType::Rotated, EventType::Ended]].concat(), "round {round}");
        assert_eq!(client.get(by_id(&writes.updated.id)).await.unwrap().attributes["a"], text("2"));
        for id in [&writes.rotated.0.id, &writes.logged_in.0.id] {
            assert_eq!(client.get(by_id(id)).await.unwrap().token_generation, 2);
        }
        assert!(!client.lives(&writes.deleted.id).await);
        assert_eq!(client.list_subject(&subject).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_moved_slot_lists_and_snapshots_are_complete() {
    let rig = Rig::start().await;
    let client = &rig.client;
    let mut created = Vec::new();
    for _ in 0..6 {
        let request = CreateSessionRequest {
            subject: "alice".into(),
            attributes: [("a".to_owned(), text("1"))].into(),
            ..Default::default()
        };
        created.push(client.create_with(request).await.unwrap().0);
    }
    let expected = ids(created.clone());
    let of_sessions: Vec<&str> = created.iter().step_by(2).map(|session| &session.id[..]).collect();
    // The due set and the subject index are read with one command each, too.
    for moved in [of_sessions, vec![":due:web", ":u:web:alice"]] {
        let moving = rig.half_move(&moved);
        assert_eq!(ids(client.list_subject("alice").await), expected);
        for view in [SessionView::Basic, SessionView::Full] {
            let request = ListSessionsRequest { namespace: NAMESPACE.into(), view: view.into(), ..Default::default() };
            let listed = client.grpc.clone().list_sessions(request).await.unwrap().into_inner().sessions;
            let attributes = usize::from(view == SessionView::Full);
            assert!(listed.iter().all(|session| session.attributes.len() == attributes));
            assert_eq!(ids(listed), expected);
            let request = WatchRequest { initial_state: true, view: view.into(), ..whole_namespace() };
            let mut watching = client.watch(request).await.unwrap();
            let snapshot = watching.snapshot().await;
            assert_eq!(ids(snapshot.into_iter().map(|event| event.session.unwrap())), expected);
        }
        run_blocking(move || moving.finish()).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slot_that_moves_under_writers_of_one_session_loses_none() {
    let rig = Rig::start().await;
    let other = start_server(&rig.cluster, "10s").await;
    let clients = [rig.client.clone(), other.client().await];
    let mut watching = clients[1].watch_all().await;
    let (session, token) = clients[0].create(&[]).await;
    let fault = async {
        for _ in 0..3 {
            let moving = rig.half_move(&[&session.id]);
            sleep(WAIT).await;
            assert_eq!(clients[0].get(by_token(&token)).await.unwrap().id, session.id);
            run_blocking(move || moving.finish()).await;
            sleep(WAIT).await;
        }
    };
    let written = write_sessions_during(&clients, std::slice::from_ref(&session), 0, fault).await;
    assert!(written.errors.is_empty(), "{:?}", written.errors);
    written.assert_acknowledged_kept(&clients[0]).await;
    let events = watching.events_until_now().await;
    assert_complete_in_order(&events, &written.acknowledged);
    assert_eq!(events.len(), written.acknowledged[&session.id].len(), "an update was applied twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn moved_slot_calls_reach_its_new_owner() {
    let rig = Rig::start().await;
    let client = &rig.client;
    let mut watching = client.watch_all().await;
    for round in 0..3 {
        let (session, token) = client.create(&[]).await;
        let (_, rotated) = client.create(&[]).await;
        let (_, first) = client.create(&[]).await;
        let second = client.rotate(&first).await.unwrap();
        watching.events(4).await;
        let calls = async {
            let value = [("a", text("1"))];
            let (read, touched, state, set, rotated) = tokio::join!(
                client.get(by_id(&session.id)),
                client.touch(by_token(&token)),
                client.token_state(&second),
                client.set(by_token(&token), &value),
                client.rotate(&rotated),
            );
            assert!([read.unwrap().id, touched.unwrap().id].iter().all(|id| *id == session.id));
            assert_eq!(state.unwrap(), TokenState::Current);
            assert_eq!(set.unwrap().attributes.len(), 1);
            assert_eq!(client.token_state(&rotated.unwrap()).await.unwrap(), TokenState::Current);
        };
        let to = rig.nodes().1;
        if round == 0 {
            // The map of the server is out of date: the first reply is MOVED.
            let (cluster, slot) = (rig.cluster.clone(), rig.slot);
            run_blocking(move || cluster.move_slot(slot, &to)).await;
            calls.await;
        } else {
            // The old owner replies MOVED, and the new one does not know yet that it owns the slot.
            let moving = rig.cluster.start_slot_move(rig.slot, &to);
            moving.assign_source_only();
            rig.while_waiting(calls, move || moving.finish()).await;
        }
        let mut events: Vec<_> = watching.events_until_now().await.iter().map(|event| event.r#type()).collect();
        events.sort();
        assert_eq!(events, [EventType::Updated, EventType::Rotated], "round {round}");
        expect_error(client.rotate(&first).await, Code::NotFound, "TOKEN_ROTATED");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aborted_migration_applies_waiting_writes_once() {
    let rig = Rig::start().await;
    let client = &rig.client;
    let writes = Writes::create(client).await;
    let mut watching = client.watch_all().await;
    let (from, _) = rig.nodes();
    let moving = rig.half_move(&[]);
    assert_eq!(client.get(by_id(&writes.updated.id)).await.unwrap(), writes.updated);
    for written in writes.write(&rig.impatient, "alice").await {
        expect_migrating(written);
    }
    let written = rig.while_waiting(writes.write(client, "alice"), move || moving.abort()).await;
    written.into_iter().for_each(Result::unwrap);
    assert_eq!(rig.nodes().0.port(), from.port());
    assert_eq!(watching.events_until_now().await.len(), 6, "each write is applied once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn write_pause_in_a_migration_leaves_reads_answered() {
    let rig = Rig::start().await;
    let client = &rig.impatient;
    let mut sessions = Vec::new();
    for namespace in NAMESPACES {
        for _ in 0..2 {
            let client = client.in_namespace(namespace);
            let (session, token) = client.create(&[("a", text("1"))]).await;
            let (unused, first) = client.create(&[]).await;
            let second = client.rotate(&first).await.unwrap();
            sessions.push((client, session, token, unused.id, second));
        }
    }
    let moved = sessions.iter().step_by(2).flat_map(|(_, session, _, unused, _)| [&session.id[..], &unused[..]]);
    let moving = rig.half_move(&moved.collect::<Vec<_>>());
    let (from, to) = rig.nodes();
    for node in [from, to] {
        node.must(&["CLIENT", "PAUSE", "600000", "WRITE"]);
        // Replies of one node do not show that the other one is slow: all sessions are read at the same time.
        let reads = sessions.iter().map(async |(client, session, token, _, second)| {
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(2) {
                for key in [by_token(token), by_id(&session.id)] {
                    assert_eq!(client.get(key.clone()).await.unwrap().attributes, session.attributes);
                    assert_eq!(client.touch(key).await.unwrap().attributes, session.attributes);
                }
                assert_eq!(client.token_state(second).await.unwrap(), TokenState::Current);
                sleep(Duration::from_millis(10)).await;
            }
        });
        futures_util::future::join_all(reads).await;
        node.must(&["CLIENT", "UNPAUSE"]);
    }
    run_blocking(move || moving.finish()).await;
    for (_, session, ..) in &sessions {
        let client = rig.client.in_namespace(&session.namespace);
        client.set(by_id(&session.id), &[("a", text("2"))]).await.unwrap();
    }
}
