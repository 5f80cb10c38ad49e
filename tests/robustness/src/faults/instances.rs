//! Faults of the instances: restarts, hangup, and a log that is not read.

use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use rustix::process::Signal;
use sessiond_client::v1::GetSessionRequest;
use tokio::time::{sleep, timeout};

use super::Fault;
use crate::history::Effect;
use crate::{environment::Environment, fault_observed::Evidence};
use harness::{
    Client,
    client::{NAMESPACE, by_id},
    contract::Call,
};

/// How an instance ends.
#[derive(Clone, Copy)]
pub enum Ending {
    /// SIGKILL.
    Killed,
    /// SIGTERM: it drains and ends with exit code 0.
    Drained,
}

/// The last instance ends and starts again, while the others serve.
pub struct InstanceRestarted {
    pub ending: Ending,
}

impl Fault for InstanceRestarted {
    fn name(&self) -> &'static str {
        match self.ending {
            Ending::Killed => "instance killed (SIGKILL) and restarted",
            Ending::Drained => "instance drained (SIGTERM) and restarted",
        }
    }

    fn evidence(&self) -> &'static [Evidence] {
        match self.ending {
            Ending::Killed => &[Evidence::Reported(&["without a reason", "not connected"])],
            Ending::Drained => &[Evidence::Reported(&["DRAINING"])],
        }
    }

    fn effects(&self) -> &'static [Effect] {
        match self.ending {
            Ending::Killed => &[Effect::KillsInstance],
            Ending::Drained => &[Effect::DrainsInstance],
        }
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let instance = env.instances.last_mut().expect("there are instances");
            match self.ending {
                Ending::Killed => instance.kill(),
                Ending::Drained => {
                    let code = instance.terminate().await;
                    if code != Some(0) {
                        env.problems.push(format!("the drained instance ended with code {code:?}"));
                    }
                }
            }
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.instances.last_mut().expect("there are instances").restart().await })
    }
}

/// An instance is suspended, as when its virtual machine is moved, and continues.
pub struct InstanceSuspended;

impl Fault for InstanceSuspended {
    fn name(&self) -> &'static str {
        "instance suspended (SIGSTOP), then continued"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Reported(&["STORE_TIMEOUT", "OUTCOME_UNKNOWN"])]
    }

    /// Longer than the deadline of a call.
    fn duration(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.instances[INSTANCE].signal(Signal::STOP) })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.instances[INSTANCE].signal(Signal::CONT) })
    }
}

/// Every instance receives SIGHUP, as when a terminal closes.
pub struct Hangup;

impl Fault for Hangup {
    fn name(&self) -> &'static str {
        "SIGHUP to every instance"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            env.signal_instances(Signal::HUP);
            env.confirmed += 1;
        })
    }

    /// Restarts the instances that have ended, so that the later faults can be played.
    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            for instance in &mut env.instances {
                if let Some(error) = instance.unexpected_end() {
                    env.problems.push(error);
                    instance.restart().await;
                }
            }
        })
    }
}

/// Standard error of an instance is not read.
pub struct LogUnread;

/// Instance that is suspended, or whose log is not read.
const INSTANCE: usize = 1;
/// Number of times the connections to Redis break, which is logged.
const BREAKS: usize = 10;
/// Maximum time until an instance answers a call.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

impl Fault for LogUnread {
    fn name(&self) -> &'static str {
        "log of an instance unread"
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let instance = &env.instances[INSTANCE];
            let client = Client::connect(&instance.address).await;
            instance.leave_log_unread();
            env.confirmed += 1;
            for _ in 0..BREAKS {
                env.redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                sleep(Duration::from_millis(100)).await;
            }
            let key = by_id("aaaaaaaaaaaaaaaaaaaaaaaaaa");
            let get = Call::Get(GetSessionRequest { namespace: NAMESPACE.into(), key, ..Default::default() });
            if timeout(ANSWER_TIMEOUT, get.try_send(&client)).await.is_err() {
                env.problems.push("the instance answers no call while its log is not read".into());
            }
        })
    }

    fn heal<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async { env.instances[INSTANCE].read_log() })
    }
}
