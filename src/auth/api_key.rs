//! API keys: `sdk_<id>_<secret>`. The id is public and may be logged; the server keeps the SHA-256 of the whole key only.

use std::{fmt, str::FromStr};

use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Prefix of every key.
const PREFIX: &str = "sdk_";
/// Prefix of a hash in `callers.toml`.
const HASH_PREFIX: &str = "sha256:";
const ID_CHARS: usize = 10;
const SECRET_CHARS: usize = 52;
/// Length of a key in bytes.
const KEY_BYTES: usize = PREFIX.len() + ID_CHARS + 1 + SECRET_CHARS;
/// Symbols of id and secret, five bits each.
const SYMBOLS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
/// Length of a hash in bytes.
const HASH_BYTES: usize = 32;

/// Public id of an API key, 10 characters of a-z2-7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId([u8; ID_CHARS]);

impl FromStr for KeyId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.as_bytes().try_into() {
            Ok(id) if is_base32(text) => Ok(KeyId(id)),
            Ok(_) | Err(_) => Err("must be 10 characters of a-z2-7".to_owned()),
        }
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&self.0).map_err(|_| fmt::Error)?)
    }
}

/// SHA-256 of a whole key. It is compared in constant time.
#[derive(Clone, Copy)]
pub struct KeyHash([u8; HASH_BYTES]);

impl KeyHash {
    /// Hash that no key has: that of an unknown id, so that its comparison takes as long as that of a known one.
    pub(super) const DUMMY: KeyHash = KeyHash([0; HASH_BYTES]);

    fn of(key: &str) -> Self {
        KeyHash(Sha256::digest(key.as_bytes()).into())
    }

    /// Whether both are the same.
    pub(super) fn equals(&self, other: &KeyHash) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl FromStr for KeyHash {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix(HASH_PREFIX).and_then(|hex| HEXLOWER.decode(hex.as_bytes()).ok());
        let hash = hex.and_then(|hash| hash.try_into().ok());
        hash.map(KeyHash).ok_or_else(|| format!("must be {HASH_PREFIX} and 64 digits of 0-9a-f"))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{HASH_PREFIX}{}", HEXLOWER.encode(&self.0))
    }
}

/// A new key. Its text is secret: it has no `Debug` and no `Display`, and its memory is wiped.
pub struct ApiKey {
    text: Zeroizing<String>,
    id: KeyId,
}

impl ApiKey {
    /// Generates a key with bytes of `fill`, which must be random. Fails if `fill` does.
    pub fn generate<E>(fill: impl FnOnce(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut symbols = Zeroizing::new([0; ID_CHARS + SECRET_CHARS]);
        fill(&mut symbols[..])?;
        symbols.iter_mut().for_each(|byte| *byte = SYMBOLS[usize::from(*byte) % SYMBOLS.len()]);
        let (id, secret) = symbols.split_at(ID_CHARS);
        // With its final capacity: growing would leave copies of the key in freed memory.
        let mut text = Zeroizing::new(String::with_capacity(KEY_BYTES));
        text.push_str(PREFIX);
        text.extend(id.iter().copied().map(char::from));
        text.push('_');
        text.extend(secret.iter().copied().map(char::from));
        Ok(ApiKey { text, id: KeyId(std::array::from_fn(|at| symbols[at])) })
    }

    /// Returns the key, for the one who asked for it.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// Returns the public id and the hash, for `callers.toml`.
    pub fn id_and_hash(&self) -> (KeyId, KeyHash) {
        (self.id, KeyHash::of(&self.text))
    }
}

/// Returns the id and the hash of a presented key. None: the text is no key.
pub(super) fn read(text: &str) -> Option<(KeyId, KeyHash)> {
    let (id, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let id = id.parse().ok()?;
    let is_key = secret.len() == SECRET_CHARS && is_base32(secret);
    is_key.then(|| (id, KeyHash::of(text)))
}

fn is_base32(text: &str) -> bool {
    text.bytes().all(|byte| SYMBOLS.contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> ApiKey {
        ApiKey::generate(getrandom::fill).unwrap()
    }

    #[test]
    fn generated_key_is_read_back() {
        let key = key();
        let (id, hash) = key.id_and_hash();
        assert!(read(key.reveal()).is_some_and(|(read, same)| read == id && same.equals(&hash)));
        assert_eq!(key.reveal().len(), KEY_BYTES);
        assert_eq!(id.to_string(), key.reveal()[PREFIX.len()..][..ID_CHARS]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!(hash.to_string().parse::<KeyHash>().unwrap().equals(&hash) && !hash.equals(&KeyHash::DUMMY));
    }

    #[test]
    fn text_of_another_form_is_no_key() {
        let key = key();
        let good = key.reveal();
        let rows = [
            String::new(),
            "sdk_".into(),
            good.to_uppercase(),
            good[..KEY_BYTES - 1].into(),
            format!("{good}a"),
            good.replacen("sdk_", "ses_", 1),
            good.replace('_', "-"),
            format!("{}1", &good[..KEY_BYTES - 1]),
            format!(" {good}"),
            format!("{good} "),
            format!("{}é", &good[..KEY_BYTES - 2]),
        ];
        for text in rows {
            assert!(read(&text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn malformed_hash_is_refused() {
        let good = key().id_and_hash().1.to_string();
        for text in ["", "sha256:", &good[..70], &good.to_uppercase(), &good[7..], &format!("{good}00")] {
            assert!(text.parse::<KeyHash>().is_err(), "{text}");
        }
    }
}
