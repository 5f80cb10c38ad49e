//! Names and secrets: namespace, session id, subject, bearer token, and the verifier of a token.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, LazyLock},
};

use data_encoding::{BASE32_NOPAD, DecodeKind, Encoding, Specification};
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Length of a session id in bytes: 128 bits.
pub const ID_BYTES: usize = 16;
const SECRET_BYTES: usize = 32;
/// Length of a salt in bytes.
pub const SALT_BYTES: usize = 32;
const ID_CHARS: usize = 26;
const SECRET_CHARS: usize = 52;
/// Prefix of a token in the server form, `ses_<id>_<secret>`.
const SERVER_FORM: &str = "ses_";
/// Length of a client token in bytes.
const CLIENT_TOKEN_BYTES: std::ops::RangeInclusive<usize> = 22..=256;

/// RFC 4648 base32 in lower case without padding. Decoding rejects non-zero spare bits, so a value has one text.
static BASE32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification: Specification = BASE32_NOPAD.specification();
    specification.symbols = specification.symbols.to_ascii_lowercase();
    #[expect(clippy::expect_used, reason = "the specification is constant")]
    specification.encoding().expect("lower-case base32 is a valid encoding")
});

/// Error of a text that is not a namespace or a session id. It has no part of the text, because that may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed")]
pub struct Malformed;

/// Reason why a text is not a token. It has no part of the text, because that may be a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MalformedToken {
    /// The text does not start with `ses_` and its length is out of range.
    #[error("must be ses_<id>_<secret>, or 22 to 256 bytes that do not start with ses_")]
    Length,
    /// The text starts with `ses_`, but its id or its secret is missing, too short or too long.
    #[error("starts with ses_, but is not ses_<id>_<secret> with an id of 26 and a secret of 52 characters")]
    ServerFormLength,
    /// The text starts with `ses_` and has the right length, but a character is outside of the base32 alphabet.
    #[error("starts with ses_, but its id or secret has a character outside of a-z2-7")]
    Alphabet,
    /// The text starts with `ses_`, but the bits after the last byte of its id or its secret are not zero.
    #[error(
        "starts with ses_, but its id or secret has non-zero spare bits: the id must end with one of a, e, i, m, q, u, \
         y, 4, the secret with a or q"
    )]
    SpareBits,
}

/// Returns whether the text matches `[a-z0-9]([-a-z0-9]{0,62})`, the form of a namespace and of a label name.
pub fn is_label_name(text: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let has_valid_start = bytes.first().is_some_and(is_alphanumeric);
    has_valid_start && bytes.len() <= 63 && bytes.iter().all(|byte| is_alphanumeric(byte) || *byte == b'-')
}

/// Namespace: the isolation unit of one application or tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Returns the namespace as text.
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

/// Public id of a session, 26 characters of base32. It names a session and authenticates nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId([u8; ID_BYTES]);

impl SessionId {
    /// Returns the id with these bytes.
    pub fn from_bytes(bytes: [u8; ID_BYTES]) -> Self {
        SessionId(bytes)
    }

    /// Returns the bytes of the id.
    pub fn as_bytes(&self) -> &[u8; ID_BYTES] {
        &self.0
    }
}

impl FromStr for SessionId {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        decode_base32(text).map(|id| SessionId(*id)).map_err(|_| Malformed)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; ID_CHARS];
        BASE32.encode_mut(&self.0, &mut text);
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// Namespace and id of a session.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionRef {
    /// Namespace of the session.
    pub namespace: Namespace,
    /// Id of the session.
    pub id: SessionId,
}

impl fmt::Display for SessionRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.id)
    }
}

/// Namespace and name of a subject.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    /// Namespace of the subject.
    pub namespace: Namespace,
    /// Name of the subject, never empty.
    pub name: String,
}

/// Hash of a token. Redis stores and receives it instead of the token.
#[derive(Clone, Copy)]
pub struct Verifier([u8; 16]);

impl Verifier {
    /// Returns the verifier with these bytes.
    #[cfg(test)]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Verifier(bytes)
    }

    /// Returns the bytes of the hash.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl PartialEq for Verifier {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

