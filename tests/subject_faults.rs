//! Subject indexes under faults: servers killed between two steps, lost replies, and entries altered by hand.

use std::{collections::BTreeSet, pin::pin};

use harness::{Client, Server, World, client::*, eventually, process::Process, proxy::Proxy};
use sessiond::{redis::Script, store::scripts};
use sessiond_client::v1::{
    Cause, CreateSessionRequest, EventType, RotateSessionRequest, SessionEvent, UpdateSessionRequest,
};
use tonic::Code;

const ONE: &str = "partitions = 1\n[default_policy]\nsession_limit = 1\n";
const RECONCILING: &str = "reconcile_interval = '1s'\npartitions = 1\n";
const RECONCILING_ONE: &str = "reconcile_interval = '1s'\npartitions = 1\n[default_policy]\nsession_limit = 1\n";

async fn ids_of(client: &Client, subject: &str) -> BTreeSet<String> {
    client.list_subject(subject).await.into_iter().map(|session| session.id).collect()
}

fn set_of(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn create_request(token: &str) -> CreateSessionRequest {
    let request_id = "request-id-000001".into();
    CreateSessionRequest { token: token.into(), subject: "alice".into(), request_id, ..Default::default() }
}

/// Ages alice's reservations so that the reconciler may remove them, and waits until her index is exact.
async fn wait_for_repair(world: &World, client: &Client) {
    world.age_index("alice");
    let live = ids_of(client, "alice").await;
    eventually("the index is exact", async || (world.index("alice") == live).then_some(())).await;
}

// ---- killed servers ----

/// A server that the test kills, and one that keeps running. The session limit is 1; alice has one session.
struct KilledServer {
    world: World,
    proxy: Proxy,
    process: Process,
    /// Client of the server that is killed.
    killed: Client,
    _survivor: Server,
    /// Client of the server that keeps running.
    client: Client,
    /// Id of alice's session.
    first: String,
}

impl KilledServer {
    async fn start() -> Self {
        let world = World::dedicated();
        let proxy = Proxy::start(&world.redis);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ONE).unwrap();
        let arguments = [format!("--redis={}", proxy.url()), format!("--config={}", file.path().display())];
        let process = tokio::task::spawn_blocking(move || Process::start(&arguments)).await.unwrap();
        let survivor = world.server_with(RECONCILING_ONE).await;
        let (killed, client) = (process.client().await, survivor.client().await);
        let (first, _) = client.create_for("alice").await;
        KilledServer { world, proxy, process, killed, _survivor: survivor, client, first: first.id }
    }

    /// Kills the server during this call: when Redis has run the script for the n-th time and its effect is visible.
    async fn kill_at<T>(
        &mut self,
        (script, nth): (&'static Script, u32),
        call: impl Future<Output = CallResult<T>>,
        is_done: impl AsyncFn(&World, &Client) -> bool,
    ) {
        self.proxy.hold_replies_after(script, nth);
        let (world, client, process) = (&self.world, &self.client, &mut self.process);
        let kill = async {
            eventually("the step is done", async || is_done(world, client).await.then_some(())).await;
            process.kill();
        };
        let (answer, ()) = tokio::join!(call, kill);
        assert!(answer.is_err(), "the killed server returned a response");
    }

    /// Asserts that alice has these sessions, that her index becomes exact, and that a new session replaces them.
    async fn assert_repaired(&self, live: &[&str]) {
        assert_eq!(ids_of(&self.client, "alice").await, set_of(live));
        wait_for_repair(&self.world, &self.client).await;
        assert_eq!(ids_of(&self.client, "alice").await, set_of(live), "the repair ended a session");
        let (next, _) = self.client.create_for("alice").await;
        assert_eq!(ids_of(&self.client, "alice").await, set_of(&[&next.id]));
        wait_for_repair(&self.world, &self.client).await;
        assert_eq!(self.world.index("alice"), set_of(&[&next.id]));
    }
}

/// The step of a create or login after which its server is interrupted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Reserved,
    OldestEnded,
    OldestRemoved,
    Applied,
}

