//! One session, two servers: server A writes it, server B reads it and streams its events.

use std::{collections::BTreeMap, env, error::Error, fs, time::Duration};

use sessiond_client::v1::{
    AttributeValue, Cause, CreateSessionRequest, DeleteSessionRequest, EventType, GetSessionRequest, Session,
    SessionEvent, SessionKey, SessionView, WatchRequest, WatchResponse, attribute_value::Kind, session_key::Key,
    session_service_client::SessionServiceClient,
};
use tokio::time::timeout;
use tonic::{
    Code, Request, Streaming,
    metadata::AsciiMetadataValue,
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint},
};

const CONTENT: &str = r#"user_id=1 cart=["item1","item2"]"#;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    timeout(Duration::from_secs(10), quickstart()).await?
}

async fn quickstart() -> Result<(), Box<dyn Error>> {
    let (mut a, mut b) = (connect("SESSIOND_A").await?, connect("SESSIOND_B").await?);
    // The watch has its own channel, because a stalled watch blocks other calls on its channel.
    let mut watcher = connect("SESSIOND_B").await?;
    let namespace = env::var("SESSIOND_NAMESPACE").unwrap_or("quickstart".into());
    let labels = BTreeMap::from([("quickstart".to_owned(), format!("rust-{}", std::process::id()))]);

    let request = WatchRequest {
        namespace: namespace.clone(),
        whole_namespace: true,
        labels: labels.clone(),
        view: SessionView::Full.into(),
        ..Default::default()
    };
    let mut watch = watcher.watch(request).await?.into_inner();
    // The first response is a bookmark: every later change is delivered.
    watch.message().await?.ok_or("the watch was closed")?;

    let attributes = BTreeMap::from([
        ("user_id".to_owned(), AttributeValue { kind: Some(Kind::IntValue(1)) }),
        ("cart".to_owned(), AttributeValue { kind: Some(Kind::JsonValue(r#"["item1","item2"]"#.into())) }),
    ]);
    let request = CreateSessionRequest {
        namespace: namespace.clone(),
        subject: "1".into(),
        labels,
        attributes,
        ..Default::default()
    };
    let created = a.create_session(request).await?.into_inner();
    let session = created.session.ok_or("no session")?;
    let key = Some(SessionKey { key: Some(Key::Token(created.token)) });
    println!("server A created the session of user {}", session.subject);

    let event = wait_for(&mut watch, EventType::Created, &session.id).await?;
    check("server B received CREATED", &describe(event.session), CONTENT)?;

    let request = GetSessionRequest { namespace: namespace.clone(), key: key.clone(), ..Default::default() };
    let read = b.get_session(request.clone()).await?.into_inner();
    check("server B read", &describe(read.session), CONTENT)?;

    a.delete_session(DeleteSessionRequest { namespace, key, ..Default::default() }).await?;
    let event = wait_for(&mut watch, EventType::Ended, &session.id).await?;
    check("server B received ENDED", event.cause().as_str_name().trim_start_matches("CAUSE_"), "LOGOUT")?;
    assert_eq!(event.cause(), Cause::Logout);

    match a.get_session(request).await {
        Err(status) if status.code() == Code::NotFound => println!("server A returned: NOT_FOUND"),
        result => return Err(format!("expected NOT_FOUND, got {result:?}").into()),
    }
    println!("done");
    Ok(())
}

/// Connects to a server: with TLS and the API key, if SESSIOND_CA is set.
async fn connect(
    variable: &str,
) -> Result<SessionServiceClient<InterceptedService<Channel, impl Interceptor>>, Box<dyn Error>> {
    let address = env::var(variable).map_err(|_| format!("set {variable} to host:port"))?;
    let (ca, key) = (file("SESSIOND_CA")?, file("SESSIOND_API_KEY_FILE")?);
    let endpoint = match ca {
        Some(pem) => {
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            Endpoint::from_shared(format!("https://{address}"))?.tls_config(tls)?
        }
        None if key.is_some() => return Err("SESSIOND_API_KEY_FILE needs SESSIOND_CA".into()),
        None => Endpoint::from_shared(format!("http://{address}"))?,
    };
    let channel = endpoint.timeout(Duration::from_secs(10)).connect().await?;
    let authorization = key.map(|key| bearer(key.trim())).transpose()?;
    Ok(SessionServiceClient::with_interceptor(channel, move |mut request: Request<()>| {
        if let Some(value) = &authorization {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }))
}

/// Header value of an API key. It is sensitive: its `Debug` does not print it.
fn bearer(key: &str) -> Result<AsciiMetadataValue, Box<dyn Error>> {
    let mut value = AsciiMetadataValue::try_from(format!("Bearer {key}"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Content of the file that the variable names. None: the variable is not set.
fn file(variable: &str) -> Result<Option<String>, Box<dyn Error>> {
    let path = env::var_os(variable).filter(|path| !path.is_empty());
    let read = path.map(|path| fs::read_to_string(&path).map_err(|error| format!("{variable}: {error}")));
    Ok(read.transpose()?)
}

async fn wait_for(
    watch: &mut Streaming<WatchResponse>,
    kind: EventType,
    id: &str,
) -> Result<SessionEvent, Box<dyn Error>> {
    loop {
        let response = watch.message().await?.ok_or("the watch was closed")?;
        if let Some(event) = response.events.into_iter().find(|event| event.r#type() == kind && event.id == id) {
            return Ok(event);
        }
    }
}

fn describe(session: Option<Session>) -> String {
    let kind = |name: &str| session.as_ref()?.attributes.get(name)?.kind.clone();
    match (kind("user_id"), kind("cart")) {
        (Some(Kind::IntValue(user)), Some(Kind::JsonValue(cart))) => format!("user_id={user} cart={cart}"),
        other => format!("{other:?}"),
    }
}

fn check(step: &str, actual: &str, expected: &str) -> Result<(), String> {
    if actual != expected {
        return Err(format!("{step}: expected {expected}, got {actual}"));
    }
    println!("{step}: {actual}");
    Ok(())
}
