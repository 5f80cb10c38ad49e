//! A subject's sessions as a whole: listed, watched, ended.

mod harness;

use std::{
    collections::{BTreeMap, HashSet},
    sync::atomic::{AtomicBool, Ordering},
};

use futures_util::future::join_all;
use harness::{Client, Watching, World, client::*, eventually};
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

async fn page(client: &Client, request: ListSessionsRequest) -> Answer<ListSessionsResponse> {
    Ok(client.grpc.clone().list_sessions(request).await?.into_inner())
}

fn create_request(subject: &str) -> CreateSessionRequest {
    CreateSessionRequest { subject: subject.into(), ..Default::default() }
}

fn delete_request(subject: &str) -> DeleteSubjectSessionsRequest {
    DeleteSubjectSessionsRequest { subject: subject.into(), ..Default::default() }
}

// ---- listed ----

#[tokio::test]
async fn sessions_are_listed_newest_first_by_when_they_became_the_subjects() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (by_update, _) = client.create(&[]).await;
    let (by_rotation, token) = client.create(&[]).await;
    let (made, _) = client.create_of("alice").await;
    client.create_of("bob").await;
    client.create(&[]).await;
    client.login_by_rotation(&token, "alice").await.unwrap();
    client.login(by_id(&by_update.id), "alice").await.unwrap();
    // What changes nothing of that changes no order.
    client.set(by_id(&made.id), &[("a", text("1"))]).await.unwrap();
    client.login(by_id(&made.id), "alice").await.unwrap();
    assert_eq!(ids(&client.list_of("alice").await), [&by_update.id[..], &by_rotation.id, &made.id]);
}