impl Step {
    const ALL: [Step; 4] = [Step::Reserved, Step::OldestEnded, Step::OldestRemoved, Step::Applied];

    /// The script of the step and how often the server sends it; `applies` is the script of the last step.
    fn script(self, applies: (&'static Script, u32)) -> (&'static Script, u32) {
        match self {
            // The first reply is that the index is full.
            Step::Reserved => (&scripts::RESERVE, 2),
            Step::OldestEnded => (&scripts::END, 1),
            Step::OldestRemoved => (&scripts::REMOVE, 1),
            Step::Applied => applies,
        }
    }

    async fn is_done(self, world: &World, client: &Client, first: &str) -> bool {
        match self {
            Step::Reserved => world.index("alice").len() == 2,
            Step::OldestEnded => !client.lives(first).await,
            Step::OldestRemoved => !world.index("alice").contains(first),
            Step::Applied => ids_of(client, "alice").await.iter().any(|id| id != first),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_server_killed_during_a_create_keeps_the_limit() {
    for (step, token) in Step::ALL.into_iter().flat_map(|step| [(step, None), (step, Some(new_token()))]) {
        let mut servers = KilledServer::start().await;
        let first = servers.first.clone();
        let client = servers.killed.clone();
        let request = match &token {
            Some(token) => create_request(token),
            None => CreateSessionRequest { subject: "alice".into(), ..Default::default() },
        };
        let sent = if token.is_some() { 2 } else { 1 };
        let call = client.create_with(request);
        let stop = step.script((&scripts::CREATE, sent));
        servers.kill_at(stop, call, async |world, client| step.is_done(world, client, &first).await).await;
        let live = ids_of(&servers.client, "alice").await;
        match step {
            Step::Reserved => assert_eq!(live, set_of(&[&first])),
            Step::OldestEnded | Step::OldestRemoved => assert!(live.is_empty(), "{live:?}"),
            Step::Applied => assert!(live.len() == 1 && !live.contains(&first), "{live:?}"),
        }
        // A retry of the call creates the session, and the oldest one is gone.
        if let Some(token) = &token {
            let (session, _) = servers.client.create_with(create_request(token)).await.unwrap();
            assert_eq!(servers.client.create_with(create_request(token)).await.unwrap().0, session);
            servers.assert_repaired(&[&id_of(token)]).await;
        } else {
            let live: Vec<&str> = live.iter().map(String::as_str).collect();
            servers.assert_repaired(&live).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_server_killed_during_a_login_keeps_the_limit() {
    for (step, rotates) in Step::ALL.into_iter().flat_map(|step| [(step, false), (step, true)]) {
        let mut servers = KilledServer::start().await;
        let first = servers.first.clone();
        let (guest, token) = servers.client.create(&[]).await;
        let client = servers.killed.clone();
        let request_id = "request-id-000001";
        let successor = successor_of(&token);
        let login = async |client: &Client| {
            let subject = Some("alice".into());
            if rotates {
                let (token, new_token, request_id) = (token.clone(), successor.clone(), request_id.into());
                let request = RotateSessionRequest { token, new_token, subject, request_id, ..Default::default() };
                client.rotate_with(request).await.map(|(session, _)| session)
            } else {
                let (key, request_id) = (by_id(&guest.id), request_id.into());
                client.update(UpdateSessionRequest { key, subject, request_id, ..Default::default() }).await
            }
        };
        let script = if rotates { &scripts::ROTATE } else { &scripts::UPDATE };
        let stop = step.script((script, 2));
        servers.kill_at(stop, login(&client), async |world, client| step.is_done(world, client, &first).await).await;
        let kept = servers.client.get(by_id(&guest.id)).await.unwrap();
        assert_eq!(kept.subject, if step == Step::Applied { "alice" } else { "" }, "{step:?}");
        if step == Step::Reserved {
            assert_eq!(ids_of(&servers.client, "alice").await, set_of(&[&first]));
        }
        let session = login(&servers.client).await.unwrap();
        assert_eq!((&session.subject[..], login(&servers.client).await.unwrap()), ("alice", session.clone()));
        servers.assert_repaired(&[&guest.id]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guest_of_an_interrupted_login_lives_and_leaves_the_index() {
    let mut servers = KilledServer::start().await;
    let (guest, _) = servers.client.create(&[]).await;
    let (client, first) = (servers.killed.clone(), servers.first.clone());
    let login = client.login(by_id(&guest.id), "alice");
    let step = Step::Reserved;
    servers
        .kill_at(step.script((&scripts::UPDATE, 2)), login, async |world, client| {
            step.is_done(world, client, &first).await
        })
        .await;
    servers.assert_repaired(&[&first]).await;
    assert_eq!(servers.client.get(by_id(&guest.id)).await.unwrap(), guest);
    assert_eq!(servers.client.delete_subject("alice").await.unwrap(), 1);
    assert!(servers.client.lives(&guest.id).await, "the guest was ended with the subject");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_ended_by_a_killed_server_leaves_the_index() {
    for everywhere in [false, true] {
        let mut servers = KilledServer::start().await;
        let (client, first) = (servers.killed.clone(), servers.first.clone());
        let end = async {
            if everywhere {
                client.delete_subject("alice").await.map(drop)
            } else {
                client.delete(by_id(&first)).await.map(drop)
            }
        };
        let step = Step::OldestEnded;
        servers.kill_at((&scripts::END, 1), end, async |world, client| step.is_done(world, client, &first).await).await;
        assert_eq!(servers.world.index("alice"), set_of(&[&first]), "the entry was removed too early");
        servers.assert_repaired(&[]).await;
    }
}

// ---- lost or late replies ----

/// A short call timeout, so that a call without a reply ends soon.
const SHORT_TIMEOUT: &str = "partitions = 1\n[limits]\ncall_timeout = '700ms'\n[default_policy]\nsession_limit = 1\n";

/// A server whose connections to Redis go through a proxy, and one with direct connections. The session limit is 1; alice
/// has one session.
struct ProxiedServer {
    world: World,
    proxy: Proxy,
    _servers: [Server; 2],
    /// Client of the server behind the proxy.
    proxied: Client,
    /// Client of the other server.
    client: Client,
    /// Id of alice's session.
    first: String,
}

async fn proxied_server() -> ProxiedServer {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, SHORT_TIMEOUT).await;
    let direct = world.server_with(RECONCILING_ONE).await;
    let (proxied, client) = (server.client().await, direct.client().await);
    let (first, _) = client.create_for("alice").await;
    ProxiedServer { world, proxy, _servers: [server, direct], proxied, client, first: first.id }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_create_with_a_lost_response_at_any_step_can_be_retried() {
    for (step, cut) in Step::ALL.into_iter().flat_map(|step| [(step, true), (step, false)]) {
        let mut attempts = 1;
        while !loses_the_response_at(step, cut).await {
            attempts += 1;
            assert!(attempts <= 20, "{step:?}: the call always ends before the step");
        }
    }
}

/// Loses the response of a create at this step and retries the call. Returns false if the call ended before the step: on
/// a loaded machine its deadline may pass first, which proves nothing about the step.
async fn loses_the_response_at(step: Step, cut: bool) -> bool {
    let ProxiedServer { world, proxy, _servers, proxied, client, first } = proxied_server().await;
    let mut watching = client.watch_all().await;
    let token = new_token();
    let (script, nth) = step.script((&scripts::CREATE, 2));
    proxy.hold_replies_after(script, nth);
    let is_done = eventually("the step is done", async || step.is_done(&world, &client, &first).await.then_some(()));
    let mut call = pin!(proxied.create_with(create_request(&token)));
    let (answer, is_lost) = tokio::select! {
        answer = &mut call => {
            // Without the cut the deadline loses the reply; a call that succeeds does not wait for it.
            let is_lost = (!cut || answer.is_ok()) && step.is_done(&world, &client, &first).await;
            (answer, is_lost)
        }
        () = is_done => {
            // Without the cut the call's deadline passes before the reply arrives.
            if cut {
                proxy.cut();
                proxy.release_replies();
            }
            (call.await, true)
        }
    };
    proxy.release_replies();
    match answer {
        // The server need not wait until the ended session is removed from the index.
        Ok((session, _)) => assert!(step == Step::OldestRemoved && session.id == id_of(&token)),
        Err(status) => {
            let reasons = ["OUTCOME_UNKNOWN", "STORE_UNAVAILABLE", "STORE_TIMEOUT"];
            assert!(reasons.contains(&&status.reason()[..]), "{step:?}: {status:?}");
            let may_be_applied = status.reason() == "OUTCOME_UNKNOWN";
            assert!(may_be_applied || !client.lives(&id_of(&token)).await, "{step:?}: {status:?}");
        }
    }
    let session =
        eventually("the server is back", async || Some(proxied.create_with(create_request(&token)).await.ok()?.0))
            .await;
    assert_eq!(client.create_with(create_request(&token)).await.unwrap().0, session);
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&session.id]), "{step:?}");
    let events: Vec<SessionEvent> = watching.events_until_now().await;
    let received: Vec<_> = events.iter().map(|event| (event.r#type(), event.cause(), &event.id[..])).collect();
    let expected =
        [(EventType::Ended, Cause::Replaced, &first[..]), (EventType::Created, Cause::Unspecified, &session.id)];
    assert_eq!(received, expected, "{step:?}: each event once");
    wait_for_repair(&world, &client).await;
    is_lost
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_step_that_reaches_redis_too_late_changes_nothing() {
    for (stop, applied) in [((&scripts::RESERVE, 2), false), ((&scripts::END, 1), true)] {
        let ProxiedServer { world, proxy, _servers, proxied, client, first } = proxied_server().await;
        let mut watching = client.watch_all().await;
        let token = new_token();
        proxy.hold_replies_after(stop.0, stop.1);
        let step = if applied { Step::OldestEnded } else { Step::Reserved };
        let delay = async {
            eventually("the step is done", async || step.is_done(&world, &client, &first).await.then_some(())).await;
            // The proxy holds the next step back until the call is over.
            proxy.hold_requests();
            proxy.release_replies();
        };
        let (answer, ()) = tokio::join!(proxied.create_with(create_request(&token)), delay);
        assert_eq!(answer.unwrap_err().reason(), "OUTCOME_UNKNOWN");
        proxy.release_requests();
        eventually("the server is back", async || proxied.get(by_id(&id_of(&token))).await.err().filter(is_not_found))
            .await;
        let live = ids_of(&client, "alice").await;
        assert_eq!(live, if applied { BTreeSet::new() } else { set_of(&[&first]) });
        assert!(!client.lives(&id_of(&token)).await, "the session was created after the deadline");
        assert_eq!(watching.events_until_now().await.len(), usize::from(applied));
        wait_for_repair(&world, &client).await;
        assert_eq!(ids_of(&client, "alice").await, live, "the repair ended a session");
    }
}

fn is_not_found(status: &tonic::Status) -> bool {
    status.code() == Code::NotFound
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_delete_subject_sessions_is_outcome_unknown() {
    let ProxiedServer { world: _world, proxy, _servers, proxied, client, .. } = proxied_server().await;
    // The reply to the END script is lost; or that reply arrives, and none after it: then the sessions have ended.
    for (script, cut, expected) in [(&scripts::END, true, "OUTCOME_UNKNOWN"), (&scripts::REMOVE, false, "ended")] {
        // A call that fails before it has ended a session proves nothing and is made again: its deadline may pass, or the
        // connection on which it reads the index is not open again after the cut (calls by id use another one).
        let outcome = eventually("a call returns after it has ended a session", async || {
            let (session, _) = client.create_for("alice").await;
            proxy.hold_replies_after(script, 1);
            let has_ended = eventually("the session ends", async || (!client.lives(&session.id).await).then_some(()));
            let mut call = pin!(proxied.delete_subject("alice"));
            let answer = tokio::select! {
                answer = &mut call => answer,
                () = has_ended => {
                    if cut {
                        proxy.cut();
                        proxy.release_replies();
                    }
                    call.await
                }
            };
            proxy.release_replies();
            let outcome =
                answer.map_or_else(|status| status.reason(), |count| if count > 0 { "ended" } else { "" }.into());
            (!client.lives(&session.id).await).then_some(outcome)
        })
        .await;
        assert_eq!(outcome, expected, "{}", script.name);
    }
    assert_eq!(eventually("the server is back", async || proxied.delete_subject("alice").await.ok()).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_hanging_during_creates_keeps_limit_and_index_exact() {
    let world = World::dedicated();
    let toml = "partitions = 1\nreconcile_interval = '1s'\n[limits]\ncall_timeout = '700ms'\n[default_policy]\nsession_limit = 3\n";
    let servers = [world.server_with(toml).await, world.server_with(toml).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    let mut watching = clients[0].watch_all().await;
    for _ in 0..3 {
        let work = futures_util::future::join_all((0..32).map(async |n: usize| {
            let token = new_token();
            eventually("the create has an outcome", async || {
                match clients[n % 2].create_with(create_request(&token)).await {
                    Ok(_) => Some(()),
                    Err(status) if status.reason() == "SESSION_ENDED" => Some(()),
                    Err(_) => None,
                }
            })
            .await;
        }));
        let hang = async {
            eventually("the index has entries", async || (!world.index("alice").is_empty()).then_some(())).await;
            world.redis.pause();
            // Until the deadline of a call passes.
            clients[0].get(by_id(&id_of(&new_token()))).await.unwrap_err();
            world.redis.resume();
        };
        tokio::join!(work, hang);
        clients[1].create_for("alice").await;
        let live = ids_of(&clients[0], "alice").await;
        assert!(live.len() <= 3, "{live:?}");
    }
    let events = watching.events_until_now().await;
    let most = harness::index::max_concurrent(&events, "alice");
    assert_eq!(most, 3, "the limit must be reached and never exceeded");
    wait_for_repair(&world, &clients[0]).await;
}

/// An index entry is removed only if no late packet can create a session with its id.
#[tokio::test]
async fn s3_removed_entry_keeps_a_tombstone_longer_than_any_call() {
    let world = World::dedicated();
    let server = world.server_with(RECONCILING).await;
    let client = server.client().await;
    let tombstone = |id: &str| world.redis.keys(&format!("*:s:*:{id}")).pop();
    for by_reconciler in [true, false] {
        let (ended, _) = client.create_for("alice").await;
        client.create_for("alice").await;
        client.delete(by_id(&ended.id)).await.unwrap();
        let (ended_last, _) = client.create_for("alice").await;
        client.delete(by_id(&ended_last.id)).await.unwrap();
        eventually("the entries are removed", async || (world.index("alice").len() == 1).then_some(())).await;
        // An id whose tombstone is about to expire, one whose tombstone is not, and an id that never had a session.
        world.redis.command(&["PEXPIRE", &tombstone(&ended.id).unwrap(), "15000"]);
        let never = id_of(&new_token());
        let added = (world.now_us() - 60_000_000).to_string();
        let key = world.index_key("alice").unwrap();
        world.redis.command(&["ZADD", &key, &added, &ended.id, &added, &ended_last.id, &added, &never]);
        if !by_reconciler {
            client.delete_subject("alice").await.unwrap();
        }
        eventually("the entries are removed", async || {
            let index = world.index("alice");
            [&ended.id, &ended_last.id, &never].iter().all(|id| !index.contains(*id)).then_some(())
        })
        .await;
        for id in [&ended.id, &never] {
            let key = tombstone(id).expect("the id has a tombstone");
            assert!(world.redis.number(&["PTTL", &key]) > 30_000);
        }
        let kept = tombstone(&ended_last.id).expect("the session has a tombstone");
        assert!(world.redis.number(&["PTTL", &kept]) > 500_000, "its lifetime is not shortened");
        client.delete_subject("alice").await.unwrap();
    }
}

// ---- reconciliation ----

#[tokio::test]
async fn reconciliation_adds_live_and_removes_dead_entries() {
    let world = World::dedicated();
    let server = world.server_with(RECONCILING).await;
    let client = server.client().await;
    let (lost, _) = client.create_for("alice").await;
    let (kept, _) = client.create_for("alice").await;
    let (of_bob, _) = client.create_for("bob").await;
    let (guest, _) = client.create(&[]).await;
    let (gone, _) = client.create_for("carol").await;
    let key = world.index_key("alice").unwrap();
    let (old, young) = ("aaaaaaaaaaaaaaaaaaaaaaaaaa", "eaaaaaaaaaaaaaaaaaaaaaaaaa");
    world.redis.command(&["ZREM", &key, &lost.id]);
    // Deletes a session key without a notification.
    world.redis.command(&["DEL", &world.redis.keys(&format!("*:s:*:{}", gone.id))[0]]);
    world.age_index("carol");
    let now = world.now_us();
    for (n, id) in [&of_bob.id[..], &guest.id, old, "no id"].into_iter().enumerate() {
        world.redis.command(&["ZADD", &key, &(now - 60_000_000 + n as u64).to_string(), id]);
    }
    // The entry of a create in progress.
    world.redis.command(&["ZADD", &key, &(now + 3_600_000_000).to_string(), young]);
    let expected = set_of(&[&lost.id, &kept.id, young]);
    eventually("the index is repaired", async || (world.index("alice") == expected).then_some(())).await;
    eventually("carol's index is empty", async || world.index("carol").is_empty().then_some(())).await;
    assert_eq!(world.index("bob"), set_of(&[&of_bob.id]));
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&lost.id, &kept.id]));
    for id in [&lost.id, &kept.id, &of_bob.id, &guest.id] {
        assert!(client.lives(id).await, "the reconciliation ended a session");
    }
    eventually("repairs are counted", async || {
        (server.metric("sessiond_index_repairs_total").await >= 5.0).then_some(())
    })
    .await;
    assert_eq!(client.delete_subject("alice").await.unwrap(), 2);
}

#[tokio::test]
async fn one_of_several_instances_reconciles_once_per_interval() {
    let world = World::dedicated();
    let servers = [
        world.server_with(RECONCILING).await,
        world.server_with(RECONCILING).await,
        world.server_with(RECONCILING).await,
    ];
    let scans = || -> u64 {
        let stats = world.redis.command(&["INFO", "commandstats"]);
        let count = stats.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls="));
        count.map_or(0, |count| count.split(',').next().unwrap().parse().unwrap())
    };
    let (started, before) = (world.now_us(), scans());
    let done = eventually("several reconciliations", async || Some(scans() - before).filter(|done| *done >= 5)).await;
    let periods = (world.now_us() - started) / 1_000_000 + 1;
    assert!(done <= periods, "{done} reconciliations in {periods} intervals");
    drop(servers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interrupted_reconciliation_is_repeated_without_a_claim() {
    let world = World::dedicated();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, RECONCILING).await;
    let client = server.client().await;
    let (session, _) = client.create_for("alice").await;
    world.redis.command(&["ZREM", &world.index_key("alice").unwrap(), &session.id]);
    // No other worker runs this script.
    proxy.hold_replies_after(&scripts::MISSING_IN_INDEXES, 1);
    eventually("a reconciliation is in progress", async || proxy.is_holding_replies().then_some(())).await;
    let meta = world.redis.keys("*:meta").remove(0);
    // From now on other instances claim every interval.
    let claim = || world.redis.command(&["HSET", &meta, "reconciled", &(world.now_us() / 1000).to_string()]);
    claim();
    proxy.cut();
    proxy.release_replies();
    eventually("the index is repaired", async || {
        claim();
        (world.index("alice").len() == 1).then_some(())
    })
    .await;
}

/// A killed server had reserved the id; its client retries the call later.
#[tokio::test]
async fn s7_id_reserved_by_an_earlier_attempt_is_accepted_at_once() {
    let world = World::dedicated();
    let server = world.server_with(ONE).await;
    let client = server.client().await;
    let (first, _) = client.create_for("alice").await;
    let (guest, _) = client.create(&[]).await;
    let key = world.index_key("alice").unwrap();
    for login in [false, true] {
        let token = new_token();
        let id = if login { guest.id.clone() } else { id_of(&token) };
        world.age_index("alice");
        world.redis.command(&["ZADD", &key, &(world.now_us() - 30_000_000).to_string(), &id]);
        let session = if login {
            client.login(by_id(&id), "alice").await.unwrap()
        } else {
            client.create_with(create_request(&token)).await.unwrap().0
        };
        assert_eq!(ids_of(&client, "alice").await, set_of(&[&session.id]));
    }
    assert!(!client.lives(&first.id).await);
}

/// After a login has reserved the id, other calls give the session the subject and take it away again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn login_with_a_reservation_from_before_a_logout_reserves_again() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    let (guest, _) = client.create(&[]).await;
    let key = by_id(&guest.id);
    // Loads the scripts.
    slow.login(by_id(&slow.create(&[]).await.0.id), "bob").await.unwrap();
    proxy.hold_replies_after(&scripts::RESERVE, 1);
    let overtaking = async {
        eventually("the id is reserved", async || (!world.index("alice").is_empty()).then_some(())).await;
        client.login(key.clone(), "alice").await.unwrap();
        let logout = UpdateSessionRequest { key: key.clone(), subject: Some(String::new()), ..Default::default() };
        client.update(logout).await.unwrap();
        eventually("the id has left the index", async || world.index("alice").is_empty().then_some(())).await;
        proxy.release_replies();
    };
    let (logged_in, ()) = tokio::join!(slow.login(key.clone(), "alice"), overtaking);
    assert_eq!(logged_in.unwrap().subject, "alice");
    assert_eq!(world.index("alice"), set_of(&[&guest.id]), "the session has a subject whose index lacks it");
    assert_eq!(client.delete_subject("alice").await.unwrap(), 1);
}

/// The store is emptied after a create has reserved its id, and another instance uses it again before the session is made.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_with_a_flushed_reservation_needs_another_one() {
    let world = World::dedicated();
    let (proxy, _servers, [slow, client]) = world.proxied_pair().await;
    slow.create_for("bob").await;
    let token = new_token();
    proxy.hold_replies_after(&scripts::RESERVE, 1);
    let flush = async {
        eventually("the id is reserved", async || (!world.index("alice").is_empty()).then_some(())).await;
        world.redis.command(&["FLUSHALL"]);
        eventually("the store is used again", async || client.create_with(Default::default()).await.ok()).await;
        proxy.release_replies();
    };
    let (created, ()) = tokio::join!(slow.create_with(create_request(&token)), flush);
    let is_indexed = world.index("alice").contains(&id_of(&token));
    assert_eq!(client.lives(&id_of(&token)).await, is_indexed, "{created:?}");
}

#[tokio::test]
async fn flushed_store_is_reconciled_at_once_and_stays_usable() {
    let world = World::dedicated();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    client.create_for("alice").await;
    let is_scanned = || world.redis.command(&["INFO", "commandstats"]).contains("cmdstat_scan:");
    assert!(!is_scanned());
    world.redis.command(&["FLUSHALL"]);
    eventually("the store is reconciled", async || is_scanned().then_some(())).await;
    assert!(client.list_subject("alice").await.is_empty());
    let (made, _) = client.create_for("alice").await;
    assert_eq!(world.index("alice"), set_of(&[&made.id]));
    assert_eq!(client.delete_subject("alice").await.unwrap(), 1);
}