/// Evidence that a caller presented to act on a session.
#[derive(Clone, Copy)]
pub enum Credential {
    /// The public id only.
    Id,
    /// Verifier of a token. The scripts compare it with the stored one.
    Secret(Verifier),
}

/// State of the token that a caller presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenState {
    /// The caller presented the id instead of a token.
    NotPresented,
    /// The current token of the session.
    Current,
    /// The current token, older than the policy's renewal timeout.
    RotationDue,
    /// A previous token within its grace period.
    Superseded,
}

/// Random number from which, together with a token, the token's successor is derived.
pub type Salt = [u8; SALT_BYTES];

/// Bearer secret of a session. It has no `Debug` and no `Display`, and its memory is wiped on drop.
pub struct Token {
    text: Zeroizing<String>,
    id: SessionId,
    form: Form,
}

/// Form of a token.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `ses_<id>_<secret>`.
    Server,
    /// Any other text of a valid length.
    Client,
}

impl Token {
    /// Generates a token in the server form, with an id of 128 bits and a secret of 256 bits.
    pub fn generate(random: impl Fn(&mut [u8])) -> Self {
        let mut id = [0; ID_BYTES];
        random(&mut id);
        let mut secret = Zeroizing::new([0; SECRET_BYTES]);
        random(&mut secret[..]);
        Token::in_server_form(SessionId(id), &secret)
    }

    /// Derives the token that replaces this one in a rotation. It has the server form; it cannot be computed without this
    /// token and the salt.
    #[expect(clippy::expect_used, reason = "HMAC takes a key of any length")]
    pub fn successor(&self, salt: &Salt) -> Self {
        let mut hmac = Hmac::<Sha256>::new_from_slice(salt).expect("a key of any length");
        hmac.update(self.text.as_bytes());
        let secret = Zeroizing::new(<[u8; SECRET_BYTES]>::from(hmac.finalize().into_bytes()));
        Token::in_server_form(self.id, &secret)
    }

    fn in_server_form(id: SessionId, secret: &[u8; SECRET_BYTES]) -> Self {
        let secret = Zeroizing::new(BASE32.encode(secret));
        Token { text: Zeroizing::new(format!("{SERVER_FORM}{id}_{}", *secret)), id, form: Form::Server }
    }

    /// Parses a token in the server form, or any other text of 22 to 256 bytes as a client token.
    pub fn parse(text: String) -> Result<Self, MalformedToken> {
        let text = Zeroizing::new(text);
        if let Some(rest) = text.strip_prefix(SERVER_FORM) {
            let (id, secret) = rest.split_once('_').ok_or(MalformedToken::ServerFormLength)?;
            if id.len() != ID_CHARS || secret.len() != SECRET_CHARS {
                return Err(MalformedToken::ServerFormLength);
            }
            let id = SessionId(*decode_base32(id)?);
            decode_base32::<SECRET_BYTES>(secret)?;
            return Ok(Token { text, id, form: Form::Server });
        }
        if !CLIENT_TOKEN_BYTES.contains(&text.len()) {
            return Err(MalformedToken::Length);
        }
        let digest = hash(b"sessiond/id", text.as_bytes());
        Ok(Token { text, id: SessionId(digest), form: Form::Client })
    }

    /// Returns the id of the session: a part of a token in the server form, a hash of a client token.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns whether the token is a client token: a caller made it, and it is not in the server form.
    pub fn is_client_token(&self) -> bool {
        self.form == Form::Client
    }

    /// Returns the hash of the whole text.
    ///
    /// The hash includes the form, so a token in the server form never opens the session of a client token.
    pub fn verifier(&self) -> Verifier {
        Verifier(hash(b"sessiond/secret", self.text.as_bytes()))
    }

    /// Returns the text, for the one response that returns a new token to its caller.
    pub fn reveal(&self) -> String {
        self.text.as_str().to_owned()
    }
}

