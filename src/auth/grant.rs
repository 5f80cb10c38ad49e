//! Grants: what a caller may do in which namespaces.

use std::{fmt, str::FromStr};

use crate::session::{Namespace, is_label_name};

/// What a caller may do in a namespace, and what a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grant {
    /// Use sessions whose token the caller presents.
    Token,
    /// Read sessions without their attributes, and end them, by id or by subject.
    Manage,
    /// Everything.
    Full,
}

impl Grant {
    /// Returns the name in `callers.toml` and in error statuses.
    pub fn name(self) -> &'static str {
        match self {
            Grant::Token => "token",
            Grant::Manage => "manage",
            Grant::Full => "full",
        }
    }

    /// Whether a caller with this grant may make a call that needs `needed`.
    fn includes(self, needed: Grant) -> bool {
        self == Grant::Full || self == needed
    }
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Grant::Token, Grant::Manage, Grant::Full]
            .into_iter()
            .find(|grant| grant.name() == text)
            .ok_or_else(|| "must be token, manage or full".to_owned())
    }
}

/// Namespaces of a grant: one, or all with a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// The namespace with this name.
    Exact(Namespace),
    /// Namespaces whose names start with this text. Empty: all.
    Prefix(String),
}

impl Pattern {
    /// Whether the pattern includes this namespace.
    fn matches(&self, namespace: &Namespace) -> bool {
        match self {
            Pattern::Exact(exact) => exact == namespace,
            Pattern::Prefix(prefix) => namespace.as_str().starts_with(prefix),
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const FORM: &str = "must be a namespace, or the start of one with one * at its end";
        match text.strip_suffix('*') {
            Some(prefix) if prefix.is_empty() || is_label_name(prefix) => Ok(Pattern::Prefix(prefix.to_owned())),
            Some(_) => Err(FORM.to_owned()),
            None => text.parse().map(Pattern::Exact).map_err(|_| FORM.to_owned()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Exact(namespace) => namespace.fmt(f),
            Pattern::Prefix(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// All grants of a caller. Those that match a namespace apply together.
#[derive(Clone, Debug, Default)]
pub struct Grants(Vec<(Pattern, Grant)>);

impl Grants {
    /// Grants in these namespaces.
    pub fn new(grants: Vec<(Pattern, Grant)>) -> Self {
        Grants(grants)
    }

    /// The grant `full` in every namespace.
    pub fn full() -> Self {
        Grants(vec![(Pattern::Prefix(String::new()), Grant::Full)])
    }

    /// Whether the grants allow a call that needs `needed` in this namespace.
    pub fn allow(&self, needed: Grant, namespace: &Namespace) -> bool {
        self.0.iter().any(|(pattern, grant)| grant.includes(needed) && pattern.matches(namespace))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(entries: &[(&str, Grant)]) -> Grants {
        Grants::new(entries.iter().map(|(pattern, grant)| (pattern.parse().unwrap(), *grant)).collect())
    }

    #[test]
    fn pattern_matches_one_namespace_or_a_prefix() {
        let rows = [
            ("shop-*", &["shop-", "shop-a", "shop--"][..], &["shop", "xshop-a", "sho"][..]),
            ("shop*", &["shop", "shop-a", "shops"], &["sho", "ashop"]),
            ("shop", &["shop"], &["shop-", "shop-a", "shops"]),
            ("*", &["shop", "a", "0"], &[]),
        ];
        for (pattern, matching, others) in rows {
            let pattern: Pattern = pattern.parse().unwrap();
            for (names, expected) in [(matching, true), (others, false)] {
                for name in names {
                    assert_eq!(pattern.matches(&name.parse().unwrap()), expected, "{pattern} {name}");
                }
            }
        }
    }

    #[test]
    fn malformed_pattern_is_refused() {
        for text in ["", "*a", "a*b", "a**", "**", "Shop", "shop.*", "-*", " shop", &"a".repeat(64)] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn grant_allows_its_own_calls_and_full_all() {
        let rows = [
            (Grant::Token, [true, false, false]),
            (Grant::Manage, [false, true, false]),
            (Grant::Full, [true, true, true]),
        ];
        for (held, expected) in rows {
            let allowed = [Grant::Token, Grant::Manage, Grant::Full]
                .map(|needed| grants(&[("web", held)]).allow(needed, &"web".parse().unwrap()));
            assert_eq!(allowed, expected, "{held:?}");
        }
    }

    #[test]
    fn matching_grants_apply_together() {
        let both = grants(&[("web*", Grant::Token), ("web-a", Grant::Manage)]);
        let allows = |needed, name: &str| both.allow(needed, &name.parse().unwrap());
        assert!(allows(Grant::Token, "web-a") && allows(Grant::Manage, "web-a"));
        assert!(!allows(Grant::Full, "web-a") && !allows(Grant::Manage, "web"));
    }
}
