//! Faults of an operator: settings of Redis, and the rights and the password of its user, change while sessiond serves.

use std::{io::Write, os::unix::net::UnixStream, time::Duration};

use futures_util::future::LocalBoxFuture;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::Fault;
use crate::{environment::Environment, fault_observed::Evidence, validate::FAILURES};

/// Commands that make Redis refuse something, and commands that undo them.
pub struct SettingChanged {
    name: &'static str,
    change: &'static [&'static [&'static str]],
    restore: &'static [&'static [&'static str]],
    /// Errors that calls may get.
    failures: &'static [&'static str],
}

/// Changes after which calls fail with STORE_UNAVAILABLE.
pub const CHANGES: [SettingChanged; 3] = [
    SettingChanged {
        name: "right to XADD taken",
        change: &[&["ACL", "SETUSER", "sessiond", "-xadd"]],
        restore: &[&["ACL", "SETUSER", "sessiond", "+xadd"]],
        failures: &FAILURES,
    },
    SettingChanged {
        name: "right to SET taken",
        change: &[&["ACL", "SETUSER", "sessiond", "-set"]],
        restore: &[&["ACL", "SETUSER", "sessiond", "+set"]],
        failures: &FAILURES,
    },
    SettingChanged {
        name: "password changed",
        change: &[&["ACL", "SETUSER", "sessiond", "resetpass", ">another"], &["CLIENT", "KILL", "USER", "sessiond"]],
        restore: &[&["ACL", "SETUSER", "sessiond", "resetpass", ">change-me"]],
        failures: &FAILURES,
    },
];

/// Redis refuses writes because replicas are missing (NOREPLICAS).
pub const REPLICAS_MISSING: SettingChanged = SettingChanged {
    name: "min-replicas-to-write without replicas",
    change: &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
    restore: &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
    failures: &REFUSED,
};

/// Errors of calls while Redis refuses writes.
const REFUSED: [&str; 1] = ["Unavailable STORE_UNAVAILABLE"];

/// Redis cannot save its data and refuses writes (MISCONF).
pub struct SavesFail;

impl Fault for SavesFail {
    fn name(&self) -> &'static str {
        "saves fail (MISCONF)"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_UNAVAILABLE"])]
    }

    fn failures(&self) -> &'static [&'static str] {
        &REFUSED
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.redis.refuse_saves().await })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.redis.permit_saves().await })
    }
}

/// Redis holds back writes several times (CLIENT PAUSE WRITE), as in planned failovers.
pub struct WritesPaused;

/// Number of short write pauses.
const SHORT_PAUSES: usize = 3;
/// Maximum duration of a short write pause in ms. Most of them end while the servers check whether there is one.
const SHORT_PAUSE: usize = 1_600;
/// Duration of the last write pause in ms: longer than the deadline of a call.
const LONG_PAUSE: usize = 2_500;
/// Time between two write pauses.
const PAUSE_INTERVAL: Duration = Duration::from_millis(300);

impl Fault for WritesPaused {
    fn name(&self) -> &'static str {
        "write pauses (CLIENT PAUSE WRITE)"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_TIMEOUT", "OUTCOME_UNKNOWN"])]
    }

    fn failures(&self) -> &'static [&'static str] {
        &["DeadlineExceeded OUTCOME_UNKNOWN", "DeadlineExceeded STORE_TIMEOUT"]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let mut pauses: Vec<usize> = (0..SHORT_PAUSES).map(|_| 500 + env.rng.below(SHORT_PAUSE - 500)).collect();
            pauses.push(LONG_PAUSE);
            for ms in pauses {
                env.redis.must(&["CLIENT", "PAUSE", &ms.to_string(), "WRITE"]);
                sleep(Duration::from_millis(ms as u64) + PAUSE_INTERVAL).await;
            }
        })
    }
}

impl Fault for SettingChanged {
    fn name(&self) -> &'static str {
        self.name
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_UNAVAILABLE"])]
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn failures(&self) -> &'static [&'static str] {
        self.failures
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.change.iter().for_each(|command| drop(env.redis.must(command))) })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.restore.iter().for_each(|command| drop(env.redis.must(command))) })
    }
}

/// Redis accepts no more connections, and the connections of sessiond break.
#[derive(Default)]
pub struct ConnectionsRefused {
    /// Connection for the commands: Redis accepts no other one.
    administrator: Option<UnixStream>,
    /// Value of `maxclients` before the fault.
    limit: String,
}

impl ConnectionsRefused {
    fn run(&mut self, command: &str) {
        let administrator = self.administrator.as_mut().expect("the connection is open");
        administrator.write_all(format!("{command}\r\n").as_bytes()).expect("Redis reads");
    }
}

impl Fault for ConnectionsRefused {
    fn name(&self) -> &'static str {
        "maxclients reached"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_UNAVAILABLE"])]
    }

    fn duration(&self) -> Duration {
        Duration::from_secs(2)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            self.limit = env.redis.config("maxclients");
            self.administrator = Some(UnixStream::connect(env.redis.socket()).expect("Redis accepts connections"));
            self.run("CONFIG SET maxclients 1");
            self.run("CLIENT KILL USER sessiond");
        })
    }

    fn heal<'a>(&'a mut self, _env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { self.run(&format!("CONFIG SET maxclients {}", self.limit)) })
    }
}

/// Time for which Redis has no memory left. A longer one leaves no history that can be trimmed instead of new entries.
const FULL_TIME: Duration = Duration::from_millis(500);

/// Redis has reached `maxmemory` and refuses writes.
pub struct MemoryFull;

impl Fault for MemoryFull {
    fn name(&self) -> &'static str {
        "maxmemory reached"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_FULL"])]
    }

    fn failures(&self) -> &'static [&'static str] {
        &["ResourceExhausted STORE_FULL"]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            // The servers trim the logs to free memory. An entry must be read before that.
            env.stop_instances().await;
            env.redis.must(&["CONFIG", "SET", "maxmemory", "1mb"]);
            env.signal_instances(Signal::CONT);
            let started = Instant::now();
            while started.elapsed() < FULL_TIME {
                env.reader.read().await;
                sleep(Duration::from_millis(1)).await;
            }
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.redis.must(&["CONFIG", "SET", "maxmemory", "0"]);
            env.note_trims().await;
        })
    }
}

/// `maxmemory-policy` permits evictions, until an instance reports it.
pub struct EvictionEnabled;

impl Fault for EvictionEnabled {
    fn name(&self) -> &'static str {
        "maxmemory-policy changed"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.redis.must(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(15) {
                let readiness = env.instances[1].readiness().await;
                if readiness.is_some_and(|text| text.contains("maxmemory-policy")) {
                    env.confirmed += 1;
                    return;
                }
                sleep(Duration::from_millis(200)).await;
            }
            env.problems.push("/readyz does not report that keys may be evicted".into());
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { drop(env.redis.must(&["CONFIG", "SET", "maxmemory-policy", "noeviction"])) })
    }
}
