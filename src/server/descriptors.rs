//! File descriptors of the process: raises their limit, and reserves some of them, so that clients cannot take those that
//! Redis and the admin port need.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::admin;
use crate::observe;

/// Descriptors for everything except gRPC clients and Redis: the admin port, listeners, standard streams, the runtime,
/// name lookups, files.
const RESERVED: usize = admin::MAX_CONNECTIONS + 32;
/// Minimum number of gRPC connections. The server does not start if it cannot serve them.
const MIN_CONNECTIONS: usize = 8;

/// The process may open too few file descriptors to serve clients.
#[derive(Debug, thiserror::Error)]
#[error(
    "the limit of open file descriptors is {limit}, and sessiond needs {needed}; raise it (ulimit -n, LimitNOFILE in a \
     unit of systemd)"
)]
pub struct TooFewDescriptors {
    /// Limit of the process.
    pub limit: usize,
    /// Number of file descriptors without which the server does not start.
    pub needed: usize,
}

/// Maximum number of open file descriptors of the process.
pub(super) struct FileDescriptors(usize);

impl FileDescriptors {
    /// Raises the soft limit of the process to the hard one. Fails if a server without Redis would have too few.
    pub(super) fn raise_limit() -> Result<Self, TooFewDescriptors> {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        // If the system refuses, the soft limit applies.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
        let limit = getrlimit(Resource::Nofile).current.and_then(|limit| usize::try_from(limit).ok());
        let descriptors = FileDescriptors(limit.unwrap_or(usize::MAX));
        descriptors.max_connections(MIN_CONNECTIONS, 0)?;
        Ok(descriptors)
    }

    /// Returns the number of gRPC connections that the process can serve next to this number of connections to Redis, at
    /// most `connections`. Fails if that is too few.
    pub(super) fn max_connections(&self, connections: usize, redis: usize) -> Result<usize, TooFewDescriptors> {
        let (descriptors, reserved) = (self.0, RESERVED + redis);
        let needed = reserved + MIN_CONNECTIONS.min(connections);
        if descriptors < needed {
            return Err(TooFewDescriptors { limit: descriptors, needed });
        }
        let limit = descriptors - reserved;
        if limit < connections {
            observe::warning!(
                connections,
                descriptors,
                limit,
                "limits.connections lowered; raise the limit of file descriptors (ulimit -n, LimitNOFILE)"
            );
        }
        Ok(connections.min(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn max_connections_leaves_the_reserve_to_redis() {
        let max = |descriptors, redis| FileDescriptors(descriptors).max_connections(1_000, redis).ok();
        assert_eq!(max(usize::MAX, 7), Some(1_000));
        assert_eq!(max(RESERVED + 1_007, 7), Some(1_000));
        assert_eq!(max(RESERVED + 107, 7), Some(100));
        assert_eq!(max(RESERVED + MIN_CONNECTIONS + 7, 7), Some(MIN_CONNECTIONS));
        assert_eq!(max(RESERVED + MIN_CONNECTIONS + 6, 7), None);
    }
}
