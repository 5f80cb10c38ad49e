//! Limits that must not lock a user out: descriptive texts are cut, and a lowered limit refuses only growth.

use std::collections::BTreeMap;

use harness::{Client, Server, Setup, World, client::*, raw::*, refusals::check, setup, setup_with, tokens::*};
use sessiond_client::v1::{
    AttributeValue, ClientInfo, CreateSessionRequest, EventType, RotateSessionRequest, Session, UpdateSessionRequest,
};
use tonic::Code;

/// Returns the text as it is stored under this limit.
fn cut(text: &str, limit: usize) -> String {
    text[..text.floor_char_boundary(limit)].to_owned()
}

#[tokio::test]
async fn client_info_above_its_limits_is_cut_at_a_character() {
    let Setup { client, .. } = &setup().await;
    let mut watching = client.watch_all().await;
    let forwarded = ["2001:db8:85a3:8d3:1319:8a2e:370:7348"; 6].join(", ");
    // Characters of one to four bytes, at each position relative to the limits.
    for (n, character) in ["a", "\u{e9}", "\u{20ac}", "\u{1f600}"].into_iter().enumerate() {
        for before in 0..4 {
            let long = |bytes: usize| "x".repeat(before) + &character.repeat(bytes);
            let info = ClientInfo {
                ip_address: if n == 0 { forwarded[before..].to_owned() } else { long(65) },
                user_agent: long(1_025),
                device_name: long(129),
            };
            let create = CreateSessionRequest { client: Some(info.clone()), ..Default::default() };
            let (session, token) = client.create_with(create).await.unwrap();
            let expected = ClientInfo {
                ip_address: cut(&info.ip_address, 64),
                user_agent: cut(&info.user_agent, 1_024),
                device_name: cut(&info.device_name, 128),
            };
            assert_eq!(session.client, Some(expected), "{character}");
            assert_eq!(client.get(by_token(&token)).await.unwrap(), session);
            assert_eq!(watching.wait_for(EventType::Created, &session.id).await.session.unwrap(), session);
        }
    }
}

#[tokio::test]
async fn client_info_far_above_its_limits_is_accepted_again() {
    let Setup { client, .. } = &setup().await;
    let huge = "x".repeat(500_000);
    let info = ClientInfo { ip_address: huge.clone(), user_agent: huge.clone(), device_name: huge };
    let create = CreateSessionRequest {
        client: Some(info),
        token: new_token(),
        request_id: "request-0000000001".into(),
        ..Default::default()
    };
    let (session, _) = client.create_with(create.clone()).await.unwrap();
    let stored = session.client.clone().unwrap();
    let lengths = [stored.ip_address.len(), stored.user_agent.len(), stored.device_name.len()];
    assert_eq!(lengths, [64, 1_024, 128]);
    assert_eq!(client.create_with(create).await.unwrap().0, session, "a retry");
}

#[tokio::test]
async fn errors_name_timeouts_in_days() {
    let toml = "[namespace.month]\nidle_timeout = '1h'\nmax_idle_timeout = '7d'\nmax_absolute_timeout = '30d'";
    let Setup { client, .. } = &setup_with(toml).await;
    let month = client.in_namespace("month");
    let day = 86_400;
    for (client, idle, absolute, expected) in [
        (client, seconds(401 * day), None, "400 days"),
        (client, seconds(0), None, "400 days"),
        (&month, seconds(8 * day), None, "7 days"),
        (&month, None, seconds(31 * day), "30 days"),
        (&month, None, seconds(0), "30 days"),
    ] {
        let (idle_timeout, absolute_timeout) = (idle, absolute);
        let field = if idle.is_some() { "idle_timeout" } else { "absolute_timeout" };
        let create = CreateSessionRequest { idle_timeout, absolute_timeout, ..Default::default() };
        let created = check("create", client.create_with(create).await, vec![field.into()]);
        let (session, _) = client.create(&[]).await;
        let key = by_id(&session.id);
        let update = UpdateSessionRequest { key, idle_timeout, absolute_timeout, ..Default::default() };
        let updated = check("update", client.update(update).await, vec![field.into()]);
        for status in [created, updated] {
            assert!(status.message().contains(expected), "{expected}: {status:?}");
        }
    }
}

