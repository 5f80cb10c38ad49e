//! The file `callers.toml` of a server under test, and API keys.

use std::path::PathBuf;

use sessiond::auth::ApiKey;
use tempfile::TempDir;

/// A new API key.
#[derive(Clone)]
pub struct Key {
    /// The key, as callers send it.
    pub text: String,
    /// Its public id.
    pub id: String,
    /// Its hash, as the file has it.
    pub hash: String,
}

impl Key {
    /// Generates a key.
    pub fn generate() -> Self {
        let key = ApiKey::generate(getrandom::fill).unwrap();
        let (id, hash) = key.id_and_hash();
        Key { text: key.reveal().to_owned(), id: id.to_string(), hash: hash.to_string() }
    }

    /// Returns the key with another secret.
    pub fn with_other_secret(&self) -> String {
        format!("{}{}", &self.text[..self.text.len() - 52], &Key::generate().text[15..])
    }
}

/// A caller in the file.
pub struct Caller {
    name: String,
    grants: Vec<(String, String)>,
    certificates: Vec<String>,
    keys: Vec<String>,
}

impl Caller {
    /// A caller with these grants: patterns of namespaces with `token`, `manage` or `full`.
    pub fn new(name: &str, grants: &[(&str, &str)]) -> Self {
        let grants = grants.iter().map(|(pattern, grant)| ((*pattern).to_owned(), (*grant).to_owned())).collect();
        Caller { name: name.to_owned(), grants, certificates: Vec::new(), keys: Vec::new() }
    }

    /// Adds a key.
    pub fn key(self, key: &Key) -> Self {
        self.key_with(key, "")
    }

    /// Adds a key with further lines, such as `expires = 2027-01-01T00:00:00Z`.
    pub fn key_with(mut self, key: &Key, lines: &str) -> Self {
        self.keys.push(format!("id = \"{}\"\nhash = \"{}\"\n{lines}\n", key.id, key.hash));
        self
    }

    /// Adds the identity of a certificate.
    pub fn certificate(mut self, identity: &str) -> Self {
        self.certificates.push(identity.to_owned());
        self
    }

    fn to_toml(&self) -> String {
        let Caller { name, grants, certificates, keys } = self;
        let grants: Vec<_> = grants.iter().map(|(pattern, grant)| format!("\"{pattern}\" = \"{grant}\"")).collect();
        let keys = keys.iter().map(|key| format!("[[caller.{name}.key]]\n{key}")).collect::<String>();
        let grants = grants.join(", ");
        format!("[caller.{name}]\ngrants = {{ {grants} }}\ncertificates = {certificates:?}\n{keys}")
    }
}

/// The file `callers.toml` in a directory of its own.
pub struct CallersFile(TempDir);

impl CallersFile {
    /// Writes a file with these callers.
    pub fn new(callers: &[Caller]) -> Self {
        let file = CallersFile(tempfile::Builder::new().prefix("sessiond-callers-").tempdir().unwrap());
        file.write(callers);
        file
    }

    /// Path of the file.
    pub fn path(&self) -> PathBuf {
        self.0.path().join("callers.toml")
    }

    /// Returns the line of the configuration that names the file.
    pub fn toml(&self) -> String {
        format!("callers = {:?}\n", self.path().to_str().unwrap())
    }

    /// Replaces the file as a whole.
    pub fn write(&self, callers: &[Caller]) {
        self.write_text(&callers.iter().map(Caller::to_toml).collect::<String>());
    }

    /// Replaces the file with this text.
    pub fn write_text(&self, text: &str) {
        let new = self.0.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }
}
