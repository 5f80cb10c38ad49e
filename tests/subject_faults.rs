//! Subjects' indexes when servers are killed between two steps, answers are lost, and entries are altered by hand.

mod harness;

use std::collections::BTreeSet;

use harness::{Client, Server, World, client::*, eventually, process::Process, proxy::Proxy};
use sessiond::store::scripts::{self, Script};
use sessiond_client::v1::{
    Cause, CreateSessionRequest, EventType, RotateSessionRequest, SessionEvent, UpdateSessionRequest,
};
use tonic::Code;

const ONE: &str = "partitions = 1\n[default_policy]\nsession_limit = 1\n";
const AUDITING: &str = "audit_interval = '1s'\npartitions = 1\n";
const AUDITING_ONE: &str = "audit_interval = '1s'\npartitions = 1\n[default_policy]\nsession_limit = 1\n";

async fn ids_of(client: &Client, subject: &str) -> BTreeSet<String> {
    client.list_of(subject).await.into_iter().map(|session| session.id).collect()
}

fn set_of(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn create_request(token: &str) -> CreateSessionRequest {
    let request_id = "request-id-000001".into();
    CreateSessionRequest { token: token.into(), subject: "alice".into(), request_id, ..Default::default() }
}

/// As if nobody were about to become alice's any more; then the audit makes her index exact.
async fn repaired(world: &World, client: &Client) {
    world.age("alice");
    let live = ids_of(client, "alice").await;
    eventually("the index is exact", async || (world.index("alice") == live).then_some(())).await;
}

// ---- a server that is killed ----

/// A server that is going to be killed, and one that goes on. A subject may have one session; alice has one.
struct Doomed {
    world: World,
    proxy: Proxy,
    process: Process,
    /// Of the server that is going to be killed.
    doomed: Client,
    _survivor: Server,
    /// Of the other one.
    client: Client,
    first: String,
}

impl Doomed {
    async fn start() -> Self {
        let world = World::own();
        let proxy = Proxy::start(&world.redis);
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), ONE).unwrap();
        let arguments = [format!("--redis={}", proxy.url()), format!("--config={}", file.path().display())];
        let process = tokio::task::spawn_blocking(move || Process::start(&arguments)).await.unwrap();
        let survivor = world.server_with(AUDITING_ONE).await;
        let (doomed, client) = (process.client().await, survivor.client().await);
        // It knows the clock of Redis.
        doomed.create(&[]).await;
        let (first, _) = client.create_of("alice").await;
        Doomed { world, proxy, process, doomed, _survivor: survivor, client, first: first.id }
    }

    /// Kills the server amid this call: once Redis has run the script for the n-th time, and shows what it did.
    async fn kill_at<T>(
        &mut self,
        (script, nth): (&'static Script, u32),
        call: impl Future<Output = Answer<T>>,
        is_done: impl AsyncFn(&World, &Client) -> bool,
    ) {
        self.proxy.stop_at(script, nth);
        let (world, client, process) = (&self.world, &self.client, &mut self.process);
        let kill = async {
            eventually("the step is done", async || is_done(world, client).await.then_some(())).await;
            process.kill();
        };
        let (answer, ()) = tokio::join!(call, kill);
        assert!(answer.is_err(), "it was not answered");
    }

    /// Never more than one session; the index becomes exact, and alice can log in as ever.
    async fn assert_healed(&self, live: &[&str]) {
        assert_eq!(ids_of(&self.client, "alice").await, set_of(live));
        repaired(&self.world, &self.client).await;
        assert_eq!(ids_of(&self.client, "alice").await, set_of(live), "the repair ended nobody");
        let (next, _) = self.client.create_of("alice").await;
        assert_eq!(ids_of(&self.client, "alice").await, set_of(&[&next.id]));
        repaired(&self.world, &self.client).await;
        assert_eq!(self.world.index("alice"), set_of(&[&next.id]));
    }
}

/// A call, the step at which its server is killed, and what shows that the step was done.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    Admitted,
    OldestEnded,
    OldestForgotten,
    Applied,
}