#[tokio::test]
async fn a_list_tells_device_and_authentication_but_no_attributes_unless_asked_for() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let device = ClientInfo { device_name: "phone".into(), ..Default::default() };
    let proof = Authentication { level: 2, methods: vec!["pwd".into()], authentication_time: None };
    let request = CreateSessionRequest {
        client: Some(device.clone()),
        authentication: Some(proof.clone()),
        attributes: BTreeMap::from([("a".into(), text("1"))]),
        labels: labels(&[("device", "phone")]),
        ..create_request("alice")
    };
    let (session, _) = client.create_as(request).await.unwrap();
    let basic = page(&client, list_request("alice")).await.unwrap().sessions;
    assert_eq!(basic, [Session { attributes: BTreeMap::new(), ..session.clone() }]);
    assert_eq!((&basic[0].client, &basic[0].authentication), (&Some(device), &Some(proof)));
    let full = ListSessionsRequest { view: SessionView::Full.into(), ..list_request("alice") };
    assert_eq!(page(&client, full).await.unwrap().sessions, [session]);
    for (label, count) in [("phone", 1), ("laptop", 0)] {
        let request = ListSessionsRequest { labels: labels(&[("device", label)]), ..list_request("alice") };
        assert_eq!(page(&client, request).await.unwrap().sessions.len(), count, "{label}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_of_every_size_are_complete_and_in_order_while_others_come_and_go() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let (client, other) = (a.client().await, b.client().await);
    let mut stay = Vec::new();
    for n in 0..24 {
        stay.insert(0, client.create_of("alice").await.0.id);
        if n % 3 == 0 {
            client.create_of("alice").await;
        }
    }
    let stays: HashSet<&String> = stay.iter().collect();
    let done = AtomicBool::new(false);
    let coming_and_going = async {
        let going: Vec<_> =
            client.list_of("alice").await.into_iter().filter(|session| !stays.contains(&session.id)).collect();
        let mut going = ids(&going);
        while !done.load(Ordering::Relaxed) {
            other.delete(by_id(&going.remove(0))).await.unwrap();
            going.push(other.create_of("alice").await.0.id);
        }
    };
    let listing = async {
        for page_size in (1..=26).chain([100]) {
            let mut request = ListSessionsRequest { page_size, ..list_request("alice") };
            let mut told = Vec::new();
            loop {
                let page = page(&client, request.clone()).await.unwrap();
                assert!(page.sessions.len() <= page_size as usize);
                assert!(page.sessions.iter().all(|session| session.subject == "alice"));
                told.extend(ids(&page.sessions));
                if page.next_page_token.is_empty() {
                    break;
                }
                request.page_token = page.next_page_token;
            }
            told.retain(|id| stays.contains(id));
            assert_eq!(told, stay, "in pages of {page_size}");
        }
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(coming_and_going, listing);
}

#[tokio::test]
async fn a_page_token_is_good_for_its_own_subject_alone() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    for subject in ["alice", "alice", "bob", "bob"] {
        client.create_of(subject).await;
        client.in_namespace("other").create_of(subject).await;
    }
    let first = page(&client, ListSessionsRequest { page_size: 1, ..list_request("alice") }).await.unwrap();
    let page_token = first.next_page_token;
    assert!(!page_token.is_empty());
    for other in [
        list_request("bob"),
        ListSessionsRequest { subject: None, ..list_request("") },
        ListSessionsRequest { namespace: "other".into(), ..list_request("alice") },
        ListSessionsRequest { labels: labels(&[("a", "b")]), ..list_request("alice") },
    ] {
        let request = ListSessionsRequest { page_token: page_token.clone(), ..other };
        let status = expect_error(page(&client, request).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["page_token"]);
    }
    let second = ListSessionsRequest { page_token, ..list_request("alice") };
    assert_eq!(page(&client, second).await.unwrap().sessions.len(), 1);
}

#[tokio::test]
async fn no_page_of_a_subject_is_larger_than_2_mib() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut expected = Vec::new();
    for _ in 0..50 {
        let attributes = BTreeMap::from([("a".into(), text(&incompressible(60_000)))]);
        let request = CreateSessionRequest { attributes, ..create_request("alice") };
        expected.insert(0, client.create_as(request).await.unwrap().0.id);
    }
    let mut request = ListSessionsRequest { page_size: 1000, view: SessionView::Full.into(), ..list_request("alice") };
    let (mut told, mut pages) = (Vec::new(), 0);
    loop {
        let page = page(&client, request.clone()).await.unwrap();
        assert!(prost::Message::encoded_len(&page) <= 2 * 1024 * 1024);
        told.extend(ids(&page.sessions));
        pages += 1;
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!((told, pages), (expected, 2));
}

#[tokio::test]
async fn a_subject_may_be_any_text() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nsession_limit = 2").await;
    let client = server.client().await;
    let (long, wide) = ("s".repeat(256), "\u{1f600}".repeat(64));
    let subjects = [
        "message",
        "smessage",
        "pmessage",
        "subscribe",
        "MOVED 1 x",
        "ASK 1 127.0.0.1:1",
        "{ses:00:20}",
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
        watches.push(watch_subject(&client, subject).await);
        let (first, _) = client.create_of(subject).await;
        let (second, _) = client.create(&[]).await;
        client.login(by_id(&second.id), subject).await.unwrap();
        made.push(vec![second.id, first.id]);
    }
    for ((subject, made), watching) in subjects.into_iter().zip(made).zip(&mut watches) {
        let listed = client.list_of(subject).await;
        assert_eq!(ids(&listed), made, "{subject:?}");
        assert!(listed.iter().all(|session| session.subject == subject), "{subject:?}");
        let (third, _) = client.create_of(subject).await;
        assert!(!client.lives(&made[1]).await, "the limit is of each subject: {subject:?}");
        assert_eq!(client.delete_all(subject).await.unwrap(), 2, "{subject:?}");
        let kinds: Vec<_> = watching.everything_so_far().await.iter().map(SessionEvent::r#type).collect();
        assert_eq!(kinds.iter().filter(|kind| **kind == EventType::Ended).count(), 3, "{subject:?}");
        assert_eq!(kinds.len(), 6, "{subject:?}");
        assert!(!client.lives(&third.id).await);
    }
    let too_long = create_request(&"s".repeat(257));
    let status = expect_error(client.create_as(too_long).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(status.bad_fields(), ["subject"]);
}

#[tokio::test]
async fn an_empty_subject_has_no_list_no_watch_and_no_log_out() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    client.create(&[]).await;
    let list = page(&client, list_request("")).await;
    let watch = client.watch(WatchRequest { subject: Some(String::new()), ..Default::default() }).await;
    let delete = client.delete_all("").await;
    for answer in [list.map(drop), watch.map(drop), delete.map(drop)] {
        assert_eq!(expect_error(answer, Code::InvalidArgument, "FIELD_INVALID").bad_fields(), ["subject"]);
    }
}

#[tokio::test]
async fn namespaces_know_nothing_of_each_others_subjects() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nsession_limit = 1").await;
    let client = server.client().await;
    let other = client.in_namespace("other");
    let mut watching = watch_subject(&client, "alice").await;
    let (here, _) = client.create_of("alice").await;
    let (there, _) = other.create_of("alice").await;
    assert_eq!(ids(&client.list_of("alice").await), [&here.id[..]]);
    assert_eq!(ids(&other.list_of("alice").await), [&there.id[..]]);
    assert_eq!(other.delete_all("alice").await.unwrap(), 1);
    assert!(client.lives(&here.id).await);
    let told = watching.everything_so_far().await;
    assert!(told.iter().all(|event| event.id == here.id) && told.len() == 1, "{told:?}");
    // An id of another namespace is one that nobody has.
    let except = DeleteSubjectSessionsRequest { except_id: there.id.clone(), ..delete_request("alice") };
    assert_eq!(client.delete_all_as(except).await.unwrap(), 1);
}

