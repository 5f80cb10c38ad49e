//! Faults of an operator: settings of Redis, and the rights and the password of its user, change while sessiond serves.

use std::{io::Write, os::unix::net::UnixStream, time::Duration};

use futures_util::future::LocalBoxFuture;
use tokio::time::{Instant, sleep};

use super::Fault;
use crate::{environment::Environment, fault_observed::Evidence};

/// Commands that make Redis refuse something, and commands that undo them.
pub struct SettingChanged {
    name: &'static str,
    change: &'static [&'static [&'static str]],
    restore: &'static [&'static [&'static str]],
}

/// Changes after which calls fail with STORE_UNAVAILABLE.
pub const CHANGES: [SettingChanged; 4] = [
    SettingChanged {
        name: "right to XADD taken",
        change: &[&["ACL", "SETUSER", "sessiond", "-xadd"]],
        restore: &[&["ACL", "SETUSER", "sessiond", "+xadd"]],
    },
    SettingChanged {
        name: "right to SET taken",
        change: &[&["ACL", "SETUSER", "sessiond", "-set"]],
        restore: &[&["ACL", "SETUSER", "sessiond", "+set"]],
    },
    SettingChanged {
        name: "password changed",
        change: &[&["ACL", "SETUSER", "sessiond", "resetpass", ">another"], &["CLIENT", "KILL", "USER", "sessiond"]],
        restore: &[&["ACL", "SETUSER", "sessiond", "resetpass", ">change-me"]],
    },
    SettingChanged {
        name: "min-replicas-to-write without replicas",
        change: &[&["CONFIG", "SET", "min-replicas-to-write", "1"]],
        restore: &[&["CONFIG", "SET", "min-replicas-to-write", "0"]],
    },
];

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

/// Redis has reached `maxmemory` and refuses writes.
pub struct MemoryFull;

impl Fault for MemoryFull {
    fn name(&self) -> &'static str {
        "maxmemory reached"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_FULL"])]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.reader.read().await;
            env.redis.must(&["CONFIG", "SET", "maxmemory", "1mb"]);
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(3) {
                // The servers may trim the logs to free memory.
                env.reader.read().await;
                sleep(Duration::from_millis(20)).await;
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
