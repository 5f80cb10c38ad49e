//! All sessions of a subject: ListSessions, Watch and DeleteSubjectSessions by subject.

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use harness::{Client, Setup, WatchReader, World, client::*, eventually, setup, setup_with};
use sessiond_client::v1::{
    Authentication, Cause, ClientInfo, CreateSessionRequest, DeleteSubjectSessionsRequest, EventType,
    ListSessionsRequest, ListSessionsResponse, RotateSessionRequest, Session, SessionEvent, SessionView,
    UpdateSessionRequest, WatchRequest,
};
use tonic::Code;

fn ids(sessions: &[Session]) -> Vec<String> {
    sessions.iter().map(|session| session.id.clone()).collect()
}

fn list_request(subject: &str) -> ListSessionsRequest {
    ListSessionsRequest { namespace: NAMESPACE.into(), subject: Some(subject.into()), ..Default::default() }
}

async fn page(client: &Client, request: ListSessionsRequest) -> CallResult<ListSessionsResponse> {
    Ok(client.grpc.clone().list_sessions(request).await?.into_inner())
}

fn create_request(subject: &str) -> CreateSessionRequest {
    CreateSessionRequest { subject: subject.into(), ..Default::default() }
}

fn delete_request(subject: &str) -> DeleteSubjectSessionsRequest {
    DeleteSubjectSessionsRequest { subject: subject.into(), ..Default::default() }
}

// ---- list ----

#[tokio::test]
async fn list_by_subject_is_ordered_by_login_newest_first() {
    let Setup { client, .. } = &setup().await;
    let (by_update, _) = client.create(&[]).await;
    let (by_rotation, token) = client.create(&[]).await;
    let (made, _) = client.create_for("alice").await;
    client.create_for("bob").await;
    client.create(&[]).await;
    client.login_by_rotation(&token, "alice").await.unwrap();
    client.login(by_id(&by_update.id), "alice").await.unwrap();
    // An update without a new subject does not change the order.
    client.set(by_id(&made.id), &[("a", text("1"))]).await.unwrap();
    client.login(by_id(&made.id), "alice").await.unwrap();
    assert_eq!(ids(&client.list_subject("alice").await), [&by_update.id[..], &by_rotation.id, &made.id]);
}