#[tokio::test]
async fn what_the_index_holds_of_others_is_neither_listed_nor_ended() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (mine, _) = client.create_of("alice").await;
    let (of_bob, _) = client.create_of("bob").await;
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
    let mut told = Vec::new();
    loop {
        let page = page(&client, request.clone()).await.unwrap();
        told.extend(ids(&page.sessions));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(told, [&mine.id[..]]);
    assert_eq!(client.delete_all("alice").await.unwrap(), 1);
    assert!(client.lives(&of_bob.id).await && client.lives(&guest.id).await);
    assert!(world.index("alice").is_empty(), "and nothing of them is kept");
}

// ---- whose it is ----

#[tokio::test]
async fn a_session_goes_from_one_subject_to_another_by_way_of_none_and_the_lists_follow() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (session, token) = client.create_of("alice").await;
    let refused = client.login(by_id(&session.id), "bob").await;
    expect_error(refused, Code::FailedPrecondition, "SUBJECT_CHANGE");
    let refused = client.login_by_rotation(&token, "bob").await;
    expect_error(refused, Code::FailedPrecondition, "SUBJECT_CHANGE");
    assert_eq!(ids(&client.list_of("alice").await), [&session.id[..]]);
    assert!(client.list_of("bob").await.is_empty() && world.index("bob").is_empty());
    client.login(by_id(&session.id), "").await.unwrap();
    assert!(client.list_of("alice").await.is_empty());
    client.login(by_id(&session.id), "bob").await.unwrap();
    assert_eq!(ids(&client.list_of("bob").await), [&session.id[..]]);
    assert!(client.list_of("alice").await.is_empty());
    eventually("alice's index forgets it", async || world.index("alice").is_empty().then_some(())).await;
    assert_eq!(world.index("bob").len(), 1);
}

#[tokio::test]
async fn a_session_that_left_its_subject_is_not_ended_with_it() {
    let world = World::shared();
    let server = world.server_with("[default_policy]\nsession_limit = 1").await;
    let client = server.client().await;
    for turn in 0..20 {
        let (left, _) = client.create_of("alice").await;
        client.login(by_id(&left.id), "").await.unwrap();
        if turn % 2 == 0 {
            assert_eq!(client.delete_all("alice").await.unwrap(), 0, "turn {turn}");
        } else {
            // Nor is it in the way of another one.
            let (next, _) = client.create_of("alice").await;
            assert!(client.lives(&next.id).await);
        }
        assert!(client.lives(&left.id).await, "turn {turn}");
        // It may come back, and is ended then.
        client.login(by_id(&left.id), "alice").await.unwrap();
        assert_eq!(ids(&client.list_of("alice").await), [&left.id[..]], "turn {turn}");
        assert_eq!(client.delete_all("alice").await.unwrap(), 1, "turn {turn}");
    }
}

