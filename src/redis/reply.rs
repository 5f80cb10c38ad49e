//! Replies of Redis.

use std::{fmt, iter, vec};

use bytes::Bytes;
use fred::types::Value;

/// Reply to a request, or one value in it. `Debug` shows its type only: values can be secrets.
#[derive(Clone)]
pub struct Reply(pub(super) Value);

impl Reply {
    /// Whether there is no value.
    pub fn is_nil(&self) -> bool {
        self.0.is_null()
    }

    /// Whether the reply is an array.
    pub fn is_array(&self) -> bool {
        self.0.is_array()
    }

    /// Returns an integer, or a text that is one.
    pub fn integer(&self) -> Option<i64> {
        self.0.as_i64()
    }

    /// Returns an integer that is not negative, or a text that is one.
    pub fn number(&self) -> Option<u64> {
        self.0.as_u64()
    }

    /// Returns a number, or a text that is one.
    pub fn float(&self) -> Option<f64> {
        self.0.as_f64()
    }

    /// Returns a text.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(self.0.as_bytes()?).ok()
    }

    /// Returns a byte string.
    pub fn bytes(self) -> Option<Bytes> {
        self.0.into_bytes()
    }

    /// Returns the elements of an array.
    pub fn array(self) -> Option<Vec<Reply>> {
        match self.0 {
            // Reuses the memory of the array.
            Value::Array(elements) => Some(elements.into_iter().map(Reply).collect()),
            _ => None,
        }
    }

    /// Returns the time in us of a reply to TIME: seconds and microseconds.
    pub fn time(self) -> Option<u64> {
        let mut parts = self.array()?.into_iter().filter_map(|part| part.number());
        Some(parts.next()? * 1_000_000 + parts.next()?)
    }

    /// Iterates over the pairs of a map, of an array of pairs, or of a flat array. Any other reply has none.
    pub fn pairs(self) -> impl Iterator<Item = (Reply, Reply)> {
        let mut elements: vec::IntoIter<Value> = match self.0 {
            Value::Array(elements) => elements.into_iter(),
            map @ Value::Map(_) => map.into_array().into_iter(),
            _ => Vec::new().into_iter(),
        };
        iter::from_fn(move || match elements.next()? {
            Value::Array(pair) => {
                let mut pair = pair.into_iter();
                Some((Reply(pair.next()?), Reply(pair.next()?)))
            }
            first => Some((Reply(first), Reply(elements.next()?))),
        })
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.kind().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(elements: impl IntoIterator<Item = Value>) -> Value {
        Value::Array(elements.into_iter().collect())
    }

    #[test]
    fn pairs_of_flat_and_nested_arrays_are_equal() {
        let nested = array([array(["a".into(), 1.into()]), array(["b".into(), 2.into()])]);
        let flat = array(["a".into(), 1.into(), "b".into(), 2.into()]);
        for reply in [nested, flat] {
            let pairs = Reply(reply).pairs().map(|(name, number)| (name.text().unwrap().to_owned(), number.number()));
            assert_eq!(pairs.collect::<Vec<_>>(), [("a".to_owned(), Some(1)), ("b".to_owned(), Some(2))]);
        }
        assert_eq!(Reply(Value::Null).pairs().count(), 0);
    }

    #[test]
    fn debug_of_a_reply_shows_its_type_only() {
        assert_eq!(format!("{:?}", Reply("secret".into())), "String");
    }
}
