//! Bare tonic servers as baselines: GetSession returns a constant in one and the result of one Redis GET in the second;
//! Watch returns a constant event in the third.
//!
//! Stubs, message sizes, runtime settings and the Redis user are those of the service; there are no deadlines, metrics,
//! policies, hashes or checks. Each baseline is a separate process of the benchmark's own binary.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    pin::Pin,
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use fred::{
    clients::Client,
    interfaces::{ClientLike, KeysInterface},
    types::{
        Builder, RespVersion,
        config::{Config, ConnectionConfig, TcpConfig},
    },
};
use futures_util::{Stream, StreamExt, stream};
use prost::encoding::{btree_map, message, string};
use sessiond::pb::{
    self,
    service::session_service_server::{SessionService, SessionServiceServer},
};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_stream::wrappers::BroadcastStream;
use tonic::{Request, Response, Status, transport::server::TcpIncoming};

use harness::{Redis, client::id_of};

use super::{memory, recorder::RedisCommand, requests::Token};

/// What a baseline returns.
#[derive(Clone, clap::Subcommand)]
pub enum Baseline {
    /// GetSession returns a constant of this size.
    Constant { bytes: usize },
    /// GetSession returns the value of a key of this Redis.
    Get { redis: String },
    /// Watch returns the first response, then the event after each UpdateSession; both encoded, as hexadecimal numbers.
    Stream { first: String, event: String },
}

impl Baseline {
    /// A baseline whose Watch returns these encoded responses.
    pub fn stream(first: &[u8], event: &[u8]) -> Self {
        Baseline::Stream { first: HEXLOWER.encode(first), event: HEXLOWER.encode(event) }
    }
}

/// Number of the field `Session.attributes`.
const ATTRIBUTES: u32 = 5;

/// Returns the value with which a response has this number of bytes: four lengths and seven other bytes are added to it.
fn value(bytes: usize) -> String {
    "x".repeat(bytes - 7 - 4 * prost::length_delimiter_len(bytes))
}

/// Returns the key of the value for this token.
fn key_of(token: &str) -> String {
    format!("ses:{}", id_of(token))
}

fn key(token: &Token) -> String {
    key_of(std::str::from_utf8(token).expect("a token is ASCII"))
}

/// Returns the command that reads the value for this token.
pub fn get(token: &Token) -> RedisCommand {
    ["GET".into(), key(token).into()].into()
}

/// Sets a value for each of these tokens, with which a response has so many bytes.
pub fn populate<'a>(redis: &Redis, tokens: impl Iterator<Item = &'a Token>, bytes: usize) {
    let value = value(bytes);
    memory::send(redis, tokens.map(|token| memory::command(&["SET", &key(token), &value])));
}

fn response(value: Vec<u8>) -> pb::GetSessionResponse {
    let value = pb::AttributeValue { kind: Some(pb::attribute_value::Kind::BytesValue(value)) };
    let attributes = BTreeMap::from([("a".to_owned(), value)]);
    let mut encoded = Vec::new();
    btree_map::encode(
        string::encode,
        string::encoded_len,
        message::encode,
        message::encoded_len,
        ATTRIBUTES,
        &attributes,
        &mut encoded,
    );
    let session = pb::Session { attributes: encoded.into(), ..Default::default() };
    pb::GetSessionResponse { session: Some(session), token_state: 0 }
}

enum Server {
    Constant { value: Vec<u8> },
    Get { redis: Client },
    Stream { first: pb::EncodedWatchResponse, event: pb::EncodedWatchResponse, events: Events },
}

/// Channel from which every open Watch takes its events.
type Events = broadcast::Sender<pb::EncodedWatchResponse>;
/// Number of events that may wait in the channel.
const EVENTS: usize = 64;

type WatchStream = Pin<Box<dyn Stream<Item = Result<pb::EncodedWatchResponse, Status>> + Send>>;

impl Server {
    async fn get(&self, request: pb::GetSessionRequest) -> Result<pb::GetSessionResponse, Status> {
        match self {
            Server::Constant { value } => Ok(response(value.clone())),
            Server::Get { redis } => {
                let Some(pb::SessionKey { key: Some(pb::session_key::Key::Token(token)) }) = request.key else {
                    return Err(Status::invalid_argument("no token"));
                };
                let value: Option<Bytes> = redis.get(key_of(&token)).await.map_err(|_| Status::internal("Redis"))?;
                value.map(|value| response(value.into())).ok_or_else(|| Status::not_found("no such key"))
            }
            Server::Stream { .. } => Err(Status::unimplemented("")),
        }
    }

