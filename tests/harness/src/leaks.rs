//! Creates and ends sessions in every way in which a session can leave its subject, and finds leaked keys in Redis.

use sessiond_client::v1::{CreateSessionRequest, UpdateSessionRequest};

use super::{Client, World, client::*};

/// Configuration with the shortest tombstones allowed and a session limit that some cycles reach.
pub const POLICY: &str = "log_max_bytes = '1 MiB'\n[default_policy]\ntombstone = '60s'\nsession_limit = 3\n";
/// Number of different cycles.
pub const CYCLES: u64 = 8;
/// Number of subjects that one worker uses in turn. No other worker uses them.
const SUBJECTS: u64 = 50;

/// Runs one cycle: creates one or a few sessions that have ended when this returns, or end soon after.
pub async fn run_cycle(client: &Client, worker: u64, cycle: u64) -> CallResult<()> {
    let subject = format!("user{worker}-{}", cycle / CYCLES % SUBJECTS);
    let create = |idle, absolute| CreateSessionRequest {
        subject: subject.clone(),
        idle_timeout: idle,
        absolute_timeout: absolute,
        ..Default::default()
    };
    let guest = || CreateSessionRequest { idle_timeout: seconds(600), ..Default::default() };
    match cycle % CYCLES {
        0 => {
            let (session, _) = client.create_with(create(None, None)).await?;
            client.delete(by_id(&session.id)).await?;
        }
        1 => drop(client.create_with(create(millis(1), None)).await?),
        2 => drop(client.create_with(create(None, millis(5))).await?),
        3 => {
            client.create_with(create(None, None)).await?;
            client.create_with(create(millis(20), None)).await?;
            client.delete_subject(&subject).await?;
        }
        // Reaches the session limit; sessions that are not replaced expire.
        4 => {
            for _ in 0..5 {
                client.create_with(create(millis(50), None)).await?;
            }
        }
        5 => {
            let (session, token) = client.create_with(guest()).await?;
            client.login(by_token(&token), &subject).await?;
            client.delete(by_id(&session.id)).await?;
        }
        6 => {
            let (_, token) = client.create_with(guest()).await?;
            let (session, token) = client.login_by_rotation(&token, &subject).await?;
            client.login(by_token(&token), "").await?;
            client.login(by_token(&token), &subject).await?;
            client.login(by_token(&token), "").await?;
            client.delete(by_id(&session.id)).await?;
        }
        _ => {
            let (session, _) = client.create_with(guest()).await?;
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
    /// Returns all keys except the meta and log keys of partitions, and tombstones that expire within 60 s.
    pub fn leaked_keys(&self) -> Vec<String> {
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
