//! S3: a server process that was suspended applies no call whose client gave up in that time.

use std::time::Duration;

use harness::{Client, Server, World, client::*, eventually, process::Process, raw::*, tokens::*};
use sessiond_client::v1::{CreateSessionRequest, DeleteSessionRequest, RotateSessionRequest, UpdateSessionRequest};
use tokio::time::{sleep, timeout};

const ROUNDS: usize = 4;
/// Deadline of the calls that reach the suspended process.
const DEADLINE: Duration = Duration::from_millis(300);

/// A server process that the test suspends, and another server on the same store.
struct Suspendable {
    world: World,
    process: Process,
    _server: Server,
    /// Client of the process.
    slow: Client,
    client: Client,
}

impl Suspendable {
    async fn start() -> Self {
        let world = World::dedicated();
        let process = Process::start(&[format!("--redis={}", world.redis.url())]);
        let server = world.server().await;
        let (slow, client) = (process.client().await, server.client().await);
        // Loads the scripts, and opens the connection.
        slow.rotate_and_use(&slow.create(&[]).await.1).await;
        Suspendable { world, process, _server: server, slow, client }
    }

    /// Continues the process and waits until everything that it had received has been executed or refused.
    async fn resume(&self) {
        self.process.resume();
        let write = async || self.slow.create_with(Default::default()).await.ok();
        eventually("the process responds again", write).await;
        write().await.expect("the process responds");
    }
}

/// Sessions that the late calls would change, and the requests of these calls.
struct Targets {
    updated: String,
    rotated: String,
    deleted: String,
    created: String,
    update: UpdateSessionRequest,
    rotation: RotateSessionRequest,
    delete: DeleteSessionRequest,
    create: CreateSessionRequest,
}

impl Targets {
    async fn create(client: &Client) -> Self {
        let namespace = || NAMESPACE.to_owned();
        let (updated, _) = client.create(&[("a", text("0"))]).await;
        let (rotated, token) = client.create(&[]).await;
        let (deleted, _) = client.create(&[]).await;
        let new_token = new_token();
        let set_attributes = [("a".to_owned(), text("late")), ("late".into(), text("1"))].into();
        let key = by_id(&updated.id);
        Targets {
            update: UpdateSessionRequest { namespace: namespace(), key, set_attributes, ..Default::default() },
            rotation: RotateSessionRequest { namespace: namespace(), ..rotation_of(&token) },
            delete: DeleteSessionRequest { namespace: namespace(), key: by_id(&deleted.id), ..Default::default() },
            created: id_of(&new_token),
            create: CreateSessionRequest { namespace: namespace(), token: new_token, ..Default::default() },
            updated: updated.id,
            rotated: rotated.id,
            deleted: deleted.id,
        }
    }

    /// Makes newer changes: a newer value, and the delete of the session that the late call would create.
    async fn overtake(&self, client: &Client) {
        client.set(by_id(&self.updated), &[("a", text("newer"))]).await.unwrap();
        assert!(!client.delete(by_id(&self.created)).await.unwrap());
    }

    async fn assert_unchanged(&self, client: &Client, round: usize) {
        let updated = client.get(by_id(&self.updated)).await.unwrap();
        assert_eq!(updated.attributes, [("a".to_owned(), text("newer"))].into(), "round {round}: a late update");
        let rotated = client.get(by_id(&self.rotated)).await.unwrap();
        assert_eq!(rotated.token_generation, 1, "round {round}: a late rotation");
        assert!(client.lives(&self.deleted).await, "round {round}: a late delete");
        assert!(!client.lives(&self.created).await, "round {round}: a late create");
    }
}

/// Returns the request with the deadline of these tests. The client resets the call at that time.
fn with_deadline<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_call_reset_while_the_server_was_suspended_is_not_applied() {
    let suspendable = Suspendable::start().await;
    let Suspendable { world, process, slow, client, .. } = &suspendable;
    for round in 0..ROUNDS {
        let targets = Targets::create(client).await;
        process.suspend().await;
        let [mut one, mut two, mut three, mut four] = [(); 4].map(|()| slow.grpc.clone());
        let (updated, rotated, deleted, created) = tokio::join!(
            one.update_session(with_deadline(targets.update.clone())),
            two.rotate_session(with_deadline(targets.rotation.clone())),
            three.delete_session(with_deadline(targets.delete.clone())),
            four.create_session(with_deadline(targets.create.clone())),
        );
        assert!(updated.is_err() && rotated.is_err() && deleted.is_err() && created.is_err());
        targets.overtake(client).await;
        forget_tombstone(world, &targets.created).await;
        suspendable.resume().await;
        targets.assert_unchanged(client, round).await;
    }
}

/// The suspension is too short to be noticed: the reset, which arrived with the request, is what stops the call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_call_reset_in_a_short_suspension_is_not_applied() {
    let suspendable = Suspendable::start().await;
    let Suspendable { process, slow, client, .. } = &suspendable;
    for round in 0..10 * ROUNDS {
        let (session, _) = client.create(&[]).await;
        process.suspend().await;
        // A call whose first command is the write.
        let late = timeout(Duration::from_millis(20), slow.delete(by_id(&session.id))).await;
        // Time for the reset to reach the socket.
        sleep(Duration::from_millis(5)).await;
        process.resume();
        assert!(late.is_err(), "the process was not suspended");
        // Calls of one connection are received in order.
        eventually("the process responds", async || slow.get(by_id(&session.id)).await.ok()).await;
        assert!(client.lives(&session.id).await, "round {round}: a late delete");
    }
}

/// The client is unreachable: its reset does not arrive.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn s3_call_received_while_suspended_is_not_applied() {
    let suspendable = Suspendable::start().await;
    let Suspendable { world, process, client, .. } = &suspendable;
    let raw = Raw::connect(&process.address).await;
    raw.call("CreateSession", &[], framed(&CreateSessionRequest { namespace: NAMESPACE.into(), ..Default::default() }))
        .await;
    for round in 0..ROUNDS {
        let targets = Targets::create(client).await;
        process.suspend().await;
        let calls = [
            ("UpdateSession", framed(&targets.update)),
            ("RotateSession", framed(&targets.rotation)),
            ("DeleteSession", framed(&targets.delete)),
            ("CreateSession", framed(&targets.create)),
        ];
        let mut responses = Vec::new();
        for (method, body) in calls {
            let timeout = format!("{}m", DEADLINE.as_millis());
            responses.push(raw.begin(method, &[("grpc-timeout", &timeout)], Some(body.into())).await);
        }
        sleep(4 * DEADLINE).await;
        targets.overtake(client).await;
        forget_tombstone(world, &targets.created).await;
        suspendable.resume().await;
        for (response, _) in responses {
            let _ = timeout(harness::WAIT_LIMIT, response).await.expect("a response or a reset");
        }
        targets.assert_unchanged(client, round).await;
    }
}

/// Removes the tombstone that the delete of an unknown id left, as the time for which it is kept does.
async fn forget_tombstone(world: &World, id: &str) {
    let keys = world.redis.keys(&format!("*{id}"));
    assert_eq!(keys.len(), 1, "one tombstone: {keys:?}");
    world.redis.must(&["PEXPIRE", &keys[0], "1"]);
    eventually("the tombstone is gone", async || world.redis.keys(&format!("*{id}")).is_empty().then_some(())).await;
}