// ---- watched ----

async fn watch_subject(client: &Client, subject: &str) -> Watching {
    watch_as(client, WatchRequest { subject: Some(subject.into()), ..subject_watch() }).await
}

fn subject_watch() -> WatchRequest {
    WatchRequest { whole_namespace: false, ..whole_namespace() }
}

async fn watch_as(client: &Client, request: WatchRequest) -> Watching {
    let mut watching = client.watch(request).await.unwrap();
    watching.bookmark().await;
    watching
}

fn told(events: &[SessionEvent]) -> Vec<(EventType, &str)> {
    events.iter().map(|event| (event.r#type(), &event.id[..])).collect()
}

#[tokio::test]
async fn a_watch_by_subject_tells_its_sessions_from_login_to_clearing() {
    let world = World::shared();
    let (a, b) = (world.server_with("partitions = 1").await, world.server_with("partitions = 1").await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = watch_subject(&other, "alice").await;
    let (made, token) = client.create_of("alice").await;
    let (guest, guest_token) = client.create(&[]).await;
    let (foreign, _) = client.create_of("bob").await;
    client.set(by_id(&guest.id), &[("a", text("unseen"))]).await.unwrap();
    client.set(by_id(&foreign.id), &[("a", text("unseen"))]).await.unwrap();
    client.set(by_id(&made.id), &[("a", text("1"))]).await.unwrap();
    client.rotate(&token).await.unwrap();
    let rotation = RotateSessionRequest { token: guest_token, subject: Some("alice".into()), ..Default::default() };
    client.rotate_as(rotation).await.unwrap();
    client.login(by_id(&guest.id), "").await.unwrap();
    client.set(by_id(&guest.id), &[("a", text("unseen"))]).await.unwrap();
    client.login(by_id(&guest.id), "alice").await.unwrap();
    client.delete(by_id(&guest.id)).await.unwrap();
    client.delete(by_id(&foreign.id)).await.unwrap();
    client.delete(by_id(&made.id)).await.unwrap();
    let events = watching.everything_so_far().await;
    let (m, g) = (&made.id[..], &guest.id[..]);
    use EventType::{Created, Ended, Left, Rotated, Updated};
    let expected =
        [(Created, m), (Updated, m), (Rotated, m), (Rotated, g), (Left, g), (Updated, g), (Ended, g), (Ended, m)];
    assert_eq!(told(&events), expected);
    assert_eq!(events[4].session.as_ref().unwrap().subject, "");
    assert_eq!(events[3].session.as_ref().unwrap().subject, "alice");
}

#[tokio::test]
async fn a_watch_by_subject_heeds_labels_types_and_view() {
    let world = World::shared();
    let server = world.server_with("partitions = 1").await;
    let client = server.client().await;
    let phones =
        WatchRequest { subject: Some("alice".into()), labels: labels(&[("device", "phone")]), ..subject_watch() };
    let mut phones = watch_as(&client, phones).await;
    let types = vec![EventType::Left.into(), EventType::Ended.into()];
    let some = WatchRequest { subject: Some("alice".into()), types, view: 0, ..subject_watch() };
    let mut some = watch_as(&client, some).await;
    let create = |device: &str| CreateSessionRequest {
        labels: labels(&[("device", device)]),
        attributes: BTreeMap::from([("a".into(), text("1"))]),
        ..create_request("alice")
    };
    let (phone, _) = client.create_as(create("phone")).await.unwrap();
    let (laptop, _) = client.create_as(create("laptop")).await.unwrap();
    let paint = async |id: &str, device: &str| {
        let set_labels = labels(&[("device", device)]);
        client.update(UpdateSessionRequest { key: by_id(id), set_labels, ..Default::default() }).await.unwrap();
    };
    paint(&phone.id, "laptop").await;
    paint(&laptop.id, "phone").await;
    client.login(by_id(&laptop.id), "").await.unwrap();
    client.login(by_id(&phone.id), "").await.unwrap();
    client.login(by_id(&phone.id), "alice").await.unwrap();
    client.delete_all("alice").await.unwrap();
    let (p, l) = (&phone.id[..], &laptop.id[..]);
    use EventType::{Created, Ended, Left, Updated};
    assert_eq!(told(&phones.everything_so_far().await), [(Created, p), (Left, p), (Updated, l), (Left, l)]);
    let events = some.everything_so_far().await;
    assert_eq!(told(&events), [(Left, l), (Left, p), (Ended, p)]);
    assert!(events.iter().all(|event| event.session.as_ref().unwrap().attributes.is_empty()), "BASIC");
}

#[tokio::test]
async fn a_watch_by_subject_resumes_on_another_instance() {
    let world = World::shared();
    let (a, b) = (world.server_with("partitions = 1").await, world.server_with("partitions = 1").await);
    let (client, other) = (a.client().await, b.client().await);
    let mut watching = watch_subject(&client, "alice").await;
    let (first, _) = client.create_of("alice").await;
    assert_eq!(told(&watching.events(1).await), [(EventType::Created, &first.id[..])]);
    let resume_token = watching.token.clone();
    drop(watching);
    let (second, _) = client.create(&[]).await;
    client.create_of("bob").await;
    client.login(by_id(&second.id), "alice").await.unwrap();
    client.login(by_id(&first.id), "").await.unwrap();
    client.delete(by_id(&first.id)).await.unwrap();
    let request = WatchRequest { subject: Some("alice".into()), resume_token, ..subject_watch() };
    let mut resumed = watch_as(&other, request).await;
    client.delete_all("alice").await.unwrap();
    let expected = [(EventType::Updated, &second.id[..]), (EventType::Left, &first.id), (EventType::Ended, &second.id)];
    assert_eq!(told(&resumed.everything_so_far().await), expected);
}

#[tokio::test]
async fn w10_an_ending_out_of_band_reaches_the_watchers_of_subjects() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = watch_subject(&client, "alice").await;
    let request = CreateSessionRequest { idle_timeout: millis(700), ..create_request("alice") };
    let (swept, _) = client.create_as(request).await.unwrap();
    let (written, _) = client.create_of("alice").await;
    for id in [&swept.id, &written.id] {
        let keys = world.redis.keys(&format!("{}*:s:*:{id}", world.prefix));
        assert_eq!(world.redis.number(&["DEL", &keys[0]]), 1);
    }
    expect_error(client.set(by_id(&written.id), &[]).await, Code::NotFound, "SESSION_ENDED");
    assert_eq!(watching.wait_for(EventType::Ended, &written.id).await.cause(), Cause::OutOfBand);
    assert_eq!(watching.wait_for(EventType::Ended, &swept.id).await.cause(), Cause::IdleTimeout);
    assert!(client.list_of("alice").await.is_empty());
}

// ---- ended ----

#[tokio::test]
async fn all_are_ended_with_the_cause_and_their_watchers_hear_each() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let mut watching = watch_subject(&client, "alice").await;
    for (cause, expected) in [(0, Cause::Revoked), (2, Cause::Revoked), (1, Cause::Logout)] {
        let mut made = HashSet::new();
        for _ in 0..5 {
            made.insert(client.create_of("alice").await.0.id);
        }
        let (of_bob, _) = client.create_of("bob").await;
        let request = DeleteSubjectSessionsRequest { cause, ..delete_request("alice") };
        assert_eq!(client.delete_all_as(request.clone()).await.unwrap(), 5);
        assert_eq!(client.delete_all_as(request).await.unwrap(), 0);
        let events = watching.everything_so_far().await;
        let endings: Vec<_> = events.iter().filter(|event| event.r#type() == EventType::Ended).collect();
        assert!(endings.iter().all(|event| event.cause() == expected), "{endings:?}");
        assert_eq!(endings.iter().map(|event| event.id.clone()).collect::<HashSet<_>>(), made);
        assert!(client.lives(&of_bob.id).await && client.list_of("alice").await.is_empty());
        for id in made {
            let status = expect_error(client.get(by_id(&id)).await, Code::NotFound, "SESSION_ENDED");
            assert_eq!(status.metadata_of("cause"), expected.as_str_name().trim_start_matches("CAUSE_"));
        }
    }
    for cause in [3, 4, 5, 6, 7, 99] {
        let request = DeleteSubjectSessionsRequest { cause, ..delete_request("alice") };
        let status = expect_error(client.delete_all_as(request).await, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["cause"]);
    }
}

#[tokio::test]
async fn the_excepted_one_lives_on_and_must_be_the_subjects() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let (mine, _) = client.create_of("alice").await;
    for _ in 0..3 {
        client.create_of("alice").await;
    }
    let (of_bob, _) = client.create_of("bob").await;
    let (guest, _) = client.create(&[]).await;
    let except = |id: &str| DeleteSubjectSessionsRequest { except_id: id.into(), ..delete_request("alice") };
    for id in [&of_bob.id[..], &guest.id, "x", "aaaaaaaaaaaaaaaaaaaaaaaaab", &"a".repeat(27)] {
        let answer = client.delete_all_as(except(id)).await;
        assert_eq!(expect_error(answer, Code::InvalidArgument, "FIELD_INVALID").bad_fields(), ["except_id"], "{id}");
        assert_eq!(client.list_of("alice").await.len(), 4, "nothing was ended");
    }
    assert_eq!(client.delete_all_as(except(&mine.id)).await.unwrap(), 3);
    assert_eq!(ids(&client.list_of("alice").await), [&mine.id[..]]);
    assert!(client.lives(&mine.id).await && client.lives(&of_bob.id).await && client.lives(&guest.id).await);
    assert_eq!(client.delete_all_as(except("aaaaaaaaaaaaaaaaaaaaaaaaaa")).await.unwrap(), 1);
    // One that has ended is nobody's.
    assert_eq!(client.delete_all_as(except(&mine.id)).await.unwrap(), 0);
}

fn timestamp(us: u64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: (us / 1_000_000) as i64, nanos: (us % 1_000_000) as i32 * 1_000 })
}