#[tokio::test]
async fn errors_name_sizes_in_binary_units() {
    let Setup { server, client, .. } = &setup().await;
    let large = AttributeValue { kind: Some(sessiond_client::v1::attribute_value::Kind::BytesValue(vec![7; 70_000])) };
    let attributes: BTreeMap<_, _> = [("a".to_owned(), large)].into();
    let create = CreateSessionRequest { attributes: attributes.clone(), ..Default::default() };
    let created = check("create", client.create_with(create.clone()).await, vec!["attributes".into()]);
    let (half, token) = client.create(&[("half", text(&"x".repeat(40_000)))]).await;
    let another_half = [("another".to_owned(), text(&"x".repeat(40_000)))];
    let key = by_id(&half.id);
    let update = UpdateSessionRequest { key, set_attributes: another_half.clone().into(), ..Default::default() };
    let updated = check("update", client.update(update).await, vec!["set_attributes".into()]);
    let rotation = RotateSessionRequest { set_attributes: another_half.into(), ..rotation_of(&token) };
    let rotated = check("rotation", client.rotate_with(rotation).await, vec!["set_attributes".into()]);
    for status in [created, updated, rotated] {
        assert!(status.message().contains("64 KiB"), "{status:?}");
    }
    let raw = Raw::connect(&server.address).await;
    let (_, metadata) = raw.call("GetSession", &[("x", &"x".repeat(17_000))], framed(&create)).await;
    let (_, message) = raw.call("CreateSession", &[], [header(false, 5 << 20), vec![0; 5 << 20]].concat()).await;
    for (status, reason, expected) in
        [(metadata, "METADATA_TOO_LARGE", "16 KiB"), (message, "MESSAGE_TOO_LARGE", "4 MiB")]
    {
        assert_eq!(status.reason(), reason, "{status:?}");
        assert!(status.message().contains(expected), "{expected}: {status:?}");
    }
}

/// Two servers on one store: that of `client` has lower limits than the sessions that the other one made.
struct Lowered {
    _world: World,
    _servers: [Server; 2],
    roomy: Client,
    client: Client,
}

const LIMITS: &str = "[default_policy]\nmax_attributes = 3\nmax_payload_bytes = '1 KiB'";

impl Lowered {
    async fn start() -> Self {
        let world = World::shared();
        let servers = [world.server().await, world.server_with(LIMITS).await];
        let (roomy, client) = (servers[0].client().await, servers[1].client().await);
        Lowered { _world: world, roomy, client, _servers: servers }
    }

    /// Creates a session of five attributes of this size.
    async fn above(&self, bytes: usize) -> (Session, String) {
        let value = text(&incompressible(bytes));
        let names: Vec<_> = (0..5).map(|n| format!("n{n}")).collect();
        let attributes: Vec<_> = names.iter().map(|name| (&name[..], value.clone())).collect();
        self.roomy.create(&attributes).await
    }
}

fn values(pairs: &[(&str, usize)]) -> BTreeMap<String, AttributeValue> {
    pairs.iter().map(|(name, bytes)| ((*name).to_owned(), text(&"y".repeat(*bytes)))).collect()
}

/// A change of attributes.
struct Change {
    clear: bool,
    remove: &'static [&'static str],
    set: &'static [(&'static str, usize)],
}

const fn change(clear: bool, remove: &'static [&'static str], set: &'static [(&'static str, usize)]) -> Change {
    Change { clear, remove, set }
}

/// Applies the change by an update or by a rotation; returns the session.
async fn apply(client: &Client, by_rotation: bool, token: &str, change: &Change) -> CallResult<Session> {
    let (clear_attributes, set_attributes) = (change.clear, values(change.set));
    let remove_attributes = change.remove.iter().map(|name| (*name).to_owned()).collect();
    if by_rotation {
        let rotation =
            RotateSessionRequest { clear_attributes, remove_attributes, set_attributes, ..rotation_of(token) };
        return Ok(client.rotate_with(rotation).await?.0);
    }
    let key = by_token(token);
    let update =
        UpdateSessionRequest { key, clear_attributes, remove_attributes, set_attributes, ..Default::default() };
    client.update(update).await
}

