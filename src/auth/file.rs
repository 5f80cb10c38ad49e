//! Reads `callers.toml`. Problems name the path of their setting and never its value, which may be a key in the wrong place.

use std::{sync::Arc, time::SystemTime};

use toml::{Table, Value};

use super::{
    api_key::{KeyHash, KeyId},
    callers::{Caller, Callers, Key},
    certificate::Identity,
    grant::{Grant, Grants, Pattern},
    load::Loads,
};
use crate::session::is_label_name;

/// Longest name of a caller and longest pattern of namespaces in bytes, with one byte more for `*`.
const LONGEST_NAME: usize = 64;
/// Length of the public part of an API key: `sdk_`, its id, and `_`.
const PUBLIC_PART: usize = 15;

/// Every problem of the file, one per line.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct InvalidCallers(pub Vec<String>);

impl Callers {
    /// Parses the text of `callers.toml`. Callers with the name of one of `before` continue its load.
    pub fn parse(text: &str, before: &Loads) -> Result<Self, InvalidCallers> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            // The message without the line that it is about, which may contain a key.
            let line = 1 + error.span().map_or(0, |span| text[..span.start].matches('\n').count());
            InvalidCallers(vec![format!("line {line}: {}", error.message())])
        })?;
        let mut file = CallersFile { loads: before.clone(), ..CallersFile::default() };
        file.read(table);
        if file.problems.is_empty() { Ok(file.callers) } else { Err(InvalidCallers(file.problems)) }
    }
}

/// The file while it is being read.
#[derive(Default)]
struct CallersFile {
    callers: Callers,
    /// Loads of the callers before, by their names.
    loads: Loads,
    problems: Vec<String>,
}

impl CallersFile {
    fn problem(&mut self, path: &str, problem: &str) {
        let colon = if path.is_empty() { "" } else { ": " };
        self.problems.push(format!("{path}{colon}{problem}"));
    }

    /// Adds a problem unless the value was accepted.
    fn accepted<T>(&mut self, path: &str, result: Result<T, impl AsRef<str>>) -> Option<T> {
        result.map_err(|problem| self.problem(path, problem.as_ref())).ok()
    }

    fn unknown(&mut self, path: &str, rest: Table) {
        for key in rest.keys() {
            self.problem(&join(path, key), "is not known");
        }
    }

    fn read(&mut self, mut table: Table) {
        let callers = table.remove("caller");
        self.unknown("", table);
        let Some(callers) = callers else { return self.problem("", "has no caller") };
        let Some(callers) = self.table("caller", callers) else { return };
        for (name, caller) in callers {
            let path = join("caller", &name);
            if !is_label_name(&name) {
                self.problem(&path, "the name of a caller must match [a-z0-9]([-a-z0-9]{0,62})");
                continue;
            }
            if let Some(caller) = self.table(&path, caller) {
                self.read_caller(&path, name, caller);
            }
        }
    }

    fn read_caller(&mut self, path: &str, name: String, mut table: Table) {
        let grants = table.remove("grants").map(|grants| self.read_grants(&join(path, "grants"), grants));
        if grants.is_none() {
            self.problem(&join(path, "grants"), "is required");
        }
        let name: Arc<str> = name.into();
        let load = self.loads.remove(&name).unwrap_or_default();
        self.callers.loads.insert(name.clone(), load.clone());
        let caller = Arc::new(Caller { name, grants: Grants::new(grants.unwrap_or_default()), load });
        if let Some(certificates) = table.remove("certificates") {
            self.read_certificates(&join(path, "certificates"), certificates, &caller);
        }
        if let Some(keys) = table.remove("key") {
            let path = join(path, "key");
            match keys {
                Value::Array(keys) => {
                    for (index, key) in keys.into_iter().enumerate() {
                        self.read_key(&format!("{path}[{index}]"), key, &caller);
                    }
                }
                _ => self.problem(&path, "must be a list of tables: [[caller.<name>.key]]"),
            }
        }
        self.unknown(path, table);
    }

