//! Password and TLS of the connections to Redis, from their files.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use rustls::{ClientConfig, RootCertStore, crypto::ring};
use zeroize::Zeroizing;

use super::{
    file::{self, UnusableFile},
    pem::{authorities, certificates, earliest_end, pair_problem, private_key},
    reload::NamedFile,
};
use crate::{
    config::Config,
    store::{RedisCredentials, uses_redis_tls},
};

/// Paths of the files, and what the configuration says without files.
pub(super) struct RedisFiles {
    uses_tls: bool,
    /// Authorities of the servers in PEM. None: those of the system.
    authorities: Option<PathBuf>,
    /// Client certificate with its chain, and its private key, in PEM.
    certificate: Option<(PathBuf, PathBuf)>,
    /// File with the password.
    password: Option<PathBuf>,
    /// Password of the environment.
    given_password: Option<Arc<Zeroizing<String>>>,
}

/// What the files contain.
pub(super) struct RedisMaterial {
    /// Credentials for new connections.
    pub credentials: RedisCredentials,
    /// Time from which on the client certificate has expired.
    pub not_after: Option<SystemTime>,
}

impl RedisFiles {
    /// Returns the files of the configuration.
    pub(super) fn of(config: &Config) -> Self {
        let given_password = config.redis_password.as_ref();
        RedisFiles {
            uses_tls: config.redis.as_deref().is_some_and(uses_redis_tls),
            authorities: config.redis_ca.clone(),
            certificate: config.redis_cert.clone().zip(config.redis_key.clone()),
            password: config.redis_password_file.clone(),
            given_password: given_password.map(|password| Arc::new(Zeroizing::new(password.to_string()))),
        }
    }

    /// Returns all files with the names of their settings.
    pub(super) fn named(&self) -> Vec<NamedFile> {
        let pair = self.certificate.as_ref();
        let files = [
            ("redis_ca", self.authorities.as_ref()),
            ("redis_cert", pair.map(|(certificate, _)| certificate)),
            ("redis_key", pair.map(|(_, key)| key)),
            ("redis_password_file", self.password.as_ref()),
        ];
        files.into_iter().filter_map(|(name, path)| Some((name, path?.clone()))).collect()
    }

    /// Reads and checks all files.
    pub(super) fn load(&self) -> Result<RedisMaterial, UnusableFile> {
        let password = match &self.password {
            Some(path) => Some(Arc::new(password(path)?)),
            None => self.given_password.clone(),
        };
        if !self.uses_tls {
            return Ok(RedisMaterial { credentials: RedisCredentials { password, tls: None }, not_after: None });
        }
        let roots = match &self.authorities {
            Some(path) => authorities(path, &certificates(path)?)?,
            None => system_authorities(),
        };
        let (tls, not_after) = self.tls(roots)?;
        Ok(RedisMaterial { credentials: RedisCredentials { password, tls: Some(Arc::new(tls)) }, not_after })
    }

    fn tls(&self, roots: RootCertStore) -> Result<(ClientConfig, Option<SystemTime>), UnusableFile> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions();
        let builder = builder.map_err(|error| UnusableFile::new("rustls".as_ref(), error))?;
        let builder = builder.with_root_certificates(roots);
        let Some((certificate, key)) = &self.certificate else { return Ok((builder.with_no_client_auth(), None)) };
        let chain = certificates(certificate)?;
        let not_after = earliest_end(certificate, &chain[..1])?;
        let config = builder.with_client_auth_cert(chain, private_key(key)?);
        Ok((config.map_err(|error| pair_problem(&error, certificate, key))?, Some(not_after)))
    }
}

/// Reads a password: the content of the file without the end of its only line.
fn password(path: &Path) -> Result<Zeroizing<String>, UnusableFile> {
    let content = Zeroizing::new(file::read(path)?);
    let text = std::str::from_utf8(&content).map_err(|_| UnusableFile::new(path, "is not UTF-8"))?;
    let line = text.strip_suffix('\n').map_or(text, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() || line.contains(['\n', '\r', '\0']) {
        return Err(UnusableFile::new(path, "must have one line, the password"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// Returns the authorities that the system trusts.
fn system_authorities() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (_, unusable) = roots.add_parsable_certificates(found.certs);
    for error in &found.errors {
        crate::observe::warning!(%error, "cannot read an authority of the system");
    }
    if unusable > 0 {
        crate::observe::warning!(unusable, "authorities of the system that cannot be used are left out");
    }
    roots
}