#[tokio::test]
async fn only_those_made_before_an_instant_are_ended() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    let before = |at| DeleteSubjectSessionsRequest { created_before: at, ..delete_request("alice") };
    let (first, _) = client.create_of("alice").await;
    // Made in another millisecond.
    let second = eventually("a later millisecond", async || {
        let (session, _) = client.create_of("alice").await;
        if session.create_time != first.create_time {
            return Some(session);
        }
        client.delete(by_id(&session.id)).await.unwrap();
        None
    })
    .await;
    assert_eq!(client.delete_all_as(before(first.create_time)).await.unwrap(), 0, "made at it is not made before it");
    assert_eq!(client.delete_all_as(before(second.create_time)).await.unwrap(), 1);
    assert!(!client.lives(&first.id).await && client.lives(&second.id).await);
    // A repeat ends no later one.
    assert_eq!(client.delete_all_as(before(second.create_time)).await.unwrap(), 0);
    let mut just_after = second.create_time.unwrap();
    just_after.nanos += 1;
    assert_eq!(client.delete_all_as(before(Some(just_after))).await.unwrap(), 1, "finer than a millisecond");
    client.create_of("alice").await;
    assert_eq!(client.delete_all_as(before(timestamp(0))).await.unwrap(), 0);
    let far_past = Some(prost_types::Timestamp { seconds: -62_135_596_800, nanos: 0 });
    assert_eq!(client.delete_all_as(before(far_past)).await.unwrap(), 0);
    for seconds in [30, 3_600] {
        let answer = client.delete_all_as(before(timestamp(world.now_us() + seconds * 1_000_000))).await;
        let status = expect_error(answer, Code::InvalidArgument, "FIELD_INVALID");
        assert_eq!(status.bad_fields(), ["created_before"]);
    }
    let year_9999 = Some(prost_types::Timestamp { seconds: 253_402_300_799, nanos: 0 });
    expect_error(client.delete_all_as(before(year_9999)).await, Code::InvalidArgument, "FIELD_INVALID");
    assert_eq!(client.list_of("alice").await.len(), 1, "nothing was ended");
    assert_eq!(client.delete_all_as(before(timestamp(world.now_us() + 5_000_000))).await.unwrap(), 1, "a little ahead");
    // What is made after that call lives, ahead or not.
    let (later, _) = client.create_of("alice").await;
    assert!(client.lives(&later.id).await);
}