impl Step {
    const ALL: [Step; 4] = [Step::Admitted, Step::OldestEnded, Step::OldestForgotten, Step::Applied];

    /// With the script that applies the call at last, and how often it is sent.
    fn script(self, applies: (&'static Script, u32)) -> (&'static Script, u32) {
        match self {
            // The first time it is told that the index is full.
            Step::Admitted => (&scripts::ADMIT, 2),
            Step::OldestEnded => (&scripts::END, 1),
            Step::OldestForgotten => (&scripts::FORGET, 1),
            Step::Applied => applies,
        }
    }

    async fn is_done(self, world: &World, client: &Client, first: &str) -> bool {
        match self {
            Step::Admitted => world.index("alice").len() == 2,
            Step::OldestEnded => !client.lives(first).await,
            Step::OldestForgotten => !world.index("alice").contains(first),
            Step::Applied => ids_of(client, "alice").await.iter().any(|id| id != first),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_server_killed_between_two_steps_of_a_create_leaves_no_more_sessions_than_allowed() {
    for (step, token) in Step::ALL.into_iter().flat_map(|step| [(step, None), (step, Some(new_token()))]) {
        let mut world = Doomed::start().await;
        let first = world.first.clone();
        let client = world.doomed.clone();
        let request = match &token {
            Some(token) => create_request(token),
            None => CreateSessionRequest { subject: "alice".into(), ..Default::default() },
        };
        let sent = if token.is_some() { 2 } else { 1 };
        let call = client.create_as(request);
        let stop = step.script((&scripts::CREATE, sent));
        world.kill_at(stop, call, async |world, client| step.is_done(world, client, &first).await).await;
        let live = ids_of(&world.client, "alice").await;
        match step {
            Step::Admitted => assert_eq!(live, set_of(&[&first])),
            Step::OldestEnded | Step::OldestForgotten => assert!(live.is_empty(), "{live:?}"),
            Step::Applied => assert!(live.len() == 1 && !live.contains(&first), "{live:?}"),
        }
        // Who repeats the call has one session more, and the oldest is gone.
        if let Some(token) = &token {
            let (session, _) = world.client.create_as(create_request(token)).await.unwrap();
            assert_eq!(world.client.create_as(create_request(token)).await.unwrap().0, session);
            world.assert_healed(&[&id_of(token)]).await;
        } else {
            let live: Vec<&str> = live.iter().map(String::as_str).collect();
            world.assert_healed(&live).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_server_killed_between_two_steps_of_a_login_leaves_no_more_sessions_than_allowed() {
    for (step, rotates) in Step::ALL.into_iter().flat_map(|step| [(step, false), (step, true)]) {
        let mut world = Doomed::start().await;
        let first = world.first.clone();
        let (guest, token) = world.client.create(&[]).await;
        let client = world.doomed.clone();
        let request_id = "request-id-000001";
        let successor = successor_of(&token);
        let login = async |client: &Client| {
            let subject = Some("alice".into());
            if rotates {
                let (token, new_token, request_id) = (token.clone(), successor.clone(), request_id.into());
                let request = RotateSessionRequest { token, new_token, subject, request_id, ..Default::default() };
                client.rotate_as(request).await.map(|(session, _)| session)
            } else {
                let (key, request_id) = (by_id(&guest.id), request_id.into());
                client.update(UpdateSessionRequest { key, subject, request_id, ..Default::default() }).await
            }
        };
        let script = if rotates { &scripts::ROTATE } else { &scripts::UPDATE };
        let stop = step.script((script, 2));
        world.kill_at(stop, login(&client), async |world, client| step.is_done(world, client, &first).await).await;
        let kept = world.client.get(by_id(&guest.id)).await.unwrap();
        assert_eq!(kept.subject, if step == Step::Applied { "alice" } else { "" }, "{step:?}");
        if step == Step::Admitted {
            assert_eq!(ids_of(&world.client, "alice").await, set_of(&[&first]));
        }
        let session = login(&world.client).await.unwrap();
        assert_eq!((&session.subject[..], login(&world.client).await.unwrap()), ("alice", session.clone()));
        world.assert_healed(&[&guest.id]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_whose_login_broke_off_lives_on_and_is_forgotten() {
    let mut world = Doomed::start().await;
    let (guest, _) = world.client.create(&[]).await;
    let (client, first) = (world.doomed.clone(), world.first.clone());
    let login = client.login(by_id(&guest.id), "alice");
    let step = Step::Admitted;
    world
        .kill_at(step.script((&scripts::UPDATE, 2)), login, async |world, client| {
            step.is_done(world, client, &first).await
        })
        .await;
    world.assert_healed(&[&first]).await;
    assert_eq!(world.client.get(by_id(&guest.id)).await.unwrap(), guest);
    assert_eq!(world.client.delete_all("alice").await.unwrap(), 1);
    assert!(world.client.lives(&guest.id).await, "it is nobody's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_killed_before_it_forgets_has_ended_is_forgotten_by_another() {
    for everywhere in [false, true] {
        let mut world = Doomed::start().await;
        let (client, first) = (world.doomed.clone(), world.first.clone());
        let end = async {
            if everywhere {
                client.delete_all("alice").await.map(drop)
            } else {
                client.delete(by_id(&first)).await.map(drop)
            }
        };
        let step = Step::OldestEnded;
        world.kill_at((&scripts::END, 1), end, async |world, client| step.is_done(world, client, &first).await).await;
        assert_eq!(world.world.index("alice"), set_of(&[&first]), "it is not forgotten yet");
        world.assert_healed(&[]).await;
    }
}

// ---- answers that are lost or late ----

/// Servers that answer soon whatever happens.
const IMPATIENT: &str = "partitions = 1\n[limits]\ncall_timeout = '700ms'\n[default_policy]\nsession_limit = 1\n";

struct Behind {
    world: World,
    proxy: Proxy,
    _servers: [Server; 2],
    slow: Client,
    client: Client,
    first: String,
}

async fn behind() -> Behind {
    let world = World::own();
    let proxy = Proxy::start(&world.redis);
    let behind = Server::start(&proxy.url(), &world.prefix, IMPATIENT).await;
    let direct = world.server_with(AUDITING_ONE).await;
    let (slow, client) = (behind.client().await, direct.client().await);
    slow.create(&[]).await;
    let (first, _) = client.create_of("alice").await;
    Behind { world, proxy, _servers: [behind, direct], slow, client, first: first.id }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_a_lost_answer_to_any_step_of_a_create_is_made_good_by_a_repeat() {
    for (step, cut) in Step::ALL.into_iter().flat_map(|step| [(step, true), (step, false)]) {
        let Behind { world, proxy, _servers, slow, client, first } = behind().await;
        let mut watching = client.watch_all().await;
        let token = new_token();
        let (script, nth) = step.script((&scripts::CREATE, 2));
        proxy.stop_at(script, nth);
        let lose = async {
            eventually("the step is done", async || step.is_done(&world, &client, &first).await.then_some(())).await;
            // Else the call's time is over before the answer comes.
            if cut {
                proxy.cut();
                proxy.go_on();
            }
        };
        let (answer, ()) = tokio::join!(slow.create_as(create_request(&token)), lose);
        proxy.go_on();
        match answer {
            // To forget whom it ended a server need not wait.
            Ok((session, _)) => assert!(step == Step::OldestForgotten && session.id == id_of(&token)),
            Err(status) => {
                let reasons = ["OUTCOME_UNKNOWN", "STORE_UNAVAILABLE", "STORE_TIMEOUT"];
                assert!(reasons.contains(&&status.reason()[..]), "{step:?}: {status:?}");
                let may_be_applied = status.reason() == "OUTCOME_UNKNOWN";
                assert!(may_be_applied || !client.lives(&id_of(&token)).await, "{step:?}: {status:?}");
            }
        }
        let session =
            eventually("the server is back", async || Some(slow.create_as(create_request(&token)).await.ok()?.0)).await;
        assert_eq!(client.create_as(create_request(&token)).await.unwrap().0, session);
        assert_eq!(ids_of(&client, "alice").await, set_of(&[&session.id]), "{step:?}");
        let events: Vec<SessionEvent> = watching.everything_so_far().await;
        let told: Vec<_> = events.iter().map(|event| (event.r#type(), event.cause(), &event.id[..])).collect();
        let expected =
            [(EventType::Ended, Cause::Replaced, &first[..]), (EventType::Created, Cause::Unspecified, &session.id)];
        assert_eq!(told, expected, "{step:?}: once each");
        repaired(&world, &client).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s7_steps_that_reach_redis_too_late_do_nothing() {
    for (stop, applied) in [((&scripts::ADMIT, 2), false), ((&scripts::END, 1), true)] {
        let Behind { world, proxy, _servers, slow, client, first } = behind().await;
        let mut watching = client.watch_all().await;
        let token = new_token();
        proxy.stop_at(stop.0, stop.1);
        let step = if applied { Step::OldestEnded } else { Step::Admitted };
        let delay = async {
            eventually("the step is done", async || step.is_done(&world, &client, &first).await.then_some(())).await;
            // The next step is sent, and kept back until the call is over.
            proxy.hold();
            proxy.go_on();
        };
        let (answer, ()) = tokio::join!(slow.create_as(create_request(&token)), delay);
        assert_eq!(answer.unwrap_err().reason(), "OUTCOME_UNKNOWN");
        proxy.let_go();
        eventually("the server is back", async || slow.get(by_id(&id_of(&token))).await.err().filter(is_not_found))
            .await;
        let live = ids_of(&client, "alice").await;
        assert_eq!(live, if applied { BTreeSet::new() } else { set_of(&[&first]) });
        assert!(!client.lives(&id_of(&token)).await, "it was not made late");
        assert_eq!(watching.everything_so_far().await.len(), usize::from(applied));
        repaired(&world, &client).await;
        assert_eq!(ids_of(&client, "alice").await, live, "the repair ends nobody");
    }
}

fn is_not_found(status: &tonic::Status) -> bool {
    status.code() == Code::NotFound
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_out_everywhere_that_broke_off_says_that_it_may_have_ended_some() {
    let Behind { world: _world, proxy, _servers, slow, client, first } = behind().await;
    // The answer to the first ending is lost; or that came, and no more after it.
    for (script, cut) in [(&scripts::END, true), (&scripts::FORGET, false)] {
        let first = if cut { first.clone() } else { client.create_of("alice").await.0.id };
        proxy.stop_at(script, 1);
        let lose = async {
            eventually("it has ended", async || (!client.lives(&first).await).then_some(())).await;
            if cut {
                proxy.cut();
                proxy.go_on();
            }
        };
        let (answer, ()) = tokio::join!(slow.delete_all("alice"), lose);
        proxy.go_on();
        assert_eq!(answer.unwrap_err().reason(), "OUTCOME_UNKNOWN", "{}", script.name);
        let up = async || slow.get(by_id(&first)).await.err().filter(is_not_found);
        eventually("the server is back", up).await;
    }
    assert_eq!(eventually("the server is back", async || slow.delete_all("alice").await.ok()).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_hangs_amid_creates_leaves_the_limit_and_the_index_exact() {
    let world = World::own();
    let toml = "partitions = 1\naudit_interval = '1s'\n[limits]\ncall_timeout = '700ms'\n[default_policy]\nsession_limit = 3\n";
    let servers = [world.server_with(toml).await, world.server_with(toml).await];
    let clients = [servers[0].client().await, servers[1].client().await];
    let mut watching = clients[0].watch_all().await;
    for _ in 0..3 {
        let work = futures_util::future::join_all((0..32).map(async |n: usize| {
            let token = new_token();
            eventually("it has an outcome", async || match clients[n % 2].create_as(create_request(&token)).await {
                Ok(_) => Some(()),
                Err(status) if status.reason() == "SESSION_ENDED" => Some(()),
                Err(_) => None,
            })
            .await;
        }));
        let hang = async {
            eventually("some are made", async || (!world.index("alice").is_empty()).then_some(())).await;
            world.redis.pause();
            // For as long as a call may take.
            clients[0].get(by_id(&id_of(&new_token()))).await.unwrap_err();
            world.redis.resume();
        };
        tokio::join!(work, hang);
        clients[1].create_of("alice").await;
        let live = ids_of(&clients[0], "alice").await;
        assert!(live.len() <= 3, "{live:?}");
    }
    let events = watching.everything_so_far().await;
    let most = harness::index::most_at_once(&events, "alice");
    assert_eq!(most, 3, "the limit is reached and never exceeded");
    repaired(&world, &clients[0]).await;
}

/// Nobody forgets an id of which a late packet could make a session.
#[tokio::test]
async fn s3_what_is_forgotten_stays_ended_for_longer_than_a_call_may_be_under_way() {
    let world = World::own();
    let server = world.server_with(AUDITING).await;
    let client = server.client().await;
    let tombstone = |id: &str| world.redis.keys(&format!("*:s:*:{id}")).pop();
    for audited in [true, false] {
        let (ended, _) = client.create_of("alice").await;
        client.create_of("alice").await;
        client.delete(by_id(&ended.id)).await.unwrap();
        eventually("it is forgotten", async || (world.index("alice").len() == 1).then_some(())).await;
        // One whose tombstone's time is nearly over, and one that never was.
        world.redis.command(&["PEXPIRE", &tombstone(&ended.id).unwrap(), "15000"]);
        let never = id_of(&new_token());
        let added = (world.now_us() - 60_000_000).to_string();
        let key = world.index_key("alice").unwrap();
        world.redis.command(&["ZADD", &key, &added, &ended.id, &added, &never]);
        if !audited {
            client.delete_all("alice").await.unwrap();
        }
        eventually("they are forgotten", async || {
            let index = world.index("alice");
            (!index.contains(&ended.id) && !index.contains(&never)).then_some(())
        })
        .await;
        for id in [&ended.id, &never] {
            let key = tombstone(id).expect("it stands");
            assert!(world.redis.number(&["PTTL", &key]) > 30_000);
        }
        client.delete_all("alice").await.unwrap();
    }
}

// ---- the audit ----

#[tokio::test]
async fn the_audit_adds_what_lives_and_forgets_what_does_not() {
    let world = World::own();
    let server = world.server_with(AUDITING).await;
    let client = server.client().await;
    let (lost, _) = client.create_of("alice").await;
    let (kept, _) = client.create_of("alice").await;
    let (of_bob, _) = client.create_of("bob").await;
    let (guest, _) = client.create(&[]).await;
    let (gone, _) = client.create_of("carol").await;
    let key = world.index_key("alice").unwrap();
    let (old, young) = ("aaaaaaaaaaaaaaaaaaaaaaaaaa", "eaaaaaaaaaaaaaaaaaaaaaaaaa");
    world.redis.command(&["ZREM", &key, &lost.id]);
    // Its session vanished, and nobody saw it.
    world.redis.command(&["DEL", &world.redis.keys(&format!("*:s:*:{}", gone.id))[0]]);
    world.age("carol");
    let now = world.now_us();
    for (n, id) in [&of_bob.id[..], &guest.id, old, "no id"].into_iter().enumerate() {
        world.redis.command(&["ZADD", &key, &(now - 60_000_000 + n as u64).to_string(), id]);
    }
    // Of a create that is under way.
    world.redis.command(&["ZADD", &key, &(now + 3_600_000_000).to_string(), young]);
    let expected = set_of(&[&lost.id, &kept.id, young]);
    eventually("the index is repaired", async || (world.index("alice") == expected).then_some(())).await;
    eventually("carol has none", async || world.index("carol").is_empty().then_some(())).await;
    assert_eq!(world.index("bob"), set_of(&[&of_bob.id]));
    assert_eq!(ids_of(&client, "alice").await, set_of(&[&lost.id, &kept.id]));
    for id in [&lost.id, &kept.id, &of_bob.id, &guest.id] {
        assert!(client.lives(id).await, "the audit ends nobody");
    }
    eventually("repairs are counted", async || {
        (server.metric("sessiond_index_repairs_total").await >= 5.0).then_some(())
    })
    .await;
    assert_eq!(client.delete_all("alice").await.unwrap(), 2);
}

#[tokio::test]
async fn one_instance_of_all_audits_once_in_a_period() {
    let world = World::own();
    let servers =
        [world.server_with(AUDITING).await, world.server_with(AUDITING).await, world.server_with(AUDITING).await];
    let walks = || -> u64 {
        let stats = world.redis.command(&["INFO", "commandstats"]);
        let count = stats.lines().find_map(|line| line.strip_prefix("cmdstat_scan:calls="));
        count.map_or(0, |count| count.split(',').next().unwrap().parse().unwrap())
    };
    let (began, before) = (world.now_us(), walks());
    let walked = eventually("some audits", async || Some(walks() - before).filter(|walked| *walked >= 5)).await;
    let periods = (world.now_us() - began) / 1_000_000 + 1;
    assert!(walked <= periods, "{walked} audits in {periods} periods");
    drop(servers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_audit_that_broke_off_is_repeated_without_a_new_claim() {
    let world = World::own();
    let proxy = Proxy::start(&world.redis);
    let server = Server::start(&proxy.url(), &world.prefix, AUDITING).await;
    let client = server.client().await;
    let (session, _) = client.create_of("alice").await;
    world.redis.command(&["ZREM", &world.index_key("alice").unwrap(), &session.id]);
    // Where it looks at a session.
    proxy.stop_at(&scripts::READ, 1);
    eventually("an audit is under way", async || proxy.is_stopped().then_some(())).await;
    let meta = world.redis.keys("*:meta").remove(0);
    // As if others claimed each period from now on.
    let claim = || world.redis.command(&["HSET", &meta, "audited", &(world.now_us() / 1000).to_string()]);
    claim();
    proxy.cut();
    proxy.go_on();
    eventually("it is repaired", async || {
        claim();
        (world.index("alice").len() == 1).then_some(())
    })
    .await;
}

/// What a server that was killed had admitted, and its caller tries once more, later.
#[tokio::test]
async fn s7_who_was_admitted_before_is_let_in_at_once() {
    let world = World::own();
    let server = world.server_with(ONE).await;
    let client = server.client().await;
    let (first, _) = client.create_of("alice").await;
    let (guest, _) = client.create(&[]).await;
    let key = world.index_key("alice").unwrap();
    for login in [false, true] {
        let token = new_token();
        let id = if login { guest.id.clone() } else { id_of(&token) };
        world.age("alice");
        world.redis.command(&["ZADD", &key, &(world.now_us() - 30_000_000).to_string(), &id]);
        let session = if login {
            client.login(by_id(&id), "alice").await.unwrap()
        } else {
            client.create_as(create_request(&token)).await.unwrap().0
        };
        assert_eq!(ids_of(&client, "alice").await, set_of(&[&session.id]));
    }
    assert!(!client.lives(&first.id).await);
}

#[tokio::test]
async fn a_flushed_store_is_audited_at_once_and_goes_on() {
    let world = World::own();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    client.create_of("alice").await;
    let walks = || world.redis.command(&["INFO", "commandstats"]).contains("cmdstat_scan:");
    assert!(!walks());
    world.redis.command(&["FLUSHALL"]);
    eventually("it is audited", async || walks().then_some(())).await;
    assert!(client.list_of("alice").await.is_empty());
    let (made, _) = client.create_of("alice").await;
    assert_eq!(world.index("alice"), set_of(&[&made.id]));
    assert_eq!(client.delete_all("alice").await.unwrap(), 1);
}