/// Decodes an id, or the secret of a token in the server form, of N bytes.
fn decode_base32<const N: usize>(text: &str) -> Result<Zeroizing<[u8; N]>, MalformedToken> {
    let mut bytes = Zeroizing::new([0; N]);
    if BASE32.decode_len(text.len()) != Ok(N) {
        return Err(MalformedToken::ServerFormLength);
    }
    BASE32.decode_mut(text.as_bytes(), &mut bytes[..]).map_err(|partial| match partial.error.kind {
        DecodeKind::Trailing => MalformedToken::SpareBits,
        DecodeKind::Symbol | DecodeKind::Padding => MalformedToken::Alphabet,
        DecodeKind::Length => MalformedToken::ServerFormLength,
    })?;
    Ok(bytes)
}

/// Returns the first 128 bits of SHA-256 over both parts.
fn hash(purpose: &[u8], text: &[u8]) -> [u8; 16] {
    let digest: [u8; 32] = Sha256::new().chain_update(purpose).chain_update(text).finalize().into();
    std::array::from_fn(|at| digest[at])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_token_has_the_server_form_and_its_id() {
        let token = Token::generate(|bytes| bytes.fill(0xa5));
        let text = token.reveal();
        assert_eq!(text.len(), 4 + 26 + 1 + 52);
        let parsed = Token::parse(text.clone()).unwrap();
        assert!(parsed.id() == token.id() && parsed.verifier() == token.verifier() && !parsed.is_client_token());
        assert_eq!(text[4..30].parse::<SessionId>().unwrap(), token.id());
    }

    #[test]
    fn malformed_token_is_rejected_with_its_reason() {
        use MalformedToken::{Alphabet, Length, ServerFormLength, SpareBits};
        let good = Token::generate(|bytes| bytes.fill(7)).reveal();
        let (without_last, with_last) =
            (&good[..good.len() - 1], |last: &str| good[..good.len() - 1].to_owned() + last);
        let id_ending_with = |last: &str| format!("{}{last}{}", &good[..29], &good[30..]);
        let rows = [
            (good.to_uppercase().replace("SES_", "ses_"), Alphabet),
            (with_last("1"), Alphabet),
            (with_last("\n"), Alphabet),
            (id_ending_with("8"), Alphabet),
            (with_last("b"), SpareBits),
            (with_last("y"), SpareBits),
            (id_ending_with("b"), SpareBits),
            (without_last.to_owned(), ServerFormLength),
            (good.clone() + "a", ServerFormLength),
            (good.replacen("ses_", "ses_a", 1), ServerFormLength),
            (good[..30].to_owned(), ServerFormLength),
            ("ses_".into(), ServerFormLength),
            ("ses__".into(), ServerFormLength),
            (String::new(), Length),
            ("x".repeat(21), Length),
            ("x".repeat(257), Length),
        ];
        for (text, reason) in rows {
            assert_eq!(Token::parse(text.clone()).err(), Some(reason), "{text:?}");
        }
        for last in ["a", "q"] {
            assert!(!Token::parse(with_last(last)).unwrap().is_client_token());
        }
        for last in ["a", "e", "i", "m", "q", "u", "y", "4"] {
            assert!(!Token::parse(id_ending_with(last)).unwrap().is_client_token());
        }
        assert!(Token::parse("x".repeat(22)).unwrap().is_client_token());
    }

    #[test]
    fn server_form_token_never_opens_a_client_token_session() {
        let secret = BASE32.encode(&[9; SECRET_BYTES]);
        let client_token = Token::parse(secret.clone()).unwrap();
        let forged = Token::parse(format!("ses_{}_{secret}", client_token.id())).unwrap();
        assert!(forged.id() == client_token.id() && forged.verifier() != client_token.verifier());
    }

    #[test]
    fn namespace_has_one_form() {
        for good in ["a", "0", "web", "a-b", "message", &"a".repeat(63)] {
            assert!(good.parse::<Namespace>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "A", "a_b", "a:b", "{a}", "a\n", "a\0", "\u{1f600}", "MOVED 1 x", &"a".repeat(64)] {
            assert!(bad.parse::<Namespace>().is_err(), "{bad}");
        }
    }
}
