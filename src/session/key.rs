//! Names and secrets: the namespace, the public id, the bearer token, and the hash that stands for it.

use std::{fmt, str::FromStr, sync::Arc};

use data_encoding::{BASE32_NOPAD, Encoding, Specification};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Bytes of a session id: 128 bits.
pub const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
const ID_CHARS: usize = 26;
const SECRET_CHARS: usize = 52;
const SERVER_FORM: &str = "ses_";
const FOREIGN_BYTES: std::ops::RangeInclusive<usize> = 22..=256;

/// RFC 4648 base32 in lower case without padding; spare bits must be zero.
fn base32() -> &'static Encoding {
    static BASE32: std::sync::OnceLock<Encoding> = std::sync::OnceLock::new();
    BASE32.get_or_init(|| {
        let mut specification: Specification = BASE32_NOPAD.specification();
        specification.symbols = specification.symbols.to_ascii_lowercase();
        specification.encoding().expect("lower-case base32 is an encoding")
    })
}

/// The text is not in the form that this name has. Carries nothing of the text: it may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed")]
pub struct Malformed;

/// Whether the text matches `[a-z0-9]([-a-z0-9]{0,62})`: a namespace or the name of a label.
pub fn is_label_name(text: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len()) && plain(&bytes[0]) && bytes.iter().all(|byte| plain(byte) || *byte == b'-')
}

/// The isolation unit: one application or tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if is_label_name(text) { Ok(Namespace(text.into())) } else { Err(Malformed) }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Public name of a session, 26 characters of base32. Names, never authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; ID_BYTES]);

impl SessionId {
    pub fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
        SessionId(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; ID_BYTES] {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        if text.len() != ID_CHARS {
            return Err(Malformed);
        }
        let bytes = base32().decode(text.as_bytes()).map_err(|_| Malformed)?;
        Ok(SessionId(bytes.try_into().map_err(|_| Malformed)?))
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32().encode(&self.0))
    }
}

/// Which session: its namespace and its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionName {
    pub namespace: Namespace,
    pub id: SessionId,
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// Whose sessions: a subject of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    pub namespace: Namespace,
    /// Not empty.
    pub name: String,
}

/// Hash of a secret: what is stored and sent to Redis in its place.
#[derive(Clone, Copy)]
pub struct Verifier([u8; 16]);

impl Verifier {
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// With what right a caller acts on a session.
#[derive(Clone, Copy)]
pub enum Proof {
    /// It names the id.
    Named,
    /// It holds a secret.
    Secret(Verifier),
}

/// How the token that a caller presented stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// None was presented: the caller named the id.
    Named,
    Current,
    /// The current one, older than the renewal timeout.
    RotationDue,
    /// A newer one exists; this one is still accepted.
    Superseded,
}

/// The bearer secret of a session. Has no Debug and no Display, and is wiped when dropped.
pub struct Token {
    text: Zeroizing<String>,
    id: SessionId,
    form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Server,
    Foreign,
}

impl Token {
    /// A new token in the server's form, of 128 bits of id and 256 bits of secret.
    pub fn generate(random: impl Fn(&mut [u8])) -> Self {
        let mut id = [0; ID_BYTES];
        random(&mut id);
        Token::successor(SessionId(id), random)
    }

    /// A new token in the server's form for a session that is there.
    pub fn successor(id: SessionId, random: impl Fn(&mut [u8])) -> Self {
        let mut bytes = Zeroizing::new([0; SECRET_BYTES]);
        random(&mut bytes[..]);
        let secret = Zeroizing::new(base32().encode(&bytes[..]));
        Token { text: Zeroizing::new(format!("{SERVER_FORM}{id}_{}", *secret)), id, form: Form::Server }
    }

    /// Takes `ses_<id>_<secret>`, or anything else of 22 to 256 bytes as a foreign token.
    pub fn parse(text: String) -> Result<Self, Malformed> {
        let text = Zeroizing::new(text);
        if let Some(rest) = text.strip_prefix(SERVER_FORM) {
            let (id, secret) = rest.split_once('_').ok_or(Malformed)?;
            let id = id.parse()?;
            let bytes = Zeroizing::new(base32().decode(secret.as_bytes()).map_err(|_| Malformed)?);
            if secret.len() != SECRET_CHARS || bytes.len() != SECRET_BYTES {
                return Err(Malformed);
            }
            return Ok(Token { text, id, form: Form::Server });
        }
        if !FOREIGN_BYTES.contains(&text.len()) {
            return Err(Malformed);
        }
        let digest = hash(b"sessiond/id", text.as_bytes());
        Ok(Token { text, id: SessionId(digest), form: Form::Foreign })
    }

    pub fn id(&self) -> SessionId {
        self.id
    }

    pub fn is_foreign(&self) -> bool {
        self.form == Form::Foreign
    }

    /// Hashes the whole text, so that no server-form token ever opens the session of a foreign one.
    pub fn verifier(&self) -> Verifier {
        Verifier(hash(b"sessiond/secret", self.text.as_bytes()))
    }

    /// The text, for the one answer that tells it to who asked for it.
    pub fn reveal(&self) -> String {
        self.text.as_str().to_owned()
    }
}

/// The first 128 bits of SHA-256 over both.
fn hash(purpose: &[u8], text: &[u8]) -> [u8; 16] {
    let digest = Sha256::new().chain_update(purpose).chain_update(text).finalize();
    digest[..16].try_into().expect("SHA-256 has 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_token_is_in_the_servers_form_and_names_its_id() {
        let token = Token::generate(|bytes| bytes.fill(0xa5));
        let text = token.reveal();
        assert_eq!(text.len(), 4 + 26 + 1 + 52);
        let again = Token::parse(text.clone()).unwrap();
        assert!(again.id() == token.id() && again.verifier() == token.verifier() && !again.is_foreign());
        assert_eq!(text[4..30].parse::<SessionId>().unwrap(), token.id());
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let good = Token::generate(|bytes| bytes.fill(7)).reveal();
        let upper = good.to_uppercase().replace("SES_", "ses_");
        let spare_bits = format!("{}{}", &good[..good.len() - 1], "b");
        let short = good[..good.len() - 1].to_owned();
        for bad in [upper, spare_bits, short, "ses_".into(), "ses__".into(), "x".repeat(21), "x".repeat(257)] {
            assert!(Token::parse(bad).is_err());
        }
        assert!(Token::parse("x".repeat(22)).unwrap().is_foreign());
    }

    #[test]
    fn a_server_form_token_never_opens_a_foreign_session() {
        let secret = base32().encode(&[9; SECRET_BYTES]);
        let foreign = Token::parse(secret.clone()).unwrap();
        let forged = Token::parse(format!("ses_{}_{secret}", foreign.id())).unwrap();
        assert!(forged.id() == foreign.id() && forged.verifier() != foreign.verifier());
    }

    #[test]
    fn names_have_one_form() {
        for good in ["a", "0", "web", "a-b", "message", &"a".repeat(63)] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a:b", "{a}", "a\n", "a\0", "\u{1f600}", "MOVED 1 x", &"a".repeat(64)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
    }
}