    fn read_grants(&mut self, path: &str, value: Value) -> Vec<(Pattern, Grant)> {
        let mut grants = Vec::new();
        for (pattern, grant) in self.table(path, value).unwrap_or_default() {
            let path = join(path, &pattern);
            let pattern = self.accepted(&path, pattern.parse());
            let grant = self.text(&path, grant).and_then(|text| self.accepted(&path, text.parse()));
            grants.extend(pattern.zip(grant));
        }
        grants
    }

    fn read_certificates(&mut self, path: &str, value: Value, caller: &Arc<Caller>) {
        let Value::Array(identities) = value else { return self.problem(path, "must be a list") };
        for (index, identity) in identities.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let identity = self.text(&path, identity).and_then(|text| self.accepted(&path, text.parse::<Identity>()));
            if let Some(identity) = identity
                && self.callers.certificates.insert(identity, caller.clone()).is_some()
            {
                self.problem(&path, "is in the file twice");
            }
        }
    }

    fn read_key(&mut self, path: &str, value: Value, caller: &Arc<Caller>) {
        let Some(mut table) = self.table(path, value) else { return };
        let id = self.required(path, "id", &mut table);
        let id = id.and_then(|text| self.accepted(&join(path, "id"), text.parse::<KeyId>()));
        let hash = self.required(path, "hash", &mut table);
        let hash = hash.and_then(|text| self.accepted(&join(path, "hash"), text.parse::<KeyHash>()));
        let not_before = table.remove("not_before").and_then(|time| self.time(&join(path, "not_before"), &time));
        let expires = table.remove("expires").and_then(|time| self.time(&join(path, "expires"), &time));
        self.unknown(path, table);
        if let Some((from, until)) = not_before.zip(expires)
            && from >= until
        {
            self.problem(&join(path, "expires"), "must be after not_before");
        }
        let Some((id, hash)) = id.zip(hash) else { return };
        let key = Key { caller: caller.clone(), hash, not_before, expires, last_used: Arc::default() };
        if self.callers.keys.insert(id, key).is_some() {
            self.problem(&join(path, "id"), "is in the file twice");
        }
    }

    fn required(&mut self, path: &str, name: &str, table: &mut Table) -> Option<String> {
        let path = join(path, name);
        match table.remove(name) {
            Some(value) => self.text(&path, value),
            None => {
                self.problem(&path, "is required");
                None
            }
        }
    }

    fn table(&mut self, path: &str, value: Value) -> Option<Table> {
        match value {
            Value::Table(table) => Some(table),
            _ => {
                self.problem(path, "must be a table");
                None
            }
        }
    }

    fn text(&mut self, path: &str, value: Value) -> Option<String> {
        match value {
            Value::String(text) => Some(text),
            _ => {
                self.problem(path, "must be a string");
                None
            }
        }
    }

    fn time(&mut self, path: &str, value: &Value) -> Option<SystemTime> {
        let time = value.as_datetime().and_then(|time| humantime::parse_rfc3339(&time.to_string()).ok());
        self.accepted(path, time.ok_or("must be a time in UTC without quotes, such as 2027-02-01T00:00:00Z"))
    }
}

