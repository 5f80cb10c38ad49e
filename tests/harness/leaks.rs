//! Lives of sessions in every way in which one can leave its subject, and what they leave behind in Redis.

use sessiond_client::v1::{CreateSessionRequest, UpdateSessionRequest};

use super::{Client, World, client::*};

/// Tombstones stand as short as they may, and subjects have a limit that some lives reach.
pub const POLICY: &str = "log_max_bytes = '1 MiB'\n[default_policy]\ntombstone = '60s'\nsession_limit = 3\n";
/// Ways to live.
pub const WAYS: u64 = 8;
/// Subjects that a worker goes through in turn; no other worker has them.
const SUBJECTS: u64 = 50;

/// One life, or a few; each is over when this returns, or soon after.
pub async fn live(client: &Client, worker: u64, cycle: u64) -> Answer<()> {
    let subject = format!("user{worker}-{}", cycle / WAYS % SUBJECTS);
    let create = |idle, absolute| CreateSessionRequest {
        subject: subject.clone(),
        idle_timeout: idle,
        absolute_timeout: absolute,
        ..Default::default()
    };
    let guest = || CreateSessionRequest { idle_timeout: seconds(600), ..Default::default() };
    match cycle % WAYS {
        0 => {
            let (session, _) = client.create_as(create(None, None)).await?;
            client.delete(by_id(&session.id)).await?;
        }
        1 => drop(client.create_as(create(millis(1), None)).await?),
        2 => drop(client.create_as(create(None, millis(5))).await?),
        3 => {
            client.create_as(create(None, None)).await?;
            client.create_as(create(millis(20), None)).await?;
            client.delete_all(&subject).await?;
        }
        // The limit is reached; those that are not replaced expire.
        4 => {
            for _ in 0..5 {
                client.create_as(create(millis(50), None)).await?;
            }
        }
        5 => {
            let (session, token) = client.create_as(guest()).await?;
            client.login(by_token(&token), &subject).await?;
            client.delete(by_id(&session.id)).await?;
        }
        6 => {
            let (_, token) = client.create_as(guest()).await?;
            let (session, token) = client.login_by_rotation(&token, &subject).await?;
            client.login(by_token(&token), "").await?;
            client.login(by_token(&token), &subject).await?;
            client.login(by_token(&token), "").await?;
            client.delete(by_id(&session.id)).await?;
        }
        _ => {
            let (session, _) = client.create_as(guest()).await?;
            let update = UpdateSessionRequest {
                key: by_id(&session.id),
                subject: Some(subject.clone()),
                idle_timeout: millis(10),
                ..Default::default()
            };
            client.update(update).await?;
        }
    }
    Ok(())
}

impl World {
    /// The keys that are no partition's meta or log, and no tombstone whose time is going to be over.
    pub fn leaks(&self) -> Vec<String> {
        const LEAKS: &str = "local leaks = {}
            for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
                local stays = key:find(':meta$') or key:find(':log$')
                local ttl = not stays and redis.call('PTTL', key)
                local goes = ttl and ttl > 0 and ttl <= 60000 and redis.call('HEXISTS', key, 'x') == 1
                if not stays and not goes then leaks[#leaks + 1] = key end
            end
            return leaks";
        self.redis.list(&["EVAL", LEAKS, "0", &format!("{}*", self.prefix)])
    }
}