#[tokio::test]
async fn more_than_a_page_of_sessions_is_ended_in_one_call() {
    let world = World::shared();
    let server = world.server().await;
    let client = server.client().await;
    for _ in 0..12 {
        join_all((0..100).map(|_| client.create_of("alice"))).await;
    }
    let mut watching = watch_subject(&client, "alice").await;
    let (mine, _) = client.create_of("alice").await;
    let request = DeleteSubjectSessionsRequest { except_id: mine.id.clone(), ..delete_request("alice") };
    assert_eq!(client.delete_all_as(request).await.unwrap(), 1_200);
    assert_eq!(ids(&client.list_of("alice").await), [&mine.id[..]]);
    assert_eq!(watching.everything_so_far().await.len(), 1_201);
    eventually("the index forgets them", async || (world.index("alice").len() == 1).then_some(())).await;
}

/// Log-out-everywhere amid creates and logins; what had answered before it was called does not live after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_nothing_outlives_a_log_out_everywhere_amid_creates_and_logins() {
    let world = World::shared();
    let (a, b) = (world.server().await, world.server().await);
    let clients = [a.client().await, b.client().await];
    let mut watching = clients[0].watch_all().await;
    for round in 0..15 {
        let subject = &format!("user{round}");
        let guests = join_all((0..16).map(|n: usize| clients[n % 2].create(&[]))).await;
        let called = AtomicBool::new(false);
        // Whose answer had come before the call, and whose not.
        let after = |id: String| (!called.load(Ordering::SeqCst), id);
        let creates = join_all((0..16).map(async |n: usize| {
            let answer = clients[n % 2].create_as(create_request(subject)).await;
            answer.map(|(session, _)| after(session.id))
        }));
        let logins = join_all(guests.iter().enumerate().map(async |(n, (guest, token))| {
            let client = &clients[(n / 2) % 2];
            let answer = match n % 2 {
                0 => client.login(by_id(&guest.id), subject).await,
                _ => client.login_by_rotation(token, subject).await.map(|(session, _)| session),
            };
            answer.map(|session| after(session.id))
        }));
        let deleting = async {
            // A few of them have answered by then.
            for _ in 0..=round % 8 {
                clients[0].create(&[]).await;
            }
            called.store(true, Ordering::SeqCst);
            let ended = clients[round % 2].delete_all(subject).await.unwrap();
            (ended, clients[1 - round % 2].list_of(subject).await)
        };
        let (creates, logins, (_, listed)) = tokio::join!(creates, logins, deleting);
        let mut answered = Vec::new();
        for answer in creates.into_iter().chain(logins) {
            match answer {
                Ok(answered_then) => answered.push(answered_then),
                Err(status) => assert_eq!(status.reason(), "SESSION_ENDED", "{status:?}"),
            }
        }
        for (before, id) in &answered {
            assert!(!before || !ids(&listed).contains(id), "round {round}: it had answered before");
            assert!(!before || !clients[0].lives(id).await, "round {round}: it had answered before");
        }
        let live = clients[0].list_of(subject).await.len();
        assert_eq!(clients[1].delete_all(subject).await.unwrap() as usize, live, "round {round}");
        let events = watching.everything_so_far().await;
        let endings: Vec<_> = events.iter().filter(|event| event.r#type() == EventType::Ended).collect();
        let ended: HashSet<_> = endings.iter().map(|event| &event.id).collect();
        assert_eq!(ended.len(), endings.len(), "none ends twice");
        for (_, id) in &answered {
            assert!(ended.contains(id) && !clients[0].lives(id).await, "round {round}: it ended, and that was told");
        }
        assert!(clients[0].list_of(subject).await.is_empty());
        eventually("the index is empty", async || world.index(subject).is_empty().then_some(())).await;
    }
}