    /// Sends the event to every open Watch.
    fn update(&self) -> Result<pb::UpdateSessionResponse, Status> {
        let Server::Stream { event, events, .. } = self else { return Err(Status::unimplemented("")) };
        events.send(event.clone()).map_err(|_| Status::failed_precondition("no watch is open"))?;
        Ok(pb::UpdateSessionResponse::default())
    }

    fn watch(&self) -> Result<WatchStream, Status> {
        let Server::Stream { first, events, .. } = self else { return Err(Status::unimplemented("")) };
        let events = BroadcastStream::new(events.subscribe());
        let events = events.map(|event| event.map_err(|_| Status::data_loss("the stream is behind the channel")));
        Ok(Box::pin(stream::iter([Ok(first.clone())]).chain(events)))
    }
}

macro_rules! service_without {
    ($($method:ident $request:ident $response:ident;)*) => {
        #[tonic::async_trait]
        impl SessionService for Server {
            type WatchStream = WatchStream;

            async fn get_session(
                &self,
                request: Request<pb::GetSessionRequest>,
            ) -> Result<Response<pb::GetSessionResponse>, Status> {
                Ok(Response::new(self.get(request.into_inner()).await?))
            }

            async fn update_session(
                &self,
                _: Request<pb::UpdateSessionRequest>,
            ) -> Result<Response<pb::UpdateSessionResponse>, Status> {
                Ok(Response::new(self.update()?))
            }

            async fn watch(&self, _: Request<pb::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
                Ok(Response::new(self.watch()?))
            }

            $(async fn $method(&self, _: Request<pb::$request>) -> Result<Response<pb::$response>, Status> {
                Err(Status::unimplemented(""))
            })*
        }
    };
}

service_without! {
    create_session CreateSessionRequest CreateSessionResponse;
    touch_session TouchSessionRequest TouchSessionResponse;
    rotate_session RotateSessionRequest RotateSessionResponse;
    delete_session DeleteSessionRequest DeleteSessionResponse;
    delete_subject_sessions DeleteSubjectSessionsRequest DeleteSubjectSessionsResponse;
    list_sessions ListSessionsRequest ListSessionsResponse;
}

impl Baseline {
    /// Serves until the process is killed. Prints its address as the first line.
    #[tokio::main]
    pub async fn serve(self) {
        let server = match self {
            Baseline::Constant { bytes } => Server::Constant { value: value(bytes).into() },
            Baseline::Get { redis } => Server::Get { redis: connect(&redis).await },
            Baseline::Stream { first, event } => {
                Server::Stream { first: encoded(&first), event: encoded(&event), events: Events::new(EVENTS) }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        println!("{}", listener.local_addr().unwrap());
        std::io::stdout().flush().unwrap();
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let served = tonic::transport::Server::builder().add_service(SessionServiceServer::new(server));
        served.serve_with_incoming(incoming).await.expect("the server runs");
    }

    fn arguments(&self) -> Vec<String> {
        match self {
            Baseline::Constant { bytes } => vec!["constant".to_owned(), bytes.to_string()],
            Baseline::Get { redis } => vec!["get".to_owned(), redis.clone()],
            Baseline::Stream { first, event } => vec!["stream".to_owned(), first.clone(), event.clone()],
        }
    }
}

/// Returns the response that this hexadecimal number encodes.
fn encoded(hex: &str) -> pb::EncodedWatchResponse {
    let message = HEXLOWER.decode(hex.as_bytes()).expect("a hexadecimal number");
    pb::EncodedWatchResponse { events: vec![message.into()], ..Default::default() }
}

/// Opens one multiplexed connection, like the service.
async fn connect(url: &str) -> Client {
    let mut config = Config::from_url(url).unwrap();
    config.version = RespVersion::RESP3;
    let client = Builder::from_config(config)
        .with_connection_config(|connection: &mut ConnectionConfig| {
            connection.max_command_attempts = 1;
            connection.tcp = TcpConfig { nodelay: Some(true), ..TcpConfig::default() };
        })
        .build()
        .unwrap();
    client.init().await.expect("Redis answers");
    client
}

/// A baseline process. Drop kills it.
pub struct Process {
    child: Child,
    pub address: String,
}

impl Process {
    pub fn start(baseline: &Baseline) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(baseline.arguments()).stdout(Stdio::piped()).spawn().unwrap();
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        Process { child, address: address.trim().to_owned() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