#[tokio::test]
async fn list_returns_attributes_only_in_the_full_view() {
    let Setup { client, .. } = &setup().await;
    let device = ClientInfo { device_name: "phone".into(), ..Default::default() };
    let authentication = Authentication { level: 2, methods: vec!["pwd".into()], authentication_time: None };
    let request = CreateSessionRequest {
        client: Some(device.clone()),
        authentication: Some(authentication.clone()),
        attributes: BTreeMap::from([("a".into(), text("1"))]),
        labels: labels(&[("device", "phone")]),
        ..create_request("alice")
    };
    let (session, _) = client.create_with(request).await.unwrap();
    let basic = page(client, list_request("alice")).await.unwrap().sessions;
    assert_eq!(basic, [Session { attributes: BTreeMap::new(), ..session.clone() }]);
    assert_eq!((&basic[0].client, &basic[0].authentication), (&Some(device), &Some(authentication)));
    let full = ListSessionsRequest { view: SessionView::Full.into(), ..list_request("alice") };
    assert_eq!(page(client, full).await.unwrap().sessions, [session]);
    for (label, count) in [("phone", 1), ("laptop", 0)] {
        let request = ListSessionsRequest { labels: labels(&[("device", label)]), ..list_request("alice") };
        assert_eq!(page(client, request).await.unwrap().sessions.len(), count, "{label}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn list_during_changes_is_complete_for_every_page_size() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let (client, other) = (a.client().await, b.client().await);
    let mut stay = Vec::new();
    for n in 0..24 {
        stay.insert(0, client.create_for("alice").await.0.id);
        if n % 3 == 0 {
            client.create_for("alice").await;
        }
    }
    let stays: HashSet<&String> = stay.iter().collect();
    let done = AtomicBool::new(false);
    let changing = async {
        let going: Vec<_> =
            client.list_subject("alice").await.into_iter().filter(|session| !stays.contains(&session.id)).collect();
        let mut going = ids(&going);
        while !done.load(Ordering::Relaxed) {
            other.delete(by_id(&going.remove(0))).await.unwrap();
            going.push(other.create_for("alice").await.0.id);
        }
    };
    let listing = async {
        for page_size in (1..=26).chain([100]) {
            let mut request = ListSessionsRequest { page_size, ..list_request("alice") };
            let mut listed = Vec::new();
            loop {
                let page = page(&client, request.clone()).await.unwrap();
                assert!(page.sessions.len() <= page_size as usize);
                assert!(page.sessions.iter().all(|session| session.subject == "alice"));
                listed.extend(ids(&page.sessions));
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
            }
            listed.retain(|id| stays.contains(id));
            assert_eq!(listed, stay, "in pages of {page_size}");
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(changing, listing);
}

#[tokio::test]
async fn page_token_of_another_request_is_refused() {
    let Setup { client, .. } = &setup().await;
    for subject in ["alice", "alice", "bob", "bob"] {
        client.create_for(subject).await;
        client.in_namespace("other").create_for(subject).await;
    }
    let first = page(client, ListSessionsRequest { page_size: 1, ..list_request("alice") }).await.unwrap();
    let page_token = first.next_page_token;
    assert!(!page_token.is_empty());
    for other in [
        list_request("bob"),
        ListSessionsRequest { subject: None, ..list_request("") },
        ListSessionsRequest { namespace: "other".into(), ..list_request("alice") },
        ListSessionsRequest { labels: labels(&[("a", "b")]), ..list_request("alice") },
    ] {
        let request = ListSessionsRequest { page_token: page_token.clone(), ..other };
        let status = expect_error(page(client, request).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["page_token"]);
    }
    let second = ListSessionsRequest { page_token, ..list_request("alice") };
    assert_eq!(page(client, second).await.unwrap().sessions.len(), 1);
}

#[tokio::test]
async fn list_page_of_a_subject_is_at_most_2_mib() {
    let Setup { client, .. } = &setup().await;
    let mut expected = Vec::new();
    for _ in 0..50 {
        let attributes = BTreeMap::from([("a".into(), text(&incompressible(60_000)))]);
        let request = CreateSessionRequest { attributes, ..create_request("alice") };
        expected.insert(0, client.create_with(request).await.unwrap().0.id);
    }
    let mut request = ListSessionsRequest { page_size: 1000, view: SessionView::Full.into(), ..list_request("alice") };
    let (mut listed, mut pages) = (Vec::new(), 0);
    loop {
        let page = page(client, request.clone()).await.unwrap();
        assert!(prost::Message::encoded_len(&page) <= 2 * 1024 * 1024);
        listed.extend(ids(&page.sessions));
        pages += 1;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!((listed, pages), (expected, 2));
}

#[tokio::test]
async fn list_pages_of_100_sessions_send_few_role_commands() {
    const SESSIONS: usize = 100;
    let Setup { world, client, .. } = &World::dedicated().setup_with("partitions = 4").await;
    for _ in 0..SESSIONS {
        client.create_for("alice").await;
    }
    let calls = |command: &str| -> usize {
        let stats = world.redis.info("commandstats", &format!("cmdstat_{command}"));
        stats.split(['=', ',']).nth(1).unwrap().parse().unwrap()
    };
    for subject in [Some("alice".to_owned()), None] {
        let request = ListSessionsRequest { page_size: 100, subject, ..list_request("") };
        page(client, request.clone()).await.unwrap();
        let before = [calls("role"), calls("getrange")];
        for _ in 0..10 {
            assert_eq!(page(client, request.clone()).await.unwrap().sessions.len(), SESSIONS);
        }
        let [roles, reads] = [calls("role") - before[0], calls("getrange") - before[1]];
        // Workers and feed send some, too.
        assert!(reads >= 10 * SESSIONS && roles < reads / 2, "{roles} ROLE for {reads} reads");
    }
}

#[tokio::test]
async fn subject_may_be_any_text() {
    let Setup { client, .. } = &setup_with("[default_policy]\nsession_limit = 2").await;
    let (long, wide) = ("s".repeat(256), "\u{1f600}".repeat(64));
    let subjects = [
        "message",
        "smessage",
        "pmessage",
        "subscribe",
        "MOVED 1 x",
        "ASK 1 127.0.0.1:1",
        "{00:120}",
        "a}b{c",
        "a:b",
        ":",
        "a\r\nb",
        "\n",
        "*",
        "a*?[b]\\",
        " ",
        "\"",
        "\0",
        &long,
        &wide,
        "web:alice",
        "-1",
        "(1",
        "+inf",
        "u",
        "alice",
    ];
    let mut watches = Vec::new();
    let mut made: Vec<Vec<String>> = Vec::new();
    for subject in subjects {
        watches.push(watch_subject(client, subject).await);
        let (first, _) = client.create_for(subject).await;
        let (second, _) = client.create(&[]).await;
        client.login(by_id(&second.id), subject).await.unwrap();
        made.push(vec![second.id, first.id]);
    }
    for ((subject, made), watching) in subjects.into_iter().zip(made).zip(&mut watches) {
        let listed = client.list_subject(subject).await;
        assert_eq!(ids(&listed), made, "{subject:?}");
        assert!(listed.iter().all(|session| session.subject == subject), "{subject:?}");
        let (third, _) = client.create_for(subject).await;
        assert!(!client.lives(&made[1]).await, "the limit applies per subject: {subject:?}");
        assert_eq!(client.delete_subject(subject).await.unwrap(), 2, "{subject:?}");
        let kinds: Vec<_> = watching.events_until_now().await.iter().map(SessionEvent::r#type).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == EventType::Ended).count(), 3, "{subject:?}");
        assert_eq!(kinds.len(), 6, "{subject:?}");
        assert!(!client.lives(&third.id).await);
    }
    let too_long = create_request(&"s".repeat(257));
    let status = expect_error(client.create_with(too_long).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(status.bad_fields(), ["subject"]);
}

#[tokio::test]
async fn empty_subject_is_refused_by_list_watch_and_delete() {
    let Setup { client, .. } = &setup().await;
    client.create(&[]).await;
    let list = page(client, list_request("")).await;
    let watch = client.watch(WatchRequest { subject: Some(String::new()), ..Default::default() }).await;
    let delete = client.delete_subject("").await;
    for answer in [list.map(drop), watch.map(drop), delete.map(drop)] {
        assert_eq!(expect_error(answer, Code::InvalidArgument, "FIELD_INVALID").bad_fields(), ["subject"]);
    }
}

#[tokio::test]
async fn same_subject_in_two_namespaces_is_isolated() {
    let Setup { client, .. } = &setup_with("[default_policy]\nsession_limit = 1").await;
    let other = client.in_namespace("other");
    let mut watching = watch_subject(client, "alice").await;
    let (session, _) = client.create_for("alice").await;
    let (other_session, _) = other.create_for("alice").await;
    assert_eq!(ids(&client.list_subject("alice").await), [&session.id[..]]);
    assert_eq!(ids(&other.list_subject("alice").await), [&other_session.id[..]]);
    assert_eq!(other.delete_subject("alice").await.unwrap(), 1);
    assert!(client.lives(&session.id).await);
    let events = watching.events_until_now().await;
    assert!(events.iter().all(|event| event.id == session.id) && events.len() == 1, "{events:?}");
    // An id of another namespace counts as an unknown id.
    let except = DeleteSubjectSessionsRequest { except_id: other_session.id.clone(), ..delete_request("alice") };
    assert_eq!(client.delete_subject_with(except).await.unwrap(), 1);
}

#[tokio::test]
async fn index_entries_of_other_sessions_are_not_listed_nor_ended() {
    let Setup { world, client, .. } = &setup().await;
    let (mine, _) = client.create_for("alice").await;
    let (of_bob, _) = client.create_for("bob").await;
    let (guest, _) = client.create(&[]).await;
    let (ended, _) = client.create(&[]).await;
    client.delete(by_id(&ended.id)).await.unwrap();
    let key = world.index_key("alice").unwrap();
    let added = world.now_us() - 60_000_000;
    for (n, id) in [&of_bob.id[..], &guest.id, &ended.id, "aaaaaaaaaaaaaaaaaaaaaaaaaa", "no id"].into_iter().enumerate()
    {
        world.redis.command(&["ZADD", &key, &(added + n as u64).to_string(), id]);
    }
    let mut request = ListSessionsRequest { page_size: 1, ..list_request("alice") };
    let mut listed = Vec::new();
    loop {
        let page = page(client, request.clone()).await.unwrap();
        listed.extend(ids(&page.sessions));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(listed, [&mine.id[..]]);
    assert_eq!(client.delete_subject("alice").await.unwrap(), 1);
    assert!(client.lives(&of_bob.id).await && client.lives(&guest.id).await);
    assert!(world.index("alice").is_empty(), "the index keeps entries of other sessions");
}

#[tokio::test]
async fn invalid_index_entries_end_no_list_and_no_snapshot() {
    let Setup { world, client, .. } = &setup().await;
    let mut created = Vec::new();
    for _ in 0..3 {
        created.push(client.create_for("alice").await.0.id);
    }
    let key = world.index_key("alice").unwrap();
    let add = |score: &str, id: &str| world.redis.number(&["ZADD", &key, score, id]);
    // The first entries in the order of the snapshot, then in that of the list.
    add("1", "no id");
    add("2", "no id either");
    let of_alice = WatchRequest { subject: Some("alice".into()), whole_namespace: false, ..whole_namespace() };
    let mut watching = client.watch(WatchRequest { initial_state: true, ..of_alice }).await.unwrap();
    assert_eq!(watching.snapshot().await.len(), 3);
    add(&(world.now_us() + 60_000_000).to_string(), "no id");
    add(&(world.now_us() + 60_000_000).to_string(), "no id either");
    let first = page(client, ListSessionsRequest { page_size: 1, ..list_request("alice") }).await.unwrap();
    assert_eq!(ids(&first.sessions), [&created[2][..]]);
    assert!(!first.next_page_token.is_empty());
}

// ---- change of subject ----

#[tokio::test]
async fn subject_changes_only_via_anonymous_and_lists_follow() {
    let Setup { world, client, .. } = &setup().await;
    let (session, token) = client.create_for("alice").await;
    let refused = client.login(by_id(&session.id), "bob").await;
    expect_error(refused, Code::FailedPrecondition, "SUBJECT_CHANGE");
    let refused = client.login_by_rotation(&token, "bob").await;
    expect_error(refused, Code::FailedPrecondition, "SUBJECT_CHANGE");
    assert_eq!(ids(&client.list_subject("alice").await), [&session.id[..]]);
    assert!(client.list_subject("bob").await.is_empty() && world.index("bob").is_empty());
    client.login(by_id(&session.id), "").await.unwrap();
    assert!(client.list_subject("alice").await.is_empty());
    client.login(by_id(&session.id), "bob").await.unwrap();
    assert_eq!(ids(&client.list_subject("bob").await), [&session.id[..]]);
    assert!(client.list_subject("alice").await.is_empty());
    eventually("alice's index is empty", async || world.index("alice").is_empty().then_some(())).await;
    assert_eq!(world.index("bob").len(), 1);
}

#[tokio::test]
async fn session_that_left_its_subject_is_not_ended_with_it() {
    let Setup { client, .. } = &setup_with("[default_policy]\nsession_limit = 1").await;
    for turn in 0..20 {
        let (left, _) = client.create_for("alice").await;
        client.login(by_id(&left.id), "").await.unwrap();
        if turn % 2 == 0 {
            assert_eq!(client.delete_subject("alice").await.unwrap(), 0, "turn {turn}");
        } else {
            // It does not count for the limit.
            let (next, _) = client.create_for("alice").await;
            assert!(client.lives(&next.id).await);
        }
        assert!(client.lives(&left.id).await, "turn {turn}");
        // After a second login it is ended with its subject.
        client.login(by_id(&left.id), "alice").await.unwrap();
        assert_eq!(ids(&client.list_subject("alice").await), [&left.id[..]], "turn {turn}");
        assert_eq!(client.delete_subject("alice").await.unwrap(), 1, "turn {turn}");
    }
}

// ---- watch ----

async fn watch_subject(client: &Client, subject: &str) -> WatchReader {
    watch_as(client, WatchRequest { subject: Some(subject.into()), ..subject_watch() }).await
}

fn subject_watch() -> WatchRequest {
    WatchRequest { whole_namespace: false, ..whole_namespace() }
}

async fn watch_as(client: &Client, request: WatchRequest) -> WatchReader {
    let mut watching = client.watch(request).await.unwrap();
    watching.bookmark().await;
    watching
}

/// Returns type and session id of each event.
fn types_and_ids(events: &[SessionEvent]) -> Vec<(EventType, &str)> {
    events.iter().map(|event| (event.r#type(), &event.id[..])).collect()
}

#[tokio::test]
async fn watch_by_subject_receives_events_from_login_until_left() {
    let world = World::shared();
    let (a, b) = (world.server_with("partitions = 1").await, world.server_with("partitions = 1").await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = watch_subject(&other, "alice").await;
    let (made, token) = client.create_for("alice").await;
    let (guest, guest_token) = client.create(&[]).await;
    let (foreign, _) = client.create_for("bob").await;
    client.set(by_id(&guest.id), &[("a", text("unseen"))]).await.unwrap();
    client.set(by_id(&foreign.id), &[("a", text("unseen"))]).await.unwrap();
    client.set(by_id(&made.id), &[("a", text("1"))]).await.unwrap();
    client.rotate(&token).await.unwrap();
    let rotation = RotateSessionRequest { token: guest_token, subject: Some("alice".into()), ..Default::default() };
    client.rotate_with(rotation).await.unwrap();
    client.login(by_id(&guest.id), "").await.unwrap();
    client.set(by_id(&guest.id), &[("a", text("unseen"))]).await.unwrap();
    client.login(by_id(&guest.id), "alice").await.unwrap();
    client.delete(by_id(&guest.id)).await.unwrap();
    client.delete(by_id(&foreign.id)).await.unwrap();
    client.delete(by_id(&made.id)).await.unwrap();
    let events = watching.events_until_now().await;
    let (m, g) = (&made.id[..], &guest.id[..]);
    use EventType::{Created, Ended, Left, Rotated, Updated};
    let expected =
        [(Created, m), (Updated, m), (Rotated, m), (Rotated, g), (Left, g), (Updated, g), (Ended, g), (Ended, m)];
    assert_eq!(types_and_ids(&events), expected);
    assert_eq!(events[4].session.as_ref().unwrap().subject, "");
    assert_eq!(events[3].session.as_ref().unwrap().subject, "alice");
}

#[tokio::test]
async fn watch_by_subject_applies_labels_types_and_view() {
    let Setup { client, .. } = &setup_with("partitions = 1").await;
    let phones =
        WatchRequest { subject: Some("alice".into()), labels: labels(&[("device", "phone")]), ..subject_watch() };
    let mut phones = watch_as(client, phones).await;
    let types = vec![EventType::Left.into(), EventType::Ended.into()];
    let some = WatchRequest { subject: Some("alice".into()), types, view: 0, ..subject_watch() };
    let mut some = watch_as(client, some).await;
    let create = |device: &str| CreateSessionRequest {
        labels: labels(&[("device", device)]),
        attributes: BTreeMap::from([("a".into(), text("1"))]),
        ..create_request("alice")
    };
    let (phone, _) = client.create_with(create("phone")).await.unwrap();
    let (laptop, _) = client.create_with(create("laptop")).await.unwrap();
    let paint = async |id: &str, device: &str| {
        let set_labels = labels(&[("device", device)]);
        client.update(UpdateSessionRequest { key: by_id(id), set_labels, ..Default::default() }).await.unwrap();
    };
    paint(&phone.id, "laptop").await;
    paint(&laptop.id, "phone").await;
    client.login(by_id(&laptop.id), "").await.unwrap();
    client.login(by_id(&phone.id), "").await.unwrap();
    client.login(by_id(&phone.id), "alice").await.unwrap();
    client.delete_subject("alice").await.unwrap();
    let (p, l) = (&phone.id[..], &laptop.id[..]);
    use EventType::{Created, Ended, Left, Updated};
    assert_eq!(types_and_ids(&phones.events_until_now().await), [(Created, p), (Left, p), (Updated, l), (Left, l)]);
    let events = some.events_until_now().await;
    assert_eq!(types_and_ids(&events), [(Left, l), (Left, p), (Ended, p)]);
    assert!(events.iter().all(|event| event.session.as_ref().unwrap().attributes.is_empty()), "BASIC");
}

#[tokio::test]
async fn watch_by_subject_resumes_on_another_instance() {
    let world = World::shared();
    let (a, b) = (world.server_with("partitions = 1").await, world.server_with("partitions = 1").await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = watch_subject(&client, "alice").await;
    let (first, _) = client.create_for("alice").await;
    assert_eq!(types_and_ids(&watching.events(1).await), [(EventType::Created, &first.id[..])]);
    let resume_token = watching.token.clone();
    drop(watching);
    let (second, _) = client.create(&[]).await;
    client.create_for("bob").await;
    client.login(by_id(&second.id), "alice").await.unwrap();
    client.login(by_id(&first.id), "").await.unwrap();
    client.delete(by_id(&first.id)).await.unwrap();
    let request = WatchRequest { subject: Some("alice".into()), resume_token, ..subject_watch() };
    let mut resumed = watch_as(&other, request).await;
    client.delete_subject("alice").await.unwrap();
    let expected = [(EventType::Updated, &second.id[..]), (EventType::Left, &first.id), (EventType::Ended, &second.id)];
    assert_eq!(types_and_ids(&resumed.events_until_now().await), expected);
}

#[tokio::test]
async fn w10_out_of_band_deletion_reaches_watchers_by_subject() {
    let Setup { world, client, .. } = &setup().await;
    let mut watching = watch_subject(client, "alice").await;
    let request = CreateSessionRequest { idle_timeout: millis(700), ..create_request("alice") };
    let (expired, _) = client.create_with(request).await.unwrap();
    let (written, _) = client.create_for("alice").await;
    for id in [&expired.id, &written.id] {
        let keys = world.redis.keys(&format!("{}*:s:*:{id}", world.prefix));
        assert_eq!(world.redis.number(&["DEL", &keys[0]]), 1);
    }
    expect_error(client.set(by_id(&written.id), &[]).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(watching.wait_for(EventType::Ended, &written.id).await.cause(), Cause::OutOfBand);
    assert_eq!(watching.wait_for(EventType::Ended, &expired.id).await.cause(), Cause::IdleTimeout);
    assert!(client.list_subject("alice").await.is_empty());
}

// ---- delete ----

#[tokio::test]
async fn delete_subject_sessions_sends_each_end_with_its_cause() {
    let Setup { client, .. } = &setup().await;
    let mut watching = watch_subject(client, "alice").await;
    for (cause, expected) in [(0, Cause::Revoked), (2, Cause::Revoked), (1, Cause::Logout)] {
        let mut made = HashSet::new();
        for _ in 0..5 {
            made.insert(client.create_for("alice").await.0.id);
        }
        let (of_bob, _) = client.create_for("bob").await;
        let request = DeleteSubjectSessionsRequest { cause, ..delete_request("alice") };
        assert_eq!(client.delete_subject_with(request.clone()).await.unwrap(), 5);
        assert_eq!(client.delete_subject_with(request).await.unwrap(), 0);
        let events = watching.events_until_now().await;
        let endings: Vec<_> = events.iter().filter(|event| event.r#type() == EventType::Ended).collect();
        assert!(endings.iter().all(|event| event.cause() == expected), "{endings:?}");
        assert_eq!(endings.iter().map(|event| event.id.clone()).collect::<HashSet<_>>(), made);
        assert!(client.lives(&of_bob.id).await && client.list_subject("alice").await.is_empty());
        for id in made {
            let status = expect_error(client.get(by_id(&id)).await, Code::NotFound, "SESSION_ENDED");
            assert_eq!(status.metadata_of("cause"), expected.as_str_name().trim_start_matches("CAUSE_"));
        }
    }
    for cause in [3, 4, 5, 6, 7, 99] {
        let request = DeleteSubjectSessionsRequest { cause, ..delete_request("alice") };
        let status = expect_error(client.delete_subject_with(request).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["cause"]);
    }
}

#[tokio::test]
async fn delete_subject_sessions_keeps_the_excepted_session() {
    let Setup { client, .. } = &setup().await;
    let (mine, _) = client.create_for("alice").await;
    for _ in 0..3 {
        client.create_for("alice").await;
    }
    let (of_bob, _) = client.create_for("bob").await;
    let (guest, _) = client.create(&[]).await;
    let except = |id: &str| DeleteSubjectSessionsRequest { except_id: id.into(), ..delete_request("alice") };
    for id in [&of_bob.id[..], &guest.id, "x", "aaaaaaaaaaaaaaaaaaaaaaaaab", &"a".repeat(27)] {
        let answer = client.delete_subject_with(except(id)).await;
        assert_eq!(expect_error(answer, Code::InvalidArgument, "FIELD_INVALID").bad_fields(), ["except_id"], "{id}");
        assert_eq!(client.list_subject("alice").await.len(), 4, "a refused call ended a session");
    }
    assert_eq!(client.delete_subject_with(except(&mine.id)).await.unwrap(), 3);
    assert_eq!(ids(&client.list_subject("alice").await), [&mine.id[..]]);
    assert!(client.lives(&mine.id).await && client.lives(&of_bob.id).await && client.lives(&guest.id).await);
    assert_eq!(client.delete_subject_with(except("aaaaaaaaaaaaaaaaaaaaaaaaaa")).await.unwrap(), 1);
    // The id of an ended session may be excepted.
    assert_eq!(client.delete_subject_with(except(&mine.id)).await.unwrap(), 0);
}

fn timestamp(us: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: (us / 1_000_000) as i64, nanos: (us % 1_000_000) as i32 * 1_000 })
}

#[tokio::test]
async fn delete_subject_sessions_ends_only_those_created_before() {
    let Setup { world, client, .. } = &setup().await;
    let before = |at| DeleteSubjectSessionsRequest { created_before: at, ..delete_request("alice") };
    let (first, _) = client.create_for("alice").await;
    // A session created in a later millisecond.
    let second = eventually("a later millisecond", async || {
        let (session, _) = client.create_for("alice").await;
        if session.create_time != first.create_time {
            return Some(session);
        }
        client.delete(by_id(&session.id)).await.unwrap();
        None
    })
    .await;
    assert_eq!(
        client.delete_subject_with(before(first.create_time)).await.unwrap(),
        0,
        "created at the instant is not created before it"
    );
    assert_eq!(client.delete_subject_with(before(second.create_time)).await.unwrap(), 1);
    assert!(!client.lives(&first.id).await && client.lives(&second.id).await);
    // A retry ends no later session.
    assert_eq!(client.delete_subject_with(before(second.create_time)).await.unwrap(), 0);
    let mut just_after = second.create_time.unwrap();
    just_after.nanos += 1;
    assert_eq!(
        client.delete_subject_with(before(Some(just_after))).await.unwrap(),
        1,
        "the instant is compared with a finer resolution than 1 ms"
    );
    client.create_for("alice").await;
    assert_eq!(client.delete_subject_with(before(timestamp(0))).await.unwrap(), 0);
    let far_past = Some(prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 });
    assert_eq!(client.delete_subject_with(before(far_past)).await.unwrap(), 0);
    for seconds in [30, 3_600] {
        let answer = client.delete_subject_with(before(timestamp(world.now_us() + seconds * 1_000_000))).await;
        let status = expect_error(answer, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["created_before"]);
    }
    let year_9999 = Some(prost_types::Timestamp { seconds: 253_402_300_799, nanos: 0 });
    expect_error(client.delete_subject_with(before(year_9999)).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(client.list_subject("alice").await.len(), 1, "a refused call ended a session");
    assert_eq!(
        client.delete_subject_with(before(timestamp(world.now_us() + 5_000_000))).await.unwrap(),
        1,
        "an instant a little ahead is accepted"
    );
    // A session created after that call lives, although its create time is before the instant.
    let (later, _) = client.create_for("alice").await;
    assert!(client.lives(&later.id).await);
}

#[tokio::test]
async fn delete_subject_sessions_ends_more_than_one_page() {
    let Setup { world, client, .. } = &setup().await;
    for _ in 0..12 {
        join_all((0..100).map(|_| client.create_for("alice"))).await;
    }
    let mut watching = watch_subject(client, "alice").await;
    let (mine, _) = client.create_for("alice").await;
    let request = DeleteSubjectSessionsRequest { except_id: mine.id.clone(), ..delete_request("alice") };
    assert_eq!(client.delete_subject_with(request).await.unwrap(), 1_200);
    assert_eq!(ids(&client.list_subject("alice").await), [&mine.id[..]]);
    assert_eq!(watching.events_until_now().await.len(), 1_201);
    eventually("the index is up to date", async || (world.index("alice").len() == 1).then_some(())).await;
}

/// Runs DeleteSubjectSessions during creates and logins: a session whose call had returned before does not live after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_no_session_survives_delete_subject_sessions_under_load() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[0].watch_all().await;
    for round in 0..15 {
        let subject = &format!("user{round}");
        let guests = join_all((0..16).map(|n: usize| clients[n % 2].create(&[]))).await;
        let called = AtomicBool::new(false);
        // Whether the create or login returned before DeleteSubjectSessions was called.
        let with_order = |id: String| (!called.load(Ordering::SeqCst), id);
        let creates = join_all((0..16).map(async |n: usize| {
            let answer = clients[n % 2].create_with(create_request(subject)).await;
            answer.map(|(session, _)| with_order(session.id))
        }));
        let logins = join_all(guests.iter().enumerate().map(async |(n, (guest, token))| {
            let client = &clients[(n / 2) % 2];
            let answer = match n % 2 {
                0 => client.login(by_id(&guest.id), subject).await,
                _ => client.login_by_rotation(token, subject).await.map(|(session, _)| session),
            };
            answer.map(|session| with_order(session.id))
        }));
        let deleting = async {
            // Lets a few of the calls return first.
            for _ in 0..=round % 8 {
                clients[0].create(&[]).await;
            }
            called.store(true, Ordering::SeqCst);
            let ended = clients[round % 2].delete_subject(subject).await.unwrap();
            (ended, clients[1 - round % 2].list_subject(subject).await)
        };
        let (creates, logins, (_, listed)) = tokio::join!(creates, logins, deleting);
        let mut answered = Vec::new();
        for answer in creates.into_iter().chain(logins) {
            match answer {
                Ok(session) => answered.push(session),
                Err(status) => assert_eq!(status.reason(), "SESSION_ENDED", "{status:?}"),
            }
        }
        for (before, id) in &answered {
            assert!(!before || !ids(&listed).contains(id), "round {round}: {id} was returned before");
            assert!(!before || !clients[0].lives(id).await, "round {round}: {id} was returned before");
        }
        let live = clients[0].list_subject(subject).await.len();
        assert_eq!(clients[1].delete_subject(subject).await.unwrap() as usize, live, "round {round}");
        let events = watching.events_until_now().await;
        let endings: Vec<_> = events.iter().filter(|event| event.r#type() == EventType::Ended).collect();
        let ended: HashSet<_> = endings.iter().map(|event| &event.id).collect();
        assert_eq!(ended.len(), endings.len(), "a session ended twice");
        for (_, id) in &answered {
            assert!(ended.contains(id) && !clients[0].lives(id).await, "round {round}: {id} lives or has no event");
        }
        assert!(clients[0].list_subject(subject).await.is_empty());
        eventually("the index is empty", async || world.index(subject).is_empty().then_some(())).await;
    }
}
