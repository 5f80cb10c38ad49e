//! Kinds of the settings of the connection to Redis, two of which contain secrets.

use toml::Value;
use zeroize::Zeroizing;

use super::kind::Kind;

const MASK: &str = "****";
/// Schemes of a URL of Redis.
const SCHEMES: [&str; 7] =
    ["redis", "rediss", "redis+unix", "redis-cluster", "rediss-cluster", "redis-sentinel", "rediss-sentinel"];

/// A text that is never printed, and wiped when dropped.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl std::ops::Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(MASK)
    }
}

/// A password. It is never printed.
pub(super) fn password() -> Kind<Secret> {
    Kind::new("text", "a text", |value| value.as_str().map(|text| Secret(text.to_owned().into())), |_| None).secret()
}

/// Prefix of all keys in Redis. A brace would change the hash tag that assigns a key to its slot.
pub(super) fn key_prefix() -> Kind<String> {
    let parse = |value: &Value| {
        let prefix = value.as_str().filter(|prefix| prefix.len() <= 64 && !prefix.contains(['{', '}']));
        prefix.map(str::to_owned)
    };
    Kind::new("text", "a text of at most 64 bytes without braces", parse, |prefix| Some(prefix.clone().into()))
        .with_range("at most 64 bytes, no braces")
}

/// URL of a Redis server, Cluster or set of Sentinels. Passwords in it are masked when it is printed.
pub(super) fn redis_url() -> Kind<String> {
    let schemes = SCHEMES.map(|scheme| format!("{scheme}://"));
    let accepted = format!("a URL that begins with one of {}", schemes.join(", "));
    let parse = |value: &Value| {
        let (scheme, _) = value.as_str()?.split_once("://")?;
        SCHEMES.contains(&scheme).then(|| value.as_str().map(str::to_owned))?
    };
    Kind::new("URL", accepted, parse, |url| Some(masked(url).into()))
        .with_range(SCHEMES.map(|scheme| format!("`{scheme}://`")).join(", "))
        .secret()
}

/// Masks the passwords in a URL: that of the servers before the host, that of the Sentinels among the parameters.
fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return MASK.into() };
    let parameters = rest.split('&').map(|parameter| match parameter.split_once("sentinelPassword=") {
        Some((before, _)) => format!("{before}sentinelPassword={MASK}"),
        None => parameter.to_owned(),
    });
    let rest = parameters.collect::<Vec<_>>().join("&");
    match rest.rsplit_once('@') {
        None => format!("{scheme}://{rest}"),
        Some((credentials, host)) => {
            let user = credentials.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:{MASK}@{host}")
        }
    }
}