/// Returns the path of a key below `path`. A name that is too long for any setting may be an API key or a token: of it, the path
/// has the public part only.
fn join(path: &str, key: &str) -> String {
    let key = if key.len() > LONGEST_NAME { &key[..key.floor_char_boundary(PUBLIC_PART)] } else { key };
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::auth::{ApiKey, Refusal};

    const HASH: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000001";

    fn problems(text: &str) -> Vec<String> {
        Callers::parse(text, &Loads::new()).err().map_or_else(Vec::new, |invalid| invalid.0)
    }

    #[test]
    fn callers_are_found_by_their_valid_keys() {
        let key = ApiKey::generate(getrandom::fill).unwrap();
        let (id, hash) = key.id_and_hash();
        let text = format!(
            "[caller.shop]\ngrants = {{ \"shop-*\" = \"full\", web = \"token\" }}\n\
             [[caller.shop.key]]\nid = \"{id}\"\nhash = \"{hash}\"\n\
             not_before = 2027-01-01T00:00:00Z\nexpires = 2027-02-01T00:00:00Z\n"
        );
        let callers = Callers::parse(&text, &Loads::new()).unwrap();
        let at = |time: &str| callers.by_key(id, &hash, humantime::parse_rfc3339(time).unwrap());
        let found = at("2027-01-01T00:00:00Z").unwrap();
        assert_eq!(&*found.caller.name, "shop");
        assert_eq!(found.valid_until, Some(UNIX_EPOCH + Duration::from_secs(1_801_440_000)));
        assert_eq!(at("2026-12-31T23:59:59Z").unwrap_err(), Refusal::EarlyKey(id));
        assert!(at("2027-01-31T23:59:59Z").is_ok());
        assert_eq!(at("2027-02-01T00:00:00Z").unwrap_err(), Refusal::ExpiredKey(id));
        let now = humantime::parse_rfc3339("2027-01-15T00:00:00Z").unwrap();
        assert_eq!(callers.by_key(id, &HASH.parse().unwrap(), now).unwrap_err(), Refusal::UnknownKey);
        assert_eq!(callers.by_key("aaaaaaaaaa".parse().unwrap(), &hash, now).unwrap_err(), Refusal::UnknownKey);
    }

    #[test]
    fn every_problem_is_reported_with_its_path() {
        let text = format!(
            "other = 1\n\
             [caller.Shop]\n\
             [caller.a]\ngrants = {{ \"*x\" = \"full\", b = \"all\", c = 1 }}\ncertificates = [\"cn:a\", \"dns:a\", \"dns:a\"]\n\
             key = \"sdk_secret\"\nadmin = true\n\
             [caller.b]\n\
             [[caller.b.key]]\nid = \"k\"\nhash = \"sdk_secret\"\nexpires = \"2027-02-01T00:00:00Z\"\n\
             [[caller.b.key]]\nid = \"aaaaaaaaaa\"\nhash = \"{HASH}\"\n\
             expires = 2027-01-01T00:00:00Z\nnot_before = 2027-02-01T00:00:00Z\n\
             [[caller.b.key]]\nid = \"aaaaaaaaaa\"\nhash = \"{HASH}\"\n\
             [[caller.b.key]]\nsecret = \"sdk_secret\"\n"
        );
        let found = problems(&text);
        let expected = [
            "other: is not known",
            "caller.Shop: the name of a caller must match [a-z0-9]([-a-z0-9]{0,62})",
            "caller.a.grants.*x: must be a namespace, or the start of one with one * at its end",
            "caller.a.grants.b: must be token, manage or full",
            "caller.a.grants.c: must be a string",
            "caller.a.certificates[0]: must be spiffe://<trust domain>/<path> without query, or dns:<name>",
            "caller.a.certificates[2]: is in the file twice",
            "caller.a.key: must be a list of tables: [[caller.<name>.key]]",
            "caller.a.admin: is not known",
            "caller.b.grants: is required",
            "caller.b.key[0].id: must be 10 characters of a-z2-7",
            "caller.b.key[0].hash: must be sha256: and 64 digits of 0-9a-f",
            "caller.b.key[0].expires: must be a time in UTC without quotes, such as 2027-02-01T00:00:00Z",
            "caller.b.key[1].expires: must be after not_before",
            "caller.b.key[2].id: is in the file twice",
            "caller.b.key[3].id: is required",
            "caller.b.key[3].hash: is required",
            "caller.b.key[3].secret: is not known",
        ];
        for line in expected {
            assert!(found.iter().any(|problem| problem == line), "{line} is not in {found:#?}");
        }
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        assert!(!found.iter().any(|problem| problem.contains("sdk_secret")));
    }

    #[test]
    fn file_without_a_caller_is_refused() {
        assert_eq!(problems(""), ["has no caller"]);
        // A caller without credentials is not refused: its last key was removed.
        assert!(Callers::parse("[caller.a]\ngrants = { a = \"full\" }\n", &Loads::new()).is_ok());
        assert_eq!(problems("caller = 1"), ["caller: must be a table"]);
        let broken = problems("[caller.a]\nhash = sdk_secret\n");
        assert!(
            broken.len() == 1 && broken[0].starts_with("line 2: ") && !broken[0].contains("sdk_secret"),
            "{broken:?}"
        );
    }
}
