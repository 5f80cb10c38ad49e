//! A request to one server: a script or a command, and how it is sent.

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::ClientLike,
    types::{ClusterHash, CustomCommand, Value},
};

use super::script::Script;

/// Whether ASKING precedes the request, because the slot is migrating to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// The server owns the slot.
    No,
    /// The slot is migrating to the server.
    Yes,
}

/// Request to a server.
#[derive(Clone, Copy)]
pub enum Request<'a> {
    /// A script; the reply is an array that begins with an integer.
    Script {
        /// Script to run.
        script: &'static Script,
        /// Its KEYS.
        keys: &'a [Bytes],
        /// Its ARGV.
        args: &'a [Bytes],
    },
    /// A command that reads or can be sent twice.
    Command {
        /// Name of the command.
        name: &'static str,
        /// Its arguments.
        args: &'a [Bytes],
    },
}

impl<'a> Request<'a> {
    /// Keys of the request; of a command, its first argument.
    pub(super) fn keys(self) -> &'a [Bytes] {
        match self {
            Request::Script { keys, .. } => keys,
            Request::Command { args, .. } => &args[..args.len().min(1)],
        }
    }

    /// Whether Redis treats the request as a write: a replica refuses it, and a write pause holds it back.
    pub(super) fn counts_as_write(self) -> bool {
        match self {
            Request::Script { script, .. } => !script.is_read_only(),
            Request::Command { name, .. } => name == "GETEX",
        }
    }

    /// Name in metrics.
    pub(super) fn name(self) -> &'static str {
        match self {
            Request::Script { script, .. } => script.name,
            Request::Command { name, .. } => name,
        }
    }

    /// Sends the request and waits for the reply.
    pub(super) async fn send(self, client: &Client) -> Result<Value, FredError> {
        match self {
            Request::Script { script, keys, args } => script.run(client, keys, args).await,
            Request::Command { name, args } => client.custom(custom(name), values(args).collect::<Vec<_>>()).await,
        }
    }

    /// Sends requests in one pipeline, in this order and each with ASKING if asked, and waits for the replies to all of them.
    pub(super) async fn send_all(
        client: &Client,
        requests: &[Request<'_>],
        asking: Asking,
    ) -> Result<Vec<Result<Value, FredError>>, FredError> {
        let pipeline = client.pipeline();
        for request in requests {
            if asking == Asking::Yes {
                let _: Value = pipeline.custom(custom("ASKING"), Vec::<Value>::new()).await?;
            }
            let _: Value = match *request {
                Request::Script { script, keys, args } => {
                    pipeline.custom(custom("EVAL"), eval_args(script.source().into(), keys, args)).await?
                }
                Request::Command { name, args } => {
                    pipeline.custom(custom(name), values(args).collect::<Vec<_>>()).await?
                }
            };
        }
        let mut replies = pipeline.try_all::<Value>().await;
        let sent = requests.len() * if asking == Asking::Yes { 2 } else { 1 };
        if replies.len() != sent {
            return Err(replies.pop().and_then(Result::err).unwrap_or_else(no_reply));
        }
        let skipped = sent / requests.len().max(1) - 1;
        Ok(replies.into_iter().skip(skipped).step_by(skipped + 1).collect())
    }
}

/// Error for a request that a broken connection has not answered.
pub(super) fn no_reply() -> FredError {
    FredError::new(ErrorKind::Canceled, "no reply")
}

/// Creates a command by name. The slot is irrelevant for connections to single servers.
pub(super) fn custom(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

/// Arguments of EVAL with a source, or of EVALSHA with a SHA-1.
pub(super) fn eval_args(script: Value, keys: &[Bytes], args: &[Bytes]) -> Vec<Value> {
    let mut values = vec![script, Value::from(keys.len() as i64)];
    values.extend(self::values(keys).chain(self::values(args)));
    values
}

fn values(args: &[Bytes]) -> impl Iterator<Item = Value> {
    args.iter().cloned().map(Value::Bytes)
}