/// Checks changes of sessions of five attributes of this size, of which none may be refused or each must be.
async fn check_changes(bytes: usize, accepted: &[Change], refused: &[Change]) {
    let lowered = Lowered::start().await;
    let client = &lowered.client;
    for by_rotation in [false, true] {
        for change in accepted {
            let (_, token) = lowered.above(bytes).await;
            let changed = apply(client, by_rotation, &token, change).await;
            let session = changed.unwrap_or_else(|status| panic!("{:?}: {status:?}", (change.remove, change.set)));
            for (name, value) in values(change.set) {
                assert_eq!(session.attributes[&name], value);
            }
        }
        for change in refused {
            let (session, token) = lowered.above(bytes).await;
            let name = format!("{:?}", (change.remove, change.set));
            check(&name, apply(client, by_rotation, &token, change).await, vec!["set_attributes".into()]);
            assert_eq!(client.get(by_token(&token)).await.unwrap(), session, "{name}");
        }
    }
}

#[tokio::test]
async fn lowered_max_attributes_refuses_only_more_attributes() {
    let accepted = [
        change(false, &["n0"], &[]),
        change(false, &[], &[("n0", 100)]),
        change(false, &["n0"], &[("new", 10)]),
        change(false, &["n0", "n1", "n2"], &[("new", 10)]),
        change(true, &[], &[("n0", 1), ("n1", 1), ("n2", 1), ("n3", 1), ("new", 1)]),
        change(false, &[], &[("n0", 1), ("n1", 1), ("n2", 1), ("n3", 1)]),
    ];
    let refused = [
        change(false, &[], &[("new", 1)]),
        change(false, &["n0"], &[("new", 1), ("newer", 1)]),
        change(true, &[], &[("a", 1), ("b", 1), ("c", 1), ("d", 1), ("e", 1), ("f", 1)]),
    ];
    check_changes(20, &accepted, &refused).await;
}

#[tokio::test]
async fn lowered_max_payload_bytes_refuses_only_more_bytes() {
    let accepted = [
        change(false, &["n0"], &[]),
        change(false, &[], &[("n0", 600)]),
        change(false, &[], &[("n0", 599)]),
        change(false, &[], &[("n0", 700), ("n1", 500)]),
        change(false, &["n0", "n1"], &[("n2", 1_500)]),
        change(true, &[], &[("n0", 2_500)]),
    ];
    let refused = [
        change(false, &[], &[("n0", 601)]),
        change(false, &[], &[("n0", 700), ("n1", 501)]),
        change(false, &["n0"], &[("n1", 1_300)]),
        change(true, &[], &[("n0", 3_200)]),
    ];
    check_changes(600, &accepted, &refused).await;
}

#[tokio::test]
async fn session_above_lowered_limits_logs_in_and_out() {
    let lowered = Lowered::start().await;
    let client = &lowered.client;
    let alice = || Some("alice".to_owned());
    let (guest, token) = lowered.above(600).await;
    let label = UpdateSessionRequest { key: by_token(&token), set_labels: labels(&[("a", "b")]), ..Default::default() };
    client.update(label).await.unwrap();
    client.update(UpdateSessionRequest { idle_timeout: seconds(60), ..login(&token, "") }).await.unwrap();
    client.update(login(&token, "alice")).await.unwrap();
    let authenticated = RotateSessionRequest { authentication: by_password(), ..rotation_of(&token) };
    let (session, token) = client.rotate_with(authenticated).await.unwrap();
    assert_eq!((&session.subject[..], &session.attributes), ("alice", &guest.attributes));
    assert!(client.delete(by_token(&token)).await.unwrap());
    let (_, token) = lowered.above(600).await;
    let rotation = RotateSessionRequest { subject: alice(), ..rotation_of(&token) };
    let (session, token) = client.rotate_with(rotation).await.unwrap();
    let smaller = [("n0", text("small"))];
    client.set(by_token(&token), &smaller).await.unwrap();
    client.login(by_id(&session.id), "").await.unwrap();
    expect_error(client.set(by_id(&session.id), &[("n9", text("1"))]).await, Code::InvalidArgument, "FIELD_INVALID");
}
