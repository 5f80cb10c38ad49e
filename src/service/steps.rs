//! Steps of a call, which are finished even if its client gives up.

use std::pin::Pin;

use super::Service;
use crate::{session::Namespace, tasks::run_to_end};

/// Steps of a call.
#[derive(Clone, Copy)]
pub(super) enum Steps {
    /// The call changes its session only.
    One,
    /// The call may end other sessions first. It runs to its end even if its client gives up: otherwise others would have ended
    /// for nothing.
    EndOthers,
}

impl Steps {
    /// Runs the steps of the call. Boxed: this future contains them twice.
    pub(super) async fn run<T: Send + 'static>(self, steps: Pin<Box<impl Future<Output = T> + Send + 'static>>) -> T {
        match self {
            Steps::One => steps.await,
            Steps::EndOthers => run_to_end(steps).await,
        }
    }
}

impl Service {
    /// Returns the steps of a call that gives a session this subject.
    pub(super) fn steps(&self, namespace: &Namespace, subject: &str) -> Steps {
        let has_limit = self.policies.of(namespace).is_some_and(|policy| policy.session_limit > 0);
        if has_limit && !subject.is_empty() { Steps::EndOthers } else { Steps::One }
    }
}
