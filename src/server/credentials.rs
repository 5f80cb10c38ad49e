//! Everything by which the server knows its callers, shows who it is, and proves itself to Redis: loaded at start, and again
//! when a file changes.

use std::{path::Path, sync::Arc};

use super::{
    file::{self, UnusableFile},
    redis_files::{RedisFiles, RedisMaterial},
    reload::{FileSet, Loaded},
    tls::{CurrentTls, Tls, TlsFiles},
};
use crate::{
    auth::{Authenticator, Callers, InvalidCallers, Loads},
    config::Config,
    observe::Metrics,
    store::CurrentRedisCredentials,
};

/// Credentials in force, and the files that they come from.
pub(super) struct Credentials {
    /// Finds the callers.
    pub authenticator: Arc<Authenticator>,
    /// TLS of new connections. None: they have no TLS.
    pub tls: Option<Arc<CurrentTls>>,
    /// Password and TLS of new connections to Redis.
    pub redis: Arc<CurrentRedisCredentials>,
    /// Files to reload: certificate, authorities and revocation lists change together, and so do those for Redis.
    pub files: Vec<FileSet>,
}

impl Credentials {
    /// Reads all files of the configuration. Fails if one cannot be used.
    pub(super) fn load(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, UnusableFile> {
        let tls = tls_files(config).map(|files| {
            let mut generation = 0;
            Loaded::read(files.named(), move || {
                generation += 1;
                files.load(generation)
            })
        });
        let callers = config.callers.clone().map(|path| {
            let mut loads = Loads::new();
            Loaded::read(vec![("callers", path.clone())], move || {
                let callers = read_callers(&path, &loads)?;
                loads.clone_from(&callers.loads);
                Ok(callers)
            })
        });
        let (tls, tls_set) = tls.transpose()?.unzip();
        let (callers, callers_set) = callers.transpose()?.unzip();
        let verifier = tls.as_ref().and_then(|tls| tls.verifier.clone());
        let authenticator = Arc::new(Authenticator::new(callers, verifier));
        let mut files = Vec::new();
        let tls = tls.map(|tls| {
            note_ends(&tls, metrics);
            Arc::new(CurrentTls::new(tls))
        });
        if let Some((set, current)) = tls_set.zip(tls.clone()) {
            let (authenticator, metrics) = (authenticator.clone(), metrics.clone());
            files.push(set.on_change(move |tls: Tls| {
                note_ends(&tls, &metrics);
                // First the verifier, which is asked again about the certificates of open connections.
                if let Some(verifier) = tls.verifier.clone() {
                    authenticator.replace_verifier(verifier);
                }
                current.replace(tls);
            }));
        }
        if let Some(set) = callers_set {
            let (authenticator, metrics) = (authenticator.clone(), metrics.clone());
            files.push(set.on_change(move |callers| {
                for (caller, key) in authenticator.replace_callers(callers) {
                    metrics.network.forget_key(&caller, key.to_string());
                }
            }));
        }
        let redis = redis_credentials(config, metrics, &mut files)?;
        Ok(Credentials { authenticator, tls, redis, files })
    }
}

/// Reads password and TLS for Redis, and adds their files to those to reload.
fn redis_credentials(
    config: &Config,
    metrics: &Arc<Metrics>,
    files: &mut Vec<FileSet>,
) -> Result<Arc<CurrentRedisCredentials>, UnusableFile> {
    let redis_files = RedisFiles::of(config);
    let (material, set) = Loaded::read(redis_files.named(), move || redis_files.load())?;
    let metrics = metrics.clone();
    let note_end = move |material: &RedisMaterial| {
        material.not_after.iter().for_each(|end| metrics.network.set_certificate_end("redis", *end));
    };
    note_end(&material);
    let current = Arc::new(CurrentRedisCredentials::new(material.credentials));
    let replaced = current.clone();
    files.push(set.on_change(move |material| {
        note_end(&material);
        replaced.replace(material.credentials);
    }));
    Ok(current)
}

fn note_ends(tls: &Tls, metrics: &Metrics) {
    tls.not_after.iter().for_each(|(name, end)| metrics.network.set_certificate_end(name, *end));
}

/// Returns the files of TLS. None: the configuration has none.
fn tls_files(config: &Config) -> Option<TlsFiles> {
    let (certificate, key) = config.tls_cert.clone().zip(config.tls_key.clone())?;
    let (client_authorities, client_revocations) = (config.client_ca.clone(), config.client_crl.clone());
    Some(TlsFiles { certificate, key, client_authorities, client_revocations })
}

fn read_callers(path: &Path, before: &Loads) -> Result<Callers, UnusableFile> {
    let text = String::from_utf8(file::read(path)?).map_err(|_| UnusableFile::new(path, "is not UTF-8"))?;
    Callers::parse(&text, before).map_err(|InvalidCallers(problems)| UnusableFile::new(path, problems.join("; ")))
}
