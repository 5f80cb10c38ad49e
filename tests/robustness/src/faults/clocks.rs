//! Steps of the clock of Redis.

use futures_util::future::LocalBoxFuture;

use super::Fault;
use crate::{environment::Environment, fault_observed::Evidence, history::ClockStep, recorder::now};

/// The clock of Redis is set, and stays so.
pub struct ClockStepped {
    /// Size of the step. Negative: the clock is set back.
    pub seconds: i64,
}

/// Time in µs in which Redis may still use a reading of the old clock.
const CACHED: u64 = 100_000;

impl Fault for ClockStepped {
    fn name(&self) -> &'static str {
        match self.seconds {
            3_600 => "clock of Redis set ahead by 1 h",
            -3_600 => "clock of Redis set back by 1 h",
            _ => "clock of Redis set ahead by 3 s",
        }
    }

    fn steps_clock(&self) -> bool {
        true
    }

    /// Writes in flight at a step ahead look as if their deadlines had passed.
    fn failures(&self) -> &'static [&'static str] {
        if self.seconds > 0 { &["DeadlineExceeded STORE_TIMEOUT"] } else { &[] }
    }

    fn evidence(&self) -> &'static [Evidence] {
        &[Evidence::Confirmed]
    }

    fn inject<'a>(&'a mut self, env: &'a mut Environment) -> LocalBoxFuture<'a, ()> {
        Box::pin(async {
            let from = now();
            env.reader.read().await;
            let ends = env.reader.ends();
            let clock = env.clock.as_ref().expect("the fault steps the clock");
            tokio::task::block_in_place(|| clock.shift_to(self.seconds));
            let by = self.seconds * 1_000_000;
            env.trace.clock_step = Some(ClockStep { from, until: now() + CACHED, by, ends });
            (env.clock_ahead, env.confirmed) = (by, 1);
        })
    }
}
