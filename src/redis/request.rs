//! A request to one server: a script or a command, and how it is sent.

use bytes::Bytes;
use fred::{
    clients::Client,
    error::{Error as FredError, ErrorKind},
    interfaces::ClientLike,
    types::{ClusterHash, CustomCommand, Key, Value},
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
        keys: &'a [Key],
        /// Its ARGV.
        args: &'a [Bytes],
    },
    /// A command that reads or can be sent twice.
    Command {
        /// Name of the command.
        name: &'static str,
        /// Its arguments.
        args: &'a [Value],
    },
}

impl<'a> Request<'a> {
    /// Keys of the request; of a command, its first argument.
    pub(super) fn keys(self) -> impl Iterator<Item = &'a str> {
        let (keys, args): (&[Key], &[Value]) = match self {
            Request::Script { keys, .. } => (keys, &[]),
            Request::Command { args, .. } => (&[], &args[..args.len().min(1)]),
        };
        let of_command = args.iter().filter_map(|arg| std::str::from_utf8(arg.as_bytes()?).ok());
        keys.iter().filter_map(Key::as_str).chain(of_command)
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
            Request::Script { script, keys, args } => {
                let args = args.iter().cloned().map(Value::Bytes).collect();
                script.run(client, keys.to_vec(), args).await
            }
            Request::Command { name, args } => client.custom(custom(name), args.to_vec()).await,
        }
    }

    /// Sends ASKING and the request in one pipeline, and waits for the reply.
    pub(super) async fn ask(self, client: &Client) -> Result<Value, FredError> {
        let pipeline = client.pipeline();
        let _: Value = pipeline.custom(custom("ASKING"), Vec::<Value>::new()).await?;
        let _: Value = match self {
            Request::Script { script, keys, args } => {
                pipeline.custom(custom("EVAL"), eval_args(script.source().into(), keys, args)).await?
            }
            Request::Command { name, args } => pipeline.custom(custom(name), args.to_vec()).await?,
        };
        let reply = pipeline.try_all::<Value>().await.into_iter().nth(1);
        reply.unwrap_or_else(|| Err(FredError::new(ErrorKind::Canceled, "no reply")))
    }
}

/// Creates a command by name. The slot is irrelevant for connections to single servers.
pub(super) fn custom(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

/// Arguments of EVAL with a source, or of EVALSHA with a SHA-1.
pub(super) fn eval_args(script: Value, keys: &[Key], args: &[Bytes]) -> Vec<Value> {
    let mut values = vec![script, Value::from(keys.len() as i64)];
    values.extend(keys.iter().cloned().map(Value::from));
    values.extend(args.iter().cloned().map(Value::Bytes));
    values
}
